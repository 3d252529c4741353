//! The period of a source that samples one event in each period: as many samples as wanted, for no more
//! CPU time than allowed.
//!
//! Events come as fast as the guest runs, so a period is right for a while only. Too much is mended at
//! once and in full; too little only by steps, since a guest that idles must not find a tiny period
//! when it wakes. When the kernel throttles the event, the period doubles, and how low it may go after
//! that comes down slowly.
//!
//! A replay can't tell what this is worth, as its period is fixed. It bounds what the source costs: 1 %
//! of a core unless the operator sets another share.

use std::{ops::RangeInclusive, time::Duration};

/// Time that one judgement takes: long against the bursts of a guest, short against the ten seconds in
/// which a hot set is to be found.
const LOOK: Duration = Duration::from_millis(500);
/// Up to this much above the goal the period stays, so that noise changes nothing.
const ABOVE: f64 = 1.1;
/// Down to this much below the goal the period stays.
const BELOW: f64 = 0.8;
/// Most that the period grows by at a time.
const MOST_GROWTH: f64 = 16.0;
/// Least that it shrinks to at a time.
const MOST_SHRINKING: f64 = 0.5;
/// What is left after each look of the bound that a throttled period set.
const FORGET: f64 = 0.98;

/// What a source may cost and what it is to bring.
#[derive(Clone, Debug, PartialEq)]
pub struct PeriodGoals {
    /// The share of one core that it may take.
    pub budget: f64,
    /// Samples a second that are wanted.
    pub rate: f64,
    /// The periods it may have.
    pub bounds: RangeInclusive<u64>,
    /// Periods are multiples of this.
    pub unit: u64,
    /// CPU time that a record costs outside the source's thread: the interrupt that writes it.
    pub record_cost: Duration,
}

/// What happened since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeriodLook {
    /// Records that the kernel made, also those that were lost.
    pub records: u64,
    /// Those of them that became samples.
    pub samples: u64,
    /// CPU time of the source's thread.
    pub cpu: Duration,
    /// Time that has passed.
    pub wall: Duration,
    /// Times the kernel throttled the event.
    pub throttled: u64,
}

impl PeriodLook {
    fn add(&mut self, other: &Self) {
        self.records = self.records.saturating_add(other.records);
        self.samples = self.samples.saturating_add(other.samples);
        self.cpu = self.cpu.saturating_add(other.cpu);
        self.wall = self.wall.saturating_add(other.wall);
        self.throttled = self.throttled.saturating_add(other.throttled);
    }
}

/// Finds the period. Pure: fed with what happened, asked for the period.
#[derive(Clone, Debug)]
pub struct PeriodGovernor {
    goals: PeriodGoals,
    period: u64,
    /// How many times less everything may be: for a guest at rest.
    ease: u32,
    /// Below this the kernel throttled.
    floor: f64,
    since: PeriodLook,
}

impl PeriodGovernor {
    /// Begins with `period`, made to fit the bounds.
    #[must_use]
    pub fn new(goals: PeriodGoals, period: u64) -> Self {
        let mut governor = Self {
            goals,
            period,
            ease: 1,
            floor: 0.0,
            since: PeriodLook::default(),
        };
        governor.period = governor.fitting(period as f64);
        governor
    }

    /// The period for now.
    #[must_use]
    pub fn period(&self) -> u64 {
        self.period
    }

    /// Takes `ease` times less of everything from now on; 1 for as much as set.
    pub fn set_ease(&mut self, ease: u32) {
        self.ease = ease.max(1);
    }

