//! Running totals: bytes placed, bytes moved, and how observed accesses fell on the tiers.

use std::{collections::BTreeMap, time::Duration};

use super::{Planned, cost::MoveCosts};
use crate::{
    addr::BASE_PAGE,
    dual_heap::Placement,
    exchange,
    heat::Decay,
    moves::{Direction, Outcome, PageResult},
    sample::SampleBatch,
    settings::Tier,
    time::Time,
};

/// Bytes of the guest by tier and by page size.
#[derive(Debug, Default)]
pub(super) struct PlacedBytes {
    fast: u64,
    slow: u64,
    pub(super) by_page_size: BTreeMap<u64, u64>,
}

impl PlacedBytes {
    pub(super) const fn of(&self, tier: Tier) -> u64 {
        match tier {
            Tier::Fast => self.fast,
            Tier::Slow => self.slow,
        }
    }

    /// Whether both count the same bytes.
    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        (self.fast, self.slow, &self.by_page_size) == (other.fast, other.slow, &other.by_page_size)
    }

    /// A page of `bytes` bytes went from one placement to another.
    pub(super) fn replace(&mut self, bytes: u64, old: Placement, new: Placement) {
        if old == new {
            return;
        }
        match old {
            Placement::Fast => self.fast -= bytes,
            Placement::Slow => self.slow -= bytes,
            Placement::Untracked => *self.by_page_size.entry(bytes).or_default() += bytes,
        }
        match new {
            Placement::Fast => self.fast += bytes,
            Placement::Slow => self.slow += bytes,
            Placement::Untracked => {
                let left = self.by_page_size.entry(bytes).or_default();
                *left -= bytes;
                if *left == 0 {
                    self.by_page_size.remove(&bytes);
                }
            }
        }
    }
}

/// Pages found used in more than this share of the tests are all taken as equally hot: what differs
/// between them is how often the tests came late, not how often the pages were used.
const SATURATED: f64 = 0.95;
/// Accesses that a test of such a page stands for. At least 3 by the formula of [`SampleTally::rate`];
/// a page in the hot set of a program that runs has some hundreds in the 2 to 20 ms between two tests.
const SATURATED_ACCESSES: f64 = 100.0;

/// How observed accesses fell on the tiers, decayed, and how much of the guest was observed.
#[derive(Debug)]
pub(super) struct SampleTally {
    decay: Decay,
    fast: f64,
    slow: f64,
    /// Tests of each page: the count that a page would have that was found accessed each time.
    tests: f64,
    /// Seconds observed, decayed like counts: a count over it is a rate.
    seconds: f64,
    coverage: f64,
}

impl SampleTally {
    pub(super) fn new(half_life: Duration, now: Time) -> Self {
        Self {
            decay: Decay::new(half_life, now),
            fast: 0.0,
            slow: 0.0,
            tests: 0.0,
            seconds: 0.0,
            coverage: 0.0,
        }
    }

    /// Adds accesses that fell on a tier at `at`.
    pub(super) fn add(&mut self, at: Time, tier: Tier, accesses: f64) {
        let boosted = accesses * self.decay.boost(at);
        match tier {
            Tier::Fast => self.fast += boosted,
            Tier::Slow => self.slow += boosted,
        }
    }

    /// Takes note of a batch: how long it watched, how often it tested each page, and the share of the
    /// guest that it spoke for.
    pub(super) fn observe(&mut self, batch: &SampleBatch, at: Time, share: f64) {
        let boost = self.decay.boost(at);
        self.tests += f64::from(batch.tests) * boost;
        self.seconds += batch.span.as_secs_f64() * boost;
        // The last few batches count: a source that stops watching must be noticed soon.
        self.coverage += (share.clamp(0.0, 1.0) - self.coverage) / 2.0;
    }

    /// Accesses a second for a page of `bytes` bytes with this decayed count.
    ///
    /// Accesses are counted for each 4 KiB, so a page has those of all its frames. A test finds the page
    /// as a whole used or not, whatever its size, and a source that tests pages saturates: it finds a page accessed or not, however often. For
    /// accesses that come at random (Poisson) with λ a test, a share p = 1 − e^(−λ) of the tests finds
    /// one, hence λ = −ln(1 − p). A page that is found used always may be used any number of times more:
    /// [`SATURATED_ACCESSES`] stands for it.
    pub(super) fn rate(&self, count: f64, bytes: u64, now: Time) -> f64 {
        let unboost = self.decay.boost(now);
        let (tests, seconds) = (self.tests / unboost, self.seconds / unboost);
        if seconds <= 0.0 {
            return 0.0;
        }
        if tests <= 0.0 {
            return count * (bytes / BASE_PAGE).max(1) as f64 / seconds;
        }
        let share = count / tests;
        let accesses = if share < SATURATED {
            -(-share).ln_1p()
        } else {
            SATURATED_ACCESSES
        };
        accesses * tests / seconds
    }

    /// How many standard deviations one page's decayed count lies above another's.
    pub(super) fn significance(&self, hot: f64, cold: f64, now: Time) -> f64 {
        let tests = self.tests / self.decay.boost(now);
        if tests > 0.0 {
            let most = tests * SATURATED;
            exchange::share_significance(hot.min(most), cold.min(most), tests)
        } else {
            exchange::significance(hot, cold)
        }
    }

    pub(super) const fn coverage(&self) -> f64 {
        self.coverage
    }

    /// Moves the landmark when it is due.
    pub(super) fn tick(&mut self, now: Time) {
        if let Some(halves) = self.decay.shift(now) {
            let factor = (-(halves as f64)).exp2();
            self.fast *= factor;
            self.slow *= factor;
            self.tests *= factor;
            self.seconds *= factor;
        }
    }

    /// Share of accesses that went to the fast tier.
    pub(super) fn hit_ratio(&self) -> Option<f64> {
        let all = self.fast + self.slow;
        (all > 0.0).then(|| self.fast / all)
    }
}

/// What was moved, what failed, and what a move costs.
#[derive(Debug, Default)]
pub(super) struct MoveTotals {
    pub(super) promoted_bytes: u64,
    pub(super) demoted_bytes: u64,
    pub(super) failed: BTreeMap<Outcome, u64>,
    pub(super) planned: Planned,
    pub(super) costs: MoveCosts,
}

impl MoveTotals {
    pub(super) fn add(&mut self, direction: Direction, results: &[PageResult], cpu_time: Duration) {
        let mut moved = 0;
        for result in results {
            match result.outcome {
                Outcome::Moved => moved += result.page.bytes,
                failed => *self.failed.entry(failed).or_default() += 1,
            }
        }
        match direction {
            Direction::Promote => self.promoted_bytes += moved,
            Direction::Demote => self.demoted_bytes += moved,
        }
        let moved_pages = results
            .iter()
            .filter(|result| result.outcome == Outcome::Moved);
        self.costs
            .learn(moved_pages.map(|result| result.page), cpu_time);
    }
}
