//! The agent's way of moving a batch beside a bare `move_pages(2)` of the same pages, in one run.
//!
//! The agent asks where each page lies before and after, and gives each page a class. The bare call only
//! moves. Both move the same pages of this process there and back, in turns, so that caches, free memory
//! and the load of the host are the same for both.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use tier_core::addr::{BASE_PAGE, Hva, NodeId};
use tier_core::moves::{Outcome, Page};
use tier_sys::pages;

use crate::sys::{pages_on_nodes, pages_to_node};

/// Pages of 4 KiB in a batch: 4 MiB, what the agent moves at once if it is not told otherwise.
pub const BATCH_PAGES: usize = 1024;

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BareMoves {
    /// Pages of a batch.
    pub pages: usize,
    /// Batches that each moved.
    pub batches: usize,
    /// The agent's way: pages a second, median of all rounds.
    pub agent_pages_per_s: f64,
    /// The bare call.
    pub bare_pages_per_s: f64,
    /// The agent's over the bare call's.
    pub ratio: f64,
}

/// Memory of this process in pages of 4 KiB, which were written to.
struct Memory {
    _bytes: Vec<u8>,
    addresses: Vec<usize>,
}

impl Memory {
    fn new(pages: usize) -> Self {
        let page = BASE_PAGE as usize;
        let bytes = vec![1_u8; (pages + 1) * page];
        let first = (std::hint::black_box(bytes.as_ptr()) as usize).next_multiple_of(page);
        Self {
            addresses: (0..pages).map(|n| first + n * page).collect(),
            _bytes: bytes,
        }
    }

    fn pages(&self) -> Vec<Page> {
        let page = |&address: &usize| Page {
            hva: Hva(address as u64),
            bytes: BASE_PAGE,
        };
        self.addresses.iter().map(page).collect()
    }

    fn on(&self, node: u32) -> anyhow::Result<usize> {
        let nodes = pages_on_nodes(std::process::id(), &self.addresses)?;
        Ok(nodes
            .iter()
            .filter(|&&on| u32::try_from(on) == Ok(node))
            .count())
    }
}

/// Moves a batch of `pages` pages from node `near` to node `far` and back, `rounds` times each way of
/// moving.
///
/// # Errors
/// If the kernel refuses, or a page did not move: transparent huge pages must be off, and both nodes
/// must have room.
pub fn measure(near: u32, far: u32, pages: usize, rounds: usize) -> anyhow::Result<BareMoves> {
    ensure!(rounds > 0 && pages > 0, "nothing to measure");
    let memory = Memory::new(pages);
    let pid = std::process::id();
    pages_to_node(pid, &memory.addresses, near).context("pages can't be moved")?;
    let list = memory.pages();
    let by_agent = |node: u32| -> anyhow::Result<Duration> {
        let target = NodeId(u16::try_from(node)?);
        let begin = Instant::now();
        let results = pages::move_pages(pid, target, &list, true)?;
        let took = begin.elapsed();
        let moved = results
            .iter()
            .filter(|r| r.outcome == Outcome::Moved)
            .count();
        ensure!(
            moved == pages,
            "of {pages} pages {moved} moved to node {node}"
        );
        Ok(took)
    };
    let bare = |node: u32| -> anyhow::Result<Duration> {
        let begin = Instant::now();
        pages_to_node(pid, &memory.addresses, node)?;
        let took = begin.elapsed();
        let moved = memory.on(node)?;
        ensure!(
            moved == pages,
            "of {pages} pages {moved} moved to node {node}"
        );
        Ok(took)
    };
    let (mut agents, mut bares) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Whoever is second in a round is first in the next.
        for turn in 0..2 {
            match (round + turn) % 2 {
                0 => agents.push(by_agent(far)? + by_agent(near)?),
                _ => bares.push(bare(far)? + bare(near)?),
            }
        }
    }
    let moved = 2.0 * pages as f64;
    let agent_pages_per_s = moved / median(agents).as_secs_f64();
    let bare_pages_per_s = moved / median(bares).as_secs_f64();
    Ok(BareMoves {
        pages,
        batches: 2 * rounds,
        agent_pages_per_s,
        bare_pages_per_s,
        ratio: agent_pages_per_s / bare_pages_per_s,
    })
}

/// What the agent's way takes for each page beyond the bare call where no page has to move, since all
/// lie on `node`: the questions and the classes. Nanoseconds, the median of so many rounds.
///
/// # Errors
/// If the kernel refuses.
pub fn overhead_ns(node: u32, pages: usize, rounds: usize) -> anyhow::Result<f64> {
    let memory = Memory::new(pages);
    let (pid, list) = (std::process::id(), memory.pages());
    if memory.on(node)? != pages {
        bail!("not all pages lie on node {node}");
    }
    let target = NodeId(u16::try_from(node)?);
    let (mut agents, mut bares) = (Vec::new(), Vec::new());
    for _ in 0..rounds.max(1) {
        let begin = Instant::now();
        let results = pages::move_pages(pid, target, &list, true)?;
        agents.push(begin.elapsed());
        ensure!(
            results.iter().all(|r| r.outcome == Outcome::AlreadyThere),
            "a page moved"
        );
        let begin = Instant::now();
        pages_to_node(pid, &memory.addresses, node)?;
        bares.push(begin.elapsed());
    }
    let more = median(agents).saturating_sub(median(bares));
    Ok(more.as_nanos() as f64 / pages as f64)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_when_all_pages_lie_there_is_a_time() {
        // A container may forbid move_pages altogether; then there is nothing to test here.
        match overhead_ns(0, 64, 3) {
            Ok(ns) => assert!(ns.is_finite() && ns < 1e7, "{ns}"),
            Err(error) => eprintln!("SKIPPED: {error:#}"),
        }
    }

    #[test]
    fn measure_when_a_node_is_not_there_is_an_error() {
        assert!(measure(0, 1000, 16, 1).is_err());
        assert!(measure(0, 0, 16, 0).is_err());
    }

    #[test]
    fn median_when_times_are_in_any_order_is_the_middle() {
        let times = [9, 1, 5].map(Duration::from_millis);
        assert_eq!(median(times.to_vec()), Duration::from_millis(5));
        assert_eq!(median(Vec::new()), Duration::ZERO);
    }
}
