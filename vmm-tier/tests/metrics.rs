//! `vmm-tier metrics` beside running agents, read by a strict reader of OpenMetrics.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use serde_json::json;

use crate::{
    exposition::{self, Family},
    played::{Agent, MIB, Qemu},
};

/// Families that a dry run without a source that moves pages may lack.
const MAY_LACK: [&str; 17] = [
    "vmm_tier_bias_deviation",
    "vmm_tier_bias_fast_to_slow_ratio",
    "vmm_tier_bias_held_pages",
    "vmm_tier_bias_learned_pages",
    "vmm_tier_bias_significant",
    "vmm_tier_brake_rate_bytes",
    "vmm_tier_brake_returned_ratio",
    "vmm_tier_hit_ratio",
    "vmm_tier_host_link_lease_left_seconds",
    "vmm_tier_host_link_rate_limit_bytes_per_second",
    "vmm_tier_host_link_share_bytes",
    "vmm_tier_move_cost_seconds",
    "vmm_tier_source_coverage_ratio",
    "vmm_tier_source_precision_ratio",
    "vmm_tier_source_quality_ratio",
    "vmm_tier_source_staleness_seconds",
    "vmm_tier_tier_spare_bytes",
];

fn metrics(arguments: &[&Path]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_vmm-tier"));
    program.arg("metrics").args(arguments).output().unwrap()
}

fn families(output: &Output) -> Vec<Family> {
    let text = str::from_utf8(&output.stdout).unwrap();
    exposition::read(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// The value of the first sample that has these labels.
fn value(families: &[Family], family: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let family = families.iter().find(|found| found.name == family)?;
    let mut samples = family.samples.iter();
    let has_all = |sample: &&exposition::Sample| {
        let mut labels = labels.iter();
        labels.all(|&(name, value)| sample.label(name) == Some(value))
    };
    samples.find(has_all).map(|sample| sample.value)
}

/// The agents' families of docs/metrics.md: name of samples and type.
fn documented() -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (families, _) = page
        .split_once("## Metric families of the host daemon")
        .unwrap();
    let rows = families
        .lines()
        .filter_map(|line| line.strip_prefix("| `vmm_tier_"));
    let cells = rows.map(|row| {
        let mut cells = row.split(" | ");
        let name = cells.next().unwrap().trim_end_matches('`');
        (format!("vmm_tier_{name}"), cells.next().unwrap().to_owned())
    });
    cells.collect()
}

#[test]
fn agent_when_asked_gives_the_documented_figures() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    // Nobody serves it, so no share is granted.
    let host = format!("host = '{}'\n", folder.path().join("host.sock").display());
    let mut agent = Agent::start_in(Arc::new(folder), &host);
    agent.ask_until(|reply| reply["tiers"][0]["bytes"] == 31 * MIB);
    let pin = json!({"start": 4 * MIB, "bytes": MIB, "tier": "fast", "when-full": "fill"});
    agent.ask("tier-pin", Some(pin));
    agent.ask("tier-drain", Some(json!({"bytes": 8 * MIB})));
    let reply = agent.ask("tier-pause", None);

    let output = metrics(&[&agent.control()]);

    assert!(output.status.success(), "{output:?}");
    let families = families(&output);
    let vm = ("domain", "played");
    let get = |family: &str, labels: &[(&str, &str)]| {
        value(&families, family, &[&[vm], labels].concat()).unwrap()
    };
    let fast = [("tier", "0")];
    assert_eq!(get("vmm_tier_tier_bytes", &fast), (31 * MIB) as f64);
    assert_eq!(get("vmm_tier_tier_limit_bytes", &fast), (8 * MIB) as f64);
    assert_eq!(get("vmm_tier_drain_target_bytes", &[]), (8 * MIB) as f64);
    assert_eq!(get("vmm_tier_pins", &[]), 1.0);
    assert_eq!(get("vmm_tier_pinned_fast_bytes", &[]), MIB as f64);
    assert_eq!(get("vmm_tier_state", &[("vmm_tier_state", "paused")]), 1.0);
    assert_eq!(get("vmm_tier_state", &[("vmm_tier_state", "running")]), 0.0);
    let operator = [("vmm_tier_paused_by", "operator")];
    assert_eq!(get("vmm_tier_paused_by", &operator), 1.0);
    assert_eq!(get("vmm_tier_failed_pages", &[("class", "busy")]), 0.0);
    assert_eq!(get("vmm_tier_dry_run_promoted_bytes", &[]), 0.0);
    assert_eq!(get("vmm_tier_state_file_failed", &[]), 0.0);
    assert_eq!(
        get("vmm_tier_socket_clients", &[("socket", "control")]),
        1.0
    );
    let pid = reply["pid"].to_string();
    assert_eq!(get("vmm_tier_vm", &[("pid", &pid)]), 1.0);

    let documented = documented();
    let has_source = reply["sources"]
        .as_array()
        .is_some_and(|list| !list.is_empty());
    for (name, kind) in &documented {
        let suffix = match kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let name = name.strip_suffix(suffix).unwrap();
        // The guest is on no hugetlb pages.
        let may_lack = MAY_LACK.contains(&name)
            || name.starts_with("vmm_tier_pool_")
            || (name == "vmm_tier_source" || !has_source && name.starts_with("vmm_tier_source_"));
        let found = families.iter().find(|family| family.name == name);
        assert!(may_lack || found.is_some(), "{name} is not written");
        assert!(
            found.is_none_or(|family| family.kind == *kind),
            "{name} is no {kind}"
        );
    }
    let is_documented = |sample: &str| documented.iter().any(|(name, _)| name == sample);
    let mut samples = families.iter().flat_map(|family| &family.samples);
    assert!(samples.all(|sample| is_documented(&sample.name)));
}

#[test]
fn agents_when_asked_together_are_told_apart_and_a_missing_one_is_told() {
    let start = |name: &str| {
        let folder = tempfile::tempdir().unwrap();
        let server = Qemu::new().serve(&folder.path().join("qmp"));
        let agent = Agent::start_in(folder.into(), &format!("name = '{name}'\n"));
        (server, agent)
    };
    let (_first_server, mut first) = start("a \"first\" \\ VM");
    let (_second_server, mut second) = start("second");
    first.ask("tier-pause", None);
    second.ask("query-tier", None);
    let nobody = PathBuf::from("/nonexistent/nobody.sock");

    let output = metrics(&[&first.control(), &nobody, &second.control()]);

    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/nonexistent/nobody.sock"), "{said}");
    let families = families(&output);
    let paused = |vm| {
        let labels = [("domain", vm), ("vmm_tier_state", "paused")];
        value(&families, "vmm_tier_state", &labels)
    };
    assert_eq!(paused("a \"first\" \\ VM"), Some(1.0));
    assert_eq!(paused("second"), Some(0.0));
}

#[test]
fn agents_when_of_one_name_give_the_figures_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask("query-tier", None);

    let output = metrics(&[&agent.control(), &agent.control()]);

    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("another agent's VM is called 'played'"),
        "{said}"
    );
    assert!(
        value(
            &families(&output),
            "vmm_tier_state",
            &[("domain", "played")]
        )
        .is_some()
    );
}
