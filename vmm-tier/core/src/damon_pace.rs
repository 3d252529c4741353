//! How closely a source that tests pages looks: often enough to tell hot from warm, within a budget.
//!
//! An accessed bit says that a page was used since the last look, not how often. Where looks are far
//! apart, or pages are huge, everything in use is found used at every look, and nothing can be told
//! apart. The pace then halves the time between looks, and halves the number of regions with it, so
//! that the looks a second, which are what the source costs, stay the same. Where little is found in
//! use it goes back.
//!
//! A guest at rest is watched less closely: by slower looks if those still tell hot from warm, else in
//! turns, for a while at the pace that it needs and then not at all.
//!
//! A replay can't tell what this is worth, as it plays records that a source has made. It is bounded: at
//! most three halvings, and the same number of looks a second at each pace.

use std::time::Duration;

use crate::sample::SampleBatch;

/// Above this share of the guest found used at (almost) every look, looks come too seldom.
const SATURATED: f64 = 0.4;
/// Below this share, and with little in use at all, they may come less often again.
const CLEAR: f64 = 0.02;
/// Below this share in use the guest sleeps: what it does when it wakes is not known.
const ASLEEP: f64 = 0.002;
/// "Almost every look": a page found used at 17 of 20, about two uses a look. From there on the shares
/// of pages used twice and ten times as often lie close together.
const ALMOST: f64 = 0.85;
/// Batches that must agree before the pace changes: the first one after a change may span both paces.
const AGREE: u32 = 1;
/// Aggregations for which a guest at rest is watched in its turn at most: a turn ends with its first
/// report. Short turns often cost as much as long turns seldom, and a change is noticed sooner.
const WATCHED_AGGREGATIONS: u32 = 5;
/// Beside a guest at rest, reports come this many times as often as looks would ask for, with at least
/// [`REST_LOOKS`] looks each.
const REST_REPORTS: u32 = 4;
/// See [`REST_REPORTS`].
const REST_LOOKS: u32 = 4;
/// No pace has fewer regions at most.
const LEAST_REGIONS: u64 = 20;
/// Most halvings: an eighth of the regions still tells apart what is a hundred pages long.
const MAX_HALVINGS: u32 = 3;

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Time between two looks at a region.
    pub sampling: Duration,
    /// Time over which looks are counted.
    pub aggregation: Duration,
    /// Most regions.
    pub max_regions: u64,
    /// Watch in turns; `None` to watch always.
    pub turns: Option<Turns>,
}

/// For how long to watch, and for how long not to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turns {
    /// Time to watch, if no report comes before.
    pub watch: Duration,
    /// Time to rest after it.
    pub rest: Duration,
}

/// Finds the pace. Pure: fed with batches, asked for the pace.
#[derive(Clone, Debug)]
pub struct PaceKeeper {
    base: Pace,
    least_sampling: Duration,
    quiet_factor: u32,
    quiet: bool,
    /// Slow looks would hide what is hot.
    blurred: bool,
    halvings: u32,
    agreeing: i32,
}

impl PaceKeeper {
    /// Begins at `base`. Looks never come closer than `least_sampling`. [While quiet](Self::set_quiet)
    /// the guest costs about `quiet_factor` times less.
    #[must_use]
    pub const fn new(base: Pace, least_sampling: Duration, quiet_factor: u32) -> Self {
        Self {
            base,
            least_sampling,
            quiet_factor,
            quiet: false,
            blurred: false,
            halvings: 0,
            agreeing: 0,
        }
    }

    /// Whether nothing is to be done and the guest may be watched less closely.
    pub fn set_quiet(&mut self, quiet: bool) {
        self.quiet = quiet;
        self.blurred = false;
        self.agreeing = 0;
    }

    /// Whether looks come often enough to tell hot from warm, as far as they ever will. What was
    /// observed before is no ground to move pages.
    #[must_use]
    pub fn is_settled(&self, batch: &SampleBatch) -> bool {
        wish(batch) <= 0 || (self.is_fastest() && !self.is_slow())
    }

