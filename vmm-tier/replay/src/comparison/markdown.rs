//! Tables for documents: traces and sizes as rows, policies as columns.

use std::fmt::Write as _;

use tier_core::text::{size::human, table::count};

use super::report::{Report, Run};
use crate::policy::oracle::PlanKind;

/// One figure of a run as a cell.
type Cell = fn(&Run) -> Option<f64>;

/// The heading of the last column, and what it says of the oracle, by which the rest is to be read.
type Last = (&'static str, fn(&Run) -> String);

/// All traces of the report. Bold is the best of those that don't know the future.
pub(super) fn tables(report: &Report) -> String {
    let mut out = String::from("Hits over those of the oracle, in percent:\n\n");
    let share: Cell = |run| run.oracle_share.map(|share| 100.0 * share);
    let hits: Last = ("oracle's hits", |run| {
        format!("{:.1} %", 100.0 * run.hit_ratio)
    });
    by_trace(&mut out, report, 1, share, true, hits);
    out.push_str("\nBytes moved over those that the oracle moves:\n\n");
    let moved: Last = ("oracle moves", |run| human(run.moved_bytes));
    by_trace(&mut out, report, 2, Run::moved_over_least, false, moved);
    out.push_str("\nOver all rows above:\n\n");
    overall(&mut out, report);
    left_out(&mut out, report);
    out
}

/// A line for each trace of which not all counts.
fn left_out(out: &mut String, report: &Report) {
    for trace in &report.traces {
        let most = |of: fn(&Run) -> u64| report.runs_of(&trace.trace).map(of).max().unwrap_or(0);
        let parts = [
            (most(|run| run.samples.lost), "samples lost"),
            (
                most(|run| run.samples.dropped.values().sum()),
                "samples dropped",
            ),
            (trace.outside, "accesses outside the guest's memory"),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| format!("{} {what}", count(*n)))
            .collect();
        if !parts.is_empty() {
            let _ = writeln!(out, "\nLeft out of {}: {}.", trace.trace, parts.join(", "));
        }
    }
}

fn is_oracle(policy: &str) -> bool {
    [PlanKind::Paying, PlanKind::Free]
        .iter()
        .any(|kind| kind.name() == policy)
}

/// The policies of all traces, in the order of tables.
fn policies(report: &Report) -> Vec<&str> {
    let mut found: Vec<&str> = Vec::new();
    for run in &report.runs {
        if !found.contains(&run.policy.as_str()) {
            found.push(&run.policy);
        }
    }
    found
}

/// A row for each trace and size.
fn by_trace(
    out: &mut String,
    report: &Report,
    digits: usize,
    cell: Cell,
    has_best: bool,
    (last, of_oracle): Last,
) {
    let policies = policies(report);
    let shown: Vec<&str> = policies
        .into_iter()
        .filter(|policy| *policy != PlanKind::Paying.name())
        .collect();
    let _ = writeln!(out, "| trace | DRAM | {} | {last} |", shown.join(" | "));
    let _ = writeln!(out, "|---|---:|{}---:|", "---:|".repeat(shown.len()));
    for trace in &report.traces {
        for fast_bytes in report.sizes_of(&trace.trace) {
            let runs = || {
                let runs = report.runs_of(&trace.trace);
                runs.filter(move |run| run.fast_bytes == fast_bytes)
            };
            let round = |value: f64| format!("{value:.digits$}");
            let best = runs()
                .filter(|run| has_best && !is_oracle(&run.policy))
                .filter_map(cell)
                .reduce(f64::max)
                .map(round);
            let cells = shown.iter().map(|policy| {
                let run = runs().find(|run| run.policy == *policy);
                match run.and_then(cell).map(round) {
                    Some(text) if Some(&text) == best.as_ref() && !is_oracle(policy) => {
                        format!("**{text}**")
                    }
                    Some(text) => text,
                    None => "–".to_owned(),
                }
            });
            let cells: Vec<String> = cells.collect();
            let share = 100.0 * fast_bytes as f64 / trace.guest_bytes as f64;
            let oracle = runs().find(|run| run.policy == PlanKind::Paying.name());
            let _ = writeln!(
                out,
                "| {} | {share:.1} % | {} | {} |",
                trace.trace,
                cells.join(" | "),
                oracle.map(of_oracle).unwrap_or_default(),
            );
        }
    }
}

/// A row for each policy.
fn overall(out: &mut String, report: &Report) {
    out.push_str(
        "| policy | hits / oracle's, mean | least | moved / least, mean | ping-pong, mean | plateau after, mean | slowdown, \
         mean | CPU ns / sample, median | bytes / page |\n",
    );
    out.push_str("|---|---:|---:|---:|---:|---:|---:|---:|---:|\n");
    for policy in policies(report) {
        let of = |cell: Cell| -> Vec<f64> {
            let runs = report.runs.iter().filter(|run| run.policy == policy);
            let mut values: Vec<f64> = runs.filter_map(cell).collect();
            values.sort_unstable_by(f64::total_cmp);
            values
        };
        let pages = |run: &Run| {
            let trace = report.traces.iter().find(|trace| trace.trace == run.trace);
            trace.map_or(1, |trace| trace.pages.max(1))
        };
        let memory = report.runs.iter().filter(|run| run.policy == policy);
        let memory: Vec<f64> = memory
            .map(|run| run.memory_bytes as f64 / f64::from(pages(run)))
            .collect();
        let share = of(|run| run.oracle_share.map(|share| 100.0 * share));
        let settled = of(|run| run.settling_time().map(|time| time.as_secs_f64()));
        let ns = of(|run| run.ns_per_sample);
        let _ = writeln!(
            out,
            "| {policy} | {} % | {} % | {} | {} % | {} s | {} | {} | {} |",
            text(mean(&share), 1),
            text(share.first().copied(), 1),
            text(mean(&of(Run::moved_over_least)), 2),
            text(mean(&of(|run| Some(100.0 * run.ping_pong))), 1),
            text(mean(&settled), 1),
            text(mean(&of(|run| Some(run.slowdown))), 2),
            text(ns.get(ns.len() / 2).copied(), 0),
            text(mean(&memory), 1),
        );
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    let sum: f64 = values.iter().sum();
    (!values.is_empty()).then(|| sum / values.len() as f64)
}

fn text(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}
