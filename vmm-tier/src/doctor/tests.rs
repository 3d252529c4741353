//! From folder trees that look like hosts to reports.

use std::{fs, path::Path, time::Duration};

use tier_core::{
    addr::{Gpa, Hva},
    constraints::{CgroupCount, CgroupLimit, PoolBounds, PoolMount},
    holds::Holds,
    map::{Backing, BlockIndex, GuestMemoryMap, MapRange, RamBlock},
};
use tier_sys::process::Capabilities;

use super::{
    facts::{GuestFacts, HostFacts, KvmFacts},
    probe::Probe,
    source_report::{SourceReport, Works, sight},
    wiring::Wiring,
    *,
};
use crate::discover::Discovered;

const ALL: Capabilities = Capabilities {
    sys_admin: true,
    sys_nice: true,
    perfmon: true,
    sys_ptrace: true,
    ipc_lock: true,
    dac_read_search: true,
};

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("{text}\n")).unwrap();
}

/// A node of a tree; the first has the CPUs.
fn write_node(root: &Path, id: u32, gib: u64, distances: &str) {
    let folder = format!("sys/devices/system/node/node{id}");
    write(root, &format!("{folder}/distance"), distances);
    let (total, free) = (gib << 20, gib << 19);
    write(
        root,
        &format!("{folder}/meminfo"),
        &format!("Node {id} MemTotal:       {total} kB\nNode {id} MemFree:        {free} kB"),
    );
}

/// The zone of a node in `/proc/zoneinfo`, half of it free.
fn zone(id: u32, gib: u64) -> String {
    let pages = gib << 18;
    format!(
        "Node {id}, zone   Normal\n  pages free     {}\n        boost    0\n        min      1000\n        \
         low      1250\n        high     1500\n        promo    1750\n        spanned  {pages}\n        \
         present  {pages}\n        managed  {pages}\n",
        pages / 2
    )
}

/// The settings of a host on which nothing fights.
fn write_settings(root: &Path) {
    for (path, text) in [
        ("proc/sys/kernel/numa_balancing", "0"),
        ("proc/sys/kernel/perf_event_paranoid", "2"),
        ("proc/sys/kernel/perf_event_mlock_kb", "516"),
        ("proc/sys/kernel/perf_event_max_sample_rate", "100000"),
        ("sys/kernel/mm/numa/demotion_enabled", "false"),
        ("sys/kernel/mm/ksm/run", "0"),
        (
            "sys/kernel/mm/transparent_hugepage/enabled",
            "always [madvise] never",
        ),
        (
            "sys/kernel/mm/transparent_hugepage/shmem_enabled",
            "always within_size advise [never] deny force",
        ),
        ("sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds", "0"),
        ("sys/kernel/tracing/events/damon/damon_aggregated/id", "533"),
    ] {
        write(root, path, text);
    }
}

/// A host with DRAM on node 0 and an expander of four times its size on node 1.
fn write_two_tiers(root: &Path) {
    write_settings(root);
    let nodes = "sys/devices/system/node";
    for (file, text) in [("online", "0-1"), ("has_cpu", "0"), ("has_memory", "0-1")] {
        write(root, &format!("{nodes}/{file}"), text);
    }
    write_node(root, 0, 16, "10 20");
    write_node(root, 1, 64, "20 10");
    write(root, "proc/zoneinfo", &(zone(0, 16) + &zone(1, 64)));
    for (tier, node, latency) in [(4, 0, 80), (46, 1, 250)] {
        write(
            root,
            &format!("sys/devices/virtual/memory_tiering/memory_tier{tier}/nodelist"),
            &node.to_string(),
        );
        let initiators = format!("{nodes}/node{node}/access1/initiators");
        write(
            root,
            &format!("{initiators}/read_latency"),
            &latency.to_string(),
        );
        write(
            root,
            &format!("{initiators}/write_latency"),
            &latency.to_string(),
        );
        write(root, &format!("{initiators}/read_bandwidth"), "20000");
        write(root, &format!("{initiators}/write_bandwidth"), "20000");
    }
}

