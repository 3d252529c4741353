//! Moves of hugetlb pages. The pools stay as the administrator has set them.
//!
//! What the engine planned with was read a moment ago, and several agents use one pool. So the pools are
//! read once more under a lock of all agents of the host, and what would change them is left undone.
//!
//! ```text
//!  a free page on the slow node      none
//!  cold ─► free page                 cold ─► page from free memory    (the pools differ here)
//!  hot  ─► where cold was            hot  ─► page from free memory    (and are as before)
//! ```
//!
//! Only the right way needs a [journal](crate::pair_journal).
//!
//! Where the operator allows it (`hugetlb.grow`), promotions take pages from free memory without a
//! partner. That is [drift](crate::pool_drift), and is written down as such.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tier_core::{
    addr::{Hva, NodeId, NodeSet},
    engine::NodeMemory,
    moves::{Direction, MoveBatch, MoveReport, Outcome, PageResult, PairedBatch},
};
use tier_sys::{
    file_lock::FileLock,
    hugetlb::{self, HugePool},
    sysroot::SysRoot,
    zoneinfo::{self, NodeMarks},
};

use super::done::{Carried, Done, unmoved};
use crate::{
    agent::state_file::name_of,
    log::with_causes,
    pair_journal::{self, PairError, PairJournal},
    pool_drift::DriftRecord,
};

/// How long other agents may have the lock: each moves a batch.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the kernel may take to free the memory of a guest that ended in the middle of a pair.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often is looked whether it has.
const EXIT_POLL: Duration = Duration::from_millis(50);

/// How long no pool grows after it could not. Then it is tried again.
const GROW_AGAIN: Duration = Duration::from_secs(60);

/// What promotions may take beyond the pool of the fast node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) struct Growth {
    /// The fast and the slow node.
    pub(in crate::agent) nodes: [NodeId; 2],
    /// Free bytes to keep above the high watermark of the fast node.
    pub(in crate::agent) headroom_bytes: u64,
}

/// Why pools can't grow, though the operator allows it: the worker finds out, and no room is planned with
/// meanwhile.
#[derive(Clone, Debug, Default)]
pub(in crate::agent) struct GrowthTrouble(Arc<Mutex<Option<(String, Instant)>>>);

impl GrowthTrouble {
    fn get(&self) -> MutexGuard<'_, Option<(String, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reason, until a pool has grown again.
    pub(in crate::agent) fn reason(&self) -> Option<String> {
        self.get().as_ref().map(|(reason, _)| reason.clone())
    }

    /// Whether a pool may be tried to grow at `now`.
    pub(in crate::agent) fn may_try(&self, now: Instant) -> bool {
        let since = self.get().as_ref().map(|(_, since)| *since);
        since.is_none_or(|since| now.saturating_duration_since(since) >= GROW_AGAIN)
    }
}

/// See the [module](self).
pub(in crate::agent) struct PoolMoves {
    root: SysRoot,
    run_dir: PathBuf,
    /// The nodes of both tiers.
    nodes: NodeSet,
    journal: PairJournal,
    /// `None`: the pools stay as they are.
    growth: Option<Growth>,
    growth_trouble: GrowthTrouble,
    /// It was said that pools drift.
    is_drift_said: AtomicBool,
    /// The agent ends: nothing waits for the lock any more.
    ends: Arc<AtomicBool>,
}

impl PoolMoves {
    pub(in crate::agent) fn new(
        run_dir: &Path,
        root: &SysRoot,
        vm: &str,
        pid: u32,
        nodes: NodeSet,
    ) -> Self {
        Self {
            root: root.clone(),
            run_dir: run_dir.to_owned(),
            nodes,
            journal: PairJournal::new(run_dir, root, vm, &name_of(vm), pid),
            growth: None,
            growth_trouble: GrowthTrouble::default(),
            is_drift_said: AtomicBool::new(false),
            ends: Arc::default(),
        }
    }

    /// Lets the pool of the fast node grow.
    pub(in crate::agent) fn with_growth(self, growth: Option<Growth>) -> Self {
        Self { growth, ..self }
    }

    /// What it finds out of why pools can't grow.
    pub(in crate::agent) fn growth_trouble(&self) -> GrowthTrouble {
        self.growth_trouble.clone()
    }

