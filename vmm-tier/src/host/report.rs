//! What `query-host` tells: the host's DRAM, who has how much of it, and how fair that is.

use std::collections::BTreeMap;

use tier_core::{
    arbiter::{
        Fairness, Mode,
        alarms::{Alarm, AlarmBook, HostFacts, VmFacts, Voice},
    },
    engine::Wait,
    time::Time,
};

tier_core::words! {
    /// What the daemon knows of a VM's agent.
    pub(crate) enum VmState {
        /// The agent has registered, and has not reported yet.
        Waiting = "waiting",
        /// The agent reports.
        Reporting = "reporting",
        /// The agent is silent; the VM keeps its share until the lease ends.
        Quiet = "quiet",
        /// The agent is silent, and the lease has ended: the VM is charged with what it holds.
        Expired = "expired",
        /// The VM has no agent: it is charged with what it holds.
        Unmanaged = "unmanaged",
    }
}

tier_core::words! {
    /// Why a report was refused.
    pub(crate) enum ReportFault {
        /// The connection has registered no VM.
        NotRegistered = "not-registered",
        /// Its number is not the one that was due.
        Number = "number",
        /// It is older than a report can be, or older than the one before.
        Old = "old",
        /// It was made in the future.
        Future = "future",
        /// Too many reports came within a second.
        Flood = "flood",
        /// A figure makes no sense.
        Malformed = "malformed",
    }
}

tier_core::report! {
    /// The host's DRAM, who has how much of it, and how fair that is.
    #[derive(Clone, Debug)]
    pub(crate) struct HostInfo = "HostInfo" {
        /// What decides who has how much.
        #[metric(states = "host_mode")]
        pub(crate) mode: Mode,
        /// For the mode `utility`: which part of its fair share a VM can lose to others that make more
        /// hits of it.
        #[metric(gauge = "host_band_ratio")]
        pub(crate) band: f64,
        /// DRAM that is dealt to VMs with agents.
        #[metric(gauge = "host_pool_bytes")]
        pub(crate) pool_bytes: u64,
        /// DRAM for guests by the configuration: the pool, and what VMs without agents hold.
        #[metric(gauge = "host_configured_pool_bytes")]
        pub(crate) configured_bytes: u64,
        /// DRAM that VMs hold whose agents do not report.
        #[metric(gauge = "host_charged_bytes")]
        pub(crate) charged_bytes: u64,
        /// DRAM of the pool that is nobody's share.
        #[metric(gauge = "host_free_bytes")]
        pub(crate) free_bytes: u64,
        /// Bytes by which the guarantees of all VMs exceed the pool.
        #[metric(gauge = "host_guarantee_shortfall_bytes")]
        pub(crate) shortfall_bytes: u64,
        /// Whether shares stay as they are, since the daemon has just started and waits for agents.
        #[metric(gauge = "host_starting")]
        pub(crate) starting: bool,
        /// A drain that was ordered; absent if there is none.
        pub(crate) drain: Option<HostDrain>,
        /// What all VMs together may move.
        pub(crate) moves: HostMoves,
        /// What came on the socket.
        pub(crate) reports: HostReports,
        /// The VMs, by name.
        pub(crate) vms: Vec<HostVm>,
        /// How fair the division is.
        pub(crate) fairness: Fairness,
        /// What an operator should know now, the worst first.
        #[metric(exempt = "texts; the figures that they are made of are metrics")]
        pub(crate) alarms: Vec<Alarm>,
        /// Where the state file is.
        #[metric(exempt = "text")]
        pub(crate) state_file: String,
        /// Why the state file can't be written, if it can't.
        #[metric(
            presence = "host_state_file_failed",
            help = "Whether the daemon's state file can't be written"
        )]
        pub(crate) state_file_error: Option<String>,
    }
}

tier_core::report! {
    /// How far the guests have left DRAM.
    #[derive(Clone, Debug, PartialEq)]
    pub(crate) struct HostDrain = "HostDrain" {
        /// DRAM that guests may keep.
        #[metric(gauge = "host_drain_target_bytes")]
        pub(crate) to_bytes: u64,
        /// DRAM that guests hold.
        #[metric(gauge = "host_drain_held_bytes")]
        pub(crate) held_bytes: u64,
        /// DRAM that guests have still to leave.
        #[metric(gauge = "host_drain_left_bytes")]
        pub(crate) left_bytes: u64,
        /// Whether guests hold no more than they may keep.
        #[metric(gauge = "host_drain_done")]
        pub(crate) done: bool,
    }
}

