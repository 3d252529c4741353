//! The report as text: a table for each trace and size, and the curve.

use std::{collections::BTreeSet, fmt::Write as _};

use tier_core::sample::DropReason;
use tier_core::text::{
    size::human,
    table::{count, table},
};

use super::{
    charts::{self, NoCharts},
    report::{Bound, Plateau, Report, Run, Trace},
};

/// The headings of a table's columns, each with what is below it.
const HEADINGS: [&str; 9] = [
    "policy",
    "in DRAM",
    "of oracle",
    "moved",
    "/ least",
    "ping-pong",
    "plateau after",
    "slowdown",
    "ns/sample",
];
/// Most phases that are shown one by one; of more phases the median is shown.
const EACH_PHASE: usize = 3;

/// All traces, with the curve where there are several sizes.
pub(super) fn report(report: &Report, has_chart: bool) -> String {
    let mut out = String::new();
    let mut is_short_of_curves = false;
    for trace in &report.traces {
        if !out.is_empty() {
            out.push('\n');
        }
        write_trace(&mut out, report, trace);
        let sizes = report.sizes_of(&trace.trace);
        if has_chart && sizes.len() > 1 {
            match charts::text(report, trace) {
                Ok(chart) => {
                    let _ = write!(out, "\n{chart}");
                }
                Err(NoCharts) => is_short_of_curves = true,
            }
        }
        write_needs(&mut out, report, trace);
        for note in &trace.notes {
            let _ = writeln!(out, "\nnote: {note}");
        }
    }
    if is_short_of_curves {
        let _ = writeln!(out, "\nnote: {NoCharts}");
    }
    out
}

fn write_trace(out: &mut String, report: &Report, trace: &Trace) {
    let _ = writeln!(
        out,
        "{}: {} in {} pages{}, {} accesses in {}, {}",
        trace.trace,
        human(trace.guest_bytes),
        count(u64::from(trace.pages)),
        if trace.touched_only { " touched" } else { "" },
        count(trace.accesses),
        seconds(trace.seconds),
        match trace.samples_recorded {
            true => "all of them samples".to_owned(),
            false => format!("1 in {} sampled", trace.period),
        },
    );
    for fast_bytes in report.sizes_of(&trace.trace) {
        let runs: Vec<&Run> = report
            .runs_of(&trace.trace)
            .filter(|run| run.fast_bytes == fast_bytes)
            .collect();
        let _ = writeln!(
            out,
            "\n{} of DRAM, {} of the guest",
            human(fast_bytes),
            percent(fast_bytes as f64 / trace.guest_bytes as f64)
        );
        let mut rows = vec![HEADINGS.map(str::to_owned).to_vec()];
        rows.extend(runs.iter().map(|run| row(run)));
        out.push_str(&table(&rows, |column| column != 0));
        let _ = writeln!(out, "{}", samples(&runs));
    }
    if trace.outside > 0 {
        let _ = writeln!(
            out,
            "\n{} accesses outside the guest's memory were dropped",
            count(trace.outside)
        );
    }
}

fn row(run: &Run) -> Vec<String> {
    let dash = || "-".to_owned();
    let over_least = match run.moved_over_least() {
        Some(0.0) if run.least_bytes == 0 => dash(),
        Some(factor) => format!("{factor:.2}"),
        None => "inf".to_owned(),
    };
    vec![
        run.policy.clone(),
        percent(run.hit_ratio),
        run.oracle_share.map_or_else(dash, percent),
        human(run.moved_bytes),
        over_least,
        percent(run.ping_pong),
        settled(run),
        format!("{:.2}", run.slowdown),
        run.ns_per_sample.map_or_else(dash, |ns| format!("{ns:.0}")),
    ]
}

/// `2 s, 5 s, -`, or the median of many.
fn settled(run: &Run) -> String {
    let each = |plateau: &Plateau| plateau.reached_after_s.map_or("-".to_owned(), seconds);
    if run.plateaus.len() <= EACH_PHASE {
        let all: Vec<String> = run.plateaus.iter().map(each).collect();
        return all.join(", ");
    }
    let median = run.settling_time();
    median.map_or("-".to_owned(), |time| {
        format!("{} (median)", seconds(time.as_secs_f64()))
    })
}

/// Arrived and accepted side by side, and what became of the rest. Policies differ where the source sees
/// accesses to DRAM better: then from the least to the most.
fn samples(runs: &[&Run]) -> String {
    let span = |of: fn(&Run) -> u64| {
        let least = runs.iter().map(|run| of(run)).min().unwrap_or(0);
        let most = runs.iter().map(|run| of(run)).max().unwrap_or(0);
        let (least, most) = (count(least), count(most));
        match least == most {
            true => most,
            false => format!("{least} to {most}"),
        }
    };
    let mut line = format!(
        "samples: {} arrived, {} accepted, {} lost, {} dropped",
        span(|run| run.samples.arrived),
        span(|run| run.samples.accepted),
        span(|run| run.samples.lost),
        span(|run| run.samples.dropped.values().sum()),
    );
    let reasons: BTreeSet<DropReason> = runs
        .iter()
        .flat_map(|run| run.samples.dropped.keys().copied())
        .collect();
    if !reasons.is_empty() {
        let words: Vec<String> = reasons.into_iter().map(word).collect();
        let _ = write!(line, " ({})", words.join(", "));
    }
    if runs.iter().any(|run| run.samples.unseen > 0) {
        let _ = write!(line, ", {} never seen", span(|run| run.samples.unseen));
    }
    line
}

/// The word that the JSON has for a reason.
fn word(reason: DropReason) -> String {
    let value = serde_json::to_value(reason).unwrap_or_default();
    value.as_str().unwrap_or("other").to_owned()
}

fn write_needs(out: &mut String, report: &Report, trace: &Trace) {
    let needs: Vec<_> = report
        .needs
        .iter()
        .filter(|need| need.trace == trace.trace)
        .collect();
    let Some(first) = needs.first() else {
        return;
    };
    let _ = writeln!(
        out,
        "\nDRAM for {} of the accesses",
        percent(first.hit_ratio)
    );
    let rows: Vec<Vec<String>> = needs
        .iter()
        .map(|need| {
            let bound = match need.bound {
                Bound::AtMost => "at most",
                Bound::About => "about",
                Bound::MoreThan => "more than",
            };
            let share = need.bytes as f64 / trace.guest_bytes as f64;
            vec![
                need.policy.clone(),
                bound.to_owned(),
                human(need.bytes),
                percent(share),
            ]
        })
        .collect();
    out.push_str(&table(&rows, |column| column > 1));
}

/// `12.5 %`, with one digit after the point.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// `0.3 s`, `12 s`.
fn seconds(seconds: f64) -> String {
    match seconds {
        s if s.fract() == 0.0 || s >= 100.0 => format!("{s:.0} s"),
        s if s >= 0.1 => format!("{s:.1} s"),
        s => format!("{s:.2e} s"),
    }
}
