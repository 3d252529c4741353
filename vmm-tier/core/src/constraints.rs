//! Constraints: what the host's administrator lets QEMU and the agent have. cpusets say onto which nodes
//! pages may be moved; the hugetlb controller of cgroups and the mounts of hugetlbfs bound what a guest
//! may use of a pool.
//!
//! The last two bound no move: the charge and the mount's account go along with the page
//! (`hugetlb_cgroup_migrate`, mm/hugetlb_cgroup.c; `hugetlbfs_migrate_folio`, fs/hugetlbfs/inode.c), and
//! a page that serves as a target is not charged (`alloc_hugetlb_folio_nodemask`, mm/hugetlb.c). They
//! are shown because a guest that touches memory beyond them is killed (`SIGBUS`).

use crate::{
    addr::{NodeId, NodeSet},
    tiers::Tiers,
};

crate::words! {
    /// Whose cpuset it is.
    pub enum CpusetOwner {
        /// QEMU's: `move_pages` refuses the whole call with `EACCES` (`do_pages_move`, mm/migrate.c).
        Qemu = "qemu",
        /// The agent's: the kernel takes no page there for it (`prepare_alloc_pages`, mm/page_alloc.c;
        /// `dequeue_hugetlb_folio_nodemask`, mm/hugetlb.c).
        Agent = "agent",
    }
}

crate::report! {
    /// A node onto which no page is moved.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct ClosedNode = "TierClosedNode" {
        /// The node.
        pub node: NodeId,
        /// Whose cpusets do not have the node.
        pub by: Vec<CpusetOwner>,
        /// The same in a sentence, and what opens the node.
        pub reason: String,
    }
}

/// The nodes on which QEMU and the agent may have memory; `None` if not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpusets {
    /// QEMU's.
    pub qemu: Option<NodeSet>,
    /// The agent's own.
    pub agent: Option<NodeSet>,
}

impl Cpusets {
    /// These, and where one is not known that of `before`: the process may be ending.
    #[must_use]
    pub fn or(self, before: Self) -> Self {
        Self {
            qemu: self.qemu.or(before.qemu),
            agent: self.agent.or(before.agent),
        }
    }

    /// The nodes of the tiers onto which no page of QEMU's process `pid` can be moved.
    #[must_use]
    pub fn closed(&self, tiers: &Tiers, pid: u32) -> Vec<ClosedNode> {
        let closed = |node: NodeId| {
            let mut by = Vec::new();
            let mut reasons = Vec::new();
            for (owner, allowed) in [
                (CpusetOwner::Qemu, &self.qemu),
                (CpusetOwner::Agent, &self.agent),
            ] {
                let Some(allowed) = allowed.as_ref().filter(|set| !set.contains(node)) else {
                    continue;
                };
                by.push(owner);
                reasons.push(match owner {
                    CpusetOwner::Qemu => format!(
                        "the cpuset of QEMU's process {pid} allows memory on {} only: widen cpuset.mems of its \
                         control group (libvirt: numatune), or leave node {node} out of --fast and --slow",
                        on_nodes(allowed)
                    ),
                    CpusetOwner::Agent => format!(
                        "the cpuset of the agent allows memory on {} only: widen cpuset.mems of its control group \
                         (systemd: AllowedMemoryNodes=)",
                        on_nodes(allowed)
                    ),
                });
            }
            (!by.is_empty()).then(|| ClosedNode {
                node,
                by,
                reason: format!(
                    "no page can be moved onto node {node}: {}",
                    reasons.join("; and ")
                ),
            })
        };
        tiers.nodes().iter().filter_map(closed).collect()
    }
}

fn on_nodes(set: &NodeSet) -> String {
    match set.len() {
        1 => format!("node {set}"),
        _ => format!("nodes {set}"),
    }
}

crate::words! {
    /// What a control group bounds.
    pub enum CgroupCount {
        /// Pages in use (`hugetlb.SIZE.max`).
        Used = "used",
        /// Pages in use and promised (`hugetlb.SIZE.rsvd.max`).
        Reserved = "reserved",
    }
}

crate::report! {
    /// A bound of the hugetlb controller of cgroups.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct CgroupLimit = "TierCgroupLimit" {
        /// The control group.
        #[metric(exempt = "a path")]
        pub cgroup: String,
        /// What it bounds.
        #[metric(exempt = "says which count of the control group leaves least")]
        pub count: CgroupCount,
        /// The bound of the control group that leaves QEMU least.
        #[metric(gauge = "pool_cgroup_limit_bytes")]
        pub limit_bytes: u64,
        /// What is counted against that bound.
        #[metric(gauge = "pool_cgroup_used_bytes")]
        pub used_bytes: u64,
    }
}

impl CgroupLimit {
    /// What it leaves.
    #[must_use]
    pub const fn left_bytes(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.used_bytes)
    }
}

crate::report! {
    /// A mount of hugetlbfs with bounds: the kernel gives it an account of its own (a subpool).
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct PoolMount = "TierPoolMount" {
        /// Where it is mounted, as QEMU sees it.
        pub path: String,
        /// Most bytes of its files (`size=`), if bounded.
        pub limit_bytes: Option<u64>,
        /// Bytes that are promised to its files from the mount on (`min_size=`); `reserved` of the pool
        /// has them.
        pub promised_bytes: u64,
    }
}

/// What bounds a guest's use of the pools of one page size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolBounds {
    /// The page size in bytes.
    pub page_size: u64,
    /// Of QEMU's control group and those around it, the bound that leaves least.
    pub cgroup: Option<CgroupLimit>,
    /// The mounts that hold memory of the guest.
    pub mounts: Vec<PoolMount>,
}

/// See the [module](self).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Constraints {
    /// Which nodes are allowed.
    pub cpusets: Cpusets,
    /// By page size.
    pub pools: Vec<PoolBounds>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiers::tests::two_nodes;

    fn set(text: &str) -> Option<NodeSet> {
        text.parse().ok()
    }

    #[test]
    fn closed_nodes_when_cpusets_leave_them_out_name_whose_and_what_helps() {
        let cpusets = Cpusets {
            qemu: set("1"),
            agent: set("1-3"),
        };
        let closed = cpusets.closed(&two_nodes(), 77);
        assert_eq!(closed.len(), 1);
        assert_eq!(closed[0].by, [CpusetOwner::Qemu, CpusetOwner::Agent]);
        assert_eq!(
            closed[0].reason,
            "no page can be moved onto node 0: the cpuset of QEMU's process 77 allows memory on node 1 only: widen \
             cpuset.mems of its control group (libvirt: numatune), or leave node 0 out of --fast and --slow; and the \
             cpuset of the agent allows memory on nodes 1-3 only: widen cpuset.mems of its control group (systemd: \
             AllowedMemoryNodes=)"
        );
    }

    #[test]
    fn closed_nodes_when_cpusets_allow_all_or_are_not_known_are_none() {
        let cpusets = Cpusets {
            qemu: None,
            agent: set("0-7"),
        };
        assert_eq!(cpusets.closed(&two_nodes(), 77), []);
        let before = Cpusets {
            qemu: set("1"),
            agent: set("1"),
        };
        let now = cpusets.or(before);
        assert_eq!(now.closed(&two_nodes(), 77)[0].by, [CpusetOwner::Qemu]);
    }
}