    /// Set when the agent ends.
    pub(super) fn ends(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.ends)
    }

    /// Moves back what an agent left that was killed in the middle of a pair.
    pub(super) fn repair(&self) {
        if !self.journal.has_record() {
            return;
        }
        let repaired = self.lock().and_then(|_lock| {
            let pages = self.journal.repair();
            pages.map_err(|error| with_causes(&error))
        });
        match repaired {
            Ok(pages) => tracing::info!(
                pages,
                "an agent was killed in the middle of a move: the hugetlb pools are as they were"
            ),
            Err(error) => tracing::warn!("an unfinished pair of moves stays: {error}"),
        }
    }

    /// The agent ends. Moves back what it leaves of a pair, which it does only if it could not before:
    /// where the guest ended in the middle of the pair, its memory may not be free yet.
    pub(super) fn leave(&self) {
        let begin = Instant::now();
        while self.journal.has_record() {
            let lock = pair_journal::lock(&self.run_dir, EXIT_TIMEOUT, || false);
            let Err(error) = lock.and_then(|_lock| self.journal.repair()) else {
                return;
            };
            if self.journal.is_guest_alive() || begin.elapsed() > EXIT_TIMEOUT {
                let error = with_causes(&error);
                tracing::error!("an unfinished pair of moves stays: {error}");
                return;
            }
            std::thread::sleep(EXIT_POLL);
        }
    }

    fn lock(&self) -> Result<FileLock, String> {
        let ends = || self.ends.load(Ordering::Relaxed);
        let lock = pair_journal::lock(&self.run_dir, LOCK_TIMEOUT, ends);
        lock.map_err(|error| with_causes(&error))
    }

    /// The pool of pages of `page_bytes` bytes as it is now.
    fn pool(&self, page_bytes: u64) -> Result<HugePool, String> {
        let pool = hugetlb::read_size(&self.root, page_bytes);
        let pool = pool.map_err(|error| with_causes(&error))?;
        pool.ok_or_else(|| format!("there is no pool of {page_bytes} byte pages"))
    }

    /// Moves pages onto free pages of the target's pool, as far as it has any to spare, and beyond that
    /// as far as it may grow.
    pub(super) fn carry_out(
        &self,
        batch: &MoveBatch,
        mut move_pages: impl FnMut(&MoveBatch) -> Carried,
    ) -> Carried {
        let locked = self.lock().and_then(|lock| {
            let pool = self.pool(batch.frame_bytes)?;
            Ok((lock, pool))
        });
        let (_lock, pool) = match locked {
            Ok(locked) => locked,
            Err(reason) => {
                return Carried {
                    report: unmoved(batch, Outcome::Busy),
                    refusal: Some(reason),
                };
            }
        };
        let spare = pool.spare_on(batch.target, &self.nodes);
        let beyond = (batch.pages.len() as u64).saturating_sub(spare);
        let growth = match beyond {
            0 => Ok(None),
            _ => self.growth_for(batch, &pool),
        };
        let grown = growth.and_then(|growth| match growth {
            None => Ok(None),
            Some((growth, most)) => {
                let pages = beyond.min(most);
                let grown = self.grow(batch, &pool, spare, (growth, pages), &mut move_pages);
                grown.map(Some)
            }
        });
        match grown {
            Ok(Some(carried)) => carried,
            Ok(None) => carry_out_first(batch, spare, &mut move_pages),
            // Onto free pages of the pool, which is no drift, pages move all the same.
            Err(reason) => {
                *self.growth_trouble.get() = Some((reason.clone(), Instant::now()));
                let mut carried = carry_out_first(batch, spare, &mut move_pages);
                carried.refusal = carried.refusal.or(Some(reason));
                carried
            }
        }
    }

    /// By how many pages the pool of the batch's target, which is `pool` now, may grow.
    fn growth_for(
        &self,
        batch: &MoveBatch,
        pool: &HugePool,
    ) -> Result<Option<(Growth, u64)>, String> {
        let [fast, slow] = match self.growth {
            Some(Growth { nodes, .. }) if batch.direction == Direction::Promote => nodes,
            _ => return Ok(None),
        };
        // What a pair that did not end left away would be taken for drift.
        let is_pair_open = || !pair_journal::records(&self.run_dir).is_empty();
        if batch.target != fast || !pool.can_grow(fast, slow) || is_pair_open() {
            return Ok(None);
        }
        let marks = zoneinfo::read(&self.root).map_err(|error| with_causes(&error))?;
        let growth = self.growth.zip(marks.get(&fast));
        Ok(growth.and_then(|(growth, marks)| {
            let memory = memory_of(fast, marks);
            let pages = memory.promotable_bytes(growth.headroom_bytes) / batch.frame_bytes.max(1);
            (pages > 0).then_some((growth, pages))
        }))
    }

    /// Moves pages onto `spare` free pages of the pool, and `pages` more onto pages from free memory,
    /// which become the pool's. Nothing has moved where that can't be written down.
    fn grow(
        &self,
        batch: &MoveBatch,
        pool: &HugePool,
        spare: u64,
        (growth, pages): (Growth, u64),
        move_pages: &mut impl FnMut(&MoveBatch) -> Carried,
    ) -> Result<Carried, String> {
        let begun = DriftRecord::new(&self.run_dir, &self.root, pool.page_size, growth.nodes)
            .and_then(|record| record.begin(pool, pages).map(|()| record));
        let record = begun.map_err(|error| with_causes(&error))?;
        *self.growth_trouble.get() = None;
        let carried = carry_out_first(batch, spare.saturating_add(pages), move_pages);
        let told = self.pool(pool.page_size).and_then(|pool| {
            let settled = record.settle(&pool).and_then(|()| record.drift(&pool));
            let drift = settled.map_err(|error| with_causes(&error))?;
            if let Some(drift) = drift.filter(|_| !self.is_drift_said.swap(true, Ordering::Relaxed)) {
                tracing::warn!(
                    "{}, as hugetlb.grow allows: more follow; `query-tier` and `vmm-tier doctor` say how many, and what \
                     takes it back",
                    drift.what(&pool)
                );
            }
            Ok(())
        });
        // What stands on record is then the most that it may be. The next batch can't begin.
        if let Err(reason) = told {
            tracing::debug!("the drift of hugetlb pools can't be corrected: {reason}");
        }
        Ok(carried)
    }

    /// Lets pages change places.
    pub(super) fn carry_out_pair(
        &self,
        pair: &PairedBatch,
        mut move_pages: impl FnMut(&MoveBatch) -> Carried,
    ) -> Done {
        let done = self.lock().and_then(|_lock| {
            // What an earlier pair left away comes first.
            let repaired = self.journal.repair();
            repaired.map_err(|error| with_causes(&error))?;
            let pool = self.pool(pair.demote.frame_bytes)?;
            let spare = pool.spare_on(pair.demote.target, &self.nodes);
            match spare {
                0 => {
                    let most = pool.pairs_between(pair.promote.target, pair.demote.target);
                    self.by_free_memory(pair, most, &mut move_pages)
                }
                spare => self.by_spare_pages(pair, spare, &mut move_pages),
            }
        });
        done.unwrap_or_else(|reason| {
            let unmoved = |batch| unmoved(batch, Outcome::Busy);
            Done::PairRefused(unmoved(&pair.demote), unmoved(&pair.promote), reason)
        })
    }

    /// Demotes onto pages to spare, and promotes onto what became free.
    fn by_spare_pages(
        &self,
        pair: &PairedBatch,
        spare: u64,
        move_pages: &mut impl FnMut(&MoveBatch) -> Carried,
    ) -> Result<Done, String> {
        let demoted = carry_out_first(&pair.demote, spare, move_pages);
        let down = count_moved(&demoted.report) as u64;
        // Somebody who holds no lock may have taken it meanwhile.
        let free = self.pool(pair.promote.frame_bytes)?;
        let free = free.spare_on(pair.promote.target, &self.nodes);
        let promoted = carry_out_first(&pair.promote, down.min(free), move_pages);
        Ok(done(demoted, promoted, None))
    }

    /// Demotes and promotes as many pages by pages from free memory; what was demoted in vain goes back.
    fn by_free_memory(
        &self,
        pair: &PairedBatch,
        most: u64,
        move_pages: &mut impl FnMut(&MoveBatch) -> Carried,
    ) -> Result<Done, String> {
        // With more nodes in a tier the pools of its nodes would change among themselves.
        if most == 0 || self.nodes.iter().count() > 2 {
            let unmoved = |batch| unmoved(batch, Outcome::NoHugePage);
            return Ok(Done::Paired(unmoved(&pair.demote), unmoved(&pair.promote)));
        }
        let begun = self.journal.begin(pair);
        let record = begun.map_err(|error| with_causes(&error))?;
        let mut demoted = carry_out_first(&pair.demote, most, move_pages);
        let down = count_moved(&demoted.report);
        let promoted = carry_out_first(&pair.promote, down as u64, move_pages);
        let up = count_moved(&promoted.report);
        let ended = match up < down {
            true => {
                let mut results = promoted.report.results.iter();
                let failed = results.find(|result| result.outcome != Outcome::Moved);
                let why = failed.map_or(Outcome::Busy, |result| of_partner(result.outcome));
                let to = pair.promote.target;
                let (went_down, went_up) = (moved(&demoted.report), moved(&promoted.report));
                undo(&mut demoted.report, down - up, to, why, move_pages);
                // What did not go back is tried once more, and told.
                let narrowed = self.journal.narrow(record, went_down, went_up);
                narrowed.and_then(|()| self.journal.repair()).map(|_| ())
            }
            false => self.end(&record),
        };
        let trouble = ended.err().map(|error| with_causes(&error));
        Ok(done(demoted, promoted, trouble))
    }

    fn end(&self, record: &pair_journal::PairRecord) -> Result<(), PairError> {
        let given_back = self.journal.end(record)?;
        if given_back > 0 {
            tracing::info!(
                pages = given_back,
                "pages of a hugetlb pool became free between two moves: the pools were set as they had been"
            );
        }
        Ok(())
    }
}

