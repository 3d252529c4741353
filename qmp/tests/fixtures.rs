//! Replies, greetings and events of two QEMU versions, as they were sent, through the parsers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use qmp::{
    Event, EventKind,
    client::Greeting,
    codec::{Decoder, Limits},
    commands::{
        Command, MemoryDevice, QueryBalloon, QueryCpusFast, QueryCurrentMachine, QueryMemdev,
        QueryMemoryDevices, QueryMemorySizeSummary, QueryRamblock, QueryStatus, QueryVersion,
        RunState,
    },
    hmp::RamBlock,
};
use serde_json::Value;

const VERSIONS: [&str; 2] = ["7.2", "10.0"];

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// Reads a file's messages through the crate's own decoder.
fn messages(path: &Path) -> Vec<Value> {
    let mut decoder = Decoder::new(Limits::REPLIES);
    decoder.push(&fs::read(path).unwrap());
    std::iter::from_fn(|| decoder.next_message())
        .map(|message| message.unwrap())
        .collect()
}

/// The `return` member of a reply, typed.
fn reply<C: Command>(version: &str, machine: &str, state: &str) -> C::Return {
    let path = data()
        .join(version)
        .join(machine)
        .join(format!("{state}.{}.json", C::NAME));
    let value = messages(&path)[0]["return"].take();
    serde_json::from_value(value).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn ramblocks(version: &str, machine: &str, state: &str) -> Vec<RamBlock> {
    reply::<QueryRamblock>(version, machine, state)
        .ramblocks()
        .unwrap()
}

/// All files of all machines, by the end of their name.
fn files(ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for version in VERSIONS {
        for machine in fs::read_dir(data().join(version)).unwrap() {
            for file in fs::read_dir(machine.unwrap().path()).unwrap() {
                found.push(file.unwrap().path());
            }
        }
    }
    found.retain(|path| path.to_str().unwrap().ends_with(ending));
    assert!(!found.is_empty(), "no fixture ends with {ending}");
    found
}

fn parse_all<C: Command>() -> usize {
    let files = files(&format!(".{}.json", C::NAME));
    for path in &files {
        let value = messages(path)[0]["return"].take();
        if let Err(error) = serde_json::from_value::<C::Return>(value) {
            panic!("{}: {error}", path.display());
        }
    }
    files.len()
}

#[test]
fn every_reply_parses_when_it_comes_from_either_version() {
    // Machines × states of tests/data, for both versions.
    assert_eq!(parse_all::<QueryMemdev>(), 16);
    assert_eq!(parse_all::<QueryMemoryDevices>(), 16);
    assert_eq!(parse_all::<QueryMemorySizeSummary>(), 16);
    assert_eq!(parse_all::<QueryRamblock>(), 16);
    assert_eq!(parse_all::<QueryCpusFast>(), 4);
    assert_eq!(parse_all::<QueryStatus>(), 2);
    assert_eq!(parse_all::<QueryVersion>(), 2);
    assert_eq!(parse_all::<QueryCurrentMachine>(), 2);
}

#[test]
fn every_ramblock_table_parses_when_the_columns_differ() {
    for path in files(".x-query-ramblock.json") {
        let text = messages(&path)[0]["return"]["human-readable-text"].take();

        let blocks = qmp::hmp::parse_ramblocks(text.as_str().unwrap()).unwrap();

        let new = path.starts_with(data().join("10.0"));
        assert!(blocks.len() >= 5, "{}", path.display());
        assert!(
            blocks.iter().all(|block| block.hva.is_some() == new),
            "{}",
            path.display()
        );
        assert!(blocks.iter().all(|block| block.read_only.is_some() == new));
    }
}

#[test]
fn block_is_whole_when_the_table_has_the_hva_column() {
    let blocks = ramblocks("10.0", "g-pcdimm", "plugged");

    let expected = RamBlock {
        name: "hp0".to_owned(),
        page_size: 4096,
        offset: 0x2030_0000,
        used: 256 << 20,
        total: 256 << 20,
        hva: Some(0x7f0c_83df_f000),
        read_only: Some(false),
    };
    assert_eq!(blocks[1], expected);
    assert_eq!(blocks[4].read_only, Some(true), "pc.bios is read-only");
}

#[test]
fn block_name_is_empty_when_its_backend_is_not_plugged() {
    for version in VERSIONS {
        let before = ramblocks(version, "g-pcdimm", "objadd");
        let after = ramblocks(version, "g-pcdimm", "unplugged");

        // Two backends wait for device_add; then one waits for object-del.
        assert_eq!(
            before.iter().filter(|block| block.name.is_empty()).count(),
            2
        );
        assert_eq!(
            after.iter().filter(|block| block.name.is_empty()).count(),
            1
        );
        assert!(before.iter().all(|block| block.page_size == 4096));
    }
}

#[test]
fn page_size_and_growing_blocks_are_read_when_they_differ() {
    for version in VERSIONS {
        let numa = ramblocks(version, "f-two-numa", "ran");
        let huge = ramblocks(version, "d3-memfd-hugetlb-1g", "ran");

        assert_eq!((numa[0].page_size, numa[1].page_size), (4 << 10, 2 << 20));
        assert_eq!(huge[0].page_size, 1 << 30);
        let tables = huge
            .iter()
            .find(|block| block.name == "/rom@etc/acpi/tables")
            .unwrap();
        assert!(tables.used < tables.total, "ACPI tables can grow");
    }
}

#[test]
fn memory_devices_have_range_and_backend_when_plugged() {
    for version in VERSIONS {
        let dimms = reply::<QueryMemoryDevices>(version, "g-pcdimm", "plugged");
        let vmem = reply::<QueryMemoryDevices>(version, "h3-virtio-mem-driven", "plugged");

        assert_eq!(dimms.len(), 2);
        assert_eq!(dimms[0].range(), Some((4 << 30, 256 << 20)));
        assert_eq!(dimms[1].memdev(), Some("/objects/hp1"));
        // The whole region is mapped, whatever is plugged.
        assert_eq!(vmem[0].range(), Some((4 << 30, 512 << 20)));
        let MemoryDevice::VirtioMem(vmem) = &vmem[0] else {
            panic!("{vmem:?}")
        };
        assert_eq!((vmem.size, vmem.block_size), (12 << 20, 2 << 20));
    }
}

#[test]
fn unknown_memory_device_is_kept_when_its_kind_is_new() {
    let text = r#"[{"type": "cxl-type3", "data": {"memaddr": 4096, "size": 8192, "memdev": "/m"}},
                   {"type": "hv-balloon", "data": {"max-size": 1}}]"#;

    let devices: Vec<MemoryDevice> = serde_json::from_str(text).unwrap();

    assert_eq!(devices[0].range(), Some((4096, 8192)));
    assert_eq!(devices[0].memdev(), Some("/m"));
    assert_eq!((devices[1].range(), devices[1].memdev()), (None, None));
}

