//! What the commands do, on the agent's thread.

mod order;
pub(super) mod query_tier;

use qmp::QmpError;
use tier_core::{
    addr::Gpa,
    engine::{self, DemandReport, MAX_PINS, Pin, PinError, PinReport, PolicyChange, Refusal},
    text::size,
};

pub(in crate::agent) use self::order::Order;
use self::{order::UnpinArguments, query_tier::TierInfo};
use super::Answer;
use crate::{
    agent::{
        Agent,
        operator_settings::Policy,
        state_file::{LimitOverride, PolicyOverride},
    },
    reply::{refusal, sentence, value},
};

/// Who sets a limit by a command.
const OPERATOR: &str = "operator";

impl Agent {
    /// Carries out a command and returns its reply.
    pub(in crate::agent) fn carry_out(&mut self, order: Order) -> Answer {
        // The first order must not overwrite what was set for an earlier QEMU of this name.
        self.take_over();
        match order {
            Order::Query => {}
            Order::SetPolicy(wish) => self.order_policy(wish)?,
            Order::SetLimit(bytes) => {
                self.set_limit(bytes, OPERATOR);
                self.settings.overrides.limit = Some(LimitOverride { bytes });
                self.settings.save();
            }
            Order::Pause => self.order_pause(true),
            Order::Resume => self.order_pause(false),
            Order::Pin(pin) => return self.order_pin(pin),
            Order::Unpin(range) => return self.order_unpin(range),
            Order::Drain(bytes) => return self.order_drain(bytes),
            Order::Explain(gpa) => {
                let found = self.engine.explain(Self::now(), gpa);
                let mut found = found.map_err(|error| refusal(&error))?;
                found.sentences.extend(self.qemu.holds.sentences());
                return value(found);
            }
            Order::Heatmap { rows, columns } => {
                let drawn = self.engine.heatmap(Self::now(), rows, columns);
                return value(drawn.map_err(|error| refusal(&error))?);
            }
            Order::Moves(most) => return value(self.engine.last_moves(Self::now(), most)),
            Order::Demand => return value(DemandReport::from(self.engine.demand(Self::now()))),
        }
        value(TierInfo::of(self))
    }

    fn order_policy(&mut self, wish: PolicyOverride) -> Result<(), QmpError> {
        let wish = match wish.is_empty() {
            true => wish,
            false => self.settings.overrides.policy.clone().with(wish),
        };
        self.apply_policy(&wish)
            .map_err(|error| QmpError::generic(sentence(&error)))?;
        self.settings.overrides.policy = wish;
        self.settings.save();
        Ok(())
    }

    /// Puts the policy in force that the command line, the configuration and `wish` together make.
    fn apply_policy(&mut self, wish: &PolicyOverride) -> Result<(), String> {
        let policy = self.settings.policy(wish)?;
        let rate = self.engine.policy().rate_bytes_per_s;
        let change = policy.change_of(self.engine.settings(), rate);
        if change == PolicyChange::default() {
            return Ok(());
        }
        self.order(engine::Order::Policy(change))
            .map_err(|error| error.to_string())?;
        let Policy {
            half_life,
            horizon,
            rate_bytes_per_s: rate,
        } = policy;
        tracing::info!(vm = self.vm.name, ?half_life, ?horizon, rate, "policy");
        Ok(())
    }

    /// Sets the most bytes of the fast tier that the guest may hold, and publishes who set it.
    fn set_limit(&mut self, bytes: Option<u64>, who: &str) {
        let old = self.engine.operator_limit();
        let words = |bytes: Option<u64>| bytes.map_or("none".to_owned(), size::human);
        tracing::info!(
            vm = self.vm.name,
            old = words(old),
            new = words(bytes),
            who,
            "limit of the fast tier"
        );
        self.tell_limit_of_operator(bytes, who);
        // Never refused.
        let _ = self.order(engine::Order::Limit(bytes));
    }

    /// Puts in force what commands had set before the agent was started.
    pub(in crate::agent) fn restore(&mut self) {
        let overrides = self.settings.overrides.clone();
        // The pause and the pins first: a limit makes pages leave at once.
        self.apply_pause();
        if let Err(error) = self.apply_policy(&overrides.policy) {
            tracing::warn!(
                vm = self.vm.name,
                "the policy that commands had set can't be restored: {error}"
            );
            self.settings.overrides.policy = PolicyOverride::default();
        }
        self.pin_again();
        if let Some(LimitOverride { bytes }) = overrides.limit {
            self.set_limit(bytes, "state-file");
        }
    }

