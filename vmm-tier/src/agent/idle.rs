//! When a guest may be watched less closely. A replay can't tell what this is worth: it saves the
//! source's CPU time.

use std::time::{Duration, Instant};

/// After this time without a move the guest is watched less closely.
const REST: Duration = Duration::from_secs(5);

/// Whether the guest is at rest: nothing was moved for a while, so it is watched less closely.
pub(super) struct Idle {
    moved_bytes: u64,
    since: Instant,
    now: bool,
}

impl Idle {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            moved_bytes: 0,
            since: now,
            now: false,
        }
    }

    /// Takes note of the bytes moved so far, and of whether there is work even so (the source still
    /// learns about the guest). Returns the new answer when it changes.
    pub(super) fn look(&mut self, at_work: bool, moved_bytes: u64, now: Instant) -> Option<bool> {
        if at_work || moved_bytes != self.moved_bytes {
            self.moved_bytes = moved_bytes;
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
    fn quiet_when_nothing_moved_for_a_while_begins_and_ends_with_a_move() {
        let start = Instant::now();
        let mut quiet = Idle::new(start);
        assert_eq!(quiet.look(true, 0, start + REST), None, "still learning");
        assert_eq!(quiet.look(false, 0, start + REST), None);
        assert_eq!(quiet.look(false, 0, start + 2 * REST), Some(true));
        assert_eq!(quiet.look(false, 0, start + 3 * REST), None, "said before");
        assert_eq!(quiet.look(false, 4096, start + 3 * REST), Some(false));
    }
}
