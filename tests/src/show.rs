//! What a person sees of a lab run: what is happening and for how long, bars, and tables.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::event::{Event, Mark, Sample};
use crate::result::{RunResult, ScenarioResult};

const BAR_CELLS: usize = 40;
/// Without a terminal, a step that takes long says so this often.
const STILL_EVERY: Duration = Duration::from_secs(15);
const MIB: f64 = 1_048_576.0;

/// The screen, or a file that takes its place.
pub struct Screen {
    out: Box<dyn Write>,
    terminal: bool,
    /// Seconds between two lines of measurements; 1 is the live view.
    every: u64,
    began: Instant,
    doing: Option<(String, Instant)>,
    reminded: Instant,
    status_shown: bool,
    run: RunView,
}

/// What the lines of measurements are relative to.
#[derive(Default)]
struct RunView {
    start: Option<f64>,
    phase: String,
    migrated_at_start: u64,
    last_line: Option<u64>,
    latest_migrated: u64,
    ended: bool,
}

impl Screen {
    /// Human output on stderr, for `lab`: a line of measurements each five seconds.
    #[must_use]
    pub fn stderr() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self::new(Box::new(std::io::stderr()), terminal, 5)
    }

    /// Human output on stdout, for the demo: a line of measurements each second.
    #[must_use]
    pub fn live() -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self::new(Box::new(std::io::stdout()), terminal, 1)
    }

    fn new(out: Box<dyn Write>, terminal: bool, every: u64) -> Self {
        // A terminal that can't move its cursor is no better than a file.
        let terminal = terminal && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            out,
            terminal,
            every,
            began: Instant::now(),
            doing: None,
            reminded: Instant::now(),
            status_shown: false,
            run: RunView::default(),
        }
    }

    /// Writes a line. A screen that has gone is no reason to end a measurement.
    pub fn line(&mut self, text: &str) {
        if self.status_shown {
            let _ = write!(self.out, "\r\x1b[K");
            self.status_shown = false;
        }
        let _ = writeln!(self.out, "{text}");
        let _ = self.out.flush();
    }

    /// Something takes time now.
    pub fn progress(&mut self, what: &str) {
        self.finish_doing();
        let at = self.began.elapsed().as_secs_f64();
        self.line(&format!("[{at:5.1} s] {what}"));
        self.doing = Some((what.to_owned(), Instant::now()));
        self.reminded = Instant::now();
    }

    /// Says how long the last thing took, if that was long.
    fn finish_doing(&mut self) {
        if let Some((_, since)) = self.doing.take() {
            let took = since.elapsed();
            if took >= Duration::from_secs(2) && self.run.start.is_none() {
                self.line(&format!("          done in {:.1} s", took.as_secs_f64()));
            }
        }
    }

    /// Called often: keeps the elapsed time of what takes long in sight.
    pub fn tick(&mut self) {
        let Some((what, since)) = &self.doing else {
            return;
        };
        let seconds = since.elapsed().as_secs();
        if self.run.start.is_some() || seconds == 0 {
            return; // lines of measurements show that it goes on
        }
        if self.terminal {
            let status = format!("\r\x1b[K          {what} … {seconds} s");
            let _ = write!(self.out, "{status}");
            let _ = self.out.flush();
            self.status_shown = true;
        } else if self.reminded.elapsed() >= STILL_EVERY {
            let text = format!("          still: {what}, {seconds} s");
            self.reminded = Instant::now();
            self.line(&text);
        }
    }

    /// Shows an event.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::Booted(facts) => {
                self.finish_doing();
                let nodes: Vec<_> = facts
                    .nodes
                    .iter()
                    .map(|node| format!("node {}: {} MiB", node.node, node.total_kib / 1024))
                    .collect();
                self.line(&format!(
                    "          Linux {}, {}",
                    facts.kernel,
                    nodes.join(", ")
                ));
            }
            Event::RunStarted { run } => {
                self.finish_doing();
                self.run = RunView::default();
                self.line(&format!("--- run {run}"));
            }
            Event::Progress { what } => self.progress(what),
            Event::Mark { t, mark, .. } => self.mark(*t, *mark),
            Event::Sample(sample) => self.sample(sample),
            Event::Attempt(outcome) => {
                let first = outcome.stderr.lines().next().unwrap_or("(says nothing)");
                let code = outcome
                    .code
                    .map_or_else(|| "-".to_owned(), |c| c.to_string());
                self.line(&format!("          exit {code}: {first}"));
            }
            Event::AgentEnd(end) => {
                let code = end
                    .code
                    .map_or_else(|| "a signal".to_owned(), |c| format!("code {c}"));
                let last = end.last_lines.last().map_or("", String::as_str);
                self.line(&format!("          the agent ended with {code}: {last}"));
            }
            Event::Integrity { guest, ok, updates } => {
                let word = if *ok { "ok" } else { "LOST BYTES" };
                self.line(&format!(
                    "          {guest}: {updates} updates, memory {word}"
                ));
            }
            Event::RunEnded { error, .. } => {
                self.finish_doing();
                self.run.ended = true;
                if let Some(error) = error {
                    self.line(&format!("          could not be finished: {error}"));
                }
            }
            Event::Failed { error } => self.line(&format!("failed: {error}")),
            Event::Phase { phase, .. } => self.run.phase.clone_from(phase),
            Event::Note { .. } | Event::Look(_) | Event::Log { .. } | Event::Done => {}
        }
    }

    fn mark(&mut self, t: f64, mark: Mark) {
        match mark {
            Mark::WorkReady => {}
            Mark::AgentStarted => "agent".clone_into(&mut self.run.phase),
            _ => return,
        }
        self.run.start = Some(t);
        self.run.migrated_at_start = self.run.latest_migrated;
        self.run.last_line = None;
    }

    fn sample(&mut self, sample: &Sample) {
        self.run.latest_migrated = sample.migrated_pages;
        let Some(start) = self.run.start.filter(|_| !self.run.ended) else {
            return;
        };
        let since = sample.t - start;
        if since < 0.0
            || self
                .run
                .last_line
                .is_some_and(|l| since < (l + self.every) as f64)
        {
            return;
        }
        self.run.last_line = Some(since as u64);
        let moved = sample
            .migrated_pages
            .saturating_sub(self.run.migrated_at_start)
            * 4096;
        for (name, guest) in &sample.guests {
            let Some(share) = guest.share() else { continue };
            let who = if sample.guests.len() > 1 {
                format!(" {name}")
            } else {
                String::new()
            };
            let rate = guest.updates_per_s.map_or_else(
                || "      -".to_owned(),
                |rate| format!("{:7.2}", rate / 1e6),
            );
            self.line(&format!(
                "{:<6} {since:5.1} s{who}  [{}] {:5.1} % in DRAM  moved {:6.1} MiB {rate} M updates/s",
                self.run.phase,
                bar(share),
                share * 100.0,
                moved as f64 / MIB,
            ));
        }
    }

    /// The tables at the end.
    pub fn result(&mut self, result: &ScenarioResult) {
        self.finish_doing();
        self.line("");
        if self.every == 1 {
            for line in result.runs.iter().flat_map(story) {
                self.line(&line);
            }
        } else {
            for line in summary_table(&result.runs) {
                self.line(&line);
            }
        }
        for run in &result.runs {
            for check in &run.checks {
                let word = if check.pass { "ok    " } else { "FAILED" };
                self.line(&format!(
                    "{word} {}: {}: {} (must: {})",
                    run.run,
                    check.name,
                    shortened(&check.measured),
                    check.bound
                ));
            }
        }
        if let Some(error) = &result.error {
            self.line(&format!("FAILED {error}"));
        }
        let word = if result.pass { "passed" } else { "FAILED" };
        self.line(&format!(
            "{} {word} in {:.0} s",
            result.scenario, result.seconds
        ));
    }
}

