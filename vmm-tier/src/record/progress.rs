//! How far a recording is, on a terminal.

use std::time::{Duration, Instant};

use tier_core::text::size::human;
use tier_replay::status_line::StatusLine;

/// A line with what was recorded so far.
#[derive(Debug)]
pub(super) struct Progress {
    started: Instant,
    line: StatusLine,
}

impl Progress {
    pub(super) fn start() -> Self {
        Self {
            started: Instant::now(),
            line: StatusLine::new(false),
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Shows the numbers of accesses and bytes, and a note.
    pub(super) fn show(&mut self, accesses: u64, bytes: u64, more: &str) {
        if self.line.is_due() {
            let (seconds, size) = (self.elapsed().as_secs(), human(bytes));
            self.line.show(format_args!(
                "{accesses} accesses, {size}, {seconds} s{more}"
            ));
        }
    }

    /// Takes the line away.
    pub(super) fn clear(&mut self) {
        self.line.clear();
    }
}
