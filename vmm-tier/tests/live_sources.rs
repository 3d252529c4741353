//! Sources and the doctor beside live guests. Needs a QEMU; see [`live`].

mod live;
mod played;

use std::{process::Command, sync::Arc};

use qmp::commands::Cont;
use serde_json::Value;

use self::{
    live::{Guest, on_each_qemu},
    played::Agent,
};

/// The one rung of the ladder.
fn rung(reply: &Value) -> &Value {
    &reply["sources"][0]
}

/// Whether every record that arrived is accounted for.
fn sums(rung: &Value) -> bool {
    let dropped: u64 = rung["dropped"]
        .as_object()
        .unwrap()
        .values()
        .map(|n| n.as_u64().unwrap())
        .sum();
    rung["samples"] == rung["accepted"].as_u64().unwrap() + dropped
}

#[test]
fn host_faults_when_an_emulated_guest_boots_see_its_first_touches_and_are_not_believed() {
    on_each_qemu(|emulator, label| {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let arguments = "-machine q35,vmport=off -m 64";
        let guest = Guest::start_in(Arc::clone(&folder), emulator, arguments);
        let config = "[source]\nkind = 'host-faults'\n";
        let mut agent = Agent::start_beside(&guest.socket("a"), Arc::clone(&folder), config);
        agent.ask_until(|reply| rung(reply)["sees"] == "first-touch");

        guest.client().execute(&Cont {}).unwrap();

        // The firmware touches memory that nobody has touched before.
        let reply = agent.ask_until(|reply| rung(reply)["accepted"].as_u64() > Some(0));
        assert!(sums(rung(&reply)), "{label}: {reply}");
        assert_eq!(rung(&reply)["believed"], false, "{label}");
        // Most faults of such a QEMU are in memory of its own.
        assert!(
            rung(&reply)["dropped"]["not-guest-ram"].as_u64() > Some(0),
            "{label}: {reply}"
        );
        let reply = agent.ask_until(|reply| reply["state"] == "blind");
        assert_eq!(rung(&reply)["kind"], "host-faults", "{label}");
    });
}

#[test]
fn doctor_when_a_live_guest_is_wired_for_an_agent_finds_its_port() {
    on_each_qemu(|emulator, label| {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let port = folder.path().join("tier.sock").display().to_string();
        let arguments = format!(
            "-machine q35,vmport=off -m 64 -device virtio-serial-pci -chardev \
             socket,id=tier,path={port},server=on,wait=off -device virtserialport,chardev=tier,name=vmm-tier"
        );
        let guest = Guest::start_in(Arc::clone(&folder), emulator, &arguments);

        let output = Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
            .args(["doctor", "--json", "--qmp"])
            .arg(guest.socket("a"))
            .output()
            .unwrap();

        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let row = |name: &str| {
            let rows = report["sources"].as_array().unwrap();
            rows.iter()
                .find(|row| row["source"] == name)
                .unwrap()
                .clone()
        };
        let agent = row("guest");
        assert_eq!(agent["works"], "perhaps", "{label}");
        let found = agent["found"].as_str().unwrap();
        assert!(
            found.contains(&format!("virtio-serial port vmm-tier ({port})")),
            "{label}: {found}"
        );
        // It is emulated: what the host does for it is what it does.
        assert_eq!(row("host-faults")["sees"], "first-touch", "{label}");
        assert_eq!(row("pebs")["sees"], "guest", "{label}");
        assert_eq!(row("kvm-faults")["works"], "no", "{label}");
    });
}
