//! The agent: one VM's state, owned by one thread, which waits on everything that may happen.
//!
//! ```text
//!  QMP events ─┐
//!  answers ────┤            ┌─► asker (questions to QEMU)
//!  samples ────┤            ├─► worker (look-ups, moves)
//!  reports ────┼─► Agent ───┤
//!  commands ───┤ (VmEngine) ├─► sources (ranges to watch)
//!  signals ────┤            └─► replies
//!  ticks ──────┘
//! ```
//!
//! The agent's thread never waits for QEMU, and reads nothing of `/proc` whose length hangs on the
//! guest: that is for the [asker](monitor) and the [worker].

mod control;
mod discovery_pace;
mod events;
mod idle;
mod lifecycle;
mod log_once;
mod monitor;
mod reports;
mod scans;
mod signals;
mod sources;
mod start;
mod state_file;
mod tap;
mod worker;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use crossbeam::{
    channel::{Receiver, never},
    select,
};
use tier_core::{
    engine::{self, Action, Event, NodeMemory, Refusal, VmEngine, VmState},
    map::GuestMemoryMap,
    sample::SourceKind,
    settings::EngineSettings,
    time::Time,
};
use tier_sys::{
    process::{self, ProcessHandle},
    sysroot::SysRoot,
    zoneinfo,
};

pub(crate) use control::QUERY_TIER;
pub(crate) use start::{record, run};
pub(crate) use tap::Tap;

use self::{
    control::{Control, Request},
    discovery_pace::DiscoveryPace,
    events::EventPublisher,
    idle::Idle,
    lifecycle::Migration,
    log_once::LogOnce,
    monitor::{Answer, Asker, Monitor},
    scans::Scans,
    sources::Sources,
    state_file::{Overrides, StateFile},
    worker::{Done, Job, Worker},
};
use crate::{causes::with_causes, source::thread::Report};

/// How often the agent looks around when nothing happens.
const TICK: Duration = Duration::from_millis(100);
/// The same while nothing can be moved: what ends that (a command, an event of QEMU, a sample) is a
/// message.
const REST_TICK: Duration = Duration::from_secs(1);
/// How often the nodes' free memory is read while nothing moves.
const NODES_CHECK: Duration = Duration::from_millis(500);

/// Why an agent without its asker can't go on.
const ASKER_ENDED: &str =
    "the thread that asks QEMU ended: start the agent again, and report what it printed";

/// What the agent waits for. `None` where the other end is gone.
enum News {
    Qemu(Option<qmp::Event>),
    Answer(Option<Answer>),
    Source(SourceKind, Report),
    Worker(Option<Done>),
    Control(Option<Request>),
    Proxy(Option<Request>),
    /// A signal says that the agent is to end.
    Told,
    /// Time passed.
    None,
}

/// See the [module](self).
struct Agent {
    name: String,
    root: SysRoot,
    pid: u32,
    process: ProcessHandle,
    started: Instant,
    engine: VmEngine,
    monitor: Option<Monitor>,
    asker: Asker,
    worker: Worker,
    scans: Scans,
    sources: Sources,
    source_trouble: BTreeMap<SourceKind, LogOnce>,
    blind: LogOnce,
    control: Option<Control>,
    /// QEMU's monitor for other clients, and where it is served. It comes and goes with the monitor.
    proxy: Option<Control>,
    proxy_path: Option<PathBuf>,
    proxy_trouble: LogOnce,
    /// Signals that tell the agent to end.
    told: Receiver<()>,
    /// When the agent last looked around.
    ticked: Option<Instant>,
    discovery: DiscoveryPace,
    /// When QEMU is asked whether the guest runs, if its events don't say.
    next_status_look: Option<Instant>,
    next_nodes_read: Instant,
    next_reconnect: Instant,
    refusal: LogOnce,
    look_up_trouble: LogOnce,
    map_trouble: LogOnce,
    idle: Idle,
    migration: Migration,
    publisher: EventPublisher,
    /// What the command line and the configuration say.
    base: EngineSettings,
    /// What commands have set above that, and where it is kept.
    overrides: Overrides,
    saved: StateFile,
    pin_trouble: LogOnce,
    tap: Option<Box<dyn Tap>>,
}

