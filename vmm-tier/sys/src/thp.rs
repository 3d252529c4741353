//! Splitting and making huge pages of another process. Neither changes what the memory holds.

use std::io;

use rustix::fd::AsRawFd as _;
use tier_core::{addr::BASE_PAGE, moves::Page};

use crate::{
    process::ProcessHandle,
    sysroot::{SysRoot, SysRootError, write_value},
};

/// A huge page can't be split.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// debugfs has no such file.
    #[error(
        "huge pages can't be split: mount debugfs (mount -t debugfs debugfs /sys/kernel/debug), and use a kernel \
         with CONFIG_TRANSPARENT_HUGEPAGE that is not locked down (/sys/kernel/security/lockdown)"
    )]
    Unavailable(#[source] SysRootError),
    /// The process is gone.
    #[error("process {pid} is gone")]
    Gone {
        /// The process.
        pid: u32,
    },
    /// The kernel refused.
    #[error("huge pages of process {pid} can't be split")]
    Kernel {
        /// The process.
        pid: u32,
        /// The kernel's answer.
        source: SysRootError,
    },
}

/// A range was not collapsed.
#[derive(Debug, thiserror::Error)]
pub enum CollapseError {
    /// A page of it could not be taken just now, or the range was unmapped since.
    #[error("a page of the range is in use")]
    Busy(#[source] io::Error),
    /// The node has no free huge page, or the control group may not have one.
    #[error("there is no free huge page")]
    NoMemory,
    /// The mapping may have no huge pages, or the kernel knows no such advice.
    #[error("the mapping may have no huge pages")]
    NotEligible,
    /// The process is gone.
    #[error("the process is gone")]
    Gone,
    /// The permission or the system call is missing.
    #[error(
        "huge pages can't be made: run the agent as root (CAP_SYS_ADMIN, CAP_SYS_NICE), on Linux 6.1 or later"
    )]
    Unavailable(#[source] io::Error),
}

impl From<io::Error> for CollapseError {
    /// By the error numbers of `madvise_collapse_errno` (`mm/khugepaged.c`) and of process_madvise(2).
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOMEM) => Self::NoMemory,
            Some(libc::EINVAL) => Self::NotEligible,
            Some(libc::ESRCH) => Self::Gone,
            Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => Self::Unavailable(error),
            _ => Self::Busy(error),
        }
    }
}

/// Asks the kernel to split the transparent huge page of a process into pages of 4 KiB, by debugfs
/// (`split_huge_pages_write` of `mm/huge_memory.c`). The kernel passes over a page that it can't lock or
/// isolate and that others hold, and does not say so: ask for its size afterwards.
///
/// # Errors
/// [`SplitError`].
pub fn split(root: &SysRoot, pid: u32, page: Page) -> Result<(), SplitError> {
    let path = root.sys("kernel/debug/split_huge_pages");
    // A single "1" would split all huge pages of the host.
    let (start, end) = (page.hva.0, page.hva.0.saturating_add(page.bytes));
    let range = format!("{pid},{start:#x},{end:#x}");
    write_value(&path, &range).map_err(|source| match source.errno() {
        Some(libc::ESRCH) => SplitError::Gone { pid },
        // Kernels before 5.13 know only the "1"; a locked-down kernel has no debugfs for anyone.
        Some(libc::EINVAL | libc::EPERM | libc::EACCES) => SplitError::Unavailable(source),
        _ if source.is_not_found() => SplitError::Unavailable(source),
        _ => SplitError::Kernel { pid, source },
    })
}

/// Asks the kernel to make 2 MiB of another process one huge page, by `process_madvise(2)` with
/// `MADV_COLLAPSE` (Linux 6.1; `CAP_SYS_ADMIN` for another process).
///
/// The kernel fills what is absent in the range with zeros: ask only where every page is present.
///
/// # Errors
/// [`CollapseError`], by the class of the kernel's answer.
pub fn collapse(process: &ProcessHandle, page: Page) -> Result<(), CollapseError> {
    debug_assert!(page.hva.0.is_multiple_of(BASE_PAGE));
    let start = std::ptr::without_provenance_mut(page.hva.0 as usize);
    let range = libc::iovec {
        iov_base: start,
        iov_len: page.bytes as usize,
    };
    let fd = process.fd().as_raw_fd();
    // SAFETY: process_madvise(2) reads one iovec, which outlives the call; its address is one of the
    // other process and is not dereferenced here. MADV_COLLAPSE moves what the pages hold to another
    // page, and changes nothing of it.
    let advised = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            fd,
            &raw const range,
            1_usize,
            libc::MADV_COLLAPSE,
            0_u32,
        )
    };
    match advised {
        -1 => Err(io::Error::last_os_error().into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tier_core::addr::{HUGE_PAGE, Hva};

    use super::*;

    const PAGE: Page = Page {
        hva: Hva(0x7f00_0020_0000),
        bytes: HUGE_PAGE,
    };

    #[test]
    fn split_when_asked_for_names_process_and_range_as_the_kernel_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let root = SysRoot::at(folder.path());
        let path = root.sys("kernel/debug/split_huge_pages");
        assert!(matches!(
            split(&root, 42, PAGE),
            Err(SplitError::Unavailable(_))
        ));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "").unwrap();
        split(&root, 42, PAGE).unwrap();
        let written = std::fs::read_to_string(&path).unwrap();
        assert_eq!(written.trim(), "42,0x7f0000200000,0x7f0000400000");
    }

    #[test]
    fn collapse_when_refused_is_classed_by_its_error_number() {
        let class = |errno| CollapseError::from(io::Error::from_raw_os_error(errno));
        for errno in [libc::EAGAIN, libc::EBUSY, libc::EFAULT] {
            assert!(matches!(class(errno), CollapseError::Busy(_)), "{errno}");
        }
        for errno in [libc::EPERM, libc::ENOSYS] {
            assert!(matches!(class(errno), CollapseError::Unavailable(_)));
        }
        assert!(matches!(class(libc::ENOMEM), CollapseError::NoMemory));
        assert!(matches!(class(libc::EINVAL), CollapseError::NotEligible));
        assert!(matches!(class(libc::ESRCH), CollapseError::Gone));
    }

    #[test]
    fn collapse_when_nothing_is_mapped_is_refused() {
        let process = ProcessHandle::open(std::process::id()).unwrap();
        let nowhere = Page {
            hva: Hva(HUGE_PAGE),
            ..PAGE
        };
        assert!(collapse(&process, nowhere).is_err());
    }
}
