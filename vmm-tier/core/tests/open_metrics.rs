//! What Prometheus reads: the text of reports, compared with goldens and read back by a strict reader.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use tier_core::report::{
    Object,
    family::{Kind, families, left_out},
    open_metrics::{Format, render},
};

use crate::exposition;

tier_core::words! {
    /// A mood.
    enum Mood {
        /// Good.
        Good = "good",
        /// Bad.
        Bad = "not-so-good",
    }
}

tier_core::report! {
    /// A wheel.
    struct Wheel = "Wheel" {
        /// Where it is.
        #[metric(label = "wheel")]
        place: String,
        /// Turns of the wheel.
        #[metric(counter = "wheel_turns", since = "the start")]
        turns: u64,
        /// Who made the wheel.
        #[metric(info = "wheel")]
        maker: Option<String>,
    }
}

tier_core::report! {
    /// A load.
    struct Load = "Load" {
        /// What the load weighs.
        #[metric(gauge = "load_ratio")]
        share: Option<f64>,
    }
}

tier_core::report! {
    /// A cart.
    struct Cart = "Cart" {
        /// The cart's number.
        #[metric(info = "cart")]
        number: u32,
        /// The cart's owners.
        #[metric(info = "cart")]
        owners: Vec<String>,
        /// How the driver feels.
        #[metric(states = "mood")]
        mood: Mood,
        /// Who feels "bad", or worse\better.
        #[metric(states = "moods")]
        moods: Vec<Mood>,
        /// Time of the last pause.
        #[metric(gauge = "pause_seconds")]
        pause_ms: u64,
        /// Whether it rolls.
        #[metric(gauge = "rolls")]
        rolls: bool,
        /// What broke.
        #[metric(presence = "broken", help = "Whether something broke")]
        broken: Option<String>,
        /// Stops, by mood.
        #[metric(counter = "stops", by = "mood", except = "good", since = "the start")]
        stops: BTreeMap<Mood, u64>,
        /// Bytes by size.
        #[metric(gauge = "size_bytes", by = "size")]
        sizes: BTreeMap<u64, u64>,
        /// All wheels.
        wheels: Vec<Wheel>,
        /// The load.
        load: Option<Load>,
        /// Notes.
        #[metric(count = "notes")]
        notes: Vec<String>,
        /// Turns of all wheels.
        #[metric(exempt = "the sum of the wheels' turns")]
        turns: u64,
        /// Nobody said what this is.
        colour: String,
    }
}

fn cart() -> Value {
    json!({
        "number": 7, "owners": ["Ann", "Bob"], "mood": "not-so-good", "moods": [], "pause-ms": 1500,
        "rolls": true, "broken": null, "stops": {"not-so-good": 3}, "sizes": {"4096": 8192},
        "wheels": [
            {"place": "front", "turns": u64::MAX, "maker": null},
            {"place": "rear", "turns": 0, "maker": "Carl"},
        ],
        "load": {"share": 0.25}, "notes": ["a", "b"], "turns": 1, "colour": "red",
    })
}

fn rendered(format: Format, vms: &[(&str, Value)]) -> String {
    let labels: Vec<_> = vms.iter().map(|(name, _)| [("vm", *name)]).collect();
    let reports = labels.iter().zip(vms);
    let reports = reports.map(|(labels, (_, report))| (&labels[..], report));
    render(format, Object::of::<Cart>(), reports)
}

