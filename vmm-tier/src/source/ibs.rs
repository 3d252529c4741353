//! AMD's instruction-based sampling as a source: records of `ibs_op` from the kernel, one ring for each
//! of the guest's CPUs, or from a software PMU's ring file.
//!
//! A record tells the host-physical address of the access, also while the guest ran; [`Frames`] say
//! which page of QEMU that is. Accesses of QEMU and of the host's kernel come too and belong to no page
//! of the guest: they are counted as unmapped. Most operations access no memory at all: they have no
//! address.

mod frames;
#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc, time::Duration};

use tier_core::{
    addr::Hva,
    map::GuestMemoryMap,
    sample::{AccessSample, DropReason, SampleAddress, Sight, SourceKind},
    sampling_period::PeriodGoals,
};
use tier_sys::perf::{
    ibs::{self, IbsPmu, MAX_PERIOD, SAMPLE_FIELDS},
    record::Sample,
};

use self::frames::Frames;
use super::{
    Setup, Source,
    vcpus::{Decode, Feed, VcpuSource},
};

/// Where the period begins: some thousand samples a second for each busy CPU of the guest.
const FIRST_PERIOD: u64 = 1 << 19;
/// Shorter periods would only find the kernel's limit when an idle guest wakes.
const LEAST_PERIOD: u64 = 1 << 14;
/// Samples a second that are wanted: a hot set of 64 Mi in small pages is known within ten seconds.
const WANTED_RATE: f64 = 10_000.0;
/// What a record costs the guest's CPU: an interrupt, about as long as an exit from the guest.
const RECORD_COST: Duration = Duration::from_micros(1);
/// Pages of the ring of one of the guest's CPUs: 2500 records.
const RING_PAGES: usize = 64;

/// Samples the operations of the guest's CPUs.
///
/// # Errors
/// What is missing, and what to do about it.
pub(crate) fn open(setup: &Setup, map: &Arc<GuestMemoryMap>) -> anyhow::Result<Box<dyn Source>> {
    let pmu = IbsPmu::read(&setup.root)?;
    let events = vec![pmu.event(FIRST_PERIOD, RING_PAGES).into()];
    let goals = PeriodGoals {
        budget: setup.cpu_budget,
        rate: WANTED_RATE,
        // Within these bounds the PMU takes every multiple of the unit.
        bounds: LEAST_PERIOD..=MAX_PERIOD,
        unit: 16,
        record_cost: RECORD_COST,
    };
    let feed = Feed::open(setup, events, (goals, FIRST_PERIOD))?;
    let decode = Ibs::new(setup, map, pmu.l3_miss_only.is_some())?;
    Ok(Box::new(VcpuSource::new(setup, map, decode, feed)))
}

/// Reads the records that a software PMU writes into the file `path`.
///
/// # Errors
/// Why the file can't be used.
pub(crate) fn open_file(
    setup: &Setup,
    map: &Arc<GuestMemoryMap>,
    path: &Path,
) -> anyhow::Result<Box<dyn Source>> {
    let feed = Feed::open_file(path, SAMPLE_FIELDS)?;
    let decode = Ibs::new(setup, map, false)?;
    Ok(Box::new(VcpuSource::new(setup, map, decode, feed)))
}

/// The decoder.
struct Ibs {
    frames: Frames,
    /// Whether only accesses come that missed the third-level cache.
    l3_only: bool,
}

impl Ibs {
    fn new(setup: &Setup, map: &GuestMemoryMap, l3_only: bool) -> anyhow::Result<Self> {
        Ok(Self {
            frames: Frames::read(&setup.root, setup.pid, map)?,
            l3_only,
        })
    }
}

impl Decode for Ibs {
    fn kind(&self) -> SourceKind {
        SourceKind::Ibs
    }

    fn sight(&self) -> Sight {
        Sight::Guest
    }

    fn label(&self, feed: &Feed) -> String {
        if let Some(path) = feed.file() {
            return format!(
                "records of AMD IBS from a software PMU in {}; sees single loads and stores by their \
                 physical address",
                path.display()
            );
        }
        let what = if self.l3_only {
            "loads and stores that missed the caches"
        } else {
            "loads and stores"
        };
        format!(
            "AMD IBS on {} threads of the guest's CPUs, one operation in {}; sees single {what} by their \
             physical address",
            feed.watched(),
            feed.period()
        )
    }

    #[inline]
    fn decode(&mut self, _: usize, sample: &Sample<'_>) -> Result<AccessSample, DropReason> {
        sample_of(sample, |physical| self.frames.locate(physical))
    }

    fn set_map(&mut self, map: &GuestMemoryMap) -> anyhow::Result<()> {
        self.frames.set_map(map)
    }

    fn moved(&mut self, pages: &[(Hva, u64)]) {
        self.frames.moved(pages);
    }

    fn set_at_rest(&mut self, at_rest: bool) {
        self.frames.set_at_rest(at_rest);
    }

    fn keep_up(&mut self, wall: Duration) -> anyhow::Result<Duration> {
        self.frames.reread(wall)
    }
}

/// The access that a record tells of, or why it tells of none.
#[inline]
fn sample_of(
    sample: &Sample<'_>,
    locate: impl FnOnce(u64) -> Option<Hva>,
) -> Result<AccessSample, DropReason> {
    let op = sample.raw().and_then(ibs::decode);
    let (physical, kind) = op
        .ok_or(DropReason::Malformed)?
        .accessed()
        .ok_or(DropReason::NoAddress)?;
    let hva = locate(physical).ok_or(DropReason::Unmapped)?;
    Ok(AccessSample {
        address: SampleAddress::Host(hva),
        len: 1,
        weight: 1.0,
        kind,
    })
}
