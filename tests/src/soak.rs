//! The same scenario many times over: how often it passes, and how its figures spread.

use std::fmt;

use crate::result::ScenarioResult;
use crate::stats::median;
use crate::summary::Summary;

/// The head of the table whose rows are [`Row`].
pub const HEAD: &str = "\
| scenario | passed | seconds: median (least – most) | 95 % in DRAM after: median (most) | hot set in DRAM at the end, least | moved / least, most | retries |
|---|---|---|---|---|---|---|";

/// All runs of one scenario. Written as a row of a Markdown table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    scenario: String,
    runs: usize,
    passed: usize,
    seconds: Vec<f64>,
    to_95: Vec<f64>,
    at_end: Vec<f64>,
    over_least: Vec<f64>,
    retries: usize,
}

impl Row {
    /// Takes figures of all guests of all runs; those that were not measured are left out.
    #[must_use]
    pub fn of(scenario: &str, results: &[ScenarioResult]) -> Self {
        let summaries = || {
            let runs = results.iter().flat_map(|result| &result.runs);
            runs.flat_map(|run| run.summary.values())
        };
        let moved = |summary: &Summary| {
            let least = summary.least_bytes.filter(|least| *least > 0)?;
            Some(summary.moved_bytes? as f64 / least as f64)
        };
        Self {
            scenario: scenario.to_owned(),
            runs: results.len(),
            passed: results.iter().filter(|result| result.pass).count(),
            seconds: results.iter().map(|result| result.seconds).collect(),
            to_95: summaries().filter_map(|s| s.seconds_to_95).collect(),
            at_end: summaries().filter_map(|s| s.share_at_end).collect(),
            over_least: summaries().filter_map(moved).collect(),
            retries: results.iter().map(|result| result.retries.len()).sum(),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = |values: &[f64]| values.iter().copied().reduce(f64::min);
        let most = |values: &[f64]| values.iter().copied().reduce(f64::max);
        let figure = |value: Option<f64>, digits: usize, unit: &str| match value {
            Some(value) => format!("{value:.digits$}{unit}"),
            None => "–".to_owned(),
        };
        let percent = least(&self.at_end).map(|share| share * 100.0);
        write!(
            f,
            "| {} | {} of {} | {} ({} – {}) | {} ({}) | {} | {} | {} |",
            self.scenario,
            self.passed,
            self.runs,
            figure(median(&self.seconds), 0, ""),
            figure(least(&self.seconds), 0, ""),
            figure(most(&self.seconds), 0, ""),
            figure(median(&self.to_95), 1, " s"),
            figure(most(&self.to_95), 1, " s"),
            figure(percent, 1, " %"),
            figure(most(&self.over_least), 2, ""),
            self.retries,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Fault;
    use crate::result::tests::lifted;
    use crate::result::{Retry, RunResult};

    #[test]
    fn row_when_runs_differ_tells_their_spread() {
        let result = |pass, seconds, retries: usize| {
            let mut run = lifted();
            run.summary.extend(
                run.summarize("guest")
                    .map(|summary| ("guest".to_owned(), summary)),
            );
            let fault = Fault::CpuLost;
            ScenarioResult {
                pass,
                seconds,
                runs: vec![run],
                retries: vec![Retry { fault, seconds }; retries],
                ..ScenarioResult::default()
            }
        };
        let mut unmeasured = result(false, 90.0, 2);
        unmeasured.runs = vec![RunResult::default()];

        let row = Row::of(
            "demo",
            &[result(true, 50.0, 0), result(true, 60.0, 1), unmeasured],
        );

        assert_eq!(
            row.to_string(),
            "| demo | 2 of 3 | 60 (50 – 90) | 4.5 s (4.5 s) | 100.0 % | 1.00 | 3 |"
        );
        assert_eq!(
            HEAD.lines().next().unwrap().matches('|').count(),
            row.to_string().matches('|').count()
        );
    }

    #[test]
    fn row_when_nothing_was_measured_has_no_figures() {
        let row = Row::of("bad-input", &[ScenarioResult::default()]);

        assert_eq!(
            row.to_string(),
            "| bad-input | 0 of 1 | 0 (0 – 0) | – (–) | – | – | 0 |"
        );
    }
}
