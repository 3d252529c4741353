//! The slow tier: which of its pages is the hottest.
//!
//! A page's key is in its word until the page is about to be taken. A sample that carries it above the
//! [front](super::front)'s bound makes it a *newcomer*: it goes to the end of a list, and of newcomers only
//! the greatest is known. When that one leaves, the newcomers go to the *heap*, the greatest key on top,
//! and their words say where in it they are. Keys only grow, so a sample in the heap sifts up, mostly not
//! at all.
//!
//! So samples cost no order while nothing is taken; of a list that is full only the greatest stay.

use super::{
    front::{ARITY, Entry, Room},
    pages::Pages,
    word::{Slot, key_of},
};

#[derive(Debug)]
pub(super) struct SlowHeap {
    /// The heap.
    entries: Vec<Entry>,
    /// Newcomers, with a lower bound of their keys. Some have left, or were listed again.
    newcomers: Vec<Entry>,
    /// The newcomer with the greatest key; `NOBODY` if there is none.
    greatest: Entry,
    /// Every page above it is in the heap or a newcomer. 0 if all are.
    bound: f32,
    room: Room,
}

const NOBODY: Entry = Entry { key: 0.0, id: 0 };

impl SlowHeap {
    /// For a guest with so many pages, none of which has a key.
    pub(super) fn new(pages: u32) -> Self {
        Self {
            entries: Vec::new(),
            newcomers: Vec::new(),
            greatest: NOBODY,
            bound: 0.0,
            room: Room::of(pages),
        }
    }

    /// The bytes of the front of a guest with so many pages: the heap and the newcomers.
    pub(super) fn most_bytes(pages: u32) -> u64 {
        (2 * Room::of(pages).most() * size_of::<Entry>()) as u64
    }

    /// The page with the greatest key.
    pub(super) fn top(&self) -> Option<Entry> {
        let top = self.entries.first().copied().unwrap_or(NOBODY);
        let top = if self.greatest.key > top.key {
            self.greatest
        } else {
            top
        };
        (top.key > 0.0).then_some(top)
    }

    #[inline]
    pub(super) fn key(&self, index: u32) -> f32 {
        self.entries[index as usize].key
    }

    /// The word above which that of a page outside the heap must be [offered](SlowHeap::offer).
    #[inline]
    pub(super) fn mark(&self) -> u32 {
        Slot::Slow(self.bound).word()
    }

    /// Takes note of a page whose word says this key already, and of whether it had one above the
    /// [mark](SlowHeap::mark) before. The caller [makes room](SlowHeap::make_room) after some of them.
    #[inline]
    pub(super) fn offer(&mut self, entry: Entry, was_above: bool) {
        if entry.key > self.bound {
            if !was_above {
                self.room.append(&mut self.newcomers, entry);
            }
            if entry.key > self.greatest.key {
                self.greatest = entry;
            }
        }
    }

    /// Keeps the greatest newcomers only, if there are too many.
    #[inline]
    pub(super) fn make_room(&mut self, pages: &Pages) {
        if self.room.is_full(&self.newcomers) {
            self.keep_greatest_newcomers(pages);
        }
    }

    /// Adds `gain` to a key in the front.
    #[inline]
    pub(super) fn grow(&mut self, index: u32, gain: f32, pages: &mut Pages) {
        let entry = &mut self.entries[index as usize];
        entry.key = (entry.key + gain).min(f32::MAX);
        let entry = *entry;
        self.sift_up(index as usize, entry, pages);
    }

    /// Takes a page out of the heap; its word is left for the caller to set.
    pub(super) fn remove(&mut self, index: u32, pages: &mut Pages) -> Entry {
        let index = index as usize;
        let removed = self.entries.swap_remove(index);
        if let Some(&moved) = self.entries.get(index) {
            pages.update(moved.id, Slot::Front(index as u32));
            self.sift_down(index, moved, pages);
            if self.entries[index] == moved {
                self.sift_up(index, moved, pages);
            }
        }
        removed
    }

