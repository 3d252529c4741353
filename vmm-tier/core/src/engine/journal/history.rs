//! The history: the last moves of pages, for explanations.

use std::collections::{BTreeMap, HashMap};

use crate::{
    addr::{Hva, NodeId},
    moves::{Direction, Outcome, PageResult},
    time::Time,
};

/// Pages of which the last move is remembered at most.
const REMEMBERED: usize = 4096;

/// A move of a page that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PastMove {
    pub(crate) direction: Direction,
    pub(crate) outcome: Outcome,
    /// Where the page was found after it.
    pub(crate) node: Option<NodeId>,
    pub(crate) at: Time,
}

/// The last moves of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PastMoves {
    pub(crate) last: PastMove,
    pub(crate) last_failure: Option<PastMove>,
    number: u64,
}

/// The last moves of the pages that were moved last.
#[derive(Debug, Default)]
pub(crate) struct History {
    pages: HashMap<Hva, PastMoves>,
    by_age: BTreeMap<u64, Hva>,
    last_number: u64,
}

impl History {
    pub(crate) fn add(&mut self, at: Time, direction: Direction, result: &PageResult) {
        let last = PastMove {
            direction,
            outcome: result.outcome,
            node: result.node,
            at,
        };
        let hva = result.page.hva;
        let before = self.pages.remove(&hva);
        if let Some(before) = &before {
            self.by_age.remove(&before.number);
        }
        if self.pages.len() == REMEMBERED
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.pages.remove(&oldest);
        }
        self.last_number += 1;
        let failure = (!last.outcome.is_success()).then_some(last);
        let moves = PastMoves {
            last,
            last_failure: failure.or(before.and_then(|before| before.last_failure)),
            number: self.last_number,
        };
        self.by_age.insert(moves.number, hva);
        self.pages.insert(hva, moves);
    }

    /// What is remembered of the page that begins at `hva`.
    pub(crate) fn of(&self, hva: Hva) -> Option<&PastMoves> {
        self.pages.get(&hva)
    }

    /// The last move of each page that is remembered, the newest first.
    pub(crate) fn newest(&self) -> impl Iterator<Item = (Hva, &PastMove)> {
        let hvas = self.by_age.values().rev();
        hvas.filter_map(|hva| Some((*hva, &self.pages.get(hva)?.last)))
    }

    /// Whether pages and their ages agree, and are bounded.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub(crate) fn check(&self) -> Result<(), String> {
        let (pages, ages) = (self.pages.len(), self.by_age.len());
        match pages == ages && pages <= REMEMBERED {
            true => Ok(()),
            false => Err(format!("{pages} pages of {ages} ages are remembered")),
        }
    }

    /// Forgets everything: addresses may mean other memory now.
    pub(crate) fn clear(&mut self) {
        self.pages.clear();
        self.by_age.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{addr::BASE_PAGE, moves::Page};

    fn result(page: u64, outcome: Outcome) -> PageResult {
        let page = Page {
            hva: Hva(page * BASE_PAGE),
            bytes: BASE_PAGE,
        };
        PageResult {
            page,
            outcome,
            node: None,
        }
    }

    #[test]
    fn history_when_full_forgets_the_page_that_was_moved_longest_ago() {
        let mut history = History::default();
        history.add(Time(0), Direction::Promote, &result(0, Outcome::Busy));
        for page in 1..REMEMBERED as u64 {
            history.add(Time(page), Direction::Demote, &result(page, Outcome::Moved));
        }
        let again = Time(9_000_000);
        history.add(again, Direction::Demote, &result(0, Outcome::Moved));
        history.add(again, Direction::Demote, &result(9999, Outcome::Moved));
        let newest: Vec<u64> = history
            .newest()
            .take(3)
            .map(|(hva, _)| hva.0 / BASE_PAGE)
            .collect();
        assert_eq!(newest, [9999, 0, REMEMBERED as u64 - 1]);
        assert_eq!(history.of(Hva(BASE_PAGE)), None);
        assert_eq!(history.pages.len(), REMEMBERED);
        assert_eq!(history.by_age.len(), REMEMBERED);
        let first = history.of(Hva(0)).unwrap();
        assert_eq!((first.last.at, first.last.outcome), (again, Outcome::Moved));
        let failure = first.last_failure.unwrap();
        assert_eq!((failure.at, failure.outcome), (Time(0), Outcome::Busy));
    }
}
