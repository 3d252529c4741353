//! How a page changes its state: the rules that both stores of heat follow.
//!
//! ```text
//!   untracked ◄──► may be taken ──take──► in flight ──settle──► cooling down
//!                    ▲   ▲  │                 │                      │
//!          unpinned ─┘   │  └─exclude─► excluded ◄──exclude─┬────────┤
//!                        └──────placed anew, readmit────────┘  tick ─┘
//! ```
//!
//! A store says how it keeps pages ([`States`]); what becomes of a page when it is placed, taken, settled
//! or excluded is said here, once.

use serde::Serialize;

use super::{PageState, Placement};
use crate::time::Time;

/// Why a page stands aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// A move of it is under way.
    Flight,
    /// It may not be taken until this time.
    Cooling(Time),
    /// It may not be taken until the kernel places it anew.
    Excluded,
    /// It is never offered, whatever its heat.
    Pinned,
}

/// Pages by where they lie, and by why they may not be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct StateCounts {
    /// Pages in the fast tier.
    pub fast: u32,
    /// Pages in the slow tier.
    pub slow: u32,
    /// Pages whose move is under way.
    pub in_flight: u32,
    /// Pages in cooldown.
    pub cooling: u32,
    /// Pages excluded.
    pub excluded: u32,
    /// Pinned pages that are neither in flight nor in cooldown nor excluded.
    pub pinned: u32,
}

impl StateCounts {
    /// Counts one page more.
    pub(crate) fn add(&mut self, placement: Placement, why: Option<Why>) {
        *self.at(placement) += 1;
        if let Some(why) = why {
            *self.of(why) += 1;
        }
    }

    /// Counts one page less.
    pub(crate) fn remove(&mut self, placement: Placement, why: Option<Why>) {
        *self.at(placement) -= 1;
        if let Some(why) = why {
            *self.of(why) -= 1;
        }
    }

    /// The number of pages that lie there, of `pages` in all.
    pub(crate) fn len(&self, placement: Placement, pages: u32) -> u32 {
        match placement {
            Placement::Untracked => pages - self.fast - self.slow,
            Placement::Fast => self.fast,
            Placement::Slow => self.slow,
        }
    }

    /// What is counted of a tier.
    pub(crate) fn at(&mut self, placement: Placement) -> &mut u32 {
        if placement == Placement::Fast {
            &mut self.fast
        } else {
            &mut self.slow
        }
    }

    fn of(&mut self, why: Why) -> &mut u32 {
        match why {
            Why::Flight => &mut self.in_flight,
            Why::Cooling(_) => &mut self.cooling,
            Why::Excluded => &mut self.excluded,
            Why::Pinned => &mut self.pinned,
        }
    }
}

/// What [`States::detach`] found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Detached<H> {
    pub(crate) heat: H,
    pub(crate) why: Option<Why>,
}

/// A store that keeps pages and says how.
pub(crate) trait States {
    /// What goes with a page when it changes its place: its key, where that is kept with the page.
    type Heat: Copy + Default;

    /// The number of pages there is room for.
    fn room(&self) -> u32;

    /// Where a page lies; ids past the end are untracked.
    fn placement(&self, id: u32) -> Placement;

    /// Why a tracked page may not be taken; `None` if it may.
    fn why(&self, id: u32) -> Option<Why>;

    /// Takes a page out of wherever it is; it is untracked until attached or set aside.
    fn detach(&mut self, id: u32) -> Option<Detached<Self::Heat>>;

    /// Puts an untracked page where pages that may be taken are, or where pinned ones are.
    fn attach(&mut self, id: u32, placement: Placement, heat: Self::Heat);

    /// Puts an untracked page aside.
    fn set_aside(&mut self, id: u32, placement: Placement, heat: Self::Heat, why: Why);

    /// Forgets what is left of an untracked page.
    fn forget(&mut self, id: u32);

    /// The next page whose cooldown is over at `now`.
    fn next_ended(&mut self, now: Time) -> Option<u32>;

