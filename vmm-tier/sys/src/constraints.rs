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

#[cfg(test)]
mod tests {
    use std::fs;

    use tier_core::constraints::CgroupLimit;

    use super::*;

    #[test]
    fn constraints_when_a_guest_is_on_a_bounded_mount_join_what_each_file_says() {
        let folder = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("proc/7/status", "Name:\tqemu\nMems_allowed_list:\t0,2-5\n");
        put("proc/self/status", "Mems_allowed_list:\t0\n");
        put("proc/7/cgroup", "0::/vm\n");
        put("sys/fs/cgroup/vm/hugetlb.2MB.max", "4194304\n");
        put("sys/fs/cgroup/vm/hugetlb.2MB.current", "2097152\n");
        put(
            "proc/7/mountinfo",
            "36 22 0:31 / /a rw - hugetlbfs none rw,pagesize=2M,size=4194304\n\
             37 22 0:32 / /b rw - hugetlbfs none rw,pagesize=2M,size=4194304\n",
        );
        let root = SysRoot::at(folder.path());

        let found = read(&root, 7, &[(2 << 20, vec![(0, 31)]), (1 << 30, vec![])]);

        assert_eq!(found.cpusets.qemu, "0,2-5".parse().ok());
        assert_eq!(found.cpusets.agent, "0".parse().ok());
        let [small, large] = &found.pools[..] else {
            panic!("{found:?}")
        };
        let left = small.cgroup.as_ref().map(CgroupLimit::left_bytes);
        assert_eq!((small.page_size, left), (2 << 20, Some(2 << 20)));
        let paths: Vec<_> = small.mounts.iter().map(|mount| &mount.path).collect();
        assert_eq!(paths, ["/a"]);
        assert_eq!((large.cgroup.as_ref(), large.mounts.len()), (None, 0));
    }

    #[test]
    fn constraints_when_the_process_is_gone_are_not_known() {
        let folder = tempfile::tempdir().unwrap();
        let found = read(&SysRoot::at(folder.path()), 7, &[(2 << 20, vec![])]);
        assert_eq!(found.cpusets, Cpusets::default());
        assert_eq!(found.pools.len(), 1);
        assert_eq!(found.pools[0].cgroup, None);
    }

    #[test]
    fn constraints_when_read_of_ourselves_agree_with_themselves() {
        let found = read(&SysRoot::real(), std::process::id(), &[]);
        assert!(found.cpusets.agent.is_some());
        assert_eq!(found.cpusets.qemu, found.cpusets.agent);
    }
}
