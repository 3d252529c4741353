//! Totals of moves since the start: bytes, failures by class, and what a move costs.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    engine::move_costs::MoveCosts,
    moves::{Direction, Outcome, PageResult},
};

crate::report! {
    /// Moves of a dry run.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Planned = "TierPlanned" {
        /// Bytes that would have been promoted.
        #[metric(counter = "dry_run_promoted_bytes", since = "the agent's start")]
        pub promote_bytes: u64,
        /// Bytes that would have been demoted.
        #[metric(counter = "dry_run_demoted_bytes", since = "the agent's start")]
        pub demote_bytes: u64,
    }
}

/// What was moved, what failed, and what a move costs.
#[derive(Debug, Default)]
pub(crate) struct MoveTotals {
    pub(crate) promoted_bytes: u64,
    pub(crate) demoted_bytes: u64,
    /// Pages that were to move: moved, or failed in a class.
    pub(crate) tried_pages: u64,
    pub(crate) moved_pages: u64,
    /// Those that did not move, by class.
    pub(crate) failed: BTreeMap<Outcome, u64>,
    pub(crate) planned: Planned,
    pub(crate) costs: MoveCosts,
}

impl MoveTotals {
    pub(crate) fn add(&mut self, direction: Direction, results: &[PageResult], cpu_time: Duration) {
        let mut moved = 0;
        self.tried_pages += results.len() as u64;
        for result in results {
            match result.outcome {
                Outcome::Moved => {
                    moved += result.page.bytes;
                    self.moved_pages += 1;
                }
                failed => *self.failed.entry(failed).or_default() += 1,
            }
        }
        match direction {
            Direction::Promote => self.promoted_bytes += moved,
            Direction::Demote => self.demoted_bytes += moved,
        }
        let moved_pages = results
            .iter()
            .filter(|result| result.outcome == Outcome::Moved);
        self.costs
            .learn(moved_pages.map(|result| result.page), cpu_time);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        addr::{BASE_PAGE, Hva},
        moves::Page,
    };

    fn result(outcome: Outcome) -> PageResult {
        PageResult {
            page: Page {
                hva: Hva(0),
                bytes: BASE_PAGE,
            },
            outcome,
            node: None,
        }
    }

    #[test]
    fn totals_when_a_batch_ends_count_what_moved_and_what_failed() {
        let mut totals = MoveTotals::default();
        let results = [Outcome::Moved, Outcome::Busy, Outcome::Moved].map(result);
        totals.add(Direction::Demote, &results, Duration::from_micros(6));
        totals.add(Direction::Promote, &results[..1], Duration::from_micros(3));
        assert_eq!(totals.demoted_bytes, 2 * BASE_PAGE);
        assert_eq!(totals.promoted_bytes, BASE_PAGE);
        assert_eq!(totals.failed, BTreeMap::from([(Outcome::Busy, 1)]));
        assert_eq!(totals.costs.measured()[&BASE_PAGE], 3_000);
    }

    proptest! {
        #[test]
        fn classes_when_summed_are_what_was_tried(
            batches in prop::collection::vec(prop::collection::vec(prop::sample::select(&Outcome::ALL[..]), 0..40), 0..20),
        ) {
            let mut totals = MoveTotals::default();
            for (direction, batch) in Direction::ALL.into_iter().cycle().zip(&batches) {
                let results: Vec<PageResult> = batch.iter().copied().map(result).collect();
                totals.add(direction, &results, Duration::ZERO);
            }
            let tried = batches.iter().map(Vec::len).sum::<usize>() as u64;
            prop_assert_eq!(totals.tried_pages, tried);
            prop_assert_eq!(totals.moved_pages + totals.failed.values().sum::<u64>(), tried);
            prop_assert!(!totals.failed.contains_key(&Outcome::Moved));
        }
    }
}
