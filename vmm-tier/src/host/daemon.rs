//! The daemon: its thread waits for registrations, commands, sightings and ticks, and steps the dealer.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crossbeam::{channel::Receiver, select};
use tier_core::{addr::NodeSet, arbiter::alarms::AlarmBook, text::size, tiers::Division};
use tier_sys::{file_lock::FileLock, process, sysroot::SysRoot, topology::Topology};

use super::{
    control::{Control, Order, Reply, Request, SharedDesk},
    dealer::Dealer,
    http::{self, Site, token::Token},
    latency,
    overrides::OverridesFile,
    pools::{self, FastMemory},
    published::Published,
    recorder::Recorder,
    recording,
    report::HostInfo,
    settings::HostSettings,
    watcher::{Sighting, Watcher},
};
use crate::{log::with_causes, reply::refusal, signals};

/// How often shares are decided.
const TICK: Duration = Duration::from_secs(1);
/// The lock of the run directory's daemon.
const LOCK: &str = "host.lock";

/// `vmm-tier host`.
pub(super) fn run(settings: HostSettings) -> anyhow::Result<ExitCode> {
    let root = SysRoot::real();
    let signals = signals::ending(&root).context("signals can't be caught")?;
    let topology = Topology::read(&root).context("the host's nodes can't be read")?;
    let nodes = pool_nodes(&topology, settings.nodes.as_ref())?;
    let memory = memory_of(&root, &topology, &nodes);
    std::fs::create_dir_all(&settings.run_dir).with_context(|| {
        format!(
            "the run directory {} can't be made",
            settings.run_dir.display()
        )
    })?;
    let lock = settings.run_dir.join(LOCK);
    let _lock = FileLock::take(&lock, Duration::ZERO).with_context(|| {
        format!(
            "{} is another daemon's: one daemon deals a host's DRAM; end that one, or name another run-dir",
            lock.display()
        )
    })?;
    if let Some(files) = process::raise_open_files().filter(|&files| files < 4096) {
        tracing::warn!(files, "few files may be open: many agents can't connect");
    }
    let recording = settings.record.as_ref();
    let recording = recording.map(|(path, bounds)| recording::Writer::create(path, *bounds));
    let recording = recording.transpose()?;
    let desk = SharedDesk::default();
    let published = Arc::new(Published::default());
    let recorder = Recorder::start(published.clone())
        .context("the thread that keeps the history can't be started")?;
    let control = Control::serve(&settings.socket, &root, &desk, recorder.clone())?;
    if let Some(writer) = recording {
        recording::record(writer, published.clone())
            .context("the thread that records can't be started")?;
    }
    if let Some(address) = settings.http {
        let site = Site {
            published: published.clone(),
            recorder: Some(recorder),
            played: None,
            operator: Token::of(&settings.run_dir).map(|token| (token, control.operator())),
        };
        http::serve(address, settings.http_hosts.clone(), site)?;
    }
    let watcher = Watcher::start(root, nodes.clone())
        .context("the thread that looks at processes can't be started")?;
    let (file, overrides) = OverridesFile::open(&settings.run_dir);
    let latency = latency::of(&topology, &nodes);
    let pools = pools::configured(&settings, &memory).into_iter();
    let pools = pools.map(|(id, bytes)| format!("{id} {}", size::human(bytes)));
    let pools: Vec<String> = pools.collect();
    tracing::info!(
        socket = %settings.socket.display(),
        %nodes,
        pools = pools.join(", "),
        mode = %overrides.mode.unwrap_or(settings.rules.mode),
        "dealing starts"
    );
    let dealer = Dealer::new(process::now(), settings, overrides, memory, latency);
    let daemon = Daemon {
        dealer,
        desk,
        control,
        watcher,
        file,
        published,
        alarms: AlarmBook::default(),
        signals,
    };
    Ok(daemon.run())
}

/// The nodes that were named, or those that the kernel ranks fastest.
fn pool_nodes(topology: &Topology, named: Option<&NodeSet>) -> anyhow::Result<NodeSet> {
    if let Some(named) = named {
        let absent = named.iter().find(|&node| topology.node(node).is_none());
        if let Some(node) = absent {
            anyhow::bail!("pool.nodes names node {node}, which this host has not");
        }
        return Ok(named.clone());
    }
    let division = Division::of(&topology.facts())
        .context("the nodes of the pool are not known: name them, in pool.nodes")?;
    Ok(division.tiers.fast)
}

fn memory_of(root: &SysRoot, topology: &Topology, nodes: &NodeSet) -> FastMemory {
    let totals = nodes.iter().filter_map(|node| topology.node(node));
    let hugetlb = pools::hugetlb_on(root, nodes).unwrap_or_else(|error| {
        tracing::warn!("hugetlb pools can't be read: {}", with_causes(&error));
        BTreeMap::new()
    });
    FastMemory {
        nodes: nodes.clone(),
        total: totals.fold(0, |sum, node| sum.saturating_add(node.total)),
        hugetlb,
    }
}

