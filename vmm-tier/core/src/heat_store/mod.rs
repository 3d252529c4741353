//! Where the engine keeps the heat of a guest's pages: exactly, or in a sketch of bounded memory.
//!
//! | store | memory | counts |
//! |---|---|---|
//! | [`DualHeap`] | 4.1 bytes a 4 KiB page, less for huge pages and what is untouched | exact |
//! | [`SketchHeat`] | what is granted, whatever the guest; two bits a page of it say where pages lie | of the pages that matter, a little too low at most |
//!
//! Both say the same of pages: who is hottest and coldest, who is under way, cooling down, excluded or
//! pinned. What a page's state does follows one set of rules (`states.rs`).
//!
//! [`HeatStore`] is an enum and no trait object or type parameter of the engine. Which store it is depends on
//! the guest's size, which may change while the engine runs (memory is plugged): a type parameter could not
//! follow. A sample costs one branch, which always goes the same way, before some tens of nanoseconds of
//! cache misses; inside a run or a batch there is none.

use std::{ops::Range, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    dual_heap::{
        DualHeap, PageId, PageState, Placement, StateCounts, TooManyPages, Touched,
        states::{States, Why},
    },
    heat::Decay,
    sketch::{SketchHeat, SketchHeatStats},
    time::Time,
};

/// Which store an operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreChoice {
    /// Exact counts as long as they fit the memory granted, else the sketch.
    #[default]
    Auto,
    /// Exact counts, whatever they take.
    Exact,
    /// The sketch, with the memory granted.
    Sketch,
}

/// What a store is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorePlan {
    /// Which.
    pub choice: StoreChoice,
    /// The most bytes that it may hold, but for those of pages that stand aside (40 each, as many as the rate
    /// of moves allows). Exact counts that were chosen take what they need.
    pub memory_bytes: u64,
    /// What a sketch leaves to chance follows from it; keep it from the guest.
    pub seed: u64,
}

/// Why there is no store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeatStoreError {
    /// Too little memory for any store.
    #[error(
        "heat.memory is {memory_bytes} bytes, but {pages} pages need {least_bytes} at least: raise it, or \
         set heat.store to \"exact\""
    )]
    TooSmall {
        /// The pages of the guest.
        pages: u32,
        /// What was granted.
        memory_bytes: u64,
        /// What a sketch needs.
        least_bytes: u64,
    },
    /// Exact counts can't number the pages.
    #[error(transparent)]
    TooMany(#[from] TooManyPages),
}

/// What a store is and what became of its counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    tag = "store"
)]
pub enum StoreSnapshot {
    /// Every page has its own count.
    Exact {
        /// Bytes held now.
        memory_bytes: u64,
    },
    /// The sketch.
    Sketch {
        /// Bytes held now.
        memory_bytes: u64,
        /// Pages that have a count.
        pages: u32,
        /// Pages that can have one.
        slots: u32,
        /// Samples that found no slot and were dropped: their page is as good as never sampled.
        refused: u64,
        /// Samples that found no slot and took from another page's count.
        weakened: u64,
        /// Pages whose count made room for another's.
        evicted: u64,
    },
}

/// The heat of one guest's pages. The methods are those of [`DualHeap`], where each is explained.
#[derive(Debug)]
pub enum HeatStore {
    /// Exact counts.
    Exact(DualHeap),
    /// Counts in a sketch.
    Sketch(SketchHeat),
}

/// The same call on either store.
macro_rules! either {
    ($self:expr, $store:ident => $call:expr) => {
        match $self {
            HeatStore::Exact($store) => $call,
            HeatStore::Sketch($store) => $call,
        }
    };
}

impl HeatStore {
    /// A store for `pages` pages, none of them tracked yet.
    ///
    /// # Errors
    /// If the memory granted is too little, or there are too many pages for exact counts.
    pub fn new(pages: u32, half_life: Duration, plan: StorePlan) -> Result<Self, HeatStoreError> {
        let fits = DualHeap::most_bytes(pages) <= plan.memory_bytes;
        match plan.choice {
            StoreChoice::Exact => Ok(Self::Exact(DualHeap::new(pages, half_life)?)),
            StoreChoice::Auto if fits => Ok(Self::Exact(DualHeap::new(pages, half_life)?)),
            StoreChoice::Auto | StoreChoice::Sketch => Self::sketch(pages, half_life, plan),
        }
    }

