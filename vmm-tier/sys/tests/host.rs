//! Readers of nodes, tiers, pools and settings: over a handwritten two-node host and the real one.

use std::path::{Path, PathBuf};

use tier_core::{
    addr::{NodeId, NodeSet},
    nearness::Distance,
    tiers::Division,
};
use tier_sys::{
    hugetlb,
    knobs::{Knobs, allowed_nodes},
    sysroot::{SysRoot, SysRootError},
    topology::{Performance, Topology},
};

fn two_nodes() -> SysRoot {
    SysRoot::at(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/two-nodes"))
}

fn nodes(text: &str) -> NodeSet {
    text.parse().unwrap()
}

/// A copy of the two-node host with one file changed.
fn with_file(file: &str, text: &str) -> (tempfile::TempDir, SysRoot) {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let target: PathBuf = to.join(path.file_name().unwrap());
            if path.is_dir() {
                copy(&path, &target);
            } else {
                std::fs::copy(&path, &target).unwrap();
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/two-nodes"),
        folder.path(),
    );
    std::fs::write(folder.path().join(file), text).unwrap();
    let root = SysRoot::at(folder.path());
    (folder, root)
}

#[test]
fn topology_when_host_has_two_tiers_reads_both() {
    let topology = Topology::read(&two_nodes()).unwrap();

    let tiers: Vec<_> = topology
        .nodes
        .iter()
        .map(|node| (node.id, node.tier))
        .collect();
    assert_eq!(tiers, [(NodeId(0), Some(4)), (NodeId(1), Some(46))]);
    assert_eq!(topology.distance(NodeId(0), NodeId(1)), Some(20));
    let slow = topology.node(NodeId(1)).unwrap();
    assert!(slow.has_memory && !slow.has_cpu);
    let expected = Performance {
        read_latency_ns: 300,
        write_latency_ns: 300,
        read_bandwidth_mib: 40_000,
        write_bandwidth_mib: 30_000,
    };
    assert_eq!(slow.performance(), Some(expected));
    let fast = topology.node(NodeId(0)).unwrap();
    assert_eq!(fast.total, 330_000 << 10);
    // The sums of its two zones.
    assert_eq!(
        (fast.marks.free, fast.marks.high),
        (55_000 << 12, 614 << 12)
    );
    assert_eq!(fast.marks.promo, Some(716 << 12));
}

#[test]
fn nearness_when_node_numbers_have_holes_goes_by_them() {
    let (_folder, root) = nodes_with_holes();
    let topology = Topology::read(&root).unwrap();
    let nearness = topology.nearness(nodes("0"));
    let distance = |from, to| nearness.distances[&(NodeId(from), NodeId(to))];
    assert_eq!(
        distance(0, 2),
        Distance {
            slit: 21,
            is_foreign: true
        }
    );
    assert_eq!(
        distance(0, 5),
        Distance {
            slit: 40,
            is_foreign: true
        }
    );
    assert_eq!(
        distance(2, 5),
        Distance {
            slit: 41,
            is_foreign: false
        }
    );
    assert_eq!(nearness.distances.len(), 9);
}

#[test]
fn nodes_of_threads_when_one_is_gone_are_those_of_the_others() {
    let (_folder, root) = nodes_with_holes();
    let topology = Topology::read(&root).unwrap();
    let found = |tids: &[u32]| topology.nodes_of_threads(&root, 70, tids);
    assert_eq!(found(&[70]), nodes("0"));
    assert_eq!(found(&[70, 71, 99]), nodes("0,2"));
    assert_eq!(found(&[72]), nodes(""), "a CPU of no node");
}

#[test]
fn topology_when_kernel_has_no_numa_has_no_node() {
    let folder = tempfile::tempdir().unwrap();
    let topology = Topology::read(&SysRoot::at(folder.path())).unwrap();
    assert_eq!(topology, Topology::default());
}

#[test]
fn topology_when_a_file_is_garbage_names_it() {
    for file in [
        "sys/devices/system/node/node1/distance",
        "sys/devices/system/node/online",
        "sys/devices/virtual/memory_tiering/memory_tier46/nodelist",
        "sys/devices/system/node/node0/access1/initiators/read_latency",
    ] {
        let (_folder, root) = with_file(file, "what?\n");
        let error = Topology::read(&root).unwrap_err();
        assert!(error.to_string().contains(file), "{error}");
        assert!(
            matches!(error, SysRootError::Malformed { line: 1, .. }),
            "{error}"
        );
    }
}

#[test]
fn topology_when_read_on_this_host_agrees_with_itself() {
    let topology = Topology::read(&SysRoot::real()).unwrap();
    for node in &topology.nodes {
        assert_eq!(node.distances.len(), topology.nodes.len());
        assert!(node.marks.free <= node.total);
        assert_eq!(topology.distance(node.id, node.id), Some(10));
    }
}

/// A host with the nodes 0, 2 and 5, of which node 5 has no CPUs, a pool on each, and threads of process 70.
fn nodes_with_holes() -> (tempfile::TempDir, SysRoot) {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{text}\n")).unwrap();
    };
    let node = "sys/devices/system/node";
    write(&format!("{node}/online"), "0,2,5");
    write(&format!("{node}/has_memory"), "0,2,5");
    write(&format!("{node}/has_cpu"), "0,2");
    let mut zones = String::new();
    for (id, distances, cpus) in [
        (0, "10 21 40", "0-3,8-11"),
        (2, "21 10 41", "4-7"),
        (5, "40 41 10", ""),
    ] {
        write(&format!("{node}/node{id}/distance"), distances);
        write(&format!("{node}/node{id}/cpulist"), cpus);
        let total = format!("Node {id} MemTotal:  {} kB", (id + 1) << 20);
        write(&format!("{node}/node{id}/meminfo"), &total);
        zones += &format!(
            "Node {id}, zone   Normal\n  pages free     {id}000\n        min      1\n        low      2\n        high     3\n"
        );
        let pool = format!("{node}/node{id}/hugepages/hugepages-2048kB");
        for (file, pages) in [("nr", 10 + id), ("free", id), ("surplus", 0)] {
            write(&format!("{pool}/{file}_hugepages"), &pages.to_string());
        }
    }
    write(&format!("{node}/node5/access0/initiators/node2/uevent"), "");
    for (tid, cpu) in [(70, 9), (71, 5), (72, 64)] {
        let zeros = "0 ".repeat(29);
        let text = format!("{tid} (CPU 0/KVM) S 1 1 1 0 -1 0 {zeros}{cpu} 0 0");
        write(&format!("proc/70/task/{tid}/stat"), &text);
    }
    // A folder that is left of a node that went offline.
    write(&format!("{node}/node3/uevent"), "");
    write("proc/zoneinfo", zones.trim_end());
    let all = "sys/kernel/mm/hugepages/hugepages-2048kB";
    for (file, pages) in [
        ("nr_hugepages", 37),
        ("free_hugepages", 7),
        ("resv_hugepages", 1),
        ("surplus_hugepages", 0),
        ("nr_overcommit_hugepages", 9),
    ] {
        write(&format!("{all}/{file}"), &pages.to_string());
    }
    let root = SysRoot::at(folder.path());
    (folder, root)
}

