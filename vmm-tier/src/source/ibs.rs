//! AMD's instruction-based sampling as a source: records of `ibs_op` from the kernel, one ring for each of
//! the guest's CPUs, or from a software PMU's ring file.
//!
//! A record tells the host-physical address of the access, also while the guest ran; the inverse page map
//! says which page of QEMU that is. Accesses of QEMU and of the host's kernel come too and belong to no
//! page of the guest: they are counted as unmapped. Most operations access no memory at all: they have
//! no address.

#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tier_core::{
    addr::Hva,
    map::GuestMemoryMap,
    period::{PeriodGoals, PeriodGovernor, PeriodLook},
    sample::{
        AccessSample, DropReason, SampleAccount, SampleAddress, SampleBatch, Sight, SourceKind,
    },
    time::Time,
};
use tier_sys::{
    inverse::{InverseMap, Pace},
    pagemap::Pagemap,
    perf::{
        ibs::{self, IbsPmu, MAX_PERIOD, SAMPLE_FIELDS},
        record::{Record, Sample},
        ring::{Drained, MappedRing, Ring},
        ring_file,
        threads::ThreadEvents,
    },
    process,
};

use super::{Polled, Setup, Source};

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
/// A ring file wakes nobody: how long to wait before it is looked at.
const FILE_WAIT: Duration = Duration::from_millis(100);
/// No ring loses more between two records; a ring file may say anything.
const MOST_LOST: u64 = 1 << 32;
/// Reading pages again for less is not worth the calls.
const LEAST_READING: Duration = Duration::from_millis(1);

/// Samples the operations of the guest's CPUs.
///
/// # Errors
/// What is missing, and what to do about it.
pub(crate) fn open(setup: &Setup, map: &Arc<GuestMemoryMap>) -> anyhow::Result<Box<dyn Source>> {
    let pmu = IbsPmu::read(&setup.root)?;
    let event = pmu.event(FIRST_PERIOD, RING_PAGES);
    let mut events = ThreadEvents::new(&setup.root, vec![event.into()]);
    if events.follow(&setup.vcpus)? == 0 {
        anyhow::bail!("no thread of the guest's CPUs is there to be watched");
    }
    let goals = PeriodGoals {
        budget: setup.cpu_budget,
        rate: WANTED_RATE,
        bounds: LEAST_PERIOD..=MAX_PERIOD,
        unit: 16,
        record_cost: RECORD_COST,
    };
    let governor = PeriodGovernor::new(goals, FIRST_PERIOD);
    let l3_only = pmu.l3_miss_only.is_some();
    let feed = Feed::Events {
        events,
        governor,
        l3_only,
    };
    Ok(Box::new(Ibs::new(setup, map, feed)?))
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
    let feed = Feed::File {
        ring: ring_file::open(path, SAMPLE_FIELDS)?,
        path: path.to_owned(),
    };
    Ok(Box::new(Ibs::new(setup, map, feed)?))
}

/// Where records come from.
enum Feed {
    Events {
        events: ThreadEvents,
        governor: PeriodGovernor,
        /// Whether only accesses come that missed the third-level cache.
        l3_only: bool,
    },
    File {
        ring: Ring<MappedRing>,
        path: PathBuf,
    },
}

struct Ibs {
    setup: Setup,
    map: Arc<GuestMemoryMap>,
    feed: Feed,
    pagemap: Pagemap,
    inverse: InverseMap,
    pace: Pace,
    gathered: Gathered,
    /// When the last batch ended.
    since: Time,
    clock: Clock,
}

impl Ibs {
    fn new(setup: &Setup, map: &Arc<GuestMemoryMap>, feed: Feed) -> anyhow::Result<Self> {
        let pagemap = Pagemap::open(&setup.root, setup.pid)?;
        let inverse = inverse_of(&pagemap, map)?;
        Ok(Self {
            setup: setup.clone(),
            map: Arc::clone(map),
            feed,
            pagemap,
            inverse,
            pace: Pace::default(),
            gathered: Gathered::default(),
            since: process::now(),
            clock: Clock::start(),
        })
    }

    /// Takes what stands in the rings.
    fn drain(&mut self) {
        let (gathered, inverse) = (&mut self.gathered, &self.inverse);
        let drained = match &mut self.feed {
            Feed::Events { events, .. } => {
                events.drain(|_, record| gathered.take(&record, inverse))
            }
            Feed::File { ring, .. } => ring.drain(|record| gathered.take(&record, inverse)),
        };
        gathered.note(drained);
    }