/// What became of a page that was moved and went back, since its partner ended as `partner`: what ails
/// the partner itself says nothing of the page.
const fn of_partner(partner: Outcome) -> Outcome {
    match partner {
        Outcome::NoMemory
        | Outcome::NoHugePage
        | Outcome::BelowWatermark
        | Outcome::Cpuset
        | Outcome::Refused => partner,
        _ => Outcome::Busy,
    }
}

/// The memory of a node, without pools.
pub(in crate::agent) const fn memory_of(node: NodeId, marks: &NodeMarks) -> NodeMemory {
    NodeMemory {
        node,
        free_bytes: marks.free,
        cached_bytes: marks.cached,
        low_watermark_bytes: marks.low,
        high_watermark_bytes: marks.high,
        pools: Vec::new(),
    }
}

fn done(demoted: Carried, promoted: Carried, trouble: Option<String>) -> Done {
    match demoted.refusal.or(promoted.refusal).or(trouble) {
        None => Done::Paired(demoted.report, promoted.report),
        Some(reason) => Done::PairRefused(demoted.report, promoted.report, reason),
    }
}

/// Moves the first `most` pages of a batch: for the others the pool has no page.
fn carry_out_first(
    batch: &MoveBatch,
    most: u64,
    move_pages: &mut impl FnMut(&MoveBatch) -> Carried,
) -> Carried {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut all = Carried {
        report: unmoved(batch, Outcome::NoHugePage),
        refusal: None,
    };
    if most == 0 {
        return all;
    }
    let part = MoveBatch {
        pages: batch.pages.iter().take(most).copied().collect(),
        ..batch.clone()
    };
    let carried = move_pages(&part);
    all.refusal = carried.refusal;
    all.report.cpu_time = carried.report.cpu_time;
    for (result, known) in all.report.results.iter_mut().zip(carried.report.results) {
        *result = known;
    }
    all
}

