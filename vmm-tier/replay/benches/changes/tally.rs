//! What a rule's alarms were worth: changes noticed and delays, false alarms, rest.

use std::time::Duration;

use tier_core::time::Time;

use crate::{
    agent::Log,
    clock::{Ticks, seconds, tick_of, ticks},
};

/// A change that was noticed later was not.
const WITHIN: Ticks = ticks(Duration::from_secs(10));
/// What a guest does at first is new: nothing counts before this time.
pub(crate) const SETTLED: Ticks = ticks(Duration::from_secs(30));
/// Bytes that must move to say that something was done.
const ACTED_BYTES: u64 = 1 << 20;

/// See the [module](self). Times are seconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) runs: u32,
    pub(crate) seconds: f64,
    pub(crate) rest: f64,
    pub(crate) changes: usize,
    /// Those that met the agent at rest.
    pub(crate) at_rest: usize,
    /// Those of them that were noticed.
    pub(crate) noticed_at_rest: usize,
    /// From a change to the alarm.
    pub(crate) delays: Vec<f64>,
    /// From a change to 1 MiB that was moved for it.
    pub(crate) acted: Vec<f64>,
    pub(crate) false_at_rest: usize,
    pub(crate) false_at_work: usize,
    accesses: u64,
    hits: u64,
    moved_bytes: u64,
}

impl Tally {
    /// Adds a run of a guest that changes at these times.
    pub(crate) fn add(&mut self, log: &Log, changes: &[Time]) {
        let end = log.end;
        let all: Vec<Ticks> = changes.iter().map(|&at| tick_of(at)).collect();
        let counted = SETTLED..end.saturating_sub(WITHIN);
        let changes: Vec<Ticks> = all
            .iter()
            .copied()
            .filter(|at| counted.contains(at))
            .collect();
        self.runs += 1;
        self.seconds += seconds(end.saturating_sub(SETTLED));
        for &(since, until) in &log.rests {
            self.rest += seconds(until.saturating_sub(since.max(SETTLED)));
        }
        self.accesses += log.accesses;
        self.hits += log.hits;
        self.moved_bytes += log.moved_since(SETTLED);
        self.changes += changes.len();
        for (i, &change) in changes.iter().enumerate() {
            let next = changes.get(i + 1).copied().unwrap_or(end);
            let rested = |&(since, until): &(Ticks, Ticks)| (since..until).contains(&change);
            let from_rest = usize::from(log.rests.iter().any(rested));
            self.at_rest += from_rest;
            let alarm = log.alarms.iter().find(|alarm| alarm.at >= change);
            if let Some(alarm) = alarm
                && alarm.at < next.min(change + WITHIN)
            {
                self.delays.push(seconds(alarm.at - change));
                self.noticed_at_rest += from_rest;
            }
            let moved = log.moved.partition_point(|(at, _)| *at < change);
            let before = log.moved_until(change);
            let acted = log.moved[moved..]
                .iter()
                .find(|(_, bytes)| bytes - before >= ACTED_BYTES);
            if let Some((at, _)) = acted
                && *at < next
            {
                self.acted.push(seconds(at - change));
            }
        }
        for alarm in log.alarms.iter().filter(|alarm| alarm.at >= SETTLED) {
            let is_true = |change: &Ticks| (*change..change + WITHIN).contains(&alarm.at);
            if !all.iter().any(is_true) {
                match alarm.from_rest {
                    true => self.false_at_rest += 1,
                    false => self.false_at_work += 1,
                }
            }
        }
    }

    /// Adds what another guest brought.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.runs += other.runs;
        self.seconds += other.seconds;
        self.rest += other.rest;
        self.changes += other.changes;
        self.at_rest += other.at_rest;
        self.noticed_at_rest += other.noticed_at_rest;
        self.delays.extend(&other.delays);
        self.acted.extend(&other.acted);
        self.false_at_rest += other.false_at_rest;
        self.false_at_work += other.false_at_work;
        self.accesses += other.accesses;
        self.hits += other.hits;
        self.moved_bytes += other.moved_bytes;
    }

    /// False alarms in ten minutes at rest; `None` if there was hardly any rest.
    pub(crate) fn false_rate_at_rest(&self) -> Option<f64> {
        (self.rest >= 60.0).then(|| self.false_at_rest as f64 * 600.0 / self.rest)
    }

    /// The same at work.
    pub(crate) fn false_rate_at_work(&self) -> Option<f64> {
        let work = self.seconds - self.rest;
        (work >= 60.0).then(|| self.false_at_work as f64 * 600.0 / work)
    }

    /// Share of accesses that hit DRAM.
    pub(crate) fn hit_ratio(&self) -> Option<f64> {
        (self.accesses > 0).then(|| self.hits as f64 / self.accesses as f64)
    }

    /// MiB moved in ten minutes.
    pub(crate) fn moved_rate(&self) -> f64 {
        self.moved_bytes as f64 / f64::from(1 << 20) * 600.0 / self.seconds.max(1.0)
    }

    pub(crate) fn rest_share(&self) -> f64 {
        self.rest / self.seconds.max(1.0)
    }
}

/// The middle value.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    (n > 0).then(|| (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0)
}

/// The largest value.
pub(crate) fn most(values: &[f64]) -> Option<f64> {
    values.iter().copied().max_by(f64::total_cmp)
}