#[test]
fn host_when_its_node_numbers_have_holes_is_read_by_number() {
    let (_folder, root) = nodes_with_holes();

    let topology = Topology::read(&root).unwrap();

    let ids: Vec<_> = topology.nodes.iter().map(|node| node.id.0).collect();
    assert_eq!(ids, [0, 2, 5]);
    assert_eq!(topology.distance(NodeId(2), NodeId(5)), Some(41));
    assert_eq!(topology.distance(NodeId(5), NodeId(0)), Some(40));
    assert_eq!(topology.distance(NodeId(0), NodeId(3)), None);
    let slow = topology.node(NodeId(5)).unwrap();
    assert_eq!((slow.total, slow.marks.free), (6 << 30, 5000 << 12));
    let division = Division::of(&topology.facts()).unwrap();
    assert_eq!(division.tiers.fast, nodes("0,2"));
    assert_eq!(division.tiers.slow, nodes("5"));

    let pool = hugetlb::read_size(&root, 2 << 20).unwrap().unwrap();
    assert_eq!((pool.available(), pool.overcommit), (6, 9));
    let all = division.tiers.nodes();
    let spare = [0, 2, 3, 5].map(|node| pool.spare_on(NodeId(node), &all));
    assert_eq!(spare, [0, 2, 0, 5]);
    assert_eq!(pool.pairs_within(&division.tiers), 0, "two fast nodes");
    let command =
        "echo 16 > /sys/devices/system/node/node5/hugepages/hugepages-2048kB/nr_hugepages";
    assert_eq!(pool.set_pages(NodeId(5), 16), command);
}

#[test]
fn pools_when_read_tell_what_is_to_be_had() {
    let pools = hugetlb::read(&two_nodes()).unwrap();

    assert_eq!(pools.len(), 1);
    let pool = &pools[0];
    assert_eq!(
        (pool.page_size, pool.pages, pool.available()),
        (2 << 20, 180, 42)
    );
    let by_node: Vec<_> = pool
        .nodes
        .iter()
        .map(|own| (own.node.0, own.pages, own.free))
        .collect();
    assert_eq!(by_node, [(0, 20, 10), (1, 160, 40)]);
}

#[test]
fn pools_when_read_on_this_host_add_up() {
    for pool in hugetlb::read(&SysRoot::real()).unwrap() {
        assert!(pool.free <= pool.pages);
        assert!(pool.page_size >= 64 << 10, "{pool:?}");
    }
}

#[test]
fn knobs_when_read_tell_what_would_fight() {
    let knobs = Knobs::read(&two_nodes()).unwrap();

    assert_eq!(
        (knobs.numa_balancing, knobs.demotion_enabled),
        (Some(2), Some(true))
    );
    assert_eq!(knobs.thp_enabled.as_deref(), Some("madvise"));
    assert_eq!(knobs.thp_shmem_enabled.as_deref(), Some("never"));
    assert_eq!(
        (knobs.perf_event_paranoid, knobs.ksm_run),
        (Some(3), Some(0))
    );
}

#[test]
fn knobs_when_kernel_has_none_are_none() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(
        Knobs::read(&SysRoot::at(folder.path())).unwrap(),
        Knobs::default()
    );
    assert!(Knobs::read(&SysRoot::real()).is_ok());
}

#[test]
fn allowed_nodes_when_read_are_those_of_the_cpuset() {
    assert_eq!(allowed_nodes(&two_nodes(), 77).unwrap(), nodes("0-1"));
    let own = allowed_nodes(&SysRoot::real(), std::process::id()).unwrap();
    assert!(own.contains(NodeId(0)));
    assert!(
        allowed_nodes(&two_nodes(), 78)
            .unwrap_err()
            .is_process_gone()
    );
}