    /// Reads a part of QEMU's page table again, for as long as that may take.
    fn reread(&mut self, wall: Duration) -> anyhow::Result<()> {
        let Gathered { hits, misses, .. } = &mut self.gathered;
        self.pace
            .observe(std::mem::take(hits), std::mem::take(misses));
        let allowed = self.pace.allowance(wall);
        if allowed < LEAST_READING {
            return Ok(());
        }
        let began = process::thread_cpu_time();
        let spent = || process::thread_cpu_time().saturating_sub(began);
        let done = self.inverse.roll(&self.pagemap, || spent() < allowed)?;
        let spent = spent();
        self.pace.took(done, spent);
        // It has a budget of its own, and no period would make it less.
        self.clock.cpu += spent;
        if done.changed > 0 {
            let (changed, urgent) = (done.changed, self.pace.is_urgent());
            tracing::trace!(pid = self.setup.pid, changed, urgent, "pages read again");
        }
        Ok(())
    }

    /// Chooses the period anew.
    fn govern(&mut self, look: &PeriodLook) {
        let Feed::Events {
            events, governor, ..
        } = &mut self.feed
        else {
            return;
        };
        let Some(period) = governor.observe(look) else {
            return;
        };
        let pid = self.setup.pid;
        tracing::debug!(pid, period, "period of ibs_op");
        if let Err(error) = events.set_period(0, ibs::valid_period(period)) {
            // It goes on with the period that it has.
            tracing::warn!(pid, "the period of ibs_op stays: {error}");
        }
    }

    /// What was gathered since the last batch, if anything.
    fn batch(&mut self) -> Option<SampleBatch> {
        let end = process::now();
        let batch = self.gathered.batch()?;
        let since = std::mem::replace(&mut self.since, end);
        Some(SampleBatch {
            source: SourceKind::Ibs,
            end,
            span: end.since(since),
            tests: 0,
            period: batch.period,
            settled: true,
            map_generation: self.map.generation(),
            samples: batch.samples,
            account: batch.account,
        })
    }
}

impl Source for Ibs {
    fn kind(&self) -> SourceKind {
        SourceKind::Ibs
    }

    fn sight(&self) -> Sight {
        Sight::Guest
    }

    fn label(&self) -> String {
        match &self.feed {
            Feed::Events {
                events,
                governor,
                l3_only,
            } => {
                let what = if *l3_only {
                    "loads and stores that missed the caches"
                } else {
                    "loads and stores"
                };
                format!(
                    "AMD IBS on {} threads of the guest's CPUs, one operation in {}; sees single \
                     {what} by their physical address",
                    events.watched(),
                    governor.period()
                )
            }
            Feed::File { path, .. } => format!(
                "records of AMD IBS from a software PMU in {}; sees single loads and stores by their \
                 physical address",
                path.display()
            ),
        }
    }

    fn poll(&mut self, timeout: Duration) -> anyhow::Result<Polled> {
        match &mut self.feed {
            Feed::Events { events, .. } => {
                events.wait(timeout).context("waiting for perf events")?;
            }
            Feed::File { .. } => std::thread::sleep(timeout.min(FILE_WAIT)),
        }
        self.drain();
        let (wall, cpu) = self.clock.lap();
        let look = self.gathered.look(wall, cpu);
        self.reread(wall)?;
        self.govern(&look);
        let ended = match &self.feed {
            Feed::Events { events, .. } if events.watched() == 0 => {
                Some("all threads of the guest's CPUs ended".to_owned())
            }
            _ => None,
        };
        Ok(Polled {
            batches: self.batch().into_iter().collect(),
            ended,
        })
    }

    fn set_map(&mut self, map: &Arc<GuestMemoryMap>) -> anyhow::Result<()> {
        // What stands in the rings was recorded under the old map.
        let gathered = &mut self.gathered;
        let drained = match &mut self.feed {
            Feed::Events { events, .. } => events.drain(|_, record| gathered.discard(&record)),
            Feed::File { ring, .. } => ring.drain(|record| gathered.discard(&record)),
        };
        gathered.note(drained);
        gathered.discard_samples();
        self.inverse = inverse_of(&self.pagemap, map)?;
        self.pace = Pace::default();
        self.map = Arc::clone(map);
        Ok(())
    }

    fn set_quiet(&mut self, quiet: bool) -> anyhow::Result<()> {
        if let Feed::Events { governor, .. } = &mut self.feed {
            governor.set_ease(if quiet { self.setup.quiet_factor } else { 1 });
        }
        Ok(())
    }

    fn set_vcpus(&mut self, tids: &[u32]) -> anyhow::Result<()> {
        if let Feed::Events { events, .. } = &mut self.feed {
            events.follow(tids)?;
        }
        Ok(())
    }

    fn moved(&mut self, pages: &[(Hva, u64)]) {
        // What was recorded until now lies where the pages were; others may be there now.
        self.drain();
        if let Err(error) = self.inverse.refresh(&self.pagemap, pages) {
            // The next poll meets the same, and ends the source.
            tracing::debug!(
                pid = self.setup.pid,
                "moved pages can't be read again: {error}"
            );
        }
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        Ok(())
    }
}

