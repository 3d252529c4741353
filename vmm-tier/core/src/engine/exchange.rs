//! The exchange: whether a slow page is worth the fast pages that it displaces. Plans and explanations
//! share the answer.
//!
//! ```text
//! units     counts: observed accesses (or positive tests), decayed; rates: accesses a second; costs: ns
//! problem   counts are noisy: the hottest of many pages by count is mostly a page that had luck
//! certain?  counting source: the page's expected heat, given the counts of all pages, is LEAST_TIMES
//!           that of the hottest page it displaces, and the two counts lie LEAST_DEVIATIONS apart;
//!           testing source: the shares of positive tests differ by more than chance brings about
//! pays?     (slow latency − fast latency) · difference of rates · horizon ≥ cost of all the moves
//! room      with room to spare, the rival is a page that nobody uses, and only one move is paid
//! ```

mod pay_back;

use self::pay_back::PayBack;
use super::{
    evidence::Evidence,
    guest_pages::{Candidate, GuestPages},
    move_costs::MoveCosts,
    significance,
};
use crate::{dual_heap::Placement, settings::EngineSettings, tiers::Tiers, time::Time};

/// Least ratio of a page's expected heat to that of the hottest page it displaces, for a source that
/// counts accesses. Expected heats are right on average, but not for each page: with a lower ratio,
/// pages near the border change places to and fro. On Zipf with DRAM for 25 % of the pages, 2 moves 50 %
/// more bytes than 3, and 4 moves 20 % fewer, with equal hits (±0.1 %). Where the pattern changes, a
/// lower ratio is faster. Without it generated accesses move 1.8 times the bytes, with equal hits
/// (±0.1 points).
pub(super) const LEAST_TIMES: f64 = 3.0;
/// Least distance of the two pages' counts in standard deviations: one more sampled access does not
/// justify a move. Where the pattern changes, 2 moves 33 % fewer bytes and settles 1 to 2 s later; 3
/// takes three times as long. Without it the recorded programs have 1.9 points more hits, generated
/// accesses 0.2, and both move twice the bytes.
pub(super) const LEAST_DEVIATIONS: f64 = 1.5;

/// How certain it is that a page is hotter than those it displaces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Certainty {
    /// For a source that tests pages: standard deviations by which the page lies above the hottest of
    /// them.
    Tests { z: f64, least_z: f64 },
    /// For a source that counts accesses: the ratio of expected heats, given the counts of all pages,
    /// and the standard deviations between the pages' own counts.
    Counts { times: f64, z: f64 },
}

impl Certainty {
    pub(super) fn suffices(self) -> bool {
        match self {
            Self::Tests { z, least_z } => z >= least_z,
            Self::Counts { times, z } => times >= LEAST_TIMES && z >= LEAST_DEVIATIONS,
        }
    }
}

/// What speaks for an exchange, and what it takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) certainty: Certainty,
    /// What the guest is expected to gain within the horizon.
    pub(super) gain_ns: f64,
    /// What all the moves cost.
    pub(super) cost_ns: f64,
    pub(super) pays_back: bool,
}

impl Verdict {
    pub(super) fn pays(&self) -> bool {
        self.certainty.suffices() && self.pays_back
    }
}

/// Judges exchanges at one time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judge<'a> {
    pub(super) now: Time,
    pub(super) pages: &'a GuestPages,
    pub(super) evidence: &'a Evidence,
    pub(super) tiers: &'a Tiers,
    pub(super) costs: &'a MoveCosts,
    pub(super) settings: &'a EngineSettings,
}

impl Judge<'_> {
    /// Judges promoting `hot` at the price of demoting all of `cold`. Without `cold` there is room, and
    /// `hot` is compared with a page that nobody uses.
    pub(super) fn verdict(&self, hot: Candidate, cold: &[Candidate]) -> Verdict {
        let stats = &self.evidence.stats;
        let terms = PayBack {
            slow_latency_ns: self.tiers.slow_latency_ns,
            fast_latency_ns: self.tiers.fast_latency_ns,
            horizon_s: self.settings.horizon.as_secs_f64(),
            cost_ns: self.costs.of(hot.page.bytes)
                + cold
                    .iter()
                    .map(|c| self.costs.of(c.page.bytes))
                    .sum::<f64>(),
        };
        let counts_accesses = stats.counts_accesses();
        let count = |c: &Candidate| match counts_accesses {
            true => self.expected_count(c),
            false => c.count,
        };
        let per_s = |c: &Candidate, count| stats.rate(count, c.page.bytes, self.now);
        let hot_count = count(&hot);
        let hot_per_s = per_s(&hot, hot_count);
        let (mut rival, mut cold_per_s) = (0.0_f64, 0.0);
        for cold in cold {
            let count = count(cold);
            rival = rival.max(count);
            cold_per_s += per_s(cold, count);
        }
        let certainty = match counts_accesses {
            true => Certainty::Counts {
                times: hot_count / rival,
                z: self.deviations(hot, cold),
            },
            false => Certainty::Tests {
                z: stats.share_significance(hot_count, rival, self.now),
                least_z: self.least_z(),
            },
        };
        Verdict {
            certainty,
            gain_ns: terms.gain_ns(hot_per_s, cold_per_s),
            cost_ns: terms.cost_ns,
            pays_back: terms.pays(hot_per_s, cold_per_s),
        }
    }

    /// The count that a page is expected to have on average, given its own count and those of all pages.
    pub(super) fn expected_count(&self, page: &Candidate) -> f64 {
        self.evidence.expected_count(page, self.now)
    }

    /// Standard deviations by which the accesses seen at `hot` lie above the most at one of `cold`.
    fn deviations(&self, hot: Candidate, cold: &[Candidate]) -> f64 {
        let most = cold.iter().map(Candidate::accesses).fold(0.0, f64::max);
        let plain = self.evidence.stats.plain_counts(self.now);
        significance::of_counts(hot.accesses(), most, plain)
    }

    /// Whether the page's count says that it is cold: "never sampled" does only where the source watches
    /// most of the guest.
    pub(super) fn knows_cold(&self, cold: Candidate) -> bool {
        cold.count > 0.0 || self.evidence.stats.coverage() >= 0.5
    }

    /// The z that an exchange needs: what the operator asks for, and more than the extremes of as many
    /// equally hot pages reach by chance.
    fn least_z(&self) -> f64 {
        let pages = |placement| u64::from(self.pages.heap.len(placement));
        let (slow, fast) = (pages(Placement::Slow), pages(Placement::Fast));
        self.settings.min_z.max(significance::by_chance(slow, fast))
    }
}
