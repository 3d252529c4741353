//! `vmm-tier run --proxy`: QEMU's monitor for many clients, with the agent's commands and events.

use std::{path::PathBuf, sync::Arc};

use qmp::{Client, Event, client};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::played::{Agent, FOR_EVER, Qemu, event};

/// An agent with a proxy, and where that is.
fn start(folder: TempDir) -> (Agent, PathBuf) {
    let path = folder.path().join("proxy/qmp");
    let more = format!("proxy = '{}'\n", path.display());
    (Agent::start_in(Arc::new(folder), &more), path)
}

fn connect(agent: &mut Agent, path: &PathBuf) -> (Client, crossbeam::channel::Receiver<Event>) {
    agent.wait_for(|| Client::connect(path, &client::Options::default()).ok())
}

#[test]
fn clients_when_on_the_proxy_have_qemu_and_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let server = Qemu::new().serve(&folder.path().join("qmp"));
    let (mut agent, path) = start(folder);
    let (first, first_events) = connect(&mut agent, &path);
    let (second, second_events) = connect(&mut agent, &path);

    for client in [&first, &second] {
        let status = client.execute_raw("query-status", None).unwrap();
        assert_eq!(status["status"], "running");
        let tier = client.execute_raw("query-tier", None).unwrap();
        assert_eq!(tier["name"], "played");
        let names = client.execute_raw("query-commands", None).unwrap();
        let names = names.as_array().unwrap();
        for name in ["human-monitor-command", "tier-pin"] {
            assert!(names.contains(&json!({"name": name})), "{names:?}");
        }
    }
    first.execute_raw("tier-pause", None).unwrap();
    server.broadcast(&event("BALLOON_CHANGE", json!({"actual": 1})));

    for events in [first_events, second_events] {
        let mut missing = vec!["TIER_STATE", "BALLOON_CHANGE"];
        while !missing.is_empty() {
            let event = events.recv_timeout(FOR_EVER).unwrap();
            missing.retain(|name| *name != event.name);
        }
    }
    // The control socket is as it was.
    let reply = agent.ask("query-tier", None);
    assert_eq!(reply["state"], "paused");
    let sockets = &reply["sockets"];
    assert_eq!(sockets[0]["kind"], "control", "{sockets}");
    assert_eq!(sockets[1]["path"], path.display().to_string());
    assert_eq!(sockets[1]["clients"], 2);
}

#[test]
fn proxy_when_the_monitor_is_lost_goes_and_comes_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let qmp = folder.path().join("qmp");
    let qemu = Qemu::new();
    let server = qemu.serve(&qmp);
    let (mut agent, path) = start(folder);
    let (_client, events) = connect(&mut agent, &path);

    drop(server);
    while events.recv_timeout(FOR_EVER).is_ok() {}
    agent.ask_until(|reply| reply["state"] == "detached");
    let _server = qemu.serve(&qmp);
    agent.ask_until(|reply| reply["state"] != "detached");

    let (client, _events) = connect(&mut agent, &path);
    let status = client.execute_raw("query-status", None).unwrap();
    assert_eq!(status["running"], true);
    agent.terminate();
    assert_eq!(agent.ended().code(), Some(0), "{}", agent.log());
    assert!(!path.exists());
}

#[test]
fn agent_when_the_proxys_place_is_taken_ends_with_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    std::fs::create_dir(folder.path().join("proxy")).unwrap();
    std::fs::write(folder.path().join("proxy/qmp"), "no socket").unwrap();
    let (mut agent, path) = start(folder);

    assert_eq!(agent.ended().code(), Some(1));
    let log = agent.log();
    let told: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with("vmm-tier:"))
        .collect();
    assert_eq!(told.len(), 1, "{log}");
    assert!(told[0].contains("is not a socket"), "{log}");
    assert!(!agent.control().exists());
    assert_eq!(std::fs::read(path).unwrap(), b"no socket");
}

#[test]
fn client_when_it_asks_as_the_monitor_goes_is_not_kept_waiting_for_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let server = qemu.serve(&folder.path().join("qmp"));
    let (mut agent, path) = start(folder);
    let (client, _events) = connect(&mut agent, &path);
    assert_eq!(
        client.execute_raw("query-tier", None).unwrap()["name"],
        "played"
    );

    drop(server);
    // Whether it still gets an answer or not: it gets an end, and the agent goes on.
    let asked = client.execute_raw("query-tier", None);
    assert!(asked.is_err() || asked.is_ok_and(|reply| reply != Value::Null));
    agent.ask_until(|reply| reply["state"] == "detached");
}
