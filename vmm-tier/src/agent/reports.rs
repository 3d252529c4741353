//! What the agent makes of its worker's reports: look-ups and moves.

use std::time::Instant;

use tier_core::engine::Event;

use super::{Agent, worker::Done};

impl Agent {
    pub(super) fn on_done(&mut self, done: Done) {
        if let Done::Scanned(report) | Done::NotScanned(report, _) = &done {
            self.scans.done(report);
        }
        match done {
            Done::Scanned(report) => {
                self.look_up_trouble.end();
                self.step(Event::Scanned(report));
            }
            Done::NotScanned(report, reason) => {
                if self.look_up_trouble.is_news(&reason) && !self.guest_has_ended() {
                    tracing::error!(vm = self.name, "pages can't be looked up: {reason}");
                }
                self.step(Event::Scanned(report));
            }
            Done::Moved(report) => {
                self.refusal.end();
                self.read_nodes(Instant::now());
                self.tell_sources_of(&report);
                self.step(Event::Moved(report));
            }
            Done::Refused(report, reason) => {
                if self.refusal.is_news(&reason) {
                    tracing::error!(vm = self.name, "pages can't be moved: {reason}");
                }
                self.step(Event::Moved(report));
            }
        }
    }
}
