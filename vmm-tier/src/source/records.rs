//! From perf records to samples and an account of all that arrived. Pure.

use std::time::Duration;

use tier_core::{
    sample::{AccessSample, DropReason, SampleAccount, SampleBatch, SourceKind},
    time::Time,
};
use tier_sys::perf::{
    record::{Record, Sample},
    ring::Drained,
};

/// What a batch says besides its samples.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) source: SourceKind,
    /// The accesses that one record stands for.
    pub(super) period: u64,
    pub(super) map_generation: u64,
}

/// Collects samples until they are made into a batch. Every record is counted once: as a sample, or as
/// dropped with a reason.
#[derive(Debug, Default)]
pub(super) struct Collector {
    samples: Vec<AccessSample>,
    account: SampleAccount,
}

impl Collector {
    /// Takes a record; `decode` makes a sample of those that are one.
    pub(super) fn take(
        &mut self,
        record: Record<'_>,
        decode: impl FnOnce(&Sample<'_>) -> Result<AccessSample, DropReason>,
    ) {
        match record {
            Record::Sample(sample) => match decode(&sample) {
                Ok(sample) => self.samples.push(sample),
                Err(reason) => self.account.drop_records(reason, 1),
            },
            Record::Lost { lost, .. } | Record::LostSamples { lost, .. } => {
                self.account.lost = self.account.lost.saturating_add(lost);
            }
            Record::Throttle { .. } => self.account.throttled += 1,
            // What the kernel says of the event is no record of an access.
            Record::Unthrottle { .. } | Record::Exit { .. } | Record::Other { .. } => {}
        }
    }

    /// Counts what a drain could not hand on as records.
    pub(super) fn drained(&mut self, drained: Drained) {
        let broken = drained.malformed + drained.overruns;
        if broken > 0 {
            self.account.drop_records(DropReason::Malformed, broken);
        }
    }

    /// Whether nothing has come.
    pub(super) fn is_empty(&self) -> bool {
        self.samples.is_empty() && self.account == SampleAccount::default()
    }

    /// A batch of all that has come in `span`, and begins anew.
    pub(super) fn batch(&mut self, origin: Origin, end: Time, span: Duration) -> SampleBatch {
        SampleBatch {
            source: origin.source,
            end,
            span,
            tests: 0,
            period: origin.period,
            settled: true,
            map_generation: origin.map_generation,
            samples: std::mem::take(&mut self.samples),
            account: std::mem::take(&mut self.account),
        }
    }
}

#[cfg(test)]
pub(super) mod synthetic;