impl Agent {
    /// Runs until the guest ends or the agent is told to; either is a success.
    fn run(mut self) -> anyhow::Result<ExitCode> {
        loop {
            match self.wait_for_news(self.wait()) {
                News::Told => return self.end(End::Told),
                News::Qemu(Some(event)) => self.on_qemu_event(&event),
                News::Qemu(None) => self.on_monitor_lost(),
                News::Answer(Some(answer)) => self.on_answer(answer),
                News::Answer(None) => anyhow::bail!(ASKER_ENDED),
                News::Source(kind, report) => self.on_source(kind, report),
                News::Worker(Some(done)) => self.on_done(done),
                News::Worker(None) => anyhow::bail!(
                    "the thread that looks up and moves pages ended: start the agent again, and \
                     report what it printed"
                ),
                News::Control(Some(request)) | News::Proxy(Some(request)) => {
                    request.answer(|order| self.carry_out(order));
                }
                News::Control(None) => self.control = None,
                News::Proxy(None) => self.end_proxy(),
                News::None => self.on_idle(),
            }
            let now = Instant::now();
            if self.tick_is_due_in(now).is_zero() {
                self.ticked = Some(now);
                if let Some(end) = self.on_tick(now) {
                    return self.end(end);
                }
            }
        }
    }

    /// Waits until something happens. Holds no end of a channel afterwards: one that lived on while a
    /// socket or a thread is seen off would keep the others waiting.
    fn wait_for_news(&self, timeout: Duration) -> News {
        let (no_event, no_request) = (never(), never());
        let events = self.monitor.as_ref().map_or(&no_event, |m| &m.events);
        let asked = self.control.as_ref().map_or(&no_request, Control::requests);
        let asked_by_proxy = self.proxy.as_ref().map_or(&no_request, Control::requests);
        select! {
            recv(self.told) -> _ => News::Told,
            recv(events) -> event => News::Qemu(event.ok()),
            recv(self.asker.answers()) -> answer => News::Answer(answer.ok()),
            recv(self.sources.reports()) -> report => {
                report.map_or(News::None, |(kind, report)| News::Source(kind, report))
            }
            recv(self.worker.done()) -> done => News::Worker(done.ok()),
            recv(asked) -> asked => News::Control(asked.ok()),
            recv(asked_by_proxy) -> asked => News::Proxy(asked.ok()),
            default(timeout) => News::None,
        }
    }

    /// How long nothing needs to be done if nothing happens: until the next tick, or until moves that
    /// wait for their rate may go on.
    fn wait(&self) -> Duration {
        let wait = self.tick_is_due_in(Instant::now());
        let moves = self.engine.wakes_at().map(|at| at.since(Self::now()));
        moves.map_or(wait, |moves| wait.min(moves))
    }

    /// How long it is until the agent looks around.
    fn tick_is_due_in(&self, now: Instant) -> Duration {
        let Some(ticked) = self.ticked else {
            return Duration::ZERO;
        };
        let every = if self.rests() { REST_TICK } else { TICK };
        // QEMU tells of a migration only when it is asked.
        let asks_at = self.asks_of_migration_at();
        let at = (ticked + every).min(asks_at.unwrap_or(ticked + every));
        at.saturating_duration_since(now)
    }

    /// Whether nothing can be moved and nothing is heard: then the agent looks around less often, and
    /// looks no pages up. What lies where must be known once in any case.
    fn rests(&self) -> bool {
        let is_idle = matches!(
            self.engine.state(),
            VmState::Paused | VmState::GuestStopped | VmState::Blind
        );
        let guest_bytes = self.engine.map().map_or(0, GuestMemoryMap::total_bytes);
        is_idle && self.tap.is_none() && self.scans.has_seen(guest_bytes)
    }

    fn on_idle(&mut self) {
        if self.engine.wakes_at().is_some_and(|at| at <= Self::now()) {
            self.step(Event::Tick);
        }
    }

    fn guest_has_ended(&self) -> bool {
        // A descriptor that can't be polled says nothing of the guest.
        self.process.wait_for_exit(Duration::ZERO).unwrap_or(false)
    }

    fn now() -> Time {
        process::now()
    }

    fn step(&mut self, event: Event) {
        if let Event::Guest { stopped } = event {
            self.sources.set_runs(!stopped);
        }
        let before = self.engine.state();
        let actions = self.engine.step(Self::now(), event);
        self.go_on(before, actions);
    }