    /// A store without pages.
    #[must_use]
    pub fn empty(half_life: Duration) -> Self {
        Self::Exact(DualHeap::empty(half_life))
    }

    fn sketch(pages: u32, half_life: Duration, plan: StorePlan) -> Result<Self, HeatStoreError> {
        let memory_bytes = plan.memory_bytes;
        let bytes = usize::try_from(memory_bytes).unwrap_or(usize::MAX);
        let heat = bytes.saturating_sub(SketchHeat::place_bytes(pages));
        let store = SketchHeat::new(pages, heat, half_life, plan.seed);
        store.map(Self::Sketch).map_err(|_| {
            let least = SketchHeat::place_bytes(pages) + SketchHeat::least_bytes(pages);
            HeatStoreError::TooSmall {
                pages,
                memory_bytes,
                least_bytes: least as u64,
            }
        })
    }

    /// Whether counts are estimates, and pages may be forgotten.
    #[must_use]
    pub const fn is_estimated(&self) -> bool {
        matches!(self, Self::Sketch(_))
    }

    /// The clock of heat.
    #[must_use]
    pub fn decay(&self) -> &Decay {
        either!(self, store => store.decay())
    }

    /// See [`DualHeap::set_half_life`].
    pub fn set_half_life(&mut self, half_life: Duration, now: Time) {
        either!(self, store => store.set_half_life(half_life, now));
    }

    /// See [`DualHeap::scale`].
    pub fn scale(&mut self, now: Time, factor: f64) {
        either!(self, store => store.scale(now, factor));
    }

    // --- samples -----------------------------------------------------------------------------

    /// See [`DualHeap::sample_batch`].
    pub fn sample_batch(&mut self, now: Time, ids: &[PageId], weight: f32) -> Touched {
        either!(self, store => store.sample_batch(now, ids, weight))
    }

    /// See [`DualHeap::sample_run`].
    #[inline]
    pub fn sample_run(&mut self, now: Time, ids: Range<u32>, weight: f32) -> Touched {
        either!(self, store => store.sample_run(now, ids, weight))
    }

    /// See [`DualHeap::set_count`].
    pub fn set_count(&mut self, id: PageId, count: f64, now: Time) -> bool {
        either!(self, store => store.set_count(id, count, now))
    }

    // --- placement ---------------------------------------------------------------------------

    /// See [`DualHeap::place`].
    pub fn place(&mut self, id: PageId, placement: Placement) -> Placement {
        either!(self, store => store.place(id, placement))
    }

    /// See [`DualHeap::settle`].
    pub fn settle(&mut self, id: PageId, placement: Placement, available_at: Option<Time>) -> bool {
        either!(self, store => store.settle(id, placement, available_at))
    }

    /// See [`DualHeap::exclude`].
    pub fn exclude(&mut self, id: PageId) -> bool {
        either!(self, store => store.exclude(id))
    }

    /// See [`DualHeap::set_pinned`].
    pub fn set_pinned(&mut self, ranges: Vec<Range<u32>>) {
        either!(self, store => store.set_pinned(ranges));
    }

    // --- taking pages ------------------------------------------------------------------------

    /// See [`DualHeap::hottest_slow`].
    pub fn hottest_slow(&mut self, now: Time) -> Option<(PageId, f64)> {
        either!(self, store => store.hottest_slow(now))
    }

    /// See [`DualHeap::coldest_fast`].
    pub fn coldest_fast(&mut self, now: Time) -> Option<(PageId, f64)> {
        either!(self, store => store.coldest_fast(now))
    }

    /// See [`DualHeap::take_hottest_slow`].
    pub fn take_hottest_slow(&mut self, now: Time) -> Option<(PageId, f64)> {
        either!(self, store => store.take_hottest_slow(now))
    }

    /// See [`DualHeap::take_coldest_fast`].
    pub fn take_coldest_fast(&mut self, now: Time) -> Option<(PageId, f64)> {
        either!(self, store => store.take_coldest_fast(now))
    }

    /// See [`DualHeap::take_pinned`].
    pub fn take_pinned(&mut self, id: PageId) -> Option<Placement> {
        either!(self, store => store.take_pinned(id))
    }

    /// See [`DualHeap::first_pinned`].
    #[must_use]
    pub fn first_pinned(&self, ids: Range<u32>, placement: Placement) -> Option<PageId> {
        either!(self, store => store.first_pinned(ids, placement))
    }

