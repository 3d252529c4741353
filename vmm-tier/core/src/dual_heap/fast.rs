//! The fast tier: which of its sampled pages is the coldest.
//!
//! A page's key is in its word and only grows while the page stays, so a sample does not touch the
//! [front](super::front): an entry holds the key that its page had when the entry was last looked at, a
//! lower bound. If the top's is its page's true key, no page of the tier has a smaller one.
//!
//! Nor does a page that leaves the tier touch the front: its entry stays behind and is dropped when it
//! comes to the top, or when the front is cut. A page that comes back, or whose key was lowered, gets a
//! new entry if it is below the bound; an older one beside it does no harm.

use super::{
    front::{ARITY, Entry, Room, refresh},
    pages::Pages,
    word::Slot,
};

#[derive(Debug)]
pub(super) struct FastHeap {
    /// A heap, the least on top.
    entries: Vec<Entry>,
    /// Every page below it has an entry, no entry is above it. Infinite if all have.
    bound: f32,
    room: Room,
}

impl FastHeap {
    /// The front of a guest with `pages` pages, none of which has a key.
    pub(super) fn new(pages: u32) -> Self {
        Self {
            entries: Vec::new(),
            bound: f32::INFINITY,
            room: Room::of(pages),
        }
    }

    /// Takes note of a page that got this key, which its word says already.
    pub(super) fn offer(&mut self, entry: Entry, pages: &Pages) {
        if entry.key >= self.bound {
            return;
        }
        self.room.append(&mut self.entries, entry);
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
        if self.room.is_full(&self.entries) {
            self.cut(pages);
        }
    }

    /// The page with the least true key. Refreshes and drops entries until the top is true.
    pub(super) fn top(&mut self, pages: &Pages) -> Option<Entry> {
        loop {
            match self.entries.first() {
                Some(&top) => match true_key(top, pages) {
                    Some(key) if key == top.key => return Some(top),
                    Some(key) if key < self.bound => self.sift_down(Entry { key, id: top.id }),
                    _ => self.drop_top(),
                },
                None if self.bound == f32::INFINITY => return None,
                None => self.refill(pages),
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
            self.sift_down(first);
        }
    }

    /// Puts every key through `change`, which must keep order, as those in words were already.
    pub(super) fn rescale(&mut self, change: impl Fn(f32) -> f32) {
        for entry in &mut self.entries {
            entry.key = change(entry.key);
        }
        if self.bound < f32::INFINITY {
            self.bound = change(self.bound);
        }
    }

    /// Bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }

    /// Whether the heap is in order and every page below the bound has an entry that is a lower bound
    /// of its key.
    pub(super) fn check(&self, pages: &Pages) -> Result<(), String> {
        let mut bounds = std::collections::HashMap::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let Entry { key, id } = *entry;
            if !(0.0..=f32::MAX).contains(&key) || key > self.bound {
                return Err(format!("fast tier: page {id} in front has the key {key}"));
            }
            if index > 0 && self.entries[(index - 1) / ARITY].key > key {
                return Err(format!("fast tier: entry {index} is less than its parent"));
            }
            let bound = bounds.entry(id).or_insert(key);
            *bound = key.min(*bound);
        }
        for (id, slot) in pages.iter() {
            if let Slot::Fast(key) = slot
                && key < self.bound
                && bounds.get(&id).is_none_or(|&bound| bound > key)
            {
                return Err(format!("fast tier: no entry bounds page {id}"));
            }
        }
        if self.room.is_full(&self.entries) {
            return Err("fast tier: the front has too many entries".to_owned());
        }
        Ok(())
    }

    /// Brings all entries up to date and drops those that there is no room for.
    fn cut(&mut self, pages: &Pages) {
        let bound = self.bound;
        refresh(&mut self.entries, pages, |entry| {
            true_key(entry, pages).filter(|&key| key <= bound)
        });
        self.keep_least();
        self.put_in_order();
    }

    fn refill(&mut self, pages: &Pages) {
        self.bound = f32::INFINITY;
        pages.for_chunks(|first, words| {
            for (id, &word) in (first..).zip(words) {
                if let Slot::Fast(key) = Slot::of(word)
                    && key < self.bound
                {
                    self.room.append(&mut self.entries, Entry { key, id });
                    if self.room.is_full(&self.entries) {
                        self.keep_least();
                    }
                }
            }
        });
        self.put_in_order();
    }

    fn keep_least(&mut self) {
        let least_first = |a: &Entry, b: &Entry| a.key.total_cmp(&b.key);
        if let Some((kept, bound)) = self.room.split(&mut self.entries, least_first) {
            self.entries.truncate(kept);
            self.bound = bound;
        }
    }

    /// Makes a heap of the entries, each page once. What is sorted is a heap.
    fn put_in_order(&mut self) {
        // The bits of positive floats are in the floats' order.
        self.entries
            .sort_unstable_by_key(|entry| (entry.key.to_bits(), entry.id));
        self.entries.dedup();
    }

    /// Puts an entry at the top, or as far below it as order wants.
    fn sift_down(&mut self, entry: Entry) {
        let mut index = 0;
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
}

#[inline]
fn true_key(entry: Entry, pages: &Pages) -> Option<f32> {
    match pages.get(entry.id) {
        Slot::Fast(key) => Some(key),
        _ => None,
    }
}
