//! How far a replay is, on a terminal's error stream; nothing where there is none.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Steps of the bar.
const STEPS: u64 = 1000;

/// One bar that shows a pass after the other.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Shows nothing if `quiet`.
    pub(super) fn new(quiet: bool) -> Self {
        let target = match quiet {
            true => ProgressDrawTarget::hidden(),
            false => ProgressDrawTarget::stderr_with_hz(5),
        };
        let bar = ProgressBar::with_draw_target(Some(STEPS), target);
        if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {percent:>3} % {eta}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar }
    }

    /// Begins a pass over a trace.
    pub(super) fn begin(&self, trace: &str, what: &str) {
        self.bar.reset();
        self.bar.set_message(format!("{trace}: {what}"));
    }

    /// So much of so much is done.
    pub(super) fn set(&self, done: f64, all: f64) {
        let part = if all > 0.0 { done / all } else { 0.0 };
        self.bar
            .set_position((part.clamp(0.0, 1.0) * STEPS as f64) as u64);
    }

    /// Takes the bar away: results follow.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