    /// Takes over what was set for a QEMU of the same name that ran when the agent was started, unless
    /// something was set for this one meanwhile.
    pub(in crate::agent) fn take_over(&mut self) {
        if self.settings.take_over() {
            self.restore();
        }
    }

    fn order_pause(&mut self, paused: bool) {
        self.settings.overrides.paused = paused;
        self.apply_pause();
        self.settings.save();
    }

    fn order_drain(&mut self, bytes: u64) -> Answer {
        tracing::info!(
            vm = self.vm.name,
            to = size::human(bytes),
            "drain of the fast tier"
        );
        self.tell_limit_of_operator(Some(bytes), OPERATOR);
        self.order(engine::Order::Drain(bytes))
            .map_err(|error| refusal(&error))?;
        let limit = LimitOverride { bytes: Some(bytes) };
        self.settings.overrides.limit = Some(limit);
        self.settings.save();
        value(self.engine.drain_progress())
    }

    fn order_pin(&mut self, pin: Pin) -> Answer {
        // A pin that waits for its memory claims it too.
        let overlaps = |other: &&Pin| {
            let ends_after = |a: &Pin, b: &Pin| a.start.0.saturating_add(a.bytes) > b.start.0;
            ends_after(other, &pin) && ends_after(&pin, other)
        };
        let waiting = self.settings.waiting_pins(&self.engine.pins());
        if let Some(other) = waiting.iter().find(overlaps) {
            return Err(refusal(&PinError::Overlaps {
                start: other.start.0,
                bytes: other.bytes,
            }));
        }
        // Waiting pins count too: a file with more pins is refused when it is read.
        if self.settings.overrides.pins.len() >= MAX_PINS {
            return Err(refusal(&PinError::TooMany));
        }
        let reply = self.order(engine::Order::Pin(pin));
        let report = reply.map_err(|error| refusal(&error))?.pins;
        tracing::info!(vm = self.vm.name, ?pin, "pinned");
        self.settings.overrides.pins.push(pin);
        self.settings.save();
        value(report)
    }

    fn order_unpin(&mut self, range: UnpinArguments) -> Answer {
        let (start, bytes) = range.start.zip(range.bytes).unwrap_or((0, u64::MAX));
        let end = start.saturating_add(bytes);
        let is_in =
            |pin: &Pin| pin.start.0 >= start && pin.start.0.saturating_add(pin.bytes) <= end;
        let waiting = self.settings.waiting_pins(&self.engine.pins());
        let waiting: Vec<&Pin> = waiting.iter().filter(|pin| is_in(pin)).collect();
        let start_gpa = range.start.map(Gpa);
        let order = start_gpa.map_or(engine::Order::UnpinAll, |start| engine::Order::Unpin {
            start,
            bytes,
        });
        let mut report = match self.order(order) {
            Err(Refusal::Pin(PinError::NoPin { .. })) if !waiting.is_empty() => {
                PinReport::default()
            }
            reply => reply.map_err(|error| refusal(&error))?.pins,
        };
        report.pins += waiting.len() as u64;
        // A command or a file may have given each any length.
        for pin in &waiting {
            report.bytes = report.bytes.saturating_add(pin.bytes);
        }
        tracing::info!(
            vm = self.vm.name,
            start,
            bytes,
            pins = report.pins,
            "unpinned"
        );
        self.settings.overrides.pins.retain(|pin| !is_in(pin));
        self.settings.save();
        value(report)
    }

    /// Tries once more to set the pins that wait.
    pub(in crate::agent) fn pin_again(&mut self) {
        let waiting = self.settings.waiting_pins(&self.engine.pins());
        if waiting.is_empty() {
            self.settings.pin_trouble.end();
            return;
        }
        // The order itself is never refused, only single pins.
        let reply = self.order(engine::Order::PinAgain(waiting.clone()));
        let refused = reply.unwrap_or_default().refused;
        let is_refused = |pin: &&Pin| refused.iter().any(|(other, _)| other == *pin);
        for pin in waiting.iter().filter(|pin| !is_refused(pin)) {
            tracing::info!(vm = self.vm.name, ?pin, "pin restored");
        }
        match refused.first() {
            Some((pin, error)) => {
                let (start, bytes) = (pin.start.0, pin.bytes);
                let why = format!("{bytes} bytes at {start:#x}: {error}");
                if self.settings.pin_trouble.is_news(&why) {
                    tracing::warn!(
                        vm = self.vm.name,
                        "a pin that was set can't be restored: {why}; the agent tries again until tier-unpin"
                    );
                }
            }
            None => {
                self.settings.pin_trouble.end();
            }
        }
    }
}
