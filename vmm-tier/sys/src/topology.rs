//! Memory nodes: what they have, how far and how fast they are, and which tier the kernel puts them in.

use std::path::Path;

use serde::Serialize;
use tier_core::{
    addr::{NodeId, NodeSet},
    nearness::{Distance, Nearness},
    tiers::NodeFacts,
};

use crate::{
    process,
    sysroot::{
        ParseError, SMALL_FILE, SysRoot, SysRootError, numbered_entries, read_text,
        read_value_optional,
    },
    zoneinfo::{self, NodeMarks},
};

/// How fast the nearest initiators reach a node's memory, as the firmware (HMAT) or a CXL driver
/// says. 0 where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Performance {
    /// Nanoseconds.
    pub read_latency_ns: u64,
    /// Nanoseconds.
    pub write_latency_ns: u64,
    /// MiB a second.
    pub read_bandwidth_mib: u64,
    /// MiB a second.
    pub write_bandwidth_mib: u64,
}

/// A memory node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Whether it has CPUs.
    pub has_cpu: bool,
    /// Whether it has memory.
    pub has_memory: bool,
    /// The distance to each online node, in the order of [`Topology::nodes`]; 10 is local (ACPI SLIT).
    pub distances: Vec<u32>,
    /// The kernel's tier, smaller is faster (`memory_tier4` → 4); `None` if the kernel puts it in none.
    pub tier: Option<u32>,
    /// As seen from the nearest initiators of any kind (access class 0).
    pub access0: Option<Performance>,
    /// As seen from the nearest CPUs (access class 1).
    pub access1: Option<Performance>,
    /// The nodes that reach its memory fastest, as the firmware says (HMAT); none if it does not say.
    #[serde(skip)]
    pub initiators: NodeSet,
    /// The numbers of its CPUs.
    #[serde(skip)]
    pub cpus: CpuSet,
    /// Memory in bytes.
    pub total: u64,
    /// Free and watermarks in bytes.
    pub marks: NodeMarks,
}

impl Node {
    /// What the CPUs see: access class 1, or class 0 where there is no other.
    #[must_use]
    pub fn performance(&self) -> Option<Performance> {
        self.access1.or(self.access0)
    }
}

/// The online nodes of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Topology {
    /// By rising number.
    pub nodes: Vec<Node>,
}

impl Topology {
    /// Reads `/sys/devices/system/node`, memory tiers and zoneinfo. A kernel without NUMA has no such
    /// folder: then there is no node.
    ///
    /// # Errors
    /// [`SysRootError`] with the file that can't be read or understood.
    pub fn read(root: &SysRoot) -> Result<Self, SysRootError> {
        let folder = root.sys("devices/system/node");
        let online = node_list(&folder.join("online"))?;
        let has_cpu = node_list(&folder.join("has_cpu"))?;
        let has_memory = node_list(&folder.join("has_memory"))?;
        let tiers = memory_tiers(root)?;
        let marks = match zoneinfo::read(root) {
            Ok(marks) => marks,
            Err(error) if error.is_not_found() => Default::default(),
            Err(error) => return Err(error),
        };
        let nodes = online.iter().map(|id| {
            let folder = folder.join(format!("node{id}"));
            let tier = tiers.iter().find(|(_, nodes)| nodes.contains(id));
            Ok(Node {
                id,
                has_cpu: has_cpu.contains(id),
                has_memory: has_memory.contains(id),
                distances: distances(&folder.join("distance"))?,
                tier: tier.map(|(tier, _)| *tier),
                access0: performance(&folder.join("access0/initiators"))?,
                access1: performance(&folder.join("access1/initiators"))?,
                initiators: initiators(&folder.join("access0/initiators"))?,
                cpus: CpuSet::read(&folder.join("cpulist"))?,
                total: total_memory(&folder.join("meminfo"))?,
                marks: marks.get(&id).copied().unwrap_or_default(),
            })
        });
        Ok(Self {
            nodes: nodes.collect::<Result<_, SysRootError>>()?,
        })
    }

    /// What tiers are told from, of each node.
    #[must_use]
    pub fn facts(&self) -> Vec<NodeFacts> {
        let facts = |node: &Node| NodeFacts {
            id: node.id.0,
            bytes: node.total,
            has_cpus: node.has_cpu,
            memory_tier: node.tier,
            read_latency_ns: node
                .performance()
                .map(|p| u32::try_from(p.read_latency_ns).unwrap_or(u32::MAX))
                .filter(|&ns| ns > 0),
        };
        self.nodes.iter().map(facts).collect()
    }

    /// The node of this number.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// How far nodes are from each other and from the guest's CPUs, which run on the nodes `cpus`.
    #[must_use]
    pub fn nearness(&self, cpus: NodeSet) -> Nearness {
        let pairs = self.nodes.iter().flat_map(|from| {
            self.nodes.iter().filter_map(|to| {
                let distance = Distance {
                    slit: self.distance(from.id, to.id)?,
                    is_foreign: !to.initiators.contains(from.id),
                };
                Some(((from.id, to.id), distance))
            })
        });
        Nearness {
            distances: pairs.collect(),
            cpus,
        }
    }

    /// The nodes on whose CPUs these threads of a process ran last. A thread that is gone, or that a
    /// kernel says nothing of, ran on none.
    #[must_use]
    pub fn nodes_of_threads(&self, root: &SysRoot, pid: u32, tids: &[u32]) -> NodeSet {
        let cpus = tids
            .iter()
            .filter_map(|&tid| process::thread_stat(root, pid, tid).ok()?.last_cpu);
        let node_of = |cpu| self.nodes.iter().find(|node| node.cpus.contains(cpu));
        cpus.filter_map(node_of).map(|node| node.id).collect()
    }