fn write_pool(root: &Path, kib: u64, nodes: &[(u32, u64, u64)]) {
    let global = format!("sys/kernel/mm/hugepages/hugepages-{kib}kB");
    let sum = |value: fn(&(u32, u64, u64)) -> u64| nodes.iter().map(value).sum::<u64>().to_string();
    write(root, &format!("{global}/nr_hugepages"), &sum(|node| node.1));
    write(
        root,
        &format!("{global}/free_hugepages"),
        &sum(|node| node.2),
    );
    write(root, &format!("{global}/resv_hugepages"), "0");
    write(root, &format!("{global}/surplus_hugepages"), "0");
    for (id, pages, free) in nodes {
        let folder = format!("sys/devices/system/node/node{id}/hugepages/hugepages-{kib}kB");
        write(root, &format!("{folder}/nr_hugepages"), &pages.to_string());
        write(root, &format!("{folder}/free_hugepages"), &free.to_string());
        write(root, &format!("{folder}/surplus_hugepages"), "0");
    }
}

/// Facts from a tree, as root on a machine with KVM: these two don't come from a tree.
fn facts(root: &Path) -> HostFacts {
    HostFacts {
        capabilities: ALL,
        kvm: Ok(KvmFacts {
            api_version: 12,
            sync_mmu: true,
            paging: Some(("kvm_amd", true)),
            guest_pmu: Some(true),
            guest_pmu_version: 5,
            pmu_capability: 1,
            perf_capabilities: None,
        }),
        ..HostFacts::read(&SysRoot::at(root), &root.join("run"))
    }
}

fn tree(write: impl Fn(&Path)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path());
    folder
}

fn guest() -> GuestFacts {
    let hva = Hva(0x7f00_0000_0000);
    let block = RamBlock {
        name: "ram0".to_owned(),
        hva,
        used: 4 << 30,
        total: 4 << 30,
        page_size: 4096,
        backing: Some(Backing::Shmem),
    };
    let range = MapRange {
        gpa: Gpa(1 << 20),
        len: (2 << 30) - (1 << 20),
        block: BlockIndex(0),
        offset: 1 << 20,
        hva: Hva(hva.0 + (1 << 20)),
    };
    let map = GuestMemoryMap::new(1, vec![block], vec![range]).unwrap();
    GuestFacts {
        version: "10.0.2".to_owned(),
        pid: 4711,
        comm: "qemu-system-x86".to_owned(),
        kvm: Some(true),
        state: Some("running".to_owned()),
        migration: None,
        map: Ok(Discovered {
            pid: 4711,
            map,
            probes: 12,
            attempts: 1,
            elapsed: Duration::from_millis(8),
            pools: vec![],
            unmapped: Vec::new(),
        }),
        allowed: Ok("0-1".parse().unwrap()),
        pools: vec![],
        policies: Vec::new(),
        holds: Some(Holds::default()),
        can_move: Ok(()),
        wiring: Wiring::default(),
    }
}

/// The same on Intel's virtualisation.
fn on_intel(root: &Path) -> HostFacts {
    let mut host = facts(root);
    if let Ok(kvm) = &mut host.kvm {
        kvm.paging = Some(("kvm_intel", true));
    }
    host
}

/// What came of trying the sources on an AMD host that has all that AMD hosts can have.
fn probes() -> Probes {
    let delivers = |records, usable| Probe::Delivers { records, usable };
    Probes {
        damon: delivers(40, 12),
        ibs: delivers(3000, 1100),
        pebs: Probe::Refused(
            "this CPU is of AuthenticAMD: PEBS is Intel's (AMD has IBS)".to_owned(),
        ),
    }
}

/// What came of it where nothing can be opened.
fn no_probes() -> Probes {
    let refused = || Probe::Refused("no permission".to_owned());
    Probes {
        damon: refused(),
        ibs: refused(),
        pebs: refused(),
    }
}

fn source(report: &Report, name: &str) -> SourceReport {
    let found = report
        .sources()
        .iter()
        .find(|row| row.source.name() == name);
    found.unwrap().clone()
}

fn levels(report: &Report, level: Level) -> Vec<&'static str> {
    report
        .findings
        .iter()
        .filter(|finding| finding.level == level)
        .map(|finding| finding.id)
        .collect()
}

#[test]
fn report_when_the_host_has_two_tiers_and_nothing_fights_is_good() {
    let tree = tree(|root| {
        write_two_tiers(root);
        write_pool(root, 2048, &[(0, 512, 100), (1, 2048, 2048)]);
    });

    let report = examine(&facts(tree.path()), &probes(), Some(&Ok(guest())));

    assert!(report.can_tier);
    assert_eq!(levels(&report, Level::Warn), [""; 0]);
    insta::assert_snapshot!("two_tiers_text", report.to_text());
    insta::assert_snapshot!(
        "two_tiers_json",
        serde_json::to_string_pretty(&report).unwrap()
    );
}

