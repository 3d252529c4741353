//! The table of VMs: its columns, which of them fit, and in which order the VMs stand.

use std::cmp::Ordering;

use serde_json::Value;

use super::{
    figures::{list, number, shown, text},
    text::{UNKNOWN, columns, fitted, harmless},
};

/// Blanks between columns.
const GAP: usize = 2;
/// The columns of the mark before a name.
const MARK: usize = 2;
/// The most columns of a name.
const LONGEST_NAME: usize = 32;
/// The columns of the bar.
const BAR: usize = 10;

/// A column of the table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(super) title: &'static str,
    /// The figure that it shows.
    pub(super) figure: &'static str,
    width: usize,
    is_text: bool,
    /// Which columns stay if not all fit: those of low rank.
    rank: u8,
}

const fn words(figure: &'static str, title: &'static str, width: usize, rank: u8) -> Column {
    Column {
        title,
        figure,
        width,
        is_text: true,
        rank,
    }
}

const fn figure(figure: &'static str, title: &'static str, width: usize, rank: u8) -> Column {
    Column {
        title,
        figure,
        width,
        is_text: false,
        rank,
    }
}

/// The column that is a bar: the share against what the VM is entitled to.
const OF_ENTITLED: &str = "share-of-entitled";

/// All columns, in the order in which they stand.
pub(super) const COLUMNS: [Column; 16] = [
    words("name", "VM", 10, 0),
    words("state", "STATE", 9, 4),
    figure("weight", "WEIGHT", 6, 13),
    figure("guarantee-bytes", "GUARANTEE", 9, 12),
    figure("cap-bytes", "CAP", 8, 14),
    figure("demand-bytes", "DEMAND", 8, 8),
    figure("entitled-bytes", "ENTITLED", 8, 7),
    figure("share-bytes", "SHARE", 8, 2),
    words(OF_ENTITLED, "OF ENTITLED", BAR + 1, 6),
    figure("fast-bytes", "HELD", 8, 1),
    figure("hit-ratio", "HITS", 6, 3),
    figure("slowdown", "SLOWDOWN", 8, 5),
    figure("moves-per-s", "MOVES", 10, 9),
    words("source", "SOURCE", 6, 11),
    words("waits-for", "WAITS FOR", 9, 10),
    figure("report-age-s", "AGE", 6, 15),
];

impl Column {
    /// The column of a figure's name.
    pub(super) fn parse(name: &str) -> Result<&'static Self, String> {
        static ALL: [Column; 16] = COLUMNS;
        let found = ALL.iter().find(|column| column.figure == name);
        found.ok_or_else(|| {
            let names = ALL.iter().map(|column| column.figure);
            format!(
                "'{name}' is none of {}",
                names.collect::<Vec<_>>().join(", ")
            )
        })
    }

    /// The first column.
    pub(super) fn first() -> &'static Self {
        Self::parse("name").expect("there is a name")
    }

    /// The column that comes `steps` behind this.
    pub(super) fn after(&self, steps: isize) -> &'static Self {
        let at = COLUMNS.iter().position(|column| column == self);
        let to = at.unwrap_or(0).cast_signed() + steps;
        let to = to.rem_euclid(COLUMNS.len().cast_signed()).cast_unsigned();
        Self::parse(COLUMNS[to].figure).expect("each column is found")
    }

    fn cell(&self, vm: &Value) -> String {
        match self.figure {
            OF_ENTITLED => of_entitled(vm).map_or(UNKNOWN.to_owned(), |part| bar(part, BAR)),
            name => shown(vm, name),
        }
    }
}

/// Which part of what it is entitled to is a VM's share.
fn of_entitled(vm: &Value) -> Option<f64> {
    let part = number(vm, "share-bytes")? / number(vm, "entitled-bytes")?;
    part.is_finite().then_some(part)
}

