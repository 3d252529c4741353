//! The slow tier: which of its pages is the hottest.
//!
//! A page's key is in its word while it is not above the [front](super::front)'s bound; otherwise it is in
//! the front, a heap with the greatest key on top, and its word says where. Keys only grow, so a sample
//! in the front sifts up, mostly not at all.

use super::{
    front::{ARITY, Entry, Room},
    pages::Pages,
    word::{Slot, key_of},
};

#[derive(Debug)]
pub(super) struct SlowHeap {
    entries: Vec<Entry>,
    /// Every page above it is in the front, none below it. 0 if all are.
    bound: f32,
    room: Room,
}

impl SlowHeap {
    /// The front of a guest with so many pages, none of which has a key.
    pub(super) fn new(pages: u32) -> Self {
        Self {
            entries: Vec::new(),
            bound: 0.0,
            room: Room::of(pages),
        }
    }

    /// The page with the greatest key.
    pub(super) fn top(&self) -> Option<Entry> {
        self.entries.first().copied()
    }

    #[inline]
    pub(super) fn key(&self, index: u32) -> f32 {
        self.entries[index as usize].key
    }

    /// The word above which that of a page outside must be [offered](SlowHeap::offer).
    #[inline]
    pub(super) fn mark(&self) -> u32 {
        Slot::Slow(self.bound).word()
    }

    /// Takes note of a page outside, whose word says this key already.
    #[inline]
    pub(super) fn offer(&mut self, entry: Entry, pages: &mut Pages) {
        if entry.key > self.bound {
            let last = self.entries.len();
            self.room.append(&mut self.entries, entry);
            pages.update(entry.id, Slot::Front(last as u32));
            self.sift_up(last, entry, pages);
            if self.room.is_full(&self.entries) {
                self.cut(pages);
            }
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

    /// Takes a page out of the front; its word is left for the caller to set.
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

    /// Fills the front if it is empty and pages with a key are outside.
    pub(super) fn refill_if_empty(&mut self, pages: &mut Pages) {
        if !self.entries.is_empty() || self.bound == 0.0 {
            return;
        }
        self.bound = 0.0;
        pages.for_chunks(|first, words| {
            // Of all words, those of slow pages with a key are the greatest.
            let mut mark = self.mark();
            for (id, &word) in (first..).zip(words) {
                if word > mark
                    && let Some(key) = key_of(word)
                {
                    self.room.append(&mut self.entries, Entry { key, id });
                    if self.room.is_full(&self.entries) {
                        self.keep_greatest();
                        mark = self.mark();
                    }
                }
            }
        });
        self.put_in_order(pages);
    }

    /// Puts every key through `change`, which must keep order, as those in words were already. Pages
    /// whose key became 0 leave and their words become `SlowNever`.
    pub(super) fn rescale(&mut self, pages: &mut Pages, change: impl Fn(f32) -> f32) {
        self.bound = change(self.bound);
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
        self.entries.capacity() * size_of::<Entry>()
    }

    /// Whether the heap is in order, every entry's page points back at it, and the front has all pages
    /// above its bound.
    pub(super) fn check(&self, pages: &Pages) -> Result<(), String> {
        for (index, entry) in (0u32..).zip(&self.entries) {
            let Entry { key, id } = *entry;
            if !key.is_normal() || key < self.bound {
                return Err(format!("slow tier: page {id} in front has the key {key}"));
            }
            if pages.get(id) != Slot::Front(index) {
                return Err(format!("slow tier: page {id} is not where its word says"));
            }
            if index > 0 && self.entries[(index as usize - 1) / ARITY].key < key {
                return Err(format!("slow tier: page {id} is greater than its parent"));
            }
        }
        let mut in_front = 0;
        for (id, slot) in pages.iter() {
            match slot {
                Slot::Slow(key) if key > self.bound => {
                    return Err(format!("slow tier: page {id} is not in front"));
                }
                Slot::Front(_) => in_front += 1,
                _ => {}
            }
        }
        if in_front != self.entries.len() || self.room.is_full(&self.entries) {
            return Err("slow tier: the front has too many entries".to_owned());
        }
        if self.entries.is_empty() && self.bound > 0.0 {
            return Err("slow tier: the front is empty, and pages are outside".to_owned());
        }
        Ok(())
    }

    /// Sends those that there is no room for back outside.
    fn cut(&mut self, pages: &mut Pages) {
        if let Some((kept, bound)) = self.room.split(&mut self.entries, greatest_first) {
            for &Entry { key, id } in &self.entries[kept..] {
                pages.update(id, Slot::Slow(key));
            }
            self.entries.truncate(kept);
            self.bound = bound;
            self.put_in_order(pages);
        }
    }

    /// Drops entries whose pages' words have not been set yet.
    fn keep_greatest(&mut self) {
        if let Some((kept, bound)) = self.room.split(&mut self.entries, greatest_first) {
            self.entries.truncate(kept);
            self.bound = bound;
        }
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