#[test]
fn report_when_there_is_one_node_fails_and_shows_the_dry_run() {
    let tree = tree(|root| {
        write_settings(root);
        for file in ["online", "has_cpu", "has_memory"] {
            write(root, &format!("sys/devices/system/node/{file}"), "0");
        }
        write_node(root, 0, 16, "10");
    });

    let report = examine(&facts(tree.path()), &probes(), None);

    assert!(!report.can_tier);
    assert_eq!(levels(&report, Level::Fail), ["tiers"]);
    let remedy = report
        .findings
        .iter()
        .find(|finding| finding.id == "tiers")
        .unwrap()
        .remedy
        .clone();
    assert_eq!(
        remedy.unwrap(),
        "vmm-tier run --qmp SOCKET --fast 0 --slow 0 --dry-run"
    );
}

#[test]
fn report_when_everything_fights_names_each_and_how_to_stop_it() {
    let tree = tree(|root| {
        write_two_tiers(root);
        write(root, "proc/sys/kernel/numa_balancing", "2");
        write(root, "sys/kernel/mm/numa/demotion_enabled", "true");
        write(root, "sys/kernel/mm/ksm/run", "1");
        write(root, "sys/module/damon_reclaim/parameters/enabled", "Y");
        let kdamonds = "sys/kernel/mm/damon/admin/kdamonds";
        for (number, action) in [(0, "migrate_hot"), (1, "stat")] {
            write(root, &format!("{kdamonds}/{number}/state"), "on");
            let context = format!("{kdamonds}/{number}/contexts/0");
            write(root, &format!("{context}/operations"), "vaddr");
            write(root, &format!("{context}/targets/0/pid_target"), "4711");
            write(root, &format!("{context}/schemes/0/action"), action);
        }
        write_pool(root, 2048, &[(0, 512, 0), (1, 2048, 2048)]);
    });

    let report = examine(&facts(tree.path()), &probes(), None);

    assert!(
        report.can_tier,
        "rivals spoil tiering, they don't prevent it"
    );
    insta::assert_snapshot!("rivals_text", report.to_text());
}

#[test]
fn report_when_the_host_has_nothing_says_what_is_missing() {
    let tree = tree(|root| {
        write_two_tiers(root);
        write(root, "proc/sys/kernel/perf_event_paranoid", "3");
        write(root, "proc/sys/kernel/perf_event_mlock_kb", "64");
        fs::remove_dir_all(root.join("sys/kernel/mm/damon")).unwrap();
        fs::remove_dir_all(root.join("sys/kernel/tracing")).unwrap();
    });
    let bare = HostFacts {
        capabilities: Capabilities {
            perfmon: true,
            ..Capabilities::default()
        },
        kvm: HostFacts::read(&SysRoot::at(tree.path()), &tree.path().join("run")).kvm,
        ..facts(tree.path())
    };

    let report = examine(&bare, &no_probes(), None);

    assert!(!report.can_tier);
    assert_eq!(
        levels(&report, Level::Fail),
        ["capabilities", "perf-paranoid"]
    );
    let text = report.to_text().replace(tree.path().to_str().unwrap(), "");
    insta::assert_snapshot!("nothing_text", text);
}

#[test]
fn folios_when_they_can_not_be_told_apart_are_a_warning() {
    let tree = tree(|root| {
        write_two_tiers(root);
        write(root, "proc/vmstat", "thp_split_pmd 3");
    });
    let report = examine(&facts(tree.path()), &no_probes(), None);
    assert!(levels(&report, Level::Warn).contains(&"folios"));

    write(tree.path(), "proc/kpageflags", "");
    let report = examine(&facts(tree.path()), &no_probes(), None);
    assert!(levels(&report, Level::Ok).contains(&"folios"));
}

#[test]
fn report_when_nodes_look_alike_asks_for_names() {
    let tree = tree(|root| {
        write_two_tiers(root);
        write(root, "sys/devices/system/node/has_cpu", "0-1");
        fs::remove_dir_all(root.join("sys/devices/virtual")).unwrap();
        for node in ["node0", "node1"] {
            fs::remove_dir_all(
                root.join("sys/devices/system/node")
                    .join(node)
                    .join("access1"),
            )
            .unwrap();
        }
    });

    let report = examine(&facts(tree.path()), &probes(), None);

    assert!(report.can_tier);
    assert_eq!(levels(&report, Level::Warn), ["tiers"]);
}

