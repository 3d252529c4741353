//! The estimate of the bias: how much more often the fast tier's accesses are reported, and how certain
//! that is.
//!
//! # How certain it is
//! With R = Y / E of a group of n pages, the variance of R is estimated from the pages themselves, Σ (yᵢ
//! − R eᵢ)² · n / (n − 1) / E²: that holds whatever the spread of the rates. It is taken as no less than
//! that of Poisson counts, R² / Y. The logarithm of the ratio then has the variance Σ Var R / R² over
//! both groups. Evidence loses half of its weight in [`HALF_LIFE`].

use std::time::Duration;

use crate::time::Time;

/// Evidence of so long ago weighs half: what hardware sees changes with what the guest does.
const HALF_LIFE: Duration = Duration::from_secs(600);
/// Fewer pages or records of a group say nothing.
const LEAST_PAGES: f64 = 8.0;
const LEAST_SEEN: f64 = 10.0;
/// Once the ratio is known this well no page is held back.
const ENOUGH: f64 = 0.1;
/// Deviations by which the ratio must differ from 1 to be called significant. It is tested again and
/// again: of 240 guests without a bias, one came to be 3 deviations off in two minutes, none 4.
const SURE: f64 = 4.0;
/// It stays significant down to this.
const STILL_SURE: f64 = 2.0;
/// A bias of less than a fifth changes no exchange (see `engine/exchange.rs`), and is never called
/// significant.
const LEAST_BIAS: f64 = 1.2;
/// Upper bound on the bias.
const MOST_BIAS: f64 = 64.0;

/// Pages of one group, as sums.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Group {
    pub(super) pages: f64,
    pub(super) seen: f64,
    pub(super) expected: f64,
    pub(super) seen_seen: f64,
    pub(super) seen_expected: f64,
    pub(super) expected_expected: f64,
}

impl Group {
    fn add(&mut self, seen: f64, expected: f64) {
        self.pages += 1.0;
        self.seen += seen;
        self.expected += expected;
        self.seen_seen += seen * seen;
        self.seen_expected += seen * expected;
        self.expected_expected += expected * expected;
    }

    fn fade(&mut self, kept: f64) {
        for sum in [
            &mut self.pages,
            &mut self.seen,
            &mut self.expected,
            &mut self.seen_seen,
            &mut self.seen_expected,
            &mut self.expected_expected,
        ] {
            *sum *= kept;
        }
    }

    /// Records over what was expected, and the relative variance of that; `None` if there are too few.
    fn ratio(&self) -> Option<(f64, f64)> {
        if self.pages < LEAST_PAGES || self.seen < LEAST_SEEN || self.expected <= 0.0 {
            return None;
        }
        let ratio = self.seen / self.expected;
        let rest = self.seen_seen - 2.0 * ratio * self.seen_expected
            + ratio * ratio * self.expected_expected;
        let variance = rest * self.pages / (self.pages - 1.0);
        let relative = variance / (self.seen * self.seen);
        Some((ratio, relative.max(1.0 / self.seen)))
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Estimate {
    pub(super) stayed: Group,
    pub(super) moved: Group,
    faded: Time,
    /// Whether the ratio differs from 1 for certain.
    pub(super) is_significant: bool,
}

impl Estimate {
    /// Lets evidence weigh what is left of it by now.
    pub(super) fn fade(&mut self, now: Time) {
        let kept = (-now.since(self.faded).as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        self.faded = now;
        self.stayed.fade(kept);
        self.moved.fade(kept);
    }

    /// Takes in what a page has shown that was held back, or has moved.
    pub(super) fn add(&mut self, stayed: bool, seen: f64, expected: f64) {
        let group = match stayed {
            true => &mut self.stayed,
            false => &mut self.moved,
        };
        group.add(seen, expected);
    }

    /// Decides whether the ratio is significant.
    pub(super) fn decide(&mut self) {
        let sure = match self.is_significant {
            true => STILL_SURE,
            false => SURE,
        };
        let is_sure = |(ratio, deviation): (f64, f64)| {
            ratio.ln().abs() >= LEAST_BIAS.ln().max(sure * deviation)
        };
        self.is_significant = self.known().is_some_and(is_sure);
    }

    /// Fast over slow, and the standard deviation of its logarithm.
    pub(super) fn known(&self) -> Option<(f64, f64)> {
        let (moved, of_moved) = self.moved.ratio()?;
        let (stayed, of_stayed) = self.stayed.ratio()?;
        let ratio = (moved / stayed).clamp(1.0 / MOST_BIAS, MOST_BIAS);
        Some((ratio, (of_moved + of_stayed).sqrt()))
    }

    /// Whether no more evidence is needed.
    pub(super) fn is_enough(&self) -> bool {
        self.known()
            .is_some_and(|(_, deviation)| deviation <= ENOUGH)
    }

    /// Pages that this was learned from, decayed.
    pub(super) fn pages(&self) -> f64 {
        self.stayed.pages + self.moved.pages
    }
}