#[test]
fn balloon_tells_its_size_or_a_class_when_there_is_none() {
    for version in VERSIONS {
        let path = data()
            .join(version)
            .join("g-pcdimm/plugged.query-balloon.json");

        let none: qmp::QmpError =
            serde_json::from_value(messages(&path)[0]["error"].take()).unwrap();
        let some = reply::<QueryBalloon>(version, "i2-balloon-driven", "driven");

        assert_eq!(none.class, qmp::ErrorClass::DeviceNotActive);
        assert_eq!(some.actual, 512 << 20);
    }
}

#[test]
fn state_threads_and_version_are_read_when_the_guest_waits() {
    let status = reply::<QueryStatus>("7.2", "g-pcdimm", "plugged");
    let cpus = reply::<QueryCpusFast>("10.0", "f-two-numa", "ran");
    let version = reply::<QueryVersion>("10.0", "g-pcdimm", "plugged");

    assert_eq!(
        (status.running, status.status),
        (false, RunState::Prelaunch)
    );
    assert_eq!(
        cpus.iter().map(|cpu| cpu.cpu_index).collect::<Vec<_>>(),
        [0, 1]
    );
    assert!(cpus.iter().all(|cpu| cpu.thread_id > 1));
    assert_eq!(
        (version.qemu.major, version.qemu.minor, version.qemu.micro),
        (10, 0, 2)
    );
}

