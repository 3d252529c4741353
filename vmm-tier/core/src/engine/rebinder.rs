//! When pieces of memory are bound to the tier on which their pages lie.

use std::time::Duration;

use super::{Action, guest_pages::pieces::Pieces};
use crate::{rebind::RebindReport, time::Time};

/// How often is looked what is due.
const PERIOD: Duration = Duration::from_secs(1);
/// The most bindings of a period.
const MOST_BINDINGS: usize = 64;
/// How long a piece rests that could not be bound.
const REST: Duration = Duration::from_secs(60);

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Rebinder {
    next: Time,
    is_under_way: bool,
}

impl Rebinder {
    /// What is due now, if anything is.
    pub(super) fn due(&mut self, now: Time, pieces: &Pieces) -> Option<Action> {
        if self.is_under_way || now < self.next {
            return None;
        }
        self.next = now + PERIOD;
        let due = pieces.due(now, MOST_BINDINGS);
        self.is_under_way = !due.is_empty();
        self.is_under_way.then_some(Action::Rebind(due))
    }

    /// Takes what became of it.
    pub(super) fn take(&mut self, now: Time, report: &RebindReport, pieces: &mut Pieces) {
        self.is_under_way = false;
        pieces.take(report, now + REST);
    }
}
