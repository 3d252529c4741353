//! `vmm-tier run` beside a process that plays QEMU: how it starts, follows the guest, and ends.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use crossbeam::channel::Receiver;
use qmp::{Client, Event, client};
use rustix::process::Signal;
use serde_json::{Value, json};
use tier_sys::{process, sysroot::SysRoot};

use crate::played::{Agent, FOR_EVER, MIB, Qemu, event};

/// Set for the process that plays QEMU: where it serves its monitor.
const PLAY: &str = "VMM_TIER_TEST_PLAYS_QEMU_AT";

#[test]
fn query_tier_when_asked_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);

    let reply = agent.ask_until(|reply| {
        let bytes = reply["tiers"][0]["bytes"].as_u64().unwrap();
        let is_settled = reply["source"]["down"].is_string() || reply["source"]["samples"] != 0;
        bytes == 31 * MIB && is_settled
    });

    assert_eq!(reply["name"], "played");
    if reply["source"]["down"].is_string() {
        assert_eq!(reply["state"], "blind", "{reply}");
        assert_eq!(reply["waits-for"], "source", "{reply}");
    }
    let told = [&reply["waits-for"], &reply["waits-because"]].map(Value::is_null);
    assert_eq!(told[0], told[1], "{reply}");
    assert_eq!(reply["pools"], json!([]), "it is on no hugetlb pages");
    for key in ["kind", "samples", "accepted", "dropped"] {
        assert!(!reply["source"][key].is_null(), "source.{key} in {reply}");
    }
    for (rank, tier) in reply["tiers"].as_array().unwrap().iter().enumerate() {
        assert_eq!(tier["rank"], rank);
        assert_eq!(tier["nodes"], json!([0]));
        assert!(tier["limit-bytes"].is_null());
    }
    for key in ["promoted-bytes", "demoted-bytes", "failed", "page-sizes"] {
        assert!(!reply[key].is_null(), "{key} in {reply}");
    }
    assert!(reply.as_object().unwrap().contains_key("hit-ratio"));
    let sizes = reply["page-sizes"].as_object().unwrap().values();
    assert_eq!(
        sizes.map(|bytes| bytes.as_u64().unwrap()).sum::<u64>(),
        31 * MIB
    );
}

#[test]
fn orders_when_given_over_the_control_socket_are_obeyed() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);

    assert_eq!(agent.ask("tier-pause", None)["state"], "paused");
    assert_ne!(agent.ask("tier-resume", None)["state"], "paused");
    let limited = agent.ask("tier-set-limit", Some(json!({"bytes": 4096})));
    assert_eq!(limited["tiers"][0]["limit-bytes"], 4096);
    let unlimited = agent.ask("tier-set-limit", None);
    assert!(unlimited["tiers"][0]["limit-bytes"].is_null());
}

#[test]
fn agent_when_stopped_ends_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask("query-tier", None);

    agent.terminate();

    assert_eq!(agent.ended().code(), Some(0), "{}", agent.log());
    assert!(!agent.control().exists());
    let left = std::fs::read_dir(agent.folder.path().join("run"));
    let left: Vec<_> = left
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    let records = left
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "json"));
    assert_eq!(records.count(), 0, "{left:?}");
}

/// Whether this test's children ignore SIGHUP, as it does itself.
fn hup_is_ignored() -> bool {
    let signals = process::ending_signals(&SysRoot::real());
    !signals.contains(&(Signal::HUP.as_raw()))
}

#[test]
fn agent_when_its_terminal_hangs_up_ends_as_when_told_to() {
    if hup_is_ignored() {
        println!("SKIPPED: SIGHUP is ignored here, as under nohup");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask("query-tier", None);

    agent.signal(Signal::HUP);

    let status = agent.ended();
    assert_eq!(status.code(), Some(0), "{status}: {}", agent.log());
    assert!(!agent.control().exists());
}

#[test]
fn agent_when_it_is_to_outlive_its_terminal_does() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start_without_hup(folder);

    // The control socket comes after the signals.
    agent.ask("query-tier", None);

    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = u64::from_str_radix(mask.unwrap().trim(), 16).unwrap();
    // SIGHUP is signal 1, in bit 0.
    assert_eq!(mask & 1, 1, "{mask:x}");
    agent.terminate();
    assert_eq!(agent.ended().code(), Some(0), "{}", agent.log());
}

#[test]
fn agent_when_the_monitor_is_lost_says_so_and_takes_it_up_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let qemu = Qemu::new();
    let server = qemu.serve(&path);
    let mut agent = Agent::start(folder);
    agent.ask_until(|reply| reply["state"] != "detached");

    drop(server);
    agent.ask_until(|reply| reply["state"] == "detached");
    let _server = qemu.serve(&path);
    agent.ask_until(|reply| reply["state"] != "detached");

    agent.terminate();
    assert_eq!(agent.ended().code(), Some(0), "{}", agent.log());
}

