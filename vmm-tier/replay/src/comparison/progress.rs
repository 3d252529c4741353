//! The progress of a comparison, on the standard error if that is a terminal.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use crate::status_line::StatusLine;

/// Characters of the bar, and of the text before it: a line fits into 80 columns.
const BAR: usize = 24;
const TEXT: usize = 32;

/// A bar that shows the pass under way.
#[derive(Debug)]
pub(crate) struct Progress {
    pass: RefCell<Pass>,
}

/// The pass under way.
#[derive(Debug)]
struct Pass {
    line: StatusLine,
    text: String,
    started: Instant,
}

impl Progress {
    /// Shows nothing if `quiet`.
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            pass: RefCell::new(Pass {
                line: StatusLine::new(quiet),
                text: String::new(),
                started: Instant::now(),
            }),
        }
    }

    /// Begins a pass over a trace.
    pub(crate) fn begin(&self, trace: &str, what: &str) {
        let mut pass = self.pass.borrow_mut();
        pass.text = format!("{trace}: {what}");
        pass.started = Instant::now();
    }

    /// Shows that `done` of `all` is done.
    pub(crate) fn set(&self, done: f64, all: f64) {
        let mut pass = self.pass.borrow_mut();
        if pass.line.is_due() {
            let part = if all > 0.0 { done / all } else { 0.0 };
            let shown = line(&pass.text, part.clamp(0.0, 1.0), pass.started.elapsed());
            pass.line.show(format_args!("{shown}"));
        }
    }

    /// Takes the bar away before the results are printed.
    pub(crate) fn end(&self) {
        self.pass.borrow_mut().line.clear();
    }
}

/// `zipf: replay [==>     ]  31 % 12 s`: the part that is done, and how long the rest takes at the same
/// pace. Of a long text the end is shown: there stand a path's file and the pass.
fn line(text: &str, part: f64, elapsed: Duration) -> String {
    let skip = text.chars().count().saturating_sub(TEXT);
    let text: String = text.chars().skip(skip).collect();
    let bar = "=".repeat((part * BAR as f64) as usize);
    let percent = 100.0 * part;
    let rest = match part > 0.0 {
        true => format!("{:.0} s", elapsed.as_secs_f64() * (1.0 - part) / part),
        false => "-".to_owned(),
    };
    format!("{text} [{bar:BAR$}] {percent:>3.0} % {rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_when_a_part_is_done_says_how_long_the_rest_takes() {
        let shown = |part| line("zipf: replay", part, Duration::from_secs(10));
        assert_eq!(
            shown(0.0),
            "zipf: replay [                        ]   0 % -"
        );
        assert_eq!(
            shown(0.25),
            "zipf: replay [======                  ]  25 % 30 s"
        );
        assert_eq!(
            shown(1.0),
            "zipf: replay [========================] 100 % 0 s"
        );
    }

    #[test]
    fn line_when_a_path_is_long_shows_its_end_in_80_columns() {
        let shown = line(
            "/a/long/way/to/the/trace/of/a/program.trace: replay",
            0.01,
            Duration::from_secs(100),
        );
        assert!(shown.len() <= 80, "{shown}");
        assert!(shown.contains("program.trace: replay ["), "{shown}");
    }
}
