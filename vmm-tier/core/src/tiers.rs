//! Which nodes are fast and which are slow.
//!
//! The kernel's own memory tiers are asked first: they rest on HMAT or on the CXL device's own figures.
//! Where it puts all nodes in one tier, read latencies decide, then the rule of thumb that a node with
//! memory but without CPUs is an expander. Two sockets of the same kind are no tiers unless the operator
//! says so.

use serde::Serialize;

use crate::addr::{NodeId, NodeSet};

/// A node is slow if a read from it takes this many percent of a read from the fastest, or more.
/// Sockets of one kind differ by a few percent; CXL memory and PMEM take twice as long or more.
const SLOW_PERCENT: u64 = 130;

/// What is known of one NUMA node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node's number.
    pub id: u16,
    /// Its memory in bytes; 0 for a node without memory.
    pub bytes: u64,
    /// Whether it has CPUs.
    pub has_cpus: bool,
    /// The kernel's memory tier (`memory_tierN`): the lower, the faster.
    pub memory_tier: Option<u32>,
    /// The read latency for the nearest CPUs in nanoseconds (HMAT, or CXL's CDAT).
    pub read_latency_ns: Option<u32>,
}

/// What the division rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TierBasis {
    /// The kernel's memory tiers.
    MemoryTiering,
    /// Read latencies.
    Latency,
    /// Nodes without CPUs are slow.
    CpuLess,
    /// The operator named them.
    Given,
}

/// A read from DRAM in nanoseconds, where nothing is known: what current servers measure when idle.
pub const ASSUMED_FAST_NS: f64 = 100.0;
/// A read from the slow tier in nanoseconds, where nothing is known: CXL expanders measure 170 to 300.
pub const ASSUMED_SLOW_NS: f64 = 250.0;

/// The fast and the slow nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tiers {
    /// The nodes where hot pages belong.
    pub fast: NodeSet,
    /// The other nodes with memory.
    pub slow: NodeSet,
    /// The mean read latency of the fast nodes by size, in nanoseconds.
    pub fast_latency_ns: f64,
    /// The mean read latency of the slow nodes by size, in nanoseconds.
    pub slow_latency_ns: f64,
}

/// Tiers, and what they rest on.
#[derive(Clone, Debug, PartialEq)]
pub struct Division {
    /// The tiers.
    pub tiers: Tiers,
    /// What tells fast from slow.
    pub basis: TierBasis,
    /// Whether the latencies are [`ASSUMED_FAST_NS`] and [`ASSUMED_SLOW_NS`], because that of some node
    /// is not known or the slow tier's is not the longer one.
    pub latencies_assumed: bool,
}

/// Why there are no two tiers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TiersError {
    /// Fewer than two nodes have memory.
    #[error("{}", match .0 { 0 => "the kernel shows no memory nodes", _ => "only one node has memory" })]
    OneNode(usize),
    /// All nodes look alike.
    #[error("nodes {0} all look alike: name the tiers with --fast and --slow")]
    Alike(NodeSet),
    /// A named node is not there.
    #[error("node {node} does not exist: the nodes with memory are {present}")]
    NoSuchNode {
        /// The node named.
        node: NodeId,
        /// The nodes with memory.
        present: NodeSet,
    },
    /// A named node has no memory.
    #[error("node {node} has no memory: the nodes with memory are {present}")]
    NoMemory {
        /// The node named.
        node: NodeId,
        /// The nodes with memory.
        present: NodeSet,
    },
    /// A tier without nodes.
    #[error("the {0} tier has no node")]
    Empty(&'static str),
}

impl Division {
    /// Divides the nodes by what the kernel says of them.
    ///
    /// # Errors
    /// If fewer than two nodes have memory, or nothing tells them apart.
    pub fn of(nodes: &[NodeFacts]) -> Result<Self, TiersError> {
        let with_memory: Vec<&NodeFacts> = nodes.iter().filter(|node| node.bytes > 0).collect();
        if with_memory.len() < 2 {
            return Err(TiersError::OneNode(with_memory.len()));
        }
        let divided = by_memory_tier(&with_memory)
            .map(|fast| (fast, TierBasis::MemoryTiering))
            .or_else(|| by_latency(&with_memory).map(|fast| (fast, TierBasis::Latency)))
            .or_else(|| by_cpus(&with_memory).map(|fast| (fast, TierBasis::CpuLess)));
        let (fast, basis) = divided.ok_or_else(|| TiersError::Alike(present(nodes)))?;
        let slow = with_memory
            .iter()
            .map(|node| NodeId(node.id))
            .filter(|&id| !fast.contains(id))
            .collect();
        Ok(Self::with_latencies(nodes, fast, slow, basis))
    }

