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
//! guest: that is for the [asker](qemu) and the [worker](page_work).

mod clients;
mod control;
mod events;
mod host_link;
mod lifecycle;
mod log_once;
mod operator_settings;
mod pace;
mod page_work;
mod qemu;
mod sources;
mod start;
mod state_file;
mod strain;
mod vm;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use crossbeam::{
    channel::{Receiver, never},
    select,
};
use tier_core::{
    addr::BASE_PAGE,
    engine::{self, Action, Event, NodeMemory, PoolMemory, Refusal, VmEngine, VmState},
    map::GuestMemoryMap,
    sample::{SampleBatch, SourceKind},
    settings::EngineSettings,
    time::Time,
};
use tier_sys::{
    hugetlb::{self, HugePool},
    process, zoneinfo,
};

pub(crate) use control::QUERY_TIER;
pub(crate) use start::{record, run};

use self::{
    clients::Clients,
    control::{Pauser, Request},
    host_link::HostLink,
    log_once::LogOnce,
    operator_settings::OperatorSettings,
    pace::{Pace, Stir},
    page_work::{Done, Growth, PageWork, memory_of},
    qemu::{Answer, Qemu},
    sources::Sources,
    strain::StrainReader,
    vm::Vm,
};
use crate::{log::with_causes, source::thread::Report};

/// Why an agent without its asker can't go on.
const ASKER_ENDED: &str =
    "the thread that asks QEMU ended: start the agent again, and report what it printed";

/// Why an agent without its link to the host daemon can't go on.
const LINK_ENDED: &str = "the thread that speaks with the host daemon ended: start the agent again, and \
                          report what it printed";

/// What the agent waits for. `None` where the other end is gone.
enum News {
    Qemu(Option<qmp::Event>),
    Answer(Option<Answer>),
    Source(SourceKind, Report),
    Worker(Option<Done>),
    Control(Option<Request>),
    Proxy(Option<Request>),
    /// `None` if the thread that speaks with the host daemon ended.
    Host(Option<host_link::News>),
    /// A signal asks the agent to end.
    Told,
    /// Time passed.
    None,
}

/// See the [module](self).
struct Agent {
    vm: Vm,
    engine: VmEngine,
    qemu: Qemu,
    page_work: PageWork,
    sources: Sources,
    clients: Clients,
    settings: OperatorSettings,
    pace: Pace,
    /// The host daemon, if the agent was told of one.
    host: Option<HostLink>,
    strain: StrainReader,
    /// Why the nodes' free memory can't be read: then no tier has room.
    memory_trouble: LogOnce,
    /// The hugetlb pools that back the guest, as they were when the nodes' memory was read last.
    pools: Vec<HugePool>,
    /// Signals that ask the agent to end.
    signals: Receiver<()>,
    tap: Option<Box<dyn Tap>>,
}

