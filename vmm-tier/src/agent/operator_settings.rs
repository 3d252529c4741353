//! What the operator has set: by the command line and the configuration, and above them by commands.

use std::time::Duration;

use tier_core::{
    engine::{Pin, PinStatus, PolicyChange},
    settings::EngineSettings,
};

use super::{
    log_once::LogOnce,
    state_file::{Overrides, PolicyOverride, StateFile},
};

/// See the [module](self).
pub(super) struct OperatorSettings {
    /// What the command line and the configuration say.
    base: EngineSettings,
    /// What commands have set.
    pub(super) overrides: Overrides,
    /// Where that is kept over a restart of the agent.
    pub(super) file: StateFile,
    /// Why a pin that was set can't be in force.
    pub(super) pin_trouble: LogOnce,
}

impl OperatorSettings {
    pub(super) fn new(base: EngineSettings, overrides: Overrides, file: StateFile) -> Self {
        Self {
            base,
            overrides,
            file,
            pin_trouble: LogOnce::default(),
        }
    }

    /// Writes down what commands have set.
    pub(super) fn save(&mut self) {
        self.file.save(&self.overrides);
    }

    /// Writes down what is set if that failed the last time.
    pub(super) fn try_again(&mut self) {
        self.file.try_again(&self.overrides);
    }

    /// Takes over what was set for a QEMU of the same name that ran when the agent was started, unless
    /// something was set for this one meanwhile. Returns whether other settings must be put in force.
    pub(super) fn take_over(&mut self) -> bool {
        let Some(overrides) = self.file.take_over() else {
            return false;
        };
        let takes = self.overrides == Overrides::default();
        if takes {
            self.overrides = overrides;
        } else {
            self.save();
        }
        takes
    }

    /// The policy that the base and `overrides` together make.
    ///
    /// # Errors
    /// Which part of `overrides` is out of bounds, and the bounds.
    pub(super) fn policy(&self, overrides: &PolicyOverride) -> Result<Policy, String> {
        let set = overrides.change()?;
        Ok(Policy {
            half_life: set.half_life.unwrap_or(self.base.half_life),
            horizon: set.horizon.unwrap_or(self.base.horizon),
            rate_bytes_per_s: set.rate_bytes_per_s.unwrap_or(self.base.rate_bytes_per_s),
        })
    }

    /// Pins that were set and that are not in force, as the guest's memory has no place for them now.
    pub(super) fn waiting_pins(&self, in_force: &[PinStatus]) -> Vec<Pin> {
        let is_waiting = |pin: &&Pin| in_force.iter().all(|other| other.start != pin.start);
        let pins = self.overrides.pins.iter();
        pins.filter(is_waiting).copied().collect()
    }
}

/// A whole policy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) half_life: Duration,
    pub(super) horizon: Duration,
    pub(super) rate_bytes_per_s: u64,
}

impl Policy {
    /// What must change of `now` for this policy to be set. `rate` is the rate that is set; the rate in
    /// force may be the host's.
    pub(super) fn change_of(&self, now: &EngineSettings, rate: u64) -> PolicyChange {
        PolicyChange {
            half_life: Some(self.half_life).filter(|&new| new != now.half_life),
            horizon: Some(self.horizon).filter(|&new| new != now.horizon),
            rate_bytes_per_s: Some(self.rate_bytes_per_s).filter(|&new| new != rate),
        }
    }
}
