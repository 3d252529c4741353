//! The `tier-*` commands, asked of a running agent beside a process that plays QEMU.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use qmp::Event;
use serde_json::{Value, json};

use crate::played::{Agent, FOR_EVER, MIB, Qemu, event};

/// What was set by commands in the tests of restarts.
fn set_all(agent: &mut Agent) {
    agent.ask("tier-pause", None);
    let policy = json!({"half-life": 2.5, "rate": 8 * MIB});
    agent.ask("tier-set-policy", Some(policy));
    agent.ask("tier-set-limit", Some(json!({"bytes": 16 * MIB})));
    let pin = json!({"start": 2 * MIB, "bytes": MIB, "tier": "fast", "when-full": "fill"});
    agent.ask("tier-pin", Some(pin));
}

fn is_all_set(reply: &Value) -> bool {
    reply["state"] == "paused"
        && reply["half-life-s"] == 2.5
        && reply["rate-bytes-per-s"] == 8 * MIB
        && reply["tiers"][0]["limit-bytes"] == 16 * MIB
        && reply["pins"]["count"] == 1
}

#[test]
fn settings_when_made_by_commands_survive_the_agents_end_by_any_means() {
    for end in [Agent::kill, |agent: &mut Agent| {
        agent.terminate();
        assert_eq!(agent.ended().code(), Some(0));
    }] {
        let folder = tempfile::tempdir().unwrap();
        let _server = Qemu::new().serve(&folder.path().join("qmp"));
        let mut agent = Agent::start(folder);
        assert_eq!(agent.ask("query-tier", None)["restored"], Value::Null);
        set_all(&mut agent);
        end(&mut agent);
        let mut agent = Agent::start_in(Arc::clone(&agent.folder), "");

        let reply = agent.ask_until(is_all_set);

        assert_eq!(
            reply["restored"]["what"],
            json!(["paused", "limit", "policy", "pins"])
        );
        assert_eq!(reply["restored"]["same-qemu"], true);
        assert_eq!(reply["state-file"]["error"], Value::Null, "{reply}");
        assert_eq!(reply["horizon-s"], 30.0, "it was not set");
    }
}

#[test]
fn settings_when_taken_back_are_those_of_the_configuration_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let config = "[policy]\nhalf-life-s = 7.0\n[moves]\nrate-per-s = '32M'\n";
    let mut agent = Agent::start_in(Arc::new(folder), config);
    set_all(&mut agent);

    agent.ask("tier-resume", None);
    agent.ask("tier-set-policy", Some(json!({})));
    assert_eq!(agent.ask("tier-unpin", None)["pins"], 1);
    let unlimited = agent.ask("tier-set-limit", None);

    let is_back = |reply: &Value| {
        reply["state"] != "paused"
            && reply["half-life-s"] == 7.0
            && reply["rate-bytes-per-s"] == 32 * MIB
            && reply["tiers"][0]["limit-bytes"].is_null()
            && reply["pins"]["count"] == 0
    };
    assert!(is_back(&unlimited), "{unlimited}");
    agent.kill();
    let mut agent = Agent::start_in(Arc::clone(&agent.folder), config);
    let reply = agent.ask_until(is_back);
    // That there is to be no limit, whatever the configuration says, was an order.
    assert_eq!(reply["restored"]["what"], json!(["limit"]));
}

#[test]
fn state_file_when_damaged_is_kept_aside_and_the_agent_runs() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let state = folder.path().join("run/state");
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(state.join("played.json"), "{\"version\": 1, ").unwrap();
    let mut agent = Agent::start(folder);

    let reply = agent.ask("query-tier", None);
    agent.ask("tier-pause", None);

    assert_eq!(reply["restored"], Value::Null);
    assert_ne!(reply["state"], "paused");
    assert!(state.join("played.json.damaged").exists());
    assert!(state.join("played.json").exists(), "the next is written");
    agent.terminate();
    assert_eq!(agent.ended().code(), Some(0));
    let log = agent.log();
    assert!(log.contains("played.json.damaged"), "{log}");
}