tier_core::report! {
    /// What all VMs together may move.
    #[derive(Clone, Debug, PartialEq)]
    pub(crate) struct HostMoves = "HostMoves" {
        /// The most bytes that all VMs may promote and demote a second.
        #[metric(gauge = "host_move_budget_bytes_per_second")]
        pub(crate) budget_bytes_per_s: u64,
        /// Bytes that all VMs promote and demote a second.
        #[metric(gauge = "host_moved_bytes_per_second")]
        pub(crate) bytes_per_s: f64,
    }
}

tier_core::report! {
    /// What came on the daemon's socket.
    #[derive(Clone, Debug, PartialEq)]
    pub(crate) struct HostReports = "HostReports" {
        /// Clients connected now.
        #[metric(gauge = "host_socket_clients")]
        pub(crate) clients: usize,
        /// Registrations of agents that were taken.
        #[metric(counter = "host_registrations", since = "the daemon's start")]
        pub(crate) registered: u64,
        /// Registrations of agents that were refused.
        #[metric(counter = "host_refused_registrations", since = "the daemon's start")]
        pub(crate) refused_registrations: u64,
        /// Reports of agents that were taken.
        #[metric(counter = "host_reports", since = "the daemon's start")]
        pub(crate) accepted: u64,
        /// Reports of agents that were refused, by why.
        #[metric(counter = "host_refused_reports", since = "the daemon's start", by = "reason")]
        pub(crate) refused: BTreeMap<ReportFault, u64>,
        /// Checks that found another amount of DRAM than the VM's agent had told.
        #[metric(counter = "host_account_mismatches", since = "the daemon's start")]
        pub(crate) mismatches: u64,
    }
}

tier_core::report! {
    /// A VM, what it is granted, what it uses and what it has.
    #[derive(Clone, Debug, PartialEq)]
    pub(crate) struct HostVm = "HostVm" {
        /// Its name.
        #[metric(label = "domain")]
        pub(crate) name: String,
        /// The process of its QEMU.
        #[metric(info = "host_vm")]
        pub(crate) pid: u32,
        /// The UUID on QEMU's command line, if there is one.
        #[metric(info = "host_vm")]
        pub(crate) uuid: Option<String>,
        /// Whether its agent reports.
        #[metric(states = "host_vm_state")]
        pub(crate) state: VmState,
        /// Why its agent was refused; absent if it was not.
        #[metric(
            presence = "host_vm_refused",
            help = "Whether the VM's agent was refused, so that it has no share"
        )]
        pub(crate) refused: Option<String>,
        /// Its part of what is above all guarantees, relative to other VMs' weights.
        #[metric(gauge = "host_vm_weight")]
        pub(crate) weight: f64,
        /// DRAM that is the VM's whenever it uses as much.
        #[metric(gauge = "host_vm_guarantee_bytes")]
        pub(crate) guarantee_bytes: u64,
        /// The most DRAM that the VM may have.
        #[metric(gauge = "host_vm_cap_bytes")]
        pub(crate) cap_bytes: u64,
        /// The share of accesses that DRAM shall serve; absent if the VM has no goal.
        #[metric(gauge = "host_vm_goal_ratio")]
        pub(crate) goal: Option<f64>,
        /// What the VM would have if every VM wanted as much as it may have.
        #[metric(gauge = "host_vm_entitled_bytes")]
        pub(crate) entitled_bytes: Option<u64>,
        /// What the VM has by weight and demand.
        #[metric(gauge = "host_vm_fair_bytes")]
        pub(crate) fair_bytes: Option<u64>,
        /// What the VM may hold now; absent if it has no share.
        #[metric(gauge = "host_vm_share_bytes")]
        pub(crate) share_bytes: Option<u64>,
        /// DRAM that the VM is charged with: what it holds, by its agent's account, or the kernel's if
        /// that differs.
        #[metric(gauge = "host_vm_fast_bytes")]
        pub(crate) fast_bytes: u64,
        /// DRAM that its QEMU holds by the kernel's account, when that was read last.
        #[metric(gauge = "host_vm_kernel_fast_bytes")]
        pub(crate) kernel_bytes: Option<u64>,
        /// The memory that the VM uses.
        #[metric(gauge = "host_vm_demand_bytes")]
        pub(crate) demand_bytes: Option<u64>,
        /// The operator's limit of the VM, as its agent tells it.
        #[metric(gauge = "host_vm_limit_bytes")]
        pub(crate) limit_bytes: Option<u64>,
        /// The share of accesses that DRAM served.
        #[metric(gauge = "host_vm_hit_ratio")]
        pub(crate) hit_ratio: Option<f64>,
        /// How many times longer the guest's CPUs take than with all memory in DRAM, by the model of
        /// docs/host.md.
        #[metric(gauge = "host_vm_slowdown_ratio")]
        pub(crate) slowdown: Option<f64>,
        /// What others owe the VM, in bytes times seconds; below 0 what it owes.
        #[metric(gauge = "host_vm_credit_byte_seconds")]
        pub(crate) credits: Option<f64>,
        /// The source that its agent believes.
        #[metric(info = "host_vm")]
        pub(crate) source: Option<String>,
        /// The state of its agent.
        #[metric(exempt = "the agent's own metrics have it, and each change would begin a new series")]
        pub(crate) agent_state: Option<String>,
        /// What its agent's moves wait for, as `query-tier` calls it; absent while they wait for nothing.
        #[metric(exempt = "the agent's own metrics have it")]
        pub(crate) waits_for: Option<String>,
        /// The control socket of its agent, as the agent tells it.
        #[metric(exempt = "text")]
        pub(crate) control: Option<String>,
        /// The process of its agent.
        #[metric(exempt = "it changes with each start of the agent")]
        pub(crate) agent_pid: Option<u32>,
        /// Bytes promoted and demoted a second.
        #[metric(gauge = "host_vm_moved_bytes_per_second")]
        pub(crate) moves_per_s: Option<f64>,
        /// The most bytes that it may promote and demote a second.
        #[metric(gauge = "host_vm_move_budget_bytes_per_second")]
        pub(crate) move_budget_bytes_per_s: Option<u64>,
        /// How long ago its agent reported last.
        #[metric(gauge = "host_vm_report_age_seconds")]
        pub(crate) report_age_s: Option<f64>,
    }
}

