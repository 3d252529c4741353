//! The half-life in force: of six, the half-life that predicts the next counts best.
//!
//! A long half-life knows steady pages better, from more samples; a short half-life follows a change
//! sooner. A sample of pages is watched with six half-lives in parallel, and four times a second each
//! predicts the next counts. The half-life with the least squared error of late is used for all heats,
//! as smoothing constants of forecasts are chosen (Brown, "Statistical forecasting for inventory
//! control", 1959). Under forward decay a change of the half-life touches no page.
//!
//! For a source that counts accesses. The half-life that an operator sets is the middle of the range.
//!
//! Worth in hits: 0.5 points on the recorded programs and 0.2 on generated accesses, 5.7 where the
//! pattern changes and DRAM is small. Compared with 5 s fixed it is worth 1.8 points there, and a fifth
//! of the bytes on generated accesses (docs/results/policies.md).

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, DefaultHasher},
    time::Duration,
};

use crate::{dual_heap::PageId, random::spread, time::Time};

/// Half-lives watched in parallel, as factors of the half-life that is set.
const FACTORS: [f64; 6] = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0];
/// The factor to begin with: the half-life as set.
const AS_SET: usize = 3;
/// How often counts are predicted.
const EVERY: Duration = Duration::from_millis(250);
/// The same while the guest is at rest.
const AT_REST_EVERY: Duration = Duration::from_secs(1);
/// Pages watched at most: errors of so many differ by a few percent between half-lives, and by chance by
/// less.
const MOST_WATCHED: usize = 4096;
/// Errors of so long ago weigh half.
const ERRORS_HALF_LIFE: Duration = Duration::from_millis(1500);
/// Another half-life is taken if its error is at most this share: less of a difference is chance.
const BETTER: f64 = 0.99;
/// A page whose count in the longest memory is below this is no longer watched.
const FORGOTTEN: f64 = 0.05;
/// Added to a predicted count where errors are weighed by it, as the variance of a count is its mean: a
/// page with hardly a count would weigh too much.
const LEAST_VARIANCE: f64 = 0.1;

#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    /// Decayed counts, one for each half-life, up to the last prediction.
    counts: [f64; FACTORS.len()],
    /// Counts since.
    recent: f64,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct HalfLife {
    half_lives: [Duration; FACTORS.len()],
    /// Hashed alike in each run: errors are summed in the same order.
    watched: HashMap<u32, Watched, BuildHasherDefault<DefaultHasher>>,
    /// One page in 2^`rarity` is watched.
    rarity: u32,
    /// Time observed, decayed as counts are.
    seconds: [f64; FACTORS.len()],
    errors: [f64; FACTORS.len()],
    chosen: usize,
    last: Option<Time>,
}

impl HalfLife {
    pub(crate) fn new(half_life: Duration) -> Self {
        Self {
            half_lives: FACTORS.map(|factor| half_life.mul_f64(factor)),
            watched: HashMap::default(),
            rarity: 0,
            seconds: [0.0; FACTORS.len()],
            errors: [0.0; FACTORS.len()],
            chosen: AS_SET,
            last: None,
        }
    }

    /// Forgets the pages: they have other numbers now. The half-life stays.
    pub(crate) fn forget_pages(&mut self) {
        self.watched.clear();
        self.errors = [0.0; FACTORS.len()];
        self.seconds = [0.0; FACTORS.len()];
    }

    /// The half-life in force.
    pub(crate) const fn in_force(&self) -> Duration {
        self.half_lives[self.chosen]
    }

    /// Takes note of `counts` accesses seen at a page.
    #[inline]
    pub(crate) fn see(&mut self, page: PageId, counts: f32) {
        if is_watched(page.0, self.rarity) {
            self.watched.entry(page.0).or_default().recent += f64::from(counts);
            if self.watched.len() > MOST_WATCHED {
                self.thin();
            }
        }
    }

    /// Watches fewer pages.
    #[cold]
    fn thin(&mut self) {
        while self.watched.len() > MOST_WATCHED && self.rarity < 31 {
            self.rarity += 1;
            let rarity = self.rarity;
            self.watched.retain(|&page, _| is_watched(page, rarity));
        }
    }

    /// Compares what was predicted with what came, if that is due. Returns the half-life if it changes.
    pub(crate) fn tick(&mut self, now: Time, at_rest: bool) -> Option<Duration> {
        let last = *self.last.get_or_insert(now);
        let span = now.since(last);
        if span < if at_rest { AT_REST_EVERY } else { EVERY } {
            return None;
        }
        self.last = Some(now);
        let span_s = span.as_secs_f64();
        let kept = self
            .half_lives
            .map(|half_life| (-span_s / half_life.as_secs_f64()).exp2());
        let errors = self.errors_of(span_s, &kept);
        let old = (-span_s / ERRORS_HALF_LIFE.as_secs_f64()).exp2();
        for (sum, error) in self.errors.iter_mut().zip(errors) {
            *sum = *sum * old + error;
        }
        for (seconds, kept) in self.seconds.iter_mut().zip(kept) {
            *seconds = *seconds * kept + span_s;
        }
        self.choose()
    }

