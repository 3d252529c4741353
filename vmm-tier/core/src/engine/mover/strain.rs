//! A pace that gives way: exchanges slow down where the host's tasks wait for memory, or where the
//! guest's CPUs run less while pages move.
//!
//! Once a second the rate of exchanges halves under strain, from what was moved in that second, down to
//! a 16th of the rate that is set. It doubles where there is none. Strain is one of two:
//!
//! - Memory pressure, as the kernel tells it (PSI, kernel/sched/psi.c): the share of the last 10 s in
//!   which some task waited for memory. Exchanges slow down from 20 % on and recover below 10 %. Reclaim
//!   that keeps a full node at its watermarks makes some percent; systemd-oomd kills from 60 % on.
//! - The guest's pace: its CPUs ran less than half as long as on average while nothing moved. They
//!   recover above three quarters. The average follows slowly while pages move, so a guest that rests by
//!   itself is no strain for long.
//!
//! Traffic below a 64th of the rate that is set is left alone: it is not the cause. None of this is
//! worth anything in a replay, which has neither pressure nor a guest that moves slow down: it bounds
//! harm.

use std::{collections::BTreeMap, time::Duration};

use super::brake::{Brake, BrakeReason, Slowed};
use crate::{settings::EngineSettings, text::size::human, time::Time};

/// How often the rate changes at most.
const REVIEW: Duration = Duration::from_millis(900);
/// The share of time waited for memory from which on exchanges slow down.
const HIGH: f64 = 0.2;
/// The share below which they recover.
const LOW: f64 = 0.1;
/// The share of its usual pace below which exchanges slow down.
const SLOW: f64 = 0.5;
/// The share above which they recover.
const EASY: f64 = 0.75;
/// Of the rate that is set the part below which exchanges are not slowed.
const FLOOR: u64 = 16;
/// Of the rate that is set the part that is left alone.
const HARMLESS: u64 = 64;
/// A guest whose CPUs run for less than this share of one CPU has no pace.
const LEAST_CPUS: f64 = 0.05;
/// How much of a second's pace goes into the average while nothing moves, and while pages move.
const WEIGHTS: [f64; 2] = [1.0 / 8.0, 1.0 / 64.0];

/// How the host and the guest do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Strain {
    /// The share of the last 10 s in which some task waited for memory, on the host or in QEMU's control
    /// group, whichever is larger; `None` if it was not read.
    pub memory_pressure: Option<f64>,
    /// How many CPUs' time the guest's CPUs used in the last second; `None` if it is not known.
    pub guest_cpus: Option<f64>,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct StrainBrake {
    reviewed_at: Time,
    /// Bytes moved before that.
    moved_bytes: u64,
    /// CPUs that the guest uses on average.
    usual_cpus: Option<f64>,
    /// The guest was stopped or went on since then: its CPUs ran for a part of the time only.
    was_interrupted: bool,
    slowed: Option<Slowed>,
    /// Why, when exchanges slowed down last.
    why: Option<(BrakeReason, f64)>,
    /// Times that exchanges slowed down, by reason.
    pub(crate) slowdowns: BTreeMap<BrakeReason, u64>,
}

impl StrainBrake {
    pub(super) const fn new(now: Time) -> Self {
        Self {
            reviewed_at: now,
            moved_bytes: 0,
            usual_cpus: None,
            was_interrupted: false,
            slowed: None,
            why: None,
            slowdowns: BTreeMap::new(),
        }
    }

