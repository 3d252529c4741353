//! The turns of a source beside a guest at rest: it watches for a while, then rests.

use std::time::{Duration, Instant};

use tier_core::damon_pace::Turns;

/// Whether the source watches or rests, and since when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    resting: bool,
    since: Instant,
    /// A report came while the source watched.
    reported: bool,
}

impl Turn {
    /// Watches from now on.
    pub(super) fn watch() -> Self {
        Self {
            resting: false,
            since: Instant::now(),
            reported: false,
        }
    }

    /// A report came: it is what the source watches for, in turns.
    pub(super) const fn report(&mut self) {
        self.reported = true;
    }

    pub(super) const fn is_resting(self) -> bool {
        self.resting
    }

    /// Goes on to what is due by `turns`; without any the source watches always. Returns whether it
    /// begins or ends a rest.
    pub(super) fn advance(&mut self, turns: Option<Turns>) -> bool {
        let elapsed = self.since.elapsed();
        let resting = match turns {
            None => false,
            Some(turns) if self.resting => elapsed < turns.rest,
            Some(turns) => self.reported || elapsed >= turns.watch,
        };
        let changed = resting != self.resting;
        if changed || turns.is_none() {
            *self = Self {
                resting,
                ..Self::watch()
            };
        }
        changed
    }

    /// What is left of the rest; `None` while the source watches.
    pub(super) fn rest_left(self, turns: Option<Turns>) -> Option<Duration> {
        let rest = turns.filter(|_| self.resting)?.rest;
        Some(rest.saturating_sub(self.since.elapsed()))
    }
}

#[cfg(test)]
impl Turn {
    /// Makes it one that began at `since`.
    pub(super) fn set_since(&mut self, since: Instant) {
        self.since = since;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turn_when_its_time_is_over_gives_way_to_a_rest_and_back() {
        let (long, none) = (Duration::from_secs(1000), Duration::ZERO);
        let mut turn = Turn::watch();

        let watch = Turns {
            watch: long,
            rest: long,
        };
        assert!(!turn.advance(Some(watch)) && !turn.is_resting());
        assert_eq!(turn.rest_left(Some(watch)), None);

        let over = Turns {
            watch: none,
            rest: long,
        };
        assert!(turn.advance(Some(over)) && turn.is_resting());
        assert!(!turn.advance(Some(over)), "it rests on");
        assert!(
            turn.rest_left(Some(over))
                .is_some_and(|left| left > long / 2)
        );

        let rested = Turns {
            watch: long,
            rest: none,
        };
        assert!(turn.advance(Some(rested)) && !turn.is_resting());
    }

    #[test]
    fn turn_when_a_report_came_gives_way_to_a_rest() {
        let long = Duration::from_secs(1000);
        let turns = Turns {
            watch: long,
            rest: long,
        };
        let mut turn = Turn::watch();
        turn.report();
        assert!(turn.advance(Some(turns)) && turn.is_resting());

        // What was reported before there were turns ends none.
        let mut turn = Turn::watch();
        turn.report();
        assert!(!turn.advance(None));
        assert!(!turn.advance(Some(turns)) && !turn.is_resting());
    }

    #[test]
    fn turn_when_there_are_no_turns_any_more_ends_its_rest() {
        let mut turn = Turn::watch();
        let turns = Turns {
            watch: Duration::ZERO,
            rest: Duration::from_secs(1000),
        };
        assert!(turn.advance(Some(turns)));

        assert!(turn.advance(None) && !turn.is_resting());
        assert!(!turn.advance(None));
    }
}
