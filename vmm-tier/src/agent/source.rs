//! The source thread: it takes samples from the kernel and hands them to the agent.
//!
//! The channel is bounded and never waited on: when the agent falls behind, whole batches are dropped
//! and counted. When a source can't be started or ends, the thread says why, waits, and tries again.

use std::{
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam::channel::{
    Receiver, RecvTimeoutError, Sender, TryRecvError, TrySendError, bounded, unbounded,
};
use tier_core::{
    addr::Hva,
    map::GuestMemoryMap,
    sample::{DropReason, SampleAccount, SampleBatch},
};
use tier_sys::{
    damon::{DamonSettings, source::DamonSource},
    sysroot::SysRoot,
};

/// Batches that may wait for the agent.
const QUEUE: usize = 16;
/// How long the thread waits for samples before it looks for orders.
const POLL: Duration = Duration::from_millis(100);
/// How long it waits after a failure; doubled each time up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// What the thread tells the agent.
#[derive(Debug)]
pub(super) enum Report {
    /// The source was started.
    Up,
    /// Samples.
    Batch(SampleBatch),
    /// The source can't be started or ended, and why.
    Down(String),
}

/// What the source is set up with.
#[derive(Clone, Debug)]
pub(super) struct SourceSetup {
    pub(super) root: SysRoot,
    pub(super) run_dir: PathBuf,
    pub(super) pid: u32,
    pub(super) damon: DamonSettings,
}

/// The thread and its channels. Dropping it removes the source from the kernel.
#[derive(Debug)]
pub(super) struct SourceThread {
    maps: Option<Sender<Arc<GuestMemoryMap>>>,
    reports: Receiver<Report>,
    thread: Option<JoinHandle<()>>,
}

impl SourceThread {
    /// Starts the thread; the source starts with the first map.
    pub(super) fn start(setup: SourceSetup) -> std::io::Result<Self> {
        let (maps, orders) = unbounded();
        let (out, reports) = bounded(QUEUE);
        let thread = std::thread::Builder::new()
            .name("source".to_owned())
            .spawn(move || {
                Sampler {
                    setup,
                    orders,
                    out,
                    unsent: SampleAccount::default(),
                }
                .run()
            })?;
        Ok(Self {
            maps: Some(maps),
            reports,
            thread: Some(thread),
        })
    }

    /// Watches the ranges of `map` from now on.
    pub(super) fn set_map(&self, map: Arc<GuestMemoryMap>) {
        if let Some(maps) = &self.maps {
            // The thread ends only after this sender is gone.
            let _ = maps.send(map);
        }
    }

    /// Where samples and changes of state arrive.
    pub(super) const fn reports(&self) -> &Receiver<Report> {
        &self.reports
    }
}

impl Drop for SourceThread {
    fn drop(&mut self) {
        self.maps = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Sampler {
    setup: SourceSetup,
    orders: Receiver<Arc<GuestMemoryMap>>,
    out: Sender<Report>,
    /// Accounts of batches that found the channel full; sent with the next batch.
    unsent: SampleAccount,
}

impl Sampler {
    fn run(mut self) {
        let Ok(mut map) = self.orders.recv() else {
            return;
        };
        let mut pause = RETRY.0;
        loop {
            let started = Instant::now();
            match self.watch(&mut map) {
                Ok(()) => return,
                Err(reason) => {
                    if self.out.send(Report::Down(reason)).is_err() {
                        return;
                    }
                }
            }
            if started.elapsed() > RETRY.1 {
                pause = RETRY.0;
            }
            match self.orders.recv_timeout(pause) {
                Ok(newer) => map = newer,
                Err(RecvTimeoutError::Timeout) => pause = (pause * 2).min(RETRY.1),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Samples until told to end (`Ok`) or until the source fails.
    fn watch(&mut self, map: &mut Arc<GuestMemoryMap>) -> Result<(), String> {
        let SourceSetup {
            root,
            run_dir,
            pid,
            damon,
        } = &self.setup;
        let mut source =
            DamonSource::start(root, run_dir, *pid, &ranges(map), *damon, map.generation())
                .map_err(|e| with_causes(&e))?;
        if self.out.send(Report::Up).is_err() {
            return Ok(());
        }
        loop {
            match self.orders.try_recv() {
                Ok(newer) => {
                    *map = newer;
                    source
                        .update_ranges(&ranges(map), map.generation())
                        .map_err(|e| with_causes(&e))?;
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => {
                    return source.stop().map_err(|e| with_causes(&e));
                }
            }
            let poll = source.poll(POLL).map_err(|e| with_causes(&e))?;
            for batch in poll.batches {
                self.deliver(batch);
            }
            if poll.ended {
                return Err(
                    "DAMON stopped watching: QEMU ended, or someone turned the kdamond off"
                        .to_owned(),
                );
            }
        }
    }

    fn deliver(&mut self, mut batch: SampleBatch) {
        batch.account.add(&std::mem::take(&mut self.unsent));
        if let Err(TrySendError::Full(Report::Batch(batch))) =
            self.out.try_send(Report::Batch(batch))
        {
            self.unsent = batch.account;
            self.unsent
                .drop_records(DropReason::QueueFull, batch.samples.len() as u64);
        }
    }
}

fn ranges(map: &GuestMemoryMap) -> Vec<(Hva, u64)> {
    map.unique_hva_ranges()
        .iter()
        .map(|range| (range.start, range.len))
        .collect()
}

/// An error with its causes, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
