//! Metric families: what the figures of a report are for Prometheus, and their samples in a reply.

use std::fmt;

use serde_json::{Map, Value};

use super::{
    Figure, Object, Shape,
    metric::{Metric, Reading, Spec},
};

/// What every family's name begins with.
const PREFIX: &str = "vmm_tier_";
/// Units that names end in; a unit that ends in another unit comes before it.
const UNITS: [&str; 9] = [
    "byte_seconds",
    "bytes_per_second",
    "records_per_second",
    "bytes",
    "clients",
    "pages",
    "ratio",
    "records",
    "seconds",
];

/// The type of a family, as OpenMetrics defines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until it begins again at 0.
    Counter,
    /// A value now.
    Gauge,
    /// Words, and whether each holds.
    StateSet,
    /// Facts, as labels of a sample that is always 1.
    Info,
}

impl Kind {
    /// OpenMetrics' word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::StateSet => "stateset",
            Self::Info => "info",
        }
    }

    /// What the names of its samples have behind the family's name.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Counter => "_total",
            Self::Info => "_info",
            Self::Gauge | Self::StateSet => "",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A metric family: a name, and samples that differ in their labels.
#[derive(Clone, Debug)]
pub struct Family {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// Its unit, which its name ends in.
    pub unit: Option<&'static str>,
    /// The labels of its samples, besides those that name the VM.
    pub labels: Vec<Label>,
    /// What it means, on one line and without the full stop at its end.
    pub help: String,
    /// When a counter was 0.
    pub since: Option<&'static str>,
    /// Where its figure stands in the report, such as `sources[].accepted`.
    pub figure: String,
    /// The way to the objects that have the figure.
    path: Vec<Step>,
    content: Content,
}

/// A label of a family's samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// Its name.
    pub name: String,
    /// The values that it has, if they are words of an enumeration.
    pub words: Vec<&'static str>,
}

/// A step from an object into one of its members.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// The object that the member is.
    Object(String),
    /// Each object of the list that the member is.
    Each(String, Option<ItemLabel>),
}

/// A label, and the member of each item from which its value comes.
#[derive(Clone, Debug, PartialEq)]
struct ItemLabel {
    label: Label,
    member: String,
}

/// What an object gives to a family.
#[derive(Clone, Debug)]
enum Content {
    /// A member's value, divided by a number.
    Value { member: String, divisor: f64 },
    /// The values of a map. These keys are always there.
    Values {
        member: String,
        divisor: f64,
        label: &'static str,
        keys: Vec<&'static str>,
    },
    /// Which of the words hold.
    States {
        member: String,
        words: &'static [&'static str],
    },
    /// Whether a member is there.
    Presence(String),
    /// How many items a member has.
    Count(String),
    /// Members that are labels.
    Info(Vec<String>),
}

/// A sample's labels and value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) labels: Vec<(String, String)>,
    pub(super) value: String,
}

/// The families of a report, in the order of its figures.
#[must_use]
pub fn families(report: &Object) -> Vec<Family> {
    let mut families = Vec::new();
    collect(report, &[], &mut families);
    families
}

/// The figures of a report that are no metrics, and why; `None` if nobody said why.
#[must_use]
pub fn left_out(report: &Object) -> Vec<(String, Option<&'static str>)> {
    let mut left_out = Vec::new();
    for figure in report.figures() {
        let name = figure.name();
        match (figure.metric, inner(&figure)) {
            (Metric::Exempt(why), _) => left_out.push((name, Some(why))),
            (Metric::Unsaid, None) => left_out.push((name, None)),
            (Metric::Unsaid, Some((object, is_list))) => {
                let dots = if is_list { "[]." } else { "." };
                let inside = self::left_out(object).into_iter();
                left_out.extend(inside.map(|(path, why)| (format!("{name}{dots}{path}"), why)));
            }
            _ => {}
        }
    }
    left_out
}

/// The object that a figure is, or the objects that it lists.
fn inner(figure: &Figure) -> Option<(&'static Object, bool)> {
    match figure.shape {
        Shape::Object(object) => Some((object, false)),
        Shape::List(Shape::Object(object)) => Some((object, true)),
        _ => None,
    }
}

