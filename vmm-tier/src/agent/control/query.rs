//! The reply to `query-tier`.

use tier_core::engine::Snapshot;

use super::{Control, SocketReport, pins::PinsReport};
use crate::agent::{
    Agent,
    sources::{SourceHealth, SourceReport},
    state_file::{PolicyName, Restored, StateFileReport},
};

tier_core::words! {
    /// Who wants moves to pause.
    pub(in crate::agent) enum Pauser {
        /// An operator.
        Operator = "operator",
        /// A migration of the guest.
        Migration = "migration",
    }
}

tier_core::report! {
    /// One VM's tiering. Sizes are in bytes.
    #[derive(Clone, Debug)]
    pub(in crate::agent) struct TierInfo = "TierInfo" {
        /// The VM's name.
        #[metric(exempt = "the label `vm` of every sample")]
        name: String,
        /// QEMU's process.
        #[metric(info = "vm")]
        pid: u32,
        /// Seconds since the agent's start.
        #[metric(gauge = "agent_uptime_seconds")]
        uptime_s: u64,
        /// Who wants moves to pause: an operator (`tier-pause`), or a migration of the guest.
        #[metric(states = "paused_by")]
        paused_by: Vec<Pauser>,
        /// QEMU's word for how the migration stands, while a migration is under way.
        #[metric(exempt = "text; `vmm_tier_paused_by` says that a migration is under way")]
        migration: Option<String>,
        /// Why the kernel refuses to move or look up pages, if it does.
        #[metric(
            presence = "moves_refused",
            help = "Whether the kernel refuses to move or look up pages"
        )]
        refused: Option<String>,
        /// The policy in force.
        #[metric(info = "vm")]
        policy: PolicyName,
        /// The source that is believed; where none is, the first that may be.
        #[metric(exempt = "part of `sources`; `vmm_tier_source_believed` says which source it is")]
        source: SourceReport,
        /// All sources that may be believed.
        sources: Vec<SourceHealth>,
        /// What the engine knows.
        #[serde(flatten)]
        engine: Snapshot,
        /// What is pinned.
        pins: PinsReport,
        /// Where the agent is asked, and by how many.
        sockets: Vec<SocketReport>,
        /// What the state file said at the agent's start, if it said anything.
        #[metric(exempt = "never changes while the agent runs")]
        restored: Option<Restored>,
        /// Where what commands set is kept over a restart of the agent.
        state_file: StateFileReport,
    }
}

impl Agent {
    /// What the agent does and how that goes.
    pub(super) fn query_tier(&self) -> TierInfo {
        let refused = self.refusal.now.as_ref();
        let sockets = self.control.iter().chain(&self.proxy);
        TierInfo {
            name: self.name.clone(),
            pid: self.pid,
            uptime_s: self.started.elapsed().as_secs(),
            paused_by: self.paused_by(),
            migration: self.migration.under_way().map(ToString::to_string),
            refused: refused.or(self.look_up_trouble.now.as_ref()).cloned(),
            policy: PolicyName::DualHeap,
            source: self.source_report(),
            sources: self.sources.report(self.engine.sources()),
            engine: self.engine.snapshot(),
            pins: self.pins_report(),
            sockets: sockets.map(Control::report).collect(),
            restored: self.saved.restored().cloned(),
            state_file: self.saved.report(),
        }
    }

    /// Who wants moves to pause.
    pub(in crate::agent) fn paused_by(&self) -> Vec<Pauser> {
        let who = [
            (self.overrides.paused, Pauser::Operator),
            (self.migration.under_way().is_some(), Pauser::Migration),
        ];
        let who = who.into_iter().filter(|(wants, _)| *wants);
        who.map(|(_, who)| who).collect()
    }
}
