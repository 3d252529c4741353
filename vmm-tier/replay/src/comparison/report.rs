//! The report of a comparison, in numbers. The JSON is a contract: names and units stay.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use tier_core::{moves::Outcome, sample::DropReason};

/// All that was replayed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Report {
    /// By trace, then size of DRAM from the smallest on, then policy as asked for.
    pub(crate) runs: Vec<Run>,
    pub(crate) traces: Vec<Trace>,
    /// The DRAM that each policy needs for a share of hits; only where several sizes were replayed.
    pub(crate) needs: Vec<Need>,
}

/// One policy over one trace with one size of DRAM.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Run {
    pub(crate) trace: String,
    pub(crate) policy: String,
    pub(crate) fast_bytes: u64,
    pub(crate) guest_bytes: u64,
    pub(crate) accesses: u64,
    /// Share of all accesses that went to DRAM.
    pub(crate) hit_ratio: f64,
    /// The hit ratio over that of the oracle; `null` if that one has none.
    pub(crate) oracle_share: Option<f64>,
    /// Bytes copied, to and fro.
    pub(crate) moved_bytes: u64,
    /// Bytes that the oracle copied.
    pub(crate) least_bytes: u64,
    /// Share of moves of pages that had moved shortly before.
    pub(crate) ping_pong: f64,
    /// Time of all accesses, moves and faults over that of the accesses if all went to DRAM.
    pub(crate) slowdown: f64,
    /// When each phase settled.
    pub(crate) plateaus: Vec<Plateau>,
    pub(crate) samples: Samples,
    /// CPU time of the policy for each sample; `null` without samples.
    pub(crate) ns_per_sample: Option<f64>,
    /// Moves that failed, by class.
    pub(crate) failed: BTreeMap<Outcome, u64>,
    /// Hint faults that the guest took.
    pub(crate) faults: u64,
    /// What the policy keeps about pages.
    pub(crate) memory_bytes: u64,
    /// The hit ratio of each second; `null` where nothing was accessed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeline: Option<Vec<Option<f64>>>,
}

/// A phase of steady accesses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Plateau {
    pub(crate) from_s: f64,
    /// The hit ratio at which it settled.
    pub(crate) level: f64,
    /// How long it took until 90 % of that; `null` if it has no accesses.
    pub(crate) reached_after_s: Option<f64>,
}

/// What became of the samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Samples {
    /// Records that a source delivered.
    pub(crate) arrived: u64,
    /// Records that the policy was given.
    pub(crate) accepted: u64,
    /// Records that the source lost, and said so.
    pub(crate) lost: u64,
    /// Records that were not given to the policy, by reason.
    pub(crate) dropped: BTreeMap<DropReason, u64>,
    /// Records of slow pages that a biased source never made.
    pub(crate) unseen: u64,
}

/// What was replayed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Trace {
    pub(crate) trace: String,
    /// Its length, as played.
    pub(crate) seconds: f64,
    /// The factor by which it was slowed down.
    pub(crate) stretched: f64,
    pub(crate) guest_bytes: u64,
    pub(crate) pages: u32,
    /// Whether the guest has only the pages that the trace touches, because the trace names no memory.
    pub(crate) touched_only: bool,
    pub(crate) accesses: u64,
    /// Accesses outside the guest's memory, which count for nothing.
    pub(crate) outside: u64,
    /// Accesses to a sample.
    pub(crate) period: u64,
    /// Whether every record of the trace is a sample, as a source delivered it.
    pub(crate) samples_recorded: bool,
    /// Notes for readers of the figures.
    pub(crate) notes: Vec<String>,
}

/// The DRAM that a policy needs to serve a share of the accesses from it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Need {
    pub(crate) trace: String,
    pub(crate) policy: String,
    pub(crate) hit_ratio: f64,
    pub(crate) bytes: u64,
    pub(crate) bound: Bound,
}

/// How `bytes` is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Bound {
    /// The smallest size that was replayed suffices.
    AtMost,
    /// Between two sizes that were replayed.
    About,
    /// The largest size that was replayed does not suffice.
    MoreThan,
}

impl Run {
    /// The median time in which phases settled.
    pub(crate) fn settling_time(&self) -> Option<Duration> {
        let times = self.plateaus.iter().filter_map(|p| p.reached_after_s);
        let mut times: Vec<f64> = times.collect();
        times.sort_unstable_by(f64::total_cmp);
        let median = times.get(times.len().checked_sub(1)? / 2)?;
        Some(Duration::from_secs_f64(*median))
    }

    /// Bytes moved over the least possible; `None` if nothing needed to be moved but something was.
    pub(crate) fn moved_over_least(&self) -> Option<f64> {
        match (self.moved_bytes, self.least_bytes) {
            (0, 0) => Some(0.0),
            (_, 0) => None,
            (moved, least) => Some(moved as f64 / least as f64),
        }
    }
}

impl Report {
    /// The runs of one trace.
    pub(crate) fn runs_of<'a>(&'a self, trace: &'a str) -> impl Iterator<Item = &'a Run> + Clone {
        self.runs.iter().filter(move |run| run.trace == trace)
    }

    /// The sizes of DRAM with which a trace was replayed, rising.
    pub(crate) fn sizes_of(&self, trace: &str) -> Vec<u64> {
        let mut sizes: Vec<u64> = self.runs_of(trace).map(|run| run.fast_bytes).collect();
        sizes.dedup();
        sizes
    }

    /// The policies with which a trace was replayed, in the order of tables.
    pub(crate) fn policies_of<'a>(&'a self, trace: &'a str) -> Vec<&'a str> {
        let mut policies: Vec<&str> = Vec::new();
        for run in self.runs_of(trace) {
            if !policies.contains(&run.policy.as_str()) {
                policies.push(&run.policy);
            }
        }
        policies
    }

    /// Adds the runs of one trace, by size and policy.
    pub(crate) fn add(&mut self, trace: Trace, runs: Vec<Run>) {
        self.runs.extend(runs);
        self.traces.push(trace);
    }
}
