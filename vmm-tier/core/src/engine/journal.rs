//! What happened that somebody may want to hear of: kept until the agent asks.

pub(super) mod history;

use std::collections::VecDeque;

use super::{DrainProgress, VmEngine, VmState};
use crate::{
    addr::{Gpa, Hva},
    moves::{Direction, Outcome, PageResult},
};

/// Changes of state and drain that wait to be taken at most, and as many failed moves beside them: a
/// host that refuses every move does not crowd out the rest.
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
    /// A drain came on by at least a hundredth, is done, got stuck or goes on.
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

/// Notices that wait to be taken, and what was told last.
#[derive(Debug)]
pub(super) struct Notices {
    changes: VecDeque<Notice>,
    failures: VecDeque<Notice>,
    dropped: u64,
    state: VmState,
}

impl Notices {
    pub(super) const fn new(state: VmState) -> Self {
        Self {
            changes: VecDeque::new(),
            failures: VecDeque::new(),
            dropped: 0,
            state,
        }
    }

    /// Keeps a notice; where there are too many, the oldest of its kind is dropped and counted.
    pub(super) fn add(&mut self, notice: Notice) {
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
}

impl VmEngine {
    /// Takes what happened since the last call: changes of state and drain in their order, then moves
    /// that failed. Bounded; see [`Self::notices_dropped`].
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.look_for_changes();
        let notices = &mut self.notices;
        notices
            .changes
            .drain(..)
            .chain(notices.failures.drain(..))
            .collect()
    }

    /// Notices dropped since the start because nobody took them in time.
    #[must_use]
    pub const fn notices_dropped(&self) -> u64 {
        self.notices.dropped
    }

    /// Takes note of what changed since it was looked at last.
    pub(super) fn look_for_changes(&mut self) {
        let to = self.state();
        let from = std::mem::replace(&mut self.notices.state, to);
        if from != to {
            self.notices.add(Notice::State { from, to });
        }
        if let Some(progress) = self.drain_news() {
            self.notices.add(Notice::Drain(progress));
        }
    }

    /// Takes note of the pages of a batch that did not move.
    pub(super) fn notice_failures(&mut self, direction: Direction, results: &[PageResult]) {
        let failed = results
            .iter()
            .filter(|result| result.outcome != Outcome::Moved);
        for result in failed {
            let hva = result.page.hva;
            let gpa = self.map.as_ref().and_then(|map| map.hva_to_gpa(hva));
            self.notices.add(Notice::MoveFailed {
                gpa: gpa.map(|(gpa, _)| gpa),
                hva,
                bytes: result.page.bytes,
                direction,
                outcome: result.outcome,
            });
        }
    }
}