impl Agent {
    /// Runs until the guest ends or a signal ends the agent; either is a success.
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
                News::Control(None) => self.clients.end_control(),
                News::Proxy(None) => self.clients.end_proxy(),
                News::Host(Some(news)) => self.on_host_news(news),
                News::Host(None) => anyhow::bail!(LINK_ENDED),
                News::None => self.on_idle(),
            }
            let now = Instant::now();
            if self.tick_is_due_in(now).is_zero() || self.pace.looks_at_rest(now, self.stir()) {
                self.pace.ticked(now);
                if let Some(end) = self.on_tick(now) {
                    return self.end(end);
                }
            }
        }
    }

    /// Waits until something happens. Holds no end of a channel afterwards: one that lived on while a
    /// socket or a thread is seen off would keep the others waiting.
    fn wait_for_news(&self, timeout: Duration) -> News {
        let (no_event, no_request, no_host) = (never(), never(), never());
        let host = self.host.as_ref().map_or(&no_host, HostLink::news);
        let events = self.qemu.events().unwrap_or(&no_event);
        let asked = self.clients.requests().unwrap_or(&no_request);
        let asked_by_proxy = self.clients.proxy_requests().unwrap_or(&no_request);
        select! {
            recv(self.signals) -> _ => News::Told,
            recv(events) -> event => News::Qemu(event.ok()),
            recv(self.qemu.answers()) -> answer => News::Answer(answer.ok()),
            recv(self.sources.reports()) -> report => {
                report.map_or(News::None, |(kind, report)| News::Source(kind, report))
            }
            recv(self.page_work.done()) -> done => News::Worker(done.ok()),
            recv(asked) -> asked => News::Control(asked.ok()),
            recv(asked_by_proxy) -> asked => News::Proxy(asked.ok()),
            recv(host) -> news => News::Host(news.ok()),
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
        // QEMU sends no event about a migration unless its manager asked for them.
        let asks_at = self.qemu.asks_of_migration_at();
        self.pace.tick_is_due_in(now, self.is_stopped(), asks_at)
    }

    /// Whether no page can be moved and no tap listens: then the agent looks around less often and looks
    /// up no page. Each page's place must be known once in any case.
    fn is_stopped(&self) -> bool {
        let is_idle = matches!(
            self.engine.state(),
            VmState::Paused | VmState::GuestStopped | VmState::Blind
        );
        let guest_bytes = self.engine.map().map_or(0, GuestMemoryMap::total_bytes);
        is_idle && self.tap.is_none() && self.page_work.has_seen(guest_bytes)
    }

    fn on_idle(&mut self) {
        if self.engine.wakes_at().is_some_and(|at| at <= Self::now()) {
            self.step(Event::Tick);
        }
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
                Action::Scan(request) => self.page_work.put_aside(request),
                Action::Move(batch) => self.page_work.submit_moves(batch),
                Action::MovePaired(pair) => self.page_work.submit_pair(pair),
                Action::Rebind(bindings) => self.page_work.submit_bindings(bindings),
                Action::Reshape(request) => self.page_work.submit_reshape(request),
                Action::RefreshMap => self.qemu.discovery.want(),
            }
        }
        if !self.is_stopped() {
            self.page_work.submit_scan();
        }
        let after = self.engine.state();
        if before != after {
            tracing::info!(vm = self.vm.name, "state {before:?} -> {after:?}");
        }
        for notice in self.engine.take_notices() {
            let paused_by = self.paused_by();
            self.clients.events.notice(notice, &paused_by);
        }
        self.clients.events.dropped(self.engine.notices_dropped());
    }

    /// Who wants moves to pause.
    fn paused_by(&self) -> Vec<Pauser> {
        let who = [
            (self.settings.overrides.paused, Pauser::Operator),
            (self.qemu.migration.under_way().is_some(), Pauser::Migration),
            // A recording moves nothing.
            (
                self.tap.is_none() && self.qemu.holds.reason.is_some(),
                Pauser::PinnedMemory,
            ),
        ];
        let who = who.into_iter().filter(|(wants, _)| *wants);
        who.map(|(_, who)| who).collect()
    }

    /// Returns why the agent ends, if it does.
    fn on_tick(&mut self, now: Instant) -> Option<End> {
        if self.vm.has_ended() {
            return Some(End::GuestGone);
        }
        self.look_at_qemu(now);
        if self.pace.nodes_are_due(now) {
            self.read_nodes(now);
        }
        self.look_at_sources(now);
        self.step(Event::Tick);
        self.look_at_host(now);
        let refused = self.page_work.refuses_moves();
        self.clients
            .events
            .tell_failures(now, refused.map(String::as_str));
        if let Some(tap) = &mut self.tap {
            return tap.tick().then_some(End::Heard);
        }
        let at_work = self.engine.state() != VmState::Running;
        let stir = self.stir();
        let quiet = self.pace.idle.look(at_work, stir, now);
        if let Some(quiet) = quiet {
            tracing::debug!(vm = self.vm.name, quiet, ?stir, "sampling");
            self.sources.set_quiet(quiet);
            self.qemu.migration.set_at_rest(quiet, now);
            if !quiet {
                self.read_nodes(now);
            }
            self.step(Event::Rest(quiet));
        }
        None
    }

    fn stir(&self) -> Stir {
        Stir {
            moved_bytes: self.engine.moved_bytes(),
            changes: self.engine.changes(),
        }
    }

    /// Takes what became of a look-up or of a batch of moves.
    fn on_done(&mut self, done: Done) {
        self.page_work.take(&done, &self.vm);
        match done {
            Done::Scanned(report) | Done::NotScanned(report, _) => {
                self.step(Event::Scanned(report));
            }
            // Also of a batch or a pair that was refused, pages may have moved.
            Done::Moved(report) | Done::Refused(report, _) => {
                self.read_nodes(Instant::now());
                self.sources.moved(&report);
                self.step(Event::Moved(report));
            }
            Done::Reshaped(report, _) => self.step(Event::Reshaped(report)),
            Done::Rebound(report, _) => self.step(Event::Rebound(report)),
            Done::Paired(demoted, promoted) | Done::PairRefused(demoted, promoted, _) => {
                self.read_nodes(Instant::now());
                for report in [demoted, promoted] {
                    self.sources.moved(&report);
                    self.step(Event::Moved(report));
                }
            }
        }
    }

    fn read_nodes(&mut self, now: Instant) {
        self.pace.nodes_read(now);
        let nodes = self.engine.tiers().nodes();
        let marks = match zoneinfo::read(&self.vm.root) {
            Ok(marks) => marks,
            // What was free a while ago may be somebody's now. Without the watermarks nobody knows either
            // how much of it a move may take before the kernel reclaims.
            Err(error) => {
                let error = with_causes(&error);
                let reason = format!("free memory of the nodes can't be read: {error}");
                if self.memory_trouble.is_news(&reason) {
                    tracing::error!(vm = self.vm.name, "no pages are moved: {reason}");
                }
                return self.step(Event::Nodes(Vec::new()));
            }
        };
        self.memory_trouble.end();
        let growth = self.page_work.growth(now);
        let pools = self.pools_in_use();
        let tiers = self.engine.tiers();
        let memory = nodes.iter().filter_map(|node| {
            let marks = marks.get(&node)?;
            let grows = |pool: &HugePool| {
                growth.is_some_and(
                    |Growth {
                         nodes: [fast, slow],
                         ..
                     }| { node == fast && pool.can_grow(fast, slow) },
                )
            };
            let pools = pools.iter().map(|pool| PoolMemory {
                grows: grows(pool),
                page_bytes: pool.page_size,
                free_bytes: pool.spare_on(node, &nodes).saturating_mul(pool.page_size),
                pair_bytes: pool.pairs_within(tiers).saturating_mul(pool.page_size),
            });
            Some(NodeMemory {
                pools: pools.collect(),
                ..memory_of(node, marks)
            })
        });
        let memory = memory.collect();
        self.pools = pools;
        self.step(Event::Nodes(memory));
    }

    /// Why the kernel refuses to move or look up pages, if it does or would do.
    fn refused(&self) -> Option<String> {
        let closed = self.engine.closed_tier().map(str::to_owned);
        let unknown = || self.memory_trouble.now.clone();
        closed.or_else(unknown).or_else(|| self.page_work.refused())
    }

    /// The hugetlb pools that back the guest. Those that can't be read have no page to spare.
    fn pools_in_use(&self) -> Vec<HugePool> {
        let blocks = self.engine.map().map_or(&[][..], GuestMemoryMap::blocks);
        let is_used =
            |pool: &HugePool| (blocks.iter()).any(|block| block.page_size == pool.page_size);
        if blocks.iter().all(|block| block.page_size == BASE_PAGE) {
            return Vec::new();
        }
        match hugetlb::read(&self.vm.root) {
            Ok(pools) => pools.into_iter().filter(is_used).collect(),
            Err(error) => {
                tracing::debug!("hugetlb pools can't be read: {}", with_causes(&error));
                Vec::new()
            }
        }
    }

    /// Leaves nothing behind and says why it ends.
    fn end(mut self, end: End) -> anyhow::Result<ExitCode> {
        if end == End::GuestGone {
            self.settings.file.on_guest_gone();
        }
        let vm = self.vm.name.as_str();
        let snapshot = self.engine.snapshot();
        let blind = self.sources.blind();
        // The sources first: with them the agent's traces leave the kernel.
        drop(self.sources);
        drop(self.page_work);
        drop(self.clients);
        tracing::info!(
            vm,
            promoted_bytes = snapshot.promoted_bytes,
            demoted_bytes = snapshot.demoted_bytes,
            "{}",
            match end {
                End::GuestGone => "the guest has ended; its agent ends too",
                End::Told => "stopped on request; guest memory stays where it is",
                End::Heard => "the recording is complete; guest memory stays where it is",
            }
        );
        if let Some(tap) = self.tap {
            tap.finish(blind)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Hears what the believed source delivers; `vmm-tier record` writes it down. With a tap the agent moves
/// nothing, samples an idle guest as often as a busy one, and neither reads nor keeps what commands set.
pub(crate) trait Tap {
    /// Takes a batch that was made under `map`.
    fn batch(&mut self, batch: &SampleBatch, map: &GuestMemoryMap);

    /// Something changed that a reader of the recording should know.
    fn note(&mut self, text: &str);

    /// Called about ten times a second; returns whether enough was heard.
    fn tick(&mut self) -> bool;

    /// The agent ends. `why` is what is wrong with its sources, if none is believed.
    ///
    /// # Errors
    /// If what was heard could not be kept, or nothing was.
    fn finish(self: Box<Self>, why: Option<String>) -> anyhow::Result<()>;
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
        // `record` moves nothing, and speaks with no daemon.
        measures_demand: settings.host.is_some(),
        fast_limit_bytes: settings.fast_limit.map(|limit| limit.bytes(guest_bytes)),
        ..settings.engine.clone()
    }
}