    /// The distance between two nodes.
    #[must_use]
    pub fn distance(&self, from: NodeId, to: NodeId) -> Option<u32> {
        let column = self.nodes.iter().position(|node| node.id == to)?;
        self.node(from)?.distances.get(column).copied()
    }
}

/// No kernel knows as many CPUs (`CONFIG_NR_CPUS` is 8192 at most on x86-64).
const MOST_CPUS: u32 = 1 << 16;

/// CPU numbers, as the kernel lists them: ranges, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuSet(Vec<(u32, u32)>);

impl CpuSet {
    /// Reads a file that holds a list such as `0-3,8`; empty if there is no such file.
    fn read(path: &Path) -> Result<Self, SysRootError> {
        let text = match read_text(path, SMALL_FILE) {
            Ok(text) => text,
            Err(error) if error.is_not_found() => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        Self::parse(&text).ok_or_else(|| ParseError::at(0, "no list of CPUs").in_file(path))
    }

    /// The CPUs that are online.
    ///
    /// # Errors
    /// [`SysRootError`] if the list is malformed.
    pub fn online(root: &SysRoot) -> Result<Self, SysRootError> {
        Self::read(&root.sys("devices/system/cpu/online"))
    }

    fn parse(text: &str) -> Option<Self> {
        let parts = text.trim().split(',').filter(|part| !part.is_empty());
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range: (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            (range.0 <= range.1 && range.1 < MOST_CPUS).then_some(range)
        };
        parts.map(range).collect::<Option<_>>().map(Self)
    }

    /// Their numbers, in the order of the list.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().flat_map(|&(first, last)| first..=last)
    }

    /// Whether the CPU is among them.
    #[must_use]
    pub fn contains(&self, cpu: u32) -> bool {
        let mut ranges = self.0.iter();
        ranges.any(|&(first, last)| (first..=last).contains(&cpu))
    }
}

/// The nodes that the folder of a node's nearest initiators links to
/// (Documentation/admin-guide/mm/numaperf.rst).
fn initiators(folder: &Path) -> Result<NodeSet, SysRootError> {
    let entries = numbered_entries(folder, "node")?.into_iter();
    let nodes = entries.filter_map(|(number, _)| u16::try_from(number).ok());
    Ok(nodes.map(NodeId).collect())
}

/// The kernel's memory tiers: number and nodes. None before Linux 6.1.
fn memory_tiers(root: &SysRoot) -> Result<Vec<(u32, NodeSet)>, SysRootError> {
    let entries = numbered_entries(&root.sys("devices/virtual/memory_tiering"), "memory_tier")?;
    entries
        .into_iter()
        .map(|(tier, path)| Ok((tier, node_list(&path.join("nodelist"))?)))
        .collect()
}

/// A file that holds a node list; empty if there is no such file.
fn node_list(path: &Path) -> Result<NodeSet, SysRootError> {
    Ok(read_value_optional(path)?.unwrap_or_default())
}

fn distances(path: &Path) -> Result<Vec<u32>, SysRootError> {
    let text = match read_text(path, SMALL_FILE) {
        Ok(text) => text,
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let numbers: Result<_, _> = text.split_ascii_whitespace().map(str::parse).collect();
    numbers.map_err(|_| ParseError::at(0, "no list of distances").in_file(path))
}

fn performance(folder: &Path) -> Result<Option<Performance>, SysRootError> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let value = |name: &str| Ok(read_value_optional(&folder.join(name))?.unwrap_or(0));
    let found = Performance {
        read_latency_ns: value("read_latency")?,
        write_latency_ns: value("write_latency")?,
        read_bandwidth_mib: value("read_bandwidth")?,
        write_bandwidth_mib: value("write_bandwidth")?,
    };
    // The folder also holds links to the initiators and stands without any figure on some hosts.
    Ok((found != Performance::default()).then_some(found))
}

fn total_memory(path: &Path) -> Result<u64, SysRootError> {
    parse_meminfo(&read_text(path, SMALL_FILE)?).map_err(|error| error.in_file(path))
}

/// Bytes of memory by the text of a node's meminfo: lines such as `Node 0 MemTotal:  4409732 kB`. 0 if
/// no line says it.
fn parse_meminfo(text: &str) -> Result<u64, ParseError> {
    for (index, line) in text.lines().enumerate() {
        let mut words = line.split_ascii_whitespace().skip(2);
        if words.next() == Some("MemTotal:") {
            let kib = words.next().and_then(|word| word.parse::<u64>().ok());
            return kib
                .and_then(|kib| kib.checked_mul(1024))
                .ok_or_else(|| ParseError::at(index, "no number of kB"));
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn online_cpus_when_listed_are_all_of_the_list_and_may_be_more_than_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let root = SysRoot::at(folder.path());
        let path = root.sys("devices/system/cpu/online");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "0-2,5,1023-1025\n").unwrap();
        let cpus = CpuSet::online(&root).unwrap();
        assert_eq!(
            cpus.iter().collect::<Vec<_>>(),
            [0, 1, 2, 5, 1023, 1024, 1025]
        );
        assert!(cpus.contains(1024) && !cpus.contains(4));
        for text in ["0-x", "3-1", "0-4294967295"] {
            std::fs::write(&path, text).unwrap();
            assert!(CpuSet::online(&root).is_err(), "{text}");
        }
    }
}
