//! The pace of discoveries: when the guest's layout may be looked up again, and how thoroughly.
//!
//! A guest resets itself, and QEMU tells so, as often as the guest likes. So a wish for a discovery is
//! granted at once only if the last one was long enough ago. It bounds what QEMU is asked for, and has
//! no part in placement.
//!
//! A thorough discovery asks QEMU where hundreds of addresses lie. Where nothing has happened for a
//! while, most discoveries only compare QEMU's lists of RAM blocks and memory devices with those of the
//! last thorough discovery.

use std::time::{Duration, Instant};

/// How often the layout is looked up when nobody asks for it: plugging a DIMM emits no event.
pub(in crate::agent) const REGULAR: Duration = Duration::from_secs(10);
/// The least time between the end of a discovery and the next: the firmware of a guest that resets
/// itself takes about as long to lay its memory out.
const APART: Duration = Duration::from_secs(1);
/// Discoveries are thorough for so long after the last wish, and the first after that: firmware, which
/// opens and closes windows over RAM, may run after a reset.
const UNSETTLED: Duration = Duration::from_secs(30);
/// How often a discovery is thorough when nobody asks for it. What may be noticed so much later is an
/// address that lies elsewhere although neither QEMU's lists nor an event say so.
const THOROUGH: Duration = Duration::from_secs(60);
/// For each second that a thorough discovery took, so many pass until the next that nobody asks for, up
/// to [`THOROUGH_AT_LATEST`].
const THOROUGH_REST: u32 = 1024;
const THOROUGH_AT_LATEST: Duration = Duration::from_secs(600);
/// For each second that a discovery took, so many seconds pass until the next: discoveries take 3 % of
/// the time, and so at most 3 % of a CPU here and of QEMU's main loop.
const REST: u32 = 32;

/// See the [module](self).
#[derive(Debug)]
pub(in crate::agent) struct DiscoveryPace {
    /// Something happened that may have changed the layout.
    is_wanted: bool,
    regular_at: Instant,
    not_before: Instant,
    /// Discoveries are thorough until one begins at this time or later; `None` if one has.
    settled_at: Option<Instant>,
    /// When the next is thorough that nobody asks for.
    thorough_at: Instant,
    /// The discovery under way is thorough, and the last that has to be.
    is_thorough: bool,
    settles: bool,
}

impl DiscoveryPace {
    /// The layout was looked up a moment ago, which took `took`.
    pub(in crate::agent) fn new(now: Instant, took: Duration) -> Self {
        let mut pace = Self {
            is_wanted: false,
            regular_at: now,
            not_before: now,
            settled_at: Some(now + UNSETTLED),
            thorough_at: now,
            is_thorough: true,
            settles: false,
        };
        pace.end(now, took, true);
        pace
    }

    /// The layout may have changed.
    pub(in crate::agent) const fn want(&mut self) {
        self.is_wanted = true;
    }

    /// Whether a discovery is due.
    pub(in crate::agent) fn is_due(&self, now: Instant) -> bool {
        now >= self.not_before && (self.is_wanted || now >= self.regular_at)
    }

    /// A discovery begins at `now`: what is wanted from now on is for the next. Returns whether it is to
    /// be thorough.
    pub(in crate::agent) fn begin(&mut self, now: Instant) -> bool {
        if std::mem::take(&mut self.is_wanted) {
            self.settled_at = Some(now + UNSETTLED);
        }
        self.settles = self.settled_at.is_some_and(|at| now >= at);
        self.is_thorough = self.settled_at.is_some() || now >= self.thorough_at;
        self.is_thorough
    }

