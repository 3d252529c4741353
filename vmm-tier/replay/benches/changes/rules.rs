//! Rules that end a guest's rest: the engine's detector, and what could stand in its place.
//!
//! The rules beside the detector see the same x, computed here from the same reports: the share of the
//! use that fell on the slow tier, where a page found used at a share p of looks has −ln(1 − p) accesses
//! a look. As the detector they learn for each pace apart, and pass over the first report of a pace and
//! over reports of a guest that sleeps.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tier_core::sample::SampleBatch;
use tier_replay::machine::Host;

use crate::damon::Region;

/// What ends a rest, beside 1 MiB that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// The engine's detector.
    InUse,
    /// Page and Hinkley's test on x.
    PageHinkley,
    /// A rise of x over its mean.
    Rise,
    /// Nothing.
    Nothing,
}

impl Rule {
    pub(crate) const ALL: [Self; 4] = [Self::InUse, Self::PageHinkley, Self::Rise, Self::Nothing];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::InUse => "CUSUM, deviation learned (in use)",
            Self::PageHinkley => "Page–Hinkley: 2 points allowed, 8 points",
            Self::Rise => "10 points above the mean of 10 reports",
            Self::Nothing => "none: 1 MiB moves",
        }
    }
}

/// A share of pages that is found used at least, as in the detector.
const LEAST_USED: f64 = 0.002;
/// Reports of a pace that only teach, as in the detector.
const LEARN: usize = 5;
/// Page and Hinkley's allowance and threshold: those of the detector at its least deviation of a point.
const ALLOWED: f64 = 0.02;
const THRESHOLD: f64 = 0.08;
/// Reports whose mean is normal, and the rise above it.
const KEPT: usize = 10;
const RISE: f64 = 0.10;

/// What is normal at a pace.
#[derive(Debug, Default)]
struct Normal {
    /// The last reports, for [`Rule::Rise`].
    last: VecDeque<f64>,
    /// Reports since the last alarm, and their sum.
    count: usize,
    sum: f64,
    /// Page and Hinkley's sum over its least value so far.
    over: f64,
}

/// A rule beside the detector.
#[derive(Debug)]
pub(crate) struct Rival {
    rule: Rule,
    normals: BTreeMap<Duration, Normal>,
    pace: Option<Duration>,
}

impl Rival {
    pub(crate) const fn new(rule: Rule) -> Self {
        Self {
            rule,
            normals: BTreeMap::new(),
            pace: None,
        }
    }

    /// Takes what a batch found in `regions`. Returns whether the rule gives an alarm.
    pub(crate) fn observe(&mut self, batch: &SampleBatch, regions: &[Region], host: &Host) -> bool {
        let looks = batch.looks();
        let (mut fast, mut slow) = (0.0, 0.0);
        for region in regions.iter().filter(|region| region.accesses > 0) {
            let share = f64::from(region.accesses).min(looks) / (looks + 1.0);
            let each = -(-share).ln_1p();
            let in_fast = (region.first..region.end).filter(|&page| host.is_fast(page));
            let in_fast = in_fast.count() as f64;
            fast += in_fast * each;
            slow += (f64::from(region.pages()) - in_fast) * each;
        }
        let all = fast + slow;
        if all <= 0.0 || all < f64::from(host.guest().pages()) * LEAST_USED {
            return false;
        }
        let pace = batch.span / batch.tests.max(1);
        if self.pace.replace(pace) != Some(pace) {
            return false;
        }
        let normal = self.normals.entry(pace).or_default();
        let alarm = match self.rule {
            Rule::PageHinkley => normal.page_hinkley(slow / all),
            Rule::Rise => normal.rise(slow / all),
            Rule::InUse | Rule::Nothing => false,
        };
        if alarm {
            *normal = Normal::default();
        }
        alarm
    }
}

impl Normal {
    fn page_hinkley(&mut self, x: f64) -> bool {
        self.count += 1;
        self.sum += x;
        let mean = self.sum / self.count as f64;
        self.over = (self.over + x - mean - ALLOWED).max(0.0);
        self.count > LEARN && self.over > THRESHOLD
    }

    fn rise(&mut self, x: f64) -> bool {
        let mean = self.last.iter().sum::<f64>() / self.last.len().max(1) as f64;
        let alarm = self.last.len() >= LEARN && x > mean + RISE;
        self.last.push_back(x);
        if self.last.len() > KEPT {
            self.last.pop_front();
        }
        alarm
    }
}
