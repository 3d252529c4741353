//! The dealer: what the daemon knows and decides. It has no clock and reads nothing; a thread steps it.
//!
//! ```text
//!  registrations ─┐
//!  reports ───────┤                              ┌─► leases
//!  sightings ─────┼─► Dealer ─► Arbiter::deal ───┼─► query-host
//!  commands ──────┤                              └─► events
//!  ticks ─────────┘
//! ```
//!
//! A VM is *managed* from the registration of its agent until its QEMU ends. A QEMU without an agent, or
//! whose agent was refused, is a *stranger*. What strangers hold is taken off the pool; so is what managed
//! VMs hold whose agents are silent beyond their lease.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tier_core::{
    arbiter::{
        AdmitError, Arbiter, Fairness, FairnessMeter, MAX_VMS, Mode, Moving, Standing, Terms,
        admit, deal_moves,
    },
    time::Time,
};

use super::{
    desk::Taken,
    drain::Drain,
    events::{DeficitEvent, Notice, SharesEvent, VmChange, VmEvent},
    latency::Latency,
    managed::{AgentProcess, Dealt, Managed},
    overrides::Overrides,
    protocol::{LEASE_MS, Lease, REPORT_EVERY_MS, Register},
    qemu::{Qemu, is_name},
    report::{HostAdmission, HostDrain, HostInfo, HostMoves, HostReports, HostVm, VmState},
    settings::{Grant, HostSettings},
    watcher::{Sighting, Watched},
};

/// How long a daemon that has just started waits at most for agents that were there before.
const SETTLE: Duration = Duration::from_secs(5);
/// An event tells of shares that this part of the pool was re-dealt of, and how often at most.
const SHARES_PART: f64 = 0.05;
const SHARES_EVENT_EVERY: Duration = Duration::from_secs(5);
/// The most VMs that commands may have set terms for.
const MOST_OVERRIDES: usize = 4 * MAX_VMS;

/// A QEMU that has no share.
#[derive(Clone, Debug)]
struct Stranger {
    qemu: Qemu,
    /// What the kernel says that it holds; `None` until that was read.
    kernel: Option<u64>,
    /// The name that an agent gave it, and why the agent was refused.
    refused: Option<(String, String)>,
}

/// Why an agent has no share.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegisterError {
    #[error(
        "user {uid} may not speak for QEMU {pid}, which runs as user {owner}: run the agent as root or as \
         that user"
    )]
    User { uid: u32, pid: u32, owner: u32 },
    #[error("'{0}' is no name of a VM: a name has 1 to 256 bytes and no control characters")]
    Name(String),
    #[error("a guest of {0} bytes is none")]
    Memory(u64),
    #[error("VM {name} is QEMU {pid}, which runs: give each VM a name of its own")]
    NameTaken { name: String, pid: u32 },
    #[error("QEMU {pid} is VM {name}: an agent registered it by that name")]
    PidTaken { pid: u32, name: String },
    #[error("VM {name} has an agent that is connected: a VM has one agent")]
    SecondAgent { name: String },
    #[error(transparent)]
    Admit(#[from] AdmitError),
}

/// Why a command can't be carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    #[error("'{0}' is no name of a VM: a name has 1 to 256 bytes and no control characters")]
    Name(String),
    #[error("{key} is {value}, but must be {must}")]
    OutOfRange {
        key: &'static str,
        value: String,
        must: String,
    },
    #[error(
        "terms of {MOST_OVERRIDES} VMs are set already: take some back, by host-set-vm with a name alone"
    )]
    TooMany,
    #[error(transparent)]
    Admit(#[from] AdmitError),
}

/// See the [module](self).
pub(super) struct Dealer {
    settings: HostSettings,
    pub(super) overrides: Overrides,
    /// DRAM for guests by the configuration.
    configured: u64,
    latency: Latency,
    arbiter: Arbiter,
    meter: FairnessMeter,
    vms: BTreeMap<String, Managed>,
    strangers: BTreeMap<u32, Stranger>,
    drain: Option<Drain>,
    began: Time,
    is_starting: bool,
    /// Whether QEMUs were looked for since the start.
    has_searched: bool,
    fairness: Fairness,
    pool: u64,
    free: u64,
    shortfall: u64,
    redealt_untold: u64,
    shares_told: Option<Time>,
    registered: u64,
    refused: u64,
    mismatches: u64,
    notices: Vec<Notice>,
    unseated: Vec<u64>,
}

