//! From settings to a running agent.

use std::{process::ExitCode, sync::Arc, time::Instant};

use anyhow::Context;
use crossbeam::{channel::Receiver, select};
use tier_core::{
    addr::{NodeId, NodeSet},
    engine::{Action, Order, VmEngine},
    map::GuestMemoryMap,
    text::size,
    tiers::{Division, Tiers},
};
use tier_sys::{
    damon::{Damon, DamonSettings},
    process,
    psi::MemoryPressure,
    sysroot::SysRoot,
    topology::Topology,
};

use super::{
    ASKER_ENDED, Agent, Tap,
    clients::Clients,
    engine_settings, host_link,
    operator_settings::OperatorSettings,
    pace::Pace,
    page_work::{Growth, PageWork, PoolMoves, Rebinder, Worker},
    qemu::{Answer, Asker, Begun, Connected, Job, Qemu, Socket},
    sources::Sources,
    state_file::{Overrides, StateFile},
    strain::StrainReader,
    vm::Vm,
};
use crate::{
    config::{DamonChoice, Settings},
    log::with_causes,
    signals,
    source::{Candidate, Opener, Setup},
};

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
    let signals = signals::ending(&root).context("signals can't be caught")?;
    let tiers = tiers(settings, &root)?;
    let socket = Socket {
        path: settings.qmp.clone(),
        oob: settings.proxy.is_some(),
    };
    let mut asker = Asker::start(socket, root.clone(), tiers.nodes().len())
        .context("the thread that asks QEMU can't be started")?;
    let Some(begun) = begin(&mut asker, &signals)? else {
        return Ok(ExitCode::SUCCESS);
    };
    let Begun {
        connected,
        process,
        map,
        map_took,
        name: given_name,
        is_kvm,
        vcpus,
        nearness,
        holds,
        constraints,
    } = begun;
    let mapped = Instant::now();
    let pid = connected.monitor.client.peer().pid;
    let given_name = settings.name.clone().or(given_name);
    let is_named = given_name.is_some();
    let name = given_name.unwrap_or_else(|| format!("qemu-{pid}"));
    let map = Arc::new(map);
    let tap = tap(&name)?;
    let guest = Guest { pid, vcpus, is_kvm };
    let sources = sources(settings, &root, guest, &map)?;
    let (engine, actions) = engine(settings, tiers, &map, &name)?;
    let clients = Clients::start(settings.control.as_deref(), settings.proxy.clone())?;
    let (file, overrides) = match tap {
        None => StateFile::open(&settings.run_dir, &root, &name, is_named, pid),
        Some(_) => (StateFile::nowhere(&root, &name, pid), Overrides::default()),
    };
    let run_dir = settings.run_dir.clone();
    let settings_host = settings.host.clone();
    let settings_control = settings.control.clone();
    let growth = settings.hugetlb_grow.then(|| engine.tiers().only_nodes());
    let growth = growth.flatten().map(|nodes| Growth {
        nodes,
        headroom_bytes: engine.settings().headroom_bytes,
    });
    if settings.hugetlb_grow && growth.is_none() {
        tracing::warn!(
            vm = name,
            "hugetlb.grow has no effect: it needs tiers of one node each, or pools would drift among several nodes"
        );
    }
    let settings = OperatorSettings::new(engine.settings().clone(), overrides, file);
    let pools = PoolMoves::new(&run_dir, &root, &name, pid, engine.tiers().nodes());
    let pools = pools.with_growth(growth);
    let rebinder = Rebinder::new(&run_dir, &root, &name, pid, engine.tiers());
    let worker =
        Worker::start(&root, pid, pools, rebinder).context("the worker thread can't be started")?;
    let Connected {
        monitor,
        status,
        migration,
    } = connected;
    let client = Arc::clone(&monitor.client);
    let vm = Vm::new(name, root, pid, process);
    let host = settings_host.filter(|_| tap.is_none());
    let host = host_link::start(host.as_deref(), settings_control.as_deref(), &vm, &engine)?;
    let strain = StrainReader::new(MemoryPressure::of(&vm.root, pid));
    let mut agent = Agent {
        vm,
        engine,
        qemu: Qemu::new(asker, monitor, mapped, map_took),
        page_work: PageWork::new(worker, growth, run_dir),
        sources,
        clients,
        settings,
        pace: Pace::new(Instant::now()),
        host,
        strain,
        pools: Vec::new(),
        signals,
        tap,
    };
    agent.clients.serve_proxy(&client)?;
    let state = agent.engine.state();
    agent.go_on(state, actions);
    agent.restore();
    agent.on_nearness(nearness);
    agent.on_holds(holds);
    agent.on_constraints(constraints);
    agent.on_status(status);
    agent.on_migration_answer(migration);
    agent.run()
}

/// Waits for the asker's first answer; `None` if a signal ends the agent before.
fn begin(asker: &mut Asker, told: &Receiver<()>) -> anyhow::Result<Option<Begun>> {
    asker.ask(Job::Begin);
    let answer = select! {
        recv(told) -> _ => return Ok(None),
        recv(asker.answers()) -> answer => answer.context(ASKER_ENDED)?,
    };
    asker.take(&answer);
    // Only one question was asked.
    let Answer::Begun(begun) = answer else {
        anyhow::bail!(ASKER_ENDED)
    };
    let begun = (*begun)?;
    Ok(told.is_empty().then_some(begun))
}

/// The tiers that the operator named, or those the kernel ranks.
fn tiers(settings: &Settings, root: &SysRoot) -> anyhow::Result<Tiers> {
    let topology = Topology::read(root).context("the host's nodes can't be read")?;
    let facts = topology.facts();
    let division = match (&settings.fast, &settings.slow) {
        (Some(fast), Some(slow)) => Division::given(&facts, fast.clone(), slow.clone())?,
        _ => Division::of(&facts)?,
    };
    Ok(division.tiers)
}

/// The same, but all nodes in both tiers on a host that has no two: what moves nothing needs none.
fn tiers_or_all(settings: &Settings, root: &SysRoot) -> anyhow::Result<Tiers> {
    tiers(settings, root).or_else(|error| {
        let facts = Topology::read(root)?.facts();
        let nodes = facts.iter().filter(|node| node.bytes > 0);
        let nodes: NodeSet = nodes.map(|node| NodeId(node.id)).collect();
        match Division::given(&facts, nodes.clone(), nodes) {
            Ok(division) => Ok(division.tiers),
            Err(_) => Err(error),
        }
    })
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

/// The guest, as far as its sources must know it.
struct Guest {
    pid: u32,
    /// The threads of its CPUs.
    vcpus: Vec<u32>,
    is_kvm: bool,
}

fn sources(
    settings: &Settings,
    root: &SysRoot,
    guest: Guest,
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
    let setup = Setup {
        root: root.clone(),
        run_dir: settings.run_dir.clone(),
        pid: guest.pid,
        vcpus: guest.vcpus,
        is_kvm: guest.is_kvm,
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
