//! Notices that the guest's accesses turned to slow pages.
//!
//! ```text
//! problem   a guest at rest is watched little, and what was counted for long outweighs what is new
//! measure   x, the share of the use seen in a batch that fell on the slow tier
//! normal    the level of x, and how far x rises from one batch to the next on average; at each pace its
//!           own, as slow looks find cold pages used that quick looks find idle. The level follows a
//!           fall at once where moves may be the cause, or when the fall lasts; else x swings by itself
//! test      one-sided CUSUM (Page, "Continuous inspection schemes", Biometrika 41, 1954) of
//!           (x − level) / deviation: a sudden change is noticed at once, a small one when it lasts
//! meaning   the guest is worth a closer look; it is no ground to move a page
//! quicker   when much quicker looks begin that no change brought about, regions are still those of slow
//!           looks: the level rises to x, and counts of slow looks are outdated
//! ```
//!
//! For a source that tests pages. A source that counts accesses sees a change from rest as soon as at work:
//! in the lab, a scattered hot set is in DRAM 0.5 to 1.6 s after it moved.
//!
//! Worth in the lab: a hot set that moved is in DRAM after 2 to 10 s instead of 17 s and more
//! (docs/results/lab.md). A replay can't tell: its source counts accesses and never rests.

use std::{collections::BTreeMap, time::Duration};

/// A batch with fewer accesses a look for each page of the guest says nothing: the guest sleeps.
const LEAST_USED: f64 = 0.002;
/// Share of a difference by which the level follows x.
const FOLLOW: f64 = 1.0 / 64.0;
/// The same downwards in a batch of a fall that is the new normal, as [`Normal::falls`] says.
const FOLLOW_FALL: f64 = 1.0 / 4.0;
/// Batches after another pace, a change or a move in which moves may make x fall; and batches below the
/// level after which a fall is no swing. With `pagerank`, a scan lies in DRAM for 10 s of 37, and 18
/// false alarms in ten minutes become none.
const SWING: u32 = 12;
/// Share of a difference by which the deviation is learned.
const LEARN_DEVIATION: f64 = 1.0 / 32.0;
/// Differences up to this are noise whatever the past says: a point of hits.
const LEAST_DEVIATION: f64 = 0.01;
/// Largest difference in deviations by which the deviation is learned: a change is no noise.
const MOST_LEARNED: f64 = 3.0;
/// CUSUM's allowance and threshold in deviations. From one batch to the next x goes 1.13 standard
/// deviations of its noise on average, so these are 2.0 and 7.9: under normal noise a false alarm comes
/// once in e^(2 · 2.0 · 7.9) reports or so (Siegmund, "Sequential Analysis", 1985). A rise of 9
/// deviations, 9 points at the least deviation, is noticed at the first report.
const ALLOWANCE: f64 = 1.75;
const THRESHOLD: f64 = 7.0;
/// Octaves by which looks come more often at the end of a rest, at least.
const MUCH_QUICKER: u32 = 2;
/// Batches from a change to the first of the quicker looks that it brings, at most.
const QUICKENS: u32 = 3;
/// Batches that the level is the mean of at first; a change can be noticed after them.
const LEARN: u32 = 5;

/// What a source that tests pages did for a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Looks {
    /// Pages of the guest, of whatever size.
    pub(crate) pages: u32,
    /// Time between two looks.
    pub(crate) every: Duration,
}

impl Looks {
    /// The pace in octaves of the time between two looks.
    fn pace(self) -> u32 {
        u128::BITS - self.every.as_nanos().leading_zeros()
    }
}

/// What is normal at a pace.
#[derive(Clone, Copy, Debug)]
struct Normal {
    level: f64,
    deviation: f64,
    last: f64,
    learned: u32,
    /// Batches below the level since the last at or above it.
    below: u32,
}

impl Normal {
    const fn new(x: f64) -> Self {
        Self {
            level: x,
            deviation: LEAST_DEVIATION,
            last: x,
            learned: 0,
            below: 0,
        }
    }

    /// Deviations by which `x` lies above the level.
    fn above(&self, x: f64) -> f64 {
        (x - self.level) / self.deviation
    }

