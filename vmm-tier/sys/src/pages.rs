//! `move_pages(2)`: where pages of another process lie, and moving them.
//!
//! Nothing here reads or writes the memory itself. Only success is believed of the call's status array,
//! which is not written for all that failed: other pages are asked for their node after every move.

mod classify;
mod kernel;

use std::{collections::BTreeMap, io, time::Duration};

use tier_core::{
    addr::{BASE_PAGE, Hva, NodeId},
    moves::{Outcome, Page, PageResult},
};

use crate::process::effective_capabilities;
use classify::Answers;
use kernel::{Kernel, PageCalls};

/// The most pages in one kernel call. Each call drains the per-CPU page lists of the whole host
/// (`lru_cache_disable`), so few large calls are better; but a call can't be ended early.
const MAX_CALL: usize = 16 << 10;
/// Kernel calls for one chunk at most. A call that fails for a folio leaves out those behind it, so
/// each further call has met at least one folio that can't be moved; beyond this many, the rest is
/// left for another time.
const MAX_ROUNDS: usize = 16;
/// Stands in the status array before a call: the kernel only writes node numbers and errors.
const NOT_WRITTEN: i32 = i32::MIN;
/// Addresses at which a huge page is asked for its node: a folio that was split on the way may have
/// arrived in part.
const HUGE_PROBES: u64 = 8;

/// A page that is pinned only while it is read from or written to a disk is free again after this.
const PIN_PAUSE: Duration = Duration::from_millis(20);
/// Pages of one call that are tried a second time to find out if they are pinned for long.
const MAX_PIN_SUSPECTS: usize = 64;

/// What the kernel says of the page at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageStatus {
    /// It lies on this node.
    Node(NodeId),
    /// No page is mapped there in that process. For shared memory this does not say that none exists.
    Absent,
    /// No mapping, or the shared page of zeros.
    Fault,
    /// Another error number.
    Error(i32),
}

impl PageStatus {
    /// The node, if the page is present.
    #[must_use]
    pub fn node(self) -> Option<NodeId> {
        match self {
            Self::Node(node) => Some(node),
            Self::Absent | Self::Fault | Self::Error(_) => None,
        }
    }

    fn from_kernel(status: i32) -> Self {
        match status {
            node if node >= 0 => {
                u16::try_from(node).map_or(Self::Error(libc::ERANGE), |n| Self::Node(NodeId(n)))
            }
            error if error == -libc::ENOENT => Self::Absent,
            error if error == -libc::EFAULT => Self::Fault,
            NOT_WRITTEN => Self::Error(libc::EIO),
            error => Self::Error(-error),
        }
    }
}

/// A whole `move_pages` call was refused.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// There is no such process any more.
    #[error("process {pid} is gone")]
    Gone {
        /// The process.
        pid: u32,
    },
    /// We may not look into the process.
    #[error(
        "no permission to look at or move the pages of process {pid}: run the agent as root, as the \
         user of that process, or with CAP_SYS_PTRACE (and CAP_SYS_NICE for shared memory)"
    )]
    NotPermitted {
        /// The process.
        pid: u32,
    },
    /// The target node is not online or has no memory.
    #[error("node {node} is not online: see /sys/devices/system/node/has_memory")]
    NoSuchNode {
        /// The node.
        node: NodeId,
    },
    /// The process may not have memory on the node.
    #[error(
        "the cpuset of process {pid} does not allow memory on node {node}: widen cpuset.mems of its \
         control group, or leave the node out"
    )]
    CpusetForbids {
        /// The process.
        pid: u32,
        /// The node.
        node: NodeId,
    },
    /// The kernel refused for another reason.
    #[error("move_pages on process {pid} failed")]
    Kernel {
        /// The process.
        pid: u32,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl PagesError {
    fn new(pid: u32, target: Option<NodeId>, errno: i32) -> Self {
        match (errno, target) {
            (libc::ESRCH, _) => Self::Gone { pid },
            (libc::ENODEV, Some(node)) => Self::NoSuchNode { node },
            (libc::EACCES, Some(node)) => Self::CpusetForbids { pid, node },
            (libc::EPERM | libc::EACCES, _) => Self::NotPermitted { pid },
            _ => Self::Kernel {
                pid,
                source: io::Error::from_raw_os_error(errno),
            },
        }
    }

    /// What became of each page of the refused call.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Gone { .. } => Outcome::Gone,
            Self::CpusetForbids { .. } => Outcome::Cpuset,
            Self::NotPermitted { .. } | Self::NoSuchNode { .. } | Self::Kernel { .. } => {
                Outcome::Refused
            }
        }
    }
}

