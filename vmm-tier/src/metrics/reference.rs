//! docs/metrics.md, and what holds of every metric.

use std::collections::HashSet;

use serde_json::{Map, Value, json};
use tier_core::report::{
    Object, Shape,
    family::{Family, Kind, Label, families, left_out},
    open_metrics::{self, Format},
};

use super::{DOMAIN, tools};
use crate::{agent::QUERY_TIER, generated_page, host::report::HostInfo};

/// What the daemon shows.
const QUERY_HOST: &Object = Object::of::<HostInfo>();
/// The reports whose figures are metrics.
const REPORTS: [&Object; 2] = [QUERY_TIER, QUERY_HOST];

/// The tables of docs/metrics.md.
fn reference() -> String {
    let mut page = "## Metric families\n\n\
        | name | type | unit | labels besides `domain` | meaning | counted since | figure of `query-tier` |\n\
        |---|---|---|---|---|---|---|\n"
        .to_owned();
    page += &rows(QUERY_TIER);
    page += "\n## Metric families of the host daemon\n\n\
        | name | type | unit | labels | meaning | counted since | figure of `query-host` |\n\
        |---|---|---|---|---|---|---|\n";
    page += &rows(QUERY_HOST);
    page += "\n## Words of labels\n\n| label | words |\n|---|---|\n";
    let mut known = HashSet::new();
    let families: Vec<_> = REPORTS.into_iter().flat_map(families).collect();
    for Label { name, words } in families.iter().flat_map(|family| &family.labels) {
        if !words.is_empty() && known.insert((name, words)) {
            let words = quoted(words.iter().copied());
            page += &row(&[&quoted([name.as_str()]), &words]);
        }
    }
    page += "\n## Figures without a metric\n\n| figure of `query-tier` | why |\n|---|---|\n";
    page += &rows_left_out(QUERY_TIER);
    page += "\n| figure of `query-host` | why |\n|---|---|\n";
    page += &rows_left_out(QUERY_HOST);
    page
}

fn rows(report: &Object) -> String {
    let families = families(report);
    let rows = families.iter().map(|family| {
        row(&[
            &quoted([family.sample_name().as_str()]),
            family.kind.name(),
            family.unit.unwrap_or_default(),
            &quoted(family.labels.iter().map(|label| label.name.as_str())),
            &family.help,
            family.since.unwrap_or_default(),
            &quoted(family.figure.split(", ")),
        ])
    });
    rows.collect()
}

fn rows_left_out(report: &Object) -> String {
    let figures = left_out(report).into_iter();
    let rows = figures.map(|(figure, why)| row(&[&format!("`{figure}`"), why.unwrap_or_default()]));
    rows.collect()
}

fn quoted<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words = words.into_iter().map(|word| format!("`{word}`"));
    words.collect::<Vec<_>>().join(", ")
}

fn row(cells: &[&str]) -> String {
    let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    let line = format!("| {} |", cells.join(" | "));
    line.replace("  ", " ") + "\n"
}

/// A reply in which every figure stands and each list has an item.
fn full(object: &Object) -> Value {
    let members = object.figures().into_iter();
    let members = members.map(|figure| (figure.name(), value(figure.shape)));
    Value::Object(members.collect())
}

fn value(shape: Shape) -> Value {
    match shape {
        Shape::Bool => json!(true),
        Shape::Uint => json!(u64::MAX),
        Shape::Number => json!(0.5),
        Shape::Text => json!("text"),
        Shape::Words(words) => json!(words[0]),
        Shape::List(item) => json!([value(*item)]),
        Shape::Map(item) => Value::Object(Map::from_iter([("4096".to_owned(), value(*item))])),
        Shape::Object(object) => full(object),
    }
}

#[test]
fn reference_when_compared_with_the_metrics_is_up_to_date() {
    generated_page::check("metrics.md", &reference());
}

#[test]
fn figure_when_it_is_no_metric_says_why() {
    let unsaid = REPORTS.into_iter().flat_map(left_out);
    let unsaid: Vec<_> = unsaid.filter(|(_, why)| why.is_none()).collect();
    assert!(
        unsaid.is_empty(),
        "say in #[metric(…)] what these are: {unsaid:?}"
    );
}

#[test]
fn family_when_a_report_has_its_figure_is_written() {
    for report in REPORTS {
        let reply = full(report);
        for format in Format::ALL {
            let text = open_metrics::render(format, report, [(&[][..], &reply)]);
            for family in families(report) {
                let sample = format!("\n{}", family.sample_name());
                let is_written =
                    text.contains(&format!("{sample}{{")) || text.contains(&format!("{sample} "));
                assert!(is_written, "{} is not in {text}", family.name);
            }
        }
    }
}

#[test]
fn text_when_promtool_reads_it_has_no_fault() {
    for (report, labels) in [(QUERY_TIER, &[(DOMAIN, "full")][..]), (QUERY_HOST, &[][..])] {
        let reply = full(report);
        let text = open_metrics::render(Format::Prometheus, report, [(labels, &reply)]);
        let Some(complaints) = tools::complaints(&text) else {
            return;
        };
        assert_eq!(complaints, "", "{text}");
    }
    let broken = "# TYPE no_help counter\nno_help 1\n";
    assert_ne!(tools::complaints(broken).as_deref(), Some(""));
}

#[test]
fn family_when_described_keeps_the_rules_of_names() {
    let mut names = HashSet::new();
    for (report, family) in REPORTS.into_iter().flat_map(|report| {
        let families = families(report).into_iter();
        families.map(move |family| (report, family))
    }) {
        let Family {
            name,
            kind,
            unit,
            labels,
            help,
            since,
            figure,
            ..
        } = &family;
        let is_word = |name: &str| {
            let mut letters = name.chars();
            let is_plain = |letter: char| {
                letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_'
            };
            letters
                .next()
                .is_some_and(|first| first.is_ascii_lowercase())
                && letters.all(is_plain)
        };
        assert!(is_word(name), "{name}");
        // A name with such an end means something else to readers.
        for reserved in ["_total", "_info", "_created", "_count", "_sum", "_bucket"] {
            assert!(!name.ends_with(reserved), "{name}");
        }
        assert!(names.insert(name.clone()), "{name} is defined twice");
        let sample = family.sample_name();
        assert!(
            sample == *name || names.insert(sample),
            "{name} has another family's samples"
        );
        let labels: Vec<_> = labels.iter().map(|label| label.name.as_str()).collect();
        let unique: HashSet<_> = labels.iter().collect();
        assert_eq!(unique.len(), labels.len(), "{name}: {labels:?}");
        assert!(
            labels
                .iter()
                .all(|label| is_word(label) && (*label != DOMAIN || report == QUERY_HOST)),
            "{name}: {labels:?}"
        );
        assert!(!help.is_empty() && !help.contains('\n'), "{name}: {help}");
        assert_eq!(
            since.is_some(),
            *kind == Kind::Counter,
            "{name} says since when"
        );
        for (end, base) in [
            ("-bytes", "bytes"),
            ("-ms", "seconds"),
            ("-ns", "seconds"),
            ("-s", "seconds"),
        ] {
            let is_measured = figure.ends_with(end) && !figure.ends_with("-per-s");
            assert!(
                !is_measured || *unit == Some(base),
                "{name} of {figure} is in {unit:?}"
            );
        }
    }
}
