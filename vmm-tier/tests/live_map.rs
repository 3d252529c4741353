//! `vmm-tier map` on live guests: every range, and nothing else, is where QEMU says it is.
//!
//! Needs a QEMU; see [`live`].

use std::{fs, process::Command};

use qmp::hmp::{Gpa2Hva, parse_gpa2hva};
use serde_json::Value;

use crate::live::{Guest, on_each_qemu};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What `vmm-tier map --json` says; the ranges as (gpa, len, block, hva).
fn map(guest: &Guest) -> Vec<(u64, u64, String, u64)> {
    let output = vmm_tier()
        .arg("map")
        .arg("--qmp")
        .arg(guest.socket("a"))
        .arg("--json")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["pid"], guest.child.id());
    let ranges = value["ranges"].as_array().unwrap().iter().map(|range| {
        let number = |key: &str| range[key].as_u64().unwrap();
        let present: u64 = range["nodes"]
            .as_object()
            .unwrap()
            .values()
            .map(|bytes| bytes.as_u64().unwrap())
            .sum();
        assert!(present <= number("len"));
        assert_eq!(number("page-size"), 4096);
        (
            number("gpa"),
            number("len"),
            range["block"].as_str().unwrap().to_owned(),
            number("hva"),
        )
    });
    ranges.collect()
}

fn vmm_tier() -> Command {
    Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
}

/// Compares the map with QEMU's translation of 400 addresses: half of them random, half at the edges.
fn check_against_qemu(guest: &Guest, map: &[(u64, u64, String, u64)], label: &str) {
    let client = guest.client();
    let top = map.iter().map(|(gpa, len, ..)| gpa + len).max().unwrap() + GIB;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        // xorshift64: any spread will do.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut addresses: Vec<u64> = (0..200).map(|_| MIB + random() % (top - MIB)).collect();
    for (gpa, len, ..) in map {
        let edges = [
            gpa.saturating_sub(1).max(MIB),
            *gpa,
            gpa + len / 2,
            gpa + len - 1,
            gpa + len,
        ];
        addresses.extend(edges);
        addresses.extend((0..20).map(|_| gpa + random() % len));
    }
    for gpa in addresses {
        let in_map = map
            .iter()
            .find(|(start, len, ..)| (*start..start + len).contains(&gpa));
        let expected = in_map.map(|(start, _, _, hva)| hva + (gpa - start));
        let found = match parse_gpa2hva(&client.hmp(&format!("gpa2hva {gpa:#x}")).unwrap()).unwrap()
        {
            // Firmware is mapped too, and not in the map.
            Gpa2Hva::Mapped { region, .. } if region == "pc.bios" => None,
            Gpa2Hva::Mapped { hva, .. } => Some(hva),
            Gpa2Hva::Unmapped | Gpa2Hva::NotRam => None,
        };
        assert_eq!(expected, found, "{label}: guest-physical {gpa:#x}");
    }
}

/// Starts a guest, checks its map against QEMU and its ranges against `expected` (gpa, len, block).
fn check_shape(arguments: &str, expected: &[(u64, u64, &str)]) {
    on_each_qemu(|emulator, label| {
        let guest = Guest::start(emulator, arguments);

        let map = map(&guest);

        let shape: Vec<_> = map
            .iter()
            .map(|(gpa, len, block, _)| (*gpa, *len, block.as_str()))
            .collect();
        assert_eq!(shape, expected, "{label}");
        check_against_qemu(&guest, &map, label);
    });
}

#[test]
fn map_of_a_q35_guest_is_one_range() {
    check_shape("-M q35 -m 512", &[(MIB, 511 * MIB, "pc.ram")]);
}

#[test]
fn map_of_a_guest_above_2_gib_goes_on_at_4_gib() {
    check_shape(
        "-M q35 -m 5G",
        &[(MIB, 2 * GIB - MIB, "pc.ram"), (4 * GIB, 3 * GIB, "pc.ram")],
    );
}

#[test]
fn map_when_low_memory_is_limited_splits_there() {
    check_shape(
        "-M q35,max-ram-below-4g=1G -m 1536",
        &[(MIB, GIB - MIB, "pc.ram"), (4 * GIB, 512 * MIB, "pc.ram")],
    );
}

