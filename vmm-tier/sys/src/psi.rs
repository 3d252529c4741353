//! Pressure stall information: how long tasks wait for memory (Documentation/accounting/psi.rst).

use std::path::PathBuf;

use crate::{
    cgroup::Membership,
    sysroot::{ParseError, SMALL_FILE, SysRoot, SysRootError, read_text},
};

/// The files that tell the memory pressure of the host and of a process's control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPressure {
    host: PathBuf,
    group: Option<PathBuf>,
}

impl MemoryPressure {
    /// Those of process `pid`. A group without such a file (version 1, or the root of a container) has
    /// none.
    #[must_use]
    pub fn of(root: &SysRoot, pid: u32) -> Self {
        let group = Membership::read(root, pid).ok();
        let group = group.and_then(|membership| membership.unified());
        let file = group.map(|group| group.mount.join(group.path).join("memory.pressure"));
        Self {
            host: root.proc("pressure/memory"),
            group: file.filter(|file| file.exists()),
        }
    }

    /// The share of the last 10 s in which some task waited for memory: the larger of the host's and of
    /// the group's.
    ///
    /// # Errors
    /// [`SysRootError`] if the host's can't be read: the kernel was built without `CONFIG_PSI`, or
    /// started with `psi=0` (then a read gives `EOPNOTSUPP`).
    pub fn read(&self) -> Result<f64, SysRootError> {
        let read = |path: &PathBuf| {
            let text = read_text(path, SMALL_FILE)?;
            some_avg10(&text).map_err(|error| error.in_file(path))
        };
        let host = read(&self.host)?;
        // The group may have gone with its guest.
        let group = self.group.as_ref().and_then(|path| read(path).ok());
        Ok(group.map_or(host, |group| group.max(host)))
    }
}

/// From lines such as `some avg10=0.31 avg60=0.04 avg300=0.01 total=44904282`, in percent, to a share.
fn some_avg10(text: &str) -> Result<f64, ParseError> {
    let error = || ParseError::at(0, "no share of time in which some task waited");
    let line = text.lines().find_map(|line| line.strip_prefix("some "));
    let mut words = line.ok_or_else(error)?.split_ascii_whitespace();
    let percent = words.find_map(|word| word.strip_prefix("avg10="));
    let percent: f64 = percent
        .and_then(|text| text.parse().ok())
        .ok_or_else(error)?;
    match (0.0..=100.0).contains(&percent) {
        true => Ok(percent / 100.0),
        false => Err(error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_when_the_group_has_more_than_the_host_is_the_groups() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let root = SysRoot::at(folder.path());
        let line =
            |avg10| format!("some avg10={avg10} avg60=1.00 avg300=0.00 total=7\nfull avg10=0.00\n");
        assert!(
            MemoryPressure::of(&root, 70)
                .read()
                .unwrap_err()
                .is_not_found()
        );
        write("proc/pressure/memory", &line("1.50"));
        write("proc/70/cgroup", "12:memory:/x\n0::/machine.slice/vm\n");
        assert_eq!(MemoryPressure::of(&root, 70).read().unwrap(), 0.015);
        write(
            "sys/fs/cgroup/machine.slice/vm/memory.pressure",
            &line("22.00"),
        );
        let pressure = MemoryPressure::of(&root, 70);
        assert_eq!(pressure.read().unwrap(), 0.22);
        write("proc/pressure/memory", &line("44.00"));
        assert_eq!(pressure.read().unwrap(), 0.44);
        std::fs::remove_dir_all(folder.path().join("sys/fs/cgroup/machine.slice/vm")).unwrap();
        assert_eq!(pressure.read().unwrap(), 0.44, "the group is gone");
    }

    #[test]
    fn pressure_when_the_text_is_garbage_is_an_error() {
        for text in [
            "",
            "some",
            "some avg10=x",
            "full avg10=1.0",
            "some avg10=-1",
            "some avg10=101",
            "some avg10=nan",
        ] {
            assert!(some_avg10(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pressure_when_read_on_this_host_is_a_share_or_says_why_not() {
        match MemoryPressure::of(&SysRoot::real(), std::process::id()).read() {
            Ok(share) => assert!((0.0..=1.0).contains(&share)),
            Err(error) => {
                assert!(error.to_string().contains("pressure"), "{error}");
                eprintln!("SKIPPED: {error}");
            }
        }
    }
}
