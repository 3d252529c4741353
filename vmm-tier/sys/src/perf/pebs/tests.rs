//! PEBS events on folder trees that look like hosts of several generations.

use std::{fs, path::Path};

use super::*;

const SETTINGS: PebsSettings = PebsSettings {
    period: 199,
    latency_cycles: LATENCY_CYCLES,
    physical: false,
    data_pages: 16,
};

/// A tree with these files below `sys/bus/event_source/devices` and this CPU vendor.
fn tree(vendor: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &Path, text: &str| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    };
    let devices = folder.path().join("sys/bus/event_source/devices");
    fs::create_dir_all(&devices).unwrap();
    for (file, text) in files {
        write(&devices.join(file), text);
    }
    let cpuinfo = format!("processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: 6\n");
    write(&folder.path().join("proc/cpuinfo"), &cpuinfo);
    folder
}

/// The files of a PMU with its formats.
fn pmu<'a>(
    name: &str,
    kind: &'a str,
    generation: &'a str,
    events: &[(&str, &'a str)],
) -> Vec<(String, &'a str)> {
    let mut files = vec![
        (format!("{name}/type"), kind),
        (format!("{name}/caps/max_precise"), "3"),
        (format!("{name}/caps/pmu_name"), generation),
        (format!("{name}/format/event"), "config:0-7"),
        (format!("{name}/format/umask"), "config:8-15"),
        (format!("{name}/format/ldlat"), "config1:0-15"),
        (format!("{name}/format/edge"), "config:18"),
        (format!("{name}/format/offcore_rsp"), "config1:0-63"),
    ];
    for (event, text) in events {
        files.push((format!("{name}/events/{event}"), text));
    }
    files
}

fn intel(files: &[(String, &str)]) -> tempfile::TempDir {
    let files: Vec<_> = files
        .iter()
        .map(|(file, text)| (file.as_str(), *text))
        .collect();
    tree("GenuineIntel", &files)
}

fn read_tree(tree: &tempfile::TempDir) -> Result<Vec<PebsPmu>, PebsError> {
    read(&SysRoot::at(tree.path()))
}

/// Leader's config, config and config1 of an event.
fn words(pmu: &PebsPmu, access: Access) -> Option<(Option<u64>, u64, u64)> {
    let event = pmu.event(access, &SETTINGS)?;
    assert_eq!(event.event.kind, pmu.kind);
    assert_eq!(event.event.rate, Rate::Period(199));
    let leader = event.leader.map(|leader| leader.config);
    Some((leader, event.event.config, event.event.config1))
}

const SPR_EVENTS: [(&str, &str); 3] = [
    ("mem-loads", "event=0xcd,umask=0x1,ldlat=3"),
    ("mem-loads-aux", "event=0x03,umask=0x82"),
    ("mem-stores", "event=0xcd,umask=0x2"),
];

#[test]
fn read_when_the_host_is_ice_lake_has_loads_misses_and_stores() {
    let tree = intel(&pmu(
        "cpu",
        "4",
        "icelake",
        &[
            ("mem-loads", "event=0xcd,umask=0x1,ldlat=3"),
            ("mem-stores", "event=0xd0,umask=0x82"),
        ],
    ));

    let pmus = read_tree(&tree).unwrap();

    assert_eq!(pmus.len(), 1);
    assert_eq!((pmus[0].kind, pmus[0].max_precise), (4, 3));
    assert_eq!(words(&pmus[0], Access::Loads), Some((None, 0x1cd, 190)));
    assert_eq!(words(&pmus[0], Access::L3Misses), Some((None, 0x20d1, 0)));
    assert_eq!(words(&pmus[0], Access::Stores), Some((None, 0x82d0, 0)));
}

#[test]
fn event_when_asked_for_samples_user_mode_precisely_with_the_address() {
    let tree = intel(&pmu("cpu", "4", "sapphire_rapids", &SPR_EVENTS));
    let pmus = read_tree(&tree).unwrap();

    let event = pmus[0].event(Access::Stores, &SETTINGS).unwrap().event;

    assert_eq!(event.name, "cpu/mem-stores/");
    assert_eq!(event.precise_ip, 2);
    assert!(event.exclude_kernel && event.exclude_hv && event.exclude_guest);
    assert!(!event.exclude_user);
    let asked = |field: u32| event.sample_type & u64::from(field) != 0;
    assert!(asked(abi::PERF_SAMPLE_ADDR) && asked(abi::PERF_SAMPLE_DATA_SRC));
    assert!(!asked(abi::PERF_SAMPLE_PHYS_ADDR) && !asked(abi::PERF_SAMPLE_TIME));
    let physical = PebsSettings {
        physical: true,
        ..SETTINGS
    };
    let event = pmus[0].event(Access::Stores, &physical).unwrap().event;
    assert!(event.sample_type & u64::from(abi::PERF_SAMPLE_PHYS_ADDR) != 0);
}

#[test]
fn read_when_the_host_is_sapphire_rapids_groups_loads_behind_the_aux_event() {
    let tree = intel(&pmu("cpu", "4", "sapphire_rapids", &SPR_EVENTS));

    let pmus = read_tree(&tree).unwrap();

    let loads = Some((Some(0x8203), 0x1cd, 190));
    assert_eq!(words(&pmus[0], Access::Loads), loads);
    assert_eq!(words(&pmus[0], Access::Stores), Some((None, 0x2cd, 0)));
}

#[test]
fn read_when_the_host_is_granite_rapids_needs_no_aux_event_whatever_its_name() {
    let events = [SPR_EVENTS[0], SPR_EVENTS[2]];
    // Linux before 6.15 calls it by its elder's name.
    for generation in ["granite_rapids", "sapphire_rapids"] {
        let tree = intel(&pmu("cpu", "4", generation, &events));
        let pmus = read_tree(&tree).unwrap();
        assert_eq!(words(&pmus[0], Access::Loads), Some((None, 0x1cd, 190)));
        assert_eq!(words(&pmus[0], Access::Stores), Some((None, 0x2cd, 0)));
    }
}

#[test]
fn read_when_the_part_is_hybrid_has_a_pmu_for_each_kind_of_core() {
    let mut files = pmu("cpu_core", "4", "alderlake_hybrid", &SPR_EVENTS);
    files.extend(pmu(
        "cpu_atom",
        "10",
        "alderlake_hybrid",
        &[
            ("mem-loads", "event=0xd0,umask=0x5,ldlat=3"),
            ("mem-stores", "event=0xd0,umask=0x6"),
        ],
    ));
    let tree = intel(&files);

    let pmus = read_tree(&tree).unwrap();

    let shown: Vec<_> = pmus
        .iter()
        .map(|pmu| (pmu.name.as_str(), pmu.kind))
        .collect();
    assert_eq!(shown, [("cpu_core", 4), ("cpu_atom", 10)]);
    let loads = Some((Some(0x8203), 0x1cd, 190));
    assert_eq!(words(&pmus[0], Access::Loads), loads);
    assert_eq!(words(&pmus[0], Access::L3Misses), Some((None, 0x20d1, 0)));
    assert_eq!(words(&pmus[1], Access::Loads), Some((None, 0x5d0, 190)));
    assert_eq!(words(&pmus[1], Access::L3Misses), None);
    assert_eq!(words(&pmus[1], Access::Stores), Some((None, 0x6d0, 0)));
}

#[test]
fn read_when_sysfs_names_no_events_knows_those_of_the_generation() {
    for (generation, stores, aux) in [
        ("skylake", 0x82d0, None),
        ("icelake", 0x82d0, None),
        ("sapphire_rapids", 0x2cd, Some(0x8203)),
        ("granite_rapids", 0x2cd, None),
    ] {
        let tree = intel(&pmu("cpu", "4", generation, &[]));
        let pmus = read_tree(&tree).unwrap();
        assert_eq!(words(&pmus[0], Access::Loads), Some((aux, 0x1cd, 190)));
        assert_eq!(words(&pmus[0], Access::L3Misses), Some((None, 0x20d1, 0)));
        assert_eq!(words(&pmus[0], Access::Stores), Some((None, stores, 0)));
    }
}

#[test]
fn read_when_the_generation_is_not_known_invents_no_codes() {
    let tree = intel(&pmu("cpu", "4", "sunnylake", &[]));
    let error = read_tree(&tree).unwrap_err();
    assert!(matches!(error, PebsError::NoEvents { .. }), "{error}");
    assert!(error.to_string().contains("sunnylake"));

    let tree = intel(&pmu("cpu", "4", "sunnylake", &SPR_EVENTS[..1]));
    let pmus = read_tree(&tree).unwrap();
    assert_eq!(pmus[0].accesses().collect::<Vec<_>>(), [Access::Loads]);
}

#[test]
fn read_when_the_cpu_is_amds_says_so() {
    let tree = tree(
        "AuthenticAMD",
        &[("cpu/type", "4"), ("cpu/caps/max_precise", "2")],
    );
    let error = read_tree(&tree).unwrap_err();
    assert!(
        matches!(error, PebsError::OtherVendor { .. }) && error.to_string().contains("IBS"),
        "{error}"
    );
}

#[test]
fn read_when_a_virtual_machine_has_no_pmu_says_how_to_give_it_one() {
    let tree = tree("GenuineIntel", &[("software/type", "1")]);
    let error = read_tree(&tree).unwrap_err();
    assert!(matches!(error, PebsError::NoPmu { .. }), "{error}");
    assert!(error.to_string().contains("pmu=on"), "{error}");
}

#[test]
fn read_when_a_virtual_machine_has_a_pmu_without_pebs_says_so() {
    let mut files = pmu("cpu", "4", "icelake", &[]);
    for (file, text) in &mut files {
        if file.ends_with("max_precise") {
            *text = "0";
        }
    }
    let error = read_tree(&intel(&files)).unwrap_err();
    assert!(matches!(error, PebsError::NotPrecise { .. }), "{error}");
}

#[test]
fn read_when_a_file_is_garbage_names_it() {
    let tree = intel(&pmu(
        "cpu",
        "4",
        "icelake",
        &[("mem-loads", "event=0xcd,umask=??")],
    ));
    let error = read_tree(&tree).unwrap_err().to_string();
    assert!(
        error.contains("events/mem-loads:1") && error.contains("umask=??"),
        "{error}"
    );

    let tree = intel(&pmu("cpu", "four", "icelake", &SPR_EVENTS));
    let error = read_tree(&tree).unwrap_err().to_string();
    assert!(error.contains("cpu/type"), "{error}");
}

#[test]
fn data_source_when_read_tells_loads_from_stores() {
    // As a load that hit the L3: op 2, lvl 0x22 << 5.
    let load = DataSource(0x2 | 0x22 << 5);
    let store = DataSource(0x4);
    assert!(load.is_load() && !load.is_store());
    assert!(store.is_store() && !store.is_load());
}
