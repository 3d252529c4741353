//! The fast tier's heap: the least key on top, brought up to date only when it is looked at.
//!
//! A page's true key is in its word, so a sample does not touch the heap. An entry holds the key its
//! page had when the entry was last looked at. Between moves keys only grow, so the entry is a lower
//! bound; if the top's bound is its page's true key, no page of the tier has a smaller one.
//!
//! Nor does a page that leaves the tier touch the heap: its entry stays behind and is dropped when it
//! comes to the top, or when such entries outnumber the others. A page that comes back, or whose key
//! was lowered, gets a new entry; an older one beside it does no harm.

use super::{
    pages::{Pages, Slot},
    slow::{Entry, push_tight},
};

/// Children of a node: 8 entries fill a cache line, and 4 were no faster (benches/dual_heap.rs).
const ARITY: usize = 8;

#[derive(Debug, Default)]
pub(super) struct FastHeap {
    entries: Vec<Entry>,
}

impl FastHeap {
    /// Adds an entry for a page with this key. `live` is the number of pages in the tier that have a
    /// key, this one included.
    pub(super) fn push(&mut self, entry: Entry, live: usize, pages: &Pages) {
        if self.entries.len() > 2 * live + 64 {
            self.compact(pages);
        }
        push_tight(&mut self.entries, entry);
        let mut index = self.entries.len() - 1;
        while index > 0 {
            let parent = (index - 1) / ARITY;
            if self.entries[parent].key <= entry.key {
                break;
            }
            self.entries[index] = self.entries[parent];
            index = parent;
        }
        self.entries[index] = entry;
    }

    /// The page with the least true key. Refreshes and drops entries until the top is true.
    pub(super) fn top(&mut self, pages: &Pages) -> Option<Entry> {
        loop {
            let top = *self.entries.first()?;
            match pages.get(top.id) {
                Slot::Fast(key) if key == top.key => return Some(top),
                Slot::Fast(key) => self.sift_down(0, Entry { key, id: top.id }),
                _ => self.drop_top(),
            }
        }
    }

    /// Drops the top entry, whose page has left or is about to leave the tier.
    pub(super) fn drop_top(&mut self) {
        if self.entries.is_empty() {
            return;
        }
        self.entries.swap_remove(0);
        if let Some(&first) = self.entries.first() {
            self.sift_down(0, first);
        }
    }

    fn sift_down(&mut self, start: usize, entry: Entry) {
        let mut index = start;
        loop {
            let first = index * ARITY + 1;
            let last = (first + ARITY).min(self.entries.len());
            let children = self.entries.get(first..last).unwrap_or_default();
            let Some((child, below)) =
                (first..)
                    .zip(children.iter().copied())
                    .reduce(
                        |best, next| {
                            if next.1.key < best.1.key { next } else { best }
                        },
                    )
            else {
                break;
            };
            if below.key >= entry.key {
                break;
            }
            self.entries[index] = below;
            index = child;
        }
        self.entries[index] = entry;
    }

    /// Drops what pages left behind and brings all other entries up to date, in O(n log n).
    fn compact(&mut self, pages: &Pages) {
        self.entries.sort_unstable_by_key(|entry| entry.id);
        self.entries.dedup_by_key(|entry| entry.id);
        self.entries.retain_mut(|entry| match pages.get(entry.id) {
            Slot::Fast(key) => {
                entry.key = key;
                true
            }
            _ => false,
        });
        for index in (0..self.entries.len().div_ceil(ARITY)).rev() {
            self.sift_down(index, self.entries[index]);
        }
    }

    /// Puts every entry through `change`, which must keep order.
    pub(super) fn rescale(&mut self, change: impl Fn(f32) -> f32) {
        for entry in &mut self.entries {
            entry.key = change(entry.key);
        }
    }

    /// Bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }

    /// Whether the heap is in order and every page of the tier with a key has an entry that is a
    /// lower bound of it.
    pub(super) fn check(&self, pages: &Pages) -> Result<(), String> {
        let mut bounds = std::collections::HashMap::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if !entry.key.is_finite() || entry.key < 0.0 {
                return Err(format!(
                    "fast heap: page {} has the key {}",
                    entry.id, entry.key
                ));
            }
            if index > 0 && self.entries[(index - 1) / ARITY].key > entry.key {
                return Err(format!("fast heap: entry {index} is less than its parent"));
            }
            let bound = bounds.entry(entry.id).or_insert(entry.key);
            *bound = bound.min(entry.key);
        }
        for (id, slot) in pages.iter() {
            if let Slot::Fast(key) = slot {
                if !key.is_normal() {
                    return Err(format!("fast tier: page {id} has the key {key}"));
                }
                if bounds.get(&id).is_none_or(|&bound| bound > key) {
                    return Err(format!("fast heap: no entry bounds page {id}"));
                }
            }
        }
        Ok(())
    }
}
