//! Whether an exchange is worth it: the one judgement that plans and explanations share.

use super::{VmEngine, plan::Candidate};
use crate::{
    dual_heap::Placement,
    exchange::{self, PayBack},
    time::Time,
};

/// What speaks for an exchange, and what it takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Verdict {
    /// Standard deviations by which the hot page lies above the hottest of its rivals.
    pub(super) z: f64,
    /// What `z` must reach.
    pub(super) least_z: f64,
    /// What the guest gains within the horizon.
    pub(super) gain_ns: f64,
    /// What all the moves cost.
    pub(super) cost_ns: f64,
    pub(super) pays_back: bool,
}

impl Verdict {
    pub(super) fn is_significant(&self) -> bool {
        self.z >= self.least_z
    }

    pub(super) fn pays(&self) -> bool {
        self.is_significant() && self.pays_back
    }
}

impl VmEngine {
    /// Judges promoting `hot` at the price of demoting all of `cold`; where there is room, `hot` is held
    /// against a page that nobody uses.
    pub(super) fn judge(&self, now: Time, hot: Candidate, cold: &[Candidate]) -> Verdict {
        let per_s = |c: &Candidate| self.tally.rate(c.count, c.page.bytes, now);
        let costs = &self.totals.costs;
        let rival = cold.iter().map(|c| c.count).fold(0.0, f64::max);
        let payback = PayBack {
            slow_latency_ns: self.tiers.slow_latency_ns,
            fast_latency_ns: self.tiers.fast_latency_ns,
            horizon_s: self.settings.horizon.as_secs_f64(),
            move_cost_ns: costs.of(hot.page.bytes)
                + cold.iter().map(|c| costs.of(c.page.bytes)).sum::<f64>(),
        };
        let (hot_per_s, cold_per_s) = (per_s(&hot), cold.iter().map(per_s).sum());
        Verdict {
            z: self.tally.significance(hot.count, rival, now),
            least_z: self.least_z(now),
            gain_ns: payback.gain_ns(hot_per_s, cold_per_s),
            cost_ns: payback.cost_ns(1),
            pays_back: payback.pays(hot_per_s, cold_per_s, 1),
        }
    }

    /// "Never sampled" reads as cold only where the source watches most of the guest.
    pub(super) fn knows_cold(&self, cold: Candidate) -> bool {
        cold.count > 0.0 || self.tally.coverage() >= 0.5
    }

    /// The z that an exchange needs: what the operator asks for, and more than the extremes of so many
    /// equally hot pages reach by chance.
    fn least_z(&self, now: Time) -> f64 {
        let pages = |placement| u64::from(self.heap.len(placement));
        let (slow, fast) = (pages(Placement::Slow), pages(Placement::Fast));
        let chance = match self.tally.counts(now) {
            Some(counts) => {
                let mean = counts / (slow + fast).max(1) as f64;
                let plain = self.tally.plain_counts(now);
                exchange::chance_significance_of_counts(slow, fast, mean, plain)
            }
            None => exchange::chance_significance(slow, fast),
        };
        self.settings.min_z.max(chance)
    }
}
