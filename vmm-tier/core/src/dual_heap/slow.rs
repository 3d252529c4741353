//! The slow tier's heap: indexed, the greatest key on top; a sample sifts its page up at once.

use super::pages::{Pages, Slot};

/// Children of a node. Sampling only ever sifts up, so a flat heap pays: 8 entries fill a cache line,
/// and of 4, 8 and 16 the differences were within the noise (benches/dual_heap.rs).
const ARITY: usize = 8;

/// A page in a heap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key: f32,
    pub(super) id: u32,
}

/// Appends without the doubling of `Vec::push`: the heaps are most of the engine's memory.
pub(super) fn push_tight<T>(entries: &mut Vec<T>, entry: T) {
    if entries.len() == entries.capacity() {
        entries.reserve_exact((entries.len() / 16).max(64));
    }
    entries.push(entry);
}

/// Each page in it has the word `Slot::Slow(index of its entry)`.
#[derive(Debug, Default)]
pub(super) struct SlowHeap {
    entries: Vec<Entry>,
}

impl SlowHeap {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn top(&self) -> Option<Entry> {
        self.entries.first().copied()
    }

    pub(super) fn key(&self, index: u32) -> f32 {
        self.entries[index as usize].key
    }

    /// Brings what a sample of this page will look at into the cache.
    #[inline]
    pub(super) fn read_ahead(&self, index: u32) -> f32 {
        let parent = (index as usize).saturating_sub(1) / ARITY;
        self.entries[index as usize].key + self.entries[parent].key
    }

    /// Adds a page, whose word must be tracked already.
    pub(super) fn push(&mut self, entry: Entry, pages: &mut Pages) {
        push_tight(&mut self.entries, entry);
        let last = self.entries.len() - 1;
        pages.set(entry.id, Slot::Slow(last as u32));
        self.sift_up(last, entry, pages);
    }

    /// Adds `gain` to a key.
    #[inline]
    pub(super) fn grow(&mut self, index: u32, gain: f32, pages: &mut Pages) {
        let entry = &mut self.entries[index as usize];
        entry.key = (entry.key + gain).min(f32::MAX);
        let entry = *entry;
        self.sift_up(index as usize, entry, pages);
    }

    /// Adds `gain` to a key and leaves the heap out of order until [`SlowHeap::rebuild`].
    #[inline]
    pub(super) fn grow_unordered(&mut self, index: u32, gain: f32) {
        let entry = &mut self.entries[index as usize];
        entry.key = (entry.key + gain).min(f32::MAX);
    }

    /// Adds a page at the end and leaves the heap out of order until [`SlowHeap::rebuild`].
    pub(super) fn push_unordered(&mut self, entry: Entry, pages: &mut Pages) {
        pages.set(entry.id, Slot::Slow(self.entries.len() as u32));
        push_tight(&mut self.entries, entry);
    }

    /// Takes an entry out; its page's word is left for the caller to set.
    pub(super) fn remove(&mut self, index: u32, pages: &mut Pages) -> Entry {
        let index = index as usize;
        let removed = self.entries.swap_remove(index);
        if let Some(&moved) = self.entries.get(index) {
            pages.update(moved.id, Slot::Slow(index as u32));
            self.sift_down(index, moved, pages);
            if self.entries[index] == moved {
                self.sift_up(index, moved, pages);
            }
        }
        removed
    }

    fn sift_up(&mut self, start: usize, entry: Entry, pages: &mut Pages) {
        let mut index = start;
        while index > 0 {
            let parent = (index - 1) / ARITY;
            let above = self.entries[parent];
            if above.key >= entry.key {
                break;
            }
            self.entries[index] = above;
            pages.update(above.id, Slot::Slow(index as u32));
            index = parent;
        }
        if index != start {
            self.entries[index] = entry;
            pages.update(entry.id, Slot::Slow(index as u32));
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
            pages.update(below.id, Slot::Slow(index as u32));
            index = child;
        }
        if index != start {
            self.entries[index] = entry;
            pages.update(entry.id, Slot::Slow(index as u32));
        }
    }

    /// Restores the order after unordered changes, in O(n).
    pub(super) fn rebuild(&mut self, pages: &mut Pages) {
        if self.entries.len() < 2 {
            return;
        }
        for index in (0..=(self.entries.len() - 2) / ARITY).rev() {
            self.sift_down(index, self.entries[index], pages);
        }
    }

    /// Puts every key through `change`, which must keep order. Pages whose key became 0 leave the
    /// heap and their words become `SlowNever`.
    pub(super) fn rescale(&mut self, pages: &mut Pages, change: impl Fn(f32) -> f32) {
        let before = self.entries.len();
        self.entries.retain_mut(|entry| {
            entry.key = change(entry.key);
            if entry.key == 0.0 {
                pages.set(entry.id, Slot::SlowNever);
            }
            entry.key != 0.0
        });
        if self.entries.len() < before {
            for (index, entry) in (0..).zip(&self.entries) {
                pages.update(entry.id, Slot::Slow(index));
            }
            self.rebuild(pages);
        }
    }

    /// Bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }

    /// Whether the heap is in order and every entry's page points back at it.
    pub(super) fn check(&self, pages: &Pages) -> Result<(), String> {
        for (index, entry) in (0u32..).zip(&self.entries) {
            if !entry.key.is_normal() || entry.key < 0.0 {
                return Err(format!(
                    "slow heap: page {} has the key {}",
                    entry.id, entry.key
                ));
            }
            if pages.get(entry.id) != Slot::Slow(index) {
                return Err(format!(
                    "slow heap: page {} is not where its word says",
                    entry.id
                ));
            }
            if index > 0 && self.entries[(index as usize - 1) / ARITY].key < entry.key {
                return Err(format!(
                    "slow heap: entry {index} is greater than its parent"
                ));
            }
        }
        Ok(())
    }
}