/// Asks on which node each page lies; moves and touches nothing.
///
/// # Errors
/// [`PagesError::Gone`], [`PagesError::NotPermitted`], [`PagesError::Kernel`].
pub fn query_nodes(pid: u32, pages: &[Hva]) -> Result<Vec<PageStatus>, PagesError> {
    query(&mut Kernel, pid, pages).map_err(|errno| PagesError::new(pid, None, errno))
}

/// Moves pages (each folio once, named by its head) to `target` and says for each what became of it,
/// in order. A process that is gone makes every page [`Outcome::Gone`].
///
/// `all` asks to move pages that other processes map too (vhost-user, a second mapping of a memfd);
/// it takes effect only with `CAP_SYS_NICE`, else such pages end as [`Outcome::Shared`].
///
/// The kernel does not tell a pinned page from one that is busy. Where pages are pinned on the host,
/// some of those that could not be moved are tried once more a moment later, and end as
/// [`Outcome::Pinned`] if that fails too.
///
/// # Errors
/// [`PagesError`] if the call was refused as a whole; then nothing was moved.
pub fn move_pages(
    pid: u32,
    target: NodeId,
    pages: &[Page],
    all: bool,
) -> Result<Vec<PageResult>, PagesError> {
    let all = all && effective_capabilities().sys_nice;
    move_with(&mut Kernel, pid, target, pages, all)
}

/// One query over any number of addresses; the error is the kernel's number.
fn query(kernel: &mut impl PageCalls, pid: u32, pages: &[Hva]) -> Result<Vec<PageStatus>, i32> {
    let mut answers = Vec::with_capacity(pages.len());
    for chunk in pages.chunks(MAX_CALL) {
        let mut status = vec![NOT_WRITTEN; chunk.len()];
        kernel.call(pid, chunk, None, &mut status, false)?;
        answers.extend(status.into_iter().map(PageStatus::from_kernel));
    }
    Ok(answers)
}

fn move_with(
    kernel: &mut impl PageCalls,
    pid: u32,
    target: NodeId,
    pages: &[Page],
    all: bool,
) -> Result<Vec<PageResult>, PagesError> {
    let mut results = Vec::with_capacity(pages.len());
    for chunk in pages.chunks(MAX_CALL) {
        match move_chunk(kernel, pid, target, chunk, all) {
            Ok(done) => results.extend(done),
            Err(errno) => {
                let error = PagesError::new(pid, Some(target), errno);
                // Pages of earlier chunks may have moved: their results are worth more than the error,
                // which the next batch will meet again.
                if results.is_empty() && errno != libc::ESRCH {
                    return Err(error);
                }
                results.extend(chunk.iter().map(|&page| PageResult {
                    page,
                    outcome: error.outcome(),
                    node: None,
                }));
            }
        }
    }
    Ok(results)
}

