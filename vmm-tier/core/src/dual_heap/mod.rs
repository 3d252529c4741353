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
//! Only the fronts are in order, some thousand pages of however many; all that a sample changes for other
//! pages is one word of 4 bytes, which holds the key. That word is all the memory they take.
//!
//! A page is in exactly one of these places. Heat is a count under [forward decay](crate::heat), so
//! ageing never touches a page. The structure believes what it is told about placement
//! ([`DualHeap::place`], [`DualHeap::settle`]) and assumes nothing.

use std::{ops::Range, time::Duration};

use serde::Serialize;

use crate::{heat::Decay, time::Time};

mod aside;
pub(crate) mod cooldowns;
mod fast;
mod front;
mod look;
mod pages;
mod pinned;
pub(crate) mod pinned_ids;
mod sample;
mod slow;
pub(crate) mod states;
mod word;

pub use look::{HeapStats, PageState};
pub use sample::Touched;
pub use states::StateCounts;

use aside::{Aside, Held};
use fast::FastHeap;
use front::Entry;
use pages::Pages;
use pinned_ids::PinnedIds;
use slow::SlowHeap;
use states::{Detached, States, Why};
use word::{MAX_PAGES, Slot};

/// The index of a 4 KiB frame of the guest's tracked space. A larger page is known by its first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct PageId(pub u32);

