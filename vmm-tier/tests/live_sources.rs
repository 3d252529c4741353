//! The doctor beside live guests. Needs a QEMU; see [`live`].

use std::{process::Command, sync::Arc};

use serde_json::Value;

use crate::live::{Guest, on_each_qemu};

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
        // It is emulated: its accesses are QEMU's own.
        assert_eq!(row("pebs")["sees"], "guest", "{label}");
    });
}
