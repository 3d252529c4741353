//! `vmm-tier run` with an agent in the guest, which this test plays behind the socket that would be
//! QEMU's: one that keeps to the rules, one that names others' memory, one that floods.

use std::{sync::Arc, thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    guest::{Guest, accesses},
    played::{Agent, MIB, Qemu},
};

fn start(folder: &Arc<tempfile::TempDir>, guest: &Guest) -> Agent {
    let more = format!("[source]\nkind = '{}'\n", guest.source());
    Agent::start_in(Arc::clone(folder), &more)
}

/// All records have a fate.
fn assert_accounted(source: &Value) {
    let dropped = source["dropped"].as_object().unwrap().values();
    let dropped: u64 = dropped.map(|count| count.as_u64().unwrap()).sum();
    let accepted = source["accepted"].as_u64().unwrap();
    assert_eq!(
        source["samples"].as_u64(),
        Some(accepted + dropped),
        "{source}"
    );
}

#[test]
fn guest_when_it_observes_warms_its_own_pages() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let mut guest = Guest::new(&folder);
    let mut agent = start(&folder, &guest);
    let hot: Vec<u64> = (0..64).map(|page| 2 * MIB + page * 65_536).collect();
    let before = agent.ask("query-tier", None);

    let reply = agent.ask_until(|reply| {
        guest.observe(&hot);
        thread::sleep(Duration::from_millis(20));
        let label = reply["sources"][0]["label"].as_str().unwrap_or_default();
        reply["state"] == "running"
            && reply["source"]["accepted"].as_u64() >= Some(6400)
            && label.contains("6.12-played")
    });

    assert_eq!(reply["source"]["kind"], "guest", "{reply}");
    assert_accounted(&reply["source"]);
    assert_eq!(reply["source"]["dropped"], json!({}), "{reply}");
    for figure in ["precision", "coverage", "staleness-ms"] {
        assert!(before["sources"][0][figure].is_null(), "{before}");
        assert!(reply["sources"][0][figure].is_f64(), "{reply}");
    }
    assert!(before["sources"][0].is_object(), "{before}");
    let explained = agent.ask("tier-explain", Some(json!({"address": 2 * MIB + 65_536})));
    assert!(
        explained["samples"].as_f64().unwrap_or_default() > 10.0,
        "{explained}"
    );
    let cold = agent.ask("tier-explain", Some(json!({"address": 2 * MIB + 4096})));
    assert_eq!(cold["samples"].as_f64(), Some(0.0), "{cold}");
}

#[test]
fn guest_when_it_names_others_memory_is_broken_and_changes_nothing() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let mut guest = Guest::new(&folder);
    let mut agent = start(&folder, &guest);
    // Behind its memory, far away, and where this process has its own.
    let foreign = [64 * MIB, 1 << 45, qemu.base() + 2 * MIB];

    let reply = agent.ask_until(|reply| {
        guest.observe(&foreign);
        thread::sleep(Duration::from_millis(20));
        reply["sources"][0]["health"] == "broken"
    });

    assert_eq!(reply["source"]["accepted"], 0, "{reply}");
    assert!(
        reply["source"]["dropped"]["not-guest-ram"].as_u64() > Some(0),
        "{reply}"
    );
    assert_accounted(&reply["source"]);
    assert_eq!(reply["state"], "blind", "{reply}");
}

#[test]
fn guest_when_it_stalls_is_silent_and_heard_again_when_it_goes_on() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let mut guest = Guest::new(&folder);
    // "The guest" is idle. With this factor its source is judged as soon as a busy guest's.
    let more = format!("[source]\nkind = '{}'\nquiet-factor = 1\n", guest.source());
    let mut agent = Agent::start_in(Arc::clone(&folder), &more);
    let hot: Vec<u64> = (0..64).map(|page| 2 * MIB + page * 65_536).collect();
    let observe = |guest: &mut Guest| {
        guest.observe(&hot);
        thread::sleep(Duration::from_millis(20));
    };
    agent.ask_until(|reply| {
        observe(&mut guest);
        reply["source"]["accepted"].as_u64() >= Some(640)
    });

    let stalled = agent.ask_until(|reply| reply["sources"][0]["health"] == "silent");
    assert_eq!(stalled["state"], "blind", "{stalled}");

    let back = agent.ask_until(|reply| {
        observe(&mut guest);
        reply["state"] == "running"
    });
    assert!(back["source"]["accepted"].as_u64() > stalled["source"]["accepted"].as_u64());
    assert_accounted(&back["source"]);
}

#[test]
fn guest_when_it_floods_is_limited_and_the_agent_answers_all_the_same() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let mut guest = Guest::new(&folder);
    let mut agent = start(&folder, &guest);
    let addresses: Vec<u64> = (0..8000).map(|page| 2 * MIB + page % 6000 * 4096).collect();

    let reply = agent.ask_until(|reply| {
        guest.listen();
        // No credit is asked for.
        for _ in 0..20 {
            if guest.next > 0 && guest.stream.is_some() {
                guest.send(accesses(&addresses));
            }
        }
        reply["source"]["dropped"]["rate-limited"].as_u64() >= Some(1_000_000)
    });

    assert_accounted(&reply["source"]);
    assert!(reply["source"]["accepted"].as_u64() > Some(0), "{reply}");
}
