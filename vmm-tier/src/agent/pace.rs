//! The agent's pace: when it looks around, and when it watches the guest less closely.

use std::time::{Duration, Instant};

/// How often the agent looks around when nothing happens.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// The same while the guest is at rest: samples are messages, and what they set off needs no tick.
const REST_TICK: Duration = Duration::from_millis(500);
/// The same while nothing can be moved: what ends that (a command, an event of QEMU, a sample) is a
/// message.
const STOPPED_TICK: Duration = Duration::from_secs(1);
/// How often the nodes' free memory is read while nothing moves.
const NODES_CHECK: Duration = Duration::from_millis(500);
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

    /// How long it is until the agent looks around: less often while the guest is at rest or nothing can
    /// be moved, and at `asks_at` for a question that is due then.
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
            (false, true) => REST_TICK,
            (false, false) => TICK,
        };
        let regular = ticked + every;
        let at = asks_at.map_or(regular, |asks_at| regular.min(asks_at));
        at.saturating_duration_since(now)
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
        self.next_nodes_read = now + NODES_CHECK;
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

    /// Takes note of what stirred so far, and of whether there is work even so (the source still
    /// learns about the guest). Returns the new answer when it changes.
    pub(super) fn look(&mut self, at_work: bool, stir: Stir, now: Instant) -> Option<bool> {
        let moved_bytes = stir.moved_bytes.saturating_sub(self.last.moved_bytes);
        if at_work || moved_bytes >= STIRRING_BYTES || stir.changes != self.last.changes {
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
        assert_eq!(quiet.look(false, changed, start + 5 * REST), Some(false));
    }
}
