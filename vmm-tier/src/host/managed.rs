//! A VM that has an agent, or had one: what is known of it.

use std::{sync::Arc, time::Duration};

use tier_core::{
    arbiter::{self, DemandCurve, Due, Terms},
    time::Time,
};

use super::{
    desk::Taken,
    latency::Latency,
    protocol::{LEASE_MS, Report},
    qemu::Qemu,
    report::{HostVm, VmState},
    settings::Grant,
};

/// From when on a VM without a report is quiet: two reports are missing then.
pub(super) const QUIET_AFTER: Duration = Duration::from_secs(3);
/// How long a share holds after the last reply.
pub(super) const LEASE: Duration = Duration::from_millis(LEASE_MS);
/// The time over which CPU time and moves are averaged: the kernel counts CPU time in ticks, a hundredth
/// of a second each.
const AVERAGED: Duration = Duration::from_secs(10);
/// CPU time is not known better than a tick a second.
const LEAST_VCPU_S_PER_S: f64 = 0.01;
/// While CPU time is not known, no claim is doubted.
const UNKNOWN_VCPU_S_PER_S: f64 = 1e6;
/// The kernel's account and the agent's may differ by this part of the guest's memory, or by these bytes:
/// pages move between the two looks.
const TOLERATED_PART: u64 = 20;
const TOLERATED_BYTES: u64 = 32 << 20;
/// A VM is reckoned to move what it lacks, or has too much, within this time.
const MOVE_WITHIN: Duration = Duration::from_secs(5);
/// What each VM may move a second besides, so that exchanges go on.
const EXCHANGE_BYTES_PER_S: u64 = 16 << 20;

/// A counter's growth a second, averaged.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    last: Option<(Time, f64)>,
    per_s: Option<f64>,
}

impl Rate {
    /// Takes in the counter's value. A counter that fell begins anew.
    fn take(&mut self, now: Time, value: f64) {
        if let Some((at, before)) = self.last {
            let span = now.since(at).as_secs_f64();
            if span <= 0.0 {
                return;
            }
            let fresh = (value - before).max(0.0) / span;
            let weight = 1.0 - (-span / AVERAGED.as_secs_f64()).exp();
            self.per_s = Some(match self.per_s {
                Some(per_s) => per_s + (fresh - per_s) * weight,
                None => fresh,
            });
        }
        self.last = Some((now, value));
    }
}

/// What the VM has by the arbiter's last decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Dealt {
    pub(super) due: Due,
    pub(super) credit_byte_s: f64,
}

/// The agent's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AgentProcess {
    /// By the kernel's word.
    pub(super) pid: u32,
    /// Its control socket, by its own word.
    pub(super) control: Option<String>,
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct Managed {
    pub(super) qemu: Qemu,
    /// The connection of its agent.
    pub(super) connection: Option<u64>,
    pub(super) agent: Option<AgentProcess>,
    /// The guest's memory, and the size of most of its pages.
    memory: u64,
    page: u64,
    pub(super) terms: Terms,
    /// When the agent had its last reply.
    pub(super) heard: Time,
    /// The last report of any agent of this VM; `None` after the lease has ended.
    report: Option<Report>,
    curve: DemandCurve,
    /// What the two last reports said that it holds.
    told: [u64; 2],
    /// What the kernel says that it holds, and whether no report has come since.
    kernel: Option<u64>,
    is_fresh: bool,
    /// The agent's account is not believed.
    doubted: bool,
    vcpu: Rate,
    moved: Rate,
    /// What the agent may hold by the last decision that it can know of.
    pub(super) share: Option<u64>,
    /// Whether the arbiter knows the share.
    pub(super) is_dealt: bool,
    pub(super) dealt: Option<Dealt>,
    pub(super) move_budget: u64,
    /// Since when it has less than it uses of its guarantee, and whether that was told.
    pub(super) short_since: Option<(Time, bool)>,
    /// The state that was told last.
    pub(super) state_told: VmState,
}

