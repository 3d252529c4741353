//! DAMON on the guest's physical addresses: every region with how often it was found used.

use std::time::Duration;

use anyhow::{Context, ensure};
use tier_core::{
    addr::{Gpa, Hva},
    sample::{SampleAddress, SampleBatch},
    wire::{BatchBuilder, Drops, Region, Wish},
};
use tier_sys::damon::{Damon, DamonSettings, Operations, source::DamonSource};

use super::{InGuestSource, Setup, Taken};

/// DAMON's own minimum of regions is 3.
const LEAST_REGIONS: u64 = 10;
/// Looks never come closer than this, whatever the host wishes, and reports neither.
const LEAST_SAMPLING: Duration = Duration::from_millis(1);
const LEAST_AGGREGATION: Duration = Duration::from_millis(100);
/// The longest time between two reports.
const LONGEST_AGGREGATION: Duration = Duration::from_secs(10);
/// With physical addresses the kernel takes no process; this stands in its place.
const NO_PROCESS: u32 = 0;

struct DamonInGuest {
    source: DamonSource,
    setup: Setup,
    drops: Drops,
}

/// Whether the kernel has DAMON for physical addresses, and lets us use it.
pub(super) fn probe(setup: &Setup) -> anyhow::Result<()> {
    ensure!(
        !setup.memory.is_empty(),
        "where memory lies can't be read in /proc/iomem: run as root"
    );
    let damon = Damon::open(&setup.root, &setup.run_dir)?;
    // What an agent left that was killed is cleared away now, not when a session begins.
    damon.reclaim_orphans()?;
    Ok(())
}

pub(super) fn open(setup: &Setup, wish: &Wish) -> anyhow::Result<Box<dyn InGuestSource>> {
    let ranges: Vec<_> = setup
        .memory
        .iter()
        .map(|&(start, len)| (Hva(start), len))
        .collect();
    let source = DamonSource::start(
        &setup.root,
        &setup.run_dir,
        NO_PROCESS,
        &ranges,
        settings(setup, wish),
        0,
    )?;
    Ok(Box::new(DamonInGuest {
        source,
        setup: setup.clone(),
        drops: Drops::default(),
    }))
}

/// DAMON's settings for a wish, within this agent's limits.
fn settings(setup: &Setup, wish: &Wish) -> DamonSettings {
    let micros = |us: u32| Duration::from_micros(u64::from(us));
    let aggregation = micros(wish.aggregation_us).clamp(LEAST_AGGREGATION, LONGEST_AGGREGATION);
    let sampling = micros(wish.sampling_us).clamp(LEAST_SAMPLING, aggregation / 5);
    let most = u64::from(wish.max_regions.min(setup.max_regions)).max(LEAST_REGIONS);
    let bytes = setup.memory.iter().map(|(_, len)| len).sum();
    DamonSettings {
        sampling,
        aggregation,
        operations: Operations::Physical,
        ..DamonSettings::default().with_regions(bytes, most)
    }
}

/// A report of DAMON as a batch. Regions that DAMON would not tell apart stay apart.
fn taken(batch: &SampleBatch) -> (Taken, u64) {
    let mut observed = BatchBuilder::regions(batch.tests);
    let mut left_out = 0;
    for sample in &batch.samples {
        let SampleAddress::Host(start) = sample.address else {
            continue;
        };
        let region = Region {
            start: Gpa(start.0),
            len: sample.len,
            // A count that was a whole number before it became an f32.
            used: sample.weight.max(0.0) as u32,
        };
        left_out += u64::from(!observed.push_region(region));
    }
    let taken = Taken {
        observed,
        clock_ns: batch.end.0,
        span_ns: u64::try_from(batch.span.as_nanos()).unwrap_or(u64::MAX),
    };
    (taken, left_out)
}

impl InGuestSource for DamonInGuest {
    fn poll(&mut self, timeout: Duration) -> anyhow::Result<Vec<Taken>> {
        let polled = self.source.poll(timeout)?;
        ensure!(
            !polled.ended,
            "DAMON stopped: someone turned the kdamond off"
        );
        let mut all = Vec::new();
        for batch in &polled.batches {
            let (taken, left_out) = taken(batch);
            self.drops.no_credit += left_out;
            self.drops.lost += batch.account.lost + batch.account.dropped.values().sum::<u64>();
            self.drops.throttled += batch.account.throttled;
            all.push(taken);
        }
        Ok(all)
    }

    fn set_wish(&mut self, wish: &Wish) -> anyhow::Result<()> {
        let settings = settings(&self.setup, wish);
        self.source
            .set_intervals(&settings)
            .context("DAMON does not take the pace")
    }

    fn drops(&self) -> Drops {
        self.drops
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        Ok(self.source.stop()?)
    }
}

#[cfg(test)]
mod tests {
    use tier_core::{
        sample::{AccessKind, AccessSample, SampleAccount, SourceKind},
        time::Time,
        wire::Observed,
    };
    use tier_sys::sysroot::SysRoot;

    use super::*;

    fn setup() -> Setup {
        Setup {
            root: SysRoot::real(),
            run_dir: "/nonexistent".into(),
            max_regions: 1000,
            memory: vec![(1 << 20, 399 << 20)],
        }
    }

    #[test]
    fn settings_when_the_host_wishes_for_too_much_stay_within_limits() {
        let greedy = Wish {
            accesses_per_s: u32::MAX,
            sampling_us: 0,
            aggregation_us: 1,
            max_regions: u32::MAX,
        };
        let settings = settings(&setup(), &greedy);
        assert_eq!(settings.sampling, LEAST_SAMPLING);
        assert_eq!(settings.aggregation, LEAST_AGGREGATION);
        assert_eq!((settings.min_regions, settings.max_regions), (250, 1000));
        assert_eq!(settings.operations, Operations::Physical);

        let lazy = Wish {
            accesses_per_s: 0,
            sampling_us: u32::MAX,
            aggregation_us: u32::MAX,
            max_regions: 0,
        };
        let settings = super::settings(&setup(), &lazy);
        assert_eq!(settings.sampling, LONGEST_AGGREGATION / 5);
        assert_eq!((settings.min_regions, settings.max_regions), (3, 10));
    }

    #[test]
    fn taken_when_damon_reports_regions_keeps_the_idle_ones_too() {
        let sample = |start, len, weight| AccessSample {
            address: SampleAddress::Host(Hva(start)),
            len,
            weight,
            kind: AccessKind::Any,
        };
        let batch = SampleBatch {
            source: SourceKind::Damon,
            end: Time(77),
            span: Duration::from_millis(400),
            tests: 20,
            period: 1,
            settled: true,
            map_generation: 0,
            samples: vec![
                sample(0x10_0000, 0x2000, 20.0),
                sample(0x10_2000, 0x5000, 0.0),
            ],
            account: SampleAccount::default(),
        };
        let (taken, left_out) = taken(&batch);
        assert_eq!((left_out, taken.clock_ns), (0, 77));
        let batch = taken.observed.finish(0, 0, Drops::default());
        let region = |start, len, used| Region {
            start: Gpa(start),
            len,
            used,
        };
        let regions = vec![region(0x10_0000, 0x2000, 20), region(0x10_2000, 0x5000, 0)];
        assert_eq!(batch.observed, Observed::Regions { tests: 20, regions });
    }
}