/// The pages that moved.
fn moved(report: &MoveReport) -> Vec<Hva> {
    let moved = |result: &&PageResult| result.outcome == Outcome::Moved;
    let results = report.results.iter().filter(moved);
    results.map(|result| result.page.hva).collect()
}

fn count_moved(report: &MoveReport) -> usize {
    moved(report).len()
}

/// Moves the last `count` demoted pages back to `node`, which have no partner: `why` is what became of
/// the partner.
fn undo(
    demoted: &mut MoveReport,
    count: usize,
    node: NodeId,
    why: Outcome,
    move_pages: &mut impl FnMut(&MoveBatch) -> Carried,
) {
    let moved = |&at: &usize| demoted.results[at].outcome == Outcome::Moved;
    let alone: Vec<usize> = (0..demoted.results.len())
        .rev()
        .filter(moved)
        .take(count)
        .collect();
    let pages: Vec<_> = alone.iter().map(|&at| demoted.results[at].page).collect();
    let back = move_pages(&MoveBatch {
        id: demoted.id,
        direction: demoted.direction,
        target: node,
        nearest: None,
        frame_bytes: pages.first().map_or(0, |page| page.bytes),
        pages,
    });
    for (at, back) in alone.into_iter().zip(back.report.results) {
        if back.outcome == Outcome::Moved {
            demoted.results[at].outcome = why;
            demoted.results[at].node = back.node;
        }
    }
}

