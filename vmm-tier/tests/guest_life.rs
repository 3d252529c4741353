//! An agent whose guest migrates away, arrives, or gets and loses memory; QEMU is played.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::played::{Agent, MIB, Qemu, event};

#[test]
fn moves_when_the_guest_migrates_pause_until_that_fails() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask_until(|reply| reply["state"] != "paused" && reply["migration"].is_null());

    // Nobody switched the capability `events` on: the agent asks.
    for status in ["setup", "active", "device"] {
        *qemu.migration.lock().unwrap() = Some(status);
        let reply = agent.ask_until(|reply| reply["migration"] == status);
        assert_eq!(reply["state"], "paused", "{reply}");
        assert_eq!(reply["paused-by"], json!(["migration"]));
    }
    *qemu.migration.lock().unwrap() = Some("failed");

    let reply = agent.ask_until(|reply| reply["migration"].is_null());
    assert_ne!(reply["state"], "paused", "{reply}");
}

#[test]
fn moves_when_an_operator_paused_them_too_stay_paused_after_the_migration() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let server = qemu.serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask("tier-pause", None);

    *qemu.migration.lock().unwrap() = Some("active");
    server.broadcast(&event("MIGRATION", json!({"status": "active"})));
    let reply = agent.ask_until(|reply| reply["migration"] == "active");
    assert_eq!(reply["paused-by"], json!(["operator", "migration"]));
    let resumed = agent.ask("tier-resume", None);
    assert_eq!(resumed["state"], "paused", "the guest migrates");
    agent.ask("tier-pause", None);
    *qemu.migration.lock().unwrap() = Some("cancelled");
    server.broadcast(&event("MIGRATION", json!({"status": "cancelled"})));

    let reply = agent.ask_until(|reply| reply["migration"].is_null());
    assert_eq!(reply["state"], "paused");
    assert_eq!(reply["paused-by"], json!(["operator"]));
}

#[test]
fn moves_when_the_guest_has_left_are_not_taken_up_again() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let server = qemu.serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    *qemu.migration.lock().unwrap() = Some("active");
    agent.ask_until(|reply| reply["migration"] == "active");

    *qemu.status.lock().unwrap() = "postmigrate";
    *qemu.migration.lock().unwrap() = Some("completed");
    server.broadcast(&event("STOP", Value::Null));

    let reply = agent.ask_until(|reply| reply["migration"].is_null());
    assert_eq!(reply["state"], "guest-stopped");
    // A monitor that was lost and is back makes no difference.
    drop(server);
    agent.ask_until(|reply| reply["state"] == "detached");
    let _server = qemu.serve(&agent.folder.path().join("qmp"));
    agent.ask_until(|reply| reply["state"] == "guest-stopped");
}

#[test]
fn moves_when_the_guest_is_yet_to_arrive_wait_until_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    *qemu.status.lock().unwrap() = "inmigrate";
    *qemu.migration.lock().unwrap() = Some("active");
    let server = qemu.serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    let reply = agent.ask_until(|reply| reply["migration"] == "active");
    assert_eq!(reply["paused-by"], json!(["migration"]));

    *qemu.migration.lock().unwrap() = Some("completed");
    agent.ask_until(|reply| reply["state"] == "guest-stopped");
    *qemu.status.lock().unwrap() = "running";
    server.broadcast(&event("RESUME", Value::Null));

    let reply = agent.ask_until(|reply| reply["state"] != "guest-stopped");
    assert_ne!(reply["state"], "paused", "{reply}");
}

#[test]
fn map_when_memory_comes_and_goes_follows() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let server = qemu.serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask_until(|reply| reply["tiers"][0]["bytes"] == 31 * MIB);

    // Plugging a DIMM emits no event: the next look finds it.
    qemu.has_dimm.store(true, Ordering::Relaxed);
    agent.ask_until(|reply| reply["tiers"][0]["bytes"] == 35 * MIB);

    qemu.has_dimm.store(false, Ordering::Relaxed);
    let gone = json!({"device": "dimm0", "path": "/machine/peripheral/dimm0"});
    server.broadcast(&event("DEVICE_DELETED", gone));
    let reply = agent.ask_until(|reply| reply["tiers"][0]["bytes"] == 31 * MIB);
    assert_eq!(reply["map-generation"], 3);
}
