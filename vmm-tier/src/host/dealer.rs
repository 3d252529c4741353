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
    addr::{BASE_PAGE, NodeId},
    arbiter::{
        AdmitError, Fairness, FairnessMeter, MAX_VMS, Mode, Moving, Rules, Standing, Terms, admit,
        deal_moves,
    },
    time::Time,
};

use super::{
    desk::Taken,
    drain::{Drain, NodeError, check_node, part},
    events::{DeficitEvent, Notice, SharesEvent, VmChange, VmEvent},
    latency::Latency,
    managed::{AgentProcess, Dealt, GuestSize, Managed},
    overrides::Overrides,
    pools::{self, FastMemory, Holdings, Pool, PoolId},
    protocol::{LEASE_MS, Lease, REPORT_EVERY_MS, Register},
    qemu::{Qemu, is_name},
    report::{HostAdmission, HostDrain, HostInfo, HostMoves, HostReports, HostVm, VmState},
    settings::{Grant, HostSettings},
    strangers::Strangers,
    watcher::{Sighting, Watched},
};

/// How long a daemon that has just started waits at most for agents that were there before.
const SETTLE: Duration = Duration::from_secs(5);
/// An event tells of shares that this part of the pool was re-dealt of, and how often at most.
const SHARES_PART: f64 = 0.05;
const SHARES_EVENT_EVERY: Duration = Duration::from_secs(5);
/// The most VMs that commands may have set terms for.
const MOST_OVERRIDES: usize = 4 * MAX_VMS;