fn collect(object: &Object, path: &[Step], families: &mut Vec<Family>) {
    for figure in object.figures() {
        match (figure.metric, inner(&figure)) {
            (Metric::Unsaid, Some((object, is_list))) => {
                let step = match is_list {
                    true => Step::Each(figure.name(), item_label(object)),
                    false => Step::Object(figure.name()),
                };
                collect(object, &[path, &[step]].concat(), families);
            }
            (Metric::Info(name), _) => {
                let name = format!("{PREFIX}{name}");
                let mut known = families.iter_mut();
                match known.find(|family| family.name == name && family.path == path) {
                    Some(family) => family.add_fact(&figure),
                    None => families.push(Family::of_facts(name, &figure, path)),
                }
            }
            (Metric::Family(spec), _) => families.push(Family::of(&spec, &figure, path)),
            (Metric::Unsaid | Metric::Exempt(_) | Metric::Label(_), _) => {}
        }
    }
}

/// What tells the items of a list apart.
fn item_label(item: &Object) -> Option<ItemLabel> {
    item.figures()
        .iter()
        .find_map(|figure| match figure.metric {
            Metric::Label(name) => Some(ItemLabel {
                label: Label {
                    name: name.to_owned(),
                    words: words(figure.shape),
                },
                member: figure.name(),
            }),
            _ => None,
        })
}

/// By what a field's value is divided to be in its base unit.
fn divisor(field: &str) -> f64 {
    if field.ends_with("_ms") {
        1e3
    } else if field.ends_with("_ns") {
        1e9
    } else {
        1.0
    }
}

impl Family {
    fn of(spec: &Spec, figure: &Figure, path: &[Step]) -> Self {
        let kind = match spec.reading {
            Reading::Counter => Kind::Counter,
            Reading::States => Kind::StateSet,
            Reading::Gauge | Reading::Presence | Reading::Count => Kind::Gauge,
        };
        let (member, divisor) = (figure.name(), divisor(figure.field));
        let content = match (spec.reading, spec.by, figure.shape) {
            (Reading::Presence, ..) => Content::Presence(member),
            (Reading::Count, ..) => Content::Count(member),
            (Reading::States, _, Shape::Words(words) | Shape::List(&Shape::Words(words))) => {
                Content::States { member, words }
            }
            (_, Some(label), _) => Content::Values {
                member,
                divisor,
                label,
                keys: without(figure.keys, spec.except),
            },
            (_, None, _) => Content::Value { member, divisor },
        };
        let name = format!("{PREFIX}{}", spec.name);
        let mut labels = labels_of(path);
        match &content {
            Content::States { words, .. } => labels.push(Label {
                name: name.clone(),
                words: words.to_vec(),
            }),
            Content::Values { label, keys, .. } => labels.push(Label {
                name: (*label).to_owned(),
                words: keys.clone(),
            }),
            _ => {}
        }
        let is_unit_of_name = |unit: &&str| {
            let rest = spec.name.strip_suffix(*unit);
            rest.is_some_and(|rest| rest.ends_with('_'))
        };
        Self {
            kind,
            unit: UNITS.into_iter().find(is_unit_of_name),
            labels,
            help: spec.help.map_or_else(|| figure.meaning(), str::to_owned),
            since: spec.since,
            figure: figure_of(path, &figure.name()),
            path: path.to_vec(),
            content,
            name,
        }
    }

    fn of_facts(name: String, figure: &Figure, path: &[Step]) -> Self {
        let mut family = Self {
            name,
            kind: Kind::Info,
            unit: None,
            labels: labels_of(path),
            help: String::new(),
            since: None,
            figure: String::new(),
            path: path.to_vec(),
            content: Content::Info(Vec::new()),
        };
        family.add_fact(figure);
        family
    }

    /// Adds a label to an info family.
    fn add_fact(&mut self, figure: &Figure) {
        let Content::Info(members) = &mut self.content else {
            return;
        };
        members.push(figure.name());
        let (label, help) = (figure.field, figure.meaning());
        let place = figure_of(&self.path, &figure.name());
        if !self.help.is_empty() {
            self.help += "; ";
            self.figure += ", ";
        }
        self.labels.push(Label {
            name: label.to_owned(),
            words: words(figure.shape),
        });
        self.help += &format!("`{label}`: {help}");
        self.figure += &place;
    }

    /// The name of its samples.
    #[must_use]
    pub fn sample_name(&self) -> String {
        format!("{}{}", self.name, self.kind.suffix())
    }

    /// Its samples in a report.
    pub(super) fn samples(&self, report: &Value) -> Vec<Sample> {
        let mut samples = Vec::new();
        self.visit(&self.path, report, &[], &mut samples);
        samples
    }

