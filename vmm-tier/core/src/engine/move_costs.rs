//! What moving a page costs on this host: measured, for each page size.
//!
//! A replay can't tell what this is worth: there a move costs what is assumed before the first move.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    addr::frames,
    moves::{self, Page},
};

/// The most that a page's own work and the copy of 4 KiB (2 GB/s) are believed to cost. Where more is
/// measured the CPU was taken away meanwhile, or is an emulated one: latencies are not stretched with
/// it.
const MOST_PAGE_NS: f64 = 15_000.0;
const MOST_FRAME_NS: f64 = 2_000.0;
/// Frames over which a cost is averaged: a few batches. A call has a price of its own, so a batch of
/// few pages says little of what a page costs.
const AVERAGED_FRAMES: f64 = 4096.0;

/// Costs by page size, in nanoseconds a page.
#[derive(Debug, Default)]
pub(crate) struct MoveCosts {
    by_page_size: BTreeMap<u64, f64>,
}

impl MoveCosts {
    /// Learns from pages that were moved together; the time is shared out by bytes.
    pub(crate) fn learn(&mut self, moved: impl Iterator<Item = Page>, cpu_time: Duration) {
        let mut frames_by_size: BTreeMap<u64, f64> = BTreeMap::new();
        for page in moved {
            *frames_by_size.entry(page.bytes).or_default() += frames(page.bytes);
        }
        let all: f64 = frames_by_size.values().sum();
        for (size, moved) in frames_by_size {
            let measured = cpu_time.as_nanos() as f64 * frames(size) / all;
            let cost = measured.min(MOST_PAGE_NS + MOST_FRAME_NS * frames(size));
            let old = self.by_page_size.entry(size).or_insert(cost);
            *old += (cost - *old) * (moved / AVERAGED_FRAMES).min(1.0);
        }
    }

    /// What moving a page of this size costs, in nanoseconds.
    pub(crate) fn of(&self, page_bytes: u64) -> f64 {
        let assumed = || moves::assumed_cost_ns(page_bytes);
        self.by_page_size
            .get(&page_bytes)
            .copied()
            .unwrap_or_else(assumed)
    }

    /// What was measured, in whole nanoseconds a page, by page size.
    pub(crate) fn measured(&self) -> BTreeMap<u64, u64> {
        self.by_page_size
            .iter()
            .map(|(&size, &ns)| (size, ns as u64))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{BASE_PAGE, HUGE_PAGE, Hva};

    fn pages(bytes: u64, count: usize) -> impl Iterator<Item = Page> {
        std::iter::repeat_n(Page { hva: Hva(0), bytes }, count)
    }

    #[test]
    fn cost_when_measured_is_kept_by_page_size() {
        let mut costs = MoveCosts::default();
        costs.learn(pages(BASE_PAGE, 100), Duration::from_micros(300));
        costs.learn(pages(HUGE_PAGE, 2), Duration::from_micros(400));
        assert_eq!(costs.of(BASE_PAGE), 3_000.0);
        assert_eq!(costs.of(HUGE_PAGE), 200_000.0);
        assert_eq!(costs.measured().len(), 2);
    }

    #[test]
    fn cost_when_the_cpu_was_stolen_is_bounded() {
        let mut costs = MoveCosts::default();
        costs.learn(pages(BASE_PAGE, 1), Duration::from_secs(1));
        assert_eq!(costs.of(BASE_PAGE), MOST_PAGE_NS + MOST_FRAME_NS);
        costs.learn(std::iter::empty(), Duration::from_secs(1));
        assert_eq!(
            costs.of(HUGE_PAGE),
            5_000.0 + 500.0 * 512.0,
            "nothing moved, nothing learned"
        );
    }

    #[test]
    fn cost_when_a_small_batch_is_dear_hardly_changes() {
        let mut costs = MoveCosts::default();
        costs.learn(pages(BASE_PAGE, 4096), Duration::from_micros(2 * 4096));
        costs.learn(pages(BASE_PAGE, 1), Duration::from_micros(20));
        assert!(costs.of(BASE_PAGE) < 2_010.0);
    }
}
