//! From what two hosts' `/proc` and `/sys` said at two moments to pathologies by name.

use std::fs;

use serde_json::json;
use tier_core::{addr::NodeId, pathology::Pathology};
use tier_sys::thp_events::Migrated;

use super::*;

/// Linux 6.12's names; a host at rest.
const VMSTAT: &str = "nr_free_pages 120000\npgpromote_success 0\npgpromote_candidate 0\npgdemote_kswapd 0\n\
    pgdemote_direct 0\npgdemote_khugepaged 0\nnuma_hint_faults 0\nnuma_pages_migrated 0\npgmigrate_success 1200\n\
    pgmigrate_fail 3\nthp_migration_success 0\nthp_migration_fail 0\nthp_migration_split 0\npgscan_kswapd 0\n\
    pgsteal_kswapd 0\npgscan_anon 0\npgsteal_anon 0\npgactivate 900\npgdeactivate 0\npgrefill 0\ncow_ksm 0\n";

/// A host of two nodes, of which the first is fast.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.write("proc/vmstat", VMSTAT);
        host.zones([40_000, 80_000]);
        host.pool([(44, 0), (175, 15)]);
        host.write("proc/sys/kernel/numa_balancing", "0\n");
        host.write("sys/kernel/mm/numa/demotion_enabled", "false\n");
        host.write("sys/kernel/mm/ksm/run", "0\n");
        host
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Sets counters, by how much each grew.
    fn grow(&self, grown: &[(&str, u64)]) {
        let stat = VmStat::parse(VMSTAT).unwrap();
        let mut counters = stat.counters().clone();
        for (name, by) in grown {
            *counters.entry((*name).to_owned()).or_default() += by;
        }
        let lines = counters
            .iter()
            .map(|(name, value)| format!("{name} {value}\n"));
        self.write("proc/vmstat", &lines.collect::<String>());
    }

    /// Free pages of each node; the watermarks are 1000, 1250 and 1500 pages.
    fn zones(&self, free: [u64; 2]) {
        let zone = |(node, free): (usize, &u64)| {
            format!(
                "Node {node}, zone   Normal\n  pages free     {free}\n        boost    0\n        min      1000\n        \
                 low      1250\n        high     1500\n        promo    1750\n"
            )
        };
        let zones: String = free.iter().enumerate().map(zone).collect();
        self.write("proc/zoneinfo", &zones);
    }

    /// Pages and free pages of the pool of 2 MiB, by node.
    fn pool(&self, own: [(u64, u64); 2]) {
        for (node, (pages, free)) in own.iter().enumerate() {
            let folder = format!("sys/devices/system/node/node{node}/hugepages/hugepages-2048kB");
            self.write(&format!("{folder}/nr_hugepages"), &format!("{pages}\n"));
            self.write(&format!("{folder}/free_hugepages"), &format!("{free}\n"));
            self.write(&format!("{folder}/surplus_hugepages"), "0\n");
        }
        let all = [
            ("nr_hugepages", own[0].0 + own[1].0),
            ("free_hugepages", own[0].1 + own[1].1),
            ("resv_hugepages", 0),
            ("surplus_hugepages", 0),
        ];
        for (name, pages) in all {
            self.write(
                &format!("sys/kernel/mm/hugepages/hugepages-2048kB/{name}"),
                &format!("{pages}\n"),
            );
        }
    }

    fn read(&self) -> Read {
        let read = read(&SysRoot::at(self.0.path()), self.0.path());
        assert_eq!(read.unread, Vec::<String>::new());
        read
    }
}

fn tiers() -> Tiers {
    Tiers {
        fast: NodeSet::from_iter([NodeId(0)]),
        slow: NodeSet::from_iter([NodeId(1)]),
        fast_latency_ns: 80.0,
        slow_latency_ns: 250.0,
    }
}

/// What is named after `change`, and its remedies.
fn named(change: impl FnOnce(&Host)) -> Vec<(&'static str, Option<String>)> {
    let host = Host::new();
    let earlier = host.read();
    change(&host);
    let report = compare(
        &earlier,
        &host.read(),
        None,
        None,
        Some(&tiers()),
        Duration::from_secs(10),
    );
    let found = report.pathologies.into_iter();
    found.map(|found| (found.name, found.remedy)).collect()
}

fn only(pathology: Pathology, remedy: &str) -> Vec<(&'static str, Option<String>)> {
    let remedy = (!remedy.is_empty()).then(|| remedy.to_owned());
    vec![(pathology.name(), remedy)]
}

#[test]
fn host_when_healthy_names_nothing() {
    assert_eq!(named(|_| ()), []);
    // Reclaim and promotion that work.
    let works = |host: &Host| {
        host.grow(&[
            ("pgscan_anon", 900_000),
            ("pgsteal_anon", 800_000),
            ("pgdeactivate", 500_000),
            ("pgpromote_candidate", 10_000),
            ("pgpromote_success", 9_000),
        ]);
        host.zones([1300, 80_000]);
    };
    assert_eq!(named(works), []);
}

