//! A bounded set of the best pages of a tier, whatever best is there.
//!
//! Pages have *ranks*; the greatest is the best. The set is a hint, and what is believed is the
//! sketch: an entry may be out of date, its rank too high, or its page gone. Its owner looks at the top
//! and mends it until it is right. Two rules make the top that is right the best of all pages:
//!
//! - every page whose rank is above the *bar* has an entry of at least its rank;
//! - an answer below the bar is none: the owner then refills the set from the sketch.
//!
//! A full set keeps its better half, and the bar rises to what was dropped.

use std::collections::BinaryHeap;

/// Where ranks come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Best {
    /// The greatest key; a page without one has no rank.
    Hottest,
    /// The least key; a page without one is the best.
    Coldest,
}

impl Best {
    /// The rank of a key, which is never negative: its bits are in its order. 0 is no rank.
    #[inline]
    pub(super) fn rank(self, key: f32) -> u32 {
        match self {
            Self::Hottest => key.to_bits(),
            Self::Coldest => !key.to_bits(),
        }
    }

    #[inline]
    pub(super) fn key(self, rank: u32) -> f32 {
        match self {
            Self::Hottest => f32::from_bits(rank),
            Self::Coldest => f32::from_bits(!rank),
        }
    }
}

/// A page and its rank, ordered by rank and then by falling id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry(u64);

impl Entry {
    pub(super) fn new(rank: u32, id: u32) -> Self {
        Self(u64::from(rank) << 32 | u64::from(!id))
    }

    pub(super) fn rank(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(super) fn id(self) -> u32 {
        !(self.0 as u32)
    }
}

#[derive(Debug)]
pub(super) struct Candidates {
    entries: BinaryHeap<Entry>,
    capacity: usize,
    /// No page that is missing has a rank above it. 0: none is missing.
    bar: u32,
}

impl Candidates {
    /// Room for as many entries as fit into so many bytes, but sixteen at least.
    pub(super) fn new(bytes: usize) -> Self {
        let capacity = (bytes / size_of::<Entry>()).max(16);
        Self {
            entries: BinaryHeap::with_capacity(capacity),
            capacity,
            bar: 0,
        }
    }

    /// The most entries there may be.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn bar(&self) -> u32 {
        self.bar
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= self.capacity
    }

    /// Whether a page of this rank must have an entry, or may have one as there is room.
    #[inline]
    pub(super) fn wants(&self, rank: u32) -> bool {
        rank > self.bar || (rank == self.bar && rank > 0 && !self.is_full())
    }

    /// Adds an entry, if there is room.
    pub(super) fn push(&mut self, entry: Entry) {
        if !self.is_full() {
            self.entries.push(entry);
        }
    }

    pub(super) fn top(&self) -> Option<Entry> {
        self.entries.peek().copied()
    }

    pub(super) fn drop_top(&mut self) {
        self.entries.pop();
    }

    /// Puts the top's page where its present rank wants it; drops it if it has none.
    pub(super) fn mend_top(&mut self, rank: u32) {
        if rank == 0 {
            self.entries.pop();
        } else if let Some(mut top) = self.entries.peek_mut() {
            *top = Entry::new(rank, top.id());
        }
    }

    /// Brings every entry up to date with `rank_of` (0 if the page has no rank any more), and makes
    /// room: at least half of the set is free after it.
    pub(super) fn compact(&mut self, rank_of: impl Fn(u32) -> u32) {
        let mut entries = std::mem::take(&mut self.entries).into_vec();
        let bar = self.bar;
        entries.retain_mut(|entry| {
            let rank = rank_of(entry.id());
            *entry = Entry::new(rank, entry.id());
            rank > 0 && rank >= bar
        });
        entries.sort_unstable_by(|a, b| b.cmp(a));
        entries.dedup();
        self.keep_half(&mut entries);
        self.entries = BinaryHeap::from(entries);
    }

    /// Replaces all entries by the best of `pages`, each of which comes once.
    pub(super) fn refill(&mut self, pages: impl Iterator<Item = Entry>) {
        self.refill_by(|offer| {
            for page in pages {
                offer(page);
            }
        });
    }

    /// The same of the pages that `walk` offers, each once; it is told the bar, below which none is taken.
    pub(super) fn refill_by(&mut self, walk: impl FnOnce(&mut dyn FnMut(Entry) -> u32)) {
        let mut entries = std::mem::take(&mut self.entries).into_vec();
        entries.clear();
        let (capacity, half) = (self.capacity, self.capacity / 2);
        let mut bar = 0;
        walk(&mut |entry| {
            if entry.rank() > bar {
                entries.push(entry);
                if entries.len() >= capacity {
                    entries.select_nth_unstable_by(half, |a, b| b.cmp(a));
                    bar = entries[half].rank();
                    entries.truncate(half);
                }
            }
            bar
        });
        self.bar = bar;
        self.entries = BinaryHeap::from(entries);
    }

    /// Says that any page may be missing.
    pub(super) fn doubt(&mut self) {
        self.entries.clear();
        self.bar = u32::MAX;
    }

    /// Says that pages of this rank may be missing.
    pub(super) fn raise_bar(&mut self, rank: u32) {
        self.bar = self.bar.max(rank);
    }

    /// Puts every key through `change`, for ranks of that kind.
    pub(super) fn rescale(&mut self, best: Best, change: impl Fn(f32) -> f32) {
        let changed = |rank: u32| best.rank(change(best.key(rank)));
        let mut entries = std::mem::take(&mut self.entries).into_vec();
        for entry in &mut entries {
            *entry = Entry::new(changed(entry.rank()), entry.id());
        }
        entries.retain(|entry| entry.rank() > 0);
        self.entries = BinaryHeap::from(entries);
        // All ranks, if it is what `doubt` made it.
        if self.bar > 0 && self.bar < u32::MAX {
            self.bar = changed(self.bar);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        self.entries.iter().copied()
    }

    /// Bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }

    /// Whether the set is within its room.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.entries.len() > self.capacity {
            return Err(format!(
                "{} candidates are more than the {} that there is room for",
                self.entries.len(),
                self.capacity
            ));
        }
        Ok(())
    }

    /// `entries` are sorted, the best first.
    fn keep_half(&mut self, entries: &mut Vec<Entry>) {
        let half = self.capacity / 2;
        if let Some(dropped) = entries.get(half) {
            self.raise_bar(dropped.rank());
            entries.truncate(half);
        }
    }
}