    /// A discovery has ended after `took`. One that failed may have waited for QEMU most of that time:
    /// it is tried again after the regular time at the latest.
    pub(in crate::agent) fn end(&mut self, now: Instant, took: Duration, succeeded: bool) {
        let rest = (took * REST).max(APART);
        let rest = if succeeded { rest } else { rest.min(REGULAR) };
        self.not_before = now + rest;
        self.regular_at = now + REGULAR;
        if self.settles && succeeded {
            self.settled_at = None;
        }
        if self.is_thorough && succeeded {
            let rest = (took * THOROUGH_REST).clamp(THOROUGH, THOROUGH_AT_LATEST);
            self.thorough_at = now + rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many discoveries of `took` each run in `time` if the guest resets itself every millisecond,
    /// and how long they take together.
    fn storm(time: Duration, took: Duration, succeeds: bool) -> (u32, Duration) {
        let start = Instant::now();
        let mut pace = DiscoveryPace::new(start, Duration::ZERO);
        let (mut now, mut runs) = (start, 0);
        while now < start + time {
            pace.want();
            if pace.is_due(now) {
                assert!(pace.begin(now), "each is wanted");
                now += took;
                pace.end(now, took, succeeds);
                runs += 1;
            }
            now += Duration::from_millis(1);
        }
        (runs, took * runs)
    }

    #[test]
    fn discoveries_when_the_guest_resets_itself_all_the_time_take_a_bounded_share() {
        let minute = Duration::from_secs(60);
        for (took_ms, at_most) in [(1, 60), (5, 60), (30, 59), (200, 10), (2000, 1)] {
            let (runs, time) = storm(minute, Duration::from_millis(took_ms), true);
            assert!(runs <= at_most, "{took_ms} ms: {runs} runs");
            assert!(
                time <= minute / REST + Duration::from_millis(took_ms),
                "{took_ms} ms: {time:?}"
            );
        }
    }

    #[test]
    fn discoveries_when_qemu_does_not_answer_are_tried_again_after_the_regular_time() {
        // The limit of 2 s and the rest of 10 s make 12 s.
        let (runs, _) = storm(Duration::from_secs(120), Duration::from_secs(2), false);
        assert_eq!(runs, 10);
    }

    #[test]
    fn discovery_when_wanted_after_a_rest_is_due_at_once() {
        let start = Instant::now();
        let mut pace = DiscoveryPace::new(start, Duration::from_millis(5));
        assert!(!pace.is_due(start + APART), "nobody wants it");

        pace.want();

        assert!(!pace.is_due(start + APART / 2));
        assert!(pace.is_due(start + APART));
        pace.begin(start + APART);
        pace.want();
        pace.end(start + APART, Duration::from_millis(5), true);
        assert!(
            pace.is_due(start + 2 * APART),
            "what happened during a discovery calls for another"
        );
    }

    #[test]
    fn discovery_when_nobody_wants_it_for_long_is_thorough_once_a_minute() {
        let start = Instant::now();
        let took = Duration::from_millis(5);
        let mut pace = DiscoveryPace::new(start, took);
        let mut now = start;
        let mut look = |pace: &mut DiscoveryPace| {
            now += REGULAR;
            assert!(pace.is_due(now));
            let is_thorough = pace.begin(now);
            pace.end(now, took, true);
            is_thorough
        };
        // Until 30 s after the start it is too early to trust QEMU's lists.
        let regular: Vec<bool> = (0..15).map(|_| look(&mut pace)).collect();
        let thorough: Vec<usize> = (0..15).filter(|&n| regular[n]).map(|n| n + 1).collect();
        assert_eq!(thorough, [1, 2, 3, 9, 15], "of one each {REGULAR:?}");

        pace.want();

        let after: Vec<bool> = (0..5).map(|_| look(&mut pace)).collect();
        assert_eq!(after, [true, true, true, true, false]);
    }

    #[test]
    fn thorough_discovery_when_it_failed_is_tried_again_at_the_regular_time() {
        let start = Instant::now();
        let mut pace = DiscoveryPace::new(start, Duration::ZERO);
        let now = start + THOROUGH;
        assert!(pace.begin(now));
        pace.end(now, Duration::ZERO, false);
        assert!(pace.begin(now + REGULAR));
    }

    #[test]
    fn discovery_when_nobody_wants_it_is_due_at_the_regular_time() {
        let start = Instant::now();
        let pace = DiscoveryPace::new(start, Duration::from_millis(5));
        assert!(!pace.is_due(start + REGULAR / 2));
        assert!(pace.is_due(start + REGULAR));
    }
}
