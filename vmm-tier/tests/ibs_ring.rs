//! The agent with records of `ibs_op` in a file, as a software PMU writes them. "The guest" is this
//! process's own memory.

use std::{sync::Arc, thread, time::Duration};

use serde_json::json;

use crate::{
    played::{Agent, MIB, Qemu},
    ring::{SoftPmu, physical},
};

fn agent_with(pmu: &SoftPmu, folder: &Arc<tempfile::TempDir>) -> Agent {
    let more = format!("[source]\nkind = 'ibs={}'\n", pmu.path.display());
    Agent::start_in(Arc::clone(folder), &more)
}

#[test]
fn accesses_when_they_come_through_a_ring_file_warm_their_pages() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    // 64 hot pages, four kilobytes in each of the guest's first 64 hugepage-free strides.
    let hot: Vec<u64> = (0..64)
        .map(|page| qemu.base() + 2 * MIB + page * 65_536 + 64)
        .collect();
    let Some(hot) = physical(hot.into_iter()) else {
        println!("SKIPPED: frame numbers are for root only");
        return;
    };
    let mut pmu = SoftPmu::new(folder.path());
    let mut agent = agent_with(&pmu, &folder);
    let foreign = vec![1 << 45; 10];

    let mut written = 0;
    let reply = agent.ask_until(|reply| {
        written += pmu.write(&hot) + pmu.write(&foreign);
        thread::sleep(Duration::from_millis(50));
        reply["state"] == "running" && reply["source"]["accepted"].as_u64() >= Some(6400)
    });

    let source = &reply["source"];
    assert_eq!(source["kind"], "ibs", "{reply}");
    let dropped = source["dropped"].as_object().unwrap();
    let unmapped = dropped["unmapped"].as_u64().unwrap();
    assert!(unmapped > 0, "{source}");
    let all = source["accepted"].as_u64().unwrap() + unmapped;
    assert_eq!((dropped.len(), source["samples"].as_u64()), (1, Some(all)));
    assert!(all <= written as u64);
    let rung = &reply["sources"][0];
    assert_eq!(
        (&rung["believed"], &rung["precision"]),
        (&json!(true), &json!(1.0))
    );
    let explained = agent.ask("tier-explain", Some(json!({"address": 2 * MIB + 65_536})));
    assert!(
        explained["samples"].as_f64().unwrap_or_default() > 10.0,
        "{explained}"
    );
    let cold = agent.ask("tier-explain", Some(json!({"address": 2 * MIB + 4096})));
    assert_eq!(cold["samples"].as_f64(), Some(0.0), "{cold}");
}

#[test]
fn source_when_nothing_it_brings_is_the_guests_is_broken_and_the_agent_blind() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    if physical([qemu.base()].into_iter()).is_none() {
        println!("SKIPPED: frame numbers are for root only");
        return;
    }
    let mut pmu = SoftPmu::new(folder.path());
    // "The guest" is idle. With this factor its source is judged as soon as a busy guest's.
    let more = format!(
        "[source]\nkind = 'ibs={}'\nquiet-factor = 1\n",
        pmu.path.display()
    );
    let mut agent = Agent::start_in(Arc::clone(&folder), &more);
    let (_client, events) = agent.client();
    let reply = agent.ask_until(|reply| {
        pmu.write(&[1 << 45; 10]);
        reply["sources"][0]["health"] == "broken"
    });

    let reason = reply["sources"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("none of the guest's pages"), "{reason}");
    assert_eq!(reply["state"], "blind");
    assert_eq!(reply["source"]["accepted"], 0);
    let told: Vec<_> = events
        .try_iter()
        .filter(|e| e.name == "TIER_SOURCE")
        .collect();
    let last = &told.last().expect("it is told").data;
    assert_eq!(
        (&last["believed"], &last["up"]),
        (&json!(false), &json!(false)),
        "{last}"
    );
}