impl Dealer {
    /// A daemon that begins at `now` with what commands had set before, on nodes that have `memory` bytes.
    pub(super) fn new(
        now: Time,
        settings: HostSettings,
        overrides: Overrides,
        memory: u64,
        latency: Latency,
    ) -> Self {
        let mut dealer = Self {
            configured: settings.pool.bytes(memory),
            latency,
            arbiter: Arbiter::new(settings.rules),
            meter: FairnessMeter::default(),
            vms: BTreeMap::new(),
            strangers: BTreeMap::new(),
            drain: overrides.drain_bytes.map(Drain::new),
            began: now,
            is_starting: true,
            has_searched: false,
            fairness: Fairness {
                jain: 1.0,
                worst_ratio: 1.0,
                ..Fairness::default()
            },
            pool: 0,
            free: 0,
            shortfall: 0,
            redealt_untold: 0,
            shares_told: None,
            registered: 0,
            refused: 0,
            mismatches: 0,
            notices: Vec::new(),
            unseated: Vec::new(),
            settings,
            overrides,
        };
        dealer.apply_rules();
        dealer.pool = dealer.most();
        dealer.free = dealer.pool;
        dealer
    }

    fn apply_rules(&mut self) {
        let mut rules = self.settings.rules;
        rules.saved_per_hit = self.latency.saved_per_hit();
        rules.mode = self.overrides.mode.unwrap_or(rules.mode);
        rules.band = self.overrides.band.unwrap_or(rules.band);
        self.arbiter.set_rules(rules);
    }

    /// What the operator grants a VM: by the configuration, and above it by commands.
    fn grant(&self, name: &str) -> Grant {
        let configured = self.settings.grant(name);
        match self.overrides.vms.get(name) {
            Some(set) => configured.with(set),
            None => configured,
        }
    }

    /// DRAM that guests may hold when a drain is done.
    fn most(&self) -> u64 {
        let drained = self.drain.as_ref().map_or(u64::MAX, Drain::to);
        self.configured.min(drained)
    }

    /// What strangers hold.
    fn strange(&self) -> u64 {
        let held = self.strangers.values().filter_map(|it| it.kernel);
        held.fold(0, u64::saturating_add)
    }

    /// The pool that guarantees are admitted to. A drain is the operator's own wish, and refuses nobody.
    /// While the daemon starts, strangers are VMs that come back; the VM that asks is none afterwards.
    fn admission_pool(&self, pid: Option<u32>) -> u64 {
        if self.is_starting {
            return self.configured;
        }
        let own = pid.and_then(|pid| self.strangers.get(&pid)?.kernel);
        let strange = self.strange().saturating_sub(own.unwrap_or(0));
        self.configured.saturating_sub(strange)
    }

    /// What all guests hold.
    fn held(&self) -> u64 {
        let managed = self.vms.values().map(Managed::holds);
        managed.fold(self.strange(), u64::saturating_add)
    }

    /// Admits terms to a pool beside those of all VMs but this one. A VM whose agent is silent keeps its
    /// guarantee.
    fn admit(&self, pool: u64, name: &str, terms: &Terms) -> Result<u64, AdmitError> {
        let others = self.vms.iter().filter(|(other, _)| *other != name);
        let others = others.map(|(name, vm)| (name.as_str(), &vm.terms));
        admit(pool, others, name, terms)
    }