#[test]
fn promotion_when_the_fast_node_is_full_is_named_starved() {
    // The allocator fills the node down to the low watermark; promotion needs the high one.
    let starved = |host: &Host| {
        host.grow(&[("pgpromote_candidate", 86_016), ("pgpromote_success", 12)]);
        host.zones([1300, 80_000]);
    };
    assert_eq!(named(starved), only(Pathology::PromotionStarved, ""));
    // The same with room: something else keeps the kernel from promoting.
    assert_eq!(
        named(|host| host.grow(&[("pgpromote_candidate", 86_016)])),
        []
    );
}

#[test]
fn promotion_when_the_agent_lacks_memory_is_named_starved() {
    let host = Host::new();
    host.zones([1300, 80_000]);
    let read = host.read();
    let state = |below: u64| json!({"name": "web-01", "tried-pages": 9 + below, "failed": {"below-watermark": below}});
    let (before, after) = (state(1), state(5));
    let agent = Some((&before, &after));
    let report = compare(
        &read,
        &read,
        None,
        agent,
        Some(&tiers()),
        Duration::from_secs(10),
    );
    assert_eq!(
        report.pathologies[0].name,
        Pathology::PromotionStarved.name()
    );
    assert_eq!(
        report.pathologies[0].evidence,
        "an agent lacked memory for 4 pages; node 0 has 5.08 MiB free, and its high watermark is 5.86 MiB"
    );
    let agent = report.agent.unwrap();
    assert_eq!((agent.tried_pages, agent.failed["below-watermark"]), (4, 4));
}

#[test]
fn lists_when_reclaim_goes_in_circles_are_named() {
    // TPP on a guest that updates random words: none of 428 M scanned anonymous pages was freed.
    let circles = |host: &Host| {
        host.grow(&[
            ("pgscan_anon", 428_474_011),
            ("pgsteal_anon", 0),
            ("pgrefill", 387_281_191),
            ("pgdeactivate", 387_236_411),
        ]);
    };
    let remedy = "echo false > /sys/kernel/mm/numa/demotion_enabled";
    assert_eq!(named(circles), only(Pathology::ListPingPong, remedy));
    // Proactive reclaim of a guest of hot huge pages: one of 23 was demoted.
    let few = |host: &Host| {
        host.grow(&[
            ("pgscan_anon", 105_988),
            ("pgsteal_anon", 4610),
            ("pgactivate", 103_936),
            ("pgdeactivate", 93_696),
        ]);
    };
    assert_eq!(named(few), only(Pathology::ListPingPong, remedy));
}

#[test]
fn pool_when_no_page_of_it_can_be_moved_is_named_exhausted() {
    let full = |host: &Host| host.pool([(44, 0), (175, 0)]);
    assert_eq!(named(full), [], "pages change places in pairs");
    let with_surplus = |host: &Host| {
        full(host);
        let pool = "sys/devices/system/node/node1/hugepages/hugepages-2048kB";
        host.write(&format!("{pool}/surplus_hugepages"), "3\n");
    };
    let remedy =
        "echo 175 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";
    let found = named(with_surplus);
    assert_eq!(found[..1], only(Pathology::PoolExhausted, remedy));
}

#[test]
fn pool_when_its_pages_go_to_another_node_is_named_drifted() {
    // A guest of 400 MiB on pools of 44 and 175 pages, whose hot set was moved by temporary pages.
    let drift = |host: &Host| host.pool([(80, 0), (139, 15)]);
    let remedy =
        "echo 175 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";
    assert_eq!(named(drift), only(Pathology::PoolDrift, remedy));
}

#[test]
fn pool_when_it_is_read_in_the_middle_of_a_pair_is_not_named_drifted() {
    let host = Host::new();
    let earlier = host.read();
    let lock = pair_journal::lock(host.0.path(), Duration::ZERO, || false).unwrap();
    host.pool([(41, 0), (178, 15)]);
    let later = thread::scope(|scope| {
        let later = scope.spawn(|| host.read());
        thread::sleep(LOCK_TIMEOUT / 20);
        host.pool([(44, 0), (175, 15)]);
        drop(lock);
        later.join().unwrap()
    });
    assert_eq!(later.reading.pools, earlier.reading.pools);
}

