//! A source's thread: it opens the source, takes what it delivers and hands that to the agent.
//!
//! The channel is bounded and never waited on for samples: when the agent falls behind, whole batches are
//! dropped and counted. When the source can't be opened or ends, the thread says why, waits, and tries
//! again. While it rests it has nothing open.

use std::{
    collections::VecDeque,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam::channel::{
    Receiver, RecvTimeoutError, SendTimeoutError, Sender, TryRecvError, TrySendError, unbounded,
};
use tier_core::{
    addr::Hva,
    map::GuestMemoryMap,
    sample::{DropReason, SampleAccount, SampleBatch, Sight, SourceKind},
};
use tier_sys::wait::{Bell, Wait};

use super::{Opener, Setup, Source};

/// Batches and news that may wait for the agent.
pub(crate) const QUEUE: usize = 16;
/// How long the thread waits for samples, unless orders come before.
const POLL: Duration = Duration::from_millis(100);
/// The same while the guest is at rest: each look wakes a CPU.
const REST_POLL: Duration = Duration::from_secs(1);
/// How often a source is asked for its label again.
const LABEL_EVERY: Duration = Duration::from_secs(2);
/// How long it waits after a failure; doubled each time up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// What a source's thread tells the agent.
#[derive(Debug)]
pub(crate) enum Report {
    /// The source was opened.
    Up {
        /// What it sees.
        sight: Sight,
        /// What it is, for people.
        label: String,
    },
    /// What it is has changed, for people.
    Label(String),
    /// Samples.
    Batch(SampleBatch),
    /// What was found page by page in a small part of the guest.
    Grid(SampleBatch),
    /// The source can't be opened or ended, and why.
    Down(String),
    /// The thread ended by itself, which it never should.
    Lost,
}

/// Orders to the thread.
enum SourceOrder {
    Map(Arc<GuestMemoryMap>),
    Quiet(bool),
    Vcpus(Vec<u32>),
    Moved(Vec<(Hva, u64)>),
    Work(bool),
}

/// The thread. Dropping it closes the source.
#[derive(Debug)]
pub(crate) struct SourceThread {
    orders: Option<Sender<SourceOrder>>,
    /// Rings when there are orders, or none will come any more.
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

impl SourceThread {
    /// Starts the thread, which watches the ranges of `map` and reports to `out`.
    pub(crate) fn start(
        kind: SourceKind,
        open: Opener,
        setup: Setup,
        map: Arc<GuestMemoryMap>,
        out: Sender<(SourceKind, Report)>,
    ) -> std::io::Result<Self> {
        let (sender, orders) = unbounded();
        let bell = Arc::new(Bell::new()?);
        let heard = Arc::clone(&bell);
        let thread = std::thread::Builder::new()
            .name(format!("src-{kind}"))
            .spawn(move || {
                let farewell = Farewell(kind, out.clone());
                Sampler {
                    kind,
                    open,
                    setup,
                    map,
                    quiet: false,
                    work: true,
                    orders,
                    early: VecDeque::new(),
                    bell: heard,
                    out,
                    unsent: SampleAccount::default(),
                }
                .run();
                std::mem::forget(farewell);
            })?;
        Ok(Self {
            orders: Some(sender),
            bell,
            thread: Some(thread),
        })
    }

    /// Watches the ranges of `map` from now on.
    pub(crate) fn set_map(&self, map: Arc<GuestMemoryMap>) {
        self.order(SourceOrder::Map(map));
    }

    /// Samples less often while nothing is to be done, or as often as set.
    pub(crate) fn set_quiet(&self, quiet: bool) {
        self.order(SourceOrder::Quiet(quiet));
    }

    /// The guest's CPUs run in these threads now.
    pub(crate) fn set_vcpus(&self, tids: Vec<u32>) {
        self.order(SourceOrder::Vcpus(tids));
    }

    /// These pages were moved: host-virtual start and bytes.
    pub(crate) fn moved(&self, pages: Vec<(Hva, u64)>) {
        self.order(SourceOrder::Moved(pages));
    }

    /// Opens the source, or closes it.
    pub(crate) fn set_work(&self, work: bool) {
        self.order(SourceOrder::Work(work));
    }

    fn order(&self, order: SourceOrder) {
        if let Some(orders) = &self.orders {
            // Sending fails only when the thread is lost, which is reported.
            let _ = orders.send(order);
            self.bell.ring();
        }
    }
}

impl Drop for SourceThread {
    fn drop(&mut self) {
        self.orders = None;
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Tells that the thread panicked.
struct Farewell(SourceKind, Sender<(SourceKind, Report)>);

impl Drop for Farewell {
    fn drop(&mut self) {
        let _ = self.1.send_timeout((self.0, Report::Lost), RETRY.0);
    }
}

/// Why watching ended.
enum End {
    /// The agent ends.
    Told,
    /// Other sources serve better.
    Rest,
}

struct Sampler {
    kind: SourceKind,
    open: Opener,
    setup: Setup,
    map: Arc<GuestMemoryMap>,
    quiet: bool,
    work: bool,
    orders: Receiver<SourceOrder>,
    /// Orders that came while the agent had no room for news.
    early: VecDeque<SourceOrder>,
    bell: Arc<Bell>,
    out: Sender<(SourceKind, Report)>,
    /// Accounts of batches that found the channel full; sent with the next batch.
    unsent: SampleAccount,
}

impl Sampler {
    fn run(mut self) {
        let mut pause = RETRY.0;
        loop {
            for order in std::mem::take(&mut self.early) {
                self.note(&order);
            }
            while !self.work {
                match self.orders.recv() {
                    Ok(order) => self.note(&order),
                    Err(_) => return,
                }
            }
            let started = Instant::now();
            match self.watch() {
                Ok(End::Told) => return,
                Ok(End::Rest) => continue,
                Err(error) => {
                    if !self.tell(Report::Down(format!("{error:#}"))) {
                        return;
                    }
                }
            }
            if started.elapsed() > RETRY.1 {
                pause = RETRY.0;
            }
            match self.orders.recv_timeout(pause) {
                Ok(order) => self.note(&order),
                Err(RecvTimeoutError::Timeout) => pause = (pause * 2).min(RETRY.1),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Keeps what a source that is opened later must know.
    fn note(&mut self, order: &SourceOrder) {
        match order {
            SourceOrder::Map(map) => self.map = Arc::clone(map),
            SourceOrder::Quiet(quiet) => self.quiet = *quiet,
            SourceOrder::Vcpus(tids) => self.setup.vcpus.clone_from(tids),
            SourceOrder::Work(work) => self.work = *work,
            SourceOrder::Moved(_) => {}
        }
    }

    fn watch(&mut self) -> anyhow::Result<End> {
        let mut source = (self.open)(&self.setup, &self.map)?;
        let served = self.serve(&mut *source);
        let stopped = source.stop();
        match (served, stopped) {
            (Ok(end), Ok(())) => Ok(end),
            (Ok(End::Told), Err(error)) => {
                let kind = self.kind;
                tracing::warn!("{kind}: sampling did not end cleanly: {error:#}");
                Ok(End::Told)
            }
            (Ok(End::Rest), Err(error)) | (Err(error), _) => Err(error),
        }
    }

    /// Takes what the source delivers until an order ends it or lets it rest, or the source fails.
    fn serve(&mut self, source: &mut dyn Source) -> anyhow::Result<End> {
        debug_assert_eq!(source.kind(), self.kind);
        source.set_quiet(self.quiet)?;
        let (sight, mut shown) = (source.sight(), source.label());
        let label = shown.clone();
        if !self.tell(Report::Up { sight, label }) {
            return Ok(End::Told);
        }
        let mut labelled = Instant::now();
        loop {
            // Before the look for orders: it rings for those that come after the look.
            self.bell.silence();
            let order = self.early.pop_front().map(Ok);
            match order.unwrap_or_else(|| self.orders.try_recv()) {
                Ok(order) => {
                    self.note(&order);
                    match order {
                        SourceOrder::Map(map) => source.set_map(&map)?,
                        SourceOrder::Quiet(quiet) => source.set_quiet(quiet)?,
                        SourceOrder::Vcpus(tids) => source.set_vcpus(&tids)?,
                        SourceOrder::Moved(pages) => source.moved(&pages),
                        SourceOrder::Work(true) => {}
                        SourceOrder::Work(false) => return Ok(End::Rest),
                    }
                    continue;
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Ok(End::Told),
            }
            let polled = source.poll(Wait {
                timeout: if self.quiet { REST_POLL } else { POLL },
                bell: Some(&self.bell),
            })?;
            for batch in polled.batches {
                self.deliver(batch, Report::Batch);
            }
            if let Some(grid) = polled.grid {
                self.deliver(grid, Report::Grid);
            }
            if let Some(why) = polled.ended {
                anyhow::bail!(why);
            }
            if labelled.elapsed() >= LABEL_EVERY {
                labelled = Instant::now();
                let label = source.label();
                if label != shown {
                    // With a full channel it is reported later, if it is still true.
                    let report = (self.kind, Report::Label(label.clone()));
                    if self.out.try_send(report).is_ok() {
                        shown = label;
                    }
                }
            }
        }
    }

    fn deliver(&mut self, mut batch: SampleBatch, report: fn(SampleBatch) -> Report) {
        batch.account.add(&std::mem::take(&mut self.unsent));
        let report = (self.kind, report(batch));
        if let Err(TrySendError::Full((_, Report::Batch(batch) | Report::Grid(batch)))) =
            self.out.try_send(report)
        {
            self.unsent = batch.account;
            self.unsent
                .drop_records(DropReason::QueueFull, batch.samples.len() as u64);
        }
    }

    /// Waits until the agent has room for the news; whether it still wants any.
    fn tell(&mut self, report: Report) -> bool {
        let mut news = (self.kind, report);
        loop {
            match self.out.send_timeout(news, POLL) {
                Ok(()) => return true,
                Err(SendTimeoutError::Disconnected(_)) => return false,
                Err(SendTimeoutError::Timeout(back)) => news = back,
            }
            // The agent may be waiting for this thread to end.
            match self.orders.try_recv() {
                Ok(order) => self.early.push_back(order),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::bounded;
    use tier_core::sample::SourceKind;
    use tier_sys::{damon::DamonSettings, sysroot::SysRoot};

    use super::*;
    use crate::source::Polled;

    /// A source that never delivers, and waits until it is woken.
    struct Waiting {
        quiet: Sender<bool>,
    }

    impl Source for Waiting {
        fn kind(&self) -> SourceKind {
            SourceKind::Ibs
        }

        fn sight(&self) -> Sight {
            Sight::Guest
        }

        fn label(&self) -> String {
            String::new()
        }

        fn poll(&mut self, wait: Wait<'_>) -> anyhow::Result<Polled> {
            let timeout = Duration::from_secs(600);
            Wait { timeout, ..wait }.pass()?;
            Ok(Polled::default())
        }

        fn set_map(&mut self, _: &Arc<GuestMemoryMap>) -> anyhow::Result<()> {
            Ok(())
        }

        fn set_quiet(&mut self, quiet: bool) -> anyhow::Result<()> {
            Ok(self.quiet.send(quiet)?)
        }

        fn stop(self: Box<Self>) -> anyhow::Result<()> {
            Ok(())
        }
    }

    fn setup() -> Setup {
        Setup {
            root: SysRoot::real(),
            run_dir: std::env::temp_dir(),
            pid: std::process::id(),
            vcpus: Vec::new(),
            is_kvm: false,
            damon: DamonSettings::default(),
            quiet_factor: 10,
            cpu_budget: 0.01,
        }
    }

    #[test]
    fn thread_when_its_source_waits_is_woken_by_orders_and_by_the_end() {
        let map = Arc::new(GuestMemoryMap::new(0, Vec::new(), Vec::new()).unwrap());
        let ((quiet, told), (out, reports)) = (unbounded(), unbounded());
        let open: Opener = Box::new(move |_, _| {
            let quiet = quiet.clone();
            Ok(Box::new(Waiting { quiet }))
        });
        let thread = SourceThread::start(SourceKind::Ibs, open, setup(), map, out).unwrap();
        assert!(matches!(reports.recv().unwrap().1, Report::Up { .. }));
        assert!(!told.recv().unwrap(), "at the start");

        thread.set_quiet(true);

        assert!(told.recv().unwrap());
        drop(thread);
        assert!(told.recv().is_err(), "it ended");
    }

    #[test]
    fn order_when_the_agent_has_no_room_for_news_reaches_the_source_later() {
        let map = Arc::new(GuestMemoryMap::new(0, Vec::new(), Vec::new()).unwrap());
        let ((quiet, told), (out, reports)) = (unbounded(), bounded(0));
        let open: Opener = Box::new(move |_, _| {
            let quiet = quiet.clone();
            Ok(Box::new(Waiting { quiet }))
        });
        let thread = SourceThread::start(SourceKind::Ibs, open, setup(), map, out).unwrap();
        assert!(!told.recv().unwrap(), "at the start");
        thread.set_quiet(true);
        // It takes orders while it waits for room.
        std::thread::sleep(3 * POLL);

        assert!(matches!(reports.recv().unwrap().1, Report::Up { .. }));

        assert!(told.recv_timeout(RETRY.1).unwrap());
    }
}
