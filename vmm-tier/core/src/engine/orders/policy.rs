//! The policy: half-life, horizon and rate, and their bounds.

use std::time::Duration;

use crate::settings::EngineSettings;

/// What is to change; `None` leaves a setting unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyChange {
    /// Time in which the weight of an observation halves: [`EngineSettings::HALF_LIFE`].
    pub half_life: Option<Duration>,
    /// Time over which a move must pay back: [`EngineSettings::HORIZON`].
    pub horizon: Option<Duration>,
    /// Upper bound on bytes moved a second: [`EngineSettings::RATE_BYTES_PER_S`].
    pub rate_bytes_per_s: Option<u64>,
}

/// Why a policy can't be set. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// The half-life is out of bounds.
    #[error("half-life of {} s is out of bounds: {} to {} s are allowed",
        .0.as_secs_f64(), EngineSettings::HALF_LIFE.start().as_secs_f64(),
        EngineSettings::HALF_LIFE.end().as_secs())]
    HalfLife(Duration),
    /// The horizon is out of bounds.
    #[error("horizon of {} s is out of bounds: {} to {} s are allowed",
        .0.as_secs_f64(), EngineSettings::HORIZON.start().as_secs_f64(),
        EngineSettings::HORIZON.end().as_secs())]
    Horizon(Duration),
    /// The rate is out of bounds.
    #[error(
        "rate of {rate} bytes/s is out of bounds: {least} to {most} are allowed; pause to move nothing",
        rate = .0,
        least = EngineSettings::RATE_BYTES_PER_S.start(),
        most = EngineSettings::RATE_BYTES_PER_S.end()
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
            } if !EngineSettings::HALF_LIFE.contains(&time) => Err(PolicyError::HalfLife(time)),
            Self {
                horizon: Some(time),
                ..
            } if !EngineSettings::HORIZON.contains(&time) => Err(PolicyError::Horizon(time)),
            Self {
                rate_bytes_per_s: Some(rate),
                ..
            } if !EngineSettings::RATE_BYTES_PER_S.contains(&rate) => Err(PolicyError::Rate(rate)),
            _ => Ok(()),
        }
    }
}
