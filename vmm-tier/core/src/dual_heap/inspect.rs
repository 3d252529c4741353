//! What can be seen of the heaps: counts, states, standings, and whether all invariants hold.

use std::ops::Range;

use super::{
    DualHeap, PageId, Placement,
    side_table::Why,
    states::StateCounts,
    word::{Slot, key_of},
};
use crate::time::Time;

/// What is known of a page, for explanations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PageState {
    /// Where it lies.
    pub placement: Placement,
    /// Whether a sample ever reached it (and was not yet forgotten).
    pub sampled: bool,
    /// A move of it is under way.
    pub in_flight: bool,
    /// It may not be taken until this time.
    pub cooldown_until: Option<Time>,
    /// It may not be taken until it is placed again.
    pub excluded: bool,
    /// It is pinned: never offered, whatever its heat.
    pub pinned: bool,
}

/// Counts of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapStats {
    /// All pages, by their state.
    pub pages: StateCounts,
    /// Pages of the fast tier without a sample that may be taken.
    pub fast_never_sampled: u32,
    /// Pages of the slow tier with a sample that may be taken.
    pub slow_sampled: u32,
}

impl DualHeap {
    /// The decayed count of a page at `now`; 0 if it is not tracked.
    #[must_use]
    pub fn count(&self, id: PageId, now: Time) -> f64 {
        self.decay.value(self.key(self.pages.get(id.0)), now)
    }

    /// The number of tracked pages in the chunk of 512 ids that this id lies in.
    #[must_use]
    pub fn tracked_in_chunk(&self, id: u32) -> u32 {
        self.pages.tracked_in_chunk(id)
    }

    /// Calls `each` for the tracked pages of the chunk of 512 ids that begins with `first`, with their
    /// decayed counts at `now`.
    #[inline]
    pub fn for_counts(&self, first: u32, now: Time, mut each: impl FnMut(PageId, f32)) {
        let fade = self.decay.value(1.0, now) as f32;
        for (id, &word) in (first..).zip(self.pages.words_of_chunk(first)) {
            // Most pages have a key in their words.
            let key = match key_of(word) {
                Some(key) => key,
                None => match Slot::of(word) {
                    Slot::Untracked => continue,
                    slot => self.key(slot),
                },
            };
            each(PageId(id), key * fade);
        }
    }

    /// Asks for what is known of a page that is looked at soon, so that its cache miss overlaps others.
    pub fn prefetch(&self, id: PageId) {
        self.pages.read_ahead(id.0);
    }

    /// What is known of a page.
    #[must_use]
    pub fn state(&self, id: PageId) -> PageState {
        let why = self.why(id.0);
        PageState {
            placement: self.placement(id),
            sampled: self.key(self.pages.get(id.0)) > 0.0,
            in_flight: why == Some(Why::Flight),
            cooldown_until: match why {
                Some(Why::Cooling(end)) => Some(end),
                _ => None,
            },
            excluded: why == Some(Why::Excluded),
            pinned: self.pinned.contains(id.0),
        }
    }

    /// Where a page lies; ids past the end are untracked.
    #[must_use]
    pub fn placement(&self, id: PageId) -> Placement {
        match self.pages.get(id.0) {
            Slot::Untracked => Placement::Untracked,
            Slot::Fast(_) | Slot::FastNever => Placement::Fast,
            Slot::Slow(_) | Slot::Front(_) | Slot::SlowNever => Placement::Slow,
            Slot::Aside(index) => self
                .side_table
                .get(index)
                .map_or(Placement::Untracked, |held| held.placement),
        }
    }

    /// Whether a page was taken and is not settled yet.
    #[must_use]
    pub fn is_in_flight(&self, id: PageId) -> bool {
        self.why(id.0) == Some(Why::Flight)
    }

