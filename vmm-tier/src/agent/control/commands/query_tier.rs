//! The reply to `query-tier`.

use tier_core::{
    constraints::{CgroupLimit, PoolBounds, PoolMount},
    engine::{Pin, PinStatus, PinsSnapshot, Snapshot, Wait},
    holds::Holds,
    pools::HugePool,
    settings::PolicyName,
};

use crate::agent::{
    Agent,
    control::SocketReport,
    host_link::HostReport,
    sources::{SourceHealth, SourceReport},
    state_file::{Restored, StateFileReport},
};
use crate::pool_drift::PoolDrift;

tier_core::words! {
    /// Who wants moves to pause.
    pub(in crate::agent) enum Pauser {
        /// An operator.
        Operator = "operator",
        /// A migration of the guest.
        Migration = "migration",
        /// A device that has the guest's memory pinned.
        PinnedMemory = "pinned-memory",
    }
}

tier_core::report! {
    /// All pins.
    #[derive(Clone, Debug)]
    pub(in crate::agent) struct PinsReport = "TierPins" {
        /// The pins in force together.
        #[serde(flatten)]
        total: PinsSnapshot,
        /// The pins in force, by address.
        #[metric(exempt = "`vmm_tier_pins` counts them; there may be 1024")]
        ranges: Vec<PinStatus>,
        /// Pins that were set and that the guest has no memory for now.
        #[metric(count = "waiting_pins")]
        waiting: Vec<Pin>,
    }
}

tier_core::report! {
    /// The hugetlb pools of one page size that back the guest, and what bounds the guest's use of them.
    /// The bounds are those of the last look at the guest's layout, every 10 s; no move is counted
    /// against them.
    #[derive(Clone, Debug)]
    pub(in crate::agent) struct PoolReport = "TierPool" {
        /// The pools.
        #[serde(flatten)]
        pool: HugePool,
        /// Of the hugetlb limits of QEMU's control group and those around it, the limit that leaves
        /// least; absent if there is none.
        cgroup: Option<CgroupLimit>,
        /// The mounts of hugetlbfs with bounds that hold memory of the guest.
        #[metric(count = "pool_bounded_mounts")]
        mounts: Vec<PoolMount>,
        /// By how much agents let the pools drift, as `hugetlb.grow` allows; absent if they did not.
        drift: Option<PoolDrift>,
    }
}

impl PoolReport {
    fn of(pool: &HugePool, agent: &Agent) -> Self {
        let mut bounds = agent.qemu.constraints.pools.iter();
        let own = bounds.find(|own| own.page_size == pool.page_size).cloned();
        let PoolBounds { cgroup, mounts, .. } = own.unwrap_or_default();
        Self {
            pool: pool.clone(),
            cgroup,
            mounts,
            drift: agent.page_work.drift(&agent.vm, agent.engine.tiers(), pool),
        }
    }
}

tier_core::report! {
    /// One VM's tiering. Sizes are in bytes.
    #[derive(Clone, Debug)]
    pub(in crate::agent) struct TierInfo = "TierInfo" {
        /// The VM's name.
        #[metric(exempt = "the label `domain` of every sample")]
        name: String,
        /// QEMU's process.
        #[metric(info = "vm")]
        pid: u32,
        /// Seconds since the agent's start.
        #[metric(gauge = "agent_uptime_seconds")]
        uptime_s: u64,
        /// What moves wait for, in one word; absent while pages move, or could move at once.
        #[metric(states = "waits_for")]
        waits_for: Option<Wait>,
        /// The same in a sentence.
        #[metric(exempt = "text; `vmm_tier_waits_for` has the word")]
        waits_because: Option<&'static str>,
        /// Who wants moves to pause: an operator (`tier-pause`), a migration of the guest, or a device
        /// that has the guest's memory pinned (`holds`).
        #[metric(states = "paused_by")]
        paused_by: Vec<Pauser>,
        /// QEMU's status of the migration, while a migration is under way.
        #[metric(exempt = "text; `vmm_tier_paused_by` says that a migration is under way")]
        migration: Option<String>,
        /// What keeps the guest's memory in place.
        holds: Holds,
        /// Why the kernel refuses to move or look up pages, if it does, or would do: a cpuset may leave
        /// out all nodes of a tier.
        #[metric(
            presence = "moves_refused",
            help = "Whether the kernel refuses to move or look up pages"
        )]
        refused: Option<String>,
        /// Why memory can't be bound to its tier, if rebinding is asked for and fails.
        #[metric(
            presence = "rebind_refused",
            help = "Whether memory can't be bound to its tier, though it is asked for"
        )]
        rebind_refused: Option<String>,
        /// The policy in force.
        #[metric(info = "vm")]
        policy: PolicyName,
        /// The believed source; without one, the first candidate.
        #[metric(exempt = "part of `sources`; `vmm_tier_source_believed` says which source it is")]
        source: SourceReport,
        /// All candidate sources.
        sources: Vec<SourceHealth>,
        /// What the engine knows.
        #[serde(flatten)]
        engine: Snapshot,
        /// How the agent stands with the host daemon; absent without one.
        host: Option<HostReport>,
        /// The hugetlb pools that back the guest.
        pools: Vec<PoolReport>,
        /// What is pinned.
        pins: PinsReport,
        /// The agent's sockets and their clients.
        sockets: Vec<SocketReport>,
        /// What the state file said at the agent's start, if it said anything.
        #[metric(exempt = "never changes while the agent runs")]
        restored: Option<Restored>,
        /// Where what commands set is kept over a restart of the agent.
        state_file: StateFileReport,
    }
}

impl TierInfo {
    /// The agent's state at this moment.
    pub(super) fn of(agent: &Agent) -> Self {
        let Agent {
            vm,
            engine,
            settings,
            ..
        } = agent;
        let ranges = engine.pins();
        let waits_for = engine.waits_for(Agent::now());
        let migration = agent.qemu.migration.under_way();
        Self {
            name: vm.name.clone(),
            pid: vm.pid,
            uptime_s: agent.pace.uptime().as_secs(),
            waits_for,
            waits_because: waits_for.map(Wait::sentence),
            paused_by: agent.paused_by(),
            migration: migration.map(ToString::to_string),
            holds: agent.qemu.holds.clone(),
            refused: agent.refused(),
            rebind_refused: agent.page_work.refuses_bindings().cloned(),
            policy: PolicyName::DualHeap,
            source: agent.sources.believed_report(engine),
            sources: agent.sources.report(engine.sources()),
            engine: engine.snapshot(),
            host: agent
                .host
                .as_ref()
                .map(|host| host.report(engine, Agent::now())),
            pools: agent
                .pools
                .iter()
                .map(|pool| PoolReport::of(pool, agent))
                .collect(),
            pins: PinsReport {
                total: engine.pins_snapshot(),
                waiting: settings.waiting_pins(&ranges),
                ranges,
            },
            sockets: agent.clients.report(),
            restored: settings.file.restored().cloned(),
            state_file: settings.file.report(),
        }
    }
}
