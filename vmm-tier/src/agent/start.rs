//! From settings to a running agent.

use std::{
    collections::BTreeMap,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use tier_core::{
    addr::{NodeId, NodeSet},
    engine::{Action, Order, VmEngine},
    map::GuestMemoryMap,
    text::size,
    tiers::{Division, Tiers},
};
use tier_sys::{
    damon::{Damon, DamonSettings},
    process::{self, ProcessHandle},
    sysroot::SysRoot,
    topology::Topology,
};

use super::{
    Agent, MAP_CHECK, Monitor,
    complaint::Complaint,
    control::Control,
    engine_settings,
    herald::Herald,
    lifecycle::Migration,
    quiet::Quiet,
    saved::{Saved, Wishes},
    sources::Sources,
    tap::Tap,
    worker::Worker,
};
use crate::{
    causes::with_causes,
    config::{DamonChoice, Settings},
    discover::{self, Discovered},
    host::node_facts,
    source::{Candidate, Opener, Setup},
};

/// How long the agent waits for QEMU's monitor: while it does, nothing else is done.
const PATIENCE: Duration = Duration::from_secs(3);

/// `vmm-tier run`.
pub(crate) fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    start(settings, tiers, |_| Ok(None))
}

/// `vmm-tier record`: an agent that moves nothing, with a tap on what it hears. The tap is made when the
/// guest's name is known.
pub(crate) fn record(
    settings: &Settings,
    tap: impl FnOnce(&str) -> anyhow::Result<Box<dyn Tap>>,
) -> anyhow::Result<ExitCode> {
    start(settings, tiers_or_all, |name| tap(name).map(Some))
}

fn start(
    settings: &Settings,
    tiers: fn(&Settings, &SysRoot) -> anyhow::Result<Tiers>,
    tap: impl FnOnce(&str) -> anyhow::Result<Option<Box<dyn Tap>>>,
) -> anyhow::Result<ExitCode> {
    let root = SysRoot::real();
    let terminate = Arc::new(AtomicBool::new(false));
    for signal in process::ending_signals(&root) {
        signal_hook::flag::register(signal, Arc::clone(&terminate))
            .context("signals can't be caught")?;
    }
    let tiers = tiers(settings, &root)?;
    let oob = settings.proxy.is_some();
    let greeting_timeout = qmp::client::Options::default().greeting_timeout;
    let monitor = connect(&settings.qmp, greeting_timeout, oob)?;
    let pid = monitor.client.peer().pid;
    let process = ProcessHandle::open(pid)
        .with_context(|| format!("QEMU's process {pid} can't be watched"))?;
    let Discovered { map, .. } = discover::discover(&monitor.client, &root)
        .with_context(|| format!("the memory map of QEMU {pid} can't be read"))?;
    if terminate.load(Ordering::Relaxed) {
        return Ok(ExitCode::SUCCESS);
    }
    let given_name = settings.name.clone().or_else(|| vm_name(&monitor.client));
    let is_named = given_name.is_some();
    let name = given_name.unwrap_or_else(|| format!("qemu-{pid}"));
    let map = Arc::new(map);
    let tap = tap(&name)?;
    let sources = sources(settings, &root, &monitor.client, &map)?;
    let (engine, actions) = engine(settings, tiers, &map, &name)?;
    let base = engine.settings().clone();
    let control = settings
        .control
        .as_deref()
        .map(Control::serve)
        .transpose()?;
    let herald = Herald::new(control.iter().map(Control::events).collect());
    let (saved, wishes) = match tap {
        None => Saved::open(&settings.run_dir, &root, &name, is_named, pid),
        Some(_) => (Saved::nowhere(&root, &name, pid), Wishes::default()),
    };
    let worker = Worker::start(&root, pid).context("the worker thread can't be started")?;
    let qmp_path = settings.qmp.clone();
    let mut agent = Agent {
        name,
        root,
        pid,
        process,
        started: Instant::now(),
        engine,
        monitor: Some(monitor),
        connect: Box::new(move || connect(&qmp_path, PATIENCE, oob)),
        worker,
        sources,
        source_trouble: BTreeMap::new(),
        blind: Complaint::default(),
        control,
        proxy: None,
        proxy_path: settings.proxy.clone(),
        proxy_trouble: Complaint::default(),
        terminate,
        next_map_check: Instant::now() + MAP_CHECK,
        next_status_look: None,
        next_nodes_read: Instant::now(),
        next_reconnect: Instant::now(),
        refusal: Complaint::default(),
        look_up_trouble: Complaint::default(),
        map_trouble: Complaint::default(),
        quiet: Quiet::new(Instant::now()),
        migration: Migration::new(Instant::now()),
        herald,
        base,
        wishes,
        pin_trouble: Complaint::default(),
        saved,
        tap,
    };
    agent.serve_proxy()?;
    let state = agent.engine.state();
    agent.go_on(state, actions);
    agent.restore();
    agent.ask_qemu();
    // It was read a moment ago.
    agent.next_map_check = Instant::now() + MAP_CHECK;
    agent.run()
}

/// The tiers that the operator named, or those the kernel ranks.
fn tiers(settings: &Settings, root: &SysRoot) -> anyhow::Result<Tiers> {
    let topology = Topology::read(root).context("the host's nodes can't be read")?;
    let facts = node_facts(&topology);
    let division = match (&settings.fast, &settings.slow) {
        (Some(fast), Some(slow)) => Division::given(&facts, fast.clone(), slow.clone())?,
        _ => Division::of(&facts)?,
    };
    Ok(division.tiers)
}