/// As much of a text as a line can hold; the result has it whole.
fn shortened(text: &str) -> String {
    const MOST: usize = 160;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text.to_owned(),
    }
}

/// A bar of fixed width for a share from 0 to 1.
fn bar(share: f64) -> String {
    let full = (share.clamp(0.0, 1.0) * BAR_CELLS as f64).round() as usize;
    format!("{}{}", "#".repeat(full), ".".repeat(BAR_CELLS - full))
}

/// One run told as before and after: the demo's table.
fn story(run: &RunResult) -> Vec<String> {
    let share = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{:.1} %", v * 100.0));
    let rate = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{:.2} M", v / 1e6));
    let mib = |v: Option<u64>| v.map_or("-".to_owned(), |v| format!("{:.1} MiB", v as f64 / MIB));
    let mut rows = Vec::new();
    for (guest, summary) in &run.summary {
        let seconds = summary.seconds_to_95;
        let after = seconds.map_or("not reached".to_owned(), |s| format!("{s:.1} s"));
        let memory = match run.integrity.get(guest) {
            Some(true) => "intact",
            Some(false) => "LOST BYTES",
            None => "not compared",
        };
        let row = |name: &str, before: String, after: String| [name.to_owned(), before, after];
        let none = String::new;
        rows.push(row("", "before".to_owned(), "after".to_owned()));
        rows.push(row(
            "hot set in DRAM",
            share(summary.share_before),
            share(summary.plateau_mean),
        ));
        rows.push(row(
            "updates a second",
            rate(summary.throughput_without),
            rate(summary.throughput_plateau),
        ));
        rows.push(row("95 % in DRAM after", none(), after));
        rows.push(row("moved up and down", none(), mib(summary.moved_bytes)));
        rows.push(row("least possible", none(), mib(summary.least_bytes)));
        rows.push(row(
            "agent, share of a CPU",
            none(),
            share(summary.agent_cpu_share),
        ));
        rows.push(row("the guest's memory", none(), memory.to_owned()));
    }
    let mut lines = align(&rows);
    lines.push(String::new());
    lines
}