impl Managed {
    pub(super) fn new(
        now: Time,
        qemu: Qemu,
        connection: u64,
        (memory, page): (u64, u64),
        grant: &Grant,
    ) -> Self {
        Self {
            qemu,
            connection: Some(connection),
            agent: None,
            memory,
            page,
            terms: grant.terms(memory, page),
            heard: now,
            report: None,
            curve: DemandCurve::default(),
            told: [0; 2],
            kernel: None,
            is_fresh: false,
            doubted: false,
            vcpu: Rate::default(),
            moved: Rate::default(),
            share: None,
            is_dealt: false,
            dealt: None,
            move_budget: 0,
            short_since: None,
            state_told: VmState::Waiting,
        }
    }

    /// What the operator grants it now.
    pub(super) fn grant(&mut self, grant: &Grant) {
        self.terms = self.terms_of(grant);
    }

    pub(super) fn terms_of(&self, grant: &Grant) -> Terms {
        grant.terms(self.memory, self.page)
    }

    /// Another agent of the same VM has registered.
    pub(super) fn resume(
        &mut self,
        now: Time,
        connection: u64,
        (memory, page): (u64, u64),
        grant: &Grant,
    ) {
        (self.memory, self.page) = (memory, page);
        self.grant(grant);
        self.connection = Some(connection);
        self.heard = now;
        self.moved.last = None;
        self.state_told = VmState::Waiting;
    }

    /// Takes in a report. Returns whether the agent's account is doubted from now on.
    pub(super) fn take(&mut self, taken: Taken) -> bool {
        let Taken { at, report, .. } = taken;
        self.heard = self.heard.max(at);
        self.curve = DemandCurve::of_points(report.curve.iter().copied());
        let held = report.fast_bytes.min(self.memory);
        self.told = match self.report {
            Some(_) => [self.told[1], held],
            None => [held; 2],
        };
        let moved = report.promoted_bytes.saturating_add(report.demoted_bytes);
        self.moved.take(at, moved as f64);
        self.report = Some(report);
        let was_doubted = self.doubted;
        if std::mem::take(&mut self.is_fresh) {
            self.doubted = self.is_contradicted();
        }
        self.doubted && !was_doubted
    }

    /// Whether the kernel's account differs from what the agent told before and after it.
    fn is_contradicted(&self) -> bool {
        let tolerated = (self.memory / TOLERATED_PART).max(TOLERATED_BYTES);
        let [a, b] = self.told;
        self.kernel.is_some_and(|bytes| {
            bytes > a.max(b).saturating_add(tolerated) || bytes.saturating_add(tolerated) < a.min(b)
        })
    }

    /// Takes in how long its virtual CPUs ran since they began.
    pub(super) fn take_ran(&mut self, at: Time, ran: Duration) {
        self.vcpu.take(at, ran.as_secs_f64());
    }

    /// Takes in what the kernel says that it holds. It is compared with the agent's account when the next
    /// report has come: pages move meanwhile.
    pub(super) fn take_held(&mut self, bytes: u64) {
        self.kernel = Some(bytes);
        self.is_fresh = true;
    }

    pub(super) fn state(&self, now: Time) -> VmState {
        let silent = now.since(self.heard);
        if silent > LEASE {
            VmState::Expired
        } else if silent > QUIET_AFTER {
            VmState::Quiet
        } else if self.report.is_some() {
            VmState::Reporting
        } else {
            VmState::Waiting
        }
    }

    /// The lease has ended: the agent holds itself to no share any more.
    pub(super) fn expire(&mut self) {
        self.report = None;
        self.share = None;
        self.is_dealt = false;
        self.dealt = None;
        self.short_since = None;
        self.move_budget = 0;
        self.doubted = false;
    }

    /// Whether it takes part in the division: what it uses must be known.
    pub(super) const fn takes_part(&self) -> bool {
        self.report.is_some()
    }

    /// The DRAM that it holds, as it is charged.
    pub(super) fn holds(&self) -> u64 {
        match (&self.report, self.kernel) {
            (Some(_), Some(kernel)) if self.doubted => kernel,
            (Some(_), _) => self.told[1],
            (None, Some(kernel)) => kernel,
            (None, None) => self.share.unwrap_or(0),
        }
    }

