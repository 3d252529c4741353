//! How fast this host's tiers are.

use tier_core::addr::NodeSet;
pub(super) use tier_core::latency::Latency;
use tier_sys::topology::Topology;

/// The fastest of the nodes `fast`, and the slowest of all others (HMAT). Where the firmware says nothing,
/// what is assumed.
pub(super) fn of(topology: &Topology, fast: &NodeSet) -> Latency {
    let of = |is_fast: bool| {
        let nodes = topology.nodes.iter().filter(move |node| node.total > 0);
        let nodes = nodes.filter(move |node| fast.contains(node.id) == is_fast);
        nodes
            .filter_map(|node| Some(node.performance()?.read_latency_ns))
            .filter(|&ns| ns > 0)
    };
    match (of(true).min(), of(false).max()) {
        (Some(fast_ns), Some(slow_ns)) if fast_ns < slow_ns => Latency { fast_ns, slow_ns },
        _ => Latency::default(),
    }
}
