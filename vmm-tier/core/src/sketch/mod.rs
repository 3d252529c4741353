//! A heat store of bounded memory: the pages of one guest, their heat in a [sketch](DecayingSketch).
//!
//! For guests too large for exact counts. [`DualHeap`](crate::dual_heap::DualHeap) takes 4 to 12 bytes a
//! tracked page; this takes two *bits* a page and as many bytes as the operator grants, and offers the
//! same: the hottest page of the slow tier and the coldest of the fast tier.
//!
//! ```text
//!   sample ─► sketch: page ─► count             one for both tiers, fixed size
//!                │ re-read before it is believed
//!   slow tier    ▼                                    fast tier
//!   ┌─ hottest: bounded set, greatest on top ─┐ ◄──► ┌─ coldest: bounded set, least on top ─┐
//!   └─ refilled by a walk over the sketch ────┘      └─ refilled by a cursor over the pages ┘
//!   places: two bits a page: untracked · fast · slow · aside (in flight, cooling down, excluded)
//! ```
//!
//! - *A move changes no count.* The sketch knows pages, not tiers, so a page's count stays where it is
//!   when the page moves; only its two bits change.
//! - *Sets and sketch can't contradict each other.* An entry of a set is a hint, its count is read again
//!   from the sketch before the page is offered. What weakening takes from a page of the fast tier is
//!   told to its set. See `candidates.rs` for the rules that make the answer the best of *all* pages
//!   that the sketch knows.
//! - *A page without a count is the coldest*, whether it never was sampled or was forgotten because
//!   others are hotter.
//! - *Pages that stand aside* take an entry in a side table each: those in flight and in cooldown are as
//!   many as the rate of moves allows. Pinned pages are told by their ranges and take nothing.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use crate::{
    dual_heap::{PageId, Placement},
    dual_heap::{
        cooldowns::Cooldowns,
        pinned_ids::PinnedIds,
        states::{Detached, States, Why},
    },
    heat::Decay,
    time::Time,
};

mod candidates;
mod decaying;
mod line;
mod look;
mod offer;
mod pins;
mod places;
mod sample;
mod scatter;

pub use decaying::{Added, DecayingSketch, SketchStats, SketchTooSmall};
pub use look::SketchHeatStats;

use candidates::{Best, Candidates};
use places::{Place, Places};

/// Of the bytes granted, each of the two sets of candidates has one in so many. A refill of the one looks
/// at all slots and yields some 200th of them: a few hundred nanoseconds for each page that is moved. A
/// larger set is refilled less often, but more samples find themselves among the best and must be noted.
const CANDIDATE_SHARE: usize = 64;
/// But this many at least.
const LEAST_CANDIDATE_BYTES: usize = 128;
/// And this many at most: 65 536 entries, which a core's second cache holds when they are put in order.
const MOST_CANDIDATE_BYTES: usize = 512 << 10;

/// The pages of one guest and their heat, in bounded memory. Ids past the end are never tracked.
#[derive(Debug)]
pub struct SketchHeat {
    sketch: DecayingSketch,
    places: Places,
    /// Of the slow tier.
    hottest: Candidates,
    /// Of the fast tier.
    coldest: Candidates,
    /// Where the search for cold fast pages goes on.
    cursor: u32,
    aside: BTreeMap<u32, (Placement, Why)>,
    cooldowns: Cooldowns,
    /// Ids that are not offered. Their places say where they lie, as if they were.
    pinned: PinnedIds,
    stats: SketchHeatStats,
}

impl SketchHeat {
    /// Room for `pages` pages, none of them tracked yet: two bits for each, and `bytes` bytes for heat.
    /// `seed` decides what is left to chance; keep it from the guest. The landmark is at the epoch and
    /// moves by itself.
    ///
    /// # Errors
    /// If there are fewer bytes than [`Self::least_bytes`].
    pub fn new(
        pages: u32,
        bytes: usize,
        half_life: Duration,
        seed: u64,
    ) -> Result<Self, SketchTooSmall> {
        let least_bytes = Self::least_bytes(pages);
        if bytes < least_bytes {
            return Err(SketchTooSmall {
                pages,
                bytes,
                least_bytes,
            });
        }
        let share = bytes / CANDIDATE_SHARE;
        let of_candidates = share.clamp(LEAST_CANDIDATE_BYTES, MOST_CANDIDATE_BYTES);
        let of_sketch = bytes - 2 * of_candidates;
        Ok(Self {
            sketch: DecayingSketch::new(pages, of_sketch, half_life, seed)?,
            places: Places::new(pages),
            hottest: Candidates::new(of_candidates),
            coldest: Candidates::new(of_candidates),
            cursor: 0,
            aside: BTreeMap::new(),
            cooldowns: Cooldowns::default(),
            pinned: PinnedIds::default(),
            stats: SketchHeatStats::default(),
        })
    }

