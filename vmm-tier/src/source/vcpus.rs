//! The source of a guest's CPUs: perf records of what they access, at a period that it finds itself. All
//! but the decoding of a sample.

mod feed;
mod gathered;
#[cfg(test)]
pub(super) mod synthetic;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tier_core::{
    addr::Hva,
    map::GuestMemoryMap,
    sample::{AccessSample, DropReason, SampleBatch, Sight, SourceKind},
    sampling_period::PeriodLook,
    time::Time,
};
use tier_sys::{perf::record::Sample, process, wait::Wait};

pub(super) use self::{feed::Feed, gathered::Gathered};
use super::{Polled, Setup, Source};

/// What the records of a kind of event mean.
pub(super) trait Decode: Send {
    fn kind(&self) -> SourceKind;

    fn sight(&self) -> Sight;

    /// One line for operators, with the period and the threads of `feed`.
    fn label(&self, feed: &Feed) -> String;

    /// The access in a sample of the event with this index, or why there is none.
    fn decode(&mut self, event: usize, sample: &Sample<'_>) -> Result<AccessSample, DropReason>;

    /// Samples are decoded under this map from now on.
    fn set_map(&mut self, map: &GuestMemoryMap) -> anyhow::Result<()> {
        let _ = map;
        Ok(())
    }

    /// These pages (host-virtual start, bytes) have other physical addresses now.
    fn moved(&mut self, pages: &[(Hva, u64)]) {
        let _ = pages;
    }

    /// The guest is at rest, or no longer.
    fn set_at_rest(&mut self, at_rest: bool) {
        let _ = at_rest;
    }

    /// Keeps up what decoding rests on, `wall` after the last call. Returns the CPU time it took: that
    /// has a budget of its own, and no period would make it less.
    fn keep_up(&mut self, wall: Duration) -> anyhow::Result<Duration> {
        let _ = wall;
        Ok(Duration::ZERO)
    }
}

/// While the guest is at rest, what was gathered is handed on after so long: each batch wakes the agent.
const REST_BATCH: Duration = Duration::from_millis(500);

/// See the [module](self).
pub(super) struct VcpuSource<D> {
    pid: u32,
    quiet: bool,
    quiet_factor: u32,
    feed: Feed,
    decode: D,
    gathered: Gathered,
    map_generation: u64,
    /// When the last batch ended.
    since: Time,
    clock: Clock,
}

impl<D: Decode> VcpuSource<D> {
    /// Decodes by `decode` what comes out of `feed`.
    pub(super) fn new(setup: &Setup, map: &GuestMemoryMap, decode: D, feed: Feed) -> Self {
        Self {
            pid: setup.pid,
            quiet: false,
            quiet_factor: setup.quiet_factor,
            feed,
            decode,
            gathered: Gathered::default(),
            map_generation: map.generation(),
            since: process::now(),
            clock: Clock::start(),
        }
    }

    /// Takes what stands in the rings.
    fn collect(&mut self) {
        let (decode, gathered) = (&mut self.decode, &mut self.gathered);
        let period = self.feed.period();
        let collected = self.feed.collect(|event, sample| {
            let period = sample.period().unwrap_or(period);
            gathered.take(period, decode.decode(event, &sample));
        });
        gathered.count(collected);
    }

    /// Chooses the period for what happened.
    fn govern(&mut self, look: &PeriodLook) {
        let Some(period) = self.feed.next_period(look) else {
            return;
        };
        // What stands in the rings came with the old period.
        self.collect();
        let (pid, kind) = (self.pid, self.decode.kind());
        tracing::debug!(pid, period, "period of {kind}");
        if let Err(error) = self.feed.set_period(period) {
            // It goes on with the period that it has.
            tracing::warn!(pid, "the period of {kind} stays: {error}");
        }
    }

    /// How long it is until the next batch may be handed on.
    fn batch_is_due_in(&self) -> Duration {
        let since = process::now().since(self.since);
        match REST_BATCH.checked_sub(since) {
            Some(left) if self.quiet => left,
            // Nothing came in all that time.
            _ => REST_BATCH,
        }
    }

    /// What was gathered since the last batch, if anything and if it is time.
    fn batch(&mut self) -> Option<SampleBatch> {
        let end = process::now();
        if self.quiet && end.since(self.since) < REST_BATCH {
            return None;
        }
        let gathered = self.gathered.batch()?;
        let since = std::mem::replace(&mut self.since, end);
        Some(SampleBatch {
            source: self.decode.kind(),
            end,
            span: end.since(since),
            tests: 0,
            period: gathered.period,
            settled: true,
            map_generation: self.map_generation,
            samples: gathered.samples,
            account: gathered.account,
        })
    }
}

impl<D: Decode> Source for VcpuSource<D> {
    fn kind(&self) -> SourceKind {
        self.decode.kind()
    }

    fn sight(&self) -> Sight {
        self.decode.sight()
    }

    fn label(&self) -> String {
        self.decode.label(&self.feed)
    }

    fn poll(&mut self, wait: Wait<'_>) -> anyhow::Result<Polled> {
        self.feed.wait(wait.at_most(self.batch_is_due_in()))?;
        self.collect();
        let (wall, cpu) = self.clock.lap();
        let look = self.gathered.look(wall, cpu);
        self.clock.cpu += self.decode.keep_up(wall)?;
        self.govern(&look);
        let ended = (self.feed.has_ended())
            .then(|| "the threads of the guest's CPUs are gone: QEMU has ended".to_owned());
        Ok(Polled {
            batches: self.batch().into_iter().collect(),
            ended,
            ..Polled::default()
        })
    }

    fn set_map(&mut self, map: &Arc<GuestMemoryMap>) -> anyhow::Result<()> {
        // What stands in the rings was recorded under the old map.
        let gathered = &mut self.gathered;
        let collected = (self.feed).collect(|_, _| gathered.take(1, Err(DropReason::StaleMap)));
        gathered.count(collected);
        gathered.discard_samples();
        self.decode.set_map(map)?;
        self.map_generation = map.generation();
        Ok(())
    }

    fn set_quiet(&mut self, quiet: bool) -> anyhow::Result<()> {
        self.quiet = quiet;
        let ease = if quiet { self.quiet_factor } else { 1 };
        self.feed.set_ease(ease);
        self.decode.set_at_rest(quiet);
        Ok(())
    }

    fn set_vcpus(&mut self, tids: &[u32]) -> anyhow::Result<()> {
        self.feed.follow(tids)
    }

    fn moved(&mut self, pages: &[(Hva, u64)]) {
        // What was recorded until now lies where the pages were; others may be there now.
        self.collect();
        self.decode.moved(pages);
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        Ok(())
    }
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

/// Whether an address is in the upper half, which is the kernel's and never QEMU's.
pub(super) const fn is_kernel_address(address: u64) -> bool {
    address >> 63 != 0
}

#[cfg(test)]
mod tests;