#[test]
fn report_when_a_file_is_malformed_says_which() {
    let tree = tree(|root| {
        write_two_tiers(root);
        write(root, "proc/sys/kernel/numa_balancing", "perhaps");
        write(root, "sys/devices/system/node/online", "zero");
    });

    let report = examine(&facts(tree.path()), &probes(), None);

    assert!(!report.can_tier);
    let text = report.to_text();
    assert!(
        text.contains("node/online") && text.contains("kernel/numa_balancing"),
        "{text}"
    );
}

#[test]
fn report_when_the_guest_cannot_be_moved_says_why() {
    let tree = tree(write_two_tiers);
    let host = facts(tree.path());
    let failing = |change: &dyn Fn(&mut GuestFacts)| {
        let mut facts = guest();
        change(&mut facts);
        let report = examine(&host, &probes(), Some(&Ok(facts)));
        assert_eq!(report.can_tier, levels(&report, Level::Fail).is_empty());
        (levels(&report, Level::Fail), levels(&report, Level::Warn))
    };
    let none: Vec<&str> = Vec::new();
    let guest_kib = 1 << 20;
    let holds = |file, kib: u64| Holds::of([file], &format!("VmLck:\t{kib} kB\n"), guest_kib << 10);

    assert_eq!(failing(&|_| ()), (none.clone(), none.clone()));
    assert_eq!(
        failing(&|guest| guest.holds = Some(holds("/dev/vfio/9", guest_kib))),
        (vec!["vfio"], none.clone())
    );
    assert_eq!(
        failing(&|guest| guest.holds = Some(holds("/dev/vfio/9", 4))),
        (none.clone(), vec!["vfio"])
    );
    assert_eq!(
        failing(&|guest| guest.holds = Some(holds("anon_inode:[kvm-gmem]", 0))),
        (none.clone(), vec!["private-memory"])
    );
    assert_eq!(
        failing(&|guest| guest.holds = None),
        (none.clone(), vec!["vfio"])
    );
    assert_eq!(
        failing(&|guest| guest.map = Err("no".to_owned())),
        (vec!["map"], none.clone())
    );
    assert_eq!(
        failing(&|guest| guest.can_move = Err("no".to_owned())),
        (vec!["move-pages"], none.clone())
    );
    assert_eq!(
        failing(&|guest| guest.allowed = Ok("0".parse().unwrap())),
        (vec!["cpuset"], none.clone())
    );
    assert_eq!(
        failing(&|guest| guest.migration = Some("active".to_owned())),
        (none.clone(), vec!["migration"])
    );
    assert_eq!(
        failing(&|guest| guest.migration = Some("completed".to_owned())),
        (none.clone(), none.clone())
    );
    let report = examine(
        &host,
        &probes(),
        Some(&Err("no socket at /run/x".to_owned())),
    );
    assert_eq!(levels(&report, Level::Fail), ["qmp"]);
}

#[test]
fn report_when_administrators_bound_the_guest_or_the_agent_says_how() {
    let tree = tree(write_two_tiers);
    let mut host = facts(tree.path());
    host.allowed = Some("1".parse().unwrap());
    let mut facts = guest();
    facts.pools = vec![PoolBounds {
        page_size: 2 << 20,
        cgroup: Some(CgroupLimit {
            cgroup: "/machine.slice".to_owned(),
            count: CgroupCount::Reserved,
            limit_bytes: 1 << 30,
            used_bytes: 1 << 30,
        }),
        mounts: vec![PoolMount {
            path: "/mnt/huge".to_owned(),
            limit_bytes: Some(4 << 30),
            promised_bytes: 2 << 20,
        }],
    }];

    let report = examine(&host, &probes(), Some(&Ok(facts)));

    assert!(report.can_tier);
    assert_eq!(levels(&report, Level::Warn), ["own-cpuset"]);
    let text = report.to_text();
    for told in [
        "the cpuset of the agent allows memory on node 1 only",
        "control group /machine.slice allows 1 GiB in pages of 2 MiB; 1 GiB are used or promised",
        "guest memory in pages of 2 MiB is on the hugetlbfs mount /mnt/huge: 4 GiB at most, 2 MiB promised",
    ] {
        assert!(text.contains(told), "{told}: {text}");
    }
}