/// A bar of which `part` is full; more than all has a mark behind it.
pub(super) fn bar(part: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    // A cast saturates, so any part is a bar.
    let eighths = (part.clamp(0.0, 1.0) * (width * 8) as f64).round() as usize;
    let mut bar = "█".repeat(eighths / 8) + EIGHTHS[eighths % 8];
    let empty = width - columns(&bar);
    bar += &"·".repeat(empty);
    bar.push(if part > 1.0005 { '+' } else { ' ' });
    bar
}

/// In which order VMs stand, and which.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) by: &'static Column,
    pub(super) is_reversed: bool,
    pub(super) filter: String,
}

impl Default for Order {
    fn default() -> Self {
        Self {
            by: Column::first(),
            is_reversed: false,
            filter: String::new(),
        }
    }
}

impl Order {
    /// The VMs of a reply that are shown, in their order.
    pub(super) fn of<'a>(&self, host: &'a Value) -> Vec<&'a Value> {
        let wanted = self.filter.to_lowercase();
        let vms = list(host, "vms").iter().filter(|vm| {
            let words = ["name", "state", "source", "waits-for", "refused"];
            let has = |name| text(vm, name).is_some_and(|text| has_text(text, &wanted));
            wanted.is_empty() || words.into_iter().any(has)
        });
        let mut vms: Vec<&Value> = vms.collect();
        let name = |vm: &&'a Value| text(vm, "name").unwrap_or_default();
        match (self.by.figure, self.by.is_text) {
            (OF_ENTITLED, _) => vms.sort_by(|a, b| {
                // Who has least of it is of most interest.
                let part = |vm: &Value| of_entitled(vm).map(|part| -part);
                self.by_number(part(a), part(b))
                    .then_with(|| name(a).cmp(name(b)))
            }),
            (figure, true) => vms.sort_by(|a, b| {
                let of = |vm: &'a Value| text(vm, figure).filter(|text| !text.is_empty());
                let order = of(a).is_none().cmp(&of(b).is_none());
                let text = of(a).cmp(&of(b));
                let text = if self.is_reversed {
                    text.reverse()
                } else {
                    text
                };
                order.then(text).then_with(|| name(a).cmp(name(b)))
            }),
            (figure, false) => vms.sort_by(|a, b| {
                let of = |vm: &Value| number(vm, figure);
                self.by_number(of(a), of(b))
                    .then_with(|| name(a).cmp(name(b)))
            }),
        }
        vms
    }

    /// The greatest first, and what is not known last.
    fn by_number(&self, a: Option<f64>, b: Option<f64>) -> Ordering {
        match (a, b) {
            (Some(a), Some(b)) if self.is_reversed => a.total_cmp(&b),
            (Some(a), Some(b)) => b.total_cmp(&a),
            (a, b) => a.is_none().cmp(&b.is_none()),
        }
    }
}

fn has_text(text: &str, wanted: &str) -> bool {
    text.to_lowercase().contains(wanted)
}

/// How grave the gravest alarm of a VM is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    #[default]
    None,
    Warning,
    Critical,
}

impl Severity {
    /// That of an alarm; a word that is not known is a warning.
    pub(super) fn of(alarm: &Value) -> Self {
        match text(alarm, "severity") {
            Some("critical") => Self::Critical,
            _ => Self::Warning,
        }
    }

    /// What stands before a line, so that nobody needs to see colours.
    pub(super) fn mark(self) -> &'static str {
        match self {
            Self::None => "  ",
            Self::Warning => "! ",
            Self::Critical => "!!",
        }
    }

    fn of_vm(host: &Value, vm: &Value) -> Self {
        let alarms = list(host, "alarms").iter();
        let its =
            alarms.filter(|alarm| text(alarm, "vm").is_some() && alarm.get("vm") == vm.get("name"));
        its.map(Self::of).max().unwrap_or_default()
    }
}

