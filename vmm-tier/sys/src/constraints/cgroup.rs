//! Limits of the hugetlb controller of cgroups, version 2 and 1 (mm/hugetlb_cgroup.c).

use std::path::{Path, PathBuf};

use tier_core::constraints::{CgroupCount, CgroupLimit};

use crate::{
    cgroup::{ControlGroup, Membership},
    sysroot::{SysRoot, SysRootError, read_optional},
};

/// Control groups around a process that are looked at, at most.
const MOST_GROUPS: usize = 32;
/// What version 1 writes where there is no limit is at least this (`PAGE_COUNTER_MAX` pages, rounded to
/// pages of the pool).
const UNLIMITED: u64 = i64::MAX as u64 - (16 << 30);

/// The control group of a process, and those around it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Groups {
    /// Where the hierarchy is mounted.
    mount: PathBuf,
    /// The control groups from the process' own outwards, as paths in the hierarchy.
    paths: Vec<PathBuf>,
    is_version_1: bool,
}

/// The control groups of a process with the hugetlb controller; none if it has none.
pub(super) fn of_process(root: &SysRoot, pid: u32) -> Result<Groups, SysRootError> {
    let group = Membership::read(root, pid)?.of_controller("hugetlb");
    Ok(group.map(Groups::around).unwrap_or_default())
}

impl Groups {
    fn around(group: ControlGroup) -> Self {
        let paths = group.path.ancestors().take(MOST_GROUPS);
        Self {
            paths: paths.map(Path::to_owned).collect(),
            mount: group.mount,
            is_version_1: group.is_version_1,
        }
    }
}

/// Of all limits on pages of `page_size` bytes that which leaves least; the innermost of several that
/// leave as much. Files that are not there, as in the root group, bound nothing.
pub(super) fn tightest(groups: &Groups, page_size: u64) -> Option<CgroupLimit> {
    let size = size_name(page_size);
    let mut all = Vec::new();
    for path in &groups.paths {
        for (count, infix) in [(CgroupCount::Used, ""), (CgroupCount::Reserved, "rsvd.")] {
            let (limit, used) = match groups.is_version_1 {
                true => ("limit_in_bytes", "usage_in_bytes"),
                false => ("max", "current"),
            };
            let value = |name: &str| {
                let file = format!("hugetlb.{size}.{infix}{name}");
                let text = read_optional(&groups.mount.join(path).join(file)).ok()??;
                text.parse::<u64>().ok()
            };
            // "max" is no number.
            let Some(limit_bytes) = value(limit).filter(|&limit| limit < UNLIMITED) else {
                continue;
            };
            all.push(CgroupLimit {
                cgroup: Path::new("/").join(path).display().to_string(),
                count,
                limit_bytes,
                used_bytes: value(used).unwrap_or(0),
            });
        }
    }
    all.into_iter().min_by_key(CgroupLimit::left_bytes)
}

/// How the controller's files name a page size (`mem_fmt`, mm/hugetlb_cgroup.c).
fn size_name(page_size: u64) -> String {
    match page_size {
        1_073_741_824.. => format!("{}GB", page_size >> 30),
        1_048_576.. => format!("{}MB", page_size >> 20),
        _ => format!("{}KB", page_size >> 10),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, SysRoot) {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let root = SysRoot::at(folder.path());
        (folder, root)
    }

    #[test]
    fn limit_when_an_outer_group_leaves_less_is_the_outer_ones() {
        let (_folder, root) = tree(&[
            ("proc/7/cgroup", "0::/machine.slice/vm.scope\n"),
            (
                "sys/fs/cgroup/machine.slice/vm.scope/hugetlb.2MB.max",
                "1073741824\n",
            ),
            (
                "sys/fs/cgroup/machine.slice/vm.scope/hugetlb.2MB.current",
                "2097152\n",
            ),
            (
                "sys/fs/cgroup/machine.slice/vm.scope/hugetlb.2MB.rsvd.max",
                "max\n",
            ),
            ("sys/fs/cgroup/machine.slice/hugetlb.2MB.max", "max\n"),
            (
                "sys/fs/cgroup/machine.slice/hugetlb.2MB.rsvd.max",
                "8388608\n",
            ),
            (
                "sys/fs/cgroup/machine.slice/hugetlb.2MB.rsvd.current",
                "6291456\n",
            ),
        ]);
        let groups = of_process(&root, 7).unwrap();
        let limit = tightest(&groups, 2 << 20).unwrap();
        assert_eq!(
            limit,
            CgroupLimit {
                cgroup: "/machine.slice".to_owned(),
                count: CgroupCount::Reserved,
                limit_bytes: 8 << 20,
                used_bytes: 6 << 20,
            }
        );
        assert_eq!(limit.left_bytes(), 2 << 20);
        assert_eq!(tightest(&groups, 1 << 30), None);
    }

    #[test]
    fn limit_when_cgroups_are_of_version_1_is_read_and_a_huge_one_is_none() {
        let (_folder, root) = tree(&[
            ("proc/7/cgroup", "5:cpu,hugetlb:/vm\n0::/\n"),
            (
                "sys/fs/cgroup/hugetlb/vm/hugetlb.1GB.limit_in_bytes",
                "2147483648\n",
            ),
            (
                "sys/fs/cgroup/hugetlb/vm/hugetlb.1GB.usage_in_bytes",
                "1073741824\n",
            ),
            (
                "sys/fs/cgroup/hugetlb/vm/hugetlb.2MB.limit_in_bytes",
                "9223372036854771712\n",
            ),
        ]);
        let groups = of_process(&root, 7).unwrap();
        let limit = tightest(&groups, 1 << 30).unwrap();
        assert_eq!(
            (limit.cgroup.as_str(), limit.left_bytes()),
            ("/vm", 1 << 30)
        );
        assert_eq!(tightest(&groups, 2 << 20), None);
    }

    #[test]
    fn groups_when_the_text_is_hostile_stay_below_the_mount_and_are_bounded() {
        let groups = |text: &str| {
            let (_folder, root) = tree(&[("proc/7/cgroup", text)]);
            of_process(&root, 7).unwrap()
        };
        assert_eq!(groups("0::/../../etc\n").paths, Vec::<PathBuf>::new());
        let deep = format!("0::{}\n", "/x".repeat(500));
        assert_eq!(groups(&deep).paths.len(), MOST_GROUPS);
        assert_eq!(groups("what?\n::\n").paths, [PathBuf::new()]);
        assert_eq!(groups(""), Groups::default());
    }

    #[test]
    fn size_names_are_the_kernels() {
        let names = [64 << 10, 2 << 20, 1 << 30, 16 << 30].map(size_name);
        assert_eq!(names, ["64KB", "2MB", "1GB", "16GB"]);
    }
}
