//! Bars and tables: what the screen shows of a result, as text.

use crate::event::{Costs, GuestCosts};
use crate::result::RunResult;
use crate::stats::median;

/// Bytes of a mebibyte.
pub(super) const MIB: f64 = 1_048_576.0;
const BAR_CELLS: usize = 40;

/// As much of a text as a line can hold; the result has it whole.
pub(super) fn shortened(text: &str) -> String {
    const MOST: usize = 160;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text.to_owned(),
    }
}

/// A bar of fixed width for a share from 0 to 1.
pub(super) fn bar(share: f64) -> String {
    bar_of(share, BAR_CELLS)
}

/// The same of any width.
pub(super) fn bar_of(share: f64, cells: usize) -> String {
    let full = (share.clamp(0.0, 1.0) * cells as f64).round() as usize;
    format!("{}{}", "#".repeat(full), ".".repeat(cells - full))
}

/// What guests and agents cost: least, median and most of all of them.
pub(super) fn costs_table(costs: &Costs) -> Vec<String> {
    let mut rows = vec![["", "least", "median", "most"].map(str::to_owned)];
    let mut row = |name: &str, of: &dyn Fn(&GuestCosts) -> Option<f64>, unit: &str| {
        let mut values: Vec<f64> = costs.guests.values().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        let (Some(least), Some(most)) = (values.first(), values.last()) else {
            return;
        };
        let median = median(&values).unwrap_or(*least);
        let cell = |value: f64| format!("{value:.1} {unit}");
        rows.push([name.to_owned(), cell(*least), cell(median), cell(*most)]);
    };
    let kib = 1024.0;
    row(
        "QEMU, memory",
        &|c| Some(c.qemu?.memory_kib as f64 / kib),
        "MiB",
    );
    row(
        "QEMU, share of a CPU",
        &|c| Some(c.qemu?.cpu_share * 100.0),
        "%",
    );
    row(
        "agent, memory",
        &|c| Some(c.agent?.memory_kib as f64 / kib),
        "MiB",
    );
    row(
        "agent, share of a CPU",
        &|c| Some(c.agent?.cpu_share * 100.0),
        "%",
    );
    if rows.len() == 1 {
        return Vec::new();
    }
    let guests = costs.guests.len();
    let mut lines = vec![format!("          {guests} guests:")];
    lines.extend(
        align(&rows)
            .into_iter()
            .map(|line| format!("          {line}")),
    );
    lines
}

/// One run told as before and after: the demo's table.
pub(super) fn story(run: &RunResult) -> Vec<String> {
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
pub(super) fn summary_table(runs: &[RunResult]) -> Vec<String> {
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

/// The moves of the hot set, a row each, and what each phase cost.
pub(super) fn changes_tables(runs: &[RunResult]) -> Vec<String> {
    let head = |names: [&str; 8]| vec![names.map(str::to_owned)];
    let mut moves = head([
        "move of the hot set",
        "at",
        "lasted",
        "first byte",
        "50 % after",
        "95 % after",
        "moved",
        "least",
    ]);
    let mut phases =
        vec![["phase", "lasted", "agent CPU", "kdamond CPU", "moved"].map(str::to_owned)];
    let seconds = |v: Option<f64>| v.map_or("-".to_owned(), |s| format!("{s:.1} s"));
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / MIB);
    let percent = |share: f64| format!("{:.2} %", share * 100.0);
    for run in runs {
        for summary in run.summary.values().filter(|s| !s.changes.is_empty()) {
            for change in &summary.changes {
                moves.push([
                    run.run.clone(),
                    seconds(Some(change.at_s)),
                    seconds(Some(change.lasted_s)),
                    seconds(change.seconds_to_first),
                    seconds(change.seconds_to_50),
                    seconds(change.seconds_to_95),
                    mib(change.moved_bytes),
                    mib(change.least_bytes),
                ]);
            }
            for (phase, costs) in &summary.phases {
                phases.push([
                    format!("{}: {phase}", run.run),
                    seconds(Some(costs.seconds)),
                    percent(costs.agent_cpu_share),
                    percent(costs.kdamond_cpu_share),
                    mib(costs.moved_bytes),
                ]);
            }
        }
    }
    if moves.len() == 1 {
        return Vec::new();
    }
    [align(&moves), align(&phases)].concat()
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
    use crate::event::ProcessCosts;

    #[test]
    fn bar_when_the_share_is_out_of_range_stays_in_its_width() {
        for share in [-1.0, 0.0, 0.5, 1.0, 7.0, f64::NAN] {
            assert_eq!(bar(share).len(), BAR_CELLS);
        }
        assert_eq!(bar(0.5).matches('#').count(), BAR_CELLS / 2);
    }

    #[test]
    fn costs_when_guests_differ_show_least_median_and_most() {
        let guest = |mib: u64, share| GuestCosts {
            qemu: None,
            agent: Some(ProcessCosts {
                memory_kib: mib << 10,
                cpu_s: 1.0,
                cpu_share: share,
            }),
        };
        let guests = [
            ("a", guest(9, 0.01)),
            ("b", guest(4, 0.03)),
            ("c", guest(5, 0.02)),
        ];
        let costs = Costs {
            t: 1.0,
            guests: guests.map(|(name, guest)| (name.to_owned(), guest)).into(),
        };

        let table = costs_table(&costs).join("\n");

        assert!(table.contains("3 guests:"), "{table}");
        assert!(table.contains("4.0 MiB  5.0 MiB  9.0 MiB"), "{table}");
        assert!(table.contains("1.0 %    2.0 %    3.0 %"), "{table}");
        assert!(!table.contains("QEMU"));
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
