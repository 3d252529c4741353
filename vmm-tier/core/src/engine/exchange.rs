//! Whether an exchange is worth it: the one judgement that plans and explanations share.

use super::{VmEngine, mover::plan::Candidate};
use crate::{
    dual_heap::Placement,
    exchange::{self, PayBack},
    time::Time,
};

/// How many times as hot as the hottest of those it displaces a page must be expected to be, for a source that counts
/// accesses. Expected heats are right on average, but not for each page: with less asked for, pages near the border
/// change places to and fro. On Zipf's law with DRAM for a quarter of the pages, 2 moves half as much again as 3 and 4 a
/// fifth less, with the same hits to 0.1 %; where the pattern changes, less is faster.
pub(super) const LEAST_TIMES: f64 = 3.0;
/// By how many standard deviations their counts must differ as well: one sampled access more is nothing to move a page
/// for. Where the pattern changes, 2 moves a third less and settles a second or two later, 3 takes three times as long.
pub(super) const LEAST_DEVIATIONS: f64 = 1.5;

/// How sure it is that a page is hotter than those it displaces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Evidence {
    /// For a source that tests pages: standard deviations by which the page lies above the hottest of them.
    Tests { z: f64, least_z: f64 },
    /// For a source that counts accesses: how many times as hot it is expected to be, given the counts of all pages,
    /// and standard deviations between the two pages' own counts.
    Counts { times: f64, z: f64 },
}

impl Evidence {
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
    pub(super) evidence: Evidence,
    /// What the guest is expected to gain within the horizon.
    pub(super) gain_ns: f64,
    /// What all the moves cost.
    pub(super) cost_ns: f64,
    pub(super) pays_back: bool,
}

impl Verdict {
    pub(super) fn pays(&self) -> bool {
        self.evidence.suffices() && self.pays_back
    }
}

impl VmEngine {
    /// Judges promoting `hot` at the price of demoting all of `cold`; where there is room, `hot` is held
    /// against a page that nobody uses.
    pub(super) fn judge(&self, now: Time, hot: Candidate, cold: &[Candidate]) -> Verdict {
        let costs = &self.totals.costs;
        let payback = PayBack {
            slow_latency_ns: self.tiers.slow_latency_ns,
            fast_latency_ns: self.tiers.fast_latency_ns,
            horizon_s: self.settings.horizon.as_secs_f64(),
            move_cost_ns: costs.of(hot.page.bytes)
                + cold.iter().map(|c| costs.of(c.page.bytes)).sum::<f64>(),
        };
        let counts_accesses = self.tally.counts_accesses();
        let count = |c: &Candidate| match counts_accesses {
            true => self.expected_count(c, now),
            false => c.count,
        };
        let per_s = |c: &Candidate, count| self.tally.rate(count, c.page.bytes, now);
        let hot_count = count(&hot);
        let hot_per_s = per_s(&hot, hot_count);
        let (mut rival, mut cold_per_s) = (0.0_f64, 0.0);
        for cold in cold {
            let count = count(cold);
            rival = rival.max(count);
            cold_per_s += per_s(cold, count);
        }
        let evidence = match counts_accesses {
            true => Evidence::Counts {
                times: hot_count / rival,
                z: self.deviations(now, hot, cold),
            },
            false => Evidence::Tests {
                z: self.tally.share_significance(hot_count, rival, now),
                least_z: self.least_z(),
            },
        };
        Verdict {
            evidence,
            gain_ns: payback.gain_ns(hot_per_s, cold_per_s),
            cost_ns: payback.cost_ns(1),
            pays_back: payback.pays(hot_per_s, cold_per_s, 1),
        }
    }

    /// Standard deviations by which the accesses seen at `hot` lie above the most at one of `cold`, each by what the
    /// source sees of its tier. To ask for more than that where the slow tier is seen ill gives all the gain away.
    fn deviations(&self, now: Time, hot: Candidate, cold: &[Candidate]) -> f64 {
        let most = cold.iter().map(Candidate::accesses).fold(0.0, f64::max);
        let (seen, plain) = (hot.accesses(), self.tally.plain_counts(now));
        let share = |page: &Candidate| self.share_seen(page.id);
        let ratio = cold.first().map_or(1.0, |cold| share(&hot) / share(cold));
        exchange::significance_unlike(seen, most, ratio, plain)
    }

    /// "Never sampled" reads as cold only where the source watches most of the guest.
    pub(super) fn knows_cold(&self, cold: Candidate) -> bool {
        cold.count > 0.0 || self.tally.coverage() >= 0.5
    }

    /// The z that an exchange needs: what the operator asks for, and more than the extremes of so many
    /// equally hot pages reach by chance.
    fn least_z(&self) -> f64 {
        let pages = |placement| u64::from(self.heap.len(placement));
        let (slow, fast) = (pages(Placement::Slow), pages(Placement::Fast));
        self.settings
            .min_z
            .max(exchange::chance_significance(slow, fast))
    }
}