#[test]
fn map_of_a_memfd_guest_names_its_backend() {
    check_shape(
        "-M q35,memory-backend=ram0 -m 256 -object memory-backend-memfd,id=ram0,size=256M,share=on",
        &[(MIB, 255 * MIB, "ram0")],
    );
}

#[test]
fn map_of_a_numa_guest_has_a_range_for_each_backend() {
    check_shape(
        "-M q35 -m 768 -smp 2 -object memory-backend-ram,id=m0,size=512M \
         -object memory-backend-memfd,id=m1,size=256M \
         -numa node,nodeid=0,cpus=0,memdev=m0 -numa node,nodeid=1,cpus=1,memdev=m1",
        &[(MIB, 511 * MIB, "m0"), (512 * MIB, 256 * MIB, "m1")],
    );
}

#[test]
fn map_of_a_guest_with_dimms_has_them_where_they_are_plugged() {
    check_shape(
        "-M q35 -m 256,slots=4,maxmem=8G -object memory-backend-ram,id=h0,size=128M \
         -object memory-backend-ram,id=h1,size=256M -object memory-backend-ram,id=spare,size=64M \
         -device pc-dimm,memdev=h0 -device pc-dimm,memdev=h1,addr=0x180000000",
        &[
            (MIB, 255 * MIB, "pc.ram"),
            (4 * GIB, 128 * MIB, "h0"),
            (6 * GIB, 256 * MIB, "h1"),
        ],
    );
}

#[test]
fn map_of_a_virtio_mem_device_is_its_whole_region() {
    on_each_qemu(|emulator, label| {
        let guest = Guest::start(
            emulator,
            "-M q35 -m 256,maxmem=4G -object memory-backend-memfd,id=v0,size=512M \
             -device virtio-mem-pci,memdev=v0,requested-size=0",
        );

        let map = map(&guest);

        let shape: Vec<_> = map.iter().map(|(gpa, len, ..)| (*gpa, *len)).collect();
        assert_eq!(shape, [(MIB, 255 * MIB), (4 * GIB, 512 * MIB)], "{label}");
        // QEMU shows the block with or without the device's path.
        assert!(map[1].2.ends_with("v0"), "{label}: {}", map[1].2);
        check_against_qemu(&guest, &map, label);
    });
}

#[test]
fn map_of_a_microvm_guest_leaves_its_firmware_out() {
    check_shape("-M microvm -m 256", &[(MIB, 255 * MIB, "microvm.ram")]);
}

#[test]
fn map_when_a_dimm_is_plugged_and_unplugged_follows() {
    on_each_qemu(|emulator, label| {
        let guest = Guest::start(emulator, "-M q35 -m 256,slots=2,maxmem=4G");
        let ranges = || map(&guest).len();
        assert_eq!(ranges(), 1, "{label}");

        let client = guest.client();
        let object =
            serde_json::json!({"qom-type": "memory-backend-ram", "id": "h0", "size": 128 * MIB});
        client.execute_raw("object-add", Some(object)).unwrap();
        assert_eq!(ranges(), 1, "{label}: a backend alone is not in the guest");
        let device = serde_json::json!({"driver": "pc-dimm", "id": "d0", "memdev": "h0"});
        client.execute_raw("device_add", Some(device)).unwrap();
        assert_eq!(ranges(), 2, "{label}");
    });
}

#[test]
fn map_as_text_names_the_process_and_sums_up() {
    on_each_qemu(|emulator, label| {
        let guest = Guest::start(emulator, "-M q35 -m 512");

        let output = vmm_tier()
            .arg("map")
            .arg("--qmp")
            .arg(guest.socket("a"))
            .output()
            .unwrap();

        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains(&format!("process {}", guest.child.id())),
            "{label}: {text}"
        );
        assert!(
            text.lines()
                .any(|line| line.starts_with("total") && line.contains("511 MiB")),
            "{label}: {text}"
        );
    });
}

#[test]
fn map_when_the_socket_is_wrong_says_what_to_do_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for (path, expected) in [
        (folder.path().join("none"), "no socket at"),
        (file, "is not a socket"),
    ] {
        let output = vmm_tier()
            .arg("map")
            .arg("--qmp")
            .arg(&path)
            .output()
            .unwrap();

        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(output.stdout.is_empty());
        assert!(
            error.contains(expected) && error.contains(path.to_str().unwrap()),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
