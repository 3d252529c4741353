//! Whether moves pay back: what the guest gains within the horizon, against what the moves cost.
//!
//! Worth with a source that tests pages: a sixth of the bytes on the recorded programs, 40 % on the
//! compressor, for 0.3 points of hits. Nothing with one access in 4093 sampled: a single sample stands
//! for enough accesses to pay (docs/results/policies.md).

/// The terms of one exchange.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PayBack {
    /// Latency of an access to the slow tier, from HMAT.
    pub(crate) slow_latency_ns: f64,
    /// Latency of an access to the fast tier, from HMAT.
    pub(crate) fast_latency_ns: f64,
    /// Time for which the rates are expected to stay what they are.
    pub(crate) horizon_s: f64,
    /// The cost of all moves of the exchange: the copies and what the guest waits.
    pub(crate) cost_ns: f64,
}

impl PayBack {
    /// What the guest gains within the horizon if the pages change places.
    ///
    /// Rates are accesses (not samples) a second. With a source that reports one access in N, the rate
    /// is that of its samples times N.
    pub(crate) fn gain_ns(&self, hot_per_s: f64, cold_per_s: f64) -> f64 {
        (self.slow_latency_ns - self.fast_latency_ns) * (hot_per_s - cold_per_s) * self.horizon_s
    }

    /// Whether the gain is at least the cost. Never for a gain of zero or less.
    pub(crate) fn pays(&self, hot_per_s: f64, cold_per_s: f64) -> bool {
        let gain_ns = self.gain_ns(hot_per_s, cold_per_s);
        gain_ns > 0.0 && gain_ns >= self.cost_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pay_back_when_a_demotion_is_needed_asks_for_twice_the_gain() {
        // 100 ns saved an access, 10 s ahead, 10 µs a move: one move pays from 10 accesses a second on.
        let moves = |moves: f64| PayBack {
            slow_latency_ns: 200.0,
            fast_latency_ns: 100.0,
            horizon_s: 10.0,
            cost_ns: moves * 10_000.0,
        };
        assert!(moves(1.0).pays(10.0, 0.0));
        assert!(!moves(2.0).pays(10.0, 0.0));
        assert!(moves(2.0).pays(20.0, 0.0));
        assert!(!moves(2.0).pays(20.0, 1.0));
    }

    #[test]
    fn pay_back_when_the_slow_tier_is_not_slower_never_pays() {
        let rule = PayBack {
            slow_latency_ns: 100.0,
            fast_latency_ns: 100.0,
            horizon_s: 10.0,
            cost_ns: 0.0,
        };
        assert!(!rule.pays(1e9, 0.0));
    }
}
