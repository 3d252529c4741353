//! The tables: aligned for a terminal, and in Markdown.

use tier_core::text::table::table;

use crate::{
    SIZES,
    rules::Rule,
    tally::{Tally, median, most},
};

/// What a guest is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Changing,
    Steady,
    Recorded,
}

/// A guest with a size of DRAM under a rule.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The guest's memory over DRAM.
    pub(crate) size: u64,
    pub(crate) rule: Rule,
    pub(crate) tally: Tally,
}

/// A number with so many places, or a dash.
fn number(value: Option<f64>, places: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.places$}"))
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

/// The detector in use, guest by guest.
fn detector(rows: &[Row]) -> Vec<Vec<String>> {
    let mut out = vec![words([
        "guest",
        "DRAM",
        "minutes",
        "changes",
        "noticed",
        "from rest",
        "noticed",
        "median s",
        "worst s",
        "1 MiB moved s",
        "false/10 min rest",
        "false/10 min work",
        "at rest",
        "hits",
        "MiB moved/10 min",
    ])];
    out.extend(
        rows.iter()
            .filter(|row| row.rule == Rule::InUse)
            .map(|row| {
                let tally = &row.tally;
                let has_changes = tally.changes > 0;
                let noticed = |noticed: usize| match has_changes {
                    true => noticed.to_string(),
                    false => "–".to_owned(),
                };
                vec![
                    row.name.to_owned(),
                    format!("1/{}", row.size),
                    format!("{:.0}", tally.seconds / 60.0),
                    tally.changes.to_string(),
                    noticed(tally.delays.len()),
                    noticed(tally.at_rest),
                    noticed(tally.noticed_at_rest),
                    number(median(&tally.delays), 1),
                    number(most(&tally.delays), 1),
                    number(median(&tally.acted), 1),
                    number(tally.false_rate_at_rest(), 2),
                    number(tally.false_rate_at_work(), 2),
                    format!("{:.0} %", 100.0 * tally.rest_share()),
                    number(tally.hit_ratio().map(|hits| 100.0 * hits), 1),
                    format!("{:.0}", tally.moved_rate()),
                ]
            }),
    );
    out
}

/// All rules, over guests of a kind.
fn tried(rows: &[Row]) -> Vec<Vec<String>> {
    let mut out = vec![words([
        "rule",
        "DRAM",
        "noticed",
        "from rest",
        "median s",
        "worst s",
        "1 MiB moved s",
        "acted",
        "hits",
        "false/10 min rest",
        "worst guest",
        "at rest, steady",
        "programs: noticed",
        "false/10 min rest",
    ])];
    for rule in Rule::ALL {
        for size in SIZES {
            let of = |kind| {
                let of_rule = move |row: &&Row| row.rule == rule && row.size == size;
                rows.iter()
                    .filter(of_rule)
                    .filter(move |row| row.kind == kind)
            };
            let sum = |kind| {
                let mut sum = Tally::default();
                of(kind).for_each(|row| sum.merge(&row.tally));
                sum
            };
            let (changing, steady, programs) =
                (sum(Kind::Changing), sum(Kind::Steady), sum(Kind::Recorded));
            let worst = of(Kind::Steady)
                .filter_map(|row| row.tally.false_rate_at_rest())
                .max_by(f64::total_cmp);
            out.push(vec![
                rule.name().to_owned(),
                format!("1/{size}"),
                format!("{} of {}", changing.delays.len(), changing.changes),
                format!("{} of {}", changing.noticed_at_rest, changing.at_rest),
                number(median(&changing.delays), 1),
                number(most(&changing.delays), 1),
                number(median(&changing.acted), 1),
                format!("{} of {}", changing.acted.len(), changing.changes),
                number(changing.hit_ratio().map(|hits| 100.0 * hits), 1),
                number(steady.false_rate_at_rest(), 2),
                number(worst, 2),
                format!("{:.0} %", 100.0 * steady.rest_share()),
                format!("{} of {}", programs.delays.len(), programs.changes),
                number(programs.false_rate_at_rest(), 2),
            ]);
        }
    }
    out
}

/// For a terminal.
pub(crate) fn text(rows: &[Row]) -> String {
    let is_right = |column| column > 0;
    let (detector, tried) = (detector(rows), tried(rows));
    format!(
        "{}\n{}",
        table(&detector, is_right),
        table(&tried, is_right)
    )
}

/// For a document.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let table = |rows: Vec<Vec<String>>| {
        let columns = rows[0].len();
        let mut lines: Vec<String> = rows
            .iter()
            .map(|row| format!("| {} |\n", row.join(" | ")))
            .collect();
        lines.insert(1, format!("|---|{}\n", "---:|".repeat(columns - 1)));
        lines.concat()
    };
    format!(
        "The detector in use:\n\n{}\nAll rules:\n\n{}",
        table(detector(rows)),
        table(tried(rows))
    )
}