    /// Finds the new top, if it was this page that left the tier. Its word no longer names the tier.
    pub(super) fn left(&mut self, id: u32, pages: &mut Pages) {
        if self.greatest.key > 0.0 && self.greatest.id == id {
            self.admit_newcomers(pages);
        }
        let top = self.top().unwrap_or(NOBODY);
        if top.key < self.bound || (top == NOBODY && self.bound > 0.0) {
            self.refill(pages);
        }
    }

    /// Puts every key through `change`, which must keep order, as those in words were already. Pages
    /// whose key became 0 leave and their words become `SlowNever`.
    pub(super) fn rescale(&mut self, pages: &mut Pages, change: impl Fn(f32) -> f32) {
        self.bound = change(self.bound);
        self.greatest.key = change(self.greatest.key);
        for newcomer in &mut self.newcomers {
            newcomer.key = change(newcomer.key);
        }
        let before = self.entries.len();
        self.entries.retain_mut(|entry| {
            entry.key = change(entry.key);
            if entry.key == 0.0 {
                pages.set(entry.id, Slot::SlowNever);
            }
            entry.key != 0.0
        });
        if self.entries.len() < before {
            self.put_in_order(pages);
        }
    }

    /// Bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        (self.entries.capacity() + self.newcomers.capacity()) * size_of::<Entry>()
    }

    /// Whether the heap is in order, every entry's page points back at it, no page above the bound is
    /// missing, and the top is the greatest of all.
    pub(super) fn check(&self, pages: &Pages) -> Result<(), String> {
        for (index, entry) in (0u32..).zip(&self.entries) {
            let Entry { key, id } = *entry;
            if !key.is_normal() || key < 0.0 {
                return Err(format!(
                    "slow tier: page {id} in the heap has the key {key}"
                ));
            }
            if pages.get(id) != Slot::Front(index) {
                return Err(format!("slow tier: page {id} is not where its word says"));
            }
            if index > 0 && self.entries[(index as usize - 1) / ARITY].key < key {
                return Err(format!("slow tier: page {id} is greater than its parent"));
            }
        }
        let newcomers: std::collections::HashMap<u32, f32> = self
            .newcomers
            .iter()
            .map(|entry| (entry.id, entry.key))
            .collect();
        let (mut in_heap, mut greatest) = (0, 0.0_f32);
        for (id, slot) in pages.iter() {
            match slot {
                Slot::Slow(key) => {
                    if key > self.bound && newcomers.get(&id).is_none_or(|&bound| bound > key) {
                        return Err(format!("slow tier: page {id} is not among the newcomers"));
                    }
                    greatest = greatest.max(key);
                }
                Slot::Front(index) => {
                    in_heap += 1;
                    greatest = greatest.max(self.key(index));
                }
                _ => {}
            }
        }
        if in_heap != self.entries.len() {
            return Err("slow tier: the heap has too many entries".to_owned());
        }
        if self.room.is_full(&self.entries) || self.room.is_full(&self.newcomers) {
            return Err("slow tier: the front has not been cut".to_owned());
        }
        let greatest_is_there = pages.get(self.greatest.id) == Slot::Slow(self.greatest.key);
        if self.greatest.key > 0.0 && !greatest_is_there {
            return Err("slow tier: the greatest newcomer is not what its word says".to_owned());
        }
        let top = self.top().unwrap_or(NOBODY);
        if top.key != greatest {
            return Err(format!("slow tier: {top:?} on top is not {greatest}"));
        }
        Ok(())
    }

    /// Drops newcomers that there is no room for, and such as are none any more.
    fn keep_greatest_newcomers(&mut self, pages: &Pages) {
        let bound = self.bound;
        self.newcomers
            .retain_mut(|entry| match pages.get(entry.id) {
                Slot::Slow(key) if key > bound => {
                    entry.key = key;
                    true
                }
                _ => false,
            });
        if let Some((kept, bound)) = self.room.split(&mut self.newcomers, greatest_first) {
            self.newcomers.truncate(kept);
            self.bound = bound;
        }
    }

    /// Puts all newcomers into the heap.
    fn admit_newcomers(&mut self, pages: &mut Pages) {
        if self.newcomers.len() > self.entries.len() {
            self.keep_greatest_newcomers(pages);
        }
        self.greatest = NOBODY;
        // Sifting one by one costs up to a walk to the root each.
        let in_bulk = self.newcomers.len() > self.entries.len() / 8;
        for Entry { id, .. } in std::mem::take(&mut self.newcomers) {
            // One that was listed twice is in the heap the second time.
            if let Slot::Slow(key) = pages.get(id)
                && key >= self.bound
            {
                let (last, entry) = (self.entries.len(), Entry { key, id });
                self.entries.push(entry);
                pages.update(id, Slot::Front(last as u32));
                if !in_bulk {
                    self.sift_up(last, entry, pages);
                }
            }
        }
        if in_bulk {
            self.put_in_order(pages);
        }
        if self.room.is_full(&self.entries)
            && let Some((kept, bound)) = self.room.split(&mut self.entries, greatest_first)
        {
            for &Entry { key, id } in &self.entries[kept..] {
                pages.update(id, Slot::Slow(key));
            }
            self.entries.truncate(kept);
            self.entries.shrink_to(self.room.most());
            self.bound = self.bound.max(bound);
            self.put_in_order(pages);
        }
    }

    /// Looks at all pages and makes the heap of the greatest.
    fn refill(&mut self, pages: &mut Pages) {
        for &Entry { key, id } in &self.entries {
            pages.update(id, Slot::Slow(key));
        }
        self.entries.clear();
        self.newcomers.clear();
        self.greatest = NOBODY;
        self.bound = 0.0;
        pages.for_chunks(|first, words| {
            // Of all words, those of slow pages with a key are the greatest.
            let mut mark = self.mark();
            for (id, &word) in (first..).zip(words) {
                if word > mark
                    && let Some(key) = key_of(word)
                {
                    self.room.append(&mut self.entries, Entry { key, id });
                    if self.room.is_full(&self.entries)
                        && let Some((kept, bound)) =
                            self.room.split(&mut self.entries, greatest_first)
                    {
                        self.entries.truncate(kept);
                        self.bound = bound;
                        mark = self.mark();
                    }
                }
            }
        });
        self.put_in_order(pages);
    }

    /// Makes a heap of the entries and sets their pages' words. What is sorted is a heap.
    fn put_in_order(&mut self, pages: &mut Pages) {
        self.entries.sort_unstable_by(greatest_first);
        for (index, entry) in (0..).zip(&self.entries) {
            pages.update(entry.id, Slot::Front(index));
        }
    }

    #[inline]
    fn sift_up(&mut self, start: usize, entry: Entry, pages: &mut Pages) {
        let mut index = start;
        while index > 0 {
            let parent = (index - 1) / ARITY;
            let above = self.entries[parent];
            if above.key >= entry.key {
                break;
            }
            self.entries[index] = above;
            pages.update(above.id, Slot::Front(index as u32));
            index = parent;
        }
        if index != start {
            self.entries[index] = entry;
            pages.update(entry.id, Slot::Front(index as u32));
        }
    }

    fn sift_down(&mut self, start: usize, entry: Entry, pages: &mut Pages) {
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
                            if next.1.key > best.1.key { next } else { best }
                        },
                    )
            else {
                break;
            };
            if below.key <= entry.key {
                break;
            }
            self.entries[index] = below;
            pages.update(below.id, Slot::Front(index as u32));
            index = child;
        }
        if index != start {
            self.entries[index] = entry;
            pages.update(entry.id, Slot::Front(index as u32));
        }
    }
}

fn greatest_first(a: &Entry, b: &Entry) -> std::cmp::Ordering {
    b.key.total_cmp(&a.key)
}
