//! docs/metrics.md, and what holds of every metric.

use std::collections::HashSet;

use serde_json::{Map, Value, json};
use tier_core::report::{
    Object, Shape,
    family::{Family, Kind, Label, families, left_out},
    open_metrics::{self, Format},
};

use super::DOMAIN;
use crate::{agent::QUERY_TIER, generated_page};

/// The tables of docs/metrics.md.
fn reference() -> String {
    let mut page = "## Metric families\n\n\
        | name | type | unit | labels besides `domain` | meaning | counted since | figure of `query-tier` |\n\
        |---|---|---|---|---|---|---|\n"
        .to_owned();
    let families = families(QUERY_TIER);
    for family in &families {
        page += &row(&[
            &quoted([family.sample_name().as_str()]),
            family.kind.name(),
            family.unit.unwrap_or_default(),
            &quoted(family.labels.iter().map(|label| label.name.as_str())),
            &family.help,
            family.since.unwrap_or_default(),
            &quoted(family.figure.split(", ")),
        ]);
    }
    page += "\n## Words of labels\n\n| label | words |\n|---|---|\n";
    let mut known = HashSet::new();
    for Label { name, words } in families.iter().flat_map(|family| &family.labels) {
        if !words.is_empty() && known.insert(name) {
            let words = quoted(words.iter().copied());
            page += &row(&[&quoted([name.as_str()]), &words]);
        }
    }
    page += "\n## Figures without a metric\n\n| figure of `query-tier` | why |\n|---|---|\n";
    for (figure, why) in left_out(QUERY_TIER) {
        page += &row(&[&format!("`{figure}`"), why.unwrap_or_default()]);
    }
    page
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
    let unsaid = left_out(QUERY_TIER).into_iter();
    let unsaid: Vec<_> = unsaid.filter(|(_, why)| why.is_none()).collect();
    assert!(
        unsaid.is_empty(),
        "say in #[metric(…)] what these are: {unsaid:?}"
    );
}

#[test]
fn family_when_a_report_has_its_figure_is_written() {
    let report = full(QUERY_TIER);
    for format in Format::ALL {
        let text = open_metrics::render(format, QUERY_TIER, [(&[(DOMAIN, "full")][..], &report)]);
        for family in families(QUERY_TIER) {
            let sample = format!("\n{}{{domain=\"full\"", family.sample_name());
            assert!(text.contains(&sample), "{} is not in {text}", family.name);
        }
    }
}

#[test]
fn family_when_described_keeps_the_rules_of_names() {
    let mut names = HashSet::new();
    for family in families(QUERY_TIER) {
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
                .all(|label| is_word(label) && *label != DOMAIN),
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
