//! Exchanges slowed down: one mechanism for several reasons.
//!
//! Whoever has a reason ([`super::ping_pong`], [`super::strain`]) names a rate, once a second, and the
//! lowest holds. Orders (limit, drain, pins) are not slowed.

use super::throttle::Throttle;
use crate::{settings::EngineSettings, time::Time};

crate::words! {
    /// Why exchanges are slowed down.
    pub enum BrakeReason {
        /// Pages that were moved come back.
        PingPong = "ping-pong",
        /// Tasks of the host wait for memory.
        MemoryPressure = "memory-pressure",
        /// The guest's CPUs run less while pages move.
        GuestPace = "guest-pace",
    }
}

crate::report! {
    /// Exchanges slowed down: pages that were moved come back, tasks of the host wait for memory, or the
    /// guest's CPUs run less while pages move.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Brake = "TierBrake" {
        /// Bytes that exchanges may move in a second.
        #[metric(gauge = "brake_rate_bytes", help = "Bytes that exchanges may move in a second, while they are slowed down")]
        pub rate_bytes_per_s: u64,
        /// Share of the moved bytes that came back, when it was looked at last; 0 if that is no reason.
        #[metric(gauge = "brake_returned_ratio")]
        pub returned_share: f64,
        /// Why.
        #[metric(exempt = "text; `vmm_tier_brake_rate_bytes` says that it is so, `vmm_tier_slowdowns_total` for what reason")]
        pub reason: String,
    }
}

impl Brake {
    /// Both brakes together: the lower rate holds.
    pub(super) fn with(self, other: Option<Self>) -> Self {
        match other {
            None => self,
            Some(other) => Self {
                rate_bytes_per_s: self.rate_bytes_per_s.min(other.rate_bytes_per_s),
                returned_share: self.returned_share.max(other.returned_share),
                reason: format!("{}; {}", self.reason, other.reason),
            },
        }
    }
}

/// A rate at which exchanges may go.
#[derive(Debug)]
pub(super) struct Slowed {
    throttle: Throttle,
    pub(super) rate_bytes_per_s: u64,
}

impl Slowed {
    /// Sets the rate from `now` on; `None` or the rate that is set anyway, or more, slows nothing.
    pub(super) fn set(
        slot: &mut Option<Self>,
        now: Time,
        rate: Option<u64>,
        settings: &EngineSettings,
    ) {
        match (
            rate.filter(|&rate| rate < settings.rate_bytes_per_s),
            &mut *slot,
        ) {
            (None, slot) => *slot = None,
            (Some(rate), Some(slowed)) => {
                if slowed.rate_bytes_per_s != rate {
                    slowed.throttle.set_rate(now, rate, settings.batch_bytes);
                    slowed.rate_bytes_per_s = rate;
                }
            }
            (Some(rate_bytes_per_s), slot) => {
                let settings = EngineSettings {
                    rate_bytes_per_s,
                    ..settings.clone()
                };
                let mut throttle = Throttle::new(&settings, now);
                // Without a burst.
                throttle.take(now, settings.batch_bytes);
                *slot = Some(Self {
                    throttle,
                    rate_bytes_per_s,
                });
            }
        }
    }

    /// Of `budget` bytes what exchanges may have now; `None` if it is too early for any.
    pub(super) fn budget(slot: &mut Option<Self>, now: Time, budget: u64) -> Option<u64> {
        match slot {
            None => Some(budget),
            Some(slowed) => Some(slowed.throttle.budget(now)?.min(budget)),
        }
    }

    /// Takes the bytes of an exchange.
    pub(super) fn take(slot: &mut Option<Self>, now: Time, bytes: u64) {
        if let Some(slowed) = slot {
            slowed.throttle.take(now, bytes);
        }
    }
}