    /// Slows exchanges down or lets them recover. So far `moved_bytes` were moved.
    pub(super) fn review(
        &mut self,
        now: Time,
        strain: Strain,
        moved_bytes: u64,
        settings: &EngineSettings,
    ) {
        let since = now.since(self.reviewed_at);
        if since < REVIEW {
            return;
        }
        self.reviewed_at = now;
        let moved =
            moved_bytes.saturating_sub(std::mem::replace(&mut self.moved_bytes, moved_bytes));
        let a_second = (moved as f64 / since.as_secs_f64()) as u64;
        let set = settings.rate_bytes_per_s;
        let is_moving = a_second >= (set / HARMLESS).max(1);
        let was_interrupted = std::mem::take(&mut self.was_interrupted);
        let cpus = strain.guest_cpus.filter(|_| !was_interrupted);
        let pace = self.pace(cpus, is_moving);
        let pressure = strain.memory_pressure.unwrap_or(0.0);
        let why = match pace {
            _ if pressure >= HIGH => Some((BrakeReason::MemoryPressure, pressure)),
            Some(pace) if pace < SLOW => Some((BrakeReason::GuestPace, pace)),
            _ => None,
        };
        let rate = self.slowed.as_ref().map(|slowed| slowed.rate_bytes_per_s);
        let is_calm = pressure < LOW && pace.is_none_or(|pace| pace >= EASY);
        let rate = match (why.filter(|_| is_moving), rate) {
            (Some(why), rate) => {
                self.why = Some(why);
                *self.slowdowns.entry(why.0).or_default() += 1;
                Some((rate.unwrap_or(a_second) / 2).max(set / FLOOR).max(1))
            }
            (None, Some(rate)) if is_calm => Some(rate.saturating_mul(2)),
            (None, rate) => rate,
        };
        Slowed::set(&mut self.slowed, now, rate, settings);
    }

    /// The guest was stopped or goes on: what its CPUs used until the next review is no pace.
    pub(crate) const fn interrupt(&mut self) {
        self.was_interrupted = true;
    }

    /// Slows nothing down until strain is told of again.
    pub(crate) fn end(&mut self) {
        self.slowed = None;
    }

    /// The guest's pace as a share of its usual pace, which it takes note of.
    fn pace(&mut self, cpus: Option<f64>, is_moving: bool) -> Option<f64> {
        let cpus = cpus.filter(|cpus| cpus.is_finite() && *cpus >= 0.0)?;
        let Some(usual) = &mut self.usual_cpus else {
            // The first pace is that of a guest whose pages did not move yet.
            self.usual_cpus = (!is_moving).then_some(cpus);
            return None;
        };
        let pace = (*usual >= LEAST_CPUS).then(|| cpus / *usual);
        *usual += (cpus - *usual) * WEIGHTS[usize::from(is_moving)];
        pace
    }

    /// Of `budget` bytes what exchanges may have now; `None` if it is too early for any.
    pub(super) fn budget(&mut self, now: Time, budget: u64) -> Option<u64> {
        Slowed::budget(&mut self.slowed, now, budget)
    }

    /// Takes the bytes of an exchange.
    pub(super) fn take(&mut self, now: Time, bytes: u64) {
        Slowed::take(&mut self.slowed, now, bytes);
    }

