//! How much more often the fast tier's accesses are reported, how certain that is, and what follows for counts.
//!
//! # How certain it is
//! With R = Y / E of a group of n pages, the variance of R is estimated from the pages themselves,
//! Σ (yᵢ − R eᵢ)² · n / (n − 1) / E²: that holds whatever the spread of the rates. It is taken as no less than that
//! of Poisson counts, R² / Y. The logarithm of the ratio then has the variance Σ Var R / R² over both groups. Evidence loses
//! half of its weight in [`HALF_LIFE`].

use std::time::Duration;

use crate::{dual_heap::Placement, time::Time};

/// Evidence of so long ago weighs half: what hardware sees changes with what the guest does.
const HALF_LIFE: Duration = Duration::from_secs(600);
/// Fewer pages or records of a group say nothing.
const LEAST_PAGES: f64 = 8.0;
const LEAST_SEEN: f64 = 10.0;
/// Once the ratio is known this well no page is held back.
const ENOUGH: f64 = 0.1;
/// By how many deviations the ratio must differ from 1 before counts are judged by it. It is looked at again and again: of
/// 240 guests without a bias one came to be 3 deviations off in two minutes, none 4.
const SURE: f64 = 4.0;
/// They no longer are below this.
const STILL_SURE: f64 = 2.0;
/// A bias of less than a fifth changes no exchange (see `engine/exchange.rs`).
const LEAST_BIAS: f64 = 1.2;
/// No more is believed.
const MOST_BIAS: f64 = 64.0;

/// The share of the records that would have been made if a tier were seen as well as the one that is seen best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shares {
    pub(crate) fast: f64,
    pub(crate) slow: f64,
}

impl Shares {
    /// Both tiers are seen alike.
    pub(crate) const ALIKE: Self = Self {
        fast: 1.0,
        slow: 1.0,
    };

    /// That of the records of a page there.
    #[inline]
    pub(crate) const fn of(self, placement: Placement) -> f64 {
        match placement {
            Placement::Fast => self.fast,
            Placement::Slow | Placement::Untracked => self.slow,
        }
    }
}

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
    /// The ratio that counts are judged by, if they are.
    pub(super) corrected: Option<f64>,
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

    /// Decides whether counts are judged by the ratio.
    pub(super) fn decide(&mut self) {
        let sure = match self.corrected {
            Some(_) => STILL_SURE,
            None => SURE,
        };
        let is_sure = |&(ratio, deviation): &(f64, f64)| {
            ratio.ln().abs() >= LEAST_BIAS.ln().max(sure * deviation)
        };
        self.corrected = self.known().filter(is_sure).map(|(ratio, _)| ratio);
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

    /// What is seen of each tier, beside the other.
    pub(super) fn shares(&self) -> Shares {
        self.corrected.map_or(Shares::ALIKE, |ratio| Shares {
            fast: ratio.min(1.0),
            slow: ratio.recip().min(1.0),
        })
    }

    /// By what a page's count must be multiplied when it changes its tier; `None` if it stays as it is.
    pub(super) fn at_move(&self, old: Placement, new: Placement) -> Option<f64> {
        let ratio = self.corrected?;
        match (old, new) {
            (Placement::Slow, Placement::Fast) => Some(ratio),
            (Placement::Fast, Placement::Slow) => Some(ratio.recip()),
            _ => None,
        }
    }
}
