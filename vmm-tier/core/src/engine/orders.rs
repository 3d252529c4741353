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
    /// Set the most bytes of the fast tier that the operator lets the VM hold. This ends a drain.
    Limit(Option<u64>),
    /// Set what the host grants the VM, beside what the operator does. The lesser is in force.
    Grant(HostGrant),
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

/// What the host grants a VM. `None` is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostGrant {
    /// Most bytes of the fast tier.
    pub share_bytes: Option<u64>,
    /// Most bytes moved a second. Brought into [`EngineSettings::RATE_BYTES_PER_S`].
    pub rate_bytes_per_s: Option<u64>,
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

/// What the operator grants a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OperatorBounds {
    limit_bytes: Option<u64>,
    rate_bytes_per_s: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Orders {
    /// In force: limit and rate are the lesser of the operator's and the host's.
    pub(super) settings: EngineSettings,
    operator: OperatorBounds,
    grant: HostGrant,
    pub(super) conditions: Conditions,
    drain: Option<Drain>,
}

impl Orders {
    pub(super) const fn new(settings: EngineSettings) -> Self {
        Self {
            operator: OperatorBounds {
                limit_bytes: settings.fast_limit_bytes,
                rate_bytes_per_s: settings.rate_bytes_per_s,
            },
            grant: HostGrant {
                share_bytes: None,
                rate_bytes_per_s: None,
            },
            settings,
            conditions: Conditions {
                operator_paused: false,
                guest_stopped: false,
                attached: true,
            },
            drain: None,
        }
    }

    /// Sets the operator's limit; a drain ends.
    pub(super) fn set_limit(&mut self, limit: Option<u64>) {
        self.operator.limit_bytes = limit;
        self.drain = None;
        self.put_in_force();
    }

    /// The operator's limit.
    pub(super) const fn operator_limit(&self) -> Option<u64> {
        self.operator.limit_bytes
    }

    /// Sets what the host grants; a drain goes on.
    pub(super) fn set_grant(&mut self, grant: HostGrant) {
        self.grant = grant;
        self.put_in_force();
    }

    /// Puts the lesser of the operator's and the host's bounds in force.
    fn put_in_force(&mut self) {
        let rates = EngineSettings::RATE_BYTES_PER_S;
        let granted = self.grant.rate_bytes_per_s.unwrap_or(*rates.end());
        let granted = granted.clamp(*rates.start(), *rates.end());
        self.settings.rate_bytes_per_s = self.operator.rate_bytes_per_s.min(granted);
        let limits = [self.operator.limit_bytes, self.grant.share_bytes];
        self.settings.fast_limit_bytes = limits.into_iter().flatten().min();
    }

    /// Begins a drain. `fast_bytes` is `None` before all pages were looked up once.
    pub(super) fn begin_drain(&mut self, target_bytes: u64, fast_bytes: Option<u64>) {
        self.set_limit(Some(target_bytes));
        self.drain = Some(Drain::new(target_bytes, fast_bytes));
    }

    /// The drain, if one was asked for since the limit was set last.
    pub(super) const fn drain(&self) -> Option<&Drain> {
        self.drain.as_ref()
    }

    pub(super) const fn drain_mut(&mut self) -> Option<&mut Drain> {
        self.drain.as_mut()
    }

    /// The policy that is set; the host's grant may bind before its rate does.
    pub(super) fn policy(&self) -> PolicySnapshot {
        PolicySnapshot {
            half_life_s: self.settings.half_life.as_secs_f64(),
            horizon_s: self.settings.horizon.as_secs_f64(),
            rate_bytes_per_s: self.operator.rate_bytes_per_s,
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
        let operator = &mut self.operator;
        operator.rate_bytes_per_s = rate_bytes_per_s.unwrap_or(operator.rate_bytes_per_s);
        self.put_in_force();
    }

    /// Whether the operator's limit is that of the drain, if there is one, and nothing in force is above
    /// what the operator or the host grants.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub(super) fn check(&self) -> Result<(), String> {
        let in_force = self.settings.fast_limit_bytes;
        let bounds = [self.operator.limit_bytes, self.grant.share_bytes];
        if bounds.into_iter().flatten().min() != in_force {
            return Err(format!(
                "of the bounds {bounds:?}, {in_force:?} is in force"
            ));
        }
        let limit = self.operator.limit_bytes;
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
    fn bounds_when_operator_and_host_set_them_are_the_lesser_of_both() {
        let settings = EngineSettings {
            fast_limit_bytes: Some(8 << 20),
            ..EngineSettings::default()
        };
        let own_rate = settings.rate_bytes_per_s;
        let mut orders = Orders::new(settings);
        let grant = |share_bytes, rate_bytes_per_s| HostGrant {
            share_bytes,
            rate_bytes_per_s,
        };
        let in_force = |orders: &Orders| {
            assert_eq!(orders.check(), Ok(()));
            let settings = &orders.settings;
            (settings.fast_limit_bytes, settings.rate_bytes_per_s)
        };

        orders.set_grant(grant(Some(2 << 20), Some(1 << 20)));
        assert_eq!(in_force(&orders), (Some(2 << 20), 1 << 20));
        assert_eq!(orders.policy().rate_bytes_per_s, own_rate, "the operator's");
        orders.set_grant(grant(Some(u64::MAX), Some(u64::MAX)));
        assert_eq!(in_force(&orders), (Some(8 << 20), own_rate));
        orders.set_grant(grant(Some(0), Some(0)));
        let least = *EngineSettings::RATE_BYTES_PER_S.start();
        assert_eq!(in_force(&orders), (Some(0), least), "moves go on");

        // A drain ends below the lesser of its target and the share.
        orders.set_grant(grant(Some(2 << 20), None));
        orders.begin_drain(4 << 20, Some(8 << 20));
        assert_eq!(in_force(&orders), (Some(2 << 20), own_rate));
        orders.set_grant(HostGrant::default());
        assert_eq!(in_force(&orders), (Some(4 << 20), own_rate));
        assert!(orders.drain().is_some());
        orders.set_limit(None);
        assert_eq!(in_force(&orders), (None, own_rate));
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
