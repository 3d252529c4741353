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
//!   many as the rate of moves allows.

use std::{
    cmp::Reverse, collections::BTreeMap, collections::BinaryHeap, ops::Range, time::Duration,
};

use crate::{
    dual_heap::{PageId, Placement},
    heat::Decay,
    time::Time,
};

mod candidates;
mod decaying;
mod line;
mod look;
mod offer;
mod places;
mod scatter;

pub use decaying::{Added, DecayingSketch, SketchStats, SketchTooSmall};
pub use look::SketchHeatStats;

use candidates::{Best, Candidates};
use decaying::Homes;
use places::{Place, Places};

/// Of the bytes granted, each of the two sets of candidates has one in so many. A refill of the one looks
/// at all slots and yields some 200th of them: a few hundred nanoseconds for each page that is moved. A
/// larger set is refilled less often, but more samples find themselves among the best and must be noted.
const CANDIDATE_SHARE: usize = 64;
/// But this many at least.
const LEAST_CANDIDATE_BYTES: usize = 128;

/// Why a page stands aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// A move of it is under way.
    Flight,
    /// It may not be taken until this time.
    Cooling(Time),
    /// It may not be taken until the kernel places it anew.
    Excluded,
}

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
    /// The ends of cooldowns. An entry may be out of date: its page has left or its time changed.
    ends: BinaryHeap<Reverse<(Time, u32)>>,
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
        let of_candidates = (bytes / CANDIDATE_SHARE).max(LEAST_CANDIDATE_BYTES);
        let of_sketch = bytes - 2 * of_candidates;
        Ok(Self {
            sketch: DecayingSketch::new(pages, of_sketch, half_life, seed)?,
            places: Places::new(pages),
            hottest: Candidates::new(of_candidates),
            coldest: Candidates::new(of_candidates),
            cursor: 0,
            aside: BTreeMap::new(),
            ends: BinaryHeap::new(),
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

    // --- samples -----------------------------------------------------------------------------

    /// Adds `weight` events seen at `now` to a page. Weights that are not above 0 change nothing.
    /// Returns whether the page is tracked.
    pub fn sample(&mut self, now: Time, id: PageId, weight: f32) -> bool {
        self.advance(now);
        let gain = self.sketch.gain(now, weight);
        self.add(id.0, self.sketch.homes(id.0), gain)
    }

    /// Adds `weight` events to each page, in one go; returns how many of them are tracked.
    pub fn sample_batch(&mut self, now: Time, ids: &[PageId], weight: f32) -> usize {
        /// About as many as a core has outstanding misses of its first cache.
        const BLOCK: usize = 16;
        self.advance(now);
        let gain = self.sketch.gain(now, weight);
        let mut tracked = 0;
        let mut homes = [Homes::default(); BLOCK];
        for block in ids.chunks(BLOCK) {
            // Read ahead for a block, the misses of different pages overlap.
            let mut ahead = 0;
            for (homes, id) in homes.iter_mut().zip(block) {
                *homes = self.sketch.homes(id.0);
                ahead ^= self.sketch.read_ahead(*homes);
            }
            std::hint::black_box(ahead);
            for (homes, id) in homes.into_iter().zip(block) {
                tracked += usize::from(self.add(id.0, homes, gain));
            }
        }
        tracked
    }

    #[inline]
    fn add(&mut self, id: u32, homes: Homes, gain: f32) -> bool {
        let place = self.places.get(id);
        if place == Place::Untracked || gain == 0.0 {
            return place != Place::Untracked;
        }
        let added = self.sketch.grow(homes, gain);
        if place == Place::Slow && added.key > 0.0 {
            self.propose(id, Placement::Slow, added.key);
        }
        if let Some((victim, left)) = added.weakened
            && self.places.get(victim) == Place::Fast
        {
            self.propose(victim, Placement::Fast, left);
        }
        true
    }

    // --- placement ---------------------------------------------------------------------------

    /// Takes the kernel's word for where a page lies.
    ///
    /// A page keeps its heat when it changes its tier. `Untracked` forgets it, in whatever state.
    /// A page in flight or in cooldown stays so. An excluded page is admitted again if its
    /// placement differs from the one it had. Returns the placement it had.
    pub fn place(&mut self, id: PageId, placement: Placement) -> Placement {
        let id = id.0;
        if id >= self.places.len() {
            return Placement::Untracked;
        }
        let old = self.placement(id);
        if old == placement {
            return old;
        }
        match (placement, self.detach(id)) {
            (Placement::Untracked, _) => {
                self.sketch.remove(id);
            }
            (_, Some(why @ (Why::Flight | Why::Cooling(_)))) => self.set_aside(id, placement, why),
            (_, Some(Why::Excluded) | None) => self.attach(id, placement),
        }
        old
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
        let id = id.0;
        if id >= self.places.len() {
            return false;
        }
        let why = self.detach(id);
        match (placement, available_at) {
            (Placement::Untracked, _) => {
                self.sketch.remove(id);
            }
            (_, None) => self.attach(id, placement),
            (_, Some(end)) => self.set_aside(id, placement, Why::Cooling(end)),
        }
        why == Some(Why::Flight)
    }

    /// Keeps a page from being taken until its placement changes or [`SketchHeat::readmit`]; ends its
    /// flight or cooldown. Returns whether the page is tracked.
    pub fn exclude(&mut self, id: PageId) -> bool {
        let placement = self.placement(id.0);
        if placement == Placement::Untracked {
            return false;
        }
        self.detach(id.0);
        self.set_aside(id.0, placement, Why::Excluded);
        true
    }

    /// Admits an excluded page again. Returns whether it was excluded.
    pub fn readmit(&mut self, id: PageId) -> bool {
        let Some(&(placement, Why::Excluded)) = self.aside.get(&id.0) else {
            return false;
        };
        self.detach(id.0);
        self.attach(id.0, placement);
        true
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
        let placement = match self.places.get(id.0) {
            Place::Fast => Placement::Fast,
            Place::Slow => Placement::Slow,
            Place::Untracked | Place::Aside => return None,
        };
        self.detach(id.0);
        self.set_aside(id.0, placement, Why::Flight);
        Some(placement)
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
        let mut released = 0;
        while let Some(&Reverse((end, id))) = self.ends.peek() {
            if end > now {
                break;
            }
            self.ends.pop();
            if let Some(&(placement, why)) = self.aside.get(&id)
                && why == Why::Cooling(end)
            {
                self.detach(id);
                self.attach(id, placement);
                released += 1;
            }
        }
        released
    }

    /// When [`SketchHeat::tick`] is next of use for a cooldown.
    #[must_use]
    pub fn next_cooldown_end(&self) -> Option<Time> {
        self.ends.peek().map(|Reverse((end, _))| *end)
    }

    // --- parts -------------------------------------------------------------------------------

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

    /// Takes a page out of wherever it is; it is untracked until attached or set aside. Says why it
    /// stood aside, if it did. An entry in a set stays behind; it is dropped when it comes to the top.
    fn detach(&mut self, id: u32) -> Option<Why> {
        let placement = self.placement(id);
        if placement == Placement::Untracked {
            return None;
        }
        let held = self.aside.remove(&id);
        self.places.set(id, Place::Untracked);
        *self.stats.at(placement) -= 1;
        let (_, why) = held?;
        *self.stats.of(why) -= 1;
        if self.aside.is_empty() {
            // Ends that are out of date, and the memory of all that there were.
            self.ends = BinaryHeap::new();
        }
        Some(why)
    }

    /// Puts an untracked page where pages that may be taken are.
    fn attach(&mut self, id: u32, placement: Placement) {
        *self.stats.at(placement) += 1;
        let fast = placement == Placement::Fast;
        self.places
            .set(id, if fast { Place::Fast } else { Place::Slow });
        let key = match self.sketch.stats().pages {
            // The start: the whole guest is placed before the first sample.
            0 => 0.0,
            _ => self.sketch.key(id),
        };
        if fast || key > 0.0 {
            self.propose(id, placement, key);
        }
    }

    /// Puts an untracked page into the side table.
    fn set_aside(&mut self, id: u32, placement: Placement, why: Why) {
        *self.stats.at(placement) += 1;
        *self.stats.of(why) += 1;
        if let Why::Cooling(end) = why {
            self.ends.push(Reverse((end, id)));
        }
        self.aside.insert(id, (placement, why));
        self.places.set(id, Place::Aside);
    }

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