#[test]
fn pin_when_its_memory_is_gone_waits_until_it_is_back_or_the_pin_is_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    qemu.has_dimm.store(true, Ordering::Relaxed);
    let server = qemu.serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    let dimm = json!({"start": 4096 * MIB, "bytes": MIB, "tier": "slow", "when-full": "fill"});
    agent.ask("tier-pin", Some(dimm));
    agent.kill();
    qemu.has_dimm.store(false, Ordering::Relaxed);
    let mut agent = Agent::start_in(Arc::clone(&agent.folder), "");

    let reply = agent.ask("query-tier", None);
    assert_eq!(reply["pins"]["count"], 0);
    assert_eq!(reply["pins"]["waiting"][0]["start"], 4096 * MIB, "{reply}");
    let over_it = json!({"start": 4096 * MIB, "bytes": 4096, "tier": "fast"});
    let refusal = agent.refused("tier-pin", over_it);
    assert!(refusal.contains("overlaps"), "{refusal}");

    qemu.has_dimm.store(true, Ordering::Relaxed);
    server.broadcast(&event(
        "RESET",
        json!({"guest": false, "reason": "host-qmp-system-reset"}),
    ));
    let reply = agent.ask_until(|reply| reply["pins"]["count"] == 1);
    assert_eq!(reply["pins"]["waiting"], json!([]));
    assert_eq!(reply["map-generation"], 2);

    agent.kill();
    qemu.has_dimm.store(false, Ordering::Relaxed);
    let mut agent = Agent::start_in(Arc::clone(&agent.folder), "");
    let range = json!({"start": 4096 * MIB, "bytes": MIB});
    assert_eq!(agent.ask("tier-unpin", Some(range))["pins"], 1);
    let reply = agent.ask("query-tier", None);
    assert_eq!(reply["pins"]["waiting"], json!([]));
    let file = agent.folder.path().join("run/state/played.json");
    assert!(!file.exists(), "nothing is set any more");
}

#[test]
fn pins_when_as_many_as_there_may_be_wait_leave_no_place_for_more() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask("tier-pause", None);
    agent.kill();
    let file = agent.folder.path().join("run/state/played.json");
    let mut document: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    // One as long as can be written: sums of lengths must bear it.
    let waiting = |n: u64| {
        let bytes = if n < 2 { u64::MAX } else { 4096 };
        json!({"start": 4096 * MIB + n * 4096, "bytes": bytes, "tier": "slow", "when-full": "fill"})
    };
    document["set"]["pins"] = (0..1024).map(waiting).collect();
    std::fs::write(&file, document.to_string()).unwrap();
    let mut agent = Agent::start_in(Arc::clone(&agent.folder), "");
    let reply = agent.ask("query-tier", None);
    assert_eq!(reply["pins"]["waiting"].as_array().unwrap().len(), 1024);

    let one_more = json!({"start": MIB, "bytes": 4096, "tier": "slow", "when-full": "fill"});
    let refusal = agent.refused("tier-pin", one_more.clone());

    assert!(refusal.contains("1024 pins already"), "{refusal}");
    let gone = agent.ask("tier-unpin", None);
    assert_eq!(
        (&gone["pins"], &gone["bytes"]),
        (&json!(1024), &json!(u64::MAX))
    );
    agent.ask("tier-pin", Some(one_more));
    agent.kill();
    let mut agent = Agent::start_in(Arc::clone(&agent.folder), "");
    let reply = agent.ask("query-tier", None);
    assert_eq!(reply["restored"]["what"], json!(["paused", "pins"]));
    assert_eq!(reply["pins"]["count"], 1, "in force at once");
}