    /// The errors of each half-life over all watched pages, whose counts are brought up to date.
    fn errors_of(&mut self, span_s: f64, kept: &[f64; FACTORS.len()]) -> [f64; FACTORS.len()] {
        let mut errors = [0.0; FACTORS.len()];
        let seconds = self.seconds;
        self.watched.retain(|_, page| {
            let mut predicted = [0.0; FACTORS.len()];
            for ((predicted, count), seconds) in predicted.iter_mut().zip(page.counts).zip(seconds)
            {
                *predicted = if seconds > 0.0 {
                    count / seconds * span_s
                } else {
                    0.0
                };
            }
            // Weighed alike for all half-lives.
            let mean = predicted.iter().sum::<f64>() / FACTORS.len() as f64;
            for (error, predicted) in errors.iter_mut().zip(predicted) {
                *error += (page.recent - predicted).powi(2) / (mean + LEAST_VARIANCE);
            }
            for (count, kept) in page.counts.iter_mut().zip(kept) {
                *count = *count * kept + page.recent;
            }
            page.recent = 0.0;
            page.counts[FACTORS.len() - 1] >= FORGOTTEN
        });
        errors
    }

    fn choose(&mut self) -> Option<Duration> {
        let least = self.errors.iter().copied().enumerate();
        let (best, error) = least.min_by(|a, b| a.1.total_cmp(&b.1))?;
        if error < self.errors[self.chosen] * BETTER {
            self.chosen = best;
            return Some(self.in_force());
        }
        None
    }
}

/// Whether a page is the one in 2^`rarity` that is watched.
fn is_watched(page: u32, rarity: u32) -> bool {
    spread(page).checked_shr(32 - rarity).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const BASE: Duration = Duration::from_secs(10);

    fn second(n: u64) -> Time {
        Time(n * 1_000_000_000)
    }

    /// Feeds seconds of counts; `rate(second, page)` a second, drawn with a Poisson-like spread.
    fn run(
        half_life: &mut HalfLife,
        seconds: std::ops::Range<u64>,
        rate: impl Fn(u64, u32) -> f64,
    ) {
        let mut random = Random::new(1);
        for at in seconds {
            for page in 0..500 {
                let mut left = rate(at, page);
                // Ten trials for each count: binomial, near enough.
                while left > 0.0 {
                    let p = left.min(1.0) / 10.0;
                    left -= 1.0;
                    for _ in 0..10 {
                        if random.happens(p) {
                            half_life.see(PageId(page), 1.0);
                        }
                    }
                }
            }
            half_life.tick(second(at + 1), false);
        }
    }

    #[test]
    fn half_life_when_nothing_changes_grows() {
        let mut half_life = HalfLife::new(BASE);
        run(&mut half_life, 0..120, |_, page| f64::from(page % 7));
        assert!(half_life.in_force() > BASE);
    }

    #[test]
    fn half_life_when_the_pattern_changes_shrinks_at_once_and_grows_again() {
        let mut half_life = HalfLife::new(BASE);
        let rate = |at, page| if (page < 250) == (at < 60) { 3.0 } else { 0.2 };
        run(&mut half_life, 0..60, rate);
        assert!(half_life.in_force() >= BASE);
        run(&mut half_life, 60..63, rate);
        assert!(half_life.in_force() <= BASE / 4);
        run(&mut half_life, 63..200, rate);
        assert!(half_life.in_force() >= BASE);
    }

    #[test]
    fn half_life_when_hot_pages_wander_stays_short() {
        let mut half_life = HalfLife::new(BASE);
        let rate = |at, page: u32| {
            let place = (u64::from(page) + 500 - at * 10 % 500) % 500;
            if place < 100 { 5.0 } else { 0.1 }
        };
        run(&mut half_life, 0..100, rate);
        assert!(half_life.in_force() < BASE);
    }

    #[test]
    fn watched_pages_when_there_are_many_are_bounded() {
        let mut half_life = HalfLife::new(BASE);
        for page in 0..1_000_000 {
            half_life.see(PageId(page), 1.0);
        }
        half_life.tick(second(0), false);
        half_life.tick(second(1), false);
        assert!(half_life.watched.len() <= MOST_WATCHED);
        assert!(half_life.watched.len() > MOST_WATCHED / 8);
    }
}