/// Where a page lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// Not present, or not a page of its own.
    Untracked,
    /// On a node of the fast tier.
    Fast,
    /// On a node of the slow tier.
    Slow,
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
    aside: Aside,
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
            aside: Aside::default(),
            decay,
            boost: (Time(0), 1.0),
            cursor: 0,
            pinned: PinnedIds::default(),
            stats: HeapStats::default(),
        }
    }

    /// The bytes that so many pages take if each is tracked by itself, but for those that stand aside: 4.1 for
    /// each of a large guest. Huge pages and what is untouched take less.
    #[must_use]
    pub fn most_bytes(pages: u32) -> u64 {
        Pages::most_bytes(pages) + SlowHeap::most_bytes(pages) + FastHeap::most_bytes(pages)
    }

    /// The number of pages there is room for.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.pages.len()
    }

    /// The clock of heat; gives rates for counts.
    #[must_use]
    pub fn decay(&self) -> &Decay {
        &self.decay
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

    // --- placement ---------------------------------------------------------------------------

    /// Takes the kernel's word for where a page lies.
    ///
    /// A page keeps its heat when it changes its tier. `Untracked` forgets it, in whatever state.
    /// A page in flight or in cooldown stays so. An excluded page is admitted again if its
    /// placement differs from the one it had. Returns the placement it had.
    pub fn place(&mut self, id: PageId, placement: Placement) -> Placement {
        States::place(self, id.0, placement)
    }

    /// Places each page of the run; see [`DualHeap::place`].
    pub fn place_run(&mut self, ids: Range<u32>, placement: Placement) {
        let ids = ids.start..ids.end.min(self.pages.len());
        let never = match placement {
            Placement::Fast => Slot::FastNever,
            Placement::Slow => Slot::SlowNever,
            Placement::Untracked => Slot::Untracked,
        };
        if never == Slot::Untracked || !self.pinned.is_empty() || ids.is_empty() {
            for id in ids {
                self.place(PageId(id), placement);
            }
            return;
        }
        // The kernel tells of millions of pages at the start: those that are new need only a word.
        self.pages.reserve(ids.clone());
        let mut others = Vec::new();
        let mut first = ids.start;
        while first < ids.end {
            let (set, next) = self.pages.fill(first, ids.end, never, &mut others);
            *self.stats.pages.at(placement) += set;
            for id in others.drain(..) {
                self.place(PageId(id), placement);
            }
            first = next;
        }
    }

    /// Ends a flight with the kernel's word for where the page lies. With `available_at` the page
    /// may not be taken before that time. Heat is kept; `Untracked` forgets the page.
    ///
    /// Returns whether the page was in flight. If it was not, the kernel is believed all the same.
    pub fn settle(&mut self, id: PageId, placement: Placement, available_at: Option<Time>) -> bool {
        States::settle(self, id.0, placement, available_at)
    }

    /// Keeps a page from being taken until its placement changes or [`DualHeap::readmit`]; ends its
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

    /// Takes a page into flight: it is no longer offered but goes on gathering heat, until
    /// [`DualHeap::settle`]. Returns where it lies, or `None` if it may not be taken.
    pub fn take(&mut self, id: PageId) -> Option<Placement> {
        States::take(self, id.0)
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

    /// Ends the cooldowns that are over at `now` and moves the landmark if that is due. Returns the
    /// number of pages that may be taken again.
    pub fn tick(&mut self, now: Time) -> u32 {
        let released = self.release(now);
        self.advance(now);
        released
    }

    /// When [`DualHeap::tick`] is next of use for a cooldown.
    #[must_use]
    pub fn next_cooldown_end(&self) -> Option<Time> {
        self.aside.next_end()
    }

    // --- parts -------------------------------------------------------------------------------

    fn key(&self, slot: Slot) -> f32 {
        match slot {
            Slot::Untracked | Slot::FastNever | Slot::SlowNever => 0.0,
            Slot::Fast(key) | Slot::Slow(key) => key,
            Slot::Front(index) => self.slow.key(index),
            Slot::Aside(index) => self.aside.get(index).map_or(0.0, |held| held.key),
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
        self.aside.rescale(change);
        self.boost = (now, self.decay.boost(now));
        self.stats.landmark_moves += 1;
    }
}

impl States for DualHeap {
    type Heat = f32;

    fn room(&self) -> u32 {
        self.pages.len()
    }

    fn placement(&self, id: u32) -> Placement {
        match self.pages.get(id) {
            Slot::Untracked => Placement::Untracked,
            Slot::Fast(_) | Slot::FastNever => Placement::Fast,
            Slot::Slow(_) | Slot::Front(_) | Slot::SlowNever => Placement::Slow,
            Slot::Aside(index) => self
                .aside
                .get(index)
                .map_or(Placement::Untracked, |held| held.placement),
        }
    }

    fn why(&self, id: u32) -> Option<Why> {
        match self.pages.get(id) {
            Slot::Aside(index) => self.aside.get(index).map(|held| held.why),
            _ => None,
        }
    }

    fn detach(&mut self, id: u32) -> Option<Detached<f32>> {
        let slot = self.pages.get(id);
        let placement = self.placement(id);
        let (heat, why) = match slot {
            Slot::Untracked => return None,
            // An entry in the fast tier's front stays behind; see there.
            Slot::FastNever | Slot::SlowNever => (0.0, None),
            Slot::Fast(key) | Slot::Slow(key) => (key, None),
            Slot::Front(index) => (self.slow.remove(index, &mut self.pages).key, None),
            Slot::Aside(index) => {
                let held = self.aside.remove(index)?;
                (held.key, Some(held.why))
            }
        };
        self.pages.set(id, Slot::Untracked);
        match slot {
            Slot::Slow(key) => self.slow.left(Entry { key, id }, &mut self.pages),
            Slot::Front(_) => self.slow.left(Entry { key: 0.0, id }, &mut self.pages),
            _ => {}
        }
        self.stats.pages.remove(placement, why);
        Some(Detached { heat, why })
    }

    fn attach(&mut self, id: u32, placement: Placement, heat: f32) {
        if self.pinned.contains(id) {
            self.set_aside(id, placement, heat, Why::Pinned);
            return;
        }
        self.stats.pages.add(placement, None);
        match (placement, heat > 0.0) {
            (_, true) => self.give_key(id, placement, heat),
            (Placement::Fast, false) => self.pages.set(id, Slot::FastNever),
            (_, false) => self.pages.set(id, Slot::SlowNever),
        }
    }

    fn set_aside(&mut self, id: u32, placement: Placement, heat: f32, why: Why) {
        self.stats.pages.add(placement, Some(why));
        let index = self.aside.insert(Held {
            id,
            key: heat,
            placement,
            why,
        });
        self.pages.set(id, Slot::Aside(index));
    }

    fn forget(&mut self, id: u32) {
        self.pages.trim(id);
    }

    fn next_ended(&mut self, now: Time) -> Option<u32> {
        self.aside.next_ended(now, &self.pages)
    }
}
