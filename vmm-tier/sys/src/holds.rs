//! What keeps a process's memory in place: `VmPin` and `VmLck` of `/proc/PID/status`, and what it has
//! open.

use std::fs;

use tier_core::holds::Holds;

use crate::sysroot::{SMALL_FILE, SysRoot, SysRootError, read_text};

/// Open files that are looked at, at most: QEMU has some hundred.
const MOST_FILES: usize = 16 << 10;

/// Reads what keeps `guest_bytes` bytes of guest memory in place. A file that is closed meanwhile
/// counts as not open.
///
/// # Errors
/// [`SysRootError`] if the process is gone, or its open files may not be listed.
pub fn read(root: &SysRoot, pid: u32, guest_bytes: u64) -> Result<Holds, SysRootError> {
    let status = read_text(&root.process(pid, "status"), SMALL_FILE)?;
    let folder = root.process(pid, "fd");
    let files = fs::read_dir(&folder).map_err(|source| SysRootError::Read {
        path: folder,
        source,
    })?;
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    let targets = targets.map(|target| target.to_string_lossy().into_owned());
    let targets: Vec<String> = targets.take(MOST_FILES).collect();
    let targets = targets.iter().map(String::as_str);
    Ok(Holds::of(targets, &status, guest_bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tier_core::holds::Holder;

    use super::*;

    #[test]
    fn read_when_a_device_is_passed_through_finds_it() {
        let folder = tempfile::tempdir().unwrap();
        let process = folder.path().join("proc/7");
        fs::create_dir_all(process.join("fd")).unwrap();
        fs::write(process.join("status"), "VmLck:\t2048 kB\nVmPin:\tx kB\n").unwrap();
        for (fd, target) in [
            ("0", "/dev/null"),
            ("9", "/dev/vfio/vfio"),
            ("12", "anon_inode:[kvm-gmem]"),
        ] {
            symlink(target, process.join("fd").join(fd)).unwrap();
        }
        let holds = read(&SysRoot::at(folder.path()), 7, 4 << 20).unwrap();
        assert_eq!(holds.by, [Holder::Vfio]);
        assert_eq!((holds.pinned_bytes, holds.locked_bytes), (0, 2 << 20));
        assert!(holds.private && holds.reason.is_some());
        assert!(read(&SysRoot::at(folder.path()), 8, 0).is_err());
    }

    #[test]
    fn read_when_asked_of_ourselves_finds_nothing_pinned() {
        let holds = read(&SysRoot::real(), std::process::id(), 1 << 30).unwrap();
        assert_eq!((holds.pinned_bytes, holds.private), (0, false));
    }
}