/// The same, but all nodes in both tiers on a host that has no two: what moves nothing needs none.
fn tiers_or_all(settings: &Settings, root: &SysRoot) -> anyhow::Result<Tiers> {
    tiers(settings, root).or_else(|error| {
        let facts = node_facts(&Topology::read(root)?);
        let nodes = facts.iter().filter(|node| node.bytes > 0);
        let nodes: NodeSet = nodes.map(|node| NodeId(node.id)).collect();
        match Division::given(&facts, nodes.clone(), nodes) {
            Ok(division) => Ok(division.tiers),
            Err(_) => Err(error),
        }
    })
}

/// Connects to QEMU's monitor, with out-of-band commands for other clients if `oob` is set.
fn connect(path: &Path, greeting_timeout: Duration, oob: bool) -> anyhow::Result<Monitor> {
    let options = qmp::client::Options {
        connect_timeout: PATIENCE,
        greeting_timeout,
        command_timeout: PATIENCE,
        oob,
        ..qmp::client::Options::default()
    };
    let (client, events) = qmp::Client::connect(path, &options)?;
    Ok(Monitor {
        client: Arc::new(client),
        events,
        events_lost: 0,
    })
}

/// What QEMU calls the guest, if it was given a name.
fn vm_name(client: &qmp::Client) -> Option<String> {
    let reply = client.execute(&qmp::commands::QueryName {}).ok()?;
    reply.name
}

/// An engine with the guest's map, and what it asks for.
fn engine(
    settings: &Settings,
    tiers: Tiers,
    map: &Arc<GuestMemoryMap>,
    name: &str,
) -> anyhow::Result<(VmEngine, Vec<Action>)> {
    let now = process::now();
    let guest_bytes = map.total_bytes();
    tracing::info!(
        vm = name,
        fast = %tiers.fast,
        slow = %tiers.slow,
        guest = size::human(guest_bytes),
        dry_run = settings.engine.dry_run,
        "tiering starts"
    );
    let mut engine = VmEngine::new(engine_settings(settings, guest_bytes), tiers, now);
    let reply = engine
        .order(now, Order::Map(Arc::clone(map)))
        .context("the guest can't be tracked")?;
    Ok((engine, reply.actions))
}

fn sources(
    settings: &Settings,
    root: &SysRoot,
    client: &qmp::Client,
    map: &Arc<GuestMemoryMap>,
) -> anyhow::Result<Sources> {
    match Damon::open(root, &settings.run_dir).and_then(|damon| damon.reclaim_orphans()) {
        Ok(orphans) => {
            for orphan in orphans {
                let (slot, owner) = (orphan.record.slot, orphan.record.owner_pid);
                tracing::info!(
                    slot,
                    owner,
                    "removed the DAMON context that a dead agent left behind"
                );
            }
        }
        // The source thread meets the same trouble and reports it as the reason for being blind.
        Err(error) => tracing::debug!("no orphans looked for: {}", with_causes(&error)),
    }
    let DamonChoice {
        sampling,
        aggregation,
        max_regions,
        quiet_factor,
    } = settings.damon;
    // A QEMU without KVM support does not know the command.
    let kvm = client.execute(&qmp::commands::QueryKvm {});
    let setup = Setup {
        root: root.clone(),
        run_dir: settings.run_dir.clone(),
        pid: client.peer().pid,
        vcpus: vcpus(client).unwrap_or_default(),
        is_kvm: kvm.is_ok_and(|kvm| kvm.enabled),
        damon: DamonSettings {
            sampling,
            aggregation,
            min_regions: (max_regions / 4).max(3),
            max_regions,
            ..DamonSettings::default()
        },
        quiet_factor,
        cpu_budget: settings.source_cpu_budget,
    };
    let mut candidates = settings.source.candidates(root, setup.is_kvm);
    if !settings.source.auto {
        candidates = open_all(candidates, &setup, map)?;
    }
    Sources::start(candidates, &setup, map).context("a source's thread can't be started")
}

/// Asked for by name, a source must work; `auto` starts blind and tries again.
fn open_all(
    candidates: Vec<Candidate>,
    setup: &Setup,
    map: &Arc<GuestMemoryMap>,
) -> anyhow::Result<Vec<Candidate>> {
    let mut opened = Vec::new();
    for Candidate { kind, mut open } in candidates {
        match open(setup, map) {
            Ok(source) => opened.push((kind, open, source)),
            Err(error) => {
                for (kind, _, source) in opened {
                    if let Err(error) = source.stop() {
                        tracing::warn!("{kind} did not end cleanly: {error:#}");
                    }
                }
                let unusable = format!("{kind} was asked for as a source, and can't be used");
                return Err(error.context(unusable));
            }
        }
    }
    let candidates = opened.into_iter().map(|(kind, mut open, source)| {
        let mut first = Some(source);
        let open: Opener = Box::new(move |setup, map| match first.take() {
            Some(source) => Ok(source),
            None => open(setup, map),
        });
        Candidate { kind, open }
    });
    Ok(candidates.collect())
}

/// The threads of the guest's CPUs.
pub(super) fn vcpus(client: &qmp::Client) -> Option<Vec<u32>> {
    let cpus = client.execute(&qmp::commands::QueryCpusFast {}).ok()?;
    Some(
        cpus.iter()
            .filter_map(|cpu| u32::try_from(cpu.thread_id).ok())
            .collect(),
    )
}
