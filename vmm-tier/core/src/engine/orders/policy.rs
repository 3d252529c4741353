//! The policy: half-life, horizon and rate, and their bounds.

use std::time::Duration;

use crate::heat::{MAX_HALF_LIFE, MIN_HALF_LIFE};

/// The shortest horizon accepted: no move pays back sooner.
pub const MIN_HORIZON: Duration = Duration::from_millis(100);
/// The longest horizon accepted: a week.
pub const MAX_HORIZON: Duration = Duration::from_secs(7 * 24 * 3600);
/// The lowest rate accepted: one page a second. To move nothing, pause.
pub const MIN_RATE: u64 = 4096;
/// The highest rate accepted: 1 TiB a second, more than any memory delivers.
pub const MAX_RATE: u64 = 1 << 40;

/// What is to change; `None` leaves a setting unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyChange {
    /// Time in which the weight of an observation halves: [`MIN_HALF_LIFE`]..=[`MAX_HALF_LIFE`].
    pub half_life: Option<Duration>,
    /// Time over which a move must pay back: [`MIN_HORIZON`]..=[`MAX_HORIZON`].
    pub horizon: Option<Duration>,
    /// Upper bound on bytes moved a second: [`MIN_RATE`]..=[`MAX_RATE`].
    pub rate_bytes_per_s: Option<u64>,
}

/// Why a policy can't be set. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// The half-life is out of bounds.
    #[error("half-life of {} s is out of bounds: {} to {} s are allowed",
        .0.as_secs_f64(), MIN_HALF_LIFE.as_secs_f64(), MAX_HALF_LIFE.as_secs())]
    HalfLife(Duration),
    /// The horizon is out of bounds.
    #[error("horizon of {} s is out of bounds: {} to {} s are allowed",
        .0.as_secs_f64(), MIN_HORIZON.as_secs_f64(), MAX_HORIZON.as_secs())]
    Horizon(Duration),
    /// The rate is out of bounds.
    #[error(
        "rate of {0} bytes/s is out of bounds: {MIN_RATE} to {MAX_RATE} are allowed; \
        pause to move nothing"
    )]
    Rate(u64),
}

crate::report! {
    /// The policy in force.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct PolicySnapshot = "TierPolicy" {
        /// Time in seconds in which an observation loses half of its weight.
        #[metric(gauge = "half_life_seconds")]
        pub half_life_s: f64,
        /// Time in seconds over which a move must pay back.
        #[metric(gauge = "horizon_seconds")]
        pub horizon_s: f64,
        /// Most bytes moved a second.
        #[metric(gauge = "rate_limit_bytes_per_second")]
        pub rate_bytes_per_s: u64,
    }
}

impl PolicyChange {
    /// Checks every part.
    ///
    /// # Errors
    /// The first part that is out of bounds.
    pub fn check(&self) -> Result<(), PolicyError> {
        match *self {
            Self {
                half_life: Some(time),
                ..
            } if !(MIN_HALF_LIFE..=MAX_HALF_LIFE).contains(&time) => {
                Err(PolicyError::HalfLife(time))
            }
            Self {
                horizon: Some(time),
                ..
            } if !(MIN_HORIZON..=MAX_HORIZON).contains(&time) => Err(PolicyError::Horizon(time)),
            Self {
                rate_bytes_per_s: Some(rate),
                ..
            } if !(MIN_RATE..=MAX_RATE).contains(&rate) => Err(PolicyError::Rate(rate)),
            _ => Ok(()),
        }
    }
}