    /// Takes note of what happened. Returns the new period if it changes.
    pub fn observe(&mut self, look: &PeriodLook) -> Option<u64> {
        self.since.add(look);
        let since = self.since;
        if since.wall < LOOK && since.throttled == 0 {
            return None;
        }
        self.since = PeriodLook::default();
        let wall = since.wall.as_secs_f64();
        if wall <= 0.0 {
            return None;
        }
        let ease = f64::from(self.ease);
        let cost = self.goals.record_cost.as_secs_f64() * since.records as f64;
        let share = (since.cpu.as_secs_f64() + cost) / wall;
        let rate = since.samples as f64 / wall;
        // How many times more than allowed or wanted, by whichever is nearer.
        let much = (share * ease / self.goals.budget).max(rate * ease / self.goals.rate);

        self.floor *= FORGET;
        let factor = if since.throttled > 0 {
            much.clamp(2.0, MOST_GROWTH)
        } else if much > ABOVE {
            much.min(MOST_GROWTH)
        } else if much < BELOW {
            much.sqrt().max(MOST_SHRINKING)
        } else {
            1.0
        };
        let mut next = self.period as f64 * factor;
        if since.throttled > 0 {
            self.floor = next;
        }
        // The floor keeps the period from shrinking; it makes none grow.
        next = next.max(self.floor.min(self.period as f64));
        let next = self.fitting(next);
        if next == self.period {
            return None;
        }
        self.period = next;
        Some(next)
    }