    /// How exchanges are slowed; `None` if they are not.
    pub(super) fn brake(&self, settings: &EngineSettings) -> Option<Brake> {
        let (slowed, (reason, share)) = self.slowed.as_ref().zip(self.why)?;
        let percent = share * 100.0;
        let why = match reason {
            BrakeReason::GuestPace => {
                format!("the guest's CPUs ran {percent:.0} % of their usual time while pages moved")
            }
            _ => format!("tasks waited for memory {percent:.0} % of the time (PSI)"),
        };
        Some(Brake {
            rate_bytes_per_s: slowed.rate_bytes_per_s,
            returned_share: 0.0,
            reason: format!(
                "{why}, so exchanges go at {} a second instead of {}",
                human(slowed.rate_bytes_per_s),
                human(settings.rate_bytes_per_s)
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    struct Guest {
        brake: StrainBrake,
        now: Time,
        moved: u64,
    }

    impl Guest {
        fn new() -> Self {
            Self {
                brake: StrainBrake::new(Time(0)),
                now: Time(0),
                moved: 0,
            }
        }

        /// A second in which so many MiB move. Returns the rate in MiB.
        fn second(&mut self, mib: u64, pressure: Option<f64>, cpus: f64) -> Option<u64> {
            self.now = self.now + Duration::from_secs(1);
            self.moved += mib * MIB;
            let strain = Strain {
                memory_pressure: pressure,
                guest_cpus: Some(cpus),
            };
            self.brake
                .review(self.now, strain, self.moved, &EngineSettings::default());
            Some(
                self.brake
                    .brake(&EngineSettings::default())?
                    .rate_bytes_per_s
                    / MIB,
            )
        }
    }

    #[test]
    fn exchanges_when_tasks_wait_for_memory_halve_down_to_a_floor_and_recover() {
        let mut guest = Guest::new();
        assert_eq!(guest.second(200, Some(0.15), 1.0), None);
        // Half of what was moved; a 16th of the 256 MiB/s that are set is the floor.
        for (moved, expected) in [(200, 100), (100, 50), (50, 25), (25, 16), (16, 16)] {
            assert_eq!(guest.second(moved, Some(0.3), 1.0), Some(expected));
        }
        let brake = guest.brake.brake(&EngineSettings::default()).unwrap();
        assert_eq!(
            brake.reason,
            "tasks waited for memory 30 % of the time (PSI), so exchanges go at 16 MiB a second instead of 256 MiB"
        );
        assert_eq!(
            guest.second(16, Some(0.15), 1.0),
            Some(16),
            "between the bounds"
        );
        for expected in [32, 64, 128] {
            assert_eq!(guest.second(16, Some(0.01), 1.0), Some(expected));
        }
        assert_eq!(guest.second(16, Some(0.01), 1.0), None);
        assert_eq!(
            guest.brake.slowdowns,
            BTreeMap::from([(BrakeReason::MemoryPressure, 5)])
        );
    }

    #[test]
    fn exchanges_when_the_guest_runs_less_while_pages_move_slow_down() {
        let mut guest = Guest::new();
        for _ in 0..5 {
            assert_eq!(guest.second(0, None, 4.0), None);
        }
        assert_eq!(guest.second(200, None, 3.0), None);
        assert_eq!(guest.second(200, None, 1.5), Some(100));
        let brake = guest.brake.brake(&EngineSettings::default()).unwrap();
        assert!(
            brake.reason.starts_with("the guest's CPUs ran 38 %"),
            "{}",
            brake.reason
        );
        assert_eq!(
            guest.second(100, None, 2.8),
            Some(100),
            "between the bounds"
        );
        assert_eq!(guest.second(100, None, 3.5), Some(200));
        assert_eq!(guest.second(100, None, 3.5), None);
    }

    #[test]
    fn exchanges_when_little_moves_are_not_the_cause() {
        let mut guest = Guest::new();
        for _ in 0..20 {
            // 256 MiB/s are set: 3 MiB are less than a 64th.
            assert_eq!(guest.second(3, Some(0.9), 4.0), None);
        }
        assert_eq!(guest.second(3, Some(0.9), 0.1), None, "a guest that rests");
    }

    #[test]
    fn guest_when_it_rests_by_itself_while_pages_move_is_no_strain_for_long() {
        let mut guest = Guest::new();
        guest.second(0, None, 4.0);
        assert!(guest.second(200, None, 1.0).is_some());
        let seconds = (0..600).find(|_| guest.second(16, None, 1.0).is_none());
        assert!(seconds.is_some_and(|seconds| seconds < 180), "{seconds:?}");
    }

    #[test]
    fn guest_when_it_was_stopped_for_a_part_of_a_second_is_no_strain() {
        let mut guest = Guest::new();
        for _ in 0..5 {
            guest.second(0, None, 4.0);
        }
        guest.brake.interrupt();
        assert_eq!(guest.second(200, None, 0.4), None, "stopped for 0.9 s");
        // Half of what it uses otherwise: the second that was cut short is no part of the average.
        assert_eq!(guest.second(200, None, 2.0), None);
        assert_eq!(guest.second(200, None, 1.9), Some(100));
    }

    #[test]
    fn exchanges_when_nothing_is_known_are_not_slowed() {
        let mut guest = Guest::new();
        for cpus in [f64::NAN, f64::INFINITY, -1.0, 0.0, 0.0, 0.01] {
            assert_eq!(guest.second(200, None, cpus), None);
        }
    }

    proptest! {
        #[test]
        fn rate_when_strain_is_anything_stays_between_the_floor_and_what_is_set(
            seconds in prop::collection::vec((0..400_u64, prop::option::of(0.0..2.0_f64), 0.0..9.0_f64), 0..80),
        ) {
            let mut guest = Guest::new();
            for (mib, pressure, cpus) in seconds {
                let rate = guest.second(mib, pressure, cpus);
                prop_assert!(rate.is_none_or(|rate| (16..256).contains(&rate)), "{:?}", rate);
            }
            // Without strain it ends.
            let freed = (0..400).any(|_| guest.second(0, Some(0.0), 1.0).is_none());
            prop_assert!(freed);
        }
    }
}