#[test]
fn commands_when_they_can_not_be_carried_out_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);

    let range = |start: u64, bytes: u64| json!({"start": start, "bytes": bytes, "tier": "fast"});
    for (name, arguments, says) in [
        ("tier-pin", range(MIB, 100), "GenericError: 100 bytes"),
        (
            "tier-pin",
            range(64 * MIB, 4096),
            "Guest address 0x4000000 is not guest RAM",
        ),
        (
            "tier-pin",
            range(u64::MAX - 4095, 4096),
            "are not one or more whole pages",
        ),
        (
            "tier-pin",
            json!({"start": MIB, "bytes": 4096, "tier": "warm"}),
            "Parameter 'tier' does not accept value 'warm'",
        ),
        (
            "tier-pin",
            json!({"start": MIB}),
            "Parameter 'bytes' is missing",
        ),
        (
            "tier-unpin",
            json!({"start": MIB, "bytes": 4096}),
            "No pin lies in the 4096 bytes",
        ),
        (
            "tier-explain",
            json!({"address": 0}),
            "Guest address 0x0 is not guest RAM",
        ),
        (
            "tier-set-policy",
            json!({"rate": 1}),
            "pause to move nothing",
        ),
        (
            "tier-set-policy",
            json!({"half-life": "10"}),
            "Invalid parameter type for 'half-life', expected: number",
        ),
        (
            "tier-set-limit",
            json!({"bytes": null}),
            "Invalid parameter type for 'bytes', expected: integer",
        ),
        (
            "tier-drain",
            json!({"bytes": -1}),
            "Parameter 'bytes' expects uint64",
        ),
        (
            "query-tier-heatmap",
            json!({"rows": 100_000}),
            "at most 16384",
        ),
    ] {
        let refusal = agent.refused(name, arguments.clone());
        assert!(refusal.contains(says), "{name} {arguments}: {refusal}");
    }
}

#[test]
fn page_when_explained_has_its_block_and_place() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask_until(|reply| reply["tiers"][0]["bytes"] == 31 * MIB);
    let pin = json!({"start": 4 * MIB, "bytes": 4 * MIB, "tier": "fast", "when-full": "fill"});
    assert_eq!(agent.ask("tier-pin", Some(pin))["placed-bytes"], 4 * MIB);

    let page = agent.ask("tier-explain", Some(json!({"address": 4 * MIB + 5})));

    assert_eq!(page["gpa"], 4 * MIB + 5);
    assert_eq!(page["block"], "pc.ram");
    assert_eq!(page["hva"], qemu.base() + 4 * MIB + 5);
    assert_eq!(page["placement"], "fast");
    assert_eq!(page["pin"]["start"], 4 * MIB);
    assert!(page["would-move-if"].is_string(), "{page}");
}

#[test]
fn heatmap_when_drawn_covers_the_guests_memory() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask_until(|reply| reply["tiers"][0]["bytes"] == 31 * MIB);

    let size = json!({"rows": 4, "columns": 8});
    let map = agent.ask("query-tier-heatmap", Some(size));

    assert_eq!(map["ram-bytes"], 31 * MIB);
    let cells = map["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 32);
    assert_eq!(cells[0]["gpa"], MIB);
    assert!(cells.iter().all(|cell| cell["fast-share"] == 1.0), "{map}");
    let whole = agent.ask("query-tier-heatmap", None);
    assert_eq!(whole["cells"].as_array().unwrap().len(), 16 * 64);
}

#[test]
fn clients_when_others_steer_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask_until(|reply| reply["tiers"][0]["bytes"] == 31 * MIB);
    let (_listener, events) = agent.client();

    agent.ask("tier-pause", None);
    agent.ask("tier-set-limit", Some(json!({"bytes": 40 * MIB})));
    agent.ask("tier-set-limit", Some(json!({"bytes": 40 * MIB})));
    let drained = agent.ask("tier-drain", Some(json!({"bytes": 32 * MIB})));
    assert_eq!(drained["done"], true, "{drained}");
    agent.ask("tier-resume", None);

    let mut told = Vec::new();
    while told.len() < 5 {
        let Event { name, data, .. } = events.recv_timeout(FOR_EVER).unwrap();
        // Whether there is a source hangs on the host.
        if name != "TIER_SOURCE" && (name != "TIER_STATE" || data.to_string().contains("paused")) {
            told.push((name, data));
        }
    }
    let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "TIER_STATE",
            "TIER_LIMIT",
            "TIER_LIMIT",
            "TIER_DRAIN",
            "TIER_STATE"
        ]
    );
    assert_eq!(told[0].1["to"], "paused");
    assert_eq!(told[0].1["paused-by"], json!(["operator"]));
    let limit = json!({"new": 40 * MIB, "who": "operator"});
    assert_eq!(told[1].1, limit);
    assert_eq!(told[3].1["target-bytes"], 32 * MIB);
    assert_eq!(told[4].1["from"], "paused");
    let more = events.recv_timeout(Duration::ZERO);
    assert!(
        !more.is_ok_and(|event| event.name == "TIER_LIMIT"),
        "the same limit is no news"
    );
}