#[test]
fn text_when_two_vms_report_has_each_header_once() {
    let mut second = cart();
    second["load"] = Value::Null;
    second["broken"] = json!("axle");
    second["moods"] = json!(["good"]);
    second["sizes"] = json!({});
    second["wheels"] = json!([]);
    let text = rendered(Format::OpenMetrics, &[("a", cart()), ("b", second)]);
    let golden = r#"# TYPE vmm_tier_cart info
# HELP vmm_tier_cart `number`: The cart's number; `owners`: The cart's owners.
vmm_tier_cart_info{vm="a",number="7",owners="Ann,Bob"} 1
vmm_tier_cart_info{vm="b",number="7",owners="Ann,Bob"} 1
# TYPE vmm_tier_mood stateset
# HELP vmm_tier_mood How the driver feels.
vmm_tier_mood{vm="a",vmm_tier_mood="good"} 0
vmm_tier_mood{vm="a",vmm_tier_mood="not-so-good"} 1
vmm_tier_mood{vm="b",vmm_tier_mood="good"} 0
vmm_tier_mood{vm="b",vmm_tier_mood="not-so-good"} 1
# TYPE vmm_tier_moods stateset
# HELP vmm_tier_moods Who feels \"bad\", or worse\\better.
vmm_tier_moods{vm="a",vmm_tier_moods="good"} 0
vmm_tier_moods{vm="a",vmm_tier_moods="not-so-good"} 0
vmm_tier_moods{vm="b",vmm_tier_moods="good"} 1
vmm_tier_moods{vm="b",vmm_tier_moods="not-so-good"} 0
# TYPE vmm_tier_pause_seconds gauge
# UNIT vmm_tier_pause_seconds seconds
# HELP vmm_tier_pause_seconds Time of the last pause.
vmm_tier_pause_seconds{vm="a"} 1.5
vmm_tier_pause_seconds{vm="b"} 1.5
# TYPE vmm_tier_rolls gauge
# HELP vmm_tier_rolls Whether it rolls.
vmm_tier_rolls{vm="a"} 1
vmm_tier_rolls{vm="b"} 1
# TYPE vmm_tier_broken gauge
# HELP vmm_tier_broken Whether something broke.
vmm_tier_broken{vm="a"} 0
vmm_tier_broken{vm="b"} 1
# TYPE vmm_tier_stops counter
# HELP vmm_tier_stops Stops, by mood. Counted since the start.
vmm_tier_stops_total{vm="a",mood="not-so-good"} 3
vmm_tier_stops_total{vm="b",mood="not-so-good"} 3
# TYPE vmm_tier_size_bytes gauge
# UNIT vmm_tier_size_bytes bytes
# HELP vmm_tier_size_bytes Bytes by size.
vmm_tier_size_bytes{vm="a",size="4096"} 8192
# TYPE vmm_tier_wheel_turns counter
# HELP vmm_tier_wheel_turns Turns of the wheel. Counted since the start.
vmm_tier_wheel_turns_total{vm="a",wheel="front"} 18446744073709551615
vmm_tier_wheel_turns_total{vm="a",wheel="rear"} 0
# TYPE vmm_tier_wheel info
# HELP vmm_tier_wheel `maker`: Who made the wheel.
vmm_tier_wheel_info{vm="a",wheel="rear",maker="Carl"} 1
# TYPE vmm_tier_load_ratio gauge
# UNIT vmm_tier_load_ratio ratio
# HELP vmm_tier_load_ratio What the load weighs.
vmm_tier_load_ratio{vm="a"} 0.25
# TYPE vmm_tier_notes gauge
# HELP vmm_tier_notes Notes.
vmm_tier_notes{vm="a"} 2
vmm_tier_notes{vm="b"} 2
# EOF
"#;
    assert_eq!(text, golden);
    exposition::read(&text).unwrap();
}

#[test]
fn text_when_in_the_older_format_has_its_types_and_names_only() {
    let text = rendered(Format::Prometheus, &[("a", cart())]);
    for lines in [
        "# TYPE vmm_tier_cart_info gauge\n# HELP vmm_tier_cart_info `number`",
        "# TYPE vmm_tier_mood gauge\n",
        "# HELP vmm_tier_moods Who feels \"bad\", or worse\\\\better.\n",
        "# TYPE vmm_tier_stops_total counter\n",
        "# TYPE vmm_tier_pause_seconds gauge\n# HELP vmm_tier_pause_seconds",
    ] {
        assert!(text.contains(lines), "{lines} is not in {text}");
    }
    assert!(
        !text.contains("# EOF") && !text.contains("# UNIT"),
        "{text}"
    );
}

#[test]
fn text_when_nothing_reports_is_empty() {
    assert_eq!(rendered(Format::OpenMetrics, &[]), "# EOF\n");
    assert_eq!(rendered(Format::Prometheus, &[]), "");
}