    /// An agent registers its VM on a connection; `qemu` was proven, and `uid` is who asks.
    ///
    /// # Errors
    /// Why the VM gets no share. It is charged as a stranger then.
    pub(super) fn register(
        &mut self,
        now: Time,
        connection: u64,
        uid: u32,
        qemu: Qemu,
        told: &Register,
    ) -> Result<Lease, RegisterError> {
        match self.take_in(now, connection, uid, &qemu, told) {
            Ok(change) => {
                self.registered += 1;
                let held = self.strangers.remove(&qemu.pid).and_then(|it| it.kernel);
                let vm = self.vms.get_mut(&told.name);
                if let (Some(vm), Some(held)) = (vm, held) {
                    vm.take_held(held);
                }
                self.notices.push(Notice::Vm(VmEvent {
                    name: told.name.clone(),
                    pid: qemu.pid,
                    change,
                    reason: None,
                }));
                Ok(self.lease(&told.name))
            }
            Err(error) => {
                self.refused += 1;
                self.refuse(qemu, &told.name, &error);
                Err(error)
            }
        }
    }

    /// Keeps where the agent of a VM that it has registered can be asked.
    pub(super) fn know_agent(&mut self, name: &str, pid: u32, control: Option<String>) {
        if let Some(vm) = self.vms.get_mut(name) {
            vm.agent = Some(AgentProcess { pid, control });
        }
    }

    fn take_in(
        &mut self,
        now: Time,
        connection: u64,
        uid: u32,
        qemu: &Qemu,
        told: &Register,
    ) -> Result<VmChange, RegisterError> {
        let (name, pid) = (&told.name, qemu.pid);
        if uid != 0 && uid != qemu.uid {
            let owner = qemu.uid;
            return Err(RegisterError::User { uid, pid, owner });
        }
        if !is_name(name) {
            return Err(RegisterError::Name(name.clone()));
        }
        if told.memory_bytes == 0 {
            return Err(RegisterError::Memory(0));
        }
        let of_pid = self
            .vms
            .iter()
            .find(|(other, vm)| vm.qemu.pid == pid && *other != name);
        if let Some((other, vm)) = of_pid
            && vm.qemu.start == qemu.start
        {
            let name = other.clone();
            return Err(RegisterError::PidTaken { pid, name });
        }
        let grant = self.grant(name);
        let size = (told.memory_bytes, told.page_bytes);
        let (pool, terms) = (self.admission_pool(Some(pid)), grant.terms(size.0, size.1));
        if let Some(known) = self.vms.get(name) {
            if (known.qemu.pid, known.qemu.start) != (pid, qemu.start) {
                return Err(RegisterError::NameTaken {
                    name: name.clone(),
                    pid: known.qemu.pid,
                });
            }
            if known.connection.is_some() && known.state(now) != VmState::Expired {
                return Err(RegisterError::SecondAgent { name: name.clone() });
            }
            self.admit(pool, name, &terms)?;
            if let Some(known) = self.vms.get_mut(name) {
                self.unseated.extend(known.connection);
                known.resume(now, connection, size, &grant);
            }
            return Ok(VmChange::Back);
        }
        self.admit(pool, name, &terms)?;
        let mut vm = Managed::new(now, qemu.clone(), connection, size, &grant);
        if self.is_starting {
            vm.share = told
                .share_bytes
                .map(|share| self.earlier_share(share, &vm.terms));
        }
        self.vms.insert(name.clone(), vm);
        Ok(VmChange::Registered)
    }

    /// The share that a VM keeps from an earlier daemon: no more than there is.
    fn earlier_share(&self, told: u64, terms: &Terms) -> u64 {
        let taken = self.vms.values().filter_map(|vm| vm.share);
        let taken = taken.fold(self.strange(), u64::saturating_add);
        told.min(terms.cap_bytes)
            .min(self.most().saturating_sub(taken))
    }

    /// Remembers a QEMU whose agent was refused.
    fn refuse(&mut self, qemu: Qemu, name: &str, error: &RegisterError) {
        let is_managed =
            (self.vms.values()).any(|vm| (vm.qemu.pid, vm.qemu.start) == (qemu.pid, qemu.start));
        if is_managed {
            return;
        }
        let name = if is_name(name) { name } else { "" };
        let refused = Some((name.to_owned(), error.to_string()));
        let known = self
            .strangers
            .get(&qemu.pid)
            .filter(|it| it.qemu.start == qemu.start);
        let is_news = known.is_none_or(|it| it.refused != refused);
        let stranger = Stranger {
            kernel: known.and_then(|it| it.kernel),
            refused,
            qemu,
        };
        if is_news {
            self.notices.push(Notice::Vm(VmEvent {
                name: name.to_owned(),
                pid: stranger.qemu.pid,
                change: VmChange::Refused,
                reason: Some(error.to_string()),
            }));
        }
        self.strangers.insert(stranger.qemu.pid, stranger);
    }