#[test]
fn kernel_when_it_moves_pages_itself_is_named_with_what_it_did() {
    let host = Host::new();
    let earlier = host.read();
    host.write("proc/sys/kernel/numa_balancing", "2\n");
    host.write("sys/kernel/mm/numa/demotion_enabled", "true\n");
    host.grow(&[
        ("numa_hint_faults", 120_000),
        ("numa_pages_migrated", 30_000),
        ("pgpromote_success", 30_000),
        ("pgpromote_candidate", 31_000),
        ("pgdemote_kswapd", 28_000),
        ("pgdemote_direct", 1_000),
    ]);
    let report = compare(
        &earlier,
        &host.read(),
        None,
        None,
        Some(&tiers()),
        Duration::from_secs(10),
    );
    let told: Vec<_> = report
        .pathologies
        .iter()
        .map(|found| (found.name, found.evidence.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (
                "numa-balancing",
                "kernel.numa_balancing is 2; 120000 hint faults, 30000 pages migrated and 30000 promoted meanwhile"
            ),
            (
                "kernel-demotion",
                "demotion_enabled is true; 29000 pages were demoted meanwhile"
            ),
        ]
    );
    let text = report.to_text();
    for line in [
        "  numa_hint_faults     120000  hint faults",
        "      $ sysctl kernel.numa_balancing=0",
        "  node 0: 156 MiB free; watermarks: 4.88 MiB low, 5.86 MiB high",
        "  hugetlb pool of 2 MiB: 0 free of 44 on node 0, 15 free of 175 on node 1; 0 promised, 0 surplus",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn damon_when_others_use_it_is_named() {
    let admin = "sys/kernel/mm/damon/admin/kdamonds/0";
    let scheme = |action: &'static str| {
        move |host: &Host| {
            host.write(&format!("{admin}/state"), "on\n");
            host.write(&format!("{admin}/contexts/0/operations"), "paddr\n");
            host.write(
                &format!("{admin}/contexts/0/schemes/0/action"),
                &format!("{action}\n"),
            );
        }
    };
    let remedy = "echo off > /sys/kernel/mm/damon/admin/kdamonds/0/state";
    assert_eq!(
        named(scheme("migrate_hot")),
        only(Pathology::DamonScheme, remedy)
    );
    assert_eq!(named(scheme("stat")), [], "it only counts");
    for (module, pathology) in [
        ("damon_stat", Pathology::DamonStat),
        ("damon_reclaim", Pathology::DamonModule),
    ] {
        let switch = format!("module/{module}/parameters/enabled");
        let remedy = format!("echo N > /sys/{switch}");
        let on = |host: &Host| host.write(&format!("sys/{switch}"), "Y\n");
        assert_eq!(named(on), only(pathology, &remedy));
    }
}

#[test]
fn ksm_when_it_merges_is_named() {
    let on = |host: &Host| host.write("sys/kernel/mm/ksm/run", "1\n");
    assert_eq!(
        named(on),
        only(Pathology::Ksm, "echo 2 > /sys/kernel/mm/ksm/run")
    );
}

#[test]
fn huge_pages_when_followed_are_told_by_the_kernels_reasons() {
    let counts = |of: &[(&str, u64)]| {
        let counts = of.iter().map(|(word, count)| ((*word).to_owned(), *count));
        counts.collect::<BTreeMap<_, _>>()
    };
    let migrated = Migrated {
        succeeded: 1030,
        failed: 2,
        thp_succeeded: 2,
        thp_failed: 1,
        thp_split: 1,
    };
    let events = ThpEvents {
        scans: counts(&[("exceed_none_pte", 12), ("succeeded", 3)]),
        collapses: counts(&[("succeeded", 3)]),
        migrations: BTreeMap::from([("syscall_or_cpuset".to_owned(), migrated)]),
        lost: 4,
    };
    let read = Host::new().read();
    let report = compare(&read, &read, Some(events), None, None, Duration::ZERO);

    let text = report.to_text();
    let expected = "\nHuge pages of the whole host, by the kernel's reasons\n\
                    \x20 looked at for a collapse: 12 exceed_none_pte, 3 succeeded\n\
                    \x20 to be collapsed: 3 succeeded\n\
                    \x20 migrated for syscall_or_cpuset: 1030 pages, 2 failed; huge pages: 2 whole, 1 failed, 1 split\n\
                    \x20 4 events were lost: the counts are too low\n";
    assert!(text.contains(expected), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["huge-pages"]["collapse-scans"]["exceed_none_pte"], 12);
    assert_eq!(
        json["huge-pages"]["migrations"]["syscall_or_cpuset"]["split-huge-pages"],
        1
    );
}

#[test]
fn events_of_huge_pages_when_they_can_not_be_followed_are_told_as_unread() {
    let error = follow(Err("no tracefs".to_owned()), Duration::ZERO).unwrap_err();
    assert_eq!(error, "what became of huge pages: no tracefs");
}

#[test]
fn host_when_files_are_odd_or_missing_tells_them_and_shows_the_rest() {
    let host = Host::new();
    host.write("proc/vmstat", "pgpromote_success many\n");
    fs::remove_file(host.0.path().join("proc/zoneinfo")).unwrap();
    let read = read(&SysRoot::at(host.0.path()), host.0.path());
    let report = compare(&Read::default(), &read, None, None, None, Duration::ZERO);
    assert_eq!(report.unread.len(), 2);
    let text = report.to_text();
    assert!(
        text.contains("Not read: ") && text.contains("vmstat"),
        "{text}"
    );
    assert!(text.contains("hugetlb pool of 2 MiB"), "{text}");
}
