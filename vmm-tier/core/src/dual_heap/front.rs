//! The pages of a tier that may be taken next: those ahead of a bound.
//!
//! Of millions of pages only the foremost is ever taken, so only the foremost few are kept in order. A
//! tier has a *front*: a bound, and the pages whose keys are ahead of it, which is above it in the slow
//! tier, where the greatest is wanted, and below it in the fast tier, where the least is. A sample of
//! any other page changes that page's word and nothing else.
//!
//! A front that is full is cut to a quarter, and its bound moves to the last key that was kept. For one
//! that is used up, all pages are looked at and the foremost go in. Either costs little for each page
//! that went in or out in between.

use std::cmp::Ordering;

use super::pages::Pages;

/// Children of a node: 8 entries fill a cache line.
pub(super) const ARITY: usize = 8;

/// A front that was cut has as many entries as the square root of all pages, times this: 8192 of 16 M
/// pages, which stay in a core's cache, and a look at all pages, at half a nanosecond each, takes a
/// microsecond for each page that can then be taken.
const ROOTS: u32 = 2;
const LEAST_ROOM: usize = 16;
/// How many times its room a front may hold before it is cut.
const GROWTH: usize = 4;

/// Entries whose pages' words are asked for before the first is looked at: as many as a core can have
/// outstanding misses, or twice that.
const AHEAD: usize = 24;

/// A page and its key, or a bound of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) key: f32,
    pub(super) id: u32,
}

/// How many pages a front keeps when it is cut, and what it may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room(usize);

impl Room {
    /// For a guest of `pages` pages.
    pub(super) fn of(pages: u32) -> Self {
        Self(LEAST_ROOM + (ROOTS * pages.isqrt()) as usize)
    }

    #[inline]
    pub(super) fn is_full(self, entries: &[Entry]) -> bool {
        entries.len() >= self.most()
    }

    /// What a front may hold.
    pub(super) fn most(self) -> usize {
        GROWTH * self.0
    }

    /// How many of a list go to the heap together: those of a batch of moves and more.
    pub(super) fn admitted(self) -> usize {
        self.0 / 8
    }

    /// How many of a list's entries may not be what they say.
    #[inline]
    pub(super) fn loose(self) -> usize {
        self.0 / 4
    }

    /// Appends without the doubling of `Vec::push`: up to what the front may hold, and little more.
    #[inline]
    pub(super) fn append(self, entries: &mut Vec<Entry>, entry: Entry) {
        let len = entries.len();
        if len == entries.capacity() {
            let most = self.most().max(len + len / 8 + 1);
            entries.reserve_exact((len + len / 2).clamp(LEAST_ROOM, most) - len);
        }
        entries.push(entry);
    }

    /// Moves those that there is room for to the front, in no order, and returns how many they are and
    /// the last one's key; `None` if there is room for all.
    pub(super) fn split(
        self,
        entries: &mut [Entry],
        order: impl Fn(&Entry, &Entry) -> Ordering,
    ) -> Option<(usize, f32)> {
        (entries.len() > self.0).then(|| {
            let (_, last, _) = entries.select_nth_unstable_by(self.0 - 1, order);
            (self.0, last.key)
        })
    }
}

/// Calls `each` for every entry, with the words of those to come asked for.
#[inline]
pub(super) fn for_each_ahead(
    entries: &[Entry],
    pages: &mut Pages,
    mut each: impl FnMut(usize, Entry, &mut Pages),
) {
    for (index, &entry) in entries.iter().enumerate() {
        if let Some(later) = entries.get(index + AHEAD) {
            pages.read_ahead(later.id);
        }
        each(index, entry, pages);
    }
}

/// Brings every entry's key up to date; drops those for which `key` finds none.
pub(super) fn refresh(entries: &mut Vec<Entry>, pages: &Pages, key: impl Fn(Entry) -> Option<f32>) {
    let mut kept = 0;
    for index in 0..entries.len() {
        if let Some(later) = entries.get(index + AHEAD) {
            pages.read_ahead(later.id);
        }
        let entry = entries[index];
        if let Some(key) = key(entry) {
            entries[kept] = Entry { key, id: entry.id };
            kept += 1;
        }
    }
    entries.truncate(kept);
}
