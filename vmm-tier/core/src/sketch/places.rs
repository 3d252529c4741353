//! Where each page lies, in two bits.

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

    /// The first fast page from `first` on.
    pub(super) fn next_fast(&self, first: u32) -> Option<u32> {
        let mut index = (first / IN_WORD) as usize;
        let mut wanted = u64::MAX << (first % IN_WORD * 2);
        while let Some(&word) = self.words.get(index) {
            let fast = word & !(word >> 1) & LOW & wanted;
            if fast != 0 {
                return Some(index as u32 * IN_WORD + fast.trailing_zeros() / 2);
            }
            index += 1;
            wanted = u64::MAX;
        }
        None
    }

    /// All tracked pages in rising order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Place)> + '_ {
        (0..self.pages)
            .map(|id| (id, self.get(id)))
            .filter(|&(_, place)| place != Place::Untracked)
    }

    /// Bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }
}