tier_core::report! {
    /// Whether a VM would be admitted.
    #[derive(Clone, Debug, PartialEq)]
    pub(crate) struct HostAdmission = "HostAdmission" {
        /// Whether it would.
        pub(crate) fits: bool,
        /// Why not, with the sums; absent if it would.
        pub(crate) reason: Option<String>,
        /// Bytes of the pool that would be guaranteed to nobody; without the VM if it does not fit.
        pub(crate) unguaranteed_bytes: u64,
    }
}

impl HostInfo {
    /// What an operator should know at `now`.
    pub(crate) fn alarms_at(&self, now: Time, book: &mut AlarmBook) -> Vec<Alarm> {
        let host = HostFacts {
            shortfall_bytes: self.shortfall_bytes,
            state_file_error: self.state_file_error.as_deref(),
        };
        book.look(now, &host, self.vms.iter().map(HostVm::facts))
    }
}

impl HostVm {
    /// What alarms are made of.
    fn facts(&self) -> VmFacts<'_> {
        let wait = self.waits_for.as_deref();
        VmFacts {
            name: &self.name,
            voice: match self.state {
                VmState::Waiting | VmState::Reporting => Voice::Heard,
                VmState::Quiet => Voice::Quiet,
                VmState::Expired => Voice::Expired,
                VmState::Unmanaged => Voice::None,
            },
            refused: self.refused.as_deref(),
            guarantee_bytes: self.guarantee_bytes,
            share_bytes: self.share_bytes,
            demand_bytes: self.demand_bytes,
            fast_bytes: self.fast_bytes,
            limit_bytes: self.limit_bytes,
            is_blind: self.agent_state.as_deref() == Some("blind"),
            waits_for: wait.and_then(|word| Wait::ALL.into_iter().find(|it| it.name() == word)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tier_core::report::{
        Object,
        family::{families, left_out},
    };

    use super::*;

    #[test]
    fn figures_are_metrics_or_say_why_not() {
        let host = Object::of::<HostInfo>();
        let unsaid = left_out(host).into_iter().filter(|(_, why)| why.is_none());
        assert_eq!(unsaid.collect::<Vec<_>>(), []);
        let names: Vec<String> = families(host).into_iter().map(|it| it.name).collect();
        let unique: HashSet<&String> = names.iter().collect();
        assert_eq!(unique.len(), names.len(), "{names:?}");
    }
}