#[cfg(test)]
mod tests {
    use tier_core::addr::HUGE_PAGE;

    use super::*;
    use crate::pair_journal::tests::{Host, pair};

    fn moves(host: &Host) -> PoolMoves {
        let nodes = NodeSet::from_iter([NodeId(0), NodeId(1)]);
        PoolMoves::new(host.run_dir(), &host.root, "vm", 77, nodes)
    }

    /// Moves three pages up and three down; `fails` says of each call, from 0, and page whether it
    /// fails. Returns also the pages of each call and whether the journal was in use at one.
    fn paired(host: &Host, fails: impl Fn(usize, usize) -> bool) -> (Done, Vec<Vec<u64>>, bool) {
        let mut calls = Vec::new();
        let mut is_on_record = false;
        let done = moves(host).carry_out_pair(&pair(3), |batch| {
            is_on_record |= host.records().len() == 1;
            let mut report = unmoved(batch, Outcome::NoHugePage);
            for (at, result) in report.results.iter_mut().enumerate() {
                if !fails(calls.len(), at) {
                    result.outcome = Outcome::Moved;
                    result.node = Some(batch.target);
                }
            }
            let number = |page: &tier_core::moves::Page| page.hva.0 / HUGE_PAGE;
            calls.push(batch.pages.iter().map(number).collect());
            Carried {
                report,
                refusal: None,
            }
        });
        assert!(host.records().is_empty());
        (done, calls, is_on_record)
    }

    fn outcomes(done: &Done) -> [Vec<(Outcome, Option<u16>)>; 2] {
        let Done::Paired(demoted, promoted) = done else {
            panic!("{done:?}");
        };
        [demoted, promoted].map(|report| {
            let results = report.results.iter();
            let told = results.map(|r| (r.outcome, r.node.map(|node| node.0)));
            told.collect()
        })
    }

    const DOWN: (Outcome, Option<u16>) = (Outcome::Moved, Some(1));
    const UP: (Outcome, Option<u16>) = (Outcome::Moved, Some(0));
    const NONE: (Outcome, Option<u16>) = (Outcome::NoHugePage, None);

    #[test]
    fn pair_when_no_page_is_free_goes_by_free_memory_and_is_on_record() {
        let host = Host::new((44, 0), (156, 0));
        let (done, calls, is_on_record) = paired(&host, |_, _| false);
        assert_eq!(outcomes(&done), [vec![DOWN; 3], vec![UP; 3]]);
        assert_eq!(calls, [[100, 101, 102], [200, 201, 202]]);
        assert!(is_on_record);
    }

    #[test]
    fn pair_when_pages_are_to_spare_moves_as_many_and_needs_no_record() {
        // The model's pools stay as they are: two pages are free on either node.
        let host = Host::new((44, 2), (158, 2));
        let (done, calls, is_on_record) = paired(&host, |_, _| false);
        assert_eq!(
            outcomes(&done),
            [vec![DOWN, DOWN, NONE], vec![UP, UP, NONE]]
        );
        assert_eq!(calls, [[100, 101], [200, 201]]);
        assert!(!is_on_record);
    }

