//! What a person sees of a lab run: what is happening and for how long, bars, and tables.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::event::{Event, Mark, Sample};
use crate::patience::Pace;
use crate::result::ScenarioResult;

mod tables;

use tables::{bar, bar_of, changes_tables, costs_table, shortened, story, summary_table};

/// Without a terminal, a step that takes long says so this often.
const STILL_EVERY: Duration = Duration::from_secs(15);

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
    /// How long all takes from its begin, once that is known.
    expected: Option<Duration>,
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
            expected: None,
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

    /// Says how fast this machine is, and how long all will take from the boot on.
    pub fn expect(&mut self, pace: Pace, reference: Duration) {
        self.expected = Some(self.began.elapsed() + reference.mul_f64(pace.factor()));
        self.line(&format!("          {}", pace.told(reference)));
    }

    /// Called often: keeps the elapsed time of what takes long in sight.
    pub fn tick(&mut self) {
        let Some((what, since)) = &self.doing else {
            return;
        };
        let seconds = since.elapsed().as_secs();
        if seconds == 0 {
            return;
        }
        if self.terminal {
            // A bar of the whole below what is written last.
            let status = match self.expected {
                Some(expected) => {
                    let share = self.began.elapsed().as_secs_f64() / expected.as_secs_f64();
                    format!("[{}] {what}, {seconds} s", bar_of(share.min(0.99), 24))
                }
                None => format!("{what}, {seconds} s"),
            };
            let _ = write!(self.out, "\r\x1b[K{status}");
            let _ = self.out.flush();
            self.status_shown = true;
        } else if self.run.start.is_none() && self.reminded.elapsed() >= STILL_EVERY {
            // Lines of measurements show that it goes on, where there are any.
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
            Event::Costs(costs) => {
                for line in costs_table(costs) {
                    self.line(&line);
                }
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
                moved as f64 / tables::MIB,
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
            self.line("The emulator has no latency: speed tells only what the agent costs, on a quiet machine.");
            self.line("");
        } else {
            let tables = [summary_table(&result.runs), changes_tables(&result.runs)];
            for line in tables.iter().flatten() {
                self.line(line);
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
        let retries = match result.retries.len() {
            0 => String::new(),
            n => format!(", try {} after faults of the emulator", n + 1),
        };
        self.line(&format!(
            "{} {word} in {:.0} s{retries}",
            result.scenario, result.seconds
        ));
    }
}
