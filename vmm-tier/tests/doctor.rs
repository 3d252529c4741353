//! `vmm-tier doctor` on this host: whatever it is like, the report keeps its contract.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;

/// What a doctor tries for a moment, another would find in use.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn doctor(arguments: &[&str]) -> (Output, Value) {
    let _alone = alone();
    run(arguments)
}

fn run(arguments: &[&str]) -> (Output, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
        .arg("doctor")
        .arg("--json")
        .args(arguments)
        .output()
        .unwrap();
    let value = serde_json::from_slice(&output.stdout).unwrap();
    (output, value)
}

fn failing(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().unwrap().iter();
    findings
        .filter(|finding| finding["level"] == "fail")
        .map(|finding| finding["id"].as_str().unwrap())
        .collect()
}

#[test]
fn json_when_run_on_this_host_has_the_promised_shape_and_exit_code() {
    let (output, report) = doctor(&[]);

    let can_tier = report["can-tier"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(!can_tier)));
    assert_eq!(can_tier, failing(&report).is_empty());
    for finding in report["findings"].as_array().unwrap() {
        for key in ["id", "what", "meaning"] {
            assert!(!finding[key].as_str().unwrap().is_empty(), "{finding}");
        }
        assert!(
            ["ok", "note", "warn", "fail"].contains(&finding["level"].as_str().unwrap()),
            "{finding}"
        );
        assert!(
            finding["remedy"].is_string() || finding["remedy"].is_null(),
            "{finding}"
        );
    }
    for (rank, tier) in report["tiers"].as_array().unwrap().iter().enumerate() {
        assert_eq!(tier["rank"], rank);
        assert!(tier["bytes"].as_u64().unwrap() > 0);
        assert!(!tier["nodes"].as_array().unwrap().is_empty());
        assert!(tier["read-latency-ns"].is_number() || tier["read-latency-ns"].is_null());
    }
    let sources = report["sources"].as_array().unwrap();
    let names: Vec<_> = sources
        .iter()
        .map(|row| row["source"].as_str().unwrap())
        .collect();
    let all = ["ibs", "guest", "damon", "pebs"];
    assert_eq!(names, all);
    for row in sources {
        assert!(
            ["yes", "perhaps", "no"].contains(&row["works"].as_str().unwrap()),
            "{row}"
        );
        let sees = row["sees"].as_str().unwrap();
        assert!(["guest", "host-mode"].contains(&sees), "{row}");
        assert!(!row["precision"].as_str().unwrap().is_empty());
        assert!(!row["found"].as_str().unwrap().is_empty());
        if row["works"] == "no" {
            assert!(!row["enable"].as_array().unwrap().is_empty(), "{row}");
        }
    }
}

#[test]
fn doctor_when_it_tried_every_source_leaves_nothing_behind() {
    let state = || {
        let kdamonds = "/sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds";
        let run_dir = Path::new("/run/vmm-tier");
        let files = fs::read_dir(run_dir.join("damon")).map(Iterator::count);
        (
            fs::read_to_string(kdamonds).ok(),
            run_dir.exists(),
            files.unwrap_or(0),
        )
    };
    let _alone = alone();
    let before = state();

    run(&[]);

    assert_eq!(state(), before);
}

#[test]
fn doctor_when_nobody_serves_the_socket_fails_for_that_reason() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none");

    let (output, report) = doctor(&["--qmp", socket.to_str().unwrap()]);

    assert_eq!(output.status.code(), Some(1));
    assert!(failing(&report).contains(&"qmp"));
}
