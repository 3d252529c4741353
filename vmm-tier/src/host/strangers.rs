//! Strangers: QEMUs that have no share, since they have no agent, or one that was refused.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    events::{VmChange, VmEvent},
    pools::{self, Holdings, PoolId},
    qemu::{Qemu, is_name},
    report::{HostVm, VmState},
    watcher::{Held, Watched},
};

/// A QEMU that has no share.
#[derive(Clone, Debug)]
struct Stranger {
    qemu: Qemu,
    /// What the kernel says that it holds; `None` until that was read.
    kernel: Option<Holdings>,
    /// The name that an agent gave it, and why the agent was refused.
    refused: Option<(String, String)>,
}

/// The strangers of a host, by pid.
#[derive(Clone, Debug, Default)]
pub(super) struct Strangers(BTreeMap<u32, Stranger>);

impl Strangers {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What all of them hold of a pool.
    pub(super) fn held(&self, pool: PoolId) -> u64 {
        let held = self.0.keys().map(|&pid| self.held_by(pid, pool));
        held.fold(0, u64::saturating_add)
    }

    /// What the QEMU of this pid holds of a pool, if it is a stranger.
    pub(super) fn held_by(&self, pid: u32, pool: PoolId) -> u64 {
        let holdings = self.0.get(&pid).and_then(|it| it.kernel.as_ref());
        holdings.and_then(|it| it.get(&pool)).copied().unwrap_or(0)
    }

    /// The pools that they hold pages of.
    pub(super) fn pools(&self) -> impl Iterator<Item = PoolId> {
        let holdings = self.0.values().filter_map(|it| it.kernel.as_ref());
        holdings.flat_map(BTreeMap::keys).copied()
    }

    /// The QEMU of this pid is none any more; returns what it holds.
    pub(super) fn remove(&mut self, pid: u32) -> Option<Holdings> {
        self.0.remove(&pid)?.kernel
    }

    /// Forgets those that have ended, by pid and start.
    pub(super) fn forget(&mut self, gone: &BTreeSet<(u32, u64)>) {
        self.0
            .retain(|pid, it| !gone.contains(&(*pid, it.qemu.start)));
    }

    /// Takes in what the kernel says of a QEMU; nothing if that is no stranger.
    pub(super) fn take_held(&mut self, held: &Held) {
        let it = self.0.get_mut(&held.pid);
        if let Some(it) = it.filter(|it| it.qemu.start == held.start) {
            it.kernel = Some(held.holdings.clone());
        }
    }

    /// A QEMU without an agent was found.
    pub(super) fn meet(&mut self, qemu: Qemu) {
        let known = self.0.get(&qemu.pid);
        if known.is_none_or(|it| it.qemu.start != qemu.start) {
            let stranger = Stranger {
                kernel: None,
                refused: None,
                qemu,
            };
            self.0.insert(stranger.qemu.pid, stranger);
        }
    }

    /// Remembers a QEMU whose agent was refused; the event is to be told if that is news.
    pub(super) fn refuse(&mut self, qemu: Qemu, name: &str, reason: &str) -> Option<VmEvent> {
        let name = if is_name(name) { name } else { "" };
        let refused = Some((name.to_owned(), reason.to_owned()));
        let known = self
            .0
            .get(&qemu.pid)
            .filter(|it| it.qemu.start == qemu.start);
        let is_news = known.is_none_or(|it| it.refused != refused);
        let event = VmEvent {
            name: name.to_owned(),
            pid: qemu.pid,
            change: VmChange::Refused,
            reason: Some(reason.to_owned()),
        };
        let stranger = Stranger {
            kernel: known.and_then(|it| it.kernel.clone()),
            refused,
            qemu,
        };
        self.0.insert(stranger.qemu.pid, stranger);
        is_news.then_some(event)
    }

    /// What the watcher is to look at.
    pub(super) fn watched(&self) -> impl Iterator<Item = Watched> {
        self.0.values().map(|it| Watched {
            pid: it.qemu.pid,
            start: it.qemu.start,
            ram: None,
        })
    }

    /// What `query-host` tells of them. None has one of the names `taken`, or another's.
    pub(super) fn reports(&self, mut taken: BTreeSet<String>) -> Vec<HostVm> {
        let report = |it: &Stranger| {
            let told = it.refused.as_ref().map(|(name, _)| name);
            let name = told
                .filter(|name| !name.is_empty())
                .or(it.qemu.name.as_ref());
            let by_pid = format!("qemu-{}", it.qemu.pid);
            let name = name
                .filter(|name| !taken.contains(*name))
                .unwrap_or(&by_pid);
            taken.insert(name.clone());
            it.report(name)
        };
        self.0.values().map(report).collect()
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
            pool: None,
            weight: 0.0,
            guarantee_bytes: 0,
            cap_bytes: 0,
            goal: None,
            entitled_bytes: None,
            fair_bytes: None,
            share_bytes: None,
            fast_bytes: self.kernel.as_ref().map_or(0, pools::all),
            kernel_bytes: self.kernel.as_ref().map(pools::all),
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