/// Moves the pages of one call, asks for what the kernel did not say, and classifies.
fn move_chunk(
    kernel: &mut impl PageCalls,
    pid: u32,
    target: NodeId,
    pages: &[Page],
    all: bool,
) -> Result<Vec<PageResult>, i32> {
    let before = Before::ask(kernel, pid, target, pages)?;
    let heads: Vec<Hva> = pages.iter().map(|page| page.hva).collect();
    let mut written: Vec<Option<i32>> = vec![None; pages.len()];
    let mut no_memory = false;
    // The pages that may not have been tried yet, by index.
    let mut open: Vec<usize> = (0..pages.len()).collect();

    for round in 0..MAX_ROUNDS {
        let addresses: Vec<Hva> = open.iter().map(|&index| heads[index]).collect();
        let nodes = vec![i32::from(target.0); open.len()];
        let mut status = vec![NOT_WRITTEN; open.len()];
        let answer = kernel.call(pid, &addresses, Some(&nodes), &mut status, all);
        for (&index, &status) in open.iter().zip(&status) {
            if status != NOT_WRITTEN {
                written[index] = Some(status);
            }
        }
        match answer {
            // The kernel ends the call with the first folio for which there is no memory.
            Err(libc::ENOMEM) => {
                no_memory = true;
                break;
            }
            // Kernels before 4.17 say so where no page needed to move.
            Err(libc::ENOENT) => break,
            Err(errno) if round == 0 => return Err(errno),
            Err(_) | Ok(0) => break,
            Ok(_) => {}
        }
        // Some folio failed. The kernel queues folios until it meets a page that it can't queue: it
        // writes that page's status, migrates the queue, and ends the call if one failed. So
        // everything before the last written status was tried; what stands behind it was tried only
        // if it was the last queue, which shows by a page of it that has arrived.
        let Some(last) = status.iter().rposition(|&status| status != NOT_WRITTEN) else {
            break;
        };
        open.drain(..=last);
        let addresses: Vec<Hva> = open.iter().map(|&index| heads[index]).collect();
        let now = query(kernel, pid, &addresses)?;
        if open.is_empty() || now.iter().any(|status| status.node() == Some(target)) {
            break;
        }
    }

    let is_short = no_memory || written.contains(&Some(-libc::ENOMEM));
    let is_below_watermark = is_short && kernel.is_below_watermark(target);
    // The kernel writes the target's number when the page lies there (move_pages_and_store_status), so
    // only the others are asked for; and huge pages, which may have been split.
    let arrived = [PageStatus::Node(target)];
    let is_sure = |index: usize| {
        pages[index].bytes == BASE_PAGE && written[index] == Some(i32::from(target.0))
    };
    let unsure: Vec<Page> = (0..pages.len())
        .filter(|&index| !is_sure(index))
        .map(|index| pages[index])
        .collect();
    let unsure = Probes::of(&unsure);
    let after = unsure.ask(kernel, pid)?;
    let mut asked = 0..;
    let mut results = Vec::with_capacity(pages.len());
    for (index, (&page, &status)) in pages.iter().zip(&written).enumerate() {
        let before = before.answers(index);
        let nodes = match is_sure(index) {
            true => &arrived,
            false => asked
                .next()
                .map_or(&[][..], |asked| unsure.answers(&after, asked)),
        };
        let answers = Answers {
            bytes: page.bytes,
            status,
            no_memory,
            is_below_watermark,
            before,
            nodes,
        };
        results.push(PageResult {
            page,
            outcome: answers.outcome(target),
            node: nodes.first().copied().and_then(PageStatus::node),
        });
    }
    tell_gone_from_zero(kernel, pid, &mut results);
    // Where a status was written, the page could not even be isolated: that is not what pins do.
    let failed =
        |index: &usize| results[*index].outcome == Outcome::Busy && written[*index].is_none();
    let suspects: Vec<usize> = (0..pages.len())
        .filter(failed)
        .take(MAX_PIN_SUSPECTS)
        .collect();
    tell_pinned_from_busy(kernel, pid, target, &suspects, &mut results, all);
    Ok(results)
}

/// Pages of a batch that are all asked for their node before it. Of a larger batch one in
/// [`ONE_IN`] is.
const FEW: usize = 64;
/// See [`FEW`]. To ask for all makes a batch 5 % slower.
const ONE_IN: usize = 8;

/// Where pages lay before a batch. Those that lie on the target already are told from those that move.
struct Before {
    /// `None` where none of those that were asked for lay on the target.
    asked: Option<(Probes, Vec<PageStatus>)>,
}

impl Before {
    /// Asks for some pages, and for all if one of these is on the target: such pages come together, as
    /// somebody else has moved them.
    fn ask(
        kernel: &mut impl PageCalls,
        pid: u32,
        target: NodeId,
        pages: &[Page],
    ) -> Result<Self, i32> {
        if pages.len() > FEW {
            let some: Vec<Hva> = pages.iter().step_by(ONE_IN).map(|page| page.hva).collect();
            let answers = query(kernel, pid, &some)?;
            if answers.iter().all(|status| status.node() != Some(target)) {
                return Ok(Self { asked: None });
            }
        }
        let probes = Probes::of(pages);
        let answers = probes.ask(kernel, pid)?;
        Ok(Self {
            asked: Some((probes, answers)),
        })
    }

    fn answers(&self, index: usize) -> &[PageStatus] {
        let asked = self.asked.as_ref();
        asked.map_or(&[], |(probes, answers)| probes.answers(answers, index))
    }
}

