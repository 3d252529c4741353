//! DAMON as a source of samples: a kdamond and the perf event on its `damon_aggregated` tracepoint.

mod bursts;

use std::path::Path;

use tier_core::{
    addr::Hva,
    sample::{DropReason, SampleAccount, SampleBatch},
};

use self::bursts::{Bursts, Region};
use super::{Damon, DamonError, DamonSettings, Kdamond};
use crate::{
    perf::{
        event::{Event, EventError, EventSpec, Polled, Target},
        record::Sample,
        tracepoint::{Field, Tracepoint, TracepointError},
    },
    process,
    sysroot::SysRoot,
    wait::Wait,
};

/// Bytes of a `damon_aggregated` sample in the ring: header 8, thread 8, time 8, size 4, raw 52.
const SAMPLE_BYTES: u64 = 80;
/// The least and the most pages of the ring.
const RING_PAGES: std::ops::RangeInclusive<u64> = 64..=4096;

/// The DAMON source can't be set up or has failed.
#[derive(Debug, thiserror::Error)]
pub enum DamonSourceError {
    /// The kdamond.
    #[error(transparent)]
    Damon(#[from] DamonError),
    /// The tracepoint.
    #[error(transparent)]
    Tracepoint(#[from] TracepointError),
    /// The perf event.
    #[error(transparent)]
    Event(#[from] EventError),
}

impl DamonSourceError {
    /// Whether DAMON was busy with other kdamonds: to try again is of use.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Damon(DamonError::Files(error)) if error.errno() == Some(libc::EBUSY))
    }
}

/// What one poll brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DamonPoll {
    /// One batch for each aggregation, oldest first.
    pub batches: Vec<SampleBatch>,
    /// The kdamond is off: the watched process ended, or someone turned it off. Nothing will come any
    /// more.
    pub ended: bool,
}

/// The fields of `damon:damon_aggregated`.
#[derive(Debug)]
struct Fields {
    target_id: Field,
    nr_regions: Field,
    start: Field,
    end: Field,
    nr_accesses: Field,
}

impl Fields {
    fn of(tracepoint: &Tracepoint) -> Result<Self, TracepointError> {
        Ok(Self {
            target_id: tracepoint.field("target_id")?,
            nr_regions: tracepoint.field("nr_regions")?,
            start: tracepoint.field("start")?,
            end: tracepoint.field("end")?,
            nr_accesses: tracepoint.field("nr_accesses")?,
        })
    }

    /// The region that a sample tells of, or why it tells of none.
    fn region(&self, sample: &Sample<'_>) -> Result<Region, DropReason> {
        let read = || {
            let raw = sample.raw()?;
            Some(Region {
                time: sample.time()?,
                target: self.target_id.read(raw)?,
                regions: self.nr_regions.read(raw)?,
                start: self.start.read(raw)?,
                end: self.end.read(raw)?,
                accesses: self.nr_accesses.read(raw)?,
            })
        };
        let region = read().ok_or(DropReason::Malformed)?;
        match region {
            // There is one target, and the kernel numbers them from 0.
            Region { target: 1.., .. } => Err(DropReason::ForeignTarget),
            Region {
                start,
                end,
                regions,
                ..
            } if start >= end || regions == 0 => Err(DropReason::Malformed),
            region => Ok(region),
        }
    }
}

/// A kdamond that watches a process, delivering one batch of samples for each aggregation: every
/// region with the number of sampling intervals in which its page was found accessed, also the idle
/// ones.
#[derive(Debug)]
pub struct DamonSource {
    // Declared first: the event is closed before the kdamond is stopped.
    event: Event,
    kdamond: Kdamond,
    fields: Fields,
    bursts: Bursts,
    account: SampleAccount,
}

impl DamonSource {
    /// Sets up a kdamond for `ranges` of process `pid` and listens to it.
    ///
    /// # Errors
    /// [`DamonSourceError`], whose text says what to do; nothing is left behind.
    pub fn start(
        root: &SysRoot,
        run_dir: &Path,
        pid: u32,
        ranges: &[(Hva, u64)],
        settings: DamonSettings,
        map_generation: u64,
    ) -> Result<Self, DamonSourceError> {
        let tracepoint = Tracepoint::read(root, "damon", "damon_aggregated")?;
        let fields = Fields::of(&tracepoint)?;
        let kdamond = Damon::open(root, run_dir)?.start(pid, ranges, &settings)?;
        let pages = ring_pages(settings.max_regions);
        let spec = EventSpec::tracepoint(&tracepoint.name, tracepoint.id, pages);
        let event = Event::open(root, &spec, Target::Thread(kdamond.thread()))?;
        event.enable()?;
        let bursts = Bursts::new(
            settings.aggregation,
            settings.max_accesses(),
            map_generation,
        );
        Ok(Self {
            event,
            kdamond,
            fields,
            bursts,
            account: SampleAccount::default(),
        })
    }

