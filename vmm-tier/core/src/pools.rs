//! hugetlb pools: pages of each size, on each node and in all.

use crate::{
    addr::{NodeId, NodeSet},
    tiers::Tiers,
};

/// The largest page that the kernel takes from its free memory when a move finds none in the pool: a
/// block of `MAX_PAGE_ORDER`, 10, of pages of 4 KiB.
const LARGEST_BLOCK: u64 = 4 << 20;

crate::report! {
    /// A hugetlb pool on one node.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct NodePool = "TierNodePool" {
        /// The node.
        #[metric(label = "numa_node")]
        pub node: NodeId,
        /// Pages of the pool on the node.
        #[metric(gauge = "pool_node_pages")]
        pub pages: u64,
        /// Pages of the pool on the node that nobody uses.
        #[metric(gauge = "pool_node_free_pages")]
        pub free: u64,
        /// Pages of the pool on the node beyond what was configured.
        #[metric(gauge = "pool_node_surplus_pages")]
        pub surplus: u64,
    }
}

crate::report! {
    /// All hugetlb pools of one page size.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct HugePool = "TierHugePool" {
        /// The page size in bytes.
        #[metric(label = "page_size")]
        pub page_size: u64,
        /// Pages of the pools on all nodes.
        #[metric(gauge = "pool_pages")]
        pub pages: u64,
        /// Pages of the pools that nobody uses.
        #[metric(gauge = "pool_free_pages")]
        pub free: u64,
        /// Free pages of the pools that are promised to mappings: they are not to be had. The kernel
        /// counts them for the whole host only.
        #[metric(gauge = "pool_reserved_pages")]
        pub reserved: u64,
        /// Pages of the pools beyond what was configured.
        #[metric(gauge = "pool_surplus_pages")]
        pub surplus: u64,
        /// Most surplus pages that mappings may bring about (`nr_overcommit_hugepages`). Moves need
        /// none.
        #[metric(gauge = "pool_overcommit_pages")]
        pub overcommit: u64,
        /// By rising node number.
        pub nodes: Vec<NodePool>,
    }
}

