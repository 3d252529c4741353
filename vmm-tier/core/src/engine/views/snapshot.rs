//! What the engine tells the outside: one serialisable picture of a VM.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use crate::engine::{Conditions, DrainProgress, PinsSnapshot, PolicySnapshot, TierBias, VmEngine};
use crate::{
    addr::NodeSet, heat_store::StoreSnapshot, moves::Outcome, sample::SampleAccount, settings::Tier,
};

/// What the engine is doing, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// The placement of the guest's pages is being looked up, or the source warms up.
    Starting,
    /// Tiering.
    Running,
    /// Paused by the operator.
    Paused,
    /// The guest's CPUs are stopped; so is tiering.
    GuestStopped,
    /// No source delivers. Nothing is moved.
    Blind,
    /// QEMU's monitor can't be reached. Nothing is moved.
    Detached,
}

impl VmState {
    /// The word that clients see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::GuestStopped => "guest-stopped",
            Self::Blind => "blind",
            Self::Detached => "detached",
        }
    }
}

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
    /// How differently the source sees the tiers; `null` for one that tests pages, which sees them alike.
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
    /// Where heat is kept.
    pub heat: StoreSnapshot,
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

impl VmEngine {
    /// The state in one word.
    #[must_use]
    pub fn state(&self) -> VmState {
        let Conditions {
            operator_paused,
            guest_stopped,
            attached,
        } = self.conditions;
        if !attached {
            VmState::Detached
        } else if operator_paused {
            VmState::Paused
        } else if guest_stopped {
            VmState::GuestStopped
        } else if !self.scanner.has_seen_all() {
            VmState::Starting
        } else if self.sources.main.is_none() {
            VmState::Blind
        } else if self.observed < self.warm_up() {
            VmState::Starting
        } else {
            VmState::Running
        }
    }

    /// How long a source must have watched: one that counts accesses says something with each of them, and what it
    /// says is weighed (the census); one that tests pages must first find its regions and its pace.
    fn warm_up(&self) -> Duration {
        match self.tally.counts_accesses() {
            true => self.settings.warm_up / 4,
            false => self.settings.warm_up,
        }
    }

    /// The picture now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let tier = |tier: Tier, rank, nodes: &NodeSet| TierSnapshot {
            rank,
            nodes: nodes.clone(),
            bytes: self.bytes.of(tier),
            limit_bytes: self
                .settings
                .fast_limit_bytes
                .filter(|_| tier == Tier::Fast),
            free_bytes: self.nodes_of(nodes).map(|node| node.free_bytes).sum(),
        };
        Snapshot {
            state: self.state(),
            samples: self.sources.total(),
            tiers: vec![
                tier(Tier::Fast, 0, &self.tiers.fast),
                tier(Tier::Slow, 1, &self.tiers.slow),
            ],
            hit_ratio: self.tally.hit_ratio(),
            tier_bias: self.tally.counts_accesses().then(|| self.bias.report()),
            promoted_bytes: self.totals.promoted_bytes,
            demoted_bytes: self.totals.demoted_bytes,
            failed: self.totals.failed.clone(),
            page_sizes: self.bytes.by_page_size.clone(),
            absent_bytes: self.scanner.last_round.absent_bytes,
            elsewhere_bytes: self.scanner.last_round.elsewhere_bytes,
            in_flight_pages: self.flights.pages().count() as u64,
            engine_memory_bytes: self.memory_bytes() as u64,
            heat: self.heap.snapshot(),
            move_cost_ns: self.totals.costs.measured(),
            map_generation: self.map.as_ref().map_or(0, |map| map.generation()),
            policy: self.policy(),
            pins: self.pins.snapshot(),
            drain: self.drain_progress(),
            dry_run: self.settings.dry_run.then_some(self.totals.planned),
        }
    }
}
