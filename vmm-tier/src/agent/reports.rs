//! What the agent makes of its own threads' reports: samples, look-ups, moves.

use tier_core::engine::Event;

use super::{Agent, source::Report, worker::Done};

impl Agent {
    pub(super) fn on_source(&mut self, report: Report) {
        match report {
            Report::Up => {
                tracing::info!(vm = self.name, source = self.source_kind, "samples flow");
                self.blind.end();
                self.herald.source(self.source_kind, None);
                self.step(Event::Source { up: true });
            }
            Report::Batch(batch) => self.step(Event::Samples(batch)),
            Report::Down(reason) => {
                // While QEMU ends, its sampler does too: no cause for alarm. The sampler tries again and
                // again: what it meets is said once.
                if self.blind.is_news(&reason) && !self.guest_has_ended() {
                    tracing::warn!(vm = self.name, source = self.source_kind, "blind: {reason}");
                    self.herald.source(self.source_kind, Some(&reason));
                }
                self.step(Event::Source { up: false });
            }
        }
    }

    /// The sampler's thread ended by itself, which it never should.
    pub(super) fn on_source_lost(&mut self) {
        let reason = "the sampler ended: start the agent again, and report what it printed";
        self.blind.is_news(reason);
        tracing::error!(vm = self.name, "blind: {reason}");
        self.herald.source(self.source_kind, Some(reason));
        self.source = None;
        self.step(Event::Source { up: false });
    }

    pub(super) fn on_done(&mut self, done: Done) {
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
                self.read_nodes();
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
