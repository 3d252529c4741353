//! How closely a source that tests pages looks: often enough to tell hot from warm, within a budget.
//!
//! An accessed bit says that a page was used since the last look, not how often. Where looks are far
//! apart, or pages are huge, everything in use is found used at every look, and nothing can be told
//! apart. The pace then halves the time between looks, and halves the number of regions with it, so
//! that the looks a second, which are what the source costs, stay the same. Where little is found in
//! use it goes back.

use std::time::Duration;

use crate::sample::SampleBatch;

/// Above this share of the guest found used at (almost) every look, looks come too seldom.
const SATURATED: f64 = 0.4;
/// Below this share, and with little in use at all, they may come less often again.
const CLEAR: f64 = 0.02;
/// "Almost every look": a page used at 19 of 20.
const ALMOST: f32 = 0.95;
/// Batches that must agree before the pace changes: the first one after a change may span both paces.
const AGREE: u32 = 1;
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
}

/// Finds the pace. Pure: fed with batches, asked for the pace.
#[derive(Clone, Debug)]
pub struct PaceKeeper {
    base: Pace,
    least_sampling: Duration,
    quiet_factor: u32,
    quiet: bool,
    halvings: u32,
    agreeing: i32,
}

impl PaceKeeper {
    /// Begins at `base`; looks never come closer than `least_sampling`, and `quiet_factor` times
    /// further apart while [quiet](Self::set_quiet).
    #[must_use]
    pub const fn new(base: Pace, least_sampling: Duration, quiet_factor: u32) -> Self {
        Self {
            base,
            least_sampling,
            quiet_factor,
            quiet: false,
            halvings: 0,
            agreeing: 0,
        }
    }

    /// Whether nothing is to be done and the guest may be watched less closely. Where that would hide
    /// what is hot, the pace comes back to what it needs.
    pub fn set_quiet(&mut self, quiet: bool) {
        self.quiet = quiet;
        self.agreeing = 0;
        self.halvings = self.halvings.min(self.most_halvings());
    }

    /// Whether looks come often enough to tell hot from warm, as far as they ever will. What was
    /// observed before is no ground to move pages.
    #[must_use]
    pub fn is_settled(&self, batch: &SampleBatch) -> bool {
        wish(batch) <= 0 || self.is_fastest()
    }

    fn is_fastest(&self) -> bool {
        self.halvings >= self.most_halvings() || self.pace().sampling <= self.fastest()
    }

    fn fastest(&self) -> Duration {
        (self.base.sampling / (1 << MAX_HALVINGS)).max(self.least_sampling)
    }

    /// While quiet there is further to go.
    const fn most_halvings(&self) -> u32 {
        let slower = if self.quiet {
            self.quiet_factor.next_power_of_two().ilog2()
        } else {
            0
        };
        MAX_HALVINGS + slower
    }

    /// The pace for now.
    #[must_use]
    pub fn pace(&self) -> Pace {
        let slower = if self.quiet { self.quiet_factor } else { 1 };
        let sampling = (self.base.sampling * slower / (1 << self.halvings)).max(self.fastest());
        let tests =
            (self.base.aggregation.as_nanos() / self.base.sampling.as_nanos().max(1)).max(1);
        let tests = u32::try_from(tests).unwrap_or(u32::MAX);
        // Reports keep coming at the base's rate when looks come closer: more looks each, not more reports.
        let aggregation = (sampling * tests).max(self.base.aggregation);
        // At rest, looks that may not come less often are made at fewer places.
        let coarser = self.halvings.min(MAX_HALVINGS + 1);
        Pace {
            sampling,
            aggregation,
            max_regions: (self.base.max_regions >> coarser).max(20),
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
        self.halvings = match wish > 0 {
            true if self.is_fastest() => self.halvings,
            true => self.halvings + 1,
            false => self.halvings.saturating_sub(1),
        };
        Some(self.pace()).filter(|pace| *pace != before)
    }
}

/// 1 to look more often, −1 to look less often, 0 to stay.
fn wish(batch: &SampleBatch) -> i32 {
    if batch.tests == 0 {
        return 0;
    }
    let (mut all, mut saturated, mut used) = (0.0, 0.0, 0.0);
    for sample in &batch.samples {
        let share = (sample.weight / batch.tests as f32).min(1.0);
        let len = sample.len as f64;
        all += len;
        used += len * f64::from(share);
        if share >= ALMOST {
            saturated += len;
        }
    }
    match all {
        all if all <= 0.0 => 0,
        all if saturated / all > SATURATED => 1,
        all if saturated / all < CLEAR && used / all < CLEAR => -1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        addr::Hva,
        sample::{AccessKind, AccessSample, SampleAccount, SampleAddress},
        time::Time,
    };

    fn keeper() -> PaceKeeper {
        let base = Pace {
            sampling: Duration::from_millis(20),
            aggregation: Duration::from_millis(400),
            max_regions: 2000,
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
            end: Time(0),
            span: Duration::from_millis(400),
            tests: 20,
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
    fn pace_when_the_guest_falls_idle_goes_back_to_the_base() {
        let mut keeper = keeper();
        for _ in 0..100 {
            keeper.observe(&batch(80));
        }
        for _ in 0..100 {
            keeper.observe(&batch(0));
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
    fn pace_when_quiet_would_hide_what_is_hot_comes_back() {
        let mut keeper = keeper();
        for quiet in [false, true, false] {
            keeper.set_quiet(quiet);
            assert!(keeper.is_settled(&batch(10)));
            for _ in 0..100 {
                keeper.observe(&batch(80));
            }
            assert_eq!(
                keeper.pace().sampling,
                Duration::from_micros(2500),
                "quiet: {quiet}"
            );
            assert!(keeper.is_settled(&batch(80)), "as far as it goes");
        }
    }

    #[test]
    fn pace_when_it_can_still_quicken_is_not_settled() {
        assert!(!keeper().is_settled(&batch(80)));
    }

    #[test]
    fn pace_when_quiet_is_slower_with_as_many_looks_a_report() {
        let mut keeper = keeper();
        keeper.set_quiet(true);
        let pace = keeper.pace();
        assert_eq!(
            (pace.sampling.as_millis(), pace.aggregation.as_millis()),
            (100, 2000)
        );
        assert_eq!(pace.max_regions, 2000);
    }
}