    /// The bytes of heat that so many pages need at least: 384, and about 1 for each 500 pages.
    #[must_use]
    pub fn least_bytes(pages: u32) -> usize {
        let of_sketch = DecayingSketch::least_bytes(pages);
        // What is left when two shares go.
        let large = (of_sketch * CANDIDATE_SHARE).div_ceil(CANDIDATE_SHARE - 2);
        large.max(of_sketch + 2 * LEAST_CANDIDATE_BYTES)
    }

    /// The bytes that say where so many pages lie, beside those of heat.
    #[must_use]
    pub fn place_bytes(pages: u32) -> usize {
        Places::bytes(pages)
    }

    /// The number of pages there is room for.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.places.len()
    }

    /// The clock of heat; gives rates for counts.
    #[must_use]
    pub fn decay(&self) -> &Decay {
        self.sketch.decay()
    }

    /// Changes the half-life; every page keeps its count at `now`.
    pub fn set_half_life(&mut self, half_life: Duration, now: Time) {
        self.advance(now);
        self.sketch.set_half_life(half_life, now);
    }

    /// Multiplies the decayed count of every page by `factor`; see [`Decay::scale`].
    pub fn scale(&mut self, now: Time, factor: f64) {
        self.advance(now);
        self.sketch.scale(now, factor);
    }

    // --- placement ---------------------------------------------------------------------------

    /// Takes the kernel's word for where a page lies.
    ///
    /// A page keeps its heat when it changes its tier. `Untracked` forgets it, in whatever state.
    /// A page in flight or in cooldown stays so. An excluded page is admitted again if its
    /// placement differs from the one it had. Returns the placement it had.
    pub fn place(&mut self, id: PageId, placement: Placement) -> Placement {
        States::place(self, id.0, placement)
    }

    /// Places each page of the run; see [`SketchHeat::place`].
    pub fn place_run(&mut self, ids: Range<u32>, placement: Placement) {
        for id in ids.start..ids.end.min(self.places.len()) {
            self.place(PageId(id), placement);
        }
    }

    /// Ends a flight with the kernel's word for where the page lies. With `available_at` the page
    /// may not be taken before that time. Heat is kept; `Untracked` forgets the page.
    ///
    /// Returns whether the page was in flight. If it was not, the kernel is believed all the same.
    pub fn settle(&mut self, id: PageId, placement: Placement, available_at: Option<Time>) -> bool {
        States::settle(self, id.0, placement, available_at)
    }

    /// Keeps a page from being taken until its placement changes or [`SketchHeat::readmit`]; ends its
    /// flight or cooldown. Returns whether the page is tracked.
    pub fn exclude(&mut self, id: PageId) -> bool {
        States::exclude(self, id.0)
    }

    /// Admits an excluded page again. Returns whether it was excluded.
    pub fn readmit(&mut self, id: PageId) -> bool {
        States::readmit(self, id.0)
    }

    // --- taking pages ------------------------------------------------------------------------

    /// The hottest page of the slow tier that may be taken, and its decayed count. Pages without a
    /// count are not offered.
    pub fn hottest_slow(&mut self, now: Time) -> Option<(PageId, f64)> {
        self.best(Placement::Slow, now)
    }

    /// The coldest page of the fast tier that may be taken, and its decayed count: 0 for a page
    /// without one. Those come first, about in address order from where the last search ended.
    pub fn coldest_fast(&mut self, now: Time) -> Option<(PageId, f64)> {
        self.best(Placement::Fast, now)
    }

    /// Takes a page into flight: it is no longer offered but goes on gathering heat, until
    /// [`SketchHeat::settle`]. Returns where it lies, or `None` if it may not be taken.
    pub fn take(&mut self, id: PageId) -> Option<Placement> {
        States::take(self, id.0)
    }

    /// Takes the page of [`SketchHeat::hottest_slow`].
    pub fn take_hottest_slow(&mut self, now: Time) -> Option<(PageId, f64)> {
        let best = self.hottest_slow(now)?;
        self.hottest.drop_top();
        self.take(best.0).map(|_| best)
    }

    /// Takes the page of [`SketchHeat::coldest_fast`].
    pub fn take_coldest_fast(&mut self, now: Time) -> Option<(PageId, f64)> {
        let best = self.coldest_fast(now)?;
        self.coldest.drop_top();
        self.take(best.0).map(|_| best)
    }

    /// Ends the cooldowns that are over at `now` and moves the landmark if that is due. Returns the
    /// number of pages that may be taken again.
    pub fn tick(&mut self, now: Time) -> u32 {
        self.advance(now);
        self.release(now)
    }

    /// When [`SketchHeat::tick`] is next of use for a cooldown.
    #[must_use]
    pub fn next_cooldown_end(&self) -> Option<Time> {
        self.cooldowns.next_end()
    }

    // --- parts -------------------------------------------------------------------------------

    /// Moves the landmark if that is due.
    fn advance(&mut self, now: Time) {
        let Some(halves) = self.sketch.advance(now) else {
            return;
        };
        let change = |key| Decay::shifted(key, halves);
        self.hottest.rescale(Best::Hottest, change);
        self.coldest.rescale(Best::Coldest, change);
    }
}

