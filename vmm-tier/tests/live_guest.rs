//! An agent beside live guests that migrate away, arrive and are killed. Needs a QEMU; see [`live`].

use std::sync::Arc;

use qmp::{
    Client,
    commands::{Cont, MigrationStatus, QueryMigrate},
};
use serde_json::json;

use crate::{
    live::{Emulator, Guest, on_each_qemu},
    played::{Agent, MIB},
};

const GUEST: &str = "-name moving -machine q35,vmport=off -m 64";

/// Waits until QEMU says that the migration has come to this.
fn await_migration(agent: &mut Agent, qemu: &Client, wanted: &MigrationStatus) {
    agent.wait_for(|| {
        let info = qemu.execute(&QueryMigrate {}).unwrap();
        (info.status.as_ref() == Some(wanted)).then_some(())
    });
}

fn follow(emulator: &Emulator, label: &str) {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let image = folder.path().join("image").display().to_string();
    let guest = Guest::start_in(Arc::clone(&folder), emulator, GUEST);
    let qemu = guest.client();
    let mut agent = Agent::start_beside(&guest.socket("a"), Arc::clone(&folder), "");
    agent.ask_until(|reply| reply["state"] == "guest-stopped");
    qemu.execute(&Cont {}).unwrap();
    agent.ask_until(|reply| reply["state"] != "guest-stopped");
    agent.ask("tier-set-limit", Some(json!({"bytes": 16 * MIB})));

    // So slow that it never ends.
    let send = |bandwidth: u64| {
        let limit = json!({"max-bandwidth": bandwidth});
        qemu.execute_raw("migrate-set-parameters", Some(limit))
            .unwrap();
        let to = json!({"uri": format!("exec:cat > {image}")});
        qemu.execute_raw("migrate", Some(to)).unwrap();
    };
    send(10_000);
    let reply = agent.ask_until(|reply| reply["migration"].is_string());
    assert_eq!(reply["paused-by"], json!(["migration"]), "{label}");
    qemu.execute_raw("migrate_cancel", None).unwrap();
    await_migration(&mut agent, &qemu, &MigrationStatus::Cancelled);
    let reply = agent.ask_until(|reply| reply["migration"].is_null());
    assert_eq!(reply["paused-by"], json!([]), "{label}");
    assert_ne!(reply["state"], "guest-stopped", "{label}: it goes on here");

    send(1 << 30);
    await_migration(&mut agent, &qemu, &MigrationStatus::Completed);
    agent.ask_until(|reply| reply["state"] == "guest-stopped" && reply["migration"].is_null());
    drop((qemu, guest));
    assert_eq!(agent.ended().code(), Some(0), "{label}: {}", agent.log());

    // What was set goes with the VM's name, to the QEMU where it arrives.
    let arguments = format!("{GUEST} -incoming defer");
    let guest = Guest::start_in(Arc::clone(&folder), emulator, &arguments);
    let qemu = guest.client();
    let mut agent = Agent::start_beside(&guest.socket("a"), Arc::clone(&folder), "");
    let reply = agent.ask_until(|reply| reply["state"] == "guest-stopped");
    assert_eq!(reply["restored"]["what"], json!(["limit"]), "{label}");
    assert_eq!(reply["restored"]["same-qemu"], false, "{label}");
    let from = json!({"uri": format!("exec:cat {image}")});
    qemu.execute_raw("migrate-incoming", Some(from)).unwrap();
    await_migration(&mut agent, &qemu, &MigrationStatus::Completed);
    qemu.execute(&Cont {}).unwrap();
    let reply =
        agent.ask_until(|reply| reply["state"] != "guest-stopped" && reply["migration"].is_null());
    assert_eq!(reply["tiers"][0]["limit-bytes"], 16 * MIB, "{label}");
}

#[test]
fn agent_when_a_live_guest_migrates_away_and_arrives_follows() {
    on_each_qemu(follow);
}

#[test]
fn agent_when_a_dimm_is_plugged_into_a_live_guest_follows() {
    on_each_qemu(|emulator, label| {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let arguments = "-machine q35,vmport=off -m 64,slots=2,maxmem=1G";
        let guest = Guest::start_in(Arc::clone(&folder), emulator, arguments);
        let qemu = guest.client();
        let mut agent = Agent::start_beside(&guest.socket("a"), Arc::clone(&folder), "");
        agent.ask_until(|reply| reply["map-generation"] == 1);
        // It waits for memory that the guest does not have yet; the first DIMM's place is 4 GiB.
        let pin = json!({"start": 4096 * MIB, "bytes": MIB, "tier": "slow", "when-full": "fill"});
        let refusal = agent.refused("tier-pin", pin.clone());
        assert!(refusal.contains("is not guest RAM"), "{label}: {refusal}");

        let backend = json!({"qom-type": "memory-backend-ram", "id": "mem1", "size": 128 * MIB});
        qemu.execute_raw("object-add", Some(backend)).unwrap();
        let dimm = json!({"driver": "pc-dimm", "id": "dimm1", "memdev": "mem1"});
        qemu.execute_raw("device_add", Some(dimm)).unwrap();

        // No event tells of it.
        agent.ask_until(|reply| reply["map-generation"] == 2);
        assert_eq!(agent.ask("tier-pin", Some(pin))["pins"], 1, "{label}");
        let page = json!({"address": 4096 * MIB});
        assert_eq!(
            agent.ask("tier-explain", Some(page))["block"],
            "mem1",
            "{label}"
        );
        drop((qemu, guest));
        assert_eq!(agent.ended().code(), Some(0), "{label}: {}", agent.log());
    });
}
