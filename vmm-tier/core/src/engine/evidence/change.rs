//! Notices that the guest's accesses turned to slow pages.
//!
//! ```text
//! problem   a guest at rest is watched little, and what was counted for long outweighs what is new
//! measure   x, the share of the use seen in a batch that fell on the slow tier
//! normal    the level of x, and how far x rises from one batch to the next on average (it falls when pages
//!           were moved); at each pace its own, as slow looks find cold pages used that quick looks find idle
//! test      one-sided CUSUM (Page, "Continuous inspection schemes", Biometrika 41, 1954) of
//!           (x − level) / deviation: a sudden change is noticed at once, a small one when it lasts
//! meaning   the guest is worth a closer look; it is no ground to move a page
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
/// Share of a difference by which the level follows x upwards, and downwards: moves make x fall, which is
/// the new normal at once.
const FOLLOW_UP: f64 = 1.0 / 64.0;
const FOLLOW_DOWN: f64 = 1.0 / 4.0;
/// Share of a difference by which the deviation is learned.
const LEARN_DEVIATION: f64 = 1.0 / 32.0;
/// Differences up to this are noise whatever the past says: a point of hits.
const LEAST_DEVIATION: f64 = 0.01;
/// Largest difference in deviations by which the deviation is learned: a change is no noise.
const MOST_LEARNED: f64 = 3.0;
/// CUSUM's allowance and threshold in deviations. From one batch to the next x goes 1.13 standard
/// deviations of its noise on average, so these are 2.3 and 9: under normal noise a false alarm comes once
/// in e^(2 · 2.3 · 9) reports or so (Siegmund, "Sequential Analysis", 1985). A rise of 10 deviations, 10
/// points at the least deviation, is noticed at the first report.
const ALLOWANCE: f64 = 2.0;
const THRESHOLD: f64 = 8.0;
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
}

impl Normal {
    const fn new(x: f64) -> Self {
        Self {
            level: x,
            deviation: LEAST_DEVIATION,
            last: x,
            learned: 0,
        }
    }

    /// Deviations by which `x` lies above the level.
    fn above(&self, x: f64) -> f64 {
        (x - self.level) / self.deviation
    }

    fn learn(&mut self, x: f64) {
        self.learned = self.learned.saturating_add(1);
        let first = (self.learned <= LEARN).then(|| 1.0 / f64::from(self.learned));
        let follow = first.unwrap_or(match x > self.level {
            true => FOLLOW_UP,
            false => FOLLOW_DOWN,
        });
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
    sum: f64,
    /// Changes noticed.
    noticed: u64,
}

impl ChangeDetector {
    /// Changes noticed so far.
    pub(crate) const fn noticed(&self) -> u64 {
        self.noticed
    }

    /// Learns what is normal from the beginning: the counts come from another source, or the pages have
    /// other numbers.
    pub(crate) fn forget(&mut self) {
        *self = Self {
            noticed: self.noticed,
            ..Self::default()
        };
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
        let pace = looks.pace();
        if self.pace.replace(pace) != Some(pace) {
            // This batch may have begun at another pace.
            self.sum = 0.0;
            return false;
        }
        let x = slow / all;
        let normal = self.normals.entry(pace).or_insert(Normal::new(x));
        self.sum = (self.sum + normal.above(x) - ALLOWANCE).max(0.0);
        if normal.learned < LEARN {
            self.sum = 0.0;
        }
        if self.sum < THRESHOLD {
            normal.learn(x);
            return false;
        }
        normal.level = x;
        normal.last = x;
        self.sum = 0.0;
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
}
