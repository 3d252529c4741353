//! Figures of a reply: read by name, and shown with the unit that the name tells. What a reply lacks, or has
//! in another shape, is not known.

use serde_json::Value;
use tier_core::report::{Object, Shape};

use super::text::{self, UNKNOWN, harmless};

/// A number of a reply, if it is there and finite.
pub(super) fn number(of: &Value, name: &str) -> Option<f64> {
    of.get(name)?.as_f64().filter(|number| number.is_finite())
}

/// A text of a reply.
pub(super) fn text<'a>(of: &'a Value, name: &str) -> Option<&'a str> {
    of.get(name)?.as_str()
}

/// The items of a list of a reply.
pub(super) fn list<'a>(of: &'a Value, name: &str) -> &'a [Value] {
    let list = of.get(name).and_then(Value::as_array);
    list.map_or(&[], Vec::as_slice)
}

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Bytes,
    BytesPerS,
    ByteSeconds,
    Seconds,
    Millis,
    Nanos,
    /// A share of accesses.
    Share,
    /// How many times as much.
    Times,
    None,
}

impl Unit {
    /// Units stand in names, but for a few names.
    pub(super) fn of(name: &str) -> Self {
        let ends = |unit: &str| name == unit || name.ends_with(&format!("-{unit}"));
        match name {
            "hit-ratio" => Self::Share,
            "slowdown" => Self::Times,
            "credits" | "deficit-byte-seconds" => Self::ByteSeconds,
            "moves-per-s" => Self::BytesPerS,
            _ if ends("bytes-per-s") => Self::BytesPerS,
            _ if ends("bytes") => Self::Bytes,
            _ if ends("per-s") => Self::None,
            _ if ends("ms") => Self::Millis,
            _ if ends("ns") => Self::Nanos,
            _ if ends("s") => Self::Seconds,
            _ => Self::None,
        }
    }

    /// A number with this unit.
    pub(super) fn shown(self, value: f64) -> String {
        match self {
            Self::Bytes => text::bytes(value),
            Self::BytesPerS => text::bytes(value) + "/s",
            Self::ByteSeconds => text::bytes(value) + "·s",
            Self::Seconds => text::time(value),
            Self::Millis => text::number(value) + " ms",
            Self::Nanos => text::number(value) + " ns",
            Self::Share => text::percent(value),
            Self::Times => text::number((value * 100.0).round() / 100.0) + "×",
            Self::None => text::number(value),
        }
    }
}

/// A figure of a reply as people read it.
pub(super) fn shown(of: &Value, name: &str) -> String {
    match of.get(name) {
        Some(Value::String(text)) => harmless(text),
        Some(Value::Bool(is)) => if *is { "yes" } else { "no" }.to_owned(),
        _ => number(of, name).map_or(UNKNOWN.to_owned(), |number| Unit::of(name).shown(number)),
    }
}

/// All figures of a reply that are one value, and those of objects within, with the names that lead to them.
pub(super) fn all(object: &'static Object, of: &Value) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    collect(object, of, "", &mut found);
    found
}

fn collect(
    object: &'static Object,
    of: &Value,
    prefix: &str,
    found: &mut Vec<(String, String, String)>,
) {
    for figure in object.figures() {
        let name = figure.name();
        let path = format!("{prefix}{name}");
        match figure.shape {
            Shape::Object(inner) => {
                if let Some(of) = of.get(&name).filter(|of| of.is_object()) {
                    collect(inner, of, &format!("{path}."), found);
                }
            }
            Shape::List(_) | Shape::Map(_) => {}
            _ => found.push((path, shown(of, &name), figure.help())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::host::report::{HostInfo, HostVm};

    #[test]
    fn unit_when_a_name_tells_it_is_that() {
        let cases = [
            ("fast-bytes", Unit::Bytes),
            ("move-budget-bytes-per-s", Unit::BytesPerS),
            ("bytes-per-s", Unit::BytesPerS),
            ("accepted-per-s", Unit::None),
            ("report-age-s", Unit::Seconds),
            ("settled-after-s", Unit::Seconds),
            ("vms", Unit::None),
            ("clients", Unit::None),
            ("tier-bias", Unit::None),
            ("staleness-ms", Unit::Millis),
        ];
        for (name, unit) in cases {
            assert_eq!(Unit::of(name), unit, "{name}");
        }
    }

    #[test]
    fn figure_when_missing_or_of_another_shape_is_not_known() {
        let reply = json!({
            "fast-bytes": -1048576.0, "share-bytes": null, "hit-ratio": "<img>", "cap-bytes": [],
            "starting": true, "name": "a\u{1b}b",
        });
        let shown = |name| shown(&reply, name);
        assert_eq!(shown("fast-bytes"), "-1 MiB");
        assert_eq!(
            (shown("share-bytes"), shown("cap-bytes")),
            ("–".into(), "–".into())
        );
        assert_eq!(shown("hit-ratio"), "<img>");
        assert_eq!(number(&reply, "hit-ratio"), None);
        assert_eq!(
            (shown("starting"), shown("absent")),
            ("yes".into(), "–".into())
        );
        assert_eq!(shown("name"), "a\u{fffd}b");
        assert_eq!(list(&reply, "fast-bytes"), &[] as &[Value]);
    }

    #[test]
    fn all_figures_when_listed_are_those_of_the_report() {
        let listed = all(
            Object::of::<HostInfo>(),
            &json!({"fairness": {"jain": 0.5}}),
        );
        let jain = listed.iter().find(|(name, ..)| name == "fairness.jain");
        assert_eq!(jain.unwrap().1, "0.50");
        assert!(jain.unwrap().2.starts_with("Jain's index"), "{jain:?}");
        let vm = all(Object::of::<HostVm>(), &json!({}));
        assert!(
            vm.iter()
                .all(|(_, shown, help)| shown == UNKNOWN && !help.is_empty())
        );
        assert!(vm.len() > 20);
    }
}