/// See the [module](self).
struct Daemon {
    dealer: Dealer,
    desk: SharedDesk,
    control: Control,
    watcher: Watcher,
    file: OverridesFile,
    published: Arc<Published>,
    /// Since when what has been wrong.
    alarms: AlarmBook,
    /// Signals that ask the daemon to end.
    signals: Receiver<()>,
}

/// What the daemon waits for.
enum News {
    Told,
    Asked(Request),
    Seen(Sighting),
    /// Time passed.
    None,
}

impl Daemon {
    /// Runs until a signal ends it.
    fn run(mut self) -> ExitCode {
        let mut tick_at = Instant::now();
        loop {
            match self.wait(tick_at.saturating_duration_since(Instant::now())) {
                News::Told => break,
                News::Asked(request) => request.answer(|order| self.carry_out(order)),
                News::Seen(sighting) => {
                    self.dealer.sight(sighting);
                    self.unseat();
                }
                News::None => {}
            }
            let now = Instant::now();
            if now >= tick_at {
                self.tick();
                // Ticks that were missed are not made up for.
                tick_at = (tick_at + TICK).max(now);
            }
        }
        tracing::info!("stopped on request; agents fall back to their operators' limits");
        ExitCode::SUCCESS
    }

    fn wait(&self, timeout: Duration) -> News {
        select! {
            recv(self.signals) -> _ => News::Told,
            recv(self.control.requests()) -> request => request.map_or(News::None, News::Asked),
            recv(self.watcher.sightings()) -> seen => seen.map_or(News::None, News::Seen),
            default(timeout) => News::None,
        }
    }

    fn tick(&mut self) {
        let (reports, ended) = self.desk.lock().collect();
        self.dealer.take(reports, &ended);
        self.dealer.tick(process::now());
        let leases = self.dealer.leases();
        let mut desk = self.desk.lock();
        for (connection, lease) in leases {
            desk.post(connection, lease);
        }
        drop(desk);
        self.watcher.watch(self.dealer.watched());
        let info = self.info();
        self.published.put(info);
        self.tell();
    }

    /// Takes the places of connections away that serve no VM any more.
    fn unseat(&mut self) {
        let unseated = self.dealer.take_unseated();
        let mut desk = self.desk.lock();
        for connection in unseated {
            desk.unseat(connection);
        }
    }

    fn tell(&mut self) {
        let notices = self.dealer.take_notices();
        let events = self.control.events();
        for notice in notices {
            notice.log();
            events.send(&notice.event());
        }
    }

    fn carry_out(&mut self, order: Order) -> Result<Reply, qmp::QmpError> {
        match order {
            Order::Query => {}
            Order::Register {
                connection,
                uid,
                qemu,
                agent_pid,
                told,
            } => {
                // An agent that is started again must not find its old connection in its way.
                let (reports, ended) = self.desk.lock().collect();
                self.dealer.take(reports, &ended);
                let now = process::now();
                let lease = self.dealer.register(now, connection, uid, qemu, &told);
                self.unseat();
                let lease = lease.map_err(|error| refusal(&error))?;
                self.dealer.know_agent(&told.name, agent_pid, told.control);
                self.desk.lock().seat(connection, lease);
                return Ok(Reply::Lease(lease));
            }
            Order::Admit { name, pool, terms } => {
                let admission = self.dealer.would_admit(name.as_deref(), pool, &terms);
                return Ok(Reply::Admission(admission));
            }
            Order::SetVm { name, set } => {
                let done = self.dealer.set_vm(&name, &set);
                done.map_err(|error| refusal(&error))?;
                tracing::info!(vm = name, ?set, "terms");
                self.file.save(&self.dealer.overrides);
            }
            Order::SetMode { mode, band } => {
                let done = self.dealer.set_mode(mode, band);
                done.map_err(|error| refusal(&error))?;
                tracing::info!(?mode, band, "mode");
                self.file.save(&self.dealer.overrides);
            }
            Order::Drain(to) => {
                self.dealer.drain_to(to);
                tracing::info!(to = size::human(to), "drain");
                self.file.save(&self.dealer.overrides);
            }
            Order::DrainNode(node) => {
                let done = self.dealer.drain_node(node);
                done.map_err(|error| refusal(&error))?;
                tracing::info!(%node, "drain");
                self.file.save(&self.dealer.overrides);
            }
            Order::EndDrain => {
                self.dealer.end_drain();
                tracing::info!("no drain");
                self.file.save(&self.dealer.overrides);
            }
        }
        Ok(Reply::Info(Box::new(self.info())))
    }

    fn info(&mut self) -> HostInfo {
        let now = process::now();
        let mut info = self.dealer.info(now);
        info.reports.clients = self.control.stats().clients;
        (info.reports.accepted, info.reports.refused) = self.desk.lock().counts();
        info.state_file = self.file.path.display().to_string();
        info.state_file_error.clone_from(&self.file.error);
        info.alarms = info.alarms_at(now, &mut self.alarms);
        info
    }
}
