//! `/proc/PID/pagemap`: the `PAGEMAP_SCAN` ioctl (Linux 6.7), which finds present pages and pages
//! mapped by whole huge entries without touching them; and the entries themselves, which hold frame
//! numbers.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::FileExt,
    },
};

use tier_core::addr::Hva;

use crate::sysroot::{SysRoot, SysRootError, open};

/// `_IOWR('f', 16, struct pm_scan_arg)` of include/uapi/linux/fs.h; the struct has 96 bytes.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// Ranges that one call returns at most; more are fetched by further calls.
const RANGES_A_CALL: usize = 512;
/// Calls for one scan at most: a guard against a kernel that does not get on.
const MAX_CALLS: usize = 1 << 20;

/// What a page is, as bits of `PAGE_IS_*` (include/uapi/linux/fs.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Categories(pub u64);

impl Categories {
    /// The page belongs to a file or to shared memory.
    pub const FILE: Self = Self(1 << 2);
    /// The page is present.
    pub const PRESENT: Self = Self(1 << 3);
    /// The page is swapped out.
    pub const SWAPPED: Self = Self(1 << 4);
    /// The page is the shared page of zeros.
    pub const ZERO: Self = Self(1 << 5);
    /// The page is mapped by a whole huge entry: a transparent huge page or hugetlb.
    pub const HUGE: Self = Self(1 << 6);

    /// Both sets together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every bit of `other` is in this set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A run of pages of the same categories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    /// The first byte.
    pub start: Hva,
    /// The first byte behind it.
    pub end: Hva,
    /// What was asked for of the pages in it.
    pub categories: Categories,
}

/// What the page table holds for one base page (Documentation/admin-guide/mm/pagemap.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageEntry(pub u64);

impl PageEntry {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;

    /// The entry of a present page at this frame.
    #[must_use]
    pub const fn present_at(frame: u64) -> Self {
        Self(Self::PRESENT | frame & Self::FRAME)
    }

