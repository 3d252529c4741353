//! How near an agent's hit ratio is to the truth.
//!
//! The agent tells the share of accesses that went to the fast tier among all that it has seen, each
//! weighted by half for every half-life that has passed since. The truth is weighted the same way here, so
//! that both speak of the same time.

use crate::result::{GuestPoint, Point};
use crate::stats::mean;

/// A moment's hit ratio as counted and as told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// Seconds since the start of tiering.
    pub t: f64,
    /// Counted, decayed.
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
    let (mut fast, mut slow) = (0.0, 0.0);
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
        if let Some(last) = last {
            let kept = (-(t - last) / half_life_s).exp2();
            fast *= kept;
            slow *= kept;
        }
        last = Some(*t);
        // The accesses since the last point lie half the way back, on the whole: near enough for
        // points a second apart and half-lives of several.
        fast += guest.accesses_fast.unwrap_or(0) as f64;
        slow += guest.accesses_slow.unwrap_or(0) as f64;
        if let Some(told) = guest.hit_ratio
            && fast + slow > 0.0
        {
            found.push(Comparison {
                t: *t,
                counted: fast / (fast + slow),
                told,
            });
        }
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
            (10.0, point(1500, 0, Some(0.7))),
        ]);

        // 500 are left of the slow ones.
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].counted, 0.75);
        assert!((found[0].error() - 0.05).abs() < 1e-9);
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