    /// How many pages of the same tier would be taken before this one, and how many may be taken at all.
    /// On the slow tier the hotter ones go first, on the fast tier the colder ones. `None` if it may not
    /// be taken itself, or never was sampled on the slow tier. Looks at every page.
    #[must_use]
    pub fn standing(&self, id: PageId) -> Option<(u32, u32)> {
        let own = self.pages.get(id.0);
        let key = self.key(own);
        let mut before = 0;
        let mut all = 0;
        for (_, slot) in self.pages.iter() {
            let goes_first = match (own, slot) {
                (Slot::Slow(_) | Slot::Front(_), Slot::Slow(_) | Slot::Front(_)) => {
                    self.key(slot) > key
                }
                (Slot::Fast(_) | Slot::FastNever, Slot::Fast(other)) => other < key,
                (Slot::Fast(_), Slot::FastNever) => true,
                (Slot::FastNever, Slot::FastNever) => false,
                _ => continue,
            };
            all += 1;
            before += u32::from(goes_first);
        }
        matches!(
            own,
            Slot::Slow(_) | Slot::Front(_) | Slot::Fast(_) | Slot::FastNever
        )
        .then_some((before, all))
    }

    /// What [`DualHeap::coldest_fast`] would say, without bringing the heap up to date. Looks at every
    /// page.
    #[must_use]
    pub fn look_at_coldest_fast(&self, now: Time) -> Option<(PageId, f64)> {
        if let Some(id) = self.pages.next_cold(self.cursor) {
            return Some((PageId(id), 0.0));
        }
        let keyed = self.pages.iter().filter_map(|(id, slot)| match slot {
            Slot::Fast(key) => Some((id, key)),
            _ => None,
        });
        let (id, key) = keyed.min_by(|a, b| a.1.total_cmp(&b.1))?;
        Some((PageId(id), self.decay.value(key, now)))
    }

    /// The number of pages that lie there, whatever their state.
    #[must_use]
    pub fn len(&self, placement: Placement) -> u32 {
        self.stats.pages.len(placement, self.pages.len())
    }

    /// Whether no page is tracked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.tracked() == 0
    }

    /// All tracked pages in rising order, with their placement and decayed count at `now`.
    pub fn iter(&self, now: Time) -> impl Iterator<Item = (PageId, Placement, f64)> + '_ {
        self.iter_in(0..self.pages.len(), now)
    }

    /// The tracked pages among `ids` in rising order, with their placement and decayed count at `now`.
    pub fn iter_in(
        &self,
        ids: Range<u32>,
        now: Time,
    ) -> impl Iterator<Item = (PageId, Placement, f64)> + '_ {
        let unboost = (-self.decay.age(now)).exp2();
        self.pages.iter_in(ids).map(move |(id, slot)| {
            let count = f64::from(self.key(slot)) * unboost;
            (PageId(id), self.placement(PageId(id)), count)
        })
    }

    /// Counts of pages. Cheap.
    #[must_use]
    pub fn stats(&self) -> HeapStats {
        HeapStats {
            fast_never_sampled: self.pages.cold(),
            slow_sampled: self.pages.slow_sampled(),
            ..self.stats
        }
    }

    /// Bytes of memory held, apart from the allocator's own.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.pages.memory_bytes()
            + self.slow.memory_bytes()
            + self.fast.memory_bytes()
            + self.side_table.memory_bytes()
    }

    /// Whether every invariant holds. Looks at every page.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.check().is_ok()
    }

    /// Says which invariant is broken, if one is. Looks at every page.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn check(&self) -> Result<(), String> {
        self.pages.check()?;
        self.slow.check(&self.pages)?;
        self.fast.check(&self.pages)?;
        self.side_table.check(&self.pages)?;
        // A page's word says where it is. Every entry of the side table was found at its page; if there
        // are as many pages as entries, each page is in exactly one place.
        let mut aside = 0;
        for (id, slot) in self.pages.iter() {
            self.check_pinned(id, slot)?;
            aside += usize::from(matches!(slot, Slot::Aside(_)));
        }
        if aside != self.side_table.iter().count() {
            return Err("there are entries without a page, or pages without an entry".to_owned());
        }
        let mut found = StateCounts::default();
        for (id, _) in self.pages.iter() {
            found.add(self.placement(PageId(id)), self.why(id));
        }
        if found != self.stats.pages {
            return Err(format!(
                "pages are miscounted: {:?}, found {found:?}",
                self.stats.pages
            ));
        }
        Ok(())
    }
}