/// The next states that the agent tells of.
fn states(events: &Receiver<Event>, count: usize) -> Vec<String> {
    let mut states = Vec::new();
    while states.len() < count {
        let event = events.recv_timeout(FOR_EVER).unwrap();
        if event.name == "TIER_STATE" {
            states.push(event.data["to"].as_str().unwrap().to_owned());
        }
    }
    states
}

#[test]
fn agent_when_the_guest_migrates_while_the_monitor_is_lost_knows_before_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let qemu = Qemu::new();
    let server = qemu.serve(&path);
    let mut agent = Agent::start(folder);
    agent.ask_until(|reply| reply["tiers"][0]["bytes"] == 31 * MIB);
    let (_client, events) = agent.client();

    drop(server);
    // What it was before hangs on the host: whether there is a source.
    while states(&events, 1) != ["detached"] {}
    *qemu.migration.lock().unwrap() = Some("active");
    let _server = qemu.serve(&path);

    // At no time may pages move.
    assert_eq!(states(&events, 1), ["paused"]);
    *qemu.status.lock().unwrap() = "postmigrate";
    *qemu.migration.lock().unwrap() = Some("completed");
    assert_eq!(states(&events, 1), ["guest-stopped"], "also without STOP");
}

#[test]
fn agent_when_the_monitor_hangs_from_the_start_ends_with_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    qemu.hangs.store(true, Ordering::Relaxed);
    let server = qemu.serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);

    let status = agent.ended();

    qemu.hangs.store(false, Ordering::Relaxed);
    drop(server);
    assert_eq!(status.code(), Some(1));
    let log = agent.log();
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.starts_with("vmm-tier:"))
        .collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(!agent.control().exists());
}

#[test]
fn agent_when_stopped_while_the_monitor_hangs_at_the_start_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    qemu.hangs.store(true, Ordering::Relaxed);
    let server = qemu.serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.wait_for(|| (server.stats().clients > 0).then_some(()));

    agent.terminate();
    qemu.hangs.store(false, Ordering::Relaxed);

    assert_eq!(agent.ended().code(), Some(0), "{}", agent.log());
    assert!(!agent.control().exists());
}

#[test]
fn agent_when_the_monitor_hangs_in_mid_run_still_answers_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let server = qemu.serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask("query-tier", None);

    qemu.hangs.store(true, Ordering::Relaxed);
    // The layout may have changed: the agent asks the monitor.
    let reset = json!({"guest": true, "reason": "guest-reset"});
    server.broadcast(&event("RESET", reset));
    agent.ask("query-tier", None);
    agent.terminate();
    let status = agent.ended();

    qemu.hangs.store(false, Ordering::Relaxed);
    assert_eq!(status.code(), Some(0), "{}", agent.log());
}

#[test]
fn agent_when_the_guest_stops_and_runs_again_follows() {
    let folder = tempfile::tempdir().unwrap();
    let server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask("query-tier", None);

    for (name, is_stopped) in [("STOP", true), ("RESUME", false)] {
        server.broadcast(&event(name, Value::Null));
        agent.ask_until(|reply| (reply["state"] == "guest-stopped") == is_stopped);
    }
}

#[test]
fn agent_when_its_guest_is_killed_ends_with_success() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let mut played = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "agent::played_qemu_when_asked_has_the_memory_it_tells_of",
        ])
        .env(PLAY, &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !path.exists() && started.elapsed() < FOR_EVER {
        thread::sleep(Duration::from_millis(10));
    }
    let mut agent = Agent::start(folder);
    agent.ask("query-tier", None);

    played.kill().unwrap();
    played.wait().unwrap();

    assert_eq!(agent.ended().code(), Some(0));
    assert!(!agent.control().exists());
    assert!(agent.log().contains("the guest has ended"));
}

/// What the other tests rest on. With [`PLAY`] set this process serves until it is killed.
#[test]
fn played_qemu_when_asked_has_the_memory_it_tells_of() {
    let qemu = Qemu::new();
    if let Some(path) = std::env::var_os(PLAY) {
        let _server = qemu.serve(Path::new(&path));
        thread::sleep(FOR_EVER);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let _server = qemu.serve(&path);
    let (client, _events) = Client::connect(&path, &client::Options::default()).unwrap();
    let end = qemu.ram.as_ptr() as u64 + qemu.ram.len() as u64;
    assert!(qemu.base() + 32 * MIB <= end);
    let text = client.hmp("gpa2hva 0x100000").unwrap();
    assert!(
        text.contains(&format!("{:#x}", qemu.base() + MIB)),
        "{text}"
    );
}