    /// See [`DualHeap::tick`].
    pub fn tick(&mut self, now: Time) -> u32 {
        either!(self, store => store.tick(now))
    }

    // --- looks -------------------------------------------------------------------------------

    /// The page that [`HeatStore::take_hottest_slow`] would take, or another as hot. Exact counts know it; of
    /// a sketch every count is looked at.
    #[must_use]
    pub fn look_at_hottest_slow(&self, now: Time) -> Option<(PageId, f64)> {
        match self {
            Self::Exact(heap) => heap.hottest_slow(now),
            Self::Sketch(heat) => heat.look_at_hottest_slow(now),
        }
    }

    /// See [`DualHeap::look_at_coldest_fast`].
    #[must_use]
    pub fn look_at_coldest_fast(&self, now: Time) -> Option<(PageId, f64)> {
        either!(self, store => store.look_at_coldest_fast(now))
    }

    /// See [`DualHeap::count`]; a lower bound but for rounding where counts are estimates.
    #[must_use]
    pub fn count(&self, id: PageId, now: Time) -> f64 {
        either!(self, store => store.count(id, now))
    }

    /// See [`DualHeap::state`].
    #[must_use]
    pub fn state(&self, id: PageId) -> PageState {
        either!(self, store => store.state(id))
    }

    /// Where a page lies. Unlike [`HeatStore::state`] this asks for no count, a cache miss or two of a sketch.
    #[must_use]
    pub fn placement(&self, id: PageId) -> Placement {
        either!(self, store => States::placement(store, id.0))
    }

    /// Whether a page was taken and is not settled yet.
    #[must_use]
    pub fn is_in_flight(&self, id: PageId) -> bool {
        either!(self, store => States::why(store, id.0) == Some(Why::Flight))
    }

    /// See [`DualHeap::standing`] and, where counts are estimates, [`SketchHeat::standing`].
    #[must_use]
    pub fn standing(&self, id: PageId) -> Option<(u32, u32)> {
        either!(self, store => store.standing(id))
    }

    /// See [`DualHeap::len`].
    #[must_use]
    pub fn len(&self, placement: Placement) -> u32 {
        either!(self, store => store.len(placement))
    }

    /// Whether no page is tracked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        either!(self, store => store.is_empty())
    }

    /// See [`DualHeap::iter_in`].
    pub fn iter_in(
        &self,
        ids: Range<u32>,
        now: Time,
    ) -> impl Iterator<Item = (PageId, Placement, f64)> + '_ {
        match self {
            Self::Exact(heap) => Either::Exact(heap.iter_in(ids, now)),
            Self::Sketch(heat) => Either::Sketch(heat.iter_in(ids, now)),
        }
    }

    /// See [`DualHeap::iter`].
    pub fn iter(&self, now: Time) -> impl Iterator<Item = (PageId, Placement, f64)> + '_ {
        either!(self, store => self.iter_in(0..store.capacity(), now))
    }

    /// Pages by their state. Cheap.
    #[must_use]
    pub fn counts(&self) -> StateCounts {
        either!(self, store => store.stats().pages)
    }

    /// What it is, its memory, and what became of its counts. Cheap.
    #[must_use]
    pub fn snapshot(&self) -> StoreSnapshot {
        let memory_bytes = self.memory_bytes() as u64;
        match self {
            Self::Exact(_) => StoreSnapshot::Exact { memory_bytes },
            Self::Sketch(heat) => {
                let SketchHeatStats { sketch, .. } = heat.stats();
                StoreSnapshot::Sketch {
                    memory_bytes,
                    pages: sketch.pages,
                    slots: sketch.slots,
                    refused: sketch.refused,
                    weakened: sketch.weakened,
                    evicted: sketch.evicted,
                }
            }
        }
    }

    /// Bytes of memory held, apart from the allocator's own.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        either!(self, store => store.memory_bytes())
    }

    /// Says which invariant is broken, if one is. Looks at every page.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn check(&self) -> Result<(), String> {
        either!(self, store => store.check())
    }
}

/// One of two iterators.
enum Either<E, S> {
    Exact(E),
    Sketch(S),
}

impl<T, E: Iterator<Item = T>, S: Iterator<Item = T>> Iterator for Either<E, S> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        match self {
            Self::Exact(pages) => pages.next(),
            Self::Sketch(pages) => pages.next(),
        }
    }
}