impl HugePool {
    /// Free pages that are not promised to anyone.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.free.saturating_sub(self.reserved)
    }

    /// Pages that the pool must get before a page is free and promised to nobody; 0 if there is such a
    /// page.
    #[must_use]
    pub const fn lacking(&self) -> u64 {
        self.reserved.saturating_add(1).saturating_sub(self.free)
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
        self.on(node)
            .map_or(0, |pool| pool.free)
            .min(self.available())
    }

    /// The pool of a node.
    #[must_use]
    pub fn on(&self, node: NodeId) -> Option<&NodePool> {
        self.nodes.iter().find(|pool| pool.node == node)
    }

    /// Pages that may change places at once between two nodes, `fast` ones first, while all pools stay
    /// as they are: each move takes a temporary page from the kernel's free memory and gives it the page
    /// that is left (`alloc_migrate_hugetlb_folio`). As far as the pool is concerned: there must be such
    /// memory.
    ///
    /// None where a node has a free page that is not promised: the kernel takes that instead. It takes
    /// even promised pages where more are promised than free, as it subtracts without a sign
    /// (`available_huge_pages`). None of pages that the kernel can't make at will. A move takes a
    /// surplus page's standing along, from a node that has any to the other (`move_hugetlb_state`): with
    /// surplus on the slow node, as many must be on the fast one.
    #[must_use]
    pub fn pairs_between(&self, fast: NodeId, slow: NodeId) -> u64 {
        let (Some(fast), Some(slow)) = (self.on(fast), self.on(slow)) else {
            return 0;
        };
        let takes_free = self.free != self.reserved;
        let has_free = takes_free && (fast.free > 0 || slow.free > 0);
        if has_free || self.page_size > LARGEST_BLOCK {
            return 0;
        }
        match slow.surplus {
            0 => u64::MAX,
            _ => fast.surplus,
        }
    }

    /// [`Self::pairs_between`] for the nodes of two tiers. None unless each tier has one node: else the
    /// pools of its nodes would change among themselves.
    #[must_use]
    pub fn pairs_within(&self, tiers: &Tiers) -> u64 {
        tiers
            .only_nodes()
            .map_or(0, |[fast, slow]| self.pairs_between(fast, slow))
    }

    /// Whether promotions can make the pool of the fast node larger, and that of the slow node smaller
    /// by as much: a move takes a page from the kernel's free memory where the node's pool has none, and
    /// gives it the page that is left. Not with surplus pages on either node: they would go along, and
    /// writing `nr_hugepages` would not bring them back. Not where more pages are promised than free:
    /// the kernel would take promised pages.
    #[must_use]
    pub fn can_grow(&self, fast: NodeId, slow: NodeId) -> bool {
        let (Some(fast), Some(slow)) = (self.on(fast), self.on(slow)) else {
            return false;
        };
        self.page_size <= LARGEST_BLOCK
            && fast.surplus == 0
            && slow.surplus == 0
            && self.reserved <= self.free
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
            overcommit: 0,
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

    /// What the kernel does to pages of the two nodes' pools and their surplus when a page goes from
    /// `from` to the other node by a temporary page.
    fn go(pool: &mut HugePool, from: usize) {
        let to = 1 - from;
        pool.nodes[from].pages -= 1;
        pool.nodes[to].pages += 1;
        if pool.nodes[from].surplus > 0 {
            pool.nodes[from].surplus -= 1;
            pool.nodes[to].surplus += 1;
        }
    }

    #[test]
    fn pairs_between_when_carried_out_leave_the_pools_as_they_were() {
        for fast_surplus in 0..6 {
            for slow_surplus in 0..6 {
                let before = pool(0, [(0, fast_surplus), (0, slow_surplus)]);
                let most = before.pairs_between(NodeId(0), NodeId(1)).min(8);
                for pairs in 1..=most {
                    let mut after = before.clone();
                    (0..pairs).for_each(|_| go(&mut after, 0));
                    (0..pairs).for_each(|_| go(&mut after, 1));
                    assert_eq!(after, before, "{pairs} pairs");
                }
            }
        }
    }

    #[test]
    fn pairs_between_when_a_page_is_free_or_can_not_be_made_are_none() {
        let pairs = |pool: &HugePool| pool.pairs_between(NodeId(0), NodeId(1));
        assert_eq!(pairs(&pool(0, [(0, 0), (0, 0)])), u64::MAX);
        assert_eq!(pairs(&pool(0, [(0, 14), (0, 0)])), u64::MAX);
        assert_eq!(pairs(&pool(0, [(0, 0), (0, 3)])), 0);
        assert_eq!(pairs(&pool(0, [(0, 2), (0, 3)])), 2);
        assert_eq!(pairs(&pool(0, [(0, 0), (1, 0)])), 0, "one is to spare");
        assert_eq!(pairs(&pool(0, [(1, 14), (0, 0)])), 0);
        assert_eq!(pairs(&pool(4, [(0, 0), (4, 0)])), u64::MAX, "all promised");
        let more = pool(6, [(0, 0), (4, 0)]);
        assert_eq!(pairs(&more), 0, "the kernel takes one that is promised");
        assert_eq!(more.lacking(), 3);
        let elsewhere = HugePool {
            free: 4,
            ..pool(6, [(0, 0), (0, 0)])
        };
        assert_eq!(pairs(&elsewhere), u64::MAX, "free on a third node");
        let giant = HugePool {
            page_size: 1 << 30,
            ..pool(0, [(0, 0), (0, 0)])
        };
        assert_eq!(pairs(&giant), 0);
        assert_eq!(giant.pairs_between(NodeId(0), NodeId(7)), 0, "no such node");
    }

    #[test]
    fn pool_when_its_pages_can_not_be_given_back_can_not_grow() {
        let grows = |pool: &HugePool| pool.can_grow(NodeId(0), NodeId(1));
        assert!(grows(&pool(0, [(0, 0), (0, 0)])));
        assert!(grows(&pool(4, [(0, 0), (4, 0)])));
        assert!(
            !grows(&pool(5, [(0, 0), (4, 0)])),
            "more promised than free"
        );
        assert!(!grows(&pool(0, [(0, 1), (0, 0)])));
        assert!(!grows(&pool(0, [(0, 0), (9, 1)])));
        // Absurd numbers, whose sum is 0 in 64 bits.
        let mut absurd = pool(0, [(0, 0), (0, 0)]);
        absurd
            .nodes
            .iter_mut()
            .for_each(|own| own.surplus = 1 << 63);
        assert!(!grows(&absurd));
        let giant = HugePool {
            page_size: 1 << 30,
            ..pool(0, [(0, 0), (0, 0)])
        };
        assert!(!grows(&giant));
        assert!(!pool(0, [(0, 0), (0, 0)]).can_grow(NodeId(0), NodeId(7)));
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
