//! The agent's pace: when it looks around, and when it watches the guest less closely.

use std::time::{Duration, Instant};

/// How often the agent looks around when nothing happens.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// The same while the guest is at rest, if a message wakes the agent in any case: samples come every
/// 500 ms then, and a tick of its own would wake the agent as often again.
const REST_TICK: Duration = Duration::from_millis(450);
/// The same if no message comes.
const LONE_TICK: Duration = Duration::from_secs(1);
/// The same while nothing can be moved: what ends that (a command, an event of QEMU, a sample) is a
/// message.
const STOPPED_TICK: Duration = Duration::from_secs(1);
/// How often the nodes' free memory is read while nothing moves.
const NODES_CHECK: Duration = Duration::from_millis(500);
/// The same while the guest is at rest: the kernel adds up each CPU's pages for it. When other programs
/// take DRAM, cold pages make room for them that much later.
const REST_NODES_CHECK: Duration = Duration::from_secs(2);
/// After this time without a move or a change the guest is watched less closely.
const REST: Duration = Duration::from_secs(5);
/// Fewer bytes than these do not keep the guest from rest: single pages near the border between hot and
/// cold change places now and then for as long as the guest runs.
const STIRRING_BYTES: u64 = 1 << 20;

/// See the [module](self).
pub(super) struct Pace {
    /// When the agent was started.
    started: Instant,
    /// When it last looked around.
    ticked: Option<Instant>,
    next_nodes_read: Instant,
    pub(super) idle: Idle,
}

impl Pace {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            started: now,
            ticked: None,
            next_nodes_read: now,
            idle: Idle::new(now),
        }
    }

    /// How long the agent has run.
    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// How long the agent may wait before it looks around: longer while the guest is at rest or nothing
    /// can be moved, and until `asks_at` for a question that is due then.
    pub(super) fn tick_is_due_in(
        &self,
        now: Instant,
        is_stopped: bool,
        asks_at: Option<Instant>,
    ) -> Duration {
        let Some(ticked) = self.ticked else {
            return Duration::ZERO;
        };
        let every = match (is_stopped, self.idle.now) {
            (true, _) => STOPPED_TICK,
            (false, true) => LONE_TICK,
            (false, false) => TICK,
        };
        let regular = ticked + every;
        // At rest questions wait for the tick.
        let asks_at = asks_at.filter(|_| is_stopped || !self.idle.now);
        let at = asks_at.map_or(regular, |asks_at| regular.min(asks_at));
        at.saturating_duration_since(now)
    }

    /// Whether the agent, which is awake, looks around at rest: it did not for a while, or `stir` ends
    /// the rest.
    pub(super) fn looks_at_rest(&self, now: Instant, stir: Stir) -> bool {
        let is_due = |ticked| now.saturating_duration_since(ticked) >= REST_TICK;
        self.idle.now && (self.idle.ends_by(stir) || self.ticked.is_none_or(is_due))
    }

    /// The agent looks around.
    pub(super) const fn ticked(&mut self, now: Instant) {
        self.ticked = Some(now);
    }

    /// Whether the nodes' free memory is to be read.
    pub(super) fn nodes_are_due(&self, now: Instant) -> bool {
        now >= self.next_nodes_read
    }

    /// The nodes' free memory is read.
    pub(super) fn nodes_read(&mut self, now: Instant) {
        self.next_nodes_read = now
            + if self.idle.now {
                REST_NODES_CHECK
            } else {
                NODES_CHECK
            };
    }
}

/// What keeps a guest from rest, or ends its rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stir {
    /// Bytes moved so far.
    pub(super) moved_bytes: u64,
    /// Changes of what the guest accesses, noticed so far.
    pub(super) changes: u64,
}

/// Whether the guest is at rest: nothing stirred for a while, so it is watched less closely.
pub(super) struct Idle {
    last: Stir,
    since: Instant,
    now: bool,
}

impl Idle {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            last: Stir {
                moved_bytes: 0,
                changes: 0,
            },
            since: now,
            now: false,
        }
    }

    /// Whether what stirred so far keeps the guest from rest.
    fn ends_by(&self, stir: Stir) -> bool {
        let moved_bytes = stir.moved_bytes.saturating_sub(self.last.moved_bytes);
        moved_bytes >= STIRRING_BYTES || stir.changes != self.last.changes
    }

    /// Whether the guest is at rest.
    pub(super) const fn is_now(&self) -> bool {
        self.now
    }

    /// Takes note of what stirred so far, and of whether there is work even so (the source still
    /// learns about the guest). Returns the new answer when it changes.
    pub(super) fn look(&mut self, at_work: bool, stir: Stir, now: Instant) -> Option<bool> {
        if at_work || self.ends_by(stir) {
            self.last = stir;
            self.since = now;
        }
        let quiet = now.duration_since(self.since) >= REST;
        (quiet != self.now).then(|| {
            self.now = quiet;
            quiet
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_when_nothing_stirs_for_a_while_begins_and_ends_with_moves_or_a_change() {
        let start = Instant::now();
        let mut quiet = Idle::new(start);
        let still = Stir::default();
        assert_eq!(
            quiet.look(true, still, start + REST),
            None,
            "still learning"
        );
        assert_eq!(quiet.look(false, still, start + REST), None);
        assert_eq!(quiet.look(false, still, start + 2 * REST), Some(true));
        assert_eq!(
            quiet.look(false, still, start + 3 * REST),
            None,
            "said before"
        );
        let page = Stir {
            moved_bytes: 4096,
            ..still
        };
        assert_eq!(quiet.look(false, page, start + 3 * REST), None, "one page");
        let moved = Stir {
            moved_bytes: STIRRING_BYTES,
            ..still
        };
        assert_eq!(quiet.look(false, moved, start + 3 * REST), Some(false));
        assert_eq!(quiet.look(false, moved, start + 4 * REST), Some(true));
        let changed = Stir {
            changes: 1,
            ..moved
        };
        assert!(quiet.ends_by(changed) && !quiet.ends_by(moved));
        assert_eq!(quiet.look(false, changed, start + 5 * REST), Some(false));
    }

    #[test]
    fn tick_when_the_guest_is_at_rest_comes_with_messages_or_once_a_second() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let still = Stir::default();
        assert!(pace.tick_is_due_in(start, false, None).is_zero());
        pace.ticked(start);
        let soon = start + TICK / 2;
        assert_eq!(pace.tick_is_due_in(start, false, None), TICK);
        assert_eq!(pace.tick_is_due_in(start, false, Some(soon)), TICK / 2);
        assert_eq!(pace.idle.look(false, still, start + REST), Some(true));

        assert_eq!(pace.tick_is_due_in(start, false, Some(soon)), LONE_TICK);
        assert!(!pace.looks_at_rest(start, still));
        assert!(pace.looks_at_rest(start + REST_TICK, still));
        let changed = Stir {
            changes: 1,
            ..still
        };
        assert!(pace.looks_at_rest(start, changed), "at once");
        // A question is asked in time where nothing else wakes the agent.
        assert_eq!(pace.tick_is_due_in(start, true, Some(soon)), TICK / 2);
    }
}
