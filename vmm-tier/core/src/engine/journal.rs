//! The journal: what happened that somebody may want to hear of, kept until the agent asks, and the last
//! moves of pages.

pub(crate) mod history;

use std::collections::VecDeque;

use self::history::History;
use super::{DrainProgress, VmState};
use crate::{
    addr::{Gpa, Hva},
    map::GuestMemoryMap,
    moves::{Direction, Outcome, PageResult},
    time::Time,
};

/// Changes of state and drain that wait to be taken at most, and failed moves at most. They are counted
/// apart, so that a host that refuses every move does not crowd out the rest.
const MOST_WAITING: usize = 64;

/// Something worth an event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Notice {
    /// The state changed.
    State {
        /// What it was.
        from: VmState,
        /// What it is.
        to: VmState,
    },
    /// A drain made progress by at least a hundredth, is done, got stuck or goes on.
    Drain(DrainProgress),
    /// A page did not move.
    MoveFailed {
        /// Its guest-physical address, if it is in the map still.
        gpa: Option<Gpa>,
        /// Its address in QEMU.
        hva: Hva,
        /// Its size.
        bytes: u64,
        /// Where it was to go.
        direction: Direction,
        /// Why it did not.
        outcome: Outcome,
    },
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Journal {
    pub(super) history: History,
    changes: VecDeque<Notice>,
    failures: VecDeque<Notice>,
    dropped: u64,
    /// The state that was told last.
    state: VmState,
}

impl Journal {
    pub(super) fn new(state: VmState) -> Self {
        Self {
            history: History::default(),
            changes: VecDeque::new(),
            failures: VecDeque::new(),
            dropped: 0,
            state,
        }
    }

    /// Takes all notices: changes of state and drain in their order, then moves that failed.
    pub(super) fn take(&mut self) -> Vec<Notice> {
        let failures = self.failures.drain(..);
        self.changes.drain(..).chain(failures).collect()
    }

    /// Notices dropped since the start because nobody took them in time.
    pub(super) const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes note of the state, if it changed, and of a drain's news.
    pub(super) fn note(&mut self, state: VmState, drain: Option<DrainProgress>) {
        let from = std::mem::replace(&mut self.state, state);
        if from != state {
            self.add(Notice::State { from, to: state });
        }
        if let Some(progress) = drain {
            self.add(Notice::Drain(progress));
        }
    }

    /// Takes note of a batch that ended; the pages that did not move become notices.
    pub(super) fn note_moves(
        &mut self,
        now: Time,
        direction: Direction,
        results: &[PageResult],
        map: Option<&GuestMemoryMap>,
    ) {
        for result in results {
            self.history.add(now, direction, result);
            if result.outcome.is_success() {
                continue;
            }
            let hva = result.page.hva;
            self.add(Notice::MoveFailed {
                gpa: map.and_then(|map| map.hva_to_gpa(hva)).map(|(gpa, _)| gpa),
                hva,
                bytes: result.page.bytes,
                direction,
                outcome: result.outcome,
            });
        }
    }

    /// Keeps a notice. Where there are too many, the oldest of its kind is dropped and counted.
    fn add(&mut self, notice: Notice) {
        let queue = match notice {
            Notice::MoveFailed { .. } => &mut self.failures,
            Notice::State { .. } | Notice::Drain(_) => &mut self.changes,
        };
        if queue.len() == MOST_WAITING {
            queue.pop_front();
            self.dropped += 1;
        }
        queue.push_back(notice);
    }

    /// Whether its parts are bounded.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub(super) fn check(&self) -> Result<(), String> {
        let waiting = self.changes.len().max(self.failures.len());
        if waiting > MOST_WAITING {
            return Err(format!("{waiting} notices wait"));
        }
        self.history.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{addr::BASE_PAGE, moves::Page};

    #[test]
    fn notices_when_every_move_fails_still_tell_of_states() {
        let mut journal = Journal::new(VmState::Starting);
        journal.note(VmState::Running, None);
        journal.note(VmState::Running, None);
        let results: Vec<PageResult> = (0..1000)
            .map(|n| PageResult {
                page: Page {
                    hva: Hva(n * BASE_PAGE),
                    bytes: BASE_PAGE,
                },
                outcome: Outcome::Busy,
                node: None,
            })
            .collect();
        journal.note_moves(Time(0), Direction::Promote, &results, None);
        assert_eq!(journal.check(), Ok(()));
        assert_eq!(journal.dropped(), 1000 - MOST_WAITING as u64);
        let told = journal.take();
        assert_eq!(told.len(), 1 + MOST_WAITING);
        let (from, to) = (VmState::Starting, VmState::Running);
        assert_eq!(told[0], Notice::State { from, to });
        assert!(journal.take().is_empty(), "each is told once");
        assert!(journal.history.of(Hva(0)).is_some(), "history is apart");
    }
}
