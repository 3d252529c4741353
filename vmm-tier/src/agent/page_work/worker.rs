//! The kernel worker: one thread that carries out look-ups and moves, in the order they are asked for.
//!
//! One thread, because order is what the engine relies on: a look-up asked for before a move must not
//! answer after it, and a promotion must not run before the demotion that makes its room.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use tier_core::{
    addr::{BASE_PAGE, Hva, NodeId},
    engine::{ReshapeRequest, ScanReport, ScanRequest},
    moves::{MoveBatch, MoveReport, Outcome, Page, PageResult, PairedBatch},
    rebind::Binding,
};
use tier_sys::{
    pages::{self, PageStatus},
    process::thread_cpu_time,
    sysroot::SysRoot,
};

use super::{
    done::{Carried, Done, unmoved},
    nearest::to_nearest,
    page_sizes::{PageSizes, pages_of},
    pool_moves::PoolMoves,
    rebinder::Rebinder,
    reshape::Reshape,
};
use crate::log::with_causes;

/// Jobs that may wait. The engine has at most one look-up, one exchange (a demotion and a promotion), one
/// rebinding, and one split or collapse under way.
const QUEUE: usize = 8;

/// Something to do.
#[derive(Debug)]
pub(in crate::agent) enum Job {
    Scan(ScanRequest),
    Move(MoveBatch),
    Pair(PairedBatch),
    Rebind(Vec<Binding>),
    Reshape(ReshapeRequest),
}

/// The thread and its channels. Dropping it ends the thread after the job at hand.
#[derive(Debug)]
pub(in crate::agent) struct Worker {
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread for the process `pid`.
    pub(in crate::agent) fn start(
        root: &SysRoot,
        pid: u32,
        pools: PoolMoves,
        mut rebinder: Rebinder,
    ) -> std::io::Result<Self> {
        let mut sizes = PageSizes::open(root, pid);
        let reshape = Reshape::new(root, pid);
        let (jobs, todo) = bounded(QUEUE);
        // Each result answers a job, and jobs are bounded: a result never waits, so that the agent may
        // wait for room for a job.
        let (results, done) = unbounded();
        let ends = pools.ends();
        let told = Arc::clone(&ends);
        let work = move || {
            pools.repair();
            rebinder.repair();
            for job in todo {
                if told.load(Ordering::Relaxed) {
                    break;
                }
                let nodes_of = |addresses: &[Hva]| {
                    let statuses = pages::query_nodes(pid, addresses)?;
                    Ok(statuses.into_iter().map(PageStatus::node).collect())
                };
                let result = match job {
                    Job::Scan(request) => look_up(pid, &mut sizes, request),
                    Job::Move(batch) => {
                        let carry_out = |part: &MoveBatch| match part.frame_bytes {
                            BASE_PAGE => carry_out_if_known(pid, &sizes, part),
                            _ => pools.carry_out(part, |part| carry_out(pid, part)),
                        };
                        match &batch.nearest {
                            None => carry_out(&batch).into(),
                            Some(targets) => {
                                to_nearest(&batch, targets, nodes_of, carry_out).into()
                            }
                        }
                    }
                    Job::Rebind(bindings) => rebinder.carry_out(&bindings),
                    Job::Reshape(request) => {
                        let (report, reason) = reshape.carry_out(&sizes, request);
                        Done::Reshaped(report, reason)
                    }
                    Job::Pair(pair) => pools.carry_out_pair(&pair, |part| carry_out(pid, part)),
                };
                if results.send(result).is_err() {
                    break;
                }
            }
            rebinder.leave();
            pools.leave();
        };
        let thread = std::thread::Builder::new()
            .name("worker".to_owned())
            .spawn(work)?;
        Ok(Self {
            jobs: Some(jobs),
            done,
            ends,
            thread: Some(thread),
        })
    }