/// Columns that were chosen for a width.
#[derive(Debug)]
pub(super) struct Chosen {
    columns: Vec<(&'static Column, usize)>,
}

impl Chosen {
    /// The columns that fit into `width`; all, with whole names, without a width.
    pub(super) fn new(width: Option<usize>, vms: &[&Value]) -> Self {
        let longest = vms.iter().filter_map(|vm| text(vm, "name"));
        let longest = longest
            .map(|name| columns(&harmless(name)))
            .max()
            .unwrap_or(0);
        let all = COLUMNS
            .iter()
            .filter_map(|column| Column::parse(column.figure).ok());
        let mut chosen: Vec<(&'static Column, usize)> =
            all.map(|column| (column, column.width)).collect();
        let least = chosen[0].1;
        let Some(width) = width else {
            chosen[0].1 = longest.clamp(least, 200);
            return Self { columns: chosen };
        };
        let taken = |chosen: &[(&Column, usize)]| {
            MARK + chosen.iter().map(|(_, width)| width + GAP).sum::<usize>() - GAP
        };
        while chosen.len() > 1 && taken(&chosen) > width {
            let last = (1..chosen.len()).max_by_key(|&at| chosen[at].0.rank);
            chosen.remove(last.unwrap_or(1));
        }
        let room = (width + least).saturating_sub(taken(&chosen));
        chosen[0].1 = longest.clamp(least, LONGEST_NAME).min(room);
        Self { columns: chosen }
    }

    /// The line above the table. The column that VMs are sorted by is marked.
    pub(super) fn header(&self, order: Option<&Order>) -> String {
        let titles = self.columns.iter().map(|&(column, width)| {
            let mut title = column.title.to_owned();
            if let Some(order) = order.filter(|order| order.by == column) {
                let falls = column.is_text == order.is_reversed;
                let mark = if falls { '▼' } else { '▲' };
                match columns(&title) < width {
                    true => title.push(mark),
                    // The last letter makes room for the mark.
                    false => {
                        title = fitted(&title, width.saturating_sub(1), false).replace('…', "");
                        title.push(mark);
                    }
                }
            }
            fitted(&title, width, !column.is_text)
        });
        let titles: Vec<String> = titles.collect();
        (" ".repeat(MARK) + &titles.join(&" ".repeat(GAP)))
            .trim_end()
            .to_owned()
    }

    /// A VM's line, and how grave its alarms are.
    pub(super) fn row(&self, host: &Value, vm: &Value) -> (String, Severity) {
        let severity = Severity::of_vm(host, vm);
        let cells = self
            .columns
            .iter()
            .map(|&(column, width)| fitted(&column.cell(vm), width, !column.is_text));
        let cells: Vec<String> = cells.collect();
        let line = severity.mark().to_owned() + &cells.join(&" ".repeat(GAP));
        (line.trim_end().to_owned(), severity)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tier_core::report::{Figure, Object};

    use super::*;
    use crate::host::report::HostVm;

    fn names<'a>(vms: &[&'a Value]) -> Vec<&'a str> {
        vms.iter().filter_map(|vm| text(vm, "name")).collect()
    }