    fn visit(
        &self,
        path: &[Step],
        value: &Value,
        labels: &[(String, String)],
        samples: &mut Vec<Sample>,
    ) {
        let Value::Object(object) = value else {
            return;
        };
        match path.split_first() {
            None => self.read(object, labels, samples),
            Some((Step::Object(member), rest)) => {
                if let Some(inner) = object.get(member) {
                    self.visit(rest, inner, labels, samples);
                }
            }
            Some((Step::Each(member, label), rest)) => {
                for item in object
                    .get(member)
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    let label = label.as_ref().and_then(|ItemLabel { label, member }| {
                        Some((label.name.clone(), text(item.get(member)?)?))
                    });
                    let labels = [labels, label.as_slice()].concat();
                    self.visit(rest, item, &labels, samples);
                }
            }
        }
    }

    /// Adds the samples that an object gives.
    fn read(
        &self,
        object: &Map<String, Value>,
        labels: &[(String, String)],
        samples: &mut Vec<Sample>,
    ) {
        let get = |member: &String| object.get(member).unwrap_or(&Value::Null);
        let mut add = |more: &[(String, String)], value: String| {
            let labels = [labels, more].concat();
            samples.push(Sample { labels, value });
        };
        let number = |value: &Value, divisor| number(value, divisor, self.kind);
        match &self.content {
            Content::Value { member, divisor } => {
                if let Some(value) = number(get(member), *divisor) {
                    add(&[], value);
                }
            }
            Content::Values {
                member,
                divisor,
                label,
                keys,
            } => {
                let Value::Object(values) = get(member) else {
                    return;
                };
                let missing = keys.iter().filter(|key| !values.contains_key(**key));
                for key in missing {
                    add(&[((*label).to_owned(), (*key).to_owned())], "0".to_owned());
                }
                for (key, value) in values {
                    if let Some(value) = number(value, *divisor) {
                        add(&[((*label).to_owned(), key.clone())], value);
                    }
                }
            }
            Content::States { member, words } => {
                let holds = |word: &str| match get(member) {
                    Value::Array(held) => held.iter().any(|held| held == word),
                    held => held == word,
                };
                for word in *words {
                    let label = (self.name.clone(), (*word).to_owned());
                    add(&[label], u8::from(holds(word)).to_string());
                }
            }
            Content::Presence(member) => {
                add(&[], u8::from(!get(member).is_null()).to_string());
            }
            Content::Count(member) => {
                if let Value::Array(items) = get(member) {
                    add(&[], items.len().to_string());
                }
            }
            Content::Info(members) => {
                let fact = |member: &String| Some((member.replace('-', "_"), text(get(member))?));
                let facts: Vec<_> = members.iter().filter_map(fact).collect();
                if !facts.is_empty() {
                    add(&facts, "1".to_owned());
                }
            }
        }
    }
}

/// The words that a shape may be.
fn words(shape: Shape) -> Vec<&'static str> {
    match shape {
        Shape::Words(words) => words.to_vec(),
        _ => Vec::new(),
    }
}

fn without(words: &[&'static str], except: Option<&str>) -> Vec<&'static str> {
    let words = words.iter().copied();
    words.filter(|&word| Some(word) != except).collect()
}

fn labels_of(path: &[Step]) -> Vec<Label> {
    let label = |step: &Step| match step {
        Step::Each(_, Some(item)) => Some(item.label.clone()),
        Step::Each(_, None) | Step::Object(_) => None,
    };
    path.iter().filter_map(label).collect()
}

/// Where a member stands in the report.
fn figure_of(path: &[Step], member: &str) -> String {
    let step = |step: &Step| match step {
        Step::Object(member) => format!("{member}."),
        Step::Each(member, _) => format!("{member}[]."),
    };
    path.iter().map(step).chain([member.to_owned()]).collect()
}

/// A value as a label's value; those of a list joined by commas. `None` for what is not there.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null | Value::Object(_) => None,
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().filter_map(text).collect();
            Some(items.join(","))
        }
    }
}

/// A value as a sample's value. `None` for what is no number, and for a counter below 0.
fn number(value: &Value, divisor: f64, kind: Kind) -> Option<String> {
    let number = match value {
        Value::Bool(holds) => return Some(u8::from(*holds).to_string()),
        Value::Number(number) => number,
        _ => return None,
    };
    let float = number.as_f64()?;
    if kind == Kind::Counter && float < 0.0 {
        return None;
    }
    // Whole numbers above 2⁵³ keep all digits.
    match divisor {
        1.0 if !number.is_f64() => Some(number.to_string()),
        _ => Some((float / divisor).to_string()),
    }
}
