//! The clock of a simulated guest: ticks, the shortest time between two looks.

use std::time::Duration;

use tier_core::time::Time;

/// A number of ticks, or a time in ticks since the start.
pub(crate) type Ticks = u32;

/// The quickest pace of the agent's source looks each 2.5 ms: three halvings of 20 ms.
pub(crate) const TICK: Duration = Duration::from_micros(2500);

const TICK_NS: u64 = TICK.as_nanos() as u64;

/// Whole ticks in a duration.
pub(crate) const fn ticks(duration: Duration) -> Ticks {
    (duration.as_nanos() as u64 / TICK_NS) as Ticks
}

/// How long so many ticks take.
pub(crate) const fn duration(ticks: Ticks) -> Duration {
    Duration::from_nanos(ticks as u64 * TICK_NS)
}

/// The engine's time.
pub(crate) const fn time(now: Ticks) -> Time {
    Time(now as u64 * TICK_NS)
}

/// The tick in which something at `time` happens: they are numbered from 1 on, by their ends.
pub(crate) const fn tick_of(time: Time) -> Ticks {
    (time.0 / TICK_NS) as Ticks + 1
}

/// Seconds.
pub(crate) const fn seconds(ticks: Ticks) -> f64 {
    ticks as f64 * TICK.as_secs_f64()
}
