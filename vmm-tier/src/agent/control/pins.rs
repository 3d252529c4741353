//! Pins: set and taken back by commands, kept, and set anew when the guest's memory changes.

use serde_json::{Value, json};
use tier_core::{
    addr::Gpa,
    engine::{Event, MAX_PINS, Pin, PinError, PinReport},
};

use super::{
    Answer,
    answer::{refusal, value},
    order::UnpinArguments,
};
use crate::agent::Agent;

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
        if self.wishes.pins.len() >= MAX_PINS {
            return Err(refusal(&PinError::TooMany));
        }
        let report = self.engine.pin(Self::now(), pin);
        let report = report.map_err(|error| refusal(&error))?;
        tracing::info!(vm = self.name, ?pin, "pinned");
        self.wishes.pins.push(pin);
        self.saved.save(&self.wishes);
        // What is to be moved is asked for by the next step.
        self.step(Event::Tick);
        value(report)
    }

    pub(super) fn order_unpin(&mut self, range: UnpinArguments) -> Answer {
        let (start, bytes) = range.start.zip(range.bytes).unwrap_or((0, u64::MAX));
        let end = start.saturating_add(bytes);
        let is_in =
            |pin: &Pin| pin.start.0 >= start && pin.start.0.saturating_add(pin.bytes) <= end;
        let waiting = self.waiting_pins();
        let waiting: Vec<&Pin> = waiting.iter().filter(|pin| is_in(pin)).collect();
        let removed = match range.start {
            Some(start) => self.engine.unpin(Self::now(), Gpa(start), bytes),
            None => Ok(self.engine.unpin_all(Self::now())),
        };
        let mut report = match removed {
            Err(PinError::NoPin { .. }) if !waiting.is_empty() => PinReport::default(),
            removed => removed.map_err(|error| refusal(&error))?,
        };
        report.pins += waiting.len() as u64;
        // Each is one that a command or a file may have made as long as it likes.
        for pin in &waiting {
            report.bytes = report.bytes.saturating_add(pin.bytes);
        }
        tracing::info!(vm = self.name, start, bytes, pins = report.pins, "unpinned");
        self.wishes.pins.retain(|pin| !is_in(pin));
        self.saved.save(&self.wishes);
        self.step(Event::Tick);
        value(report)
    }

    /// Pins that were set and that the guest's memory, as it is now, has no place for.
    fn waiting_pins(&self) -> Vec<Pin> {
        let pinned = self.engine.pins();
        let is_waiting = |pin: &&Pin| pinned.iter().all(|other| other.start != pin.start);
        self.wishes
            .pins
            .iter()
            .filter(is_waiting)
            .copied()
            .collect()
    }

    /// Tries once more to set the pins that wait.
    pub(in crate::agent) fn pin_anew(&mut self) {
        let mut trouble = None;
        let waiting = self.waiting_pins();
        let results = self.engine.pin_again(Self::now(), &waiting);
        for (pin, result) in waiting.into_iter().zip(results) {
            match result {
                Ok(()) => tracing::info!(vm = self.name, ?pin, "pinned, as it was before"),
                Err(error) => trouble = trouble.or(Some((pin, error))),
            }
        }
        match trouble {
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

    /// The pins one by one, for `query-tier`.
    pub(super) fn list_pins(&self) -> (Value, Value) {
        (json!(self.engine.pins()), json!(self.waiting_pins()))
    }
}