    /// What nobody else may have while it takes no part.
    pub(super) fn charge(&self) -> u64 {
        self.holds().max(self.share.unwrap_or(0))
    }

    /// What the arbiter must know of it. What a VM may hold whose agent does not hear is held, and so is
    /// the share with which a VM comes from an earlier daemon.
    pub(super) fn measured(&self, state: VmState) -> arbiter::Vm {
        let keeps_share = state == VmState::Quiet || !self.is_dealt;
        arbiter::Vm {
            terms: self.terms.clone(),
            curve: self.curve.clone(),
            holds_bytes: match keeps_share {
                true => self.charge(),
                false => self.holds(),
            },
            vcpu_s_per_s: (self.vcpu.per_s)
                .map_or(UNKNOWN_VCPU_S_PER_S, |per_s| per_s.max(LEAST_VCPU_S_PER_S)),
        }
    }

    /// What it would move a second if it could.
    pub(super) fn wanted_bytes_per_s(&self) -> u64 {
        let share = self.share.unwrap_or(self.terms.cap_bytes);
        let way = share.abs_diff(self.holds());
        let moved = self.moved.per_s.unwrap_or(0.0) as u64;
        way.div_ceil(MOVE_WITHIN.as_secs())
            .saturating_add(moved)
            .saturating_add(EXCHANGE_BYTES_PER_S)
    }

    /// What it uses of its guarantee and has not, in bytes.
    pub(super) fn deficit(&self) -> u64 {
        let demand = self.dealt.map_or(0, |dealt| dealt.due.demand_bytes);
        let needed = self.terms.guarantee_bytes.min(demand);
        needed.saturating_sub(self.holds())
    }

    /// Bytes promoted and demoted a second.
    pub(super) fn moves_per_s(&self) -> Option<f64> {
        self.moved.per_s
    }

    /// Where the guest's RAM lies, if its agent told.
    pub(super) fn ram(&self) -> Option<Arc<[(u64, u64)]>> {
        let report = self.report.as_ref();
        report
            .filter(|report| !report.ram.is_empty())
            .map(|report| report.ram.as_slice().into())
    }

    pub(super) fn report(&self, now: Time, name: &str, latency: Latency) -> HostVm {
        let report = self.report.as_ref();
        let hit_ratio = report
            .and_then(|report| report.hit_ratio)
            .map(|ratio| ratio.clamp(0.0, 1.0));
        let due = self.dealt.map(|dealt| dealt.due);
        let agent = self.agent.as_ref().filter(|_| self.connection.is_some());
        HostVm {
            name: name.to_owned(),
            pid: self.qemu.pid,
            uuid: self.qemu.uuid.clone(),
            state: self.state(now),
            refused: None,
            weight: self.terms.weight,
            guarantee_bytes: self.terms.guarantee_bytes,
            cap_bytes: self.terms.cap_bytes,
            goal: self.terms.goal,
            entitled_bytes: due.map(|due| due.entitled_bytes),
            fair_bytes: due.map(|due| due.fair_bytes),
            share_bytes: self.share,
            fast_bytes: self.holds(),
            kernel_bytes: self.kernel,
            demand_bytes: due.map(|due| due.demand_bytes),
            limit_bytes: report.and_then(|report| report.limit_bytes),
            hit_ratio,
            slowdown: hit_ratio.map(|ratio| {
                let accesses = self.curve.total_hits();
                latency.slowdown(ratio, accesses, self.vcpu.per_s)
            }),
            credits: self.dealt.map(|dealt| dealt.credit_byte_s),
            source: report.and_then(|report| report.source.clone()),
            agent_state: report.map(|report| report.state.clone()),
            waits_for: report.and_then(|report| report.waits_for.clone()),
            control: agent.and_then(|agent| agent.control.clone()),
            agent_pid: agent.map(|agent| agent.pid),
            moves_per_s: report.and(self.moved.per_s),
            move_budget_bytes_per_s: report.map(|_| self.move_budget),
            report_age_s: report.map(|_| now.since(self.heard).as_secs_f64()),
        }
    }
}