    /// Gives an order to the engine and does what it asks for.
    fn order(&mut self, order: engine::Order) -> Result<engine::Reply, Refusal> {
        let before = self.engine.state();
        let mut reply = self.engine.order(Self::now(), order)?;
        self.go_on(before, std::mem::take(&mut reply.actions));
        Ok(reply)
    }

    /// Does what the engine asks for, and tells what changed since its state was `before`.
    fn go_on(&mut self, before: VmState, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Scan(request) => self.scans.put_aside(request),
                Action::Move(batch) => self.worker.submit(Job::Move(batch)),
                Action::RefreshMap => self.discovery.want(),
            }
        }
        if !self.rests()
            && let Some(request) = self.scans.take()
        {
            self.worker.submit(Job::Scan(request));
        }
        let after = self.engine.state();
        if before != after {
            tracing::info!(vm = self.name, "state {before:?} -> {after:?}");
        }
        for notice in self.engine.take_notices() {
            let paused_by = self.paused_by();
            self.publisher.notice(notice, &paused_by);
        }
        self.publisher.dropped(self.engine.notices_dropped());
    }

    /// Returns why the agent ends, if it does.
    fn on_tick(&mut self, now: Instant) -> Option<End> {
        if self.guest_has_ended() {
            return Some(End::GuestGone);
        }
        self.look_at_qemu(now);
        if now >= self.next_nodes_read {
            self.read_nodes(now);
        }
        self.look_at_sources(now);
        self.step(Event::Tick);
        self.publisher
            .tell_failures(now, self.refusal.now.as_deref());
        if let Some(tap) = &mut self.tap {
            return tap.tick().then_some(End::Heard);
        }
        let at_work = self.engine.state() != VmState::Running;
        let quiet = self.idle.look(at_work, self.engine.moved_bytes(), now);
        if let Some(quiet) = quiet {
            tracing::debug!(vm = self.name, quiet, "sampling");
            self.sources.set_quiet(quiet);
        }
        None
    }

    fn read_nodes(&mut self, now: Instant) {
        self.next_nodes_read = now + NODES_CHECK;
        let tiers = self.engine.tiers();
        let nodes: Vec<_> = tiers.fast.iter().chain(tiers.slow.iter()).collect();
        let marks = match zoneinfo::read(&self.root) {
            Ok(marks) => marks,
            Err(error) => {
                tracing::debug!("free memory can't be read: {}", with_causes(&error));
                return;
            }
        };
        let memory = nodes.into_iter().filter_map(|node| {
            let marks = marks.get(&node)?;
            Some(NodeMemory {
                node,
                free_bytes: marks.free,
                cached_bytes: marks.cached,
                high_watermark_bytes: marks.high,
            })
        });
        let memory = memory.collect();
        self.step(Event::Nodes(memory));
    }

    /// Leaves nothing behind and says why it ends.
    fn end(mut self, end: End) -> anyhow::Result<ExitCode> {
        if end == End::GuestGone {
            self.saved.on_guest_gone();
        }
        let vm = self.name.as_str();
        let snapshot = self.engine.snapshot();
        let blind = self.sources.blind();
        // The sources first: with them the agent's traces leave the kernel.
        drop(self.sources);
        drop(self.worker);
        drop(self.proxy);
        drop(self.control);
        tracing::info!(
            vm,
            promoted_bytes = snapshot.promoted_bytes,
            demoted_bytes = snapshot.demoted_bytes,
            "{}",
            match end {
                End::GuestGone => "the guest has ended, and so does its agent",
                End::Told => "told to end; the guest goes on untouched",
                End::Heard => "enough was heard; the guest goes on untouched",
            }
        );
        if let Some(tap) = self.tap {
            tap.finish(blind)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Why an agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    GuestGone,
    Told,
    /// The tap has enough.
    Heard,
}

/// The engine's settings for a guest of `guest_bytes` bytes.
fn engine_settings(settings: &crate::config::Settings, guest_bytes: u64) -> EngineSettings {
    EngineSettings {
        fast_limit_bytes: settings.fast_limit.map(|limit| limit.bytes(guest_bytes)),
        ..settings.engine.clone()
    }
}
