//! hugetlb pools: pages of each size, on each node and in all.

use serde::Serialize;

use crate::addr::{NodeId, NodeSet};

/// A pool of one node, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodePool {
    /// The node.
    pub node: NodeId,
    /// Pages in the pool.
    pub pages: u64,
    /// Pages of them that nobody uses.
    pub free: u64,
    /// Pages beyond what was configured.
    pub surplus: u64,
}

/// All pools of one page size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HugePool {
    /// The page size in bytes.
    pub page_size: u64,
    /// Pages in all.
    pub pages: u64,
    /// Pages of them that nobody uses.
    pub free: u64,
    /// Free pages that are promised to mappings: they are not to be had. The kernel counts them for
    /// the whole host only.
    pub reserved: u64,
    /// Pages beyond what was configured.
    pub surplus: u64,
    /// By rising node number.
    pub nodes: Vec<NodePool>,
}

impl HugePool {
    /// Free pages that are not promised to anyone.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.free.saturating_sub(self.reserved)
    }

    /// The command that gives a node this many pages.
    #[must_use]
    pub fn set_pages(&self, node: NodeId, pages: u64) -> String {
        format!(
            "echo {pages} > /sys/devices/system/node/node{node}/hugepages/hugepages-{}kB/nr_hugepages",
            self.page_size >> 10
        )
    }

    /// Pages of a node that a move may take while all pools stay as they are. None where a pool of
    /// `nodes` has surplus pages: a page that a move frees there goes to the kernel's free memory and
    /// leaves the pool (`free_huge_folio`, mm/hugetlb.c).
    #[must_use]
    pub fn spare_on(&self, node: NodeId, nodes: &NodeSet) -> u64 {
        let mut of_tiers = self.nodes.iter().filter(|pool| nodes.contains(pool.node));
        if of_tiers.any(|pool| pool.surplus > 0) {
            return 0;
        }
        let own = self.nodes.iter().find(|pool| pool.node == node);
        own.map_or(0, |pool| pool.free).min(self.available())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pools of two nodes: free, surplus.
    fn pool(reserved: u64, own: [(u64, u64); 2]) -> HugePool {
        let nodes = (0..).zip(own).map(|(node, (free, surplus))| NodePool {
            node: NodeId(node),
            pages: 100,
            free,
            surplus,
        });
        HugePool {
            page_size: 2 << 20,
            pages: 200,
            free: own.iter().map(|own| own.0).sum(),
            reserved,
            surplus: own.iter().map(|own| own.1).sum(),
            nodes: nodes.collect(),
        }
    }

    fn spare(pool: &HugePool, tiers: &[u16]) -> [u64; 2] {
        let tiers = tiers.iter().copied().map(NodeId).collect();
        [0, 1].map(|node| pool.spare_on(NodeId(node), &tiers))
    }

    #[test]
    fn spare_on_when_pages_are_promised_leaves_them() {
        assert_eq!(spare(&pool(0, [(0, 0), (19, 0)]), &[0, 1]), [0, 19]);
        assert_eq!(spare(&pool(4, [(0, 0), (5, 0)]), &[0, 1]), [0, 1]);
        assert_eq!(spare(&pool(4, [(3, 0), (2, 0)]), &[0, 1]), [1, 1]);
        assert_eq!(
            spare(&pool(9, [(3, 0), (2, 0)]), &[0, 1]),
            [0, 0],
            "more than are free"
        );
    }

    #[test]
    fn spare_on_when_a_node_of_the_tiers_has_surplus_pages_is_none() {
        let pool = pool(0, [(7, 1), (19, 0)]);
        assert_eq!(spare(&pool, &[0, 1]), [0, 0]);
        assert_eq!(spare(&pool, &[1]), [7, 19], "of another node");
        assert_eq!(
            pool.spare_on(NodeId(2), &NodeSet::default()),
            0,
            "no such node"
        );
    }
}
