//! Work on the guest's pages: look-ups and moves, which a worker thread carries out.

mod done;
mod nearest;
mod page_sizes;
mod pool_moves;
mod rebinder;
mod reshape;
mod scans;
mod worker;

use std::{path::PathBuf, time::Instant};

use crossbeam::channel::Receiver;
use tier_core::{
    engine::{ReshapeRequest, ScanRequest},
    moves::{MoveBatch, PairedBatch},
    pools::HugePool,
    rebind::{Binding, RebindReport, Rebound},
    tiers::Tiers,
};

pub(super) use self::{
    done::Done,
    pool_moves::{Growth, GrowthTrouble, PoolMoves, memory_of},
    rebinder::Rebinder,
    worker::Worker,
};
use self::{scans::Scans, worker::Job};
use super::{log_once::LogOnce, vm::Vm};
use crate::{
    log::with_causes,
    pool_drift::{DriftRecord, PoolDrift},
};

/// See the [module](self).
pub(super) struct PageWork {
    worker: Worker,
    /// What promotions may take beyond the hugetlb pool of the fast node.
    growth: Option<Growth>,
    growth_trouble: GrowthTrouble,
    /// Where drift of the pools is written down.
    run_dir: PathBuf,
    scans: Scans,
    /// Why the kernel does not say where pages lie.
    look_up_trouble: LogOnce,
    /// Why the kernel refuses to move pages.
    move_trouble: LogOnce,
    /// Why policies of memory can't be set.
    rebind_trouble: LogOnce,
    /// Why the host can't split or make huge pages.
    reshape_trouble: LogOnce,
}

impl PageWork {
    pub(super) fn new(
        worker: Worker,
        growth: Option<(Growth, GrowthTrouble)>,
        run_dir: PathBuf,
    ) -> Self {
        let (growth, trouble) = growth.unzip();
        Self {
            worker,
            growth,
            growth_trouble: trouble.unwrap_or_default(),
            run_dir,
            scans: Scans::default(),
            look_up_trouble: LogOnce::default(),
            move_trouble: LogOnce::default(),
            rebind_trouble: LogOnce::default(),
            reshape_trouble: LogOnce::default(),
        }
    }

    /// Has pages moved.
    pub(super) fn submit_moves(&self, batch: MoveBatch) {
        self.worker.submit(Job::Move(batch));
    }

    /// Has pages change places.
    pub(super) fn submit_pair(&self, pair: PairedBatch) {
        self.worker.submit(Job::Pair(pair));
    }

    /// Has the next pages of memory come from a tier.
    pub(super) fn submit_bindings(&self, bindings: Vec<Binding>) {
        self.worker.submit(Job::Rebind(bindings));
    }

    /// Has a huge page split or made.
    pub(super) fn submit_reshape(&self, request: ReshapeRequest) {
        self.worker.submit(Job::Reshape(request));
    }

    /// Takes a look-up, which waits for [`Self::submit_scan`].
    pub(super) const fn put_aside(&mut self, request: ScanRequest) {
        self.scans.put_aside(request);
    }

    /// Has the look-up that waits carried out.
    pub(super) fn submit_scan(&mut self) {
        if let Some(request) = self.scans.take() {
            self.worker.submit(Job::Scan(request));
        }
    }

    /// The guest's layout changed: every page must be looked up once more.
    pub(super) const fn start_over(&mut self) {
        self.scans.start_over();
    }

    /// Whether every page of a guest of `guest_bytes` bytes was looked up.
    pub(super) const fn has_seen(&self, guest_bytes: u64) -> bool {
        self.scans.has_seen(guest_bytes)
    }

    /// Where finished work arrives; all of it must be given to [`Self::take`].
    pub(super) const fn done(&self) -> &Receiver<Done> {
        self.worker.done()
    }

    /// Takes note of finished work, and logs what stands in its way.
    pub(super) fn take(&mut self, done: &Done, vm: &Vm) {
        match done {
            Done::Scanned(report) => {
                self.scans.done(report);
                self.look_up_trouble.end();
            }
            Done::NotScanned(report, reason) => {
                self.scans.done(report);
                if self.look_up_trouble.is_news(reason) && !vm.has_ended() {
                    tracing::error!(vm = vm.name, "pages can't be looked up: {reason}");
                }
            }
            Done::Moved(_) | Done::Paired(..) => {
                self.move_trouble.end();
            }
            Done::Reshaped(_, None) => {}
            Done::Reshaped(_, Some(reason)) => {
                if self.reshape_trouble.is_news(reason) && !vm.has_ended() {
                    tracing::warn!(vm = vm.name, "{reason}");
                }
            }
            Done::Refused(_, reason) | Done::PairRefused(_, _, reason) => {
                if self.move_trouble.is_news(reason) && !vm.has_ended() {
                    tracing::error!(vm = vm.name, "pages can't be moved: {reason}");
                }
            }
            Done::Rebound(report, trouble) => self.take_rebound(report, trouble.as_deref(), vm),
        }
    }

    fn take_rebound(&mut self, report: &RebindReport, trouble: Option<&str>, vm: &Vm) {
        match trouble {
            Some(reason) if self.rebind_trouble.is_news(reason) && !vm.has_ended() => {
                tracing::warn!(vm = vm.name, "memory can't be bound to its tier: {reason}");
            }
            Some(_) => {}
            None => {
                self.rebind_trouble.end();
            }
        }
        let foreign = report.results.iter();
        let foreign = foreign.filter(|(_, rebound)| *rebound == Rebound::Foreign);
        let bytes: u64 = foreign.map(|(binding, _)| binding.bytes).sum();
        if bytes > 0 {
            tracing::info!(
                vm = vm.name,
                bytes,
                "somebody else has set NUMA policies of guest memory since: they stay"
            );
        }
    }

    /// Why memory can't be bound to its tier, if it can't.
    pub(super) const fn refuses_bindings(&self) -> Option<&String> {
        self.rebind_trouble.now.as_ref()
    }

    /// By how much agents let a pool drift between the only nodes of the tiers.
    pub(super) fn drift(&self, vm: &Vm, tiers: &Tiers, pool: &HugePool) -> Option<PoolDrift> {
        let nodes = tiers.only_nodes()?;
        let record = DriftRecord::new(&self.run_dir, &vm.root, pool.page_size, nodes);
        match record.and_then(|record| record.drift(pool)) {
            Ok(drift) => drift,
            Err(error) => {
                tracing::debug!(
                    "drift of hugetlb pools can't be told: {}",
                    with_causes(&error)
                );
                None
            }
        }
    }

    /// Why the kernel refuses to move pages, if it does.
    pub(super) const fn refuses_moves(&self) -> Option<&String> {
        self.move_trouble.now.as_ref()
    }

    /// What promotions may take beyond the pool of the fast node at `now`: nothing for a while after it
    /// could not be written down.
    pub(super) fn growth(&self, now: Instant) -> Option<Growth> {
        self.growth.filter(|_| self.growth_trouble.may_try(now))
    }

    /// Why the kernel refuses to move or to look up pages, or pools can't grow as they may, if it is so.
    pub(super) fn refused(&self) -> Option<String> {
        let refused = self.refuses_moves().or(self.look_up_trouble.now.as_ref());
        refused.cloned().or_else(|| self.growth_trouble.reason())
    }
}