    /// Whether looks come closer than set because the guest's pages saturate.
    #[must_use]
    pub const fn is_quickened(&self) -> bool {
        self.halvings > 0
    }

    fn is_fastest(&self) -> bool {
        self.halvings >= MAX_HALVINGS || self.quickened() <= self.least_sampling
    }

    const fn is_slow(&self) -> bool {
        self.quiet && self.halvings == 0 && !self.blurred
    }

    fn quickened(&self) -> Duration {
        (self.base.sampling / (1 << self.halvings)).max(self.least_sampling)
    }

    /// The pace for now.
    #[must_use]
    pub fn pace(&self) -> Pace {
        if self.is_slow() {
            // Reports come more often than looks, so that a change is soon noticed. Fewer regions pay for
            // them.
            let sampling = self.base.sampling * self.quiet_factor;
            let reports = self.base.aggregation * self.quiet_factor / REST_REPORTS;
            return Pace {
                sampling,
                aggregation: reports.max(sampling * REST_LOOKS),
                max_regions: (self.base.max_regions / 4 * 3).max(LEAST_REGIONS),
                turns: None,
            };
        }
        let turns = Turns {
            watch: self.base.aggregation * WATCHED_AGGREGATIONS,
            rest: self.base.aggregation * self.quiet_factor.saturating_sub(1),
        };
        Pace {
            sampling: self.quickened(),
            // Reports keep coming as they did: more looks each, not more reports.
            aggregation: self.base.aggregation,
            max_regions: (self.base.max_regions >> self.halvings).max(LEAST_REGIONS),
            turns: Some(turns).filter(|turns| self.quiet && !turns.rest.is_zero()),
        }
    }

    /// Takes note of what a batch found. Returns the new pace if it changes.
    pub fn observe(&mut self, batch: &SampleBatch) -> Option<Pace> {
        let before = self.pace();
        let wish = wish(batch);
        if wish == 0 || (wish > 0) != (self.agreeing > 0) {
            self.agreeing = 0;
        }
        self.agreeing += wish;
        if self.agreeing.unsigned_abs() <= AGREE {
            return None;
        }
        self.agreeing = 0;
        match wish > 0 {
            true if self.is_slow() => self.blurred = true,
            true if self.is_fastest() => {}
            true => self.halvings += 1,
            false if self.halvings > 0 => self.halvings -= 1,
            false => self.blurred = false,
        }
        Some(self.pace()).filter(|pace| *pace != before)
    }
}

