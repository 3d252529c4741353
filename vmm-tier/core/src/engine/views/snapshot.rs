//! The snapshot: one serialisable picture of a VM.

use std::collections::BTreeMap;

use crate::engine::{
    Brake, BrakeReason, DrainProgress, Planned, PolicySnapshot, ReshapeOutcome, TierBias, VmEngine,
    VmState,
};
use crate::{
    addr::NodeSet, constraints::ClosedNode, map::GuestMemoryMap, moves::Outcome, rebind::Rebinding,
    settings::Tier,
};

crate::report! {
    /// A tier's share of the VM.
    #[derive(Clone, Debug, PartialEq)]
    pub struct TierSnapshot = "Tier" {
        /// 0 is the fastest.
        #[metric(label = "tier")]
        pub rank: u8,
        /// The numbers of the tier's NUMA nodes.
        #[metric(info = "tier")]
        pub nodes: NodeSet,
        /// Guest memory on the tier.
        #[metric(gauge = "tier_bytes")]
        pub bytes: u64,
        /// The most memory that the guest may hold on the tier, if there is a limit.
        #[metric(gauge = "tier_limit_bytes")]
        pub limit_bytes: Option<u64>,
        /// Free memory of the tier's nodes, which all VMs share.
        #[metric(gauge = "tier_free_bytes")]
        pub free_bytes: u64,
        /// Free pages of the hugetlb pools that back the guest, on the tier's nodes, as far as moves may take
        /// them: promised to nobody, and 0 while a pool has surplus pages. By the size of the pages in bytes.
        #[metric(gauge = "tier_spare_bytes", by = "page_size")]
        pub spare_bytes: BTreeMap<u64, u64>,
        /// The tier's nodes onto which no page is moved, as a cpuset leaves them out.
        #[metric(count = "tier_closed_nodes")]
        pub closed: Vec<ClosedNode>,
    }
}