impl States for SketchHeat {
    /// Nothing: a page's count stays in the sketch.
    type Heat = ();

    fn room(&self) -> u32 {
        self.places.len()
    }

    fn placement(&self, id: u32) -> Placement {
        match self.places.get(id) {
            Place::Untracked => Placement::Untracked,
            Place::Fast => Placement::Fast,
            Place::Slow => Placement::Slow,
            Place::Aside => self
                .aside
                .get(&id)
                .map_or(Placement::Untracked, |(placement, _)| *placement),
        }
    }

    fn why(&self, id: u32) -> Option<Why> {
        match self.places.get(id) {
            Place::Untracked => None,
            Place::Fast | Place::Slow => self.pinned.contains(id).then_some(Why::Pinned),
            Place::Aside => self.aside.get(&id).map(|&(_, why)| why),
        }
    }

    /// An entry in a set stays behind; it is dropped when it comes to the top.
    fn detach(&mut self, id: u32) -> Option<Detached<()>> {
        let (placement, why) = (self.placement(id), self.why(id));
        if placement == Placement::Untracked {
            return None;
        }
        self.places.set(id, Place::Untracked);
        self.stats.pages.remove(placement, why);
        if self.aside.remove(&id).is_some() && self.aside.is_empty() {
            // Ends that are out of date, and the memory of all that there were.
            self.cooldowns.clear();
        }
        Some(Detached { heat: (), why })
    }

    fn attach(&mut self, id: u32, placement: Placement, (): ()) {
        let fast = placement == Placement::Fast;
        self.places
            .set(id, if fast { Place::Fast } else { Place::Slow });
        let why = self.why(id);
        self.stats.pages.add(placement, why);
        if why.is_some() {
            return;
        }
        let key = match self.sketch.stats().pages {
            // The start: the whole guest is placed before the first sample.
            0 => 0.0,
            _ => self.sketch.key(id),
        };
        if fast || key > 0.0 {
            self.propose(id, placement, key);
        }
    }

    fn set_aside(&mut self, id: u32, placement: Placement, (): (), why: Why) {
        self.stats.pages.add(placement, Some(why));
        if let Why::Cooling(end) = why {
            self.cooldowns.add(end, id);
        }
        self.aside.insert(id, (placement, why));
        self.places.set(id, Place::Aside);
    }

    fn forget(&mut self, id: u32) {
        self.sketch.remove(id);
    }

    fn next_ended(&mut self, now: Time) -> Option<u32> {
        let aside = &self.aside;
        self.cooldowns
            .next_ended(now, |id| aside.get(&id).map(|&(_, why)| why))
    }
}
