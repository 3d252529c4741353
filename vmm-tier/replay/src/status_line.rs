//! A line on the standard error that is written over; nothing where that is no terminal.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// How often it is written.
const EVERY: Duration = Duration::from_millis(500);

/// What is under way, in one line.
#[derive(Debug)]
pub struct StatusLine {
    is_seen: bool,
    shown: Option<Instant>,
}

impl StatusLine {
    /// Shows nothing if `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self {
            is_seen: !quiet && io::stderr().is_terminal(),
            shown: None,
        }
    }

    /// Whether someone sees it and it is time for another.
    pub fn is_due(&self) -> bool {
        self.is_seen && self.shown.is_none_or(|shown| shown.elapsed() >= EVERY)
    }

    /// Writes over what was shown.
    pub fn show(&mut self, line: fmt::Arguments<'_>) {
        if self.is_seen {
            self.shown = Some(Instant::now());
            // A terminal that is gone ends nothing.
            let _ = write!(io::stderr(), "\r\x1b[K{line}");
        }
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