    #[test]
    fn pair_when_somebody_took_the_page_that_became_free_does_not_promote() {
        let host = Host::new((44, 0), (157, 1));
        let (done, calls, _) = paired(&host, |_, _| false);
        assert_eq!(outcomes(&done), [vec![DOWN, NONE, NONE], vec![NONE; 3]]);
        assert_eq!(calls, [[100]]);
    }

    #[test]
    fn pair_when_a_demotion_fails_promotes_one_less() {
        let host = Host::new((44, 0), (156, 0));
        let (done, calls, _) = paired(&host, |call, page| (call, page) == (0, 1));
        assert_eq!(
            outcomes(&done),
            [vec![DOWN, NONE, DOWN], vec![UP, UP, NONE]]
        );
        assert_eq!(calls, [vec![100, 101, 102], vec![200, 201]]);
    }

    #[test]
    fn pair_when_promotions_fail_takes_as_many_pages_back() {
        let host = Host::new((44, 0), (156, 0));
        let (done, calls, _) = paired(&host, |call, page| call == 1 && page < 2);
        let back = (Outcome::NoHugePage, Some(0));
        assert_eq!(
            outcomes(&done),
            [vec![DOWN, back, back], vec![NONE, NONE, UP]]
        );
        assert_eq!(
            calls,
            [vec![100, 101, 102], vec![200, 201, 202], vec![102, 101]]
        );
    }

    #[test]
    fn pair_when_nothing_moves_is_over_at_once() {
        let host = Host::new((44, 0), (156, 0));
        let (done, calls, _) = paired(&host, |_, _| true);
        assert_eq!(outcomes(&done), [vec![NONE; 3], vec![NONE; 3]]);
        assert_eq!(calls.len(), 1);
    }

    #[test]
    fn pair_when_pages_become_free_in_between_leaves_the_pools_as_they_were() {
        let host = Host::new((44, 0), (156, 0));
        let (done, ..) = paired(&host, |call, _| {
            if call == 1 {
                // The demotions made the pools differ. Then a guest ended, and promotions take its
                // pages: pages of the slow node become free instead.
                host.set(0, (41, 2));
                host.set(1, (159, 3));
            }
            false
        });
        assert_eq!(outcomes(&done), [vec![DOWN; 3], vec![UP; 3]]);
        assert_eq!((host.pages(0), host.pages(1)), (44, 156));
    }

    #[test]
    fn pair_when_a_partner_is_pinned_calls_the_page_that_went_back_busy() {
        for partner in [
            Outcome::Pinned,
            Outcome::Shared,
            Outcome::Absent,
            Outcome::AlreadyThere,
        ] {
            assert_eq!(of_partner(partner), Outcome::Busy);
        }
        assert_eq!(of_partner(Outcome::NoMemory), Outcome::NoMemory);
    }

    #[test]
    fn pair_when_a_tier_has_two_nodes_and_no_page_is_free_does_not_begin() {
        let host = Host::new((44, 0), (156, 0));
        let nodes = (0..3).map(NodeId).collect();
        let moves = PoolMoves::new(host.run_dir(), &host.root, "vm", 77, nodes);
        let done = moves.carry_out_pair(&pair(3), |_| panic!("moves"));
        assert_eq!(outcomes(&done), [vec![NONE; 3], vec![NONE; 3]]);
    }

    #[test]
    fn pair_when_the_agent_ends_waits_for_no_lock() {
        let host = Host::new((44, 0), (156, 0));
        let other = moves(&host);
        let _lock = other.lock().unwrap();
        let moves = moves(&host);
        moves.ends().store(true, Ordering::Relaxed);
        let begin = Instant::now();
        let done = moves.carry_out_pair(&pair(3), |_| panic!("moves"));
        assert!(matches!(done, Done::PairRefused(..)));
        assert!(begin.elapsed() < LOCK_TIMEOUT);
    }