/// All runs side by side: one row a guest of a run.
fn summary_table(runs: &[RunResult]) -> Vec<String> {
    let mut rows = vec![
        [
            "run",
            "before",
            "10 s",
            "20 s",
            "end",
            "±",
            "95 % after",
            "moved",
            "least",
            "speed",
            "agent CPU",
            "memory",
        ]
        .map(str::to_owned),
    ];
    let percent = |v: Option<f64>| v.map_or("-".to_owned(), |v| format!("{:.1} %", v * 100.0));
    let mib = |v: Option<u64>| v.map_or("-".to_owned(), |v| format!("{:.0} MiB", v as f64 / MIB));
    for run in runs {
        for (guest, summary) in &run.summary {
            let name = if run.summary.len() > 1 {
                format!("{} {guest}", run.run)
            } else {
                run.run.clone()
            };
            rows.push([
                name,
                percent(summary.share_before),
                percent(summary.share_at_10_s),
                percent(summary.share_at_20_s),
                percent(summary.plateau_mean),
                percent(summary.plateau_std),
                summary
                    .seconds_to_95
                    .map_or("-".to_owned(), |s| format!("{s:.1} s")),
                mib(summary.moved_bytes),
                mib(summary.least_bytes),
                summary
                    .throughput_ratio
                    .map_or("-".to_owned(), |r| format!("× {r:.2}")),
                percent(summary.agent_cpu_share),
                match run.integrity.get(guest) {
                    Some(true) => "intact".to_owned(),
                    Some(false) => "LOST BYTES".to_owned(),
                    None => "-".to_owned(),
                },
            ]);
        }
    }
    if rows.len() == 1 {
        return Vec::new();
    }
    align(&rows)
}

/// Columns of equal width; the first is aligned to the left, the others to the right.
fn align<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    rows.iter()
        .map(|row| {
            let cells = row
                .iter()
                .zip(widths)
                .enumerate()
                .map(|(n, (cell, width))| {
                    if n == 0 {
                        format!("{cell:<width$}")
                    } else {
                        format!("{cell:>width$}")
                    }
                });
            cells.collect::<Vec<_>>().join("  ")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_when_the_share_is_out_of_range_stays_in_its_width() {
        for share in [-1.0, 0.0, 0.5, 1.0, 7.0, f64::NAN] {
            assert_eq!(bar(share).len(), BAR_CELLS);
        }
        assert_eq!(bar(0.5).matches('#').count(), BAR_CELLS / 2);
    }

    #[test]
    fn shortened_when_a_text_is_long_cuts_between_characters() {
        assert_eq!(shortened("×"), "×");
        assert_eq!(shortened(&"×".repeat(200)).chars().count(), 162);
    }

    #[test]
    fn table_when_cells_differ_in_length_is_aligned() {
        let rows = [["run", "end"], ["a long name", "5 %"]].map(|r| r.map(str::to_owned));

        let lines = align(&rows);

        assert_eq!(lines, ["run          end", "a long name  5 %"]);
    }

    #[test]
    fn table_when_no_run_has_a_summary_is_empty() {
        assert!(summary_table(&[RunResult::default()]).is_empty());
    }
}