#[test]
fn sources_when_kvm_runs_the_guest_say_what_each_would_see() {
    let tree = tree(write_two_tiers);

    let report = examine(&facts(tree.path()), &probes(), Some(&Ok(guest())));

    let shown: Vec<_> = report
        .sources()
        .iter()
        .map(|row| (row.source.name(), row.works, sight(row.sees)))
        .collect();
    assert_eq!(
        shown,
        [
            ("ibs", Works::Yes, "guest"),
            ("guest", Works::No, "guest"),
            ("damon", Works::Yes, "guest"),
            ("pebs", Works::No, "host mode only"),
        ]
    );
    assert!(source(&report, "pebs").found.contains("AuthenticAMD"));
}

#[test]
fn sources_when_the_guest_is_emulated_see_its_accesses_as_the_hosts() {
    let tree = tree(write_two_tiers);
    let mut emulated = guest();
    emulated.kvm = Some(false);

    let report = examine(&facts(tree.path()), &probes(), Some(&Ok(emulated)));

    assert_eq!(sight(source(&report, "pebs").sees), "guest");
    assert!(source(&report, "guest").found.contains("uses DAMON"));
}

#[test]
fn sources_when_none_sees_the_guest_is_a_failure() {
    let tree = tree(write_two_tiers);
    let host_mode_only = Probes {
        pebs: probes().ibs,
        ..no_probes()
    };

    let report = examine(&facts(tree.path()), &host_mode_only, Some(&Ok(guest())));

    assert_eq!(levels(&report, Level::Fail), ["sources"]);
    assert!(!report.can_tier);
}

#[test]
fn sources_when_a_guest_agent_can_be_reached_is_a_hope() {
    let tree = tree(write_two_tiers);
    let mut wired = guest();
    wired.wiring = Wiring {
        serial: vec![(Some("vmm-tier".to_owned()), Some("/run/a.sock".to_owned()))],
        vsock_cid: Some(7),
        cpu_pmu: Some(true),
        cpu_migratable: Some(true),
    };

    let report = examine(&on_intel(tree.path()), &no_probes(), Some(&Ok(wired)));

    let agent = source(&report, "guest");
    assert_eq!(agent.works, Works::Perhaps);
    assert!(agent.found.contains("/run/a.sock") && agent.found.contains("CID 7"));
    assert!(
        agent
            .enable
            .iter()
            .any(|need| need.contains("migratable=off"))
    );
    assert_eq!(levels(&report, Level::Warn), ["sources"]);
    assert!(report.can_tier);
}

#[test]
fn sources_when_kvm_masks_pebs_say_so() {
    let tree = tree(write_two_tiers);
    let with = |capabilities, guest_pmu| {
        let mut host = on_intel(tree.path());
        let kvm = host.kvm.as_mut().unwrap();
        kvm.perf_capabilities = capabilities;
        kvm.guest_pmu = Some(guest_pmu);
        let report = examine(&host, &probes(), Some(&Ok(guest())));
        source(&report, "guest")
    };

    // Bit 14 is PEBS_BASELINE; 0x2000 is full-width writes alone.
    assert!(
        with(Some(0x6000), true)
            .found
            .contains("PEBS on with addresses")
    );
    assert!(with(Some(0x2000), true).found.contains("is masked"));
    let none = with(None, false);
    assert!(none.found.contains("no PMU"));
    assert!(none.enable.iter().any(|need| need.contains("enable_pmu=1")));

    // Nothing of that helps on AMD.
    let report = examine(&facts(tree.path()), &probes(), Some(&Ok(guest())));
    let amd = source(&report, "guest");
    assert!(amd.found.contains("no IBS"), "{}", amd.found);
    assert!(!amd.enable.iter().any(|need| need.contains("pmu")));
}

#[test]
fn sources_when_records_have_no_address_do_not_work() {
    let tree = tree(write_two_tiers);
    let blind = Probes {
        ibs: Probe::Delivers {
            records: 500,
            usable: 0,
        },
        pebs: Probe::Delivers {
            records: 0,
            usable: 0,
        },
        ..probes()
    };

    let report = examine(&facts(tree.path()), &blind, None);

    assert_eq!(source(&report, "ibs").works, Works::No);
    assert!(source(&report, "ibs").found.contains("none of them"));
    assert_eq!(source(&report, "pebs").works, Works::Perhaps);
}