    /// The nearest multiple of the unit within the bounds.
    fn fitting(&self, period: f64) -> u64 {
        let unit = self.goals.unit.max(1);
        let first = self.goals.bounds.start().max(&1).next_multiple_of(unit);
        let last = (self.goals.bounds.end() / unit * unit).max(first);
        // A cast of a float saturates.
        let period = (period.round() as u64).clamp(first, last);
        (period / unit * unit).clamp(first, last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn goals() -> PeriodGoals {
        PeriodGoals {
            budget: 0.01,
            rate: 10_000.0,
            bounds: 1 << 14..=0xF_FFF0,
            unit: 16,
            record_cost: Duration::ZERO,
        }
    }

    /// A source: events a second, the time that a record takes, and the most records a second before the
    /// kernel throttles.
    #[derive(Clone, Copy)]
    struct Simulated {
        events: f64,
        record_nanos: f64,
        limit: f64,
    }

    impl Simulated {
        /// A tenth of a second at this period; four of five records have no address.
        fn look(&self, period: u64) -> PeriodLook {
            let rate = self.events / period as f64;
            let records = rate.min(self.limit) / 10.0;
            PeriodLook {
                records: records as u64,
                samples: (records / 5.0) as u64,
                cpu: Duration::from_nanos((records * self.record_nanos) as u64),
                wall: Duration::from_millis(100),
                throttled: u64::from(rate > self.limit),
            }
        }

        /// Runs for some seconds; the periods of the last one.
        fn run(&self, governor: &mut PeriodGovernor, seconds: usize) -> Vec<u64> {
            let mut periods = Vec::new();
            for _ in 0..seconds * 10 {
                governor.observe(&self.look(governor.period()));
                periods.push(governor.period());
            }
            periods.split_off(periods.len() - 10)
        }

        fn share(&self, period: u64) -> f64 {
            (self.events / period as f64).min(self.limit) * self.record_nanos * 1e-9
        }

        fn rate(&self, period: u64) -> f64 {
            (self.events / period as f64).min(self.limit) / 5.0
        }
    }

    const CHEAP: Simulated = Simulated {
        events: 4e9,
        record_nanos: 50.0,
        limit: 1e5,
    };
    const DEAR: Simulated = Simulated {
        record_nanos: 1000.0,
        ..CHEAP
    };

    #[test]
    fn period_when_records_are_cheap_brings_the_wanted_rate() {
        let mut governor = PeriodGovernor::new(goals(), 1_000_000);
        let last = CHEAP.run(&mut governor, 10);
        let rate = CHEAP.rate(governor.period());
        assert!((8000.0..=11_000.0).contains(&rate), "{rate}");
        assert!(
            last.windows(2).all(|pair| pair[0] == pair[1]),
            "it stays: {last:?}"
        );
    }

    #[test]
    fn period_when_records_are_dear_stays_within_the_budget() {
        let mut governor = PeriodGovernor::new(goals(), 1 << 14);
        let last = DEAR.run(&mut governor, 10);
        let share = DEAR.share(governor.period());
        assert!((0.008..=0.011).contains(&share), "{share}");
        assert!(
            last.windows(2).all(|pair| pair[0] == pair[1]),
            "it stays: {last:?}"
        );
    }

    #[test]
    fn period_when_interrupts_cost_counts_them() {
        let goals = PeriodGoals {
            record_cost: Duration::from_nanos(950),
            ..goals()
        };
        let mut governor = PeriodGovernor::new(goals, 1 << 14);
        CHEAP.run(&mut governor, 10);
        let records = CHEAP.events / governor.period() as f64;
        assert!(
            (8000.0..=11_000.0).contains(&records),
            "{records} of a microsecond each"
        );
    }

    #[test]
    fn period_when_the_guest_wakes_is_within_the_budget_after_one_look() {
        let mut governor = PeriodGovernor::new(goals(), 400_000);
        let idle = Simulated {
            events: 1e5,
            ..DEAR
        };
        idle.run(&mut governor, 60);
        assert_eq!(governor.period(), 1 << 14);
        DEAR.run(&mut governor, 1);
        assert!(DEAR.share(governor.period()) < 0.02);
        DEAR.run(&mut governor, 2);
        assert!(DEAR.share(governor.period()) < 0.011);
    }

    #[test]
    fn period_when_throttled_doubles_at_once_and_comes_back_slowly() {
        let limited = Simulated {
            limit: 20_000.0,
            ..CHEAP
        };
        // 40 000 records a second would bring 8000 samples; the kernel allows half of that.
        let mut governor = PeriodGovernor::new(goals(), 100_000);
        let first = governor.observe(&limited.look(100_000));
        assert_eq!(first, Some(200_000));
        let mut throttled = 0;
        for _ in 0..600 {
            let look = limited.look(governor.period());
            throttled += look.throttled;
            governor.observe(&look);
        }
        // In a minute it tries again a few times and not at every look.
        assert!((1..=12).contains(&throttled), "{throttled}");
        assert!(governor.period() >= 180_000);
    }

    #[test]
    fn period_when_the_guest_rests_brings_less_and_as_much_as_before_after_that() {
        let mut governor = PeriodGovernor::new(goals(), 100_000);
        CHEAP.run(&mut governor, 10);
        let before = governor.period();
        governor.set_ease(5);
        CHEAP.run(&mut governor, 10);
        let rate = CHEAP.rate(governor.period());
        assert!((1500.0..=2200.0).contains(&rate), "{rate}");
        governor.set_ease(1);
        CHEAP.run(&mut governor, 10);
        let after = governor.period();
        assert!(after.abs_diff(before) < before / 3, "{before} then {after}");
    }

    proptest! {
        #[test]
        fn period_when_anything_happens_stays_within_its_bounds(
            looks in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>(), 0u64..3), 1..50),
            start: u64,
            first in any::<u32>(),
            width in any::<u32>(),
            unit in 0u64..100,
        ) {
            let bounds = u64::from(first)..=u64::from(first) + u64::from(width);
            let goals = PeriodGoals { bounds: bounds.clone(), unit, ..goals() };
            let mut governor = PeriodGovernor::new(goals, start);
            for (records, samples, cpu, wall, throttled) in looks {
                let look = PeriodLook {
                    records,
                    samples,
                    cpu: Duration::from_nanos(cpu),
                    wall: Duration::from_nanos(wall),
                    throttled,
                };
                let before = governor.period();
                let next = governor.observe(&look);
                prop_assert_eq!(next.unwrap_or(before), governor.period());
                let unit = unit.max(1);
                prop_assert_eq!(governor.period() % unit, 0);
                prop_assert!(governor.period() >= *bounds.start());
                // A unit that fits nowhere between the bounds wins over the upper one.
                let most = (*bounds.end()).max(bounds.start().max(&1).next_multiple_of(unit));
                prop_assert!(governor.period() <= most);
            }
        }
    }
}
