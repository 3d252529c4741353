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
    pub(crate) failed: BTreeMap<Outcome, u64>,
    pub(crate) planned: Planned,
    pub(crate) costs: MoveCosts,
}

impl MoveTotals {
    pub(crate) fn add(&mut self, direction: Direction, results: &[PageResult], cpu_time: Duration) {
        let mut moved = 0;
        for result in results {
            match result.outcome {
                Outcome::Moved => moved += result.page.bytes,
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
    use super::*;
    use crate::{
        addr::{BASE_PAGE, Hva},
        moves::Page,
    };

    #[test]
    fn totals_when_a_batch_ends_count_what_moved_and_what_failed() {
        let result = |outcome| PageResult {
            page: Page {
                hva: Hva(0),
                bytes: BASE_PAGE,
            },
            outcome,
            node: None,
        };
        let mut totals = MoveTotals::default();
        let results = [Outcome::Moved, Outcome::Busy, Outcome::Moved].map(result);
        totals.add(Direction::Demote, &results, Duration::from_micros(6));
        totals.add(Direction::Promote, &results[..1], Duration::from_micros(3));
        assert_eq!(totals.demoted_bytes, 2 * BASE_PAGE);
        assert_eq!(totals.promoted_bytes, BASE_PAGE);
        assert_eq!(totals.failed, BTreeMap::from([(Outcome::Busy, 1)]));
        assert_eq!(totals.costs.measured()[&BASE_PAGE], 3_000);
    }
}