/// 1 to look more often, −1 to look less often, 0 to stay.
fn wish(batch: &SampleBatch) -> i32 {
    if batch.tests == 0 {
        return 0;
    }
    let looks = batch.looks();
    let (mut all, mut saturated, mut used) = (0.0, 0.0, 0.0);
    for sample in &batch.samples {
        let share = (f64::from(sample.weight) / looks).min(1.0);
        let len = sample.len as f64;
        all += len;
        used += len * share;
        if share >= ALMOST {
            saturated += len;
        }
    }
    match all {
        all if all <= 0.0 => 0,
        all if saturated / all > SATURATED => 1,
        all if used / all < ASLEEP => 0,
        all if saturated / all < CLEAR && used / all < CLEAR => -1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        addr::Hva,
        sample::{AccessKind, AccessSample, SampleAccount, SampleAddress, SourceKind},
        time::Time,
    };

    fn keeper() -> PaceKeeper {
        let base = Pace {
            sampling: Duration::from_millis(20),
            aggregation: Duration::from_millis(400),
            max_regions: 2000,
            turns: None,
        };
        PaceKeeper::new(base, Duration::from_millis(1), 5)
    }

    /// A batch in which `used` of 100 regions were found used at every look.
    fn batch(used: usize) -> SampleBatch {
        let sample = |i: usize| AccessSample {
            address: SampleAddress::Host(Hva(i as u64 * 4096)),
            len: 4096,
            weight: if i < used { 20.0 } else { 0.0 },
            kind: AccessKind::Any,
        };
        SampleBatch {
            source: SourceKind::Damon,
            end: Time(0),
            span: Duration::from_millis(400),
            tests: 20,
            period: 1,
            settled: true,
            map_generation: 1,
            samples: (0..100).map(sample).collect(),
            account: SampleAccount::default(),
        }
    }

    #[test]
    fn pace_when_most_is_always_in_use_quickens_at_the_same_cost() {
        let mut keeper = keeper();
        for _ in 0..100 {
            keeper.observe(&batch(80));
        }
        let pace = keeper.pace();
        assert_eq!(pace.sampling, Duration::from_micros(2500));
        assert_eq!(pace.max_regions, 250);
        assert_eq!(pace.aggregation, Duration::from_millis(400));
    }

    #[test]
    fn pace_when_hot_and_cold_can_be_told_apart_stays() {
        let mut keeper = keeper();
        for _ in 0..100 {
            assert_eq!(keeper.observe(&batch(10)), None);
        }
    }

    #[test]
    fn pace_when_little_is_in_use_goes_back_to_the_base_and_stays_while_the_guest_sleeps() {
        let mut keeper = keeper();
        for _ in 0..100 {
            keeper.observe(&batch(80));
        }
        let quickened = keeper.pace();
        for _ in 0..100 {
            assert_eq!(keeper.observe(&batch(0)), None);
        }
        assert_eq!(keeper.pace(), quickened);
        for _ in 0..100 {
            keeper.observe(&batch(1));
        }
        assert_eq!(keeper.pace(), self::keeper().pace());
    }

    #[test]
    fn pace_when_single_batches_differ_does_not_swing() {
        let mut keeper = keeper();
        for _ in 0..100 {
            assert_eq!(keeper.observe(&batch(80)), None);
            assert_eq!(keeper.observe(&batch(10)), None);
        }
    }

    #[test]
    fn pace_when_slow_looks_would_hide_what_is_hot_watches_in_turns() {
        let mut keeper = keeper();
        keeper.set_quiet(true);
        assert!(!keeper.is_settled(&batch(80)));
        for _ in 0..100 {
            keeper.observe(&batch(80));
        }
        let turns = Turns {
            watch: Duration::from_secs(2),
            rest: Duration::from_millis(1600),
        };
        let quickened = Pace {
            sampling: Duration::from_micros(2500),
            aggregation: Duration::from_millis(400),
            max_regions: 250,
            turns: Some(turns),
        };
        assert_eq!(keeper.pace(), quickened);
        assert!(keeper.is_settled(&batch(80)), "as far as it goes");
        keeper.set_quiet(false);
        let always = Pace {
            turns: None,
            ..quickened
        };
        assert_eq!(keeper.pace(), always);
    }

    #[test]
    fn pace_when_quiet_and_little_is_in_use_again_goes_back_to_slow_looks() {
        let mut keeper = keeper();
        keeper.set_quiet(true);
        for used in [80, 1] {
            for _ in 0..100 {
                keeper.observe(&batch(used));
            }
        }
        assert_eq!(keeper.pace().sampling, Duration::from_millis(100));
        assert_eq!(keeper.pace().turns, None);
    }

    #[test]
    fn pace_when_not_to_be_quiet_has_no_turns() {
        let mut keeper = PaceKeeper::new(keeper().base, Duration::from_millis(1), 1);
        keeper.set_quiet(true);
        for _ in 0..100 {
            keeper.observe(&batch(80));
        }
        assert_eq!(keeper.pace().turns, None);
    }

    #[test]
    fn pace_when_it_can_still_quicken_is_not_settled() {
        assert!(!keeper().is_settled(&batch(80)));
    }

    #[test]
    fn pace_when_quiet_is_slower_with_a_quarter_of_the_looks_a_report() {
        let mut keeper = keeper();
        keeper.set_quiet(true);
        let pace = keeper.pace();
        assert_eq!(
            (pace.sampling.as_millis(), pace.aggregation.as_millis()),
            (100, 500)
        );
        assert_eq!(pace.max_regions, 1500);
    }
}
