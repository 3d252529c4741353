//! The control groups that a process is in (`/proc/PID/cgroup`, cgroups(7)).

use std::path::{Component, Path, PathBuf};

use crate::sysroot::{SMALL_FILE, SysRoot, SysRootError, read_text};

/// A control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ControlGroup {
    /// Where its hierarchy is mounted.
    pub(crate) mount: PathBuf,
    /// Its path in the hierarchy, without a slash at the begin; empty for the root.
    pub(crate) path: PathBuf,
    pub(crate) is_version_1: bool,
}

/// What `/proc/PID/cgroup` says.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    root: SysRoot,
    text: String,
}

impl Membership {
    /// That of process `pid`.
    pub(crate) fn read(root: &SysRoot, pid: u32) -> Result<Self, SysRootError> {
        let text = read_text(&root.process(pid, "cgroup"), SMALL_FILE)?;
        let root = root.clone();
        Ok(Self { root, text })
    }

    /// The group in the hierarchy of version 2; `None` if there is no such hierarchy, or if the group
    /// lies outside of the cgroup namespace of the agent.
    pub(crate) fn unified(&self) -> Option<ControlGroup> {
        let path = self.path_where(str::is_empty)?;
        // Where both versions are mounted, version 2 has a folder of its own.
        let beside = self.root.sys("fs/cgroup/unified");
        let mount = match beside.is_dir() {
            true => beside,
            false => self.root.sys("fs/cgroup"),
        };
        group(path, mount, false)
    }

    /// The group in the hierarchy that has this controller: of version 1, if the controller is in one.
    /// `None` as for [`Self::unified`].
    pub(crate) fn of_controller(&self, name: &str) -> Option<ControlGroup> {
        let own = |controllers: &str| controllers.split(',').any(|own| own == name);
        match self.path_where(own) {
            Some(path) => group(path, self.root.sys("fs/cgroup").join(name), true),
            None => self.unified(),
        }
    }

    /// The path in the first hierarchy with such controllers. Lines are `NUMBER:CONTROLLERS:PATH`,
    /// without controllers for version 2.
    fn path_where(&self, is_wanted: impl Fn(&str) -> bool) -> Option<&str> {
        self.text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            is_wanted(controllers).then_some(path)
        })
    }
}

fn group(path: &str, mount: PathBuf, is_version_1: bool) -> Option<ControlGroup> {
    let path = Path::new(path.strip_prefix('/').unwrap_or(path));
    // Outside of the namespace the path begins with dots, and would lead out of the mount.
    let is_plain = |part: Component| matches!(part, Component::Normal(_));
    path.components().all(is_plain).then(|| ControlGroup {
        mount,
        path: path.to_owned(),
        is_version_1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mount below `/r/sys/fs`, the path, and whether it is of version 1.
    fn told(group: Option<ControlGroup>) -> Option<(String, String, bool)> {
        let text = |path: &Path| path.display().to_string();
        group.map(|group| {
            let mount = group.mount.strip_prefix("/r/sys/fs").unwrap();
            (text(mount), text(&group.path), group.is_version_1)
        })
    }

    fn membership(text: &str) -> Membership {
        Membership {
            root: SysRoot::at(Path::new("/r")),
            text: text.to_owned(),
        }
    }

    #[test]
    fn group_when_versions_are_mixed_is_that_of_the_controllers_hierarchy() {
        let own = membership("12:memory:/x\n5:cpu,hugetlb:/vm\n0::/machine.slice/vm\n");
        let first = |mount: &str, path: &str, is_version_1| {
            Some((mount.to_owned(), path.to_owned(), is_version_1))
        };
        let unified = first("cgroup", "machine.slice/vm", false);
        assert_eq!(told(own.unified()), unified);
        assert_eq!(told(own.of_controller("io")), unified);
        let hugetlb = first("cgroup/hugetlb", "vm", true);
        assert_eq!(told(own.of_controller("hugetlb")), hugetlb);
        let root = membership("0::/\n").unified();
        assert_eq!(told(root), first("cgroup", "", false));
    }

    #[test]
    fn group_when_it_lies_outside_of_the_namespace_or_is_not_told_is_none() {
        assert_eq!(membership("0::/../../etc\n").unified(), None);
        let outside = membership("5:hugetlb:/..\n0::/vm\n");
        assert_eq!(outside.of_controller("hugetlb"), None);
        for text in ["", "what?\n", "1:cpu:/a\n"] {
            assert_eq!(membership(text).unified(), None, "{text}");
        }
    }
}