    /// The number of the page's frame, if it is present. 0 if the kernel hides it from readers without
    /// `CAP_SYS_ADMIN`.
    #[must_use]
    #[inline]
    pub const fn frame(self) -> Option<u64> {
        if self.0 & Self::PRESENT == 0 {
            return None;
        }
        Some(self.0 & Self::FRAME)
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
#[derive(Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// The pagemap can't be opened or scanned.
#[derive(Debug, thiserror::Error)]
pub enum PagemapError {
    /// `/proc/PID/pagemap` can't be opened: the process is gone, or `CAP_SYS_PTRACE` is missing.
    #[error(
        "the page table of process {pid} can't be opened: run the agent as root or with CAP_SYS_PTRACE"
    )]
    Open {
        /// The process.
        pid: u32,
        /// What went wrong.
        source: SysRootError,
    },
    /// The entries can't be read: most likely the process ended.
    #[error("the page table of process {pid} can't be read at {start}")]
    Read {
        /// The process.
        pid: u32,
        /// Where the reading began.
        start: Hva,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The scan failed.
    #[error("the page table of process {pid} can't be scanned from {start}")]
    Scan {
        /// The process.
        pid: u32,
        /// Where the scan stood.
        start: Hva,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The open page table of a process.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    pid: u32,
}

impl Pagemap {
    /// Opens `/proc/PID/pagemap`.
    ///
    /// # Errors
    /// [`PagemapError::Open`].
    pub fn open(root: &SysRoot, pid: u32) -> Result<Self, PagemapError> {
        let file = open(&root.process(pid, "pagemap"))
            .map_err(|source| PagemapError::Open { pid, source })?;
        Ok(Self { file, pid })
    }

    /// Reads the entries of the base pages from `start` on, one for each place in `entries`.
    ///
    /// # Errors
    /// [`PagemapError::Read`].
    pub fn entries(&self, start: Hva, entries: &mut [PageEntry]) -> Result<(), PagemapError> {
        const WORDS: usize = 512;
        let mut bytes = [0; WORDS * 8];
        let mut offset = start.0 / 4096 * 8;
        for part in entries.chunks_mut(WORDS) {
            let bytes = &mut bytes[..part.len() * 8];
            self.file
                .read_exact_at(bytes, offset)
                .map_err(|source| PagemapError::Read {
                    pid: self.pid,
                    start,
                    source,
                })?;
            for (entry, word) in part.iter_mut().zip(bytes.as_chunks().0) {
                *entry = PageEntry(u64::from_ne_bytes(*word));
            }
            offset += bytes.len() as u64;
        }
        Ok(())
    }

    /// The runs of pages in `start .. start + len` that have all categories of `required`, each with
    /// those of `wanted` that it has. `None` if the kernel has no such scan (before 6.7).
    ///
    /// # Errors
    /// [`PagemapError::Scan`].
    pub fn scan(
        &self,
        start: Hva,
        len: u64,
        required: Categories,
        wanted: Categories,
    ) -> Result<Option<Vec<PageRange>>, PagemapError> {
        // Both ends must lie on a base page; the kernel refuses others.
        let mut at = start.align_down(4096).0;
        let end = start.0.saturating_add(len).next_multiple_of(4096);
        let mut found: Vec<PageRange> = Vec::new();
        let mut regions = vec![PageRegion::default(); RANGES_A_CALL];
        for _ in 0..MAX_CALLS {
            if at >= end {
                break;
            }
            let mut arguments = ScanArguments {
                size: size_of::<ScanArguments>() as u64,
                start: at,
                end,
                category_mask: required.0,
                return_mask: required.and(wanted).0,
                ..ScanArguments::default()
            };
            let filled = match scan_once(self.file.as_fd(), &mut arguments, &mut regions) {
                Ok(filled) => filled,
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(PagemapError::Scan {
                        pid: self.pid,
                        start: Hva(at),
                        source,
                    });
                }
            };
            for region in regions.iter().take(filled) {
                let range = PageRange {
                    start: Hva(region.start),
                    end: Hva(region.end),
                    categories: Categories(region.categories),
                };
                // A run that one call ended with goes on in the next.
                match found.last_mut() {
                    Some(last)
                        if last.end == range.start && last.categories == range.categories =>
                    {
                        last.end = range.end;
                    }
                    _ => found.push(range),
                }
            }
            if arguments.walk_end <= at {
                break;
            }
            at = arguments.walk_end;
        }
        Ok(Some(found))
    }

    /// Whether the page at an address is present and mapped by a whole huge entry. `None`: the kernel
    /// can't say.
    ///
    /// # Errors
    /// [`PagemapError::Scan`].
    pub fn is_huge(&self, address: Hva) -> Result<Option<bool>, PagemapError> {
        let start = address.align_down(4096);
        let mut arguments = ScanArguments {
            size: size_of::<ScanArguments>() as u64,
            start: start.0,
            end: start.0.saturating_add(4096),
            category_mask: Categories::PRESENT.and(Categories::HUGE).0,
            return_mask: Categories::PRESENT.0,
            ..ScanArguments::default()
        };
        let mut regions = [PageRegion::default()];
        match scan_once(self.file.as_fd(), &mut arguments, &mut regions) {
            Ok(filled) => Ok(Some(filled > 0)),
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => Ok(None),
            Err(source) => Err(PagemapError::Scan {
                pid: self.pid,
                start,
                source,
            }),
        }
    }

    /// The runs of pages mapped by whole huge entries. `None`: the kernel can't say.
    ///
    /// # Errors
    /// [`PagemapError::Scan`].
    pub fn huge_ranges(
        &self,
        start: Hva,
        len: u64,
    ) -> Result<Option<Vec<PageRange>>, PagemapError> {
        self.scan(
            start,
            len,
            Categories::PRESENT.and(Categories::HUGE),
            Categories::default(),
        )
    }

    /// The runs of present pages, each with whether it is huge or zero. `None`: the kernel can't say.
    ///
    /// # Errors
    /// [`PagemapError::Scan`].
    pub fn present_ranges(
        &self,
        start: Hva,
        len: u64,
    ) -> Result<Option<Vec<PageRange>>, PagemapError> {
        self.scan(
            start,
            len,
            Categories::PRESENT,
            Categories::HUGE.and(Categories::ZERO),
        )
    }
}

fn scan_once(
    fd: BorrowedFd<'_>,
    arguments: &mut ScanArguments,
    regions: &mut [PageRegion],
) -> io::Result<usize> {
    arguments.vec = regions.as_mut_ptr().expose_provenance() as u64;
    arguments.vec_len = regions.len() as u64;
    // SAFETY: the number belongs to a struct of this layout and size (96 bytes, stated in `size`);
    // the kernel writes walk_end into it and at most vec_len regions to vec, which is exclusively
    // borrowed for the call. No flag is set that would change the scanned process's memory.
    let filled = unsafe { libc::ioctl(fd.as_raw_fd(), PAGEMAP_SCAN, arguments) };
    match usize::try_from(filled) {
        Ok(filled) => Ok(filled),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn arguments_when_compared_with_the_ioctl_number_have_its_size() {
        // Bits 16 to 29 of an ioctl number are the size of its argument.
        assert_eq!(
            size_of::<ScanArguments>() as u64,
            (PAGEMAP_SCAN >> 16) & 0x3fff
        );
    }

    #[test]
    fn present_ranges_when_only_a_part_was_touched_finds_that_part() {
        let mut memory: Vec<u8> = Vec::with_capacity(64 << 20);
        // Two pages in the middle, and nothing else of the 64 MiB.
        let base = memory.as_ptr() as u64;
        let touched = (base + 32 * MIB).next_multiple_of(4096);
        let offset = usize::try_from(touched - base).unwrap();
        for byte in [0, 4096] {
            memory.spare_capacity_mut()[offset + byte].write(1);
        }
        let map = Pagemap::open(&SysRoot::real(), std::process::id()).unwrap();

        let Some(found) = map.present_ranges(Hva(touched - 4 * MIB), 8 * MIB).unwrap() else {
            eprintln!("SKIPPED: this kernel has no PAGEMAP_SCAN");
            return;
        };

        let covered = |address: u64| {
            found
                .iter()
                .any(|r| (r.start.0..r.end.0).contains(&address))
        };
        assert!(covered(touched) && covered(touched + 4096), "{found:?}");
        assert!(
            found
                .iter()
                .all(|range| range.categories.has(Categories::PRESENT))
        );
        // A huge page may cover up to 2 MiB around; 3 MiB away nothing was touched.
        assert!(
            !covered(touched - 3 * MIB) && !covered(touched + 3 * MIB),
            "{found:?}"
        );
    }

    #[test]
    fn scan_when_runs_are_many_returns_them_all() {
        let pages = 4 * RANGES_A_CALL as u64;
        let mut memory: Vec<u8> =
            Vec::with_capacity(usize::try_from((2 * pages + 2) * 4096).unwrap());
        let base = (memory.as_ptr() as u64).next_multiple_of(4096);
        let skew = usize::try_from(base - memory.as_ptr() as u64).unwrap();
        for page in 0..usize::try_from(pages).unwrap() {
            memory.spare_capacity_mut()[skew + page * 8192].write(1);
        }
        let map = Pagemap::open(&SysRoot::real(), std::process::id()).unwrap();

        let Some(found) = map.present_ranges(Hva(base), 2 * pages * 4096).unwrap() else {
            eprintln!("SKIPPED: this kernel has no PAGEMAP_SCAN");
            return;
        };

        // Every second page was touched; where the kernel used huge pages, runs are longer.
        let covered = |address: u64| {
            found
                .iter()
                .any(|r| (r.start.0..r.end.0).contains(&address))
        };
        assert!((0..pages).all(|page| covered(base + page * 8192)));
        assert!(found.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }

    #[test]
    fn open_when_process_is_gone_is_an_error() {
        assert!(Pagemap::open(&SysRoot::real(), 5_000_000).is_err());
    }
}
