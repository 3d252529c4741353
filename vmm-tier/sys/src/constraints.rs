//! Readers of constraints: cpusets, limits of the hugetlb controller of cgroups, mounts of hugetlbfs.

mod cgroup;
mod mounts;

use tier_core::constraints::{Constraints, Cpusets, PoolBounds};

use crate::{knobs, sysroot::SysRoot};

/// Device numbers of a file's filesystem, major and minor.
pub type Device = (u32, u32);

/// Reads the constraints of the process `pid`, whose hugetlb pages are of these sizes, each with the
/// filesystems that hold them. What can't be read is left out: it is not known.
#[must_use]
pub fn read(root: &SysRoot, pid: u32, pools: &[(u64, Vec<Device>)]) -> Constraints {
    let cpusets = Cpusets {
        qemu: knobs::allowed_nodes(root, pid).ok(),
        agent: knobs::own_allowed_nodes(root).ok(),
    };
    if pools.is_empty() {
        return Constraints {
            cpusets,
            pools: Vec::new(),
        };
    }
    let mounts = mounts::read(root, pid).unwrap_or_default();
    let groups = cgroup::of_process(root, pid).unwrap_or_default();
    let bounds = |(page_size, devices): &(u64, Vec<Device>)| PoolBounds {
        page_size: *page_size,
        cgroup: cgroup::tightest(&groups, *page_size),
        mounts: (mounts.iter())
            .filter(|(device, _)| devices.contains(device))
            .map(|(_, mount)| mount.clone())
            .collect(),
    };
    Constraints {
        cpusets,
        pools: pools.iter().map(bounds).collect(),
    }
}