    #[test]
    fn pair_that_its_guest_left_in_the_middle_is_repaired_when_the_agent_ends() {
        let host = Host::new((44, 0), (156, 0));
        let moves = moves(&host);
        let done = moves.carry_out_pair(&pair(3), |batch| {
            let mut report = unmoved(batch, Outcome::Gone);
            if batch.target == NodeId(1) {
                report.results.iter_mut().for_each(|result| {
                    result.outcome = Outcome::Moved;
                });
                host.set(0, (41, 0));
                host.set(1, (159, 0));
                host.end_guest();
            }
            let refusal = None;
            Carried { report, refusal }
        });
        // Its memory is not free yet.
        assert!(matches!(done, Done::PairRefused(..)), "{done:?}");
        assert_eq!(host.records().len(), 1);
        std::thread::scope(|scope| {
            scope.spawn(|| moves.leave());
            std::thread::sleep(2 * EXIT_POLL);
            host.set(1, (159, 159));
        });
        assert_eq!((host.pages(0), host.pages(1)), (44, 156));
        assert!(host.records().is_empty());
    }

    #[test]
    fn pair_when_the_pools_would_change_does_not_begin() {
        // All free pages are promised on neither node, and there is surplus.
        let host = Host::new((44, 0), (158, 2));
        host.set_surplus(0, 14);
        let (done, calls, _) = paired(&host, |_, _| false);
        assert_eq!(outcomes(&done), [vec![NONE; 3], vec![NONE; 3]]);
        assert!(calls.is_empty());
    }

    #[test]
    fn pair_when_the_pool_is_shrunk_in_the_middle_does_not_promote() {
        let host = Host::new((44, 0), (158, 2));
        let mut calls = 0;
        let done = moves(&host).carry_out_pair(&pair(3), |batch| {
            calls += 1;
            let mut report = unmoved(batch, Outcome::NoHugePage);
            for result in &mut report.results {
                result.outcome = Outcome::Moved;
                result.node = Some(batch.target);
            }
            // An administrator writes fewer pages than are used: what is freed leaves the pool.
            host.set(0, (44, 2));
            host.set_surplus(0, 4);
            let refusal = None;
            Carried { report, refusal }
        });
        assert_eq!(outcomes(&done), [vec![DOWN, DOWN, NONE], vec![NONE; 3]]);
        assert_eq!(calls, 1);
        assert!(host.records().is_empty());
    }

    #[test]
    fn pair_when_another_agent_has_the_lock_for_long_is_refused() {
        let host = Host::new((44, 0), (156, 0));
        let _lock = moves(&host).lock().unwrap();
        let done = moves(&host).carry_out_pair(&pair(3), |_| panic!("moves"));
        let Done::PairRefused(_, _, reason) = done else {
            panic!("{done:?}");
        };
        assert!(reason.contains("hugetlb.lock"), "{reason}");
    }

    /// A promotion of three pages where the fast node has `free_mib` MiB above its watermark of 4 KiB.
    /// Of the pages beyond `free` pages of the pool, `grown` become the pool's. Returns how many pages
    /// were tried.
    fn grow(host: &Host, free_mib: u64, grown: u64) -> (usize, Carried) {
        host.put_zones(free_mib << 8);
        grow_by(&growing(host), host, grown)
    }

    fn growing(host: &Host) -> PoolMoves {
        let growth = Growth {
            nodes: [NodeId(0), NodeId(1)],
            headroom_bytes: 4 << 20,
        };
        moves(host).with_growth(Some(growth))
    }

    fn grow_by(moves: &PoolMoves, host: &Host, grown: u64) -> (usize, Carried) {
        let mut tried = 0;
        let carried = moves.carry_out(&pair(3).promote, |batch| {
            tried = batch.pages.len();
            host.set(0, (host.pages(0) + grown, 0));
            host.set(1, (host.pages(1) - grown, 0));
            let mut report = unmoved(batch, Outcome::NoHugePage);
            for result in &mut report.results {
                result.outcome = Outcome::Moved;
            }
            let refusal = None;
            Carried { report, refusal }
        });
        (tried, carried)
    }

    fn drift(host: &Host) -> u64 {
        let pool = moves(host).pool(HUGE_PAGE).unwrap();
        let drift = crate::pool_drift::of_pool(host.run_dir(), &host.root, &pool);
        drift.into_iter().map(|drift| drift.unwrap().pages).sum()
    }

