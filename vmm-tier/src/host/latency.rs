//! How fast the tiers are, and what misses cost a VM.

use std::time::Duration;

use tier_core::addr::NodeSet;
use tier_sys::topology::Topology;

/// Where the firmware says nothing: DRAM, and CXL memory behind one link.
const FAST_NS: u64 = 100;
const SLOW_NS: u64 = 250;

/// Read latencies of the tiers, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Latency {
    pub(super) fast_ns: u64,
    pub(super) slow_ns: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            fast_ns: FAST_NS,
            slow_ns: SLOW_NS,
        }
    }
}

impl Latency {
    /// The fastest of the nodes `fast`, and the slowest of all others (HMAT).
    pub(super) fn of(topology: &Topology, fast: &NodeSet) -> Self {
        let of = |is_fast: bool| {
            let nodes = topology.nodes.iter().filter(move |node| node.total > 0);
            let nodes = nodes.filter(move |node| fast.contains(node.id) == is_fast);
            nodes
                .filter_map(|node| Some(node.performance()?.read_latency_ns))
                .filter(|&ns| ns > 0)
        };
        match (of(true).min(), of(false).max()) {
            (Some(fast_ns), Some(slow_ns)) if fast_ns < slow_ns => Self { fast_ns, slow_ns },
            _ => Self::default(),
        }
    }

    /// The time that a hit saves.
    pub(super) fn saved_per_hit(self) -> Duration {
        Duration::from_nanos(self.slow_ns - self.fast_ns)
    }

    /// How many times longer a guest's CPUs take than with all of its memory in DRAM.
    ///
    /// Of `accesses` a second `1 − hit_ratio` miss, and each loses the time that a hit saves. Had the CPUs
    /// not lost that, they would have run `vcpu_s_per_s` less the loss: slowdown = ran / (ran − lost). No
    /// guest loses more than one that does nothing but wait for memory: slowdown is at most
    /// 1 + (1 − hit ratio) · (slow − fast) / fast.
    pub(super) fn slowdown(self, hit_ratio: f64, accesses: f64, vcpu_s_per_s: Option<f64>) -> f64 {
        let saved_s = self.saved_per_hit().as_secs_f64();
        let misses = 1.0 - hit_ratio;
        let most = 1.0 + misses * (self.slow_ns - self.fast_ns) as f64 / self.fast_ns as f64;
        let lost = accesses * misses * saved_s;
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
