//! What the kernel says of this host's nodes, as `tier-core` takes it.

use tier_core::tiers::NodeFacts;
use tier_sys::topology::{Node, Topology};

/// The facts that tiers are told from.
pub(crate) fn node_facts(topology: &Topology) -> Vec<NodeFacts> {
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
    topology.nodes.iter().map(facts).collect()
}