    fn sorted(host: &Value, by: &str, is_reversed: bool) -> Vec<String> {
        let order = Order {
            by: Column::parse(by).unwrap(),
            is_reversed,
            filter: String::new(),
        };
        names(&order.of(host))
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn columns_show_figures_of_the_report() {
        let figures = Object::of::<HostVm>().figures();
        let known: Vec<String> = figures.iter().map(Figure::name).collect();
        // The daemon that tells why an agent waits is newer than the column.
        let others = [OF_ENTITLED, "waits-for"];
        for column in &COLUMNS {
            let is_known = known.iter().any(|name| name == column.figure);
            assert!(
                is_known || others.contains(&column.figure),
                "{}",
                column.figure
            );
        }
        let ranks: std::collections::BTreeSet<u8> =
            COLUMNS.iter().map(|column| column.rank).collect();
        assert_eq!(ranks.len(), COLUMNS.len(), "no two columns leave at once");
    }

    #[test]
    fn vms_when_sorted_have_the_unknown_last_and_the_filter_leaves_others_out() {
        let host = json!({"vms": [
            {"name": "b", "hit-ratio": 0.5, "share-bytes": 10, "entitled-bytes": 20, "state": "quiet"},
            {"name": "a", "hit-ratio": null, "source": "IBS"},
            {"name": "d", "hit-ratio": 0.9, "share-bytes": 10, "entitled-bytes": 0, "state": "reporting"},
            {"name": "c", "hit-ratio": -1, "share-bytes": 30, "entitled-bytes": 20, "state": "quiet"},
        ]});
        assert_eq!(sorted(&host, "name", false), ["a", "b", "c", "d"]);
        assert_eq!(sorted(&host, "name", true), ["d", "c", "b", "a"]);
        assert_eq!(sorted(&host, "hit-ratio", false), ["d", "b", "c", "a"]);
        assert_eq!(sorted(&host, "hit-ratio", true), ["c", "b", "d", "a"]);
        assert_eq!(sorted(&host, "state", false), ["b", "c", "d", "a"]);
        assert_eq!(sorted(&host, OF_ENTITLED, false), ["b", "c", "a", "d"]);
        let order = Order {
            filter: "ibs".to_owned(),
            ..Order::default()
        };
        assert_eq!(names(&order.of(&host)), ["a"]);
        let nobody = Order {
            filter: "zzz".to_owned(),
            ..Order::default()
        };
        assert_eq!(names(&nobody.of(&host)), [""; 0]);
        assert_eq!(Order::default().of(&json!({"vms": 3})), [&Value::Null; 0]);
        assert!(Column::parse("size").unwrap_err().contains("fast-bytes"));
        assert_eq!(Column::first().after(-1).figure, "report-age-s");
        assert_eq!(Column::first().after(-1).after(1).figure, "name");
    }

    #[test]
    fn table_at_any_width_takes_no_more_columns_and_keeps_the_main_figures() {
        let vm = json!({
            "name": "数据库".repeat(70), "state": "reporting", "share-bytes": 22 << 20,
            "entitled-bytes": 23 << 20, "fast-bytes": -5e300, "hit-ratio": 1e300, "slowdown": 1e9,
        });
        let host = json!({"vms": [vm]});
        for width in 10..250 {
            let chosen = Chosen::new(Some(width), &[&vm]);
            let (row, _) = chosen.row(&host, &vm);
            assert!(columns(&row) <= width, "{width}: {row}");
            let header = chosen.header(Some(&Order::default()));
            assert!(columns(&header) <= width, "{width}: {header}");
        }
        let header = Chosen::new(Some(40), &[&vm]).header(None);
        assert_eq!(header, "  VM             SHARE      HELD    HITS");
        assert!(Chosen::new(None, &[&vm]).header(None).contains("WAITS FOR"));
    }

    #[test]
    fn bar_when_the_part_makes_no_sense_is_as_long() {
        assert_eq!(bar(0.5, 4), "██·· ");
        assert_eq!(bar(1.0, 4), "████ ");
        assert_eq!(bar(1.5, 4), "████+");
        for part in [-1.0, 1e300, f64::NAN, 0.013] {
            assert_eq!(columns(&bar(part, 4)), 5, "{part}");
        }
    }

    #[test]
    fn row_when_a_vm_has_alarms_is_marked() {
        let vm = json!({"name": "db1"});
        let host = json!({"alarms": [
            {"vm": "db1", "severity": "warning", "text": "x"},
            {"vm": "db1", "severity": "critical", "text": "y"},
            {"severity": "critical", "text": "of the host"},
        ]});
        let chosen = Chosen::new(Some(40), &[&vm]);
        assert!(chosen.row(&host, &vm).0.starts_with("!!db1"));
        let (other, severity) = chosen.row(&host, &json!({}));
        assert_eq!((&other[..2], severity), ("  ", Severity::None));
    }
}