    /// Tiers that the operator named. They may share nodes ([`Tiers::shared`]): a dry run allows that.
    ///
    /// # Errors
    /// If a tier is empty, or a node does not exist or has no memory.
    pub fn given(nodes: &[NodeFacts], fast: NodeSet, slow: NodeSet) -> Result<Self, TiersError> {
        for (name, set) in [("fast", &fast), ("slow", &slow)] {
            if set.is_empty() {
                return Err(TiersError::Empty(name));
            }
            for node in set.iter() {
                match nodes.iter().find(|facts| facts.id == node.0) {
                    None => {
                        return Err(TiersError::NoSuchNode {
                            node,
                            present: present(nodes),
                        });
                    }
                    Some(facts) if facts.bytes == 0 => {
                        return Err(TiersError::NoMemory {
                            node,
                            present: present(nodes),
                        });
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(Self::with_latencies(nodes, fast, slow, TierBasis::Given))
    }

    fn with_latencies(nodes: &[NodeFacts], fast: NodeSet, slow: NodeSet, basis: TierBasis) -> Self {
        let known = mean_latency_ns(nodes, &fast)
            .zip(mean_latency_ns(nodes, &slow))
            .filter(|(fast, slow)| fast < slow);
        let (fast_latency_ns, slow_latency_ns) =
            known.unwrap_or((ASSUMED_FAST_NS, ASSUMED_SLOW_NS));
        Self {
            tiers: Tiers {
                fast,
                slow,
                fast_latency_ns,
                slow_latency_ns,
            },
            basis,
            latencies_assumed: known.is_none(),
        }
    }
}

impl Tiers {
    /// The nodes of both tiers.
    #[must_use]
    pub fn nodes(&self) -> NodeSet {
        self.fast.iter().chain(self.slow.iter()).collect()
    }

    /// The fast and the slow node, if each tier has one.
    #[must_use]
    pub fn only_nodes(&self) -> Option<[NodeId; 2]> {
        let only = |nodes: &NodeSet| nodes.iter().next().filter(|_| nodes.len() == 1);
        Some([only(&self.fast)?, only(&self.slow)?])
    }

    /// The nodes that are in both tiers.
    #[must_use]
    pub fn shared(&self) -> NodeSet {
        self.fast
            .iter()
            .filter(|&node| self.slow.contains(node))
            .collect()
    }
}

fn present(nodes: &[NodeFacts]) -> NodeSet {
    nodes
        .iter()
        .filter(|node| node.bytes > 0)
        .map(|node| NodeId(node.id))
        .collect()
}

/// The nodes for which `is_fast`, unless that is none or all.
fn part(nodes: &[&NodeFacts], is_fast: impl Fn(&NodeFacts) -> bool) -> Option<NodeSet> {
    let fast: NodeSet = nodes
        .iter()
        .filter(|node| is_fast(node))
        .map(|node| NodeId(node.id))
        .collect();
    (!fast.is_empty() && fast.len() < nodes.len()).then_some(fast)
}

fn by_memory_tier(nodes: &[&NodeFacts]) -> Option<NodeSet> {
    let first = nodes.iter().filter_map(|node| node.memory_tier).min()?;
    // A node in no tier is unknown, not slow.
    nodes
        .iter()
        .all(|node| node.memory_tier.is_some())
        .then_some(())?;
    part(nodes, |node| node.memory_tier == Some(first))
}

fn by_latency(nodes: &[&NodeFacts]) -> Option<NodeSet> {
    let known: Option<Vec<u32>> = nodes
        .iter()
        .map(|node| node.read_latency_ns.filter(|&ns| ns > 0))
        .collect();
    let least = u64::from(known?.into_iter().min()?);
    part(nodes, |node| {
        u64::from(node.read_latency_ns.unwrap_or(0)) * 100 < least * SLOW_PERCENT
    })
}

fn by_cpus(nodes: &[&NodeFacts]) -> Option<NodeSet> {
    part(nodes, |node| node.has_cpus)
}

/// The mean by size; `None` if it is not known of every node.
fn mean_latency_ns(nodes: &[NodeFacts], set: &NodeSet) -> Option<f64> {
    let (mut mib, mut weighted) = (0.0, 0.0);
    for node in nodes.iter().filter(|node| set.contains(NodeId(node.id))) {
        // Whole MiB are exact in f64.
        #[expect(
            clippy::cast_precision_loss,
            reason = "a node has far less than 2^53 MiB"
        )]
        let size = (node.bytes >> 20) as f64;
        mib += size;
        weighted += size * f64::from(node.read_latency_ns.filter(|&ns| ns > 0)?);
    }
    (mib > 0.0).then(|| weighted / mib)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Node 0 is fast and node 1 slow.
    pub(crate) fn two_nodes() -> Tiers {
        Tiers {
            fast: NodeSet::from_iter([NodeId(0)]),
            slow: NodeSet::from_iter([NodeId(1)]),
            fast_latency_ns: 80.0,
            slow_latency_ns: 250.0,
        }
    }

    const GIB: u64 = 1 << 30;

    fn node(
        id: u16,
        has_cpus: bool,
        memory_tier: Option<u32>,
        read_latency_ns: Option<u32>,
    ) -> NodeFacts {
        NodeFacts {
            id,
            bytes: GIB,
            has_cpus,
            memory_tier,
            read_latency_ns,
        }
    }

    fn divided(nodes: &[NodeFacts]) -> (String, String, TierBasis) {
        let Division { tiers, basis, .. } = Division::of(nodes).unwrap();
        (tiers.fast.to_string(), tiers.slow.to_string(), basis)
    }

    #[test]
    fn tiers_when_the_kernel_has_two_are_the_kernels() {
        // memory_tier4 and memory_tier46: what Linux 6.12 shows for DRAM and a slower HMAT target.
        let nodes = [
            node(0, true, Some(4), Some(100)),
            node(1, false, Some(46), Some(350)),
        ];

        assert_eq!(
            divided(&nodes),
            ("0".into(), "1".into(), TierBasis::MemoryTiering)
        );
        let division = Division::of(&nodes).unwrap();
        assert_eq!(
            (
                division.tiers.fast_latency_ns,
                division.tiers.slow_latency_ns
            ),
            (100.0, 350.0)
        );
        assert!(!division.latencies_assumed);
    }

    #[test]
    fn tiers_when_the_kernel_has_three_put_the_lower_two_together() {
        let nodes = [
            node(0, true, Some(4), None),
            node(1, true, Some(4), None),
            node(2, false, Some(22), None),
            node(3, false, Some(46), None),
        ];

        assert_eq!(
            divided(&nodes),
            ("0-1".into(), "2-3".into(), TierBasis::MemoryTiering)
        );
    }

    #[test]
    fn tiers_when_the_kernel_has_one_go_by_latency_then_by_cpus() {
        let by_latency = [
            node(0, true, Some(4), Some(90)),
            node(1, true, Some(4), Some(100)),
            node(2, true, Some(4), Some(120)),
        ];
        let by_cpus = [
            node(0, true, Some(4), None),
            node(1, false, Some(4), Some(250)),
        ];

        assert_eq!(
            divided(&by_latency),
            ("0-1".into(), "2".into(), TierBasis::Latency)
        );
        assert_eq!(
            divided(&by_cpus),
            ("0".into(), "1".into(), TierBasis::CpuLess)
        );
    }

    #[test]
    fn tiers_when_nodes_are_alike_or_alone_are_refused() {
        let memoryless = NodeFacts {
            bytes: 0,
            ..node(1, true, None, None)
        };

        assert_eq!(Division::of(&[]), Err(TiersError::OneNode(0)));
        assert_eq!(
            Division::of(&[node(0, true, None, None), memoryless]),
            Err(TiersError::OneNode(1))
        );
        let alike = [
            node(0, true, Some(4), Some(90)),
            node(1, true, Some(4), Some(90)),
        ];
        assert_eq!(
            Division::of(&alike).unwrap_err().to_string(),
            "nodes 0-1 all look alike: name the tiers with --fast and --slow"
        );
    }

    #[test]
    fn given_tiers_when_a_node_is_wrong_name_it() {
        let nodes = [
            node(0, true, None, Some(80)),
            NodeFacts {
                bytes: 0,
                ..node(1, true, None, None)
            },
        ];
        let set = |text: &str| text.parse::<NodeSet>().unwrap();

        let same = Division::given(&nodes, set("0"), set("0")).unwrap();
        assert_eq!(same.tiers.shared(), set("0"));
        assert!(same.latencies_assumed, "one node is not slower than itself");
        let message = |fast, slow| {
            Division::given(&nodes, set(fast), set(slow))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            message("0", "7"),
            "node 7 does not exist: the nodes with memory are 0"
        );
        assert_eq!(
            message("0", "1"),
            "node 1 has no memory: the nodes with memory are 0"
        );
        assert_eq!(message("", "0"), "the fast tier has no node");
    }

    #[test]
    fn mean_latency_when_nodes_differ_in_size_weighs_by_size() {
        let nodes = [
            node(0, true, None, Some(80)),
            NodeFacts {
                bytes: 3 * GIB,
                ..node(1, false, None, Some(200))
            },
        ];
        let both: NodeSet = "0-1".parse().unwrap();

        // (1 × 80 + 3 × 200) / 4
        assert_eq!(mean_latency_ns(&nodes, &both), Some(170.0));
    }
}