#[test]
fn map_when_a_word_is_missing_has_it_as_zero() {
    let mut report = cart();
    report["stops"] = json!({});
    let text = rendered(Format::OpenMetrics, &[("a", report)]);
    assert!(
        text.contains("vmm_tier_stops_total{vm=\"a\",mood=\"not-so-good\"} 0\n"),
        "{text}"
    );
    assert!(!text.contains(",mood=\"good\""), "{text}");
}

#[test]
fn samples_when_of_the_same_labels_are_written_once() {
    let mut report = cart();
    report["wheels"][1]["place"] = json!("front");
    let text = rendered(Format::OpenMetrics, &[("a", report.clone()), ("a", report)]);
    let families = exposition::read(&text).unwrap();
    let turns = families
        .iter()
        .find(|family| family.name == "vmm_tier_wheel_turns");
    assert_eq!(turns.unwrap().samples.len(), 1);
}

#[test]
fn reply_when_of_another_shape_gives_what_can_be_read() {
    for broken in [
        json!(null),
        json!([]),
        json!({"wheels": 1, "load": [], "stops": 2}),
    ] {
        let text = rendered(Format::OpenMetrics, &[("a", broken)]);
        exposition::read(&text).unwrap();
    }
    let mut report = cart();
    report["wheels"][0]["turns"] = json!(-1);
    report["pause-ms"] = json!("long");
    let text = rendered(Format::OpenMetrics, &[("a", report)]);
    exposition::read(&text).unwrap();
    assert!(
        !text.contains("wheel=\"front\"") && !text.contains("pause"),
        "{text}"
    );
}

#[test]
fn families_when_listed_say_what_they_are() {
    let families = families(Object::of::<Cart>());
    let named = |name: &str| families.iter().find(|family| family.name == name).unwrap();
    let turns = named("vmm_tier_wheel_turns");
    assert_eq!(
        (turns.kind, turns.unit, turns.since),
        (Kind::Counter, None, Some("the start"))
    );
    assert_eq!(turns.figure, "wheels[].turns");
    assert_eq!(turns.labels[0].name, "wheel");
    let stops = named("vmm_tier_stops");
    assert_eq!(
        (stops.labels[0].name.as_str(), &stops.labels[0].words[..]),
        ("mood", &["not-so-good"][..])
    );
    assert_eq!(named("vmm_tier_load_ratio").figure, "load.share");
    assert_eq!(named("vmm_tier_cart").figure, "number, owners");
    let others = [
        ("turns".to_owned(), Some("the sum of the wheels' turns")),
        ("colour".to_owned(), None),
    ];
    assert_eq!(left_out(Object::of::<Cart>()), others);
}

/// Texts of any letters, with many of those that mean something in the format.
const HOSTILE: &str = r#"(\PC|[\x00-\x1f]|["\\\n\r{},=# ]){0,8}"#;

proptest! {
    /// Names come from guests' configurations and from other programs: none may break the text.
    #[test]
    fn text_when_names_are_hostile_reads_back(
        names in proptest::collection::btree_set(HOSTILE, 1..4),
        place in HOSTILE,
        key in HOSTILE,
    ) {
        let mut report = cart();
        report["wheels"][0]["place"] = json!(place);
        report["wheels"][1]["maker"] = json!(key);
        report["sizes"] = json!({key.clone(): 1});
        let vms: Vec<_> = names.iter().map(|name| (name.as_str(), report.clone())).collect();

        let text = rendered(Format::OpenMetrics, &vms);

        let families = exposition::read(&text).map_err(TestCaseError::fail)?;
        for family in &families {
            for sample in &family.samples {
                prop_assert!(names.contains(sample.label("vm").unwrap()), "{sample:?}");
            }
        }
        let found = |family: &str, label: &str, value: &str| {
            let family = families.iter().find(|found| found.name == family).unwrap();
            family.samples.iter().filter(|sample| sample.label(label) == Some(value)).count()
        };
        for name in &names {
            prop_assert_eq!(found("vmm_tier_rolls", "vm", name), 1);
        }
        prop_assert_eq!(found("vmm_tier_wheel_turns", "wheel", &place), names.len());
        prop_assert_eq!(found("vmm_tier_size_bytes", "size", &key), names.len());
        prop_assert_eq!(found("vmm_tier_wheel", "maker", &key), names.len());
    }
}
