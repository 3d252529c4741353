//! How fast the tiers are, and what misses cost a guest.

use std::time::Duration;

use crate::tiers::{ASSUMED_FAST_NS, ASSUMED_SLOW_NS};

/// Read latencies of the tiers, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// A read from DRAM.
    pub fast_ns: u64,
    /// A read from the slow tier: more than from DRAM.
    pub slow_ns: u64,
}

impl Default for Latency {
    /// What is assumed where the firmware says nothing.
    fn default() -> Self {
        Self {
            fast_ns: ASSUMED_FAST_NS as u64,
            slow_ns: ASSUMED_SLOW_NS as u64,
        }
    }
}

impl Latency {
    /// The time that a hit saves.
    #[must_use]
    pub fn saved_per_hit(self) -> Duration {
        Duration::from_nanos(self.slow_ns.saturating_sub(self.fast_ns))
    }

    /// How many times longer a guest's CPUs take than with all of its memory in DRAM.
    ///
    /// Of `accesses` a second `1 − hit_ratio` miss, and each loses the time that a hit saves. Had the CPUs
    /// not lost that, they would have run `vcpu_s_per_s` less the loss: slowdown = ran / (ran − lost). No
    /// guest loses more than one that does nothing but wait for memory: slowdown is at most
    /// 1 + (1 − hit ratio) · (slow − fast) / fast.
    #[must_use]
    pub fn slowdown(self, hit_ratio: f64, accesses: f64, vcpu_s_per_s: Option<f64>) -> f64 {
        let saved = self.saved_per_hit();
        let misses = 1.0 - hit_ratio;
        let most = 1.0 + misses * saved.as_nanos() as f64 / self.fast_ns as f64;
        let lost = accesses * misses * saved.as_secs_f64();
        match vcpu_s_per_s {
            Some(ran) if ran > lost => (ran / (ran - lost)).min(most),
            _ => most,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATENCY: Latency = Latency {
        fast_ns: 100,
        slow_ns: 250,
    };

    #[test]
    fn slowdown_when_a_part_of_the_time_is_lost_counts_that_time() {
        // A million accesses, a tenth of them miss: 100,000 · 150 ns = 15 ms of each second.
        let slowdown = LATENCY.slowdown(0.9, 1e6, Some(1.0));
        assert!((slowdown - 1.0 / 0.985).abs() < 1e-12);
        assert_eq!(LATENCY.slowdown(1.0, 1e6, Some(1.0)), 1.0);
        assert_eq!(LATENCY.slowdown(0.5, 0.0, Some(1.0)), 1.0);
    }

    #[test]
    fn slowdown_when_more_is_lost_than_can_be_is_that_of_waiting_for_memory_alone() {
        // Half of 100 ns, and half of 250 ns: 175 ns instead of 100.
        assert_eq!(LATENCY.slowdown(0.5, 1e12, Some(1.0)), 1.75);
        assert_eq!(LATENCY.slowdown(0.0, 1e6, None), 2.5);
        assert_eq!(LATENCY.slowdown(0.0, 1e6, Some(0.0)), 2.5);
    }
}
