//! The dashboard and the rules under examples/: they name what there is, and Prometheus reads them.
//!
//! No Grafana is in a package registry that the tests may use. So the dashboard is held against what
//! Grafana's own documentation asks of its JSON model, and its queries are read by promtool.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tier_core::report::{
    Object,
    family::{Family, families},
};

use super::tools::tool;
use crate::{agent::QUERY_TIER, host::report::HostInfo};

const DASHBOARD: &str = include_str!("../../../examples/grafana/vmm-tier.json");
const RULES: &str = include_str!("../../../examples/prometheus/rules.yml");
const ALERTS: &str = include_str!("../../../examples/prometheus/alerts.yml");
const ALERTS_TEST: &str = include_str!("../../tests/data/alerts-test.yml");
const RUNBOOK: &str = include_str!("../../../docs/troubleshooting.md");
const RUNBOOK_URL: &str = "https://github.com/vmm-tier/vmm-tier/blob/main/docs/troubleshooting.md#";
/// Columns of a dashboard's grid.
const GRID: u64 = 24;

/// A name in a query, and the words that it is compared with if it is a label.
struct Name<'a> {
    name: &'a str,
    words: Vec<&'a str>,
}

/// The names in a text that may be metrics or labels of this project.
fn names(text: &str) -> Vec<Name<'_>> {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == ':';
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_name) {
        rest = &rest[start..];
        let end = rest.find(|letter| !is_name(letter)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        // YAML has a colon behind the name of a member.
        let name = name.trim_end_matches(':');
        let mut operators = ["=~\"", "!~\"", "!=\"", "=\""].into_iter();
        let value = operators.find_map(|operator| after.strip_prefix(operator));
        let words = value.and_then(|value| Some(value.split_once('"')?.0));
        let words = words.into_iter().flat_map(|words| words.split('|'));
        let words = words.filter(|word| !word.contains(['$', '*']));
        found.push(Name {
            name,
            words: words.collect(),
        });
        rest = after;
    }
    found
}

/// The queries of the dashboard's panels, and those of its variables.
fn queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels
        .filter_map(|panel| panel["targets"].as_array())
        .flatten();
    let queries = targets.map(|target| target["expr"].as_str().unwrap().to_owned());
    queries.collect()
}

/// Values of lines such as `- alert: NAME`.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let lines = text
        .lines()
        .map(|line| line.trim().trim_start_matches("- "));
    let found = lines.filter_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
    found.collect()
}

fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs promtool; what it said, unless it is content.
fn promtool(program: &Path, arguments: &[&str], files: &[PathBuf]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .args(files)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if output.status.success() {
        Ok(said)
    } else {
        Err(said)
    }
}

#[test]
fn metrics_and_words_when_the_examples_name_them_exist() {
    let families: Vec<_> = [QUERY_TIER, Object::of::<HostInfo>()]
        .into_iter()
        .flat_map(families)
        .collect();
    let metrics: HashSet<String> = families.iter().map(Family::sample_name).collect();
    let mut labels: HashMap<&str, HashSet<&str>> = HashMap::new();
    for label in families.iter().flat_map(|family| &family.labels) {
        let words = labels.entry(&label.name).or_default();
        words.extend(&label.words);
    }
    let recorded: HashSet<&str> = values(RULES, "record").into_iter().collect();
    assert!(recorded.len() > 5, "{recorded:?}");

    let texts = [RULES, ALERTS, DASHBOARD, ALERTS_TEST];
    let texts: Vec<String> = texts
        .iter()
        .map(|text| text.replace("\\\"", "\""))
        .collect();
    let mut used = BTreeSet::new();
    for name in texts.iter().flat_map(|text| names(text)) {
        if name.name.starts_with("vmm_tier_") {
            assert!(metrics.contains(name.name), "there is no {}", name.name);
            used.insert(name.name);
        } else if name.name.contains(":vmm_tier_") {
            assert!(
                recorded.contains(name.name),
                "no rule records {}",
                name.name
            );
        }
        let known = labels.get(name.name).filter(|known| !known.is_empty());
        for word in name.words.iter().filter(|_| known.is_some()) {
            let known = known.unwrap();
            assert!(known.contains(word), "{} is never {word}", name.name);
        }
    }
    assert!(used.len() > 40, "{used:?}");
    for rule in recorded {
        let is_used = texts[1..].iter().any(|text| text.contains(rule));
        assert!(is_used, "nobody needs {rule}");
    }
}