/// The whole inverse map of a guest.
fn inverse_of(pagemap: &Pagemap, map: &GuestMemoryMap) -> anyhow::Result<InverseMap> {
    let began = Instant::now();
    let mut inverse = InverseMap::new(&map.unique_hva_ranges())?;
    let done = inverse.roll(pagemap, || true)?;
    tracing::debug!(
        entries = done.read,
        found_mib = inverse.bound_bytes() >> 20,
        map_kib = inverse.memory_bytes() >> 10,
        left_out = inverse.left_out(),
        took = ?began.elapsed(),
        "inverse page map"
    );
    Ok(inverse)
}

/// What records came to since the last batch. The sum of its samples and of what its account dropped is
/// always what arrived.
#[derive(Debug, Default)]
struct Gathered {
    samples: Vec<AccessSample>,
    account: SampleAccount,
    /// The sum of the samples' periods.
    periods: u128,
    /// Samples and unmapped records that the pace has not seen yet.
    hits: u64,
    misses: u64,
    /// Records, samples and throttles that the governor has not seen yet.
    fresh: PeriodLook,
}

/// The part of a batch that comes from the records.
#[derive(Debug)]
struct GatheredBatch {
    samples: Vec<AccessSample>,
    account: SampleAccount,
    period: u64,
}

impl Gathered {
    #[inline]
    fn take(&mut self, record: &Record<'_>, inverse: &InverseMap) {
        let Record::Sample(sample) = record else {
            return self.take_notice(record);
        };
        self.fresh.records += 1;
        match sample_of(sample, inverse) {
            Ok(found) => {
                self.samples.push(found);
                self.periods += u128::from(sample.period().unwrap_or(1).max(1));
                self.hits += 1;
                self.fresh.samples += 1;
            }
            Err(reason) => {
                self.misses += u64::from(reason == DropReason::Unmapped);
                self.account.drop_records(reason, 1);
            }
        }
    }

    /// Counts a record that was made under another map.
    fn discard(&mut self, record: &Record<'_>) {
        match record {
            Record::Sample(_) => {
                self.fresh.records += 1;
                self.account.drop_records(DropReason::StaleMap, 1);
            }
            record => self.take_notice(record),
        }
    }

    fn take_notice(&mut self, record: &Record<'_>) {
        match record {
            Record::Lost { lost, .. } | Record::LostSamples { lost, .. } => {
                let lost = (*lost).min(MOST_LOST);
                self.account.lost += lost;
                self.fresh.records += lost;
            }
            Record::Throttle { .. } => {
                self.account.throttled += 1;
                self.fresh.throttled += 1;
            }
            Record::Sample(_)
            | Record::Unthrottle { .. }
            | Record::Exit { .. }
            | Record::Other { .. } => {}
        }
    }

    /// Counts what was no record.
    fn note(&mut self, drained: Drained) {
        let malformed = drained.malformed + drained.overruns;
        if malformed > 0 {
            self.account.drop_records(DropReason::Malformed, malformed);
        }
    }

    /// Counts the samples that were gathered and not yet delivered as made under another map.
    fn discard_samples(&mut self) {
        let stale = std::mem::take(&mut self.samples).len() as u64;
        self.periods = 0;
        if stale > 0 {
            self.account.drop_records(DropReason::StaleMap, stale);
        }
    }

    /// What the governor is to know.
    fn look(&mut self, wall: Duration, cpu: Duration) -> PeriodLook {
        PeriodLook {
            wall,
            cpu,
            ..std::mem::take(&mut self.fresh)
        }
    }

    fn batch(&mut self) -> Option<GatheredBatch> {
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

/// The access that a record tells of, or why it tells of none.
#[inline]
fn sample_of(sample: &Sample<'_>, inverse: &InverseMap) -> Result<AccessSample, DropReason> {
    let op = sample.raw().and_then(ibs::decode);
    let (physical, kind) = op
        .ok_or(DropReason::Malformed)?
        .accessed()
        .ok_or(DropReason::NoAddress)?;
    let hva = inverse.locate(physical).ok_or(DropReason::Unmapped)?;
    Ok(AccessSample {
        address: SampleAddress::Host(hva),
        len: 1,
        weight: 1.0,
        kind,
    })
}

/// Time and CPU time of this thread.
#[derive(Debug)]
struct Clock {
    wall: Instant,
    cpu: Duration,
}

impl Clock {
    fn start() -> Self {
        Self {
            wall: Instant::now(),
            cpu: process::thread_cpu_time(),
        }
    }

    /// Both since the last call.
    fn lap(&mut self) -> (Duration, Duration) {
        let now = Self::start();
        let before = std::mem::replace(self, now);
        (
            self.wall.saturating_duration_since(before.wall),
            self.cpu.saturating_sub(before.cpu),
        )
    }
}