    /// Reports came, and connections ended.
    pub(super) fn take(&mut self, reports: Vec<Taken>, ended: &[u64]) {
        let by_connection: BTreeMap<u64, String> = (self.vms.iter())
            .filter_map(|(name, vm)| Some((vm.connection?, name.clone())))
            .collect();
        for taken in reports {
            let name = by_connection.get(&taken.connection);
            let told = taken.report.fast_bytes;
            if let Some((name, vm)) = name.and_then(|name| Some((name, self.vms.get_mut(name)?)))
                && vm.take(taken)
            {
                self.mismatches += 1;
                tracing::warn!(
                    vm = name,
                    told,
                    kernel = vm.holds(),
                    "the agent tells of other DRAM than the kernel: the kernel's figure is charged"
                );
            }
        }
        for connection in ended {
            let name = by_connection.get(connection);
            if let Some(vm) = name.and_then(|name| self.vms.get_mut(name)) {
                vm.connection = None;
            }
        }
    }

    /// Takes in what the watcher saw.
    pub(super) fn sight(&mut self, seen: Sighting) {
        let gone: BTreeSet<(u32, u64)> = seen.gone.into_iter().collect();
        self.strangers
            .retain(|pid, it| !gone.contains(&(*pid, it.qemu.start)));
        let names: Vec<String> = (self.vms.iter())
            .filter(|(_, vm)| gone.contains(&(vm.qemu.pid, vm.qemu.start)))
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            if let Some(vm) = self.vms.remove(&name) {
                self.unseated.extend(vm.connection);
                self.notices.push(Notice::Vm(VmEvent {
                    name,
                    pid: vm.qemu.pid,
                    change: VmChange::Gone,
                    reason: None,
                }));
            }
        }
        let mut by_pid: BTreeMap<u32, (&String, &mut Managed)> = (self.vms.iter_mut())
            .map(|(name, vm)| (vm.qemu.pid, (name, vm)))
            .collect();
        for alive in seen.alive {
            if let Some((_, vm)) = by_pid.get_mut(&alive.pid) {
                vm.take_ran(seen.at, alive.ran);
            }
        }
        for held in seen.held {
            if let Some((_, vm)) = by_pid.get_mut(&held.pid)
                && vm.qemu.start == held.start
            {
                vm.take_held(held.bytes);
            } else if let Some(it) = self.strangers.get_mut(&held.pid)
                && it.qemu.start == held.start
            {
                it.kernel = Some(held.bytes);
            }
        }
        if let Some(found) = seen.found {
            self.has_searched = true;
            self.meet(found);
        }
    }

    /// QEMUs were found: those that are not managed are strangers.
    fn meet(&mut self, found: Vec<Qemu>) {
        let managed: BTreeSet<(u32, u64)> = (self.vms.values())
            .map(|vm| (vm.qemu.pid, vm.qemu.start))
            .collect();
        for qemu in found {
            if managed.contains(&(qemu.pid, qemu.start)) {
                continue;
            }
            let known = self.strangers.get(&qemu.pid);
            if known.is_none_or(|it| it.qemu.start != qemu.start) {
                let stranger = Stranger {
                    kernel: None,
                    refused: None,
                    qemu,
                };
                self.strangers.insert(stranger.qemu.pid, stranger);
            }
        }
    }

    /// What the watcher is to look at.
    pub(super) fn watched(&self) -> Vec<Watched> {
        let managed = self.vms.values().map(|vm| Watched {
            pid: vm.qemu.pid,
            start: vm.qemu.start,
            ram: vm.ram(),
        });
        let strangers = self.strangers.values().map(|it| Watched {
            pid: it.qemu.pid,
            start: it.qemu.start,
            ram: None,
        });
        managed.chain(strangers).collect()
    }

    /// Decides who may have how much.
    pub(super) fn tick(&mut self, now: Time) {
        self.follow_states(now);
        if self.is_starting && self.has_settled(now) {
            self.is_starting = false;
        }
        let held = self.held();
        let mut most = self.configured;
        if let Some(drain) = &mut self.drain {
            most = most.min(drain.limit(now, held, self.settings.move_bytes_per_s));
            self.notices.extend(drain.news(held).map(Notice::Drain));
        }
        self.pool = most.saturating_sub(self.charged());
        if self.is_starting {
            let shares = self.vms.values().filter_map(|vm| vm.share);
            let shares = shares.fold(0, u64::saturating_add);
            self.free = self.pool.saturating_sub(shares);
        } else {
            self.deal(now);
        }
        self.deal_moves();
        self.follow_deficits(now);
    }

    /// Whether all that were there before have reported, or had the time for it.
    fn has_settled(&self, now: Time) -> bool {
        let all_report = self.strangers.is_empty() && self.vms.values().all(Managed::takes_part);
        now.since(self.began) >= SETTLE || (self.has_searched && all_report)
    }

    fn follow_states(&mut self, now: Time) {
        for (name, vm) in &mut self.vms {
            let (before, state) = (vm.state_told, vm.state(now));
            if before == state {
                continue;
            }
            vm.state_told = state;
            let change = match state {
                VmState::Quiet => VmChange::Quiet,
                VmState::Expired => {
                    vm.expire();
                    VmChange::Expired
                }
                VmState::Reporting if before != VmState::Waiting => VmChange::Back,
                _ => continue,
            };
            self.notices.push(Notice::Vm(VmEvent {
                name: name.clone(),
                pid: vm.qemu.pid,
                change,
                reason: None,
            }));
        }
    }

    /// DRAM of VMs that take no part in the division.
    fn charged(&self) -> u64 {
        let idle = self.vms.values().filter(|vm| !vm.takes_part());
        // While the daemon starts, a share of an earlier one counts as dealt.
        let charges = idle.map(|vm| match self.is_starting && vm.share.is_some() {
            true => 0,
            false => vm.charge(),
        });
        charges.fold(self.strange(), u64::saturating_add)
    }

    fn deal(&mut self, now: Time) {
        let mut measured = BTreeMap::new();
        for (name, vm) in &self.vms {
            if vm.takes_part() {
                measured.insert(name.clone(), vm.measured(vm.state(now)));
            }
        }
        let decision = self.arbiter.deal(now, self.pool, &measured);
        self.free = decision.free_bytes;
        self.shortfall = decision.shortfall_bytes;
        let mut standings = Vec::with_capacity(measured.len());
        for ((name, measured), share) in measured.iter().zip(&decision.shares) {
            let Some(vm) = self.vms.get_mut(name) else {
                continue;
            };
            vm.is_dealt = true;
            vm.dealt = Some(Dealt {
                due: share.due,
                credit_byte_s: share.credit_byte_s,
            });
            // An agent that does not hear keeps to what it heard last.
            if vm.state(now) != VmState::Quiet {
                vm.share = Some(share.share_bytes);
            }
            standings.push(Standing {
                received_bytes: vm.holds(),
                ..Standing::new(name, measured, share)
            });
        }
        self.fairness = self.meter.look(now, &standings, decision.redealt_bytes);
        self.redealt_untold = self.redealt_untold.saturating_add(decision.redealt_bytes);
        self.tell_shares(now);
    }

    fn tell_shares(&mut self, now: Time) {
        let is_much = self.redealt_untold as f64 > self.pool as f64 * SHARES_PART;
        let is_due = (self.shares_told).is_none_or(|at| now.since(at) >= SHARES_EVENT_EVERY);
        if is_much && is_due {
            self.shares_told = Some(now);
            self.notices.push(Notice::Shares(SharesEvent {
                redealt_bytes: std::mem::take(&mut self.redealt_untold),
                pool_bytes: self.pool,
                free_bytes: self.free,
            }));
        }
    }

    fn deal_moves(&mut self) {
        let vms: Vec<&mut Managed> = (self.vms.values_mut())
            .filter(|vm| vm.takes_part())
            .collect();
        let moving: Vec<Moving<'_>> = vms
            .iter()
            .map(|vm| Moving {
                terms: &vm.terms,
                wanted_bytes_per_s: vm.wanted_bytes_per_s(),
            })
            .collect();
        let budgets = deal_moves(self.settings.move_bytes_per_s, &moving);
        for (vm, budget) in vms.into_iter().zip(budgets) {
            vm.move_budget = budget;
        }
    }

    fn follow_deficits(&mut self, now: Time) {
        let patience = self.arbiter.rules().guarantee_back;
        for (name, vm) in &mut self.vms {
            let deficit = vm.deficit();
            // Pages of the VM that don't fill a share are no deficit.
            let is_short = deficit >= vm.terms.page_bytes.max(1 << 20);
            let event = |ended| {
                Notice::Deficit(DeficitEvent {
                    name: name.clone(),
                    guarantee_bytes: vm.terms.guarantee_bytes,
                    deficit_bytes: deficit,
                    ended,
                })
            };
            match vm.short_since {
                Some((since, false)) if is_short && now.since(since) > patience => {
                    self.notices.push(event(false));
                    vm.short_since = Some((since, true));
                }
                None if is_short => vm.short_since = Some((now, false)),
                Some((_, was_told)) if !is_short => {
                    if was_told {
                        self.notices.push(event(true));
                    }
                    vm.short_since = None;
                }
                _ => {}
            }
        }
    }

    /// The lease of a VM.
    fn lease(&self, name: &str) -> Lease {
        let vm = self.vms.get(name);
        Lease {
            share_bytes: vm.and_then(|vm| vm.share),
            lease_ms: LEASE_MS,
            report_ms: REPORT_EVERY_MS,
            move_bytes_per_s: match vm.filter(|vm| vm.takes_part()) {
                Some(vm) => vm.move_budget,
                // Until it is known what it wants: what each VM would have if all wanted the same.
                None => self.settings.move_bytes_per_s / self.vms.len().max(1) as u64,
            },
        }
    }

    /// The leases of all connections.
    pub(super) fn leases(&self) -> Vec<(u64, Lease)> {
        let connected = self.vms.iter();
        connected
            .filter_map(|(name, vm)| Some((vm.connection?, self.lease(name))))
            .collect()
    }

    /// Connections that serve no VM any more, since the last call.
    pub(super) fn take_unseated(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.unseated)
    }

    /// What is to be told since the last call.
    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Sets what the operator grants a VM; nothing in `set` takes back what commands have set.
    pub(super) fn set_vm(&mut self, name: &str, set: &Grant) -> Result<(), OrderError> {
        if !is_name(name) {
            return Err(OrderError::Name(name.to_owned()));
        }
        if let Some((key, value, must)) = set.fault() {
            return Err(OrderError::OutOfRange { key, value, must });
        }
        let before = self.overrides.vms.get(name);
        let is_new = before.is_none() && *set != Grant::default();
        if is_new && self.overrides.vms.len() >= MOST_OVERRIDES {
            return Err(OrderError::TooMany);
        }
        let wish = match *set == Grant::default() {
            true => Grant::default(),
            false => before.map_or_else(|| set.clone(), |before| before.with(set)),
        };
        let grant = self.settings.grant(name).with(&wish);
        if let Some(vm) = self.vms.get(name) {
            self.admit(self.admission_pool(None), name, &vm.terms_of(&grant))?;
        }
        if let Some(vm) = self.vms.get_mut(name) {
            vm.grant(&grant);
        }
        match wish == Grant::default() {
            true => self.overrides.vms.remove(name),
            false => self.overrides.vms.insert(name.to_owned(), wish),
        };
        Ok(())
    }

    /// Sets what decides; without either, back to the configuration.
    pub(super) fn set_mode(
        &mut self,
        mode: Option<Mode>,
        band: Option<f64>,
    ) -> Result<(), OrderError> {
        if let Some(band) = band.filter(|band| !(0.0..=1.0).contains(band)) {
            return Err(OrderError::OutOfRange {
                key: "band",
                value: band.to_string(),
                must: "0 to 1".to_owned(),
            });
        }
        match (mode, band) {
            (None, None) => (self.overrides.mode, self.overrides.band) = (None, None),
            _ => {
                self.overrides.mode = mode.or(self.overrides.mode);
                self.overrides.band = band.or(self.overrides.band);
            }
        }
        self.apply_rules();
        Ok(())
    }

    /// Has guests leave DRAM down to a size; `None` ends that.
    pub(super) fn set_drain(&mut self, to: Option<u64>) {
        self.overrides.drain_bytes = to;
        self.drain = to.map(Drain::new);
    }

    /// Whether a VM of these terms would be admitted.
    pub(super) fn would_admit(&self, name: Option<&str>, terms: &Terms) -> HostAdmission {
        let pool = self.admission_pool(None);
        let found = self.admit(pool, name.unwrap_or("that is new"), terms);
        HostAdmission {
            fits: found.is_ok(),
            reason: found.as_ref().err().map(ToString::to_string),
            unguaranteed_bytes: found.unwrap_or_else(|_| {
                let taken = self.vms.values().map(|vm| vm.terms.guarantee_bytes);
                pool.saturating_sub(taken.fold(0, u64::saturating_add))
            }),
        }
    }

    /// What `query-host` tells.
    pub(super) fn info(&self, now: Time) -> HostInfo {
        let mut vms: Vec<HostVm> = (self.vms.iter())
            .map(|(name, vm)| vm.report(now, name, self.latency))
            .collect();
        let mut names: BTreeSet<String> = self.vms.keys().cloned().collect();
        for it in self.strangers.values() {
            let told = it.refused.as_ref().map(|(name, _)| name);
            let name = told
                .filter(|name| !name.is_empty())
                .or(it.qemu.name.as_ref());
            let by_pid = format!("qemu-{}", it.qemu.pid);
            let name = name
                .filter(|name| !names.contains(*name))
                .unwrap_or(&by_pid);
            names.insert(name.clone());
            vms.push(it.report(name));
        }
        vms.sort_by(|a, b| a.name.cmp(&b.name));
        let rules = self.arbiter.rules();
        let moves = self.vms.values().filter_map(Managed::moves_per_s);
        HostInfo {
            mode: rules.mode,
            band: rules.band,
            pool_bytes: self.pool,
            configured_bytes: self.configured,
            charged_bytes: self.charged(),
            free_bytes: self.free,
            shortfall_bytes: self.shortfall,
            starting: self.is_starting,
            drain: self.drain_progress(),
            moves: HostMoves {
                budget_bytes_per_s: self.settings.move_bytes_per_s,
                // Not `sum`: of nothing it is -0.0.
                bytes_per_s: moves.fold(0.0, |sum, moves| sum + moves),
            },
            reports: HostReports {
                clients: 0,
                registered: self.registered,
                refused_registrations: self.refused,
                accepted: 0,
                refused: BTreeMap::new(),
                mismatches: self.mismatches,
            },
            vms,
            fairness: self.fairness.clone(),
            alarms: Vec::new(),
            state_file: String::new(),
            state_file_error: None,
        }
    }

    fn drain_progress(&self) -> Option<HostDrain> {
        let drain = self.drain.as_ref()?;
        Some(drain.report(self.held()))
    }
}

impl Stranger {
    fn report(&self, name: &str) -> HostVm {
        HostVm {
            name: name.to_owned(),
            pid: self.qemu.pid,
            uuid: self.qemu.uuid.clone(),
            state: VmState::Unmanaged,
            refused: self.refused.as_ref().map(|(_, why)| why.clone()),
            weight: 0.0,
            guarantee_bytes: 0,
            cap_bytes: 0,
            goal: None,
            entitled_bytes: None,
            fair_bytes: None,
            share_bytes: None,
            fast_bytes: self.kernel.unwrap_or(0),
            kernel_bytes: self.kernel,
            demand_bytes: None,
            limit_bytes: None,
            hit_ratio: None,
            slowdown: None,
            credits: None,
            source: None,
            agent_state: None,
            waits_for: None,
            control: None,
            agent_pid: None,
            moves_per_s: None,
            move_budget_bytes_per_s: None,
            report_age_s: None,
        }
    }
}
