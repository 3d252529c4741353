//! How near an agent's hit ratio is to the truth.
//!
//! The agent tells the share of accesses that went to the fast tier among all that it has seen, each
//! weighted by half for every half-life that has passed since. The truth is weighted the same way here, so
//! that both speak of the same time. An agent follows its guest with another half-life than the one that was set,
//! and does not say with which: the truth is weighted with each that it may take, and the nearest is compared.
//! Where the guest is steady they are one.

use crate::result::{GuestPoint, Point};
use crate::stats::mean;

/// The half-lives that an agent chooses from, in parts of the one that is set.
const HALF_LIVES: [f64; 6] = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0];

/// A moment's hit ratio as counted and as told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// Seconds since the start of tiering.
    pub t: f64,
    /// Counted, decayed with the half-life by which it is nearest to what is told.
    pub counted: f64,
    /// What the agent says.
    pub told: f64,
}

impl Comparison {
    /// How far the agent is off.
    #[must_use]
    pub fn error(&self) -> f64 {
        (self.counted - self.told).abs()
    }
}

/// Compares wherever both are there. `series`: seconds since the start of tiering, and the points.
#[must_use]
pub fn compare(series: &[(f64, &Point, &GuestPoint)]) -> Vec<Comparison> {
    // Decayed counts of accesses to the fast tier and to both, for each half-life.
    let mut counts = HALF_LIVES.map(|_| (0.0, 0.0));
    let (mut last, mut half_life): (Option<f64>, Option<f64>) = (None, None);
    let mut found = Vec::new();
    for (t, _, guest) in series {
        // An agent that does not answer in time goes on all the same; before its first answer it has
        // seen nothing.
        half_life = guest
            .half_life_s
            .filter(|seconds| *seconds > 0.0)
            .or(half_life);
        let Some(half_life_s) = half_life else {
            continue;
        };
        // The accesses since the last point lie half the way back, on the whole: near enough for
        // points a second apart and half-lives of several.
        let passed = t - last.unwrap_or(*t);
        last = Some(*t);
        let fast = guest.accesses_fast.unwrap_or(0) as f64;
        let slow = guest.accesses_slow.unwrap_or(0) as f64;
        for ((of_fast, of_both), part) in counts.iter_mut().zip(HALF_LIVES) {
            let kept = (-passed / (half_life_s * part)).exp2();
            *of_fast = *of_fast * kept + fast;
            *of_both = *of_both * kept + fast + slow;
        }
        let Some(told) = guest.hit_ratio else {
            continue;
        };
        let ratios = counts.iter().filter(|(_, of_both)| *of_both > 0.0);
        let ratios = ratios.map(|(of_fast, of_both)| of_fast / of_both);
        let off = |ratio: &f64| (ratio - told).abs();
        let nearest = ratios.min_by(|a, b| off(a).total_cmp(&off(b)));
        found.extend(nearest.map(|counted| Comparison {
            t: *t,
            counted,
            told,
        }));
    }
    found
}

/// How far the agent is off on average, over the last seconds; `None` when nothing was compared.
#[must_use]
pub fn mean_error(found: &[Comparison], over_s: f64) -> Option<f64> {
    let last = found.last()?.t;
    let errors: Vec<f64> = found
        .iter()
        .filter(|found| found.t > last - over_s)
        .map(Comparison::error)
        .collect();
    mean(&errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(fast: u64, slow: u64, told: Option<f64>) -> GuestPoint {
        GuestPoint {
            accesses_fast: Some(fast),
            accesses_slow: Some(slow),
            hit_ratio: told,
            half_life_s: Some(10.0),
            ..GuestPoint::default()
        }
    }

    fn compared(points: &[(f64, GuestPoint)]) -> Vec<Comparison> {
        let empty = Point::default();
        let series: Vec<_> = points
            .iter()
            .map(|(t, guest)| (*t, &empty, guest))
            .collect();
        compare(&series)
    }

    #[test]
    fn comparison_when_accesses_lie_a_half_life_back_weighs_them_half() {
        let found = compared(&[
            (0.0, point(0, 1000, None)),
            (10.0, point(1500, 0, Some(0.77))),
        ]);

        // 500 are left of the slow ones.
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].counted, 0.75);
        assert!((found[0].error() - 0.02).abs() < 1e-9);
    }

    #[test]
    fn comparison_when_the_agent_forgets_faster_than_it_was_set_is_with_what_it_knows() {
        let turn = [
            (0.0, point(0, 1000, None)),
            (10.0, point(1500, 0, Some(0.95))),
        ];
        let steady = [
            (0.0, point(500, 500, None)),
            (10.0, point(750, 750, Some(0.95))),
        ];

        // A quarter of the half-life: 62.5 of the slow ones are left.
        assert_eq!(compared(&turn)[0].counted, 0.96);
        assert_eq!(compared(&steady)[0].counted, 0.5);
    }

    #[test]
    fn comparison_when_the_agent_misses_an_answer_counts_what_it_saw_meanwhile() {
        let mut silent = point(0, 1000, None);
        silent.half_life_s = None;

        let found = compared(&[
            (0.0, point(0, 0, None)),
            (10.0, silent),
            (20.0, point(500, 0, Some(0.5))),
        ]);

        assert_eq!(found.len(), 1);
        assert_eq!(found[0].counted, 0.5);
    }

    #[test]
    fn mean_error_when_early_seconds_are_off_counts_the_last_ones() {
        let at = |t, told| Comparison {
            t,
            counted: 0.5,
            told,
        };
        let found = [at(1.0, 0.0), at(9.5, 0.4), at(10.0, 0.7)];

        let error = mean_error(&found, 5.0).unwrap();

        assert!((error - 0.15).abs() < 1e-9, "{error}");
        assert_eq!(mean_error(&[], 5.0), None);
    }

    #[test]
    fn comparison_when_nothing_was_counted_or_told_is_none() {
        assert_eq!(compared(&[(0.0, point(0, 0, Some(0.5)))]), []);
        assert_eq!(compared(&[(0.0, point(5, 5, None))]), []);
        let mut deaf = point(5, 5, Some(0.5));
        deaf.half_life_s = None;
        assert_eq!(compared(&[(0.0, deaf)]), []);
    }
}
