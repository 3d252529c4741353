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
    addr::{BASE_PAGE, HUGE_PAGE, Hva, NodeId},
    engine::{ScanReport, ScanRequest},
    moves::{MoveBatch, MoveReport, Outcome, Page, PairedBatch},
};
use tier_sys::{
    pagemap::{PageRange, Pagemap},
    pages::{self, PageStatus},
    process::thread_cpu_time,
    sysroot::SysRoot,
};

use super::{
    done::{Carried, Done, unmoved},
    nearest::to_nearest,
    pool_moves::PoolMoves,
};
use crate::log::with_causes;

/// Jobs that may wait. The engine has at most one look-up and one exchange (a demotion and a
/// promotion) under way.
const QUEUE: usize = 8;

/// Something to do.
#[derive(Debug)]
pub(in crate::agent) enum Job {
    Scan(ScanRequest),
    Move(MoveBatch),
    Pair(PairedBatch),
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
    ) -> std::io::Result<Self> {
        // Without it (another user's process) huge pages go unnoticed; moving will tell why.
        let pagemap = Pagemap::open(root, pid).ok();
        let (jobs, todo) = bounded(QUEUE);
        // Each result answers a job, and jobs are bounded: a result never waits, so that the agent may
        // wait for room for a job.
        let (results, done) = unbounded();
        let ends = pools.ends();
        let told = Arc::clone(&ends);
        let work = move || {
            pools.repair();
            for job in todo {
                if told.load(Ordering::Relaxed) {
                    break;
                }
                let nodes_of = |addresses: &[Hva]| {
                    let statuses = pages::query_nodes(pid, addresses)?;
                    Ok(statuses.into_iter().map(PageStatus::node).collect())
                };
                let result = match job {
                    Job::Scan(request) => look_up(pid, pagemap.as_ref(), request),
                    Job::Move(batch) => {
                        let carry_out = |part: &MoveBatch| match part.frame_bytes {
                            BASE_PAGE => carry_out(pid, part),
                            _ => pools.carry_out(part, |part| carry_out(pid, part)),
                        };
                        match &batch.nearest {
                            None => carry_out(&batch).into(),
                            Some(targets) => {
                                to_nearest(&batch, targets, nodes_of, carry_out).into()
                            }
                        }
                    }
                    Job::Pair(pair) => pools.carry_out_pair(&pair, |part| carry_out(pid, part)),
                };
                if results.send(result).is_err() {
                    break;
                }
            }
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

/// Looks up which pages of the request are huge and where each lies.
fn look_up(pid: u32, pagemap: Option<&Pagemap>, request: ScanRequest) -> Done {
    let started = thread_cpu_time();
    let report = |huge, pages| ScanReport {
        request,
        huge,
        pages,
        cpu_time: thread_cpu_time().saturating_sub(started),
    };
    match scan(pid, pagemap, request) {
        Ok((huge, pages)) => Done::Scanned(report(huge, pages)),
        Err(reason) => Done::NotScanned(report(Vec::new(), Vec::new()), reason),
    }
}

type Found = (Vec<Hva>, Vec<(Page, Option<NodeId>)>);

fn scan(pid: u32, pagemap: Option<&Pagemap>, request: ScanRequest) -> Result<Found, String> {
    let span = request.span;
    let huge = match pagemap.filter(|_| span.frame_bytes < HUGE_PAGE) {
        Some(pagemap) => pagemap
            .huge_ranges(span.hva, span.bytes)
            .map_err(|error| with_causes(&error))?
            .map_or_else(Vec::new, |ranges| heads(&ranges)),
        None => Vec::new(),
    };
    let pages = pages_of(request, &huge);
    let addresses: Vec<Hva> = pages.iter().map(|page| page.hva).collect();
    let statuses = pages::query_nodes(pid, &addresses).map_err(|error| with_causes(&error))?;
    let nodes = statuses.into_iter().map(PageStatus::node);
    Ok((huge, pages.into_iter().zip(nodes).collect()))
}

/// The heads of the huge pages that lie whole in runs of them.
fn heads(ranges: &[PageRange]) -> Vec<Hva> {
    let heads = |range: &PageRange| {
        let first = range.start.0.next_multiple_of(HUGE_PAGE);
        (first..range.end.0)
            .step_by(HUGE_PAGE as usize)
            .filter(|head| head + HUGE_PAGE <= range.end.0)
            .map(Hva)
            .collect::<Vec<_>>()
    };
    ranges.iter().flat_map(heads).collect()
}

/// The pages of a span: huge pages whole, everything else frame by frame.
fn pages_of(request: ScanRequest, huge: &[Hva]) -> Vec<Page> {
    let span = request.span;
    let end = span.hva.0 + span.bytes;
    let mut pages = Vec::new();
    // One that reaches past the span is looked at frame by frame: its other part is not tracked.
    let mut huge = huge
        .iter()
        .copied()
        .filter(|head| head.0 + HUGE_PAGE <= end)
        .peekable();
    let mut at = span.hva.0;
    while at < end {
        let is_head = huge.next_if(|head| head.0 == at).is_some();
        let bytes = if is_head { HUGE_PAGE } else { span.frame_bytes };
        pages.push(Page {
            hva: Hva(at),
            bytes,
        });
        at += bytes;
    }
    pages
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

    use tier_core::{addr::NodeSet, pages::Span};

    use super::*;

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
        Worker::start(&root, pid, pools)
    }

    #[test]
    fn pages_of_a_span_when_some_are_huge_cover_it_once() {
        let span = Span {
            hva: Hva(HUGE_PAGE),
            bytes: 2 * HUGE_PAGE,
            frame_bytes: BASE_PAGE,
        };
        let pages = pages_of(ScanRequest { id: 1, span }, &[Hva(2 * HUGE_PAGE)]);
        assert_eq!(pages.len(), 512 + 1);
        assert_eq!(pages.iter().map(|page| page.bytes).sum::<u64>(), span.bytes);
        assert_eq!(
            pages[512],
            Page {
                hva: Hva(2 * HUGE_PAGE),
                bytes: HUGE_PAGE
            }
        );
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
