//! What the commands do, on the agent's thread.

mod order;
mod pins;
pub(super) mod query_tier;
mod reply;

use qmp::QmpError;
use tier_core::{
    engine::{self, PolicyChange},
    text::size,
};

pub(in crate::agent) use self::order::Order;
use self::reply::{refusal, sentence, value};
use super::Answer;
use crate::agent::{
    Agent,
    state_file::{LimitOverride, Overrides, PolicyOverride},
};

/// Who sets a limit by a command.
const OPERATOR: &str = "operator";

impl Agent {
    pub(in crate::agent) fn carry_out(&mut self, order: Order) -> Answer {
        // What was set for the other QEMU of the name must not be lost to the first order for this one.
        self.take_over();
        match order {
            Order::Query => {}
            Order::SetPolicy(wish) => self.order_policy(wish)?,
            Order::SetLimit(bytes) => {
                self.set_limit(bytes, OPERATOR);
                self.overrides.limit = Some(LimitOverride { bytes });
                self.saved.save(&self.overrides);
            }
            Order::Pause => self.order_pause(true),
            Order::Resume => self.order_pause(false),
            Order::Pin(pin) => return self.order_pin(pin),
            Order::Unpin(range) => return self.order_unpin(range),
            Order::Drain(bytes) => return self.order_drain(bytes),
            Order::Explain(gpa) => {
                let found = self.engine.explain(Self::now(), gpa);
                return value(found.map_err(|error| refusal(&error))?);
            }
            Order::Heatmap { rows, columns } => {
                let drawn = self.engine.heatmap(Self::now(), rows, columns);
                return value(drawn.map_err(|error| refusal(&error))?);
            }
        }
        value(self.query_tier())
    }

    fn order_policy(&mut self, wish: PolicyOverride) -> Result<(), QmpError> {
        let wish = match wish.is_empty() {
            true => wish,
            false => self.overrides.policy.clone().with(wish),
        };
        self.apply_policy(&wish)
            .map_err(|error| QmpError::generic(sentence(&error)))?;
        self.overrides.policy = wish;
        self.saved.save(&self.overrides);
        Ok(())
    }

    /// Puts the policy in force that the command line, the configuration and `wish` together make.
    fn apply_policy(&mut self, wish: &PolicyOverride) -> Result<(), String> {
        let wish = wish.change()?;
        let (base, now) = (&self.base, self.engine.settings());
        let half_life = wish.half_life.unwrap_or(base.half_life);
        let horizon = wish.horizon.unwrap_or(base.horizon);
        let rate = wish.rate_bytes_per_s.unwrap_or(base.rate_bytes_per_s);
        let change = PolicyChange {
            half_life: Some(half_life).filter(|&new| new != now.half_life),
            horizon: Some(horizon).filter(|&new| new != now.horizon),
            rate_bytes_per_s: Some(rate).filter(|&new| new != now.rate_bytes_per_s),
        };
        if change == PolicyChange::default() {
            return Ok(());
        }
        self.order(engine::Order::Policy(change))
            .map_err(|error| error.to_string())?;
        tracing::info!(vm = self.name, ?half_life, ?horizon, rate, "policy");
        Ok(())
    }

    /// Sets the most bytes of the fast tier that the guest may hold, and tells who did.
    fn set_limit(&mut self, bytes: Option<u64>, who: &str) {
        let old = self.engine.settings().fast_limit_bytes;
        let words = |bytes: Option<u64>| bytes.map_or("none".to_owned(), size::human);
        tracing::info!(
            vm = self.name,
            old = words(old),
            new = words(bytes),
            who,
            "limit of the fast tier"
        );
        self.publisher.limit(old, bytes, who);
        // Never refused.
        let _ = self.order(engine::Order::Limit(bytes));
    }

    /// Puts in force what commands had set before the agent was started.
    pub(in crate::agent) fn restore(&mut self) {
        let overrides = self.overrides.clone();
        // The pause and the pins first: a limit makes pages leave at once.
        self.apply_pause();
        if let Err(error) = self.apply_policy(&overrides.policy) {
            tracing::warn!(
                vm = self.name,
                "the policy that was set before can't be: {error}"
            );
            self.overrides.policy = PolicyOverride::default();
        }
        self.pin_anew();
        if let Some(LimitOverride { bytes }) = overrides.limit {
            self.set_limit(bytes, "state-file");
        }
    }

    /// Takes over what was set for a QEMU of the same name that ran when the agent was started, unless
    /// something was set for this one meanwhile.
    pub(in crate::agent) fn take_over(&mut self) {
        let Some(overrides) = self.saved.take_over() else {
            return;
        };
        if self.overrides == Overrides::default() {
            self.overrides = overrides;
            self.restore();
        } else {
            self.saved.save(&self.overrides);
        }
    }

    fn order_pause(&mut self, paused: bool) {
        self.overrides.paused = paused;
        self.apply_pause();
        self.saved.save(&self.overrides);
    }

    fn order_drain(&mut self, bytes: u64) -> Answer {
        let old = self.engine.settings().fast_limit_bytes;
        tracing::info!(
            vm = self.name,
            to = size::human(bytes),
            "drain of the fast tier"
        );
        self.publisher.limit(old, Some(bytes), OPERATOR);
        self.order(engine::Order::Drain(bytes))
            .map_err(|error| refusal(&error))?;
        self.overrides.limit = Some(LimitOverride { bytes: Some(bytes) });
        self.saved.save(&self.overrides);
        value(self.engine.drain_progress())
    }
}
