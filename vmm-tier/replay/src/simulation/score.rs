//! What comes of a policy: hits, moves, time to settle, cost.

use std::{collections::BTreeMap, time::Duration};

use tier_core::{moves::Outcome, time::Time};

use crate::{
    machine::{Host, Ledger, Slice},
    policy::Policy,
};

/// The share of its last level that hits must have reached for a phase to count as settled.
const SETTLED: f64 = 0.9;
/// The part at the end of a phase that says where it settles: a quarter.
const LAST_PART: usize = 4;

/// What became of a source's records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    /// Records that the policy was given.
    pub arrived: u64,
    /// Records lost on the way.
    pub lost: u64,
    /// Records of accesses to slow pages that a biased source did not see.
    pub unseen: u64,
    /// Accesses outside the guest's memory.
    pub outside: u64,
}

/// How a phase of steady accesses went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plateau {
    /// When the phase began.
    pub from: Time,
    /// The median hit ratio of the phase's last quarter.
    pub level: f64,
    /// How long it took until a second's hit ratio was 90 % of that; `None` if the phase has no
    /// accesses.
    pub reached_after: Option<Duration>,
}

/// See the [module](self).
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The policy.
    pub policy: &'static str,
    /// Bytes of DRAM.
    pub fast_bytes: u64,
    /// All accesses.
    pub accesses: u64,
    /// Those that went to DRAM.
    pub fast_accesses: u64,
    /// What was moved.
    pub ledger: Ledger,
    /// What became of the samples.
    pub samples: Samples,
    /// One for each phase.
    pub plateaus: Vec<Plateau>,
    /// Accesses to DRAM and all accesses, in each second.
    pub timeline: Vec<(u64, u64)>,
    /// Time that accesses, moves and faults took, over what the accesses alone would take in DRAM.
    pub slowdown: f64,
    /// CPU time that the policy took.
    pub cpu: Duration,
    /// Bytes that the policy keeps about pages, at the end.
    pub memory_bytes: usize,
}

impl Score {
    /// Share of accesses that went to DRAM; 0 without accesses.
    #[must_use]
    pub fn hit_ratio(&self) -> f64 {
        share(self.fast_accesses, self.accesses)
    }

    /// CPU time of the policy for each sample that it was given, in nanoseconds; 0 without samples.
    #[must_use]
    pub fn ns_per_sample(&self) -> f64 {
        match self.samples.arrived {
            0 => 0.0,
            n => self.cpu.as_nanos() as f64 / n as f64,
        }
    }

    /// Moves that failed, by class.
    #[must_use]
    pub const fn failed(&self) -> &BTreeMap<Outcome, u64> {
        &self.ledger.failed
    }

    /// The median time to settle over all phases that have accesses.
    #[must_use]
    pub fn settling_time(&self) -> Option<Duration> {
        let mut times: Vec<Duration> = self
            .plateaus
            .iter()
            .filter_map(|plateau| plateau.reached_after)
            .collect();
        times.sort_unstable();
        times.get(times.len().checked_sub(1)? / 2).copied()
    }
}

fn share(part: u64, all: u64) -> f64 {
    if all == 0 {
        0.0
    } else {
        part as f64 / all as f64
    }
}

/// Adds up what a simulation does.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    start: Option<Time>,
    accesses: u64,
    fast_accesses: u64,
    samples: Samples,
    timeline: Vec<(u64, u64)>,
    cpu: Duration,
}

impl Tally {
    pub(super) fn accesses(&mut self, slice: &Slice, all: u64, fast: u64) {
        self.accesses += all;
        self.fast_accesses += fast;
        let start = *self.start.get_or_insert(slice.start);
        let second = slice.start.since(start).as_secs() as usize;
        // A trace of ages with hardly an access would make a line of empty seconds.
        const MOST_SECONDS: usize = 10_000_000;
        if second < MOST_SECONDS {
            if self.timeline.len() <= second {
                self.timeline.resize(second + 1, (0, 0));
            }
            self.timeline[second].0 += fast;
            self.timeline[second].1 += all;
        }
    }

