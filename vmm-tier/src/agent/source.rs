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
    Receiver, RecvError, RecvTimeoutError, SendError, Sender, TryRecvError, TrySendError, bounded,
    never, unbounded,
};
use tier_core::{
    addr::{HUGE_PAGE, Hva},
    map::GuestMemoryMap,
    pace::{Pace, PaceKeeper},
    sample::{DropReason, SampleAccount, SampleBatch},
};
use tier_sys::{
    damon::{DamonSettings, source::DamonSource},
    sysroot::SysRoot,
};

/// Batches that may wait for the agent.
const QUEUE: usize = 16;
/// Looks at a region never come closer: DAMON's thread can hardly sleep for less.
const LEAST_SAMPLING: Duration = Duration::from_millis(1);
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
    /// How DAMON samples while pages are to be found.
    pub(super) damon: DamonSettings,
    /// How many times less often it samples while the guest is at rest.
    pub(super) quiet_factor: u32,
}

impl SourceSetup {
    fn pace(&self) -> PaceKeeper {
        let DamonSettings {
            sampling,
            aggregation,
            max_regions,
            ..
        } = self.damon;
        PaceKeeper::new(
            Pace {
                sampling,
                aggregation,
                max_regions,
                turns: None,
            },
            LEAST_SAMPLING,
            self.quiet_factor,
        )
    }
}

/// What the thread is told.
#[derive(Debug)]
enum Order {
    Map(Arc<GuestMemoryMap>),
    Quiet(bool),
}

/// Why watching ended.
#[derive(Debug)]
enum End {
    /// The agent ends.
    Told,
    /// The guest is at rest, and its turn is over.
    Turn,
}

/// The thread and its channels. Dropping it removes the source from the kernel.
#[derive(Debug)]
pub(super) struct SourceThread {
    orders: Option<Sender<Order>>,
    reports: Receiver<Report>,
    thread: Option<JoinHandle<()>>,
}

impl SourceThread {
    /// Starts the thread, which watches the ranges of `map`.
    pub(super) fn start(setup: SourceSetup, map: Arc<GuestMemoryMap>) -> std::io::Result<Self> {
        let (sender, orders) = unbounded();
        let (out, reports) = bounded(QUEUE);
        let thread = std::thread::Builder::new()
            .name("source".to_owned())
            .spawn(move || {
                Sampler {
                    pace: setup.pace(),
                    setup,
                    map,
                    orders,
                    out,
                    unsent: SampleAccount::default(),
                    up: false,
                }
                .run();
            })?;
        Ok(Self {
            orders: Some(sender),
            reports,
            thread: Some(thread),
        })
    }

    /// Watches the ranges of `map` from now on.
    pub(super) fn set_map(&self, map: Arc<GuestMemoryMap>) {
        self.order(Order::Map(map));
    }

    /// Samples less often while nothing is to be done, or as often as set.
    pub(super) fn set_quiet(&self, quiet: bool) {
        self.order(Order::Quiet(quiet));
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // The thread ends only after this sender is gone.
            let _ = orders.send(order);
        }
    }

    /// Where samples and changes of state arrive.
    pub(super) const fn reports(&self) -> &Receiver<Report> {
        &self.reports
    }
}

