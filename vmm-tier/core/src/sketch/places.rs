//! Where each page lies, in two bits.

use std::ops::Range;

/// What the two bits say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Untracked = 0,
    /// In the fast tier, and may be taken.
    Fast = 1,
    /// In the slow tier, and may be taken.
    Slow = 2,
    /// In the side table.
    Aside = 3,
}

/// Pages in a word.
const IN_WORD: u32 = 32;
/// The low bit of each page.
const LOW: u64 = 0x5555_5555_5555_5555;

#[derive(Debug)]
pub(super) struct Places {
    words: Vec<u64>,
    pages: u32,
}

impl Places {
    pub(super) fn new(pages: u32) -> Self {
        Self {
            words: vec![0; pages.div_ceil(IN_WORD) as usize],
            pages,
        }
    }

    /// The bytes of so many pages.
    pub(super) fn bytes(pages: u32) -> usize {
        pages.div_ceil(IN_WORD) as usize * size_of::<u64>()
    }

    pub(super) fn len(&self) -> u32 {
        self.pages
    }

    /// Ids past the end are untracked.
    #[inline]
    pub(super) fn get(&self, id: u32) -> Place {
        let word = self.words.get((id / IN_WORD) as usize).copied();
        match word.unwrap_or(0) >> (id % IN_WORD * 2) & 3 {
            0 => Place::Untracked,
            1 => Place::Fast,
            2 => Place::Slow,
            _ => Place::Aside,
        }
    }

    /// Ids past the end are ignored.
    pub(super) fn set(&mut self, id: u32, place: Place) {
        if id < self.pages {
            let shift = id % IN_WORD * 2;
            let word = &mut self.words[(id / IN_WORD) as usize];
            *word = *word & !(3 << shift) | (place as u64) << shift;
        }
    }

    /// The first page in this place from `first` on, below `end`.
    pub(super) fn next(&self, place: Place, first: u32, end: u32) -> Option<u32> {
        self.find(first, end, |word| word.matching(place))
    }

    /// The first tracked page from `first` on, below `end`.
    pub(super) fn next_tracked(&self, first: u32, end: u32) -> Option<u32> {
        self.find(first, end, Word::tracked)
    }

    /// How many of these pages are in this place.
    pub(super) fn count(&self, place: Place, ids: Range<u32>) -> u32 {
        let end = ids.end.min(self.pages);
        let mut count = 0;
        let mut first = ids.start;
        while first < end {
            let next = (first / IN_WORD + 1).saturating_mul(IN_WORD).min(end);
            let word = self.word(first / IN_WORD).matching(place);
            let wanted = u64::MAX << (first % IN_WORD * 2);
            let beyond = (u64::MAX << 1) << ((next - 1) % IN_WORD * 2);
            count += (word & wanted & !beyond).count_ones();
            first = next;
        }
        count
    }

    /// The tracked pages among `ids` in rising order.
    pub(super) fn iter_in(&self, ids: Range<u32>) -> impl Iterator<Item = (u32, Place)> + '_ {
        let end = ids.end.min(self.pages);
        let mut next = ids.start;
        std::iter::from_fn(move || {
            let id = self.next_tracked(next, end)?;
            next = id + 1;
            Some((id, self.get(id)))
        })
    }

    /// All tracked pages in rising order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Place)> + '_ {
        self.iter_in(0..self.pages)
    }

    /// The first page from `first` on, below `end`, whose low bit is set in what `wanted` makes of its word.
    #[inline]
    fn find(&self, first: u32, end: u32, wanted: impl Fn(Word) -> u64) -> Option<u32> {
        let end = end.min(self.pages);
        let mut from = u64::MAX << (first % IN_WORD * 2);
        for index in first / IN_WORD..end.div_ceil(IN_WORD) {
            let found = wanted(self.word(index)) & from;
            if found != 0 {
                let id = index * IN_WORD + found.trailing_zeros() / 2;
                return (id < end).then_some(id);
            }
            from = u64::MAX;
        }
        None
    }

    #[inline]
    fn word(&self, index: u32) -> Word {
        Word(self.words.get(index as usize).copied().unwrap_or(0))
    }

    /// Bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }
}

/// The bits of some pages.
#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    /// The low bit of each page in this place.
    #[inline]
    const fn matching(self, place: Place) -> u64 {
        let (low, high) = (self.0, self.0 >> 1);
        let pages = match place {
            Place::Untracked => !low & !high,
            Place::Fast => low & !high,
            Place::Slow => high & !low,
            Place::Aside => low & high,
        };
        pages & LOW
    }

    /// The low bit of each page that is tracked.
    #[inline]
    const fn tracked(self) -> u64 {
        (self.0 | self.0 >> 1) & LOW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_when_searched_and_counted_are_those_that_a_look_at_each_finds() {
        let mut places = Places::new(150);
        let all = [Place::Untracked, Place::Fast, Place::Slow, Place::Aside];
        for id in (3..150).chain(149..200) {
            places.set(id, all[(id * 7 % 13 % 4) as usize]);
        }
        for (first, end) in [
            (0, 150),
            (0, 0),
            (31, 33),
            (64, 96),
            (97, 98),
            (140, 400),
            (200, 300),
        ] {
            let is_in = |id: &u32| (first..end).contains(id);
            for place in all {
                let mut there = (0..150).filter(|&id| places.get(id) == place).filter(is_in);
                assert_eq!(
                    places.count(place, first..end) as usize,
                    there.clone().count()
                );
                assert_eq!(places.next(place, first, end), there.next());
            }
            let tracked: Vec<_> = (0..150)
                .filter(is_in)
                .map(|id| (id, places.get(id)))
                .filter(|&(_, place)| place != Place::Untracked)
                .collect();
            assert_eq!(places.iter_in(first..end).collect::<Vec<_>>(), tracked);
        }
    }
}
