//! Orders: what an operator wants of one VM, and what must hold for pages to be moved.

pub(crate) mod drain;
pub(crate) mod policy;

use std::sync::Arc;

use self::{
    drain::Drain,
    policy::{PolicyChange, PolicyError, PolicySnapshot},
};
use super::{
    Action, SetMapError,
    pins::pin::{Pin, PinError, PinReport},
};
use crate::{addr::Gpa, map::GuestMemoryMap, settings::EngineSettings};

/// What the engine is ordered to do, and may refuse.
#[derive(Clone, Debug)]
pub enum Order {
    /// Take the guest's memory map, new or changed. Unless the layout is the same as before, all
    /// placements are looked up again; heat of pages that stay is kept.
    Map(Arc<GuestMemoryMap>),
    /// Pause or resume tiering.
    Pause(bool),
    /// Set the most bytes of the fast tier that the VM may hold. This ends a drain.
    Limit(Option<u64>),
    /// Leave the fast tier down to this many bytes, coldest pages first, whatever it costs. The limit
    /// stays there when that is reached. Pages pinned to the fast tier are not drained.
    Drain(u64),
    /// Change the policy. Every page keeps its count; a new rate starts without a burst.
    Policy(PolicyChange),
    /// Pin a range to a tier: its pages are not moved for their heat any more. Pages on the other tier
    /// are moved to this tier before any page that is not pinned, within rate and headroom. Pages that
    /// become present later follow when they are seen. Pins outlive a change of the map.
    ///
    /// Whether the tier has room is a matter of now. With [`WhenFull::Refuse`](super::WhenFull::Refuse)
    /// and [`WhenFull::Demote`](super::WhenFull::Demote) the whole range must fit, absent pages too, but
    /// no room is set aside for it.
    Pin(Pin),
    /// Set pins that were set before, as if they had never gone. Room was asked for then, and pages in
    /// their place must not leave because the rest lacks room now. [`Reply::refused`] names the pins
    /// that can't be set.
    PinAgain(Vec<Pin>),
    /// Remove the pins that lie wholly in a range. Their pages stay where they are and take part in
    /// exchanges again.
    Unpin {
        /// The first guest-physical address.
        start: Gpa,
        /// The length.
        bytes: u64,
    },
    /// Remove all pins.
    UnpinAll,
}

/// What an order did, and what is to be done for it. Parts that an order has nothing to do with are
/// empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// What was pinned or unpinned.
    pub pins: PinReport,
    /// Pins of [`Order::PinAgain`] that can't be set, and why.
    pub refused: Vec<(Pin, PinError)>,
    /// What is to be done.
    pub actions: Vec<Action>,
}

/// Why an order is refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The map can't be taken.
    #[error(transparent)]
    Map(#[from] SetMapError),
    /// The policy can't be set.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The range can't be pinned or unpinned.
    #[error(transparent)]
    Pin(#[from] PinError),
}

/// What must hold for pages to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Conditions {
    pub(super) operator_paused: bool,
    pub(super) guest_stopped: bool,
    pub(super) attached: bool,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Orders {
    pub(super) settings: EngineSettings,
    pub(super) conditions: Conditions,
    drain: Option<Drain>,
}

impl Orders {
    pub(super) const fn new(settings: EngineSettings) -> Self {
        Self {
            settings,
            conditions: Conditions {
                operator_paused: false,
                guest_stopped: false,
                attached: true,
            },
            drain: None,
        }
    }

    /// Sets the limit; a drain ends.
    pub(super) const fn set_limit(&mut self, limit: Option<u64>) {
        self.settings.fast_limit_bytes = limit;
        self.drain = None;
    }

    /// Begins a drain. `fast_bytes` is `None` before all pages were looked up once.
    pub(super) fn begin_drain(&mut self, target_bytes: u64, fast_bytes: Option<u64>) {
        self.settings.fast_limit_bytes = Some(target_bytes);
        self.drain = Some(Drain::new(target_bytes, fast_bytes));
    }

    /// The drain, if one was asked for since the limit was set last.
    pub(super) const fn drain(&self) -> Option<&Drain> {
        self.drain.as_ref()
    }

    pub(super) const fn drain_mut(&mut self) -> Option<&mut Drain> {
        self.drain.as_mut()
    }

    /// The policy in force.
    pub(super) fn policy(&self) -> PolicySnapshot {
        PolicySnapshot {
            half_life_s: self.settings.half_life.as_secs_f64(),
            horizon_s: self.settings.horizon.as_secs_f64(),
            rate_bytes_per_s: self.settings.rate_bytes_per_s,
        }
    }

    /// Sets what of the settings a policy changes, without a check.
    pub(super) fn change_policy(&mut self, change: &PolicyChange) {
        let PolicyChange {
            half_life,
            horizon,
            rate_bytes_per_s,
        } = *change;
        let settings = &mut self.settings;
        settings.half_life = half_life.unwrap_or(settings.half_life);
        settings.horizon = horizon.unwrap_or(settings.horizon);
        settings.rate_bytes_per_s = rate_bytes_per_s.unwrap_or(settings.rate_bytes_per_s);
    }

    /// Whether the limit is that of the drain, if there is one.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub(super) fn check(&self) -> Result<(), String> {
        let limit = self.settings.fast_limit_bytes;
        match self.drain.as_ref().map(Drain::target_bytes) {
            Some(target) if limit != Some(target) => {
                Err(format!("a drain to {target} bytes has the limit {limit:?}"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_when_set_while_a_drain_is_on_ends_it() {
        let mut orders = Orders::new(EngineSettings::default());
        orders.begin_drain(4096, Some(8192));
        assert_eq!(orders.settings.fast_limit_bytes, Some(4096));
        assert_eq!(orders.check(), Ok(()));
        orders.set_limit(Some(1 << 20));
        assert!(orders.drain().is_none());
        orders.begin_drain(4096, None);
        orders.settings.fast_limit_bytes = None;
        assert!(orders.check().is_err());
    }

    #[test]
    fn policy_when_a_part_is_changed_keeps_the_others() {
        let mut orders = Orders::new(EngineSettings::default());
        let before = orders.policy();
        orders.change_policy(&PolicyChange {
            rate_bytes_per_s: Some(1 << 20),
            ..PolicyChange::default()
        });
        let expected = PolicySnapshot {
            rate_bytes_per_s: 1 << 20,
            ..before
        };
        assert_eq!(orders.policy(), expected);
    }
}
