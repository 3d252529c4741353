//! What commands have set: what is absent is as the command line and the configuration say.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tier_core::{
    engine::{MAX_PINS, Pin, PolicyChange},
    settings::PolicyName,
};

tier_core::words! {
    /// A kind of setting that commands make.
    pub(in crate::agent) enum SettingKind {
        /// `tier-pause`.
        Paused = "paused",
        /// `tier-set-limit`, `tier-drain`.
        Limit = "limit",
        /// `tier-set-policy`.
        Policy = "policy",
        /// `tier-pin`.
        Pins = "pins",
    }
}

/// What commands have set of one VM's tiering.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(in crate::agent) struct Overrides {
    /// Moves pause until an operator says otherwise.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(in crate::agent) paused: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::agent) limit: Option<LimitOverride>,
    #[serde(skip_serializing_if = "PolicyOverride::is_empty")]
    pub(in crate::agent) policy: PolicyOverride,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(in crate::agent) pins: Vec<Pin>,
}

impl Overrides {
    /// What is set.
    pub(in crate::agent) fn what(&self) -> Vec<SettingKind> {
        let set = [
            (self.paused, SettingKind::Paused),
            (self.limit.is_some(), SettingKind::Limit),
            (!self.policy.is_empty(), SettingKind::Policy),
            (!self.pins.is_empty(), SettingKind::Pins),
        ];
        let set = set.into_iter().filter(|(is_set, _)| *is_set);
        set.map(|(_, what)| what).collect()
    }

    /// Checks what does not hang on the guest.
    ///
    /// # Errors
    /// What is out of bounds, for a person.
    pub(in crate::agent) fn check(&self) -> Result<(), String> {
        if self.pins.len() > MAX_PINS {
            let pins = self.pins.len();
            return Err(format!("it has {pins} pins, more than {MAX_PINS}"));
        }
        self.policy.change().map(|_| ())
    }
}

/// A limit that was set; it may have been set to none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(in crate::agent) struct LimitOverride {
    /// Most bytes of the fast tier; `null` for no limit.
    pub(in crate::agent) bytes: Option<u64>,
}

/// What was set of the policy. The same as the arguments of `tier-set-policy`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(in crate::agent) struct PolicyOverride {
    /// The policy's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::agent) policy: Option<String>,
    /// In seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::agent) half_life: Option<f64>,
    /// In seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::agent) horizon: Option<f64>,
    /// In bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::agent) rate: Option<u64>,
}

impl PolicyOverride {
    /// Whether nothing is set.
    pub(in crate::agent) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// This, with what `later` sets instead.
    pub(in crate::agent) fn with(self, later: Self) -> Self {
        Self {
            policy: later.policy.or(self.policy),
            half_life: later.half_life.or(self.half_life),
            horizon: later.horizon.or(self.horizon),
            rate: later.rate.or(self.rate),
        }
    }

    /// As the engine takes it, checked.
    ///
    /// # Errors
    /// Which part is out of bounds, and the bounds.
    pub(in crate::agent) fn change(&self) -> Result<PolicyChange, String> {
        let known = PolicyName::DualHeap;
        if let Some(name) = self.policy.as_deref().filter(|&name| name != known.name()) {
            return Err(format!("policy '{name}' is not known; there is: {known}"));
        }
        let seconds = |name: &str, seconds: Option<f64>| {
            let duration = |seconds| {
                Duration::try_from_secs_f64(seconds)
                    .map_err(|_| format!("{name} of {seconds} s is out of bounds"))
            };
            seconds.map(duration).transpose()
        };
        let change = PolicyChange {
            half_life: seconds("half-life", self.half_life)?,
            horizon: seconds("horizon", self.horizon)?,
            rate_bytes_per_s: self.rate,
        };
        change.check().map_err(|error| error.to_string())?;
        Ok(change)
    }
}