    /// Takes the kernel's word for where a page lies; returns where it lay.
    fn place(&mut self, id: u32, placement: Placement) -> Placement {
        if id >= self.room() {
            return Placement::Untracked;
        }
        let old = self.placement(id);
        if old == placement {
            return old;
        }
        let detached = self.detach(id);
        let heat = detached.map_or_else(Self::Heat::default, |detached| detached.heat);
        match (placement, detached.and_then(|detached| detached.why)) {
            (Placement::Untracked, _) => self.forget(id),
            (_, Some(why @ (Why::Flight | Why::Cooling(_)))) => {
                self.set_aside(id, placement, heat, why);
            }
            (_, Some(Why::Excluded | Why::Pinned) | None) => self.attach(id, placement, heat),
        }
        old
    }

    /// Ends a flight, with a cooldown until `available_at`; returns whether there was one.
    fn settle(&mut self, id: u32, placement: Placement, available_at: Option<Time>) -> bool {
        if id >= self.room() {
            return false;
        }
        let detached = self.detach(id);
        let heat = detached.map_or_else(Self::Heat::default, |detached| detached.heat);
        match (placement, available_at) {
            (Placement::Untracked, _) => self.forget(id),
            (_, None) => self.attach(id, placement, heat),
            (_, Some(end)) => self.set_aside(id, placement, heat, Why::Cooling(end)),
        }
        detached.is_some_and(|detached| detached.why == Some(Why::Flight))
    }

    /// Keeps a page from being taken; returns whether it is tracked.
    fn exclude(&mut self, id: u32) -> bool {
        self.move_aside(id, Why::Excluded).is_some()
    }

    /// Admits an excluded page again; returns whether it was excluded.
    fn readmit(&mut self, id: u32) -> bool {
        let excluded = self.why(id) == Some(Why::Excluded);
        if excluded {
            self.put_back(id);
        }
        excluded
    }

    /// Takes a page that may be taken into flight; says where it lies.
    fn take(&mut self, id: u32) -> Option<Placement> {
        self.why(id)
            .is_none()
            .then(|| self.move_aside(id, Why::Flight))?
    }

    /// Takes a pinned page that may be taken into flight; says where it lies.
    fn take_pinned(&mut self, id: u32) -> Option<Placement> {
        (self.why(id) == Some(Why::Pinned)).then(|| self.move_aside(id, Why::Flight))?
    }

    /// Ends the cooldowns that are over; returns how many.
    fn release(&mut self, now: Time) -> u32 {
        let mut released = 0;
        while let Some(id) = self.next_ended(now) {
            self.put_back(id);
            released += 1;
        }
        released
    }

    /// Puts a page where its pin, or its lack of one, wants it.
    fn put_back(&mut self, id: u32) {
        let placement = self.placement(id);
        if let Some(detached) = self.detach(id) {
            self.attach(id, placement, detached.heat);
        }
    }

    /// Puts a page aside; says where it lies, `None` if it is not tracked.
    fn move_aside(&mut self, id: u32, why: Why) -> Option<Placement> {
        let placement = self.placement(id);
        let detached = self.detach(id)?;
        self.set_aside(id, placement, detached.heat, why);
        Some(placement)
    }

    /// Counts pages by their state, for checks.
    fn count_states(&self, ids: impl Iterator<Item = u32>) -> StateCounts
    where
        Self: Sized,
    {
        ids.fold(StateCounts::default(), |mut counts, id| {
            counts.add(self.placement(id), self.why(id));
            counts
        })
    }

    /// What is known of a page, beside whether it has heat and is pinned.
    fn state(&self, id: u32, sampled: bool, pinned: bool) -> PageState {
        let why = self.why(id);
        PageState {
            placement: self.placement(id),
            sampled,
            in_flight: why == Some(Why::Flight),
            cooldown_until: match why {
                Some(Why::Cooling(end)) => Some(end),
                _ => None,
            },
            excluded: why == Some(Why::Excluded),
            pinned,
        }
    }
}