    /// Whether `x` lies below the level, and will go on to. After `batches` at the pace since another, a
    /// change or a move.
    fn falls(&mut self, x: f64, batches: u32) -> bool {
        self.below = match x < self.level {
            true => self.below.saturating_add(1),
            false => 0,
        };
        self.below > SWING || (self.below > 0 && batches <= SWING)
    }

    /// Takes an x that is no change.
    fn learn(&mut self, x: f64, batches: u32) {
        self.learned = self.learned.saturating_add(1);
        let first = (self.learned <= LEARN).then(|| 1.0 / f64::from(self.learned));
        let follow = match self.falls(x, batches) {
            true => FOLLOW_FALL,
            false => FOLLOW,
        };
        let follow = first.unwrap_or(follow);
        self.level += (x - self.level) * follow;
        if x > self.last {
            let most = first.map_or(MOST_LEARNED * self.deviation, |_| 1.0);
            let rise = (x - self.last).min(most);
            let learn = first.unwrap_or(LEARN_DEVIATION);
            self.deviation += (rise - self.deviation) * learn;
            self.deviation = self.deviation.max(LEAST_DEVIATION);
        }
        self.last = x;
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct ChangeDetector {
    /// By pace.
    normals: BTreeMap<u32, Normal>,
    /// The pace of the last batch.
    pace: Option<u32>,
    /// Batches at this pace since another, a change or a move.
    batches: u32,
    /// Batches since the last change.
    since_change: u32,
    /// The last batch is the first of much quicker looks.
    quickened: bool,
    sum: f64,
    /// Changes noticed.
    noticed: u64,
}

impl ChangeDetector {
    /// Changes noticed so far.
    pub(crate) const fn noticed(&self) -> u64 {
        self.noticed
    }

    /// A change was noticed by other means.
    pub(crate) const fn notice(&mut self) {
        self.noticed += 1;
    }

    /// Learns what is normal from the beginning: the counts come from another source, or the pages have
    /// other numbers.
    pub(crate) fn forget(&mut self) {
        *self = Self {
            noticed: self.noticed,
            ..Self::default()
        };
    }

    /// Pages were moved.
    pub(crate) const fn moved(&mut self) {
        self.batches = 0;
    }

    /// Whether the last batch is the first of much quicker looks, and no change has just made them so.
    /// What slow looks counted says little then: they find used what quick looks find idle. Worth 1 to 6
    /// points of hits on guests of scattered popularity that change (docs/results/changes.md).
    pub(crate) const fn outdates_counts(&self) -> bool {
        self.quickened && self.since_change > QUICKENS
    }

    /// Takes the use of either tier seen in a batch: accesses a look, summed over pages. Returns whether
    /// the accesses have turned to slow pages.
    pub(crate) fn observe(&mut self, fast: f64, slow: f64, looks: Looks) -> bool {
        let all = fast + slow;
        let least = f64::from(looks.pages) * LEAST_USED;
        // Also false for what is no number.
        if !(all >= least && all > 0.0) {
            return false;
        }
        self.since_change = self.since_change.saturating_add(1);
        let pace = looks.pace();
        let before = self.pace.replace(pace);
        if before != Some(pace) {
            // This batch may have begun at another pace.
            self.sum = 0.0;
            self.batches = 0;
            self.quickened = before.is_some_and(|before| pace + MUCH_QUICKER <= before);
            return false;
        }
        self.batches = self.batches.saturating_add(1);
        let x = slow / all;
        let normal = self.normals.entry(pace).or_insert(Normal::new(x));
        if std::mem::take(&mut self.quickened) {
            // Regions are still those of slow looks, where hot and cold look alike.
            normal.level = normal.level.max(x);
        }
        self.sum = (self.sum + normal.above(x) - ALLOWANCE).max(0.0);
        if normal.learned < LEARN {
            self.sum = 0.0;
        }
        if self.sum < THRESHOLD {
            normal.learn(x, self.batches);
            return false;
        }
        normal.level = x;
        normal.last = x;
        self.sum = 0.0;
        self.batches = 0;
        self.since_change = 0;
        self.noticed += 1;
        true
    }

    /// Whether the numbers can be worked with.
    pub(crate) fn is_valid(&self) -> bool {
        let is_valid = |normal: &Normal| {
            (0.0..=1.0).contains(&normal.level)
                && (LEAST_DEVIATION..=1.0).contains(&normal.deviation)
        };
        self.normals.values().all(is_valid) && (0.0..THRESHOLD).contains(&self.sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const LOOKS: Looks = Looks {
        pages: 10_000,
        every: Duration::from_millis(200),
    };

    /// Random numbers, roughly normal with mean 0 and deviation 1: twelve uniform numbers.
    fn noise(random: &mut Random) -> f64 {
        (0..12).map(|_| random.share()).sum::<f64>() - 6.0
    }

    /// Feeds `reports` reports with the slow share `x` under noise of deviation `sigma`; returns after how
    /// many a change was noticed first.
    fn feed(
        detector: &mut ChangeDetector,
        random: &mut Random,
        reports: u32,
        x: f64,
        sigma: f64,
    ) -> Option<u32> {
        (1..=reports).find(|_| {
            let x = (x + sigma * noise(random)).clamp(0.0, 1.0);
            let noticed = detector.observe(1000.0 * (1.0 - x), 1000.0 * x, LOOKS);
            assert!(detector.is_valid(), "{detector:?}");
            noticed
        })
    }

    #[test]
    fn steady_guest_when_watched_for_a_day_gives_no_alarm() {
        for (seed, sigma) in [(1, 0.001), (2, 0.01), (3, 0.03), (4, 0.1)] {
            let (mut detector, mut random) = (ChangeDetector::default(), Random::new(seed));
            // At first noise is not known, and may be taken for a change.
            for _ in 0..300 {
                feed(&mut detector, &mut random, 1, 0.4, sigma);
            }
            assert!(detector.noticed() <= 2, "{sigma}");
            assert_eq!(
                feed(&mut detector, &mut random, 86_400, 0.4, sigma),
                None,
                "{sigma}"
            );
        }
    }

    #[test]
    fn change_when_sudden_is_noticed_at_once_and_when_small_soon() {
        for (to, within) in [(0.7, 1), (0.5, 4), (0.45, 20)] {
            let (mut detector, mut random) = (ChangeDetector::default(), Random::new(7));
            feed(&mut detector, &mut random, 100, 0.4, 0.01);
            let noticed = feed(&mut detector, &mut random, 50, to, 0.01);
            assert!(noticed.is_some_and(|n| n <= within), "{to}: {noticed:?}");
        }
    }

    #[test]
    fn change_when_it_comes_again_after_moves_is_noticed_again() {
        let (mut detector, mut random) = (ChangeDetector::default(), Random::new(9));
        feed(&mut detector, &mut random, 20, 0.4, 0.01);
        for round in 1..=20 {
            let noticed = feed(&mut detector, &mut random, 10, 0.8, 0.01);
            assert!(
                noticed.is_some_and(|n| n <= 3),
                "round {round}: {noticed:?}"
            );
            // The hot pages are promoted.
            for x in [0.7, 0.6, 0.5] {
                assert_eq!(feed(&mut detector, &mut random, 1, x, 0.01), None);
            }
            assert_eq!(feed(&mut detector, &mut random, 12, 0.4, 0.01), None);
        }
        assert_eq!(detector.noticed(), 20);
    }

    #[test]
    fn guest_when_it_sleeps_and_wakes_as_it_was_gives_no_alarm() {
        let (mut detector, mut random) = (ChangeDetector::default(), Random::new(5));
        feed(&mut detector, &mut random, 50, 0.4, 0.01);
        for _ in 0..100 {
            assert!(!detector.observe(0.0, 10.0, LOOKS));
            assert!(!detector.observe(0.0, 0.0, LOOKS));
            assert!(!detector.observe(f64::NAN, f64::INFINITY, LOOKS));
        }
        assert_eq!(feed(&mut detector, &mut random, 50, 0.4, 0.01), None);
    }

    #[test]
    fn guest_when_it_is_looked_at_more_slowly_gives_no_alarm() {
        let (mut detector, mut random) = (ChangeDetector::default(), Random::new(5));
        feed(&mut detector, &mut random, 50, 0.4, 0.01);
        let quick = Looks {
            every: LOOKS.every / 10,
            ..LOOKS
        };
        for _ in 0..50 {
            assert!(!detector.observe(900.0, 100.0, quick));
        }
        assert_eq!(feed(&mut detector, &mut random, 50, 0.4, 0.01), None);
        assert!(feed(&mut detector, &mut random, 2, 0.8, 0.01).is_some());

        // What is normal at a pace is known when it comes again.
        assert!(!detector.observe(900.0, 100.0, quick));
        assert!(feed(&mut detector, &mut random, 3, 1.0, 0.01).is_some());
    }

    #[test]
    fn use_when_it_swings_by_itself_gives_no_alarm() {
        let (mut detector, mut random) = (ChangeDetector::default(), Random::new(3));
        feed(&mut detector, &mut random, 50, 0.04, 0.003);
        for _ in 0..20 {
            assert_eq!(feed(&mut detector, &mut random, 10, 0.002, 0.001), None);
            assert_eq!(feed(&mut detector, &mut random, 40, 0.04, 0.003), None);
        }
    }

    #[test]
    fn use_when_it_fell_for_long_is_noticed_when_it_comes_back() {
        let (mut detector, mut random) = (ChangeDetector::default(), Random::new(3));
        feed(&mut detector, &mut random, 50, 0.4, 0.003);
        assert_eq!(feed(&mut detector, &mut random, 40, 0.2, 0.003), None);
        let noticed = feed(&mut detector, &mut random, 3, 0.4, 0.003);
        assert!(noticed.is_some());
    }

    #[test]
    fn level_when_pages_were_moved_falls_at_once() {
        let (mut detector, mut random) = (ChangeDetector::default(), Random::new(3));
        feed(&mut detector, &mut random, 50, 0.4, 0.003);
        detector.moved();
        assert_eq!(feed(&mut detector, &mut random, 10, 0.3, 0.003), None);
        let noticed = feed(&mut detector, &mut random, 3, 0.4, 0.003);
        assert!(noticed.is_some());
    }

    #[test]
    fn guest_when_it_is_looked_at_more_closely_gives_no_alarm_while_regions_are_those_of_slow_looks()
     {
        let (mut detector, mut random) = (ChangeDetector::default(), Random::new(5));
        let quick = Looks {
            every: LOOKS.every / 10,
            ..LOOKS
        };
        for _ in 0..20 {
            feed(&mut detector, &mut random, 50, 0.75, 0.01);
            for report in 0..50 {
                let x = 0.55 + 0.2 * (-f64::from(report) / 8.0).exp();
                assert!(!detector.observe(1000.0 * (1.0 - x), 1000.0 * x, quick));
                assert_eq!(detector.outdates_counts(), report == 0);
            }
            assert_eq!(detector.noticed(), 0);
        }
        assert!(
            (0..3).any(|_| detector.observe(100.0, 900.0, quick)),
            "a change at work"
        );
    }

    #[test]
    fn counts_when_a_change_has_brought_quicker_looks_are_not_outdated_again() {
        let (mut detector, mut random) = (ChangeDetector::default(), Random::new(5));
        let every = |part| Looks {
            every: LOOKS.every / part,
            ..LOOKS
        };
        feed(&mut detector, &mut random, 50, 0.4, 0.01);
        assert!(feed(&mut detector, &mut random, 2, 0.8, 0.01).is_some());
        feed(&mut detector, &mut random, 1, 0.8, 0.01);
        assert!(!detector.observe(300.0, 700.0, every(10)));
        assert!(!detector.outdates_counts());

        // Nor by looks that are twice as quick.
        for part in [20, 40, 80] {
            assert!(!detector.observe(300.0, 700.0, every(part)));
            assert!(!detector.outdates_counts());
        }
    }
}
