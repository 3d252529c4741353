//! Samples and the account of the batch to come. Pure.

use std::time::Duration;

use tier_core::{
    sample::{AccessSample, DropReason, SampleAccount},
    sampling_period::PeriodLook,
};
use tier_sys::perf::collect::Collected;

/// What came since the last batch. Every record is counted once: as a sample, or as dropped with a
/// reason.
#[derive(Debug, Default)]
pub(in crate::source) struct Gathered {
    samples: Vec<AccessSample>,
    account: SampleAccount,
    /// The sum of the samples' periods.
    periods: u128,
    /// Records, samples and throttles that the governor has not seen yet.
    fresh: PeriodLook,
}

/// The part of a batch that comes from records.
#[derive(Debug, Default)]
pub(in crate::source) struct GatheredBatch {
    pub(in crate::source) samples: Vec<AccessSample>,
    pub(in crate::source) account: SampleAccount,
    /// The mean of the samples' periods, at least 1.
    pub(in crate::source) period: u64,
}

impl Gathered {
    /// Takes the access of a sample that stands for `period` events, or the reason why there is none.
    #[inline]
    pub(in crate::source) fn take(
        &mut self,
        period: u64,
        access: Result<AccessSample, DropReason>,
    ) {
        match access {
            Ok(sample) => {
                self.samples.push(sample);
                self.periods += u128::from(period.max(1));
                self.fresh.samples += 1;
            }
            Err(reason) => self.account.drop_records(reason, 1),
        }
    }

    /// Counts the records of one collection, whose samples were taken one by one.
    pub(in crate::source) fn count(&mut self, collected: Collected) {
        collected.add_to(&mut self.account);
        let made = collected.samples.saturating_add(collected.lost);
        self.fresh.records = self.fresh.records.saturating_add(made);
        self.fresh.throttled += collected.throttled;
    }

    /// Drops the samples that were gathered: they belong to an older map.
    pub(in crate::source) fn discard_samples(&mut self) {
        let stale = std::mem::take(&mut self.samples).len() as u64;
        self.periods = 0;
        self.account.drop_records(DropReason::StaleMap, stale);
    }

    /// What the governor has not seen yet.
    pub(in crate::source) fn look(&mut self, wall: Duration, cpu: Duration) -> PeriodLook {
        PeriodLook {
            wall,
            cpu,
            ..std::mem::take(&mut self.fresh)
        }
    }

    /// All that came since the last batch; `None` if nothing did.
    pub(in crate::source) fn batch(&mut self) -> Option<GatheredBatch> {
        if self.samples.is_empty() && self.account == SampleAccount::default() {
            return None;
        }
        let samples = std::mem::take(&mut self.samples);
        let mean = std::mem::take(&mut self.periods) / (samples.len() as u128).max(1);
        Some(GatheredBatch {
            samples,
            account: std::mem::take(&mut self.account),
            period: u64::try_from(mean).unwrap_or(u64::MAX).max(1),
        })
    }
}
