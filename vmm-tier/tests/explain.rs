//! `vmm-tier explain`: a page in sentences, with and without an agent, and the host's counters.

use std::{
    ffi::OsStr,
    process::{Command, Output},
};

use serde_json::Value;

use crate::played::{Agent, MIB, Qemu};

fn explain(arguments: &[&OsStr]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
        .arg("explain")
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn page_when_an_agent_runs_is_explained_in_its_sentences() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask_until(|reply| {
        reply["state"] != "starting" || reply["page-sizes"] != serde_json::json!({})
    });
    let address = (4 * MIB + 5).to_string();
    let control = agent.control();

    let output = explain(&["--control".as_ref(), control.as_os_str(), address.as_ref()]);

    assert!(output.status.success(), "{}", text(&output.stderr));
    let told = text(&output.stdout);
    let first = told.lines().next().unwrap_or_default();
    assert!(
        first.starts_with("Guest address 0x400005 is byte 0x400005 of RAM block pc.ram ("),
        "{told}"
    );
    let reply = agent.ask(
        "tier-explain",
        Some(serde_json::json!({"address": 4 * MIB + 5})),
    );
    assert_eq!(reply["sentences"][0], first, "told once");

    let elsewhere = explain(&[
        "--control".as_ref(),
        control.as_os_str(),
        "0x7f0000000000".as_ref(),
    ]);
    assert_eq!(elsewhere.status.code(), Some(1));
    assert!(text(&elsewhere.stderr).contains("not guest RAM"));
}

#[test]
fn page_when_no_agent_runs_is_explained_by_what_qemu_and_the_kernel_tell() {
    let folder = tempfile::tempdir().unwrap();
    let qmp = folder.path().join("qmp");
    let _server = Qemu::new().serve(&qmp);

    let output = explain(&["--qmp".as_ref(), qmp.as_os_str(), "0x400000".as_ref()]);

    if !output.status.success() {
        let why = text(&output.stderr);
        assert!(
            why.contains("move_pages") || why.contains("permission"),
            "{why}"
        );
        eprintln!("SKIPPED: {why}");
        return;
    }
    let told = text(&output.stdout);
    assert!(told.contains("The page lies on node 0."), "{told}");
    assert!(told.contains("No agent runs beside this guest"), "{told}");
}

#[test]
fn host_when_explained_shows_counters_and_an_agent_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask("query-tier", None);
    let control = agent.control();
    let arguments = ["--host", "--seconds", "1", "--control"].map(OsStr::new);

    let plain = explain(&[&arguments[..], &[control.as_os_str()]].concat());
    let json = explain(&[&arguments[..], &[control.as_os_str(), "--json".as_ref()]].concat());

    assert!(plain.status.success(), "{}", text(&plain.stderr));
    let told = text(&plain.stdout);
    for part in [
        "What the kernel did to pages in 1.",
        "counters stood still",
        "The agent of played",
        "node 0: ",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let report: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(report["agent"]["name"], "played");
    assert!(report["counters"]["pgmigrate_success"].is_u64());
    for found in report["pathologies"].as_array().unwrap() {
        assert!(
            found["name"].is_string() && found["meaning"].is_string(),
            "{found}"
        );
    }
}

#[test]
fn arguments_when_they_do_not_go_together_are_refused() {
    for (arguments, says) in [
        (&["0x1000"][..], "--qmp"),
        (&[][..], "required"),
        (&["--host", "0x1000"][..], "cannot be used with"),
        (&["--control", "/nowhere", "page"][..], "no address"),
        (
            &["--seconds", "3", "--control", "/nowhere", "1"][..],
            "cannot be used with",
        ),
        (&["--host", "--seconds", "0"][..], "0"),
    ] {
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        let output = explain(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let why = text(&output.stderr);
        assert!(why.contains(says), "{arguments:?}: {why}");
    }
}
