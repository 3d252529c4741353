//! The table of a run: for the screen, as JSON, and as a page of the documentation.

use std::fmt::Write;

use serde::Serialize;

use super::{Findings, Layout, Options, Version, layout::GIB, layout::MIB};

/// How one layout on one version went.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The comparison was made.
    Checked(Findings),
    /// The layout can't be had here, and why.
    Skipped(String),
    /// There is no map, or no guest.
    Failed(String),
}

/// One layout on one version.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Row {
    /// The layout's name.
    pub layout: &'static str,
    /// QEMU's version.
    pub qemu: String,
    /// QEMU's arguments.
    pub arguments: String,
    /// How it went.
    pub outcome: Outcome,
}

/// A whole run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// Where the random numbers began.
    pub seed: u64,
    /// Addresses asked for in each layout.
    pub addresses: usize,
    /// QEMU's versions.
    pub versions: Vec<String>,
    /// A row for each layout and version.
    pub rows: Vec<Row>,
}

impl Row {
    pub(super) fn new(layout: &Layout, version: &Version, outcome: Outcome) -> Self {
        Self {
            layout: layout.name,
            qemu: version.name.clone(),
            arguments: layout.arguments.clone(),
            outcome,
        }
    }

    /// The row in one line.
    pub(super) fn line(&self) -> String {
        let head = format!("{}, QEMU {}:", self.layout, self.qemu);
        match &self.outcome {
            Outcome::Checked(found) => format!(
                "{head} {} ranges, {}, {} + {} addresses, {} mismatches",
                found.ranges,
                human(found.bytes),
                found.inside,
                found.outside,
                found.mismatches
            ),
            Outcome::Skipped(why) => format!("{head} SKIPPED: {why}"),
            Outcome::Failed(why) => format!("{head} FAILED: {why}"),
        }
    }

    fn cells(&self) -> [String; 8] {
        let cells = match &self.outcome {
            Outcome::Checked(found) => [
                found.ranges.to_string(),
                human(found.bytes),
                found.translations.to_string(),
                milliseconds(found.elapsed_us),
                format!("{} + {}", found.inside, found.outside),
                found.mismatches.to_string(),
            ],
            Outcome::Skipped(why) => told_instead(format!("SKIPPED: {why}")),
            Outcome::Failed(why) => told_instead(format!("FAILED: {why}")),
        };
        let [ranges, bytes, translations, time, addresses, mismatches] = cells;
        let layout = self.layout.to_owned();
        let qemu = self.qemu.clone();
        [
            layout,
            qemu,
            ranges,
            bytes,
            translations,
            time,
            addresses,
            mismatches,
        ]
    }
}

fn told_instead(why: String) -> [String; 6] {
    let dash = || "-".to_owned();
    [dash(), dash(), dash(), dash(), dash(), why]
}

impl Report {
    pub(super) fn new(options: &Options, versions: &[Version]) -> Self {
        let names = versions.iter().map(|version| version.name.clone());
        Self {
            seed: options.seed,
            addresses: options.addresses,
            versions: names.collect(),
            rows: Vec::new(),
        }
    }

