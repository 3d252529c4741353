//! The slow tier: which of its pages is the hottest.
//!
//! A page's key is in its word until the page is about to be taken. A sample that carries it above the
//! [front](super::front)'s bound makes it a *newcomer*: it goes to the end of a list, and of newcomers only
//! the greatest is known. When that one leaves, the greatest newcomers go to the *heap*, the greatest
//! key on top, and their words say where in it they are. Keys only grow, so a sample in the heap sifts
//! up, mostly not at all.
//!
//! So samples cost no order while nothing is taken; of a list that is full only the greatest stay. Where
//! every page is sampled once, each is a newcomer, and asking for its word again would cost as much as
//! the sample. So a newcomer that grows is listed again, and the list is cut by what it says; only where
//! too many were listed again, or have left, are the words asked.

mod check;

use super::{
    front::{ARITY, Entry, Room, for_each_ahead, refresh},
    pages::Pages,
    word::{Slot, key_of},
};

#[derive(Debug)]
pub(super) struct SlowHeap {
    /// The heap.
    entries: Vec<Entry>,
    /// Newcomers, with keys that they had. Some have left, or were listed again.
    newcomers: Vec<Entry>,
    /// Newcomers that grew since their words were last asked for, and such as left. While they are few,
    /// each newcomer is listed with the key that it has.
    loose: usize,
    /// The newcomer with the greatest key; `NOBODY` if there is none.
    greatest: Entry,
    /// Every page above it is in the heap or a newcomer. 0 if all are.
    bound: f32,
    room: Room,
}

const NOBODY: Entry = Entry { key: 0.0, id: 0 };

impl SlowHeap {
    /// For a guest with `pages` pages, none of which has a key.
    pub(super) fn new(pages: u32) -> Self {
        Self {
            entries: Vec::new(),
            newcomers: Vec::new(),
            loose: 0,
            greatest: NOBODY,
            bound: 0.0,
            room: Room::of(pages),
        }
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
            self.loose += usize::from(was_above);
            if !was_above || self.is_listed_with_keys() {
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
            sift_down(&mut self.entries, index, moved, |id, index| {
                pages.update(id, Slot::Front(index as u32));
            });
            if self.entries[index] == moved {
                self.sift_up(index, moved, pages);
            }
        }
        removed
    }

    /// Whether each newcomer is listed with the key that it has.
    #[inline]
    fn is_listed_with_keys(&self) -> bool {
        self.loose < self.room.loose()
    }

    /// Finds the new top, if it was this page that left the tier. Its word no longer names the tier; its
    /// key is that which stood there, 0 if none did.
    pub(super) fn left(&mut self, Entry { key, id }: Entry, pages: &mut Pages) {
        self.loose += usize::from(key > self.bound);
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

    /// Drops newcomers that there is no room for.
    fn keep_greatest_newcomers(&mut self, pages: &Pages) {
        if !self.is_listed_with_keys() {
            self.ask_newcomers(pages);
        }
        if let Some((kept, bound)) = self.room.split(&mut self.newcomers, greatest_first) {
            self.newcomers.truncate(kept);
            self.bound = bound;
        }
    }

    /// Lists each newcomer once, with its key. In the order of their words, which is the fastest to ask
    /// for them.
    fn ask_newcomers(&mut self, pages: &Pages) {
        self.loose = 0;
        self.newcomers.sort_unstable_by_key(|entry| entry.id);
        self.newcomers.dedup_by_key(|entry| entry.id);
        let bound = self.bound;
        refresh(&mut self.newcomers, pages, |entry| {
            match pages.get(entry.id) {
                Slot::Slow(key) if key > bound => Some(key),
                _ => None,
            }
        });
    }

    /// Puts the greatest newcomers into the heap: as many as are taken soon, as each costs a cache miss
    /// or two.
    fn admit_newcomers(&mut self, pages: &mut Pages) {
        if !self.is_listed_with_keys() {
            self.ask_newcomers(pages);
        }
        let rest = self.newcomers.len().saturating_sub(self.room.admitted());
        if rest > 0 {
            self.newcomers
                .select_nth_unstable_by(rest, |a, b| greatest_first(b, a));
        }
        let admitted = self.newcomers.split_off(rest);
        // Sifting one by one costs up to a walk to the root each.
        let in_bulk = admitted.len() > self.entries.len() / 8;
        for_each_ahead(&admitted, pages, |_, Entry { id, .. }, pages| {
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
        });
        let is_cut = self.cut(pages);
        if in_bulk || is_cut {
            self.put_in_order(pages);
        }
        self.greatest = NOBODY;
        for &entry in &self.newcomers {
            if entry.key > self.greatest.key && pages.get(entry.id) == Slot::Slow(entry.key) {
                self.greatest = entry;
            }
        }
    }

    /// Puts the least out of the heap, and of the newcomers, if there are too many. Returns whether it
    /// did, so that the heap's order is lost.
    fn cut(&mut self, pages: &mut Pages) -> bool {
        if !self.room.is_full(&self.entries) {
            return false;
        }
        let Some((kept, bound)) = self.room.split(&mut self.entries, greatest_first) else {
            return false;
        };
        for_each_ahead(
            &self.entries[kept..],
            pages,
            |_, Entry { key, id }, pages| {
                pages.update(id, Slot::Slow(key));
            },
        );
        self.entries.truncate(kept);
        self.entries.shrink_to(self.room.most());
        self.bound = self.bound.max(bound);
        self.newcomers.retain(|entry| entry.key > self.bound);
        true
    }

    /// Looks at all pages and makes the heap of the greatest.
    fn refill(&mut self, pages: &mut Pages) {
        for_each_ahead(&self.entries, pages, |_, Entry { key, id }, pages| {
            pages.update(id, Slot::Slow(key));
        });
        self.entries.clear();
        self.newcomers.clear();
        self.loose = 0;
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

    /// Makes a heap of the entries (Floyd's way, from the last parent to the root) and sets their pages'
    /// words.
    fn put_in_order(&mut self, pages: &mut Pages) {
        for index in (0..self.entries.len().div_ceil(ARITY)).rev() {
            let entry = self.entries[index];
            sift_down(&mut self.entries, index, entry, |_, _| {});
        }
        for_each_ahead(&self.entries, pages, |index, entry, pages| {
            pages.update(entry.id, Slot::Front(index as u32));
        });
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
}

/// Puts an entry at `start`, or as far below it as order wants. Tells of each that got another index.
#[inline]
fn sift_down(entries: &mut [Entry], start: usize, entry: Entry, mut moved: impl FnMut(u32, usize)) {
    let mut index = start;
    loop {
        let first = index * ARITY + 1;
        let last = (first + ARITY).min(entries.len());
        let children = entries.get(first..last).unwrap_or_default();
        let Some((child, below)) = (first..)
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
        entries[index] = below;
        moved(below.id, index);
        index = child;
    }
    if index != start {
        entries[index] = entry;
        moved(entry.id, index);
    }
}

fn greatest_first(a: &Entry, b: &Entry) -> std::cmp::Ordering {
    b.key.total_cmp(&a.key)
}