impl Drop for SourceThread {
    fn drop(&mut self) {
        self.orders = None;
        // A report that finds the channel full must not keep the thread from ending.
        self.reports = never();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Sampler {
    setup: SourceSetup,
    map: Arc<GuestMemoryMap>,
    pace: PaceKeeper,
    orders: Receiver<Order>,
    out: Sender<Report>,
    /// Accounts of batches that found the channel full; sent with the next batch.
    unsent: SampleAccount,
    /// Whether the agent was told that samples flow.
    up: bool,
}

impl Sampler {
    fn run(mut self) {
        let mut pause = RETRY.0;
        loop {
            let started = Instant::now();
            match self.watch() {
                Ok(End::Told) => return,
                Ok(End::Turn) => match self.rest() {
                    Ok(()) => continue,
                    Err(RecvError) => return,
                },
                Err(reason) => {
                    self.up = false;
                    if let Err(SendError(report)) = self.out.send(Report::Down(reason)) {
                        // Nobody waits any more: the agent ends, and something may stay behind.
                        tracing::warn!("sampling did not end cleanly: {report:?}");
                        return;
                    }
                }
            }
            if started.elapsed() > RETRY.1 {
                pause = RETRY.0;
            }
            match self.orders.recv_timeout(pause) {
                Ok(order) => self.take(order),
                Err(RecvTimeoutError::Timeout) => pause = (pause * 2).min(RETRY.1),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Waits until the guest's next turn, or until it is no longer at rest.
    fn rest(&mut self) -> Result<(), RecvError> {
        let began = Instant::now();
        while let Some(turns) = self.pace.pace().turns {
            let left = turns.rest.saturating_sub(began.elapsed());
            match self.orders.recv_timeout(left) {
                Ok(order) => self.take(order),
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(RecvError),
            }
        }
        Ok(())
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Map(map) => self.map = map,
            Order::Quiet(quiet) => self.pace.set_quiet(quiet),
        }
    }

    /// DAMON's settings for now.
    fn damon(&self) -> DamonSettings {
        let Pace {
            sampling,
            aggregation,
            max_regions,
            ..
        } = self.pace.pace();
        // DAMON joins neighbours whose counts are nearly equal: where pages saturate, hot and warm ones.
        let huge_pages = self.map.total_bytes().div_ceil(HUGE_PAGE);
        let fits = huge_pages <= max_regions;
        let apart = if fits { huge_pages } else { 0 };
        DamonSettings {
            sampling,
            aggregation,
            min_regions: (max_regions / 4).max(apart).max(3),
            max_regions,
            by_huge_page: fits && self.pace.is_quickened(),
            ..self.setup.damon
        }
    }

    /// Samples until told to end, until the guest's turn is over, or until the source fails.
    fn watch(&mut self) -> Result<End, String> {
        let SourceSetup {
            root, run_dir, pid, ..
        } = self.setup.clone();
        let generation = self.map.generation();
        let mut source = DamonSource::start(
            &root,
            &run_dir,
            pid,
            &ranges(&self.map),
            self.damon(),
            generation,
        )
        .map_err(|e| with_causes(&e))?;
        if !std::mem::replace(&mut self.up, true) && self.out.send(Report::Up).is_err() {
            return Ok(End::Told);
        }
        let mut began = Instant::now();
        let end = loop {
            match self.orders.try_recv() {
                Ok(order) => {
                    let done = match &order {
                        Order::Map(map) => source.update_ranges(&ranges(map), map.generation()),
                        Order::Quiet(_) => Ok(()),
                    };
                    self.take(order);
                    done.and_then(|()| source.set_intervals(&self.damon()))
                        .map_err(|e| with_causes(&e))?;
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => break End::Told,
            }
            match self.pace.pace().turns {
                Some(turns) if began.elapsed() >= turns.watch => break End::Turn,
                Some(_) => {}
                None => began = Instant::now(),
            }
            let poll = source.poll(POLL).map_err(|e| with_causes(&e))?;
            let mut changed = None;
            for mut batch in poll.batches {
                batch.settled = self.pace.is_settled(&batch);
                changed = self.pace.observe(&batch).or(changed);
                self.deliver(batch);
            }
            if let Some(pace) = changed {
                tracing::debug!(pid, sampling = ?pace.sampling, regions = pace.max_regions, "pace");
                source
                    .set_intervals(&self.damon())
                    .map_err(|e| with_causes(&e))?;
            }
            if poll.ended {
                return Err(
                    "DAMON stopped watching: QEMU ended, or someone turned the kdamond off"
                        .to_owned(),
                );
            }
        };
        source.stop().map_err(|e| with_causes(&e))?;
        Ok(end)
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
