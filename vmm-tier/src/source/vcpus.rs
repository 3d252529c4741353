//! Sources that are perf events on the threads of the guest's CPUs: all but the decoding of a sample.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use tier_core::{
    map::GuestMemoryMap,
    sample::{AccessSample, DropReason, SampleBatch, Sight, SourceKind},
    time::Time,
};
use tier_sys::{
    perf::{
        record::Sample,
        threads::{ThreadEvent, ThreadEvents},
    },
    process,
};

use super::{
    Polled, Setup, Source,
    records::{Collector, Origin},
};

/// The longest time without a batch: the agent reads from its absence that a source is blind.
const LONGEST_SPAN: Duration = Duration::from_millis(100);

/// What a kind of event means.
pub(super) trait Decode: Send {
    fn kind(&self) -> SourceKind;
    fn sight(&self) -> Sight;
    fn label(&self) -> String;
    /// The sample in a record of the event with this index, or why there is none.
    fn decode(&self, event: usize, sample: &Sample<'_>) -> Result<AccessSample, DropReason>;
}

/// A source that reads the same events on each thread.
pub(super) struct VcpuSource<D> {
    threads: ThreadEvents,
    decode: D,
    collector: Collector,
    origin: Origin,
    since: Time,
    /// Batches made before their time, because something changed.
    waiting: Vec<SampleBatch>,
}

impl<D: Decode> VcpuSource<D> {
    /// Opens `events`, each of which samples one in `period`, on the threads of `setup`.
    pub(super) fn open(
        setup: &Setup,
        map: &GuestMemoryMap,
        decode: D,
        events: Vec<ThreadEvent>,
        period: u64,
    ) -> anyhow::Result<Self> {
        let mut threads = ThreadEvents::new(&setup.root, events);
        let watched = threads.follow(&setup.vcpus)?;
        anyhow::ensure!(
            watched > 0,
            "none of the vCPU threads of process {} is there to be watched: QEMU has ended, or did not \
             tell its threads",
            setup.pid
        );
        Ok(Self {
            threads,
            origin: Origin {
                source: decode.kind(),
                period,
                map_generation: map.generation(),
            },
            decode,
            collector: Collector::default(),
            since: process::now(),
            waiting: Vec::new(),
        })
    }

    fn drain(&mut self) {
        let (decode, collector) = (&self.decode, &mut self.collector);
        let drained = self.threads.drain(|event, record| {
            collector.take(record, |sample| decode.decode(event, sample));
        });
        collector.drained(drained);
    }

    /// Makes a batch of what has come so far.
    fn close(&mut self) {
        let now = process::now();
        let span = Duration::from_nanos(now.0.saturating_sub(self.since.0));
        if !self.collector.is_empty() || span >= LONGEST_SPAN {
            let batch = self.collector.batch(self.origin, now, span);
            self.waiting.push(batch);
            self.since = now;
        }
    }

    /// Every event samples one in `period` from now on.
    pub(super) fn set_period(&mut self, period: u64) -> anyhow::Result<()> {
        if period == self.origin.period {
            return Ok(());
        }
        // What came so far came with the old period.
        self.drain();
        self.close();
        for index in 0..self.threads.events() {
            self.threads.set_period(index, period)?;
        }
        self.origin.period = period;
        Ok(())
    }

    pub(super) const fn period(&self) -> u64 {
        self.origin.period
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
        self.decode.label()
    }

    fn poll(&mut self, timeout: Duration) -> anyhow::Result<Polled> {
        self.threads
            .wait(timeout)
            .context("the rings of the vCPU threads can't be waited for")?;
        self.drain();
        self.close();
        let ended = (self.threads.watched() == 0)
            .then(|| "the threads of the guest's CPUs are gone: QEMU has ended".to_owned());
        Ok(Polled {
            batches: std::mem::take(&mut self.waiting),
            ended,
        })
    }

    fn set_map(&mut self, map: &Arc<GuestMemoryMap>) -> anyhow::Result<()> {
        // What came so far was seen under the old map.
        self.drain();
        self.close();
        self.origin.map_generation = map.generation();
        Ok(())
    }

    fn set_vcpus(&mut self, tids: &[u32]) -> anyhow::Result<()> {
        self.threads.follow(tids)?;
        Ok(())
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Whether an address is in the upper half, which is the kernel's and never QEMU's.
pub(super) const fn is_kernel_address(address: u64) -> bool {
    address >> 63 != 0
}

#[cfg(test)]
mod tests;