/// Why a VM is not admitted to a pool.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAdmitted {
    #[error("pool {pool}: {why}")]
    Pool { pool: PoolId, why: AdmitError },
    #[error(transparent)]
    Terms(AdmitError),
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
    Admit(#[from] NotAdmitted),
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
    Admit(#[from] NotAdmitted),
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// See the [module](self).
pub(super) struct Dealer {
    settings: HostSettings,
    pub(super) overrides: Overrides,
    memory: FastMemory,
    rules: Rules,
    pools: BTreeMap<PoolId, Pool>,
    latency: Latency,
    meter: FairnessMeter,
    vms: BTreeMap<String, Managed>,
    strangers: Strangers,
    drain: Option<Drain>,
    began: Time,
    is_starting: bool,
    /// Whether QEMUs were looked for since the start.
    has_searched: bool,
    fairness: Fairness,
    redealt_untold: u64,
    shares_told: Option<Time>,
    registered: u64,
    refused: u64,
    mismatches: u64,
    notices: Vec<Notice>,
    unseated: Vec<u64>,
}

impl Dealer {
    /// A daemon that begins at `now` with what commands had set before, with this memory.
    pub(super) fn new(
        now: Time,
        settings: HostSettings,
        overrides: Overrides,
        memory: FastMemory,
        latency: Latency,
    ) -> Self {
        let mut dealer = Self {
            drain: Drain::of(&overrides, &memory.nodes),
            memory,
            rules: settings.rules,
            pools: BTreeMap::new(),
            latency,
            meter: FairnessMeter::default(),
            vms: BTreeMap::new(),
            strangers: Strangers::default(),
            began: now,
            is_starting: true,
            has_searched: false,
            fairness: Fairness {
                jain: 1.0,
                worst_ratio: 1.0,
                ..Fairness::default()
            },
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
        dealer.follow_pools();
        for (id, most) in dealer.most() {
            if let Some(pool) = dealer.pools.get_mut(&id) {
                (pool.bytes, pool.free) = (most, most);
            }
        }
        dealer
    }

    fn apply_rules(&mut self) {
        let rules = &mut self.rules;
        *rules = self.settings.rules;
        rules.saved_per_hit = self.latency.saved_per_hit();
        rules.mode = self.overrides.mode.unwrap_or(rules.mode);
        rules.band = self.overrides.band.unwrap_or(rules.band);
        for pool in self.pools.values_mut() {
            pool.arbiter.set_rules(*rules);
        }
    }

    /// The pools are those that the host has, and those of which a VM holds pages.
    fn follow_pools(&mut self) {
        let mut sizes = pools::configured(&self.settings, &self.memory);
        let of_vms = self.vms.values().map(Managed::pool);
        let elsewhere = self.vms.values().flat_map(Managed::elsewhere);
        let in_use = of_vms
            .chain(elsewhere.map(|(id, _)| id))
            .chain(self.strangers.pools());
        for id in in_use {
            sizes.entry(id).or_insert(0);
        }
        self.pools.retain(|id, _| sizes.contains_key(id));
        for (id, configured) in sizes {
            let pool = self.pools.entry(id);
            let pool = pool.or_insert_with(|| Pool::new(configured, self.rules));
            pool.configured = configured;
        }
    }

    /// What the operator grants a VM: by the configuration, and above it by commands.
    fn grant(&self, name: &str) -> Grant {
        let configured = self.settings.grant(name);
        match self.overrides.vms.get(name) {
            Some(set) => configured.with(set),
            None => configured,
        }
    }

    /// What guests may hold of each pool when a drain is done: each pool keeps the same part.
    fn most(&self) -> BTreeMap<PoolId, u64> {
        let sizes = self.pools.iter().map(|(&id, pool)| (id, pool.configured));
        match &self.drain {
            None => sizes.collect(),
            Some(drain) => drain.aims(&sizes.collect()),
        }
    }

    /// What is for guests of a pool by the configuration.
    fn configured(&self, id: PoolId) -> u64 {
        match self.pools.get(&id) {
            Some(pool) => pool.configured,
            None => self.settings.pool_size(id).bytes(self.memory.of(id)),
        }
    }

    /// The most of a pool that can be guaranteed beside others that hold `strange` bytes of it. They take part of
    /// what the operator has for guests, but of guaranteed DRAM only what the nodes do not have beside it.
    /// Otherwise guests that hold more than the pool would keep each other's agents out for ever.
    fn guaranteeable(&self, id: PoolId, strange: u64) -> u64 {
        let left = self.memory.of(id).saturating_sub(strange);
        self.configured(id).min(left)
    }

    /// What guarantees can be given of a pool. A drain is the operator's own wish, and refuses nobody.
    /// While the daemon starts, strangers are VMs that come back; the VM that asks is none afterwards.
    fn admission_pool(&self, id: PoolId, asks: Option<u32>) -> u64 {
        if self.is_starting {
            return self.configured(id);
        }
        let own = asks.map_or(0, |pid| self.strangers.held_by(pid, id));
        self.guaranteeable(id, self.strangers.held(id).saturating_sub(own))
    }

    /// The bytes of a pool that are dealt, of the most that guests may have of it now.
    fn dealt_of(&self, id: PoolId, most: u64, charged: u64) -> u64 {
        let dealt_to = self.of_pool(id).filter(|(_, vm)| vm.takes_part());
        let guarantees = dealt_to.map(|(_, vm)| vm.terms.guarantee_bytes);
        let guarantees = guarantees.fold(0, u64::saturating_add);
        let guaranteed = guarantees.min(most).min(self.guaranteeable(id, charged));
        most.saturating_sub(charged).max(guaranteed)
    }

    /// What all guests hold of each pool, as a drain counts it.
    fn held(&self) -> Holdings {
        let is_of_node = self.drain.as_ref().is_some_and(Drain::is_of_node);
        let holds = |vm: &Managed| match is_of_node {
            true => vm.kernel_holds(),
            false => vm.holds(),
        };
        let held = |id| {
            let managed = self.of_pool(id).map(|(_, vm)| holds(vm));
            managed.fold(self.held_aside(id), u64::saturating_add)
        };
        self.pools.keys().map(|&id| (id, held(id))).collect()
    }

    /// What is held of a pool by QEMUs that are not of that pool.
    fn held_aside(&self, id: PoolId) -> u64 {
        let elsewhere = self.vms.values().flat_map(Managed::elsewhere);
        let of_pool = elsewhere.filter(|(pool, _)| *pool == id);
        of_pool.fold(self.strangers.held(id), |sum, (_, bytes)| {
            sum.saturating_add(bytes)
        })
    }

    fn of_pool(&self, id: PoolId) -> impl Iterator<Item = (&String, &Managed)> {
        self.vms.iter().filter(move |(_, vm)| vm.pool() == id)
    }

    /// Admits terms to a pool beside those of all VMs but this one; `asks` is the QEMU that asks. A VM
    /// whose agent is silent keeps its guarantee.
    fn admit(
        &self,
        id: PoolId,
        asks: Option<u32>,
        name: &str,
        terms: &Terms,
    ) -> Result<u64, NotAdmitted> {
        let is_known = self.vms.contains_key(name);
        if !is_known && self.vms.len() >= MAX_VMS {
            let name = name.to_owned();
            return Err(NotAdmitted::Terms(AdmitError::Count { name }));
        }
        let others = self.of_pool(id).filter(|(other, _)| *other != name);
        let others = others.map(|(name, vm)| (name.as_str(), &vm.terms));
        admit(self.admission_pool(id, asks), others, name, terms).map_err(|why| match why {
            AdmitError::Guarantees { .. } => NotAdmitted::Pool { pool: id, why },
            other => NotAdmitted::Terms(other),
        })
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
                let held = self.strangers.remove(qemu.pid);
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
        let size = GuestSize::of(told);
        let terms = size.terms(&grant);
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
            self.admit(size.pool, Some(pid), name, &terms)?;
            if let Some(known) = self.vms.get_mut(name) {
                self.unseated.extend(known.connection);
                known.resume(now, connection, size, &grant);
            }
            return Ok(VmChange::Back);
        }
        self.admit(size.pool, Some(pid), name, &terms)?;
        let mut vm = Managed::new(now, qemu.clone(), connection, size, &grant);
        if self.is_starting {
            vm.share = told
                .share_bytes
                .map(|share| self.earlier_share(size.pool, share, &vm.terms));
        }
        self.vms.insert(name.clone(), vm);
        Ok(VmChange::Registered)
    }

    /// The share that a VM keeps from an earlier daemon: no more than there is.
    fn earlier_share(&self, id: PoolId, told: u64, terms: &Terms) -> u64 {
        let taken = self.of_pool(id).filter_map(|(_, vm)| vm.share);
        let taken = taken.fold(self.strangers.held(id), u64::saturating_add);
        let most = self.most().get(&id).copied().unwrap_or(0);
        told.min(terms.cap_bytes).min(most.saturating_sub(taken))
    }

    /// Remembers a QEMU whose agent was refused.
    fn refuse(&mut self, qemu: Qemu, name: &str, error: &RegisterError) {
        let is_managed =
            (self.vms.values()).any(|vm| (vm.qemu.pid, vm.qemu.start) == (qemu.pid, qemu.start));
        if is_managed {
            return;
        }
        let news = self.strangers.refuse(qemu, name, &error.to_string());
        self.notices.extend(news.map(Notice::Vm));
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
        self.strangers.forget(&gone);
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
                vm.take_held(held.holdings);
            } else {
                self.strangers.take_held(&held);
            }
        }
        if let Some(hugetlb) = seen.hugetlb {
            self.memory.hugetlb = hugetlb;
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
            if !managed.contains(&(qemu.pid, qemu.start)) {
                self.strangers.meet(qemu);
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
        managed.chain(self.strangers.watched()).collect()
    }

    /// Decides who may have how much.
    pub(super) fn tick(&mut self, now: Time) {
        self.follow_states(now);
        if self.is_starting && self.has_settled(now) {
            self.is_starting = false;
        }
        self.follow_pools();
        let limits = self.limits(now);
        for (id, limit) in limits {
            let charged = self.charged(id);
            let shares = self.of_pool(id).filter_map(|(_, vm)| vm.share);
            let shares = shares.fold(0, u64::saturating_add);
            let bytes = self.dealt_of(id, limit, charged);
            if let Some(pool) = self.pools.get_mut(&id) {
                pool.charged = charged;
                pool.bytes = bytes;
                pool.free = pool.bytes.saturating_sub(shares);
            }
        }
        if !self.is_starting {
            self.deal(now);
        }
        self.deal_moves();
        self.follow_deficits(now);
    }

    /// What guests may hold of each pool now.
    fn limits(&mut self, now: Time) -> BTreeMap<PoolId, u64> {
        let most = self.most();
        let held = self.held();
        let Some(drain) = &mut self.drain else {
            return most;
        };
        let all = pools::all(&held);
        let limit = drain.limit(now, all, self.settings.move_bytes_per_s);
        self.notices.extend(drain.news(all).map(Notice::Drain));
        let above = |id: &PoolId, aim: u64| held.get(id).map_or(0, |held| held.saturating_sub(aim));
        let ways: BTreeMap<PoolId, u64> =
            (most.iter().map(|(id, &aim)| (*id, above(id, aim)))).collect();
        let left = limit.saturating_sub(pools::all(&most));
        let all_ways = pools::all(&ways);
        let limit = |(id, aim): (PoolId, u64)| {
            let way = ways.get(&id).copied().unwrap_or(0);
            let configured = self.pools.get(&id).map_or(0, |pool| pool.configured);
            let limit = aim.saturating_add(part(left, way, all_ways));
            (id, limit.min(configured))
        };
        most.into_iter().map(limit).collect()
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

    /// DRAM of a pool that VMs hold that take no part in its division.
    fn charged(&self, id: PoolId) -> u64 {
        let idle = self.of_pool(id).filter(|(_, vm)| !vm.takes_part());
        // While the daemon starts, a share of an earlier one counts as dealt.
        let charges = idle.map(|(_, vm)| match self.is_starting && vm.share.is_some() {
            true => 0,
            false => vm.charge(),
        });
        charges.fold(self.held_aside(id), u64::saturating_add)
    }

    fn deal(&mut self, now: Time) {
        let mut decided = Vec::with_capacity(self.pools.len());
        for (&id, pool) in &mut self.pools {
            let vms = self.vms.iter();
            let vms = vms.filter(|(_, vm)| vm.pool() == id && vm.takes_part());
            let measured = vms.map(|(name, vm)| (name.clone(), vm.measured(vm.state(now))));
            let measured: BTreeMap<_, _> = measured.collect();
            let decision = pool.arbiter.deal(now, pool.bytes, &measured);
            pool.free = decision.free_bytes;
            pool.shortfall = decision.shortfall_bytes;
            decided.push((id, measured, decision));
        }
        let mut standings = Vec::with_capacity(self.vms.len());
        for (id, measured, decision) in &decided {
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
                    pool: id.hugetlb_page_bytes().unwrap_or(BASE_PAGE),
                    received_bytes: vm.holds(),
                    ..Standing::new(name, measured, share)
                });
            }
        }
        let redealt = decided.iter().map(|(_, _, it)| it.redealt_bytes);
        let redealt = redealt.fold(0, u64::saturating_add);
        self.fairness = self.meter.look(now, &standings, redealt);
        self.redealt_untold = self.redealt_untold.saturating_add(redealt);
        self.tell_shares(now);
    }

    /// A figure of all pools together.
    fn sum(&self, figure: impl Fn(&Pool) -> u64) -> u64 {
        let figures = self.pools.values().map(figure);
        figures.fold(0, u64::saturating_add)
    }

    fn tell_shares(&mut self, now: Time) {
        let is_much = self.redealt_untold as f64 > self.sum(|pool| pool.bytes) as f64 * SHARES_PART;
        let is_due = (self.shares_told).is_none_or(|at| now.since(at) >= SHARES_EVENT_EVERY);
        if is_much && is_due {
            self.shares_told = Some(now);
            self.notices.push(Notice::Shares(SharesEvent {
                redealt_bytes: std::mem::take(&mut self.redealt_untold),
                pool_bytes: self.sum(|pool| pool.bytes),
                free_bytes: self.sum(|pool| pool.free),
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
        let patience = self.rules.guarantee_back;
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
            share_bytes: vm.and_then(Managed::limit),
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
            self.admit(vm.pool(), None, name, &vm.terms_of(&grant))?;
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

    /// Has guests leave DRAM down to a size.
    pub(super) fn drain_to(&mut self, bytes: u64) {
        (self.overrides.drain_bytes, self.overrides.drain_node) = (Some(bytes), None);
        self.drain = Some(Drain::new(bytes, None));
    }

    /// Has guests leave a node.
    pub(super) fn drain_node(&mut self, node: NodeId) -> Result<(), OrderError> {
        check_node(node, &self.memory.nodes)?;
        (self.overrides.drain_bytes, self.overrides.drain_node) = (Some(0), Some(node.0));
        self.drain = Some(Drain::new(0, Some(node)));
        Ok(())
    }

    /// Ends a drain, and tells that.
    pub(super) fn end_drain(&mut self) {
        (self.overrides.drain_bytes, self.overrides.drain_node) = (None, None);
        let held = pools::all(&self.held());
        let cancelled = self.drain.take().map(|drain| drain.cancelled(held));
        self.notices.extend(cancelled.map(Notice::Drain));
    }

    /// Whether a VM of these terms would be admitted.
    pub(super) fn would_admit(
        &self,
        name: Option<&str>,
        pool: Option<PoolId>,
        terms: &Terms,
    ) -> HostAdmission {
        let known = name.and_then(|name| self.vms.get(name));
        let id = pool.or_else(|| known.map(Managed::pool));
        let id = id.unwrap_or(PoolId::Plain);
        let found = self.admit(id, None, name.unwrap_or("that is new"), terms);
        HostAdmission {
            pool: id.to_string(),
            fits: found.is_ok(),
            reason: found.as_ref().err().map(ToString::to_string),
            unguaranteed_bytes: found.unwrap_or_else(|_| {
                let taken = self.of_pool(id).map(|(_, vm)| vm.terms.guarantee_bytes);
                self.admission_pool(id, None)
                    .saturating_sub(taken.fold(0, u64::saturating_add))
            }),
        }
    }

    /// What `query-host` tells.
    pub(super) fn info(&self, now: Time) -> HostInfo {
        let mut vms: Vec<HostVm> = (self.vms.iter())
            .map(|(name, vm)| vm.report(now, name, self.latency))
            .collect();
        vms.extend(self.strangers.reports(self.vms.keys().cloned().collect()));
        vms.sort_by(|a, b| a.name.cmp(&b.name));
        let moves = self.vms.values().filter_map(Managed::moves_per_s);
        HostInfo {
            mode: self.rules.mode,
            band: self.rules.band,
            pool_bytes: self.sum(|pool| pool.bytes),
            configured_bytes: self.sum(|pool| pool.configured),
            charged_bytes: self.sum(|pool| pool.charged),
            free_bytes: self.sum(|pool| pool.free),
            shortfall_bytes: self.sum(|pool| pool.shortfall),
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
            pools: (self.pools.iter().map(|(&id, pool)| pool.report(id))).collect(),
            vms,
            fairness: self.fairness.clone(),
            alarms: Vec::new(),
            state_file: String::new(),
            state_file_error: None,
        }
    }

    fn drain_progress(&self) -> Option<HostDrain> {
        let drain = self.drain.as_ref()?;
        Some(drain.report(pools::all(&self.held())))
    }
}