    /// Hands a job over. Blocks only if the engine asks for more than it may have under way.
    pub(in crate::agent) fn submit(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The thread ends only after this sender is gone.
            let _ = jobs.send(job);
        }
    }

    /// Where finished jobs arrive.
    pub(in crate::agent) const fn done(&self) -> &Receiver<Done> {
        &self.done
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Looks up how large the pages of the request are, and where each lies.
fn look_up(pid: u32, sizes: &mut PageSizes, request: ScanRequest) -> Done {
    let started = thread_cpu_time();
    let report = |folios, pages| ScanReport {
        request,
        folios,
        pages,
        cpu_time: thread_cpu_time().saturating_sub(started),
    };
    match scan(pid, sizes, request) {
        Ok((folios, pages)) => Done::Scanned(report(folios, pages)),
        Err(reason) => Done::NotScanned(report(Vec::new(), Vec::new()), reason),
    }
}

type Found = (Vec<Page>, Vec<(Page, Option<NodeId>)>);

fn scan(pid: u32, sizes: &mut PageSizes, request: ScanRequest) -> Result<Found, String> {
    let folios = sizes.larger(request.span)?;
    let pages = pages_of(request.span, &folios);
    let addresses: Vec<Hva> = pages.iter().map(|page| page.hva).collect();
    let statuses = pages::query_nodes(pid, &addresses).map_err(|error| with_causes(&error))?;
    let nodes = statuses.into_iter().map(PageStatus::node);
    Ok((folios, pages.into_iter().zip(nodes).collect()))
}

/// Moves those pages of a batch that are still as large as they are taken for.
fn carry_out_if_known(pid: u32, sizes: &PageSizes, batch: &MoveBatch) -> Carried {
    let started = thread_cpu_time();
    let are_stale = sizes.are_stale(&batch.pages);
    if !are_stale.contains(&true) {
        return carry_out(pid, batch);
    }
    let all = batch.pages.clone();
    let mut batch = batch.clone();
    let mut stale = are_stale.iter();
    batch.pages.retain(|_| stale.next() == Some(&false));
    let mut carried = carry_out(pid, &batch);
    let mut moved = std::mem::take(&mut carried.report.results).into_iter();
    let results = all
        .into_iter()
        .zip(are_stale)
        .filter_map(|(page, is_stale)| {
            let resized = PageResult {
                page,
                outcome: Outcome::Resized,
                node: None,
            };
            match is_stale {
                true => Some(resized),
                false => moved.next(),
            }
        });
    carried.report.results = results.collect();
    carried.report.cpu_time = thread_cpu_time().saturating_sub(started);
    carried
}

fn carry_out(pid: u32, batch: &MoveBatch) -> Carried {
    let started = thread_cpu_time();
    let (mut report, refusal) = match pages::move_pages(pid, batch.target, &batch.pages, true) {
        Ok(results) => {
            let report = MoveReport {
                results,
                ..unmoved(batch, Outcome::Busy)
            };
            (report, None)
        }
        Err(error) => (unmoved(batch, error.outcome()), Some(with_causes(&error))),
    };
    report.cpu_time = thread_cpu_time().saturating_sub(started);
    Carried { report, refusal }
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        process::{Command, Stdio},
    };

    use tier_core::{
        addr::{HUGE_PAGE, NodeSet},
        moves::Direction,
        pages::Span,
        tiers::Tiers,
    };

    use super::*;

    fn tiers() -> Tiers {
        Tiers {
            fast: NodeSet::default(),
            slow: NodeSet::default(),
            fast_latency_ns: 80.0,
            slow_latency_ns: 250.0,
        }
    }

    /// A worker on this process.
    fn start() -> std::io::Result<Worker> {
        worker_on(std::process::id())
    }

    fn worker_on(pid: u32) -> std::io::Result<Worker> {
        let root = SysRoot::real();
        let pools = PoolMoves::new(
            Path::new("/nonexistent"),
            &root,
            "vm",
            pid,
            NodeSet::default(),
        );
        let rebinder = Rebinder::new(Path::new("/nonexistent"), &root, "vm", pid, &tiers());
        Worker::start(&root, pid, pools, rebinder)
    }

    #[test]
    fn worker_when_given_its_own_process_answers_in_order() {
        let worker = start().unwrap();
        let memory = vec![1_u8; 16 * BASE_PAGE as usize];
        let hva = Hva(memory.as_ptr() as u64).align_down(BASE_PAGE);
        let hva = Hva(hva.0 + BASE_PAGE);
        for frames in [1, 2, 3] {
            let span = Span {
                hva,
                bytes: frames * BASE_PAGE,
                frame_bytes: BASE_PAGE,
            };
            worker.submit(Job::Scan(ScanRequest { id: 1, span }));
        }
        for frames in [1, 2, 3] {
            let Done::Scanned(report) = worker.done().recv().unwrap() else {
                panic!("not a scan")
            };
            assert_eq!(report.pages.len(), frames);
            assert!(
                report.pages.iter().all(|(_, node)| node.is_some()),
                "{report:?}"
            );
        }
    }

    #[test]
    fn worker_when_the_process_is_gone_says_so_and_invents_nothing() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        child.kill().unwrap();
        child.wait().unwrap();
        let worker = worker_on(pid).unwrap();
        let span = Span {
            hva: Hva(HUGE_PAGE),
            bytes: HUGE_PAGE,
            frame_bytes: BASE_PAGE,
        };
        worker.submit(Job::Scan(ScanRequest { id: 1, span }));
        let Done::NotScanned(report, reason) = worker.done().recv().unwrap() else {
            panic!("a dead process was looked at")
        };
        assert!(report.pages.is_empty());
        assert!(reason.contains(&pid.to_string()), "{reason}");
    }

    #[test]
    fn worker_when_pages_are_in_a_huge_page_by_now_moves_the_others_only() {
        let memory = vec![1_u8; 16 << 20];
        let start = (memory.as_ptr() as u64).next_multiple_of(HUGE_PAGE);
        let small = vec![1_u8; 16 * BASE_PAGE as usize];
        let page = |hva: u64| Page {
            hva: Hva(hva).align_down(BASE_PAGE),
            bytes: BASE_PAGE,
        };
        let single = page(small.as_ptr() as u64 + BASE_PAGE);
        let pages = vec![page(start + 5 * BASE_PAGE), single, page(start)];
        let mut sizes = PageSizes::open(&SysRoot::real(), std::process::id());
        let span = Span {
            hva: Hva(start),
            bytes: HUGE_PAGE,
            frame_bytes: BASE_PAGE,
        };
        if sizes.larger(span).unwrap().first().map(|page| page.bytes) != Some(HUGE_PAGE) {
            return eprintln!("SKIPPED: this host gives no transparent huge pages");
        }
        if sizes.are_stale(&[single]) != [false] {
            return eprintln!("SKIPPED: small blocks are in huge pages too");
        }
        let batch = MoveBatch {
            id: 3,
            direction: Direction::Promote,
            target: NodeId(0),
            nearest: None,
            frame_bytes: BASE_PAGE,
            pages: pages.clone(),
        };
        let carried = carry_out_if_known(std::process::id(), &sizes, &batch);
        let told = carried.report.results;
        assert_eq!(told.iter().map(|r| r.page).collect::<Vec<_>>(), pages);
        assert_eq!(told[0].outcome, Outcome::Resized);
        assert_eq!(told[2].outcome, Outcome::Resized);
        // A host with one node: it lies there.
        assert_ne!(told[1].outcome, Outcome::Resized);
    }

    #[test]
    fn worker_when_dropped_with_jobs_waiting_ends() {
        let worker = start().unwrap();
        let span = Span {
            hva: Hva(HUGE_PAGE),
            bytes: HUGE_PAGE,
            frame_bytes: BASE_PAGE,
        };
        for id in 0..QUEUE as u64 {
            worker.submit(Job::Scan(ScanRequest { id, span }));
        }
        let done = worker.done().clone();
        drop(worker);
        assert!(done.iter().count() <= QUEUE, "its sender is gone");
    }
}