    /// The kdamond.
    #[must_use]
    pub fn kdamond(&self) -> &Kdamond {
        &self.kdamond
    }

    /// Waits (at most until the ring fills) and takes what has come. An aggregation that is still being
    /// written stays for the next poll.
    ///
    /// # Errors
    /// [`DamonSourceError`].
    pub fn poll<'a>(&mut self, wait: impl Into<Wait<'a>>) -> Result<DamonPoll, DamonSourceError> {
        let polled = self.event.poll(wait)?;
        let (fields, bursts, account) = (&self.fields, &mut self.bursts, &mut self.account);
        let collected = self.event.collect(|sample| match fields.region(&sample) {
            Ok(region) => bursts.push(region),
            Err(reason) => account.drop_records(reason, 1),
        });
        collected.add_to(&mut self.account);
        self.bursts.close_if_stale(process::now());
        let ended = polled == Polled::Ended || !self.kdamond.is_thread_alive();
        if ended {
            self.bursts.close();
        }
        let mut batches = self.bursts.take();
        if let Some(first) = batches.first_mut() {
            first.account = std::mem::take(&mut self.account);
        }
        Ok(DamonPoll { batches, ended })
    }

    /// Watches other ranges from the next aggregation on; batches are of `map_generation` from the
    /// first on that begins after the kernel has taken them.
    ///
    /// # Errors
    /// [`DamonSourceError::Damon`].
    pub fn update_ranges(
        &mut self,
        ranges: &[(Hva, u64)],
        map_generation: u64,
    ) -> Result<(), DamonSourceError> {
        self.kdamond.update_ranges(ranges)?;
        // The write returns when the kdamond has taken the ranges, between two aggregations.
        self.bursts.set_generation(map_generation, process::now());
        Ok(())
    }

    /// Takes other intervals and region counts from the next aggregation on. The ring stays as large
    /// as it is, so more than twice the regions it was made for may be lost (and are counted).
    ///
    /// # Errors
    /// [`DamonSourceError::Damon`].
    pub fn set_intervals(&mut self, settings: &DamonSettings) -> Result<(), DamonSourceError> {
        self.kdamond.update_settings(settings)?;
        self.bursts
            .set_aggregation(settings.aggregation, settings.max_accesses());
        Ok(())
    }

    /// Ends it and clears it away.
    ///
    /// # Errors
    /// [`DamonSourceError::Damon`] if the kdamond could not be cleared away; a later agent will try.
    pub fn stop(self) -> Result<(), DamonSourceError> {
        let Self { event, kdamond, .. } = self;
        drop(event);
        Ok(kdamond.stop()?)
    }
}

/// Pages for two aggregations of the most regions, a power of two.
fn ring_pages(max_regions: u64) -> usize {
    let bytes = max_regions.saturating_mul(2 * SAMPLE_BYTES);
    let pages = (bytes / 4096).clamp(*RING_PAGES.start(), *RING_PAGES.end());
    // At most 4096, so it fits.
    pages.next_power_of_two() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_pages_when_regions_are_many_holds_two_aggregations_of_them() {
        assert_eq!(ring_pages(100), 64);
        assert!(ring_pages(10_000) as u64 * 4096 >= 2 * 10_000 * SAMPLE_BYTES);
        assert_eq!(ring_pages(u64::MAX), 4096);
    }
}