#[test]
fn rules_when_promtool_reads_them_are_right_and_every_alert_fires() {
    let alerts = values(ALERTS, "alert");
    assert!(alerts.len() > 15, "{alerts:?}");
    // Each alert has a test with an instance that fires.
    let tests: Vec<&str> = ALERTS_TEST.split("\n  - name: ").skip(1).collect();
    for alert in &alerts {
        let mut of_alert = tests
            .iter()
            .filter(|test| test.lines().next() == Some(alert));
        let fires = of_alert.any(|test| test.contains("exp_labels"));
        assert!(fires, "no test in which {alert} fires");
    }
    let Some(program) = tool("promtool") else {
        return;
    };
    let files =
        ["rules", "alerts"].map(|name| example(&format!("../examples/prometheus/{name}.yml")));
    promtool(&program, &["check", "rules"], &files).unwrap_or_else(|said| panic!("{said}"));
    let tests = [example("tests/data/alerts-test.yml")];
    promtool(&program, &["test", "rules"], &tests).unwrap_or_else(|said| panic!("{said}"));

    // What is wrong is found: with a threshold that nothing reaches one alert does not fire.
    let folder = tempfile::tempdir().unwrap();
    let blunt = ALERTS.replace("vmm_tier_moves_refused == 1", "vmm_tier_moves_refused == 2");
    assert_ne!(blunt, ALERTS);
    let tests = ALERTS_TEST.replace("../../../examples/prometheus/", "");
    for (name, text) in [
        ("rules.yml", RULES),
        ("alerts.yml", &blunt),
        ("test.yml", &tests),
    ] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let said = promtool(
        &program,
        &["test", "rules"],
        &[folder.path().join("test.yml")],
    );
    let said = said.expect_err("an alert does not fire");
    assert!(said.contains("VmmTierMovesRefused"), "{said}");
}

#[test]
fn alert_when_it_fires_has_a_paragraph_in_the_runbook() {
    let alerts = values(ALERTS, "alert");
    let urls = values(ALERTS, "runbook_url");
    assert_eq!(alerts.len(), urls.len());
    let (_, runbook) = RUNBOOK.split_once("\n## Alerts\n").unwrap();
    let mut sections: HashMap<&str, &str> = HashMap::new();
    for section in runbook.split("\n### ").skip(1) {
        let (title, text) = section.split_once('\n').unwrap();
        let text = text.split("\n## ").next().unwrap();
        assert!(
            sections.insert(title, text).is_none(),
            "{title} stands twice"
        );
    }
    for (alert, url) in alerts.iter().zip(urls) {
        let anchor = url.strip_prefix(RUNBOOK_URL);
        assert_eq!(anchor, Some(alert.to_lowercase().as_str()));
        let text = sections
            .remove(alert)
            .unwrap_or_else(|| panic!("nothing about {alert}"));
        for part in ["**Seen:** ", "**Why:** ", "**Do:** "] {
            assert!(text.contains(part), "{alert} has no {part}");
        }
    }
    assert!(sections.is_empty(), "no such alerts: {:?}", sections.keys());
}

#[test]
fn dashboard_when_held_against_the_json_model_is_whole() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    assert_eq!(dashboard["uid"], "vmm-tier");
    assert!(
        dashboard["schemaVersion"].as_u64() >= Some(36),
        "data sources are objects since 36"
    );
    assert!(dashboard.get("id").is_none() && dashboard.get("__inputs").is_none());
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let variables: Vec<&str> = variables
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(variables, ["datasource", "instance", "domain"]);

    let (mut ids, mut taken, mut kinds) = (HashSet::new(), HashSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(
            !title.is_empty() && ids.insert(panel["id"].as_u64().unwrap()),
            "{title}"
        );
        let place = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        assert!(place("x") + place("w") <= GRID, "{title} is too wide");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{title} lies over another panel");
            }
        }
        let kind = panel["type"].as_str().unwrap();
        kinds.insert(kind);
        if kind == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        assert!(
            !panel["description"].as_str().unwrap().is_empty(),
            "{title}"
        );
        assert!(
            panel["fieldConfig"]["defaults"]["unit"].is_string(),
            "{title}"
        );
        let mut letters = HashSet::new();
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            assert!(letters.insert(target["refId"].as_str().unwrap()), "{title}");
        }
    }
    let known = ["row", "stat", "state-timeline", "table", "timeseries"];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), known);
}

#[test]
fn dashboard_when_promtool_reads_its_queries_has_no_fault() {
    let Some(program) = tool("promtool") else {
        return;
    };
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let queries = queries(&dashboard);
    assert!(queries.len() > 30, "{queries:?}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("queries.yml");
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (number, query) in queries.iter().enumerate() {
        let query = query.replace("$__rate_interval", "5m");
        let query = query.replace("$instance", ".*").replace("$domain", ".*");
        assert!(!query.contains('$'), "{query}");
        let _ = writeln!(
            rules,
            "  - {{record: query{number}, expr: {}}}",
            Value::from(query)
        );
    }
    fs::write(&file, rules).unwrap();
    promtool(&program, &["check", "rules"], &[file]).unwrap_or_else(|said| panic!("{said}"));
}
