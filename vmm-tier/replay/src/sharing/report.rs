//! What a comparison of rules shows.

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::rule::Division;

/// What every rule made of the same VMs and the same DRAM.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct SharingReport {
    /// VMs, those that came later or left earlier included.
    pub(super) vms: usize,
    /// VMs that lie.
    pub(super) liars: usize,
    /// VMs that run without a guarantee since the pool could not keep it.
    pub(super) refused_guarantees: usize,
    /// Memory of all VMs.
    pub(super) memory_bytes: u64,
    /// DRAM that they share.
    pub(super) pool_bytes: u64,
    /// How long it ran.
    pub(super) seconds: u32,
    /// The rules.
    pub(super) runs: Vec<Row>,
}

/// What a rule made of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Row {
    /// The rule.
    pub(super) rule: &'static str,
    /// The share of all accesses that DRAM served.
    pub(super) hit_ratio: f64,
    /// Hits relative to those of the same rule by someone who knows what is so, and whose shares take
    /// effect at once.
    pub(super) of_clairvoyant: Option<f64>,
    /// Hits relative to those of first come, first served.
    pub(super) of_first_come: f64,
    /// Jain's index, the mean of all seconds.
    pub(super) jain: f64,
    /// Jain's index over what VMs used in their lives, of the lesser of what they were entitled to and what
    /// they wanted.
    pub(super) lives_jain: f64,
    /// VMs that envy another, the mean of all seconds.
    pub(super) envy: f64,
    /// Bytes by which VMs had less than they used of their guarantees, times seconds.
    pub(super) deficit_byte_seconds: f64,
    /// Bytes that moved since shares changed.
    pub(super) moved_bytes: u64,
    /// The hits of those that lie relative to what they would have had with the truth.
    pub(super) liars_gain: Option<f64>,
}

/// A column of the tables: its heading, and a run's cell.
type Column = (&'static str, fn(&Row) -> String);

const GIB: f64 = (1_u64 << 30) as f64;

const COLUMNS: [Column; 10] = [
    ("rule", |row| row.rule.to_owned()),
    ("in DRAM", |row| format!("{:.1} %", row.hit_ratio * 100.0)),
    ("of clairvoyant", |row| or_dash(row.of_clairvoyant)),
    ("of first-come", |row| format!("{:.2}", row.of_first_come)),
    ("Jain", |row| format!("{:.3}", row.jain)),
    ("lives' Jain", |row| format!("{:.3}", row.lives_jain)),
    ("envy", |row| format!("{:.1}", row.envy)),
    ("deficit GiB·s", |row| {
        format!("{:.1}", row.deficit_byte_seconds / GIB)
    }),
    ("moved GiB", |row| {
        format!("{:.1}", row.moved_bytes as f64 / GIB)
    }),
    ("liars' gain", |row| or_dash(row.liars_gain)),
];

fn or_dash(figure: Option<f64>) -> String {
    figure.map_or("-".to_owned(), |figure| format!("{figure:.3}"))
}

impl Row {
    pub(super) fn new(
        division: &Division,
        honest: Option<&Division>,
        clairvoyant: Option<&Division>,
        first_come: &Division,
        accesses: f64,
    ) -> Self {
        let seconds = f64::from(division.seconds.max(1));
        let over = |hits: f64, of: f64| if of > 0.0 { hits / of } else { 1.0 };
        Self {
            rule: division.name,
            hit_ratio: over(division.hits, accesses),
            of_clairvoyant: clairvoyant.map(|other| over(division.hits, other.hits)),
            of_first_come: over(division.hits, first_come.hits),
            jain: division.jain_sum / seconds,
            lives_jain: division.lives_jain(),
            envy: division.envy_sum as f64 / seconds,
            deficit_byte_seconds: division.last.deficit_byte_seconds,
            moved_bytes: division.moved_bytes,
            liars_gain: honest.map(|other| over(division.liars_hits, other.liars_hits)),
        }
    }
}

impl SharingReport {
    /// What was shared by whom.
    fn headline(&self) -> String {
        let Self {
            vms,
            liars,
            refused_guarantees: refused,
            seconds,
            ..
        } = self;
        format!(
            "{vms} VMs of {:.1} GiB in all share {:.1} GiB of DRAM for {seconds} s; {liars} of them lie, {refused} run \
             without the guarantee they asked for",
            self.memory_bytes as f64 / GIB,
            self.pool_bytes as f64 / GIB,
        )
    }

    /// The cells of a table, line by line.
    fn lines(&self) -> impl Iterator<Item = [String; COLUMNS.len()]> {
        let heading = COLUMNS.map(|(heading, _)| heading.to_owned());
        let rows = self.runs.iter();
        let rows = rows.map(|row| COLUMNS.map(|(_, cell)| cell(row)));
        std::iter::once(heading).chain(rows)
    }

    /// The table for a document.
    pub(super) fn markdown(&self) -> String {
        let mut out = format!("{}:\n\n", self.headline());
        for (nth, cells) in self.lines().enumerate() {
            let _ = writeln!(out, "| {} |", cells.join(" | "));
            if nth == 0 {
                let _ = writeln!(out, "|---{}|", "|---:".repeat(COLUMNS.len() - 1));
            }
        }
        out
    }
}

impl fmt::Display for SharingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.headline())?;
        let widths = COLUMNS.map(|(heading, _)| heading.chars().count().max(8));
        for [rule, cells @ ..] in self.lines() {
            write!(f, "{rule:<22}")?;
            for (cell, width) in cells.iter().zip(&widths[1..]) {
                write!(f, " {cell:>width$}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