/// The addresses at which pages are asked for their node: one of a small page, several of a huge one.
/// They stand in one list: a list for each page would be an allocation for each.
struct Probes {
    addresses: Vec<Hva>,
    /// Where the addresses of each page begin, and where the last page's end.
    begins: Vec<usize>,
}

impl Probes {
    fn of(pages: &[Page]) -> Self {
        let mut addresses = Vec::with_capacity(pages.len());
        let mut begins = Vec::with_capacity(pages.len() + 1);
        for page in pages {
            begins.push(addresses.len());
            addresses.push(page.hva);
            let base_pages = page.bytes / BASE_PAGE;
            let more = HUGE_PROBES.min(base_pages).saturating_sub(1);
            // Evenly spread, the last one in the last base page.
            for probe in 1..=more {
                let offset = (base_pages - 1) * probe / more * BASE_PAGE;
                addresses.extend(page.hva.checked_add(offset));
            }
        }
        begins.push(addresses.len());
        Self { addresses, begins }
    }

    /// Where the pages lie now.
    fn ask(&self, kernel: &mut impl PageCalls, pid: u32) -> Result<Vec<PageStatus>, i32> {
        query(kernel, pid, &self.addresses)
    }

    /// What of the answers says where the page of this index lies: its head first.
    fn answers<'a>(&self, answers: &'a [PageStatus], index: usize) -> &'a [PageStatus] {
        &answers[self.begins[index]..self.begins[index + 1]]
    }
}

/// A page on whose behalf the kernel has tried ten times in vain is pinned, or in use just now: tries
/// the suspects again, if enough is pinned on this host for one of them to be.
fn tell_pinned_from_busy(
    kernel: &mut impl PageCalls,
    pid: u32,
    target: NodeId,
    suspects: &[usize],
    results: &mut [PageResult],
    all: bool,
) {
    let Some(smallest) = suspects
        .iter()
        .map(|&index| results[index].page.bytes)
        .min()
    else {
        return;
    };
    if kernel.pinned_pages().saturating_mul(BASE_PAGE) < smallest {
        return;
    }
    kernel.pause(PIN_PAUSE);
    let heads: Vec<Hva> = suspects
        .iter()
        .map(|&index| results[index].page.hva)
        .collect();
    let nodes = vec![i32::from(target.0); heads.len()];
    let mut status = vec![NOT_WRITTEN; heads.len()];
    // Whatever it answers, where the pages lie afterwards is what counts.
    let _ = kernel.call(pid, &heads, Some(&nodes), &mut status, all);
    let pages: Vec<Page> = suspects.iter().map(|&index| results[index].page).collect();
    let probes = Probes::of(&pages);
    let Ok(placement) = probes.ask(kernel, pid) else {
        return;
    };
    // As above: what stands behind the last written status may not have been tried.
    let last = status.iter().rposition(|&status| status != NOT_WRITTEN);
    for (position, &index) in suspects.iter().enumerate() {
        let nodes = probes.answers(&placement, position);
        let status = Some(status[position]).filter(|&status| status != NOT_WRITTEN);
        let was_tried = last.is_none_or(|last| position <= last);
        let answers = Answers {
            bytes: results[index].page.bytes,
            status,
            no_memory: false,
            is_below_watermark: false,
            before: &[],
            nodes,
        };
        results[index].node = nodes.first().copied().and_then(PageStatus::node);
        results[index].outcome = match answers.outcome(target) {
            Outcome::Busy if status.is_none() && was_tried => Outcome::Pinned,
            outcome => outcome,
        };
    }
}

/// `EFAULT` says "no mapping" as well as "the shared page of zeros": only the first means that the map
/// is out of date.
fn tell_gone_from_zero(kernel: &mut impl PageCalls, pid: u32, results: &mut [PageResult]) {
    let suspects: BTreeMap<Hva, usize> = results
        .iter()
        .enumerate()
        .filter(|(_, result)| result.outcome == Outcome::Gone)
        .map(|(index, result)| (result.page.hva, index))
        .collect();
    if suspects.is_empty() {
        return;
    }
    let addresses: Vec<Hva> = suspects.keys().copied().collect();
    let mapped = kernel.mapped(pid, &addresses);
    for (&index, mapped) in suspects.values().zip(mapped) {
        if mapped {
            results[index].outcome = Outcome::Absent;
        }
    }
}

#[cfg(test)]
mod tests;
