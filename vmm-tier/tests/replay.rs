//! `vmm-tier replay` as users run it: on small workloads.

use std::process::{Command, Output};

use serde_json::Value;

/// A workload small enough for a test: 8 MiB and 300 000 accesses.
const SMALL: [&str; 8] = [
    "--pages",
    "2048",
    "--rate",
    "100000",
    "--seconds",
    "3",
    "--period",
    "11",
];

fn replay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
        .arg("replay")
        .args(arguments)
        .output()
        .unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = replay(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn runs(report: &Value) -> &Vec<Value> {
    report["runs"].as_array().unwrap()
}

fn run_of<'a>(report: &'a Value, policy: &str) -> &'a Value {
    let found = runs(report).iter().find(|run| run["policy"] == policy);
    found.unwrap_or_else(|| panic!("no {policy} in {report:#}"))
}

/// What does not follow from the input alone: CPU time.
fn without_cpu_time(mut report: Value) -> Value {
    for run in report["runs"].as_array_mut().unwrap() {
        run.as_object_mut().unwrap().remove("ns-per-sample");
    }
    report
}

#[test]
fn json_when_a_workload_is_replayed_has_the_keys_of_the_contract() {
    let report = json(&[&["--workload", "zipf"][..], &SMALL].concat());

    assert_eq!(runs(&report).len(), 2, "the default policy, and the oracle");
    for run in runs(&report) {
        assert_eq!(run["trace"], "zipf");
        assert_eq!(run["guest-bytes"], 8 << 20);
        assert_eq!(run["fast-bytes"], 2 << 20, "a quarter");
        assert_eq!(run["accesses"], 300_000);
        for key in ["hit-ratio", "ping-pong"] {
            let share = run[key].as_f64().unwrap();
            assert!((0.0..=1.0).contains(&share), "{key}: {share}");
        }
        for key in ["oracle-share", "slowdown", "ns-per-sample"] {
            assert!(run[key].as_f64().unwrap() > 0.0, "{key}");
        }
        for key in ["moved-bytes", "least-bytes", "memory-bytes"] {
            assert!(run[key].is_u64(), "{key}");
        }
        assert_eq!(run["plateaus"][0]["from-s"], 0.0);
        assert_eq!(run["samples"]["arrived"], run["samples"]["accepted"]);
        // One in eleven of 300 000, less what the jitter does at the end.
        let arrived = run["samples"]["arrived"].as_u64().unwrap();
        assert!((26_000..28_500).contains(&arrived), "{arrived}");
    }
    assert_eq!(run_of(&report, "oracle")["oracle-share"], 1.0);
    assert_eq!(report["traces"][0]["period"], 11);
    assert_eq!(report["needs"], Value::Array(Vec::new()), "one size only");
}

#[test]
fn figures_when_replayed_again_are_the_same() {
    let arguments = [
        &["--workload", "gups-demeter,zipf", "--policy", "all"][..],
        &["--fast", "1:8,1:2", "--loss", "5", "--bias", "3"],
        &SMALL,
    ]
    .concat();
    let first = without_cpu_time(json(&arguments));
    let again = without_cpu_time(json(&arguments));
    assert_eq!(first, again);
    let other = without_cpu_time(json(&[&arguments[..], &["--seed", "2"]].concat()));
    assert_ne!(first, other);

    for run in runs(&first) {
        assert!(run["samples"]["lost"].as_u64().unwrap() > 0, "{run}");
    }
    let unseen: u64 = runs(&first)
        .iter()
        .map(|run| run["samples"]["unseen"].as_u64().unwrap())
        .sum();
    assert!(unseen > 0, "the bias takes samples of slow pages away");
}

#[test]
fn hits_when_dram_grows_do_not_fall_for_the_oracle() {
    let sizes = ["--fast", "1:16,50%,1:4,1M", "--policy", "oracle"];
    let report = json(&[&["--workload", "zipf"][..], &sizes, &SMALL].concat());

    let sizes: Vec<u64> = runs(&report)
        .iter()
        .map(|run| run["fast-bytes"].as_u64().unwrap())
        .collect();
    assert_eq!(sizes, [512 << 10, 1 << 20, 2 << 20, 4 << 20], "rising");
    let hits: Vec<f64> = runs(&report)
        .iter()
        .map(|run| run["hit-ratio"].as_f64().unwrap())
        .collect();
    assert!(hits.is_sorted(), "{hits:?}");
    let need = &report["needs"][0];
    assert_eq!(need["policy"], "oracle");
    assert_eq!(need["hit-ratio"], 0.95);
    assert!(
        need["bytes"].is_u64() && need["bound"].is_string(),
        "{need}"
    );
}

#[test]
fn text_and_picture_when_several_sizes_are_replayed_show_the_curve() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("curve.svg");
    let arguments = [
        &["--workload", "zipf", "--fast", "1:8,1:4"][..],
        &["--svg", picture.to_str().unwrap()],
        &SMALL,
    ]
    .concat();

    let output = replay(&arguments);

    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    for part in [
        "1 MiB of DRAM, 12.5 % of the guest",
        "2 MiB of DRAM, 25.0 % of the guest",
        "ns/sample",
        "arrived",
        "a dual-heap  b oracle",
        "DRAM for 95.0 % of the accesses",
    ] {
        assert!(shown.contains(part), "{part} is missing:\n{shown}");
    }
    assert_eq!(text(&output.stderr), "", "no progress without a terminal");
    let picture = std::fs::read_to_string(picture).unwrap();
    assert!(picture.starts_with("<svg"), "{picture}");
    assert!(picture.contains("dual-heap"));
}

#[test]
fn arguments_when_wrong_are_told_with_what_to_do() {
    let small = |more: &[&'static str]| [more, &SMALL].concat();
    let cases = [
        (small(&["--workload", "none"]), "gups-demeter"),
        (
            small(&["--workload", "zipf", "--policy", "best"]),
            "dual-heap",
        ),
        (small(&["--workload", "zipf", "--fast", "1K"]), "--fast"),
        (small(&["--workload", "zipf", "--fast", "lots"]), "512M"),
        (small(&["--workload", "zipf", "--fast", "4:1"]), "1:16"),
        (vec!["--workload", "zipf", "--period", "0"], "1.."),
        (vec!["--workload", "zipf", "--target", "120"], "percentage"),
        (vec![], "--workload"),
    ];
    for (arguments, hint) in cases {
        let output = replay(&arguments);
        let error = text(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(error.contains(hint), "{arguments:?}: {error}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
    }
}
