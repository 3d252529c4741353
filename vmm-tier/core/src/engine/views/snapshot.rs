//! The snapshot: one serialisable picture of a VM.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::engine::{DrainProgress, PinsSnapshot, PolicySnapshot, TierBias, VmEngine, VmState};
use crate::{
    addr::NodeSet, map::GuestMemoryMap, moves::Outcome, sample::SampleAccount, settings::Tier,
};

/// One tier's share of the VM.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TierSnapshot {
    /// 0 is the fastest.
    pub rank: u8,
    /// Its nodes.
    pub nodes: NodeSet,
    /// Bytes of the guest on it.
    pub bytes: u64,
    /// Most bytes the guest may hold on it; `null` for no limit.
    pub limit_bytes: Option<u64>,
    /// Free bytes on its nodes.
    pub free_bytes: u64,
}

/// Moves that were planned while `dry-run` was set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Planned {
    /// Bytes that would have been promoted.
    pub promote_bytes: u64,
    /// Bytes that would have been demoted.
    pub demote_bytes: u64,
}

/// The part of `query-tier` that the engine knows. All sizes in bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Snapshot {
    /// What the engine is doing.
    pub state: VmState,
    /// What became of every record of the source.
    pub samples: SampleAccount,
    /// The tiers, fastest first.
    pub tiers: Vec<TierSnapshot>,
    /// Share of observed accesses that went to the fast tier, decayed; `null` before any.
    pub hit_ratio: Option<f64>,
    /// How differently the source sees the tiers; `null` for one that tests pages, which sees them
    /// alike.
    pub tier_bias: Option<TierBias>,
    /// Bytes promoted since the start, verified.
    pub promoted_bytes: u64,
    /// Bytes demoted since the start, verified.
    pub demoted_bytes: u64,
    /// Pages that did not move, by class.
    pub failed: BTreeMap<Outcome, u64>,
    /// Bytes of present guest memory by page size in bytes.
    pub page_sizes: BTreeMap<u64, u64>,
    /// Guest memory that is not present.
    pub absent_bytes: u64,
    /// Guest memory on nodes of neither tier.
    pub elsewhere_bytes: u64,
    /// Pages under way.
    pub in_flight_pages: u64,
    /// Bytes the index and the heaps take.
    pub engine_memory_bytes: u64,
    /// What moving a page costs here, measured, in nanoseconds by page size in bytes.
    pub move_cost_ns: BTreeMap<u64, u64>,
    /// The memory map's generation.
    pub map_generation: u64,
    /// The policy in force.
    #[serde(flatten)]
    pub policy: PolicySnapshot,
    /// What is pinned.
    pub pins: PinsSnapshot,
    /// How far the drain has come; `null` if none was asked for since the limit was set last.
    pub drain: Option<DrainProgress>,
    /// Set when the engine only plans.
    pub dry_run: Option<Planned>,
}

/// The picture of an engine now.
pub(crate) fn of(engine: &VmEngine) -> Snapshot {
    let VmEngine {
        pages,
        evidence,
        mover,
        orders,
        ..
    } = engine;
    let tiers = &mover.tiers;
    let tier = |tier: Tier, rank, nodes: &NodeSet| TierSnapshot {
        rank,
        nodes: nodes.clone(),
        bytes: pages.bytes().of(tier),
        limit_bytes: orders
            .settings
            .fast_limit_bytes
            .filter(|_| tier == Tier::Fast),
        free_bytes: mover.rooms.free_bytes(nodes),
    };
    Snapshot {
        state: engine.state(),
        samples: evidence.sources.total(),
        tiers: vec![
            tier(Tier::Fast, 0, &tiers.fast),
            tier(Tier::Slow, 1, &tiers.slow),
        ],
        hit_ratio: evidence.stats.hit_ratio(),
        tier_bias: evidence.tier_bias(),
        promoted_bytes: mover.totals.promoted_bytes,
        demoted_bytes: mover.totals.demoted_bytes,
        failed: mover.totals.failed.clone(),
        page_sizes: pages.bytes().by_page_size.clone(),
        absent_bytes: pages.scanner.last_round.absent_bytes,
        elsewhere_bytes: pages.scanner.last_round.elsewhere_bytes,
        in_flight_pages: mover.in_flight.pages().count() as u64,
        engine_memory_bytes: engine.memory_bytes() as u64,
        move_cost_ns: mover.totals.costs.measured(),
        map_generation: engine.map().map_or(0, GuestMemoryMap::generation),
        policy: orders.policy(),
        pins: pages.pins().snapshot(),
        drain: engine.drain_progress(),
        dry_run: orders.settings.dry_run.then_some(mover.totals.planned),
    }
}
