//! The text in which Prometheus reads reports, of any number of VMs.
//!
//! The formats are [OpenMetrics 1.0] and the older [Prometheus text format] 0.0.4. Readers of the older
//! format, such as node_exporter's textfile collector, refuse OpenMetrics' types `info` and `stateset`.
//!
//! [OpenMetrics 1.0]: https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md
//! [Prometheus text format]: https://prometheus.io/docs/instrumenting/exposition_formats/

use std::{collections::HashSet, fmt::Write as _};

use serde_json::Value;

use super::{
    Object,
    family::{Family, Kind, Sample, families},
};

crate::words! {
    /// A text format.
    #[derive(Default)]
    pub enum Format {
        /// OpenMetrics 1.0.
        #[default]
        OpenMetrics = "open-metrics",
        /// The Prometheus text format 0.0.4.
        Prometheus = "prometheus",
    }
}

/// Reports as one text: the header of each metric family once, then the samples of all reports.
///
/// `report` describes the reports. Each report is the JSON that the control socket replies, with the
/// labels that name its VM. Label names must be valid and differ from those of the families; label
/// values may be any text. Of samples with the same name and labels the first is written: a second
/// would make readers refuse the whole text.
///
/// ```
/// use serde_json::json;
/// use tier_core::report::{Object, open_metrics::{self, Format}};
///
/// tier_core::report! {
///     /// What was moved.
///     struct Moved = "TierMoved" {
///         /// Bytes promoted.
///         #[metric(counter = "promoted_bytes", since = "the agent's start")]
///         promoted_bytes: u64,
///     }
/// }
///
/// let reply = json!({"promoted-bytes": 4096});
/// let reports = [(&[("domain", "web")][..], &reply)];
/// let text = open_metrics::render(Format::OpenMetrics, Object::of::<Moved>(), reports);
/// let lines: Vec<&str> = text.lines().collect();
/// assert_eq!(lines[0], "# TYPE vmm_tier_promoted_bytes counter");
/// assert_eq!(lines[3], r#"vmm_tier_promoted_bytes_total{domain="web"} 4096"#);
/// ```
#[must_use]
pub fn render<'a>(
    format: Format,
    report: &Object,
    reports: impl IntoIterator<Item = (&'a [(&'a str, &'a str)], &'a Value)>,
) -> String {
    let reports: Vec<_> = reports.into_iter().collect();
    let mut text = String::new();
    for family in families(report) {
        let mut lines = String::new();
        let mut seen = HashSet::new();
        let name = family.sample_name();
        for (vm, report) in &reports {
            for Sample { labels, value } in family.samples(report) {
                let labels = labels
                    .iter()
                    .map(|(name, value)| (name.as_str(), value.as_str()));
                let labels = label_set(vm.iter().copied().chain(labels));
                let line = format!("{name}{labels} {value}\n");
                if seen.insert(labels) {
                    lines += &line;
                }
            }
        }
        if !lines.is_empty() {
            text += &header(format, &family);
            text += &lines;
        }
    }
    match format {
        Format::OpenMetrics => text + "# EOF\n",
        Format::Prometheus => text,
    }
}

/// A family's lines before its samples.
fn header(format: Format, family: &Family) -> String {
    let (name, kind) = match format {
        Format::OpenMetrics => (family.name.clone(), family.kind),
        // The older format names samples, and knows no others of these types.
        Format::Prometheus => match family.kind {
            Kind::Counter => (family.sample_name(), Kind::Counter),
            Kind::Gauge | Kind::StateSet | Kind::Info => (family.sample_name(), Kind::Gauge),
        },
    };
    let mut help = format!("{}.", family.help);
    if let Some(since) = family.since {
        let _ = write!(help, " Counted since {since}.");
    }
    let help = match format {
        Format::OpenMetrics => escaped(&help),
        Format::Prometheus => help.replace('\\', r"\\").replace('\n', r"\n"),
    };
    let unit = match (format, family.unit) {
        (Format::OpenMetrics, Some(unit)) => format!("# UNIT {name} {unit}\n"),
        _ => String::new(),
    };
    format!("# TYPE {name} {kind}\n{unit}# HELP {name} {help}\n")
}

fn label_set<'a>(labels: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let labels: Vec<_> = labels
        .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
        .collect();
    match labels.is_empty() {
        true => String::new(),
        false => format!("{{{}}}", labels.join(",")),
    }
}

/// A text in which no character ends a quoted value or a line.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\\' => escaped += r"\\",
            '"' => escaped += r#"\""#,
            '\n' => escaped += r"\n",
            other => escaped.push(other),
        }
    }
    escaped
}
