//! How far a recording is, on a terminal.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use crate::size::human;

/// How often it is shown.
const EVERY: Duration = Duration::from_millis(500);

/// A line on the standard error that is written over; nothing where that is no terminal.
#[derive(Debug)]
pub(super) struct Progress {
    started: Instant,
    shown: Option<Instant>,
    is_terminal: bool,
}

impl Progress {
    pub(super) fn start() -> Self {
        Self {
            started: Instant::now(),
            shown: None,
            is_terminal: io::stderr().is_terminal(),
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Shows so many accesses in so many bytes, and what else there is to say.
    pub(super) fn show(&mut self, accesses: u64, bytes: u64, more: &str) {
        let is_due = self.shown.is_none_or(|shown| shown.elapsed() >= EVERY);
        if !self.is_terminal || !is_due {
            return;
        }
        self.shown = Some(Instant::now());
        let (seconds, size) = (self.elapsed().as_secs(), human(bytes));
        // A terminal that is gone does not end a recording.
        let _ = write!(
            io::stderr(),
            "\r\x1b[K{accesses} accesses, {size}, {seconds} s{more}"
        );
    }

    /// Takes the line away.
    pub(super) fn clear(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