crate::report! {
    /// The part of `query-tier` that the engine knows.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Snapshot = "TierEngine" {
        /// What the agent does, in one word.
        #[metric(states = "state")]
        pub state: VmState,
        /// The policy in force.
        #[serde(flatten)]
        pub policy: PolicySnapshot,
        /// The tiers, fastest first.
        pub tiers: Vec<TierSnapshot>,
        /// Share of observed accesses that went to the fast tier, decayed; absent before any.
        #[metric(gauge = "hit_ratio")]
        pub hit_ratio: Option<f64>,
        /// How differently the source sees the tiers; absent for a source that reads page tables, which
        /// sees them alike.
        pub tier_bias: Option<TierBias>,
        /// Times that the guest's accesses turned to slow pages, which ends its rest.
        #[metric(counter = "access_changes", since = "the agent's start")]
        pub changes: u64,
        /// Guest memory where hot pages of 4 KiB lie scattered among cold ones, as far as DAMON has looked
        /// page by page. IBS or an agent in the guest would see such pages at once.
        #[metric(gauge = "scattered_bytes")]
        pub scattered_bytes: u64,
        /// Bytes promoted; each page's place was verified.
        #[metric(counter = "promoted_bytes", since = "the agent's start")]
        pub promoted_bytes: u64,
        /// Bytes demoted; each page's place was verified.
        #[metric(counter = "demoted_bytes", since = "the agent's start")]
        pub demoted_bytes: u64,
        /// Pages that were to move: those that moved, and those of all classes of `failed`, also those
        /// that the kernel was not asked for as they could not move.
        #[metric(counter = "tried_pages", since = "the agent's start")]
        pub tried_pages: u64,
        /// Pages that moved; each page's place was verified.
        #[metric(counter = "moved_pages", since = "the agent's start")]
        pub moved_pages: u64,
        /// Pages that did not move, by class; see the operating guide.
        #[metric(
            counter = "failed_pages",
            by = "class",
            except = "moved",
            since = "the agent's start"
        )]
        pub failed: BTreeMap<Outcome, u64>,
        /// Bytes that moved back within half of the horizon, which was not worth the move; estimated.
        #[metric(counter = "returned_bytes", since = "the agent's start")]
        pub returned_bytes: u64,
        /// How exchanges are slowed, and why; absent if they are not.
        pub brake: Option<Brake>,
        /// Times that exchanges slowed down, by reason.
        #[metric(counter = "slowdowns", by = "reason", since = "the agent's start")]
        pub slowdowns: BTreeMap<BrakeReason, u64>,
        /// Present guest memory, by the size of its pages in bytes.
        #[metric(gauge = "present_bytes", by = "page_size")]
        pub page_sizes: BTreeMap<u64, u64>,
        /// Huge pages that few of their frames make hot, among those of the 2048 that are sampled most.
        /// A source that tests pages does not know any.
        #[metric(gauge = "skewed_pages")]
        pub skewed_pages: u64,
        /// Huge pages that the kernel was asked to split, by what became of it.
        #[metric(
            counter = "huge_page_splits",
            by = "outcome",
            since = "the agent's start"
        )]
        pub splits: BTreeMap<ReshapeOutcome, u64>,
        /// Ranges of 2 MiB that the kernel was asked to make a huge page, by what became of it.
        #[metric(
            counter = "huge_page_collapses",
            by = "outcome",
            since = "the agent's start"
        )]
        pub collapses: BTreeMap<ReshapeOutcome, u64>,
        /// Guest memory that is not present.
        #[metric(gauge = "absent_bytes")]
        pub absent_bytes: u64,
        /// Guest memory on nodes of neither tier.
        #[metric(gauge = "elsewhere_bytes")]
        pub elsewhere_bytes: u64,
        /// Memory whose next pages come from the tier on which its pages lie.
        pub rebind: Rebinding,
        /// Pages that are being moved.
        #[metric(gauge = "in_flight_pages")]
        pub in_flight_pages: u64,
        /// Memory that the agent's index and heaps take.
        #[metric(gauge = "engine_memory_bytes")]
        pub engine_memory_bytes: u64,
        /// CPU time that the move of a page takes on this host, measured, by page size in bytes.
        #[metric(gauge = "move_cost_seconds", by = "page_size")]
        pub move_cost_ns: BTreeMap<u64, u64>,
        /// Number of the memory map; it grows when the guest's layout changes.
        #[metric(gauge = "map_generation")]
        pub map_generation: u64,
        /// How far the drain has come, if a drain was asked for since the limit was set last.
        pub drain: Option<DrainProgress>,
        /// What would have been moved, in a dry run.
        pub dry_run: Option<Planned>,
    }
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
        spare_bytes: mover.rooms.spare_bytes(nodes),
        closed: mover.rooms.closed(nodes).cloned().collect(),
    };
    Snapshot {
        state: engine.state(),
        policy: orders.policy(),
        tiers: vec![
            tier(Tier::Fast, 0, &tiers.fast),
            tier(Tier::Slow, 1, &tiers.slow),
        ],
        hit_ratio: evidence.stats.hit_ratio(),
        tier_bias: evidence.tier_bias(),
        changes: evidence.changes(),
        scattered_bytes: evidence.grids.bytes(),
        promoted_bytes: mover.totals.promoted_bytes,
        demoted_bytes: mover.totals.demoted_bytes,
        tried_pages: mover.totals.tried_pages,
        moved_pages: mover.totals.moved_pages,
        failed: mover.totals.failed.clone(),
        returned_bytes: mover.ping_pong.returned_bytes,
        brake: mover.brake(&orders.settings),
        slowdowns: mover.slowdowns(),
        page_sizes: pages.bytes().by_page_size.clone(),
        splits: mover.reshaper.split_counts().clone(),
        collapses: mover.reshaper.collapse_counts().clone(),
        skewed_pages: evidence.skew.skewed(),
        absent_bytes: pages.scanner.last_round.absent_bytes,
        elsewhere_bytes: pages.scanner.last_round.elsewhere_bytes,
        rebind: pages.rebinding(orders.settings.rebind),
        in_flight_pages: mover.in_flight.pages().count() as u64,
        engine_memory_bytes: engine.memory_bytes() as u64,
        move_cost_ns: mover.totals.costs.measured(),
        map_generation: engine.map().map_or(0, GuestMemoryMap::generation),
        drain: engine.drain_progress(),
        dry_run: orders.settings.dry_run.then_some(mover.totals.planned),
    }
}
