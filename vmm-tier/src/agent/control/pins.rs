//! Pins: set and taken back by commands, kept, and set anew when the guest's memory changes.

use tier_core::{
    addr::Gpa,
    engine::{MAX_PINS, Order, Pin, PinError, PinReport, PinStatus, PinsSnapshot, Refusal},
};

use super::{
    Answer,
    answer::{refusal, value},
    order::UnpinArguments,
};
use crate::agent::Agent;

tier_core::report! {
    /// All pins.
    #[derive(Clone, Debug)]
    pub(super) struct PinsReport = "TierPins" {
        /// The pins in force together.
        #[serde(flatten)]
        total: PinsSnapshot,
        /// The pins in force, by address.
        #[metric(exempt = "`vmm_tier_pins` counts them; there may be 1024")]
        ranges: Vec<PinStatus>,
        /// Pins that were set and that the guest has no memory for now.
        #[metric(count = "waiting_pins")]
        waiting: Vec<Pin>,
    }
}

impl Agent {
    pub(super) fn order_pin(&mut self, pin: Pin) -> Answer {
        // A pin that waits for its memory has a claim to it, too.
        let overlaps = |other: &&Pin| {
            let ends_after = |a: &Pin, b: &Pin| a.start.0.saturating_add(a.bytes) > b.start.0;
            ends_after(other, &pin) && ends_after(&pin, other)
        };
        if let Some(other) = self.waiting_pins().iter().find(overlaps) {
            return Err(refusal(&PinError::Overlaps {
                start: other.start.0,
                bytes: other.bytes,
            }));
        }
        // So do they count: a file with more would not be read again.
        if self.overrides.pins.len() >= MAX_PINS {
            return Err(refusal(&PinError::TooMany));
        }
        let reply = self.order(Order::Pin(pin));
        let report = reply.map_err(|error| refusal(&error))?.pins;
        tracing::info!(vm = self.name, ?pin, "pinned");
        self.overrides.pins.push(pin);
        self.saved.save(&self.overrides);
        value(report)
    }

    pub(super) fn order_unpin(&mut self, range: UnpinArguments) -> Answer {
        let (start, bytes) = range.start.zip(range.bytes).unwrap_or((0, u64::MAX));
        let end = start.saturating_add(bytes);
        let is_in =
            |pin: &Pin| pin.start.0 >= start && pin.start.0.saturating_add(pin.bytes) <= end;
        let waiting = self.waiting_pins();
        let waiting: Vec<&Pin> = waiting.iter().filter(|pin| is_in(pin)).collect();
        let start_gpa = range.start.map(Gpa);
        let order = start_gpa.map_or(Order::UnpinAll, |start| Order::Unpin { start, bytes });
        let mut report = match self.order(order) {
            Err(Refusal::Pin(PinError::NoPin { .. })) if !waiting.is_empty() => {
                PinReport::default()
            }
            reply => reply.map_err(|error| refusal(&error))?.pins,
        };
        report.pins += waiting.len() as u64;
        // Each is one that a command or a file may have made as long as it likes.
        for pin in &waiting {
            report.bytes = report.bytes.saturating_add(pin.bytes);
        }
        tracing::info!(vm = self.name, start, bytes, pins = report.pins, "unpinned");
        self.overrides.pins.retain(|pin| !is_in(pin));
        self.saved.save(&self.overrides);
        value(report)
    }

    /// Pins that were set and that the guest's memory, as it is now, has no place for.
    fn waiting_pins(&self) -> Vec<Pin> {
        let pinned = self.engine.pins();
        let is_waiting = |pin: &&Pin| pinned.iter().all(|other| other.start != pin.start);
        self.overrides
            .pins
            .iter()
            .filter(is_waiting)
            .copied()
            .collect()
    }

    /// Tries once more to set the pins that wait.
    pub(in crate::agent) fn pin_anew(&mut self) {
        let waiting = self.waiting_pins();
        if waiting.is_empty() {
            self.pin_trouble.end();
            return;
        }
        // Refused pin by pin only.
        let reply = self.order(Order::PinAgain(waiting.clone()));
        let refused = reply.unwrap_or_default().refused;
        let is_refused = |pin: &&Pin| refused.iter().any(|(other, _)| other == *pin);
        for pin in waiting.iter().filter(|pin| !is_refused(pin)) {
            tracing::info!(vm = self.name, ?pin, "pinned, as it was before");
        }
        match refused.first() {
            Some((pin, error)) => {
                let (start, bytes) = (pin.start.0, pin.bytes);
                let why = format!("{bytes} bytes at {start:#x}: {error}");
                if self.pin_trouble.is_news(&why) {
                    tracing::warn!(
                        vm = self.name,
                        "a pin that was set before can't be: {why}; it is tried again, until tier-unpin"
                    );
                }
            }
            None => {
                self.pin_trouble.end();
            }
        }
    }

    /// All pins, for `query-tier`.
    pub(super) fn pins_report(&self) -> PinsReport {
        PinsReport {
            total: self.engine.pins_snapshot(),
            ranges: self.engine.pins(),
            waiting: self.waiting_pins(),
        }
    }
}