    #[test]
    fn batch_when_the_pool_may_grow_takes_free_memory_above_the_headroom_and_is_on_record() {
        // 4 MiB of headroom, and a bit for the watermark: two pages fit.
        let host = Host::new((44, 0), (156, 0));
        let (tried, carried) = grow(&host, 9, 2);
        assert_eq!((tried, count_moved(&carried.report)), (2, 2));
        assert_eq!(carried.refusal, None);
        assert_eq!(drift(&host), 2);
        let (tried, _) = grow(&host, 100, 3);
        assert_eq!((tried, drift(&host)), (3, 5));
        // Free pages of the pool come first, and are no drift.
        host.set(0, (49, 3));
        let (tried, _) = grow(&host, 100, 0);
        assert_eq!((tried, drift(&host)), (3, 5));
    }

    #[test]
    fn batch_when_the_pool_may_not_grow_takes_what_is_free_only() {
        let host = Host::new((44, 1), (156, 0));
        let (tried, carried) = grow(&host, 5, 0);
        assert_eq!(tried, 1, "below the headroom");
        assert_eq!(carried.report.results[1].outcome, Outcome::NoHugePage);
        host.set(0, (44, 1));
        host.set_surplus(1, 1);
        assert_eq!(grow(&host, 100, 0).0, 0, "surplus pages would go along");
        let host = Host::new((44, 1), (156, 0));
        host.journal().begin(&pair(2)).unwrap();
        assert_eq!(grow(&host, 100, 0).0, 1, "a pair did not end");
        assert_eq!(drift(&host), 0);
    }

    #[test]
    fn batch_when_drift_can_not_be_written_down_takes_what_is_free_only_and_says_why() {
        for free in [0, 2] {
            let host = Host::new((44, free), (156, 0));
            std::fs::write(host.run_dir().join("drift"), "in the way").unwrap();
            let (tried, carried) = grow(&host, 100, 0);
            let free = free as usize;
            assert_eq!((tried, count_moved(&carried.report)), (free, free));
            assert_eq!(carried.report.results[free].outcome, Outcome::NoHugePage);
            let done = Done::from(carried);
            assert!(
                matches!(&done, Done::Refused(_, why) if why.contains("drift")),
                "{done:?}"
            );
        }
    }

    #[test]
    fn batch_when_watermarks_can_not_be_read_takes_what_is_free_only_and_says_why() {
        let host = Host::new((44, 2), (156, 0));
        // Without /proc/zoneinfo, as in a container that hides it.
        let (tried, carried) = grow_by(&growing(&host), &host, 0);
        assert_eq!((tried, count_moved(&carried.report)), (2, 2));
        assert_eq!(carried.report.results[2].outcome, Outcome::NoHugePage);
        let why = carried.refusal.unwrap();
        assert!(why.contains("zoneinfo"), "{why}");
    }

    #[test]
    fn growth_when_it_can_not_be_written_down_is_not_tried_for_a_while_and_then_again() {
        let host = Host::new((44, 0), (156, 0));
        host.put_zones(100 << 8);
        let moves = growing(&host);
        let trouble = moves.growth_trouble();
        let now = Instant::now();
        assert!(trouble.may_try(now));
        assert_eq!(trouble.reason(), None);

        let in_the_way = host.run_dir().join("drift");
        std::os::unix::fs::symlink("/nonexistent/folder", &in_the_way).unwrap();
        assert_eq!(grow_by(&moves, &host, 0).0, 0);
        let why = trouble.reason().unwrap();
        assert!(why.contains("make its folder writable"), "{why}");
        assert!(
            !trouble.may_try(now),
            "the planner sees no room beyond the pool"
        );
        assert!(trouble.may_try(Instant::now() + GROW_AGAIN));

        std::fs::remove_file(&in_the_way).unwrap();
        assert_eq!(grow_by(&moves, &host, 3).0, 3);
        assert_eq!(trouble.reason(), None);
        assert!(trouble.may_try(now));
    }

    #[test]
    fn batch_when_the_pool_has_fewer_free_pages_moves_as_many() {
        let host = Host::new((44, 2), (156, 0));
        let mut moved = 0;
        let carried = moves(&host).carry_out(&pair(3).promote, |batch| {
            moved = batch.pages.len();
            Carried {
                report: unmoved(batch, Outcome::Busy),
                refusal: None,
            }
        });
        assert_eq!(moved, 2);
        assert_eq!(carried.report.results[2].outcome, Outcome::NoHugePage);
    }
}