#[test]
fn greeting_tells_version_and_capabilities_when_it_comes_from_either_version() {
    for path in files("greeting.json") {
        let value = messages(&path)[0]["QMP"].take();

        let greeting: Greeting = serde_json::from_value(value).unwrap();

        assert!([7, 10].contains(&greeting.version.qemu.major));
        assert_eq!(greeting.capabilities, [qmp::commands::Capability::Oob]);
    }
}

#[test]
fn events_are_typed_when_they_come_from_either_version() {
    let mut kinds = Vec::new();
    for path in files("events.jsonl") {
        for message in messages(&path) {
            let event: Event = serde_json::from_value(message).unwrap();
            assert!(event.timestamp.seconds > 1_700_000_000);
            kinds.push(event.kind());
        }
    }

    let vm0 = |size| EventKind::MemoryDeviceSizeChange {
        id: Some("vm0".to_owned()),
        size,
        qom_path: "/machine/peripheral/vm0".to_owned(),
    };
    for expected in [
        EventKind::Stop,
        EventKind::Resume,
        EventKind::BalloonChange {
            actual: 532_676_608,
        },
        vm0(12 << 20),
        vm0(0),
        EventKind::DeviceDeleted {
            device: Some("dimm0".to_owned()),
            path: "/machine/peripheral/dimm0".to_owned(),
        },
    ] {
        assert!(kinds.contains(&expected), "{expected:?}");
    }
    assert!(!kinds.iter().any(|kind| matches!(kind, EventKind::Other(_))));
}

#[test]
fn event_survives_when_its_data_is_odd() {
    for data in [
        Value::Null,
        serde_json::json!([1]),
        serde_json::json!({"guest": 1, "size": -1}),
    ] {
        for name in [
            "SHUTDOWN",
            "MEMORY_DEVICE_SIZE_CHANGE",
            "DEVICE_DELETED",
            "X_NEW",
        ] {
            let kind = Event::now(name, data.clone()).kind();

            assert_eq!(
                matches!(kind, EventKind::Other(_)),
                name == "X_NEW",
                "{kind:?}"
            );
        }
    }
}

#[test]
fn ramblock_table_is_refused_when_it_is_not_as_qemu_writes_it() {
    let header = "Block Name PSize Offset Used Total HVA RO\n";
    for row in [
        "x 4 KiB 0x0 0x1000 0x1000 0x7f00",
        "x 4 KiB 0x0 0x1000 0x1000 0x7f00 xx",
        "x 3 KiB 0x0 0x1000 0x1000 0x7f00 rw",
        "x 0 KiB 0x0 0x1000 0x1000 0x7f00 rw",
        "x 99999999999999999999 GiB 0x0 0x1000 0x1000 0x7f00 rw",
        "x 18446744073709551615 GiB 0x0 0x1000 0x1000 0x7f00 rw",
        "x 4 KiB 0x0 0x2000 0x1000 0x7f00 rw",
        "x 4 KiB 0xffffffffffffffff 0x1000 0x1000 0x7f00 rw",
        "rw",
        "\u{2003}",
        "é\u{2003}rw",
    ] {
        let parsed = qmp::hmp::parse_ramblocks(&format!("{header}{row}\n"));

        // A row of nothing but white space is passed over.
        assert_eq!(parsed.is_err(), row != "\u{2003}", "{row}: {parsed:?}");
    }
    assert!(qmp::hmp::parse_ramblocks("").is_err());
    assert!(qmp::hmp::parse_ramblocks("unknown command: 'info ramblock'\r\n").is_err());
}

#[test]
fn block_name_is_whole_when_it_holds_spaces() {
    let text = "Block Name PSize Offset Used Total HVA RO\r\n  \
                my 4 KiB ram 0x1 2 MiB 0x0 0x200000 0x200000 0x7f00 rw\r\n";

    let blocks = qmp::hmp::parse_ramblocks(text).unwrap();

    assert_eq!(
        (blocks[0].name.as_str(), blocks[0].page_size),
        ("my 4 KiB ram 0x1", 2 << 20)
    );
}
