//! Dual heaps: the pages of one guest, ordered so that the hottest of the slow tier and the coldest
//! of the fast tier are always at hand.
//!
//! ```text
//!                        sample: key += w · 2^((t−L)/H)
//!                           │
//!   slow tier               ▼                          fast tier
//!   ┌─ front: a heap, newcomers ────┐    exchange    ┌─ never sampled: bitmap, cursor ─┐  coldest
//!   │  the greatest is known        │ ◄───────────►  ├─ front: a heap, lazy ───────────┤     │
//!   ├─ other sampled pages ─────────┤                │  the least is found             │     │
//!   ├─ never sampled ───────────────┤                ├─ other sampled pages ───────────┤     ▼
//!   └───────────────────────────────┘                └─────────────────────────────────┘  hottest
//!                      aside: in flight · cooling down · excluded · pinned
//! ```
//!
//! Only the fronts are in order, some thousand pages of however many; all that a sample changes for
//! other pages is one word of 4 bytes, which holds the key. That word is all the memory they take.
//!
//! A page is in exactly one of these places. Heat is a count under [forward decay](crate::heat), so
//! ageing never touches a page. The structure believes its caller about placement
//! ([`DualHeap::place`], [`DualHeap::settle`]) and assumes nothing.

use std::time::Duration;

use serde::Serialize;

use crate::{heat::Decay, time::Time};

mod cooldowns;
mod fast;
mod front;
mod inspect;
mod pages;
mod pinned_ids;
mod sample;
mod side_table;
mod slow;
mod states;
mod word;

pub use inspect::{HeapStats, PageState};
pub use sample::Touched;
pub use states::StateCounts;

use fast::FastHeap;
use front::Entry;
use pages::Pages;
use pinned_ids::PinnedIds;
use side_table::SideTable;
use slow::SlowHeap;
use word::{MAX_PAGES, Slot};

/// The index of a 4 KiB frame of the guest's tracked space. A larger page is known by its first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct PageId(pub u32);

crate::words! {
    /// Where a page lies.
    pub enum Placement {
        /// Not present, or not a page of its own.
        Untracked = "untracked",
        /// On a node of the fast tier.
        Fast = "fast",
        /// On a node of the slow tier.
        Slow = "slow",
    }
}

/// More pages than can be indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} pages of 4 KiB are more than the {MAX_PAGES} (4 TiB) that one guest can have")]
pub struct TooManyPages(u32);

/// The pages of one guest and their heat. Ids past the end are never tracked.
#[derive(Debug)]
pub struct DualHeap {
    pages: Pages,
    slow: SlowHeap,
    fast: FastHeap,
    side_table: SideTable,
    decay: Decay,
    /// The boost of the time last sampled at: batches share one time and `exp2` is not free.
    boost: (Time, f64),
    /// Where the search for a never-sampled fast page goes on.
    cursor: u32,
    /// Ids that stand in no heap.
    pinned: PinnedIds,
    stats: HeapStats,
}

impl DualHeap {
    /// Room for `pages` pages, none of them tracked yet. The landmark is at the epoch and moves by
    /// itself.
    ///
    /// # Errors
    /// If there are more pages than can be indexed (4 TiB).
    pub fn new(pages: u32, half_life: Duration) -> Result<Self, TooManyPages> {
        if pages > MAX_PAGES {
            return Err(TooManyPages(pages));
        }
        Ok(Self::with_room(pages, half_life))
    }

    /// Heaps without room for any page.
    #[must_use]
    pub fn empty(half_life: Duration) -> Self {
        Self::with_room(0, half_life)
    }

    fn with_room(pages: u32, half_life: Duration) -> Self {
        let decay = Decay::new(half_life, Time(0));
        Self {
            pages: Pages::new(pages),
            slow: SlowHeap::new(pages),
            fast: FastHeap::new(pages),
            side_table: SideTable::default(),
            decay,
            boost: (Time(0), 1.0),
            cursor: 0,
            pinned: PinnedIds::default(),
            stats: HeapStats::default(),
        }
    }

    /// The number of pages there is room for.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.pages.len()
    }

    /// Changes the half-life; every page keeps its count at `now`.
    pub fn set_half_life(&mut self, half_life: Duration, now: Time) {
        self.advance(now);
        self.decay.set_half_life(half_life, now);
        self.boost = (now, self.decay.boost(now));
    }

    /// Multiplies the decayed count of every page by `factor`; see [`Decay::scale`].
    pub fn scale(&mut self, now: Time, factor: f64) {
        self.advance(now);
        self.decay.scale(factor);
        self.boost = (now, self.decay.boost(now));
    }

    // --- taking pages ------------------------------------------------------------------------

    /// The hottest page of the slow tier that may be taken, and its decayed count. Pages without a
    /// sample are not offered.
    #[must_use]
    pub fn hottest_slow(&self, now: Time) -> Option<(PageId, f64)> {
        let top = self.slow.top()?;
        Some((PageId(top.id), self.decay.value(top.key, now)))
    }

    /// The coldest page of the fast tier that may be taken, and its decayed count: 0 for a page
    /// without a sample. Those come first, in address order from where the last search ended.
    pub fn coldest_fast(&mut self, now: Time) -> Option<(PageId, f64)> {
        if let Some(id) = self.pages.next_cold(self.cursor) {
            self.cursor = id;
            return Some((PageId(id), 0.0));
        }
        let top = self.fast.top(&self.pages)?;
        Some((PageId(top.id), self.decay.value(top.key, now)))
    }

    /// Takes the page of [`DualHeap::hottest_slow`].
    pub fn take_hottest_slow(&mut self, now: Time) -> Option<(PageId, f64)> {
        let hottest = self.hottest_slow(now)?;
        self.take(hottest.0).map(|_| hottest)
    }

    /// Takes the page of [`DualHeap::coldest_fast`].
    pub fn take_coldest_fast(&mut self, now: Time) -> Option<(PageId, f64)> {
        let coldest = self.coldest_fast(now)?;
        let sampled = coldest.1 > 0.0;
        self.take(coldest.0)?;
        if sampled {
            // It was the heap's top; left there it would only be dropped at the next look.
            self.fast.drop_top();
        }
        Some(coldest)
    }

    // --- parts -------------------------------------------------------------------------------

    fn key(&self, slot: Slot) -> f32 {
        match slot {
            Slot::Untracked | Slot::FastNever | Slot::SlowNever => 0.0,
            Slot::Fast(key) | Slot::Slow(key) => key,
            Slot::Front(index) => self.slow.key(index),
            Slot::Aside(index) => self.side_table.get(index).map_or(0.0, |held| held.key),
        }
    }

    /// Gives a page that may be taken its first key in the tier.
    fn give_key(&mut self, id: u32, placement: Placement, key: f32) {
        let entry = Entry { key, id };
        if placement == Placement::Fast {
            self.pages.set(id, Slot::Fast(key));
            self.fast.offer(entry, &self.pages);
        } else {
            self.pages.set(id, Slot::Slow(key));
            self.slow.offer(entry, false);
            self.slow.make_room(&self.pages);
        }
    }

    /// Moves the landmark if that is due.
    fn advance(&mut self, now: Time) {
        let Some(halves) = self.decay.shift(now) else {
            return;
        };
        let change = |key| Decay::shifted(key, halves);
        self.pages.rescale(change);
        self.slow.rescale(&mut self.pages, change);
        self.fast.rescale(change);
        self.side_table.rescale(change);
        self.boost = (now, self.decay.boost(now));
    }
}