    /// Whether every map agreed with everything else.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.rows.iter().all(|row| match &row.outcome {
            Outcome::Checked(found) => found.mismatches == 0,
            Outcome::Skipped(_) => true,
            Outcome::Failed(_) => false,
        })
    }

    /// How many were checked, skipped and failed (a mismatch is a failure).
    #[must_use]
    pub fn counts(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for row in &self.rows {
            let place = match &row.outcome {
                Outcome::Checked(found) if found.mismatches == 0 => 0,
                Outcome::Skipped(_) => 1,
                Outcome::Checked(_) | Outcome::Failed(_) => 2,
            };
            counts[place] += 1;
        }
        counts
    }

    /// What the run found, in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let [good, skipped, bad] = self.counts();
        let (mut inside, mut outside, mut mismatches) = (0, 0, 0);
        for row in &self.rows {
            if let Outcome::Checked(found) = &row.outcome {
                inside += found.inside;
                outside += found.outside;
                mismatches += found.mismatches;
            }
        }
        format!(
            "{good} guests right, {bad} wrong, {skipped} skipped; {inside} addresses written and read \
             back, {outside} asked for outside, {mismatches} mismatches"
        )
    }

    /// The table, and below it what is wrong.
    #[must_use]
    pub fn text(&self) -> String {
        let mut rows = vec![HEADINGS.map(str::to_owned)];
        rows.extend(self.rows.iter().map(Row::cells));
        let mut widths = [0; 8];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                // A reason may be long; it is the last cell.
                *width = (*width).max(cell.chars().count().min(40));
            }
        }
        let mut out = String::new();
        for row in &rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
                let _ = match column {
                    0 | 1 | 7 => write!(line, "{cell:<width$}  "),
                    _ => write!(line, "{cell:>width$}  "),
                };
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
        for row in &self.rows {
            if let Outcome::Checked(found) = &row.outcome {
                for told in &found.told {
                    let _ = writeln!(out, "{}, QEMU {}: {told}", row.layout, row.qemu);
                }
            }
        }
        let _ = writeln!(out, "\n{}", self.summary());
        out
    }

    /// The page of the documentation.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "# Memory layouts\n\n\
             Made by `scripts/layouts`, on QEMU {}, seed {}. {}.\n\n\
             Each row is a guest on live QEMU: a random word is written at each address inside the map through\n\
             qtest and read back at the mapped address from `/proc/PID/mem`; QEMU's `gpa2hva` must say the same\n\
             place inside, and no RAM outside (around all ends, at devices, and at random up to 1 TiB); and the\n\
             ranges must be those of QEMU's flat view. Addresses are \"inside + outside\"; a range of the wrong\n\
             size, page size or place is a mismatch too. The map begins at 1 MiB. The time is that of finding the\n\
             map, not of starting the program: the median of several times.\n\n",
            self.versions.join(" and "),
            self.seed,
            self.summary()
        );
        let _ = writeln!(out, "| {} |", HEADINGS.join(" | "));
        let _ = writeln!(out, "|---|---|--:|--:|--:|--:|--:|---|");
        for row in &self.rows {
            let cells = row.cells().map(|cell| cell.replace('|', "\\|"));
            let _ = writeln!(out, "| {} |", cells.join(" | "));
        }
        out.push_str("\n## QEMU's arguments\n\n| layout | arguments |\n|---|---|\n");
        let mut last = "";
        for row in &self.rows {
            if row.layout != last {
                let _ = writeln!(out, "| {} | `{}` |", row.layout, row.arguments);
            }
            last = row.layout;
        }
        out
    }
}

const HEADINGS: [&str; 8] = [
    "layout",
    "QEMU",
    "ranges",
    "mapped",
    "translations",
    "ms",
    "addresses",
    "mismatches",
];

/// Bytes with the largest unit that leaves a whole number.
fn human(bytes: u64) -> String {
    match bytes {
        _ if bytes >= GIB && bytes.is_multiple_of(GIB) => format!("{} GiB", bytes / GIB),
        _ if bytes.is_multiple_of(MIB) => format!("{} MiB", bytes / MIB),
        _ => format!("{} KiB", bytes >> 10),
    }
}

fn milliseconds(us: u64) -> String {
    format!("{}.{}", us / 1000, us % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: Vec<Outcome>) -> Report {
        let row = |outcome| Row {
            layout: "q35",
            qemu: "7.2.22".to_owned(),
            arguments: "-M q35".to_owned(),
            outcome,
        };
        Report {
            seed: 1,
            addresses: 1000,
            versions: vec!["7.2.22".to_owned()],
            rows: outcomes.into_iter().map(row).collect(),
        }
    }

    fn checked(mismatches: u64) -> Outcome {
        Outcome::Checked(Findings {
            ranges: 2,
            bytes: 5 * GIB - MIB,
            translations: 29,
            elapsed_us: 14_250,
            inside: 1000,
            outside: 1100,
            mismatches,
            told: vec!["RAM not mapped: 0x1".to_owned(); mismatches.min(1) as usize],
        })
    }

    #[test]
    fn report_when_one_address_differs_is_not_good_and_says_which() {
        let good = report(vec![checked(0), Outcome::Skipped("no pages".to_owned())]);
        let bad = report(vec![checked(3)]);

        assert!(good.is_good());
        assert!(!bad.is_good());
        assert!(bad.text().contains("q35, QEMU 7.2.22: RAM not mapped: 0x1"));
        assert!(!report(vec![Outcome::Failed("gone".to_owned())]).is_good());
    }

    #[test]
    fn page_when_a_layout_was_checked_has_its_row() {
        let page = report(vec![checked(0), Outcome::Skipped("no pages".to_owned())]).markdown();

        assert!(page.contains("| q35 | 7.2.22 | 2 | 5119 MiB | 29 | 14.2 | 1000 + 1100 | 0 |"));
        assert!(page.contains("| q35 | 7.2.22 | - | - | - | - | - | SKIPPED: no pages |"));
        assert_eq!(page.matches("`-M q35`").count(), 1);
    }
}