    pub(super) const fn samples(&mut self, more: &Samples) {
        self.samples.arrived += more.arrived;
        self.samples.lost += more.lost;
        self.samples.unseen += more.unseen;
        self.samples.outside += more.outside;
    }

    pub(super) fn cpu(&mut self, more: Duration) {
        self.cpu += more;
    }

    pub(super) fn finish(self, host: &Host, policy: &dyn Policy, phases: &[Time]) -> Score {
        let (fast_ns, slow_ns) = host.latencies();
        let slow = self.accesses - self.fast_accesses;
        let took = self.fast_accesses as f64 * fast_ns + slow as f64 * slow_ns;
        let ideal = self.accesses as f64 * fast_ns;
        let stalls = host.ledger().stall_ns;
        Score {
            policy: policy.name(),
            fast_bytes: host.fast_bytes(),
            slowdown: if ideal > 0.0 {
                (took + stalls) / ideal
            } else {
                1.0
            },
            plateaus: plateaus(&self.timeline, self.start.unwrap_or_default(), phases),
            accesses: self.accesses,
            fast_accesses: self.fast_accesses,
            ledger: host.ledger().clone(),
            samples: self.samples,
            timeline: self.timeline,
            cpu: self.cpu,
            memory_bytes: policy.memory_bytes(),
        }
    }
}

/// Where each phase settled and when. Without phases the whole time is one.
fn plateaus(timeline: &[(u64, u64)], start: Time, phases: &[Time]) -> Vec<Plateau> {
    let second = |at: &Time| at.since(start).as_secs() as usize;
    let mut begins: Vec<usize> = phases.iter().map(second).collect();
    begins.push(0);
    begins.sort_unstable();
    begins.dedup();
    begins.retain(|&begin| begin < timeline.len());
    let ends = begins.iter().skip(1).copied().chain([timeline.len()]);
    let phase = |(&begin, end): (&usize, usize)| {
        let ratios: Vec<Option<f64>> = timeline[begin..end]
            .iter()
            .map(|&(fast, all)| (all > 0).then(|| share(fast, all)))
            .collect();
        let level = median(&ratios[ratios.len() - ratios.len().div_ceil(LAST_PART)..]);
        let settled = |ratio: &Option<f64>| ratio.is_some_and(|ratio| ratio >= SETTLED * level);
        Plateau {
            from: start + Duration::from_secs(begin as u64),
            level,
            reached_after: ratios
                .iter()
                .position(settled)
                .map(|seconds| Duration::from_secs(seconds as u64)),
        }
    };
    begins.iter().zip(ends).map(phase).collect()
}

fn median(ratios: &[Option<f64>]) -> f64 {
    let mut known: Vec<f64> = ratios.iter().flatten().copied().collect();
    known.sort_unstable_by(f64::total_cmp);
    known.get(known.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plateau_when_the_pattern_changes_is_told_for_each_phase() {
        // Ten seconds at 0.8 after two at 0.2, then a change: three seconds at 0.1, seven at 0.5.
        let ratios = [vec![20; 2], vec![80; 10], vec![10; 3], vec![50; 7]].concat();
        let timeline: Vec<(u64, u64)> = ratios.into_iter().map(|fast| (fast, 100)).collect();
        let start = Time(5_000_000_000);
        let change = start + Duration::from_secs(12);
        let found = plateaus(&timeline, start, &[start, change]);
        assert_eq!(
            found,
            [
                Plateau {
                    from: start,
                    level: 0.8,
                    reached_after: Some(Duration::from_secs(2)),
                },
                Plateau {
                    from: change,
                    level: 0.5,
                    reached_after: Some(Duration::from_secs(3)),
                },
            ]
        );
    }

    #[test]
    fn plateau_when_nothing_is_accessed_has_no_time() {
        let found = plateaus(&[(0, 0), (0, 0)], Time(0), &[]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].reached_after, None);
        assert!(plateaus(&[], Time(0), &[Time(0)]).is_empty());
    }
}
