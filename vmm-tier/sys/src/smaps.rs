//! `/proc/PID/smaps`: what memory stands behind each mapping.

use crate::{
    maps::{Mapping, each_line, parse_line},
    sysroot::{ParseError, SysRoot, SysRootError, open},
};

/// A mapping and its memory. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingMemory {
    /// The mapping.
    pub mapping: Mapping,
    /// The size of a page of the backing: 4 KiB also where huge pages may be mapped
    /// transparently; 2 MiB or 1 GiB for hugetlb.
    pub kernel_page_size: u64,
    /// Resident bytes; always 0 for hugetlb.
    pub rss: u64,
    /// Resident bytes of hugetlb pages that several processes map.
    pub shared_hugetlb: u64,
    /// Resident bytes of hugetlb pages that only this process maps.
    pub private_hugetlb: u64,
    /// Bytes of anonymous memory under transparent huge pages.
    pub anon_huge: u64,
    /// Bytes of shmem mapped by whole huge pages.
    pub shmem_huge: u64,
    /// Bytes of file pages mapped by whole huge pages.
    pub file_huge: u64,
    /// Bytes locked with `mlock`.
    pub locked: u64,
    /// Two-letter flags: `ht` hugetlb, `hg`/`nh` madvise for and against huge pages, `mg` mergeable,
    /// `lo` locked …
    pub flags: Vec<String>,
}

impl MappingMemory {
    fn new(mapping: Mapping) -> Self {
        Self {
            mapping,
            kernel_page_size: 0,
            rss: 0,
            shared_hugetlb: 0,
            private_hugetlb: 0,
            anon_huge: 0,
            shmem_huge: 0,
            file_huge: 0,
            locked: 0,
            flags: Vec::new(),
        }
    }

    /// Whether the mapping has this flag, such as `ht`.
    #[must_use]
    pub fn has_flag(&self, flag: &str) -> bool {
        self.flags.iter().any(|own| own == flag)
    }

    /// Whether the backing is hugetlbfs.
    #[must_use]
    pub fn is_hugetlb(&self) -> bool {
        self.has_flag("ht")
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        let field = match key {
            "KernelPageSize" => &mut self.kernel_page_size,
            "Rss" => &mut self.rss,
            "Shared_Hugetlb" => &mut self.shared_hugetlb,
            "Private_Hugetlb" => &mut self.private_hugetlb,
            "AnonHugePages" => &mut self.anon_huge,
            "ShmemPmdMapped" => &mut self.shmem_huge,
            "FilePmdMapped" => &mut self.file_huge,
            "Locked" => &mut self.locked,
            "VmFlags" => {
                self.flags = value.split_ascii_whitespace().map(str::to_owned).collect();
                return Some(());
            }
            _ => return Some(()),
        };
        *field = value
            .strip_suffix("kB")?
            .trim()
            .parse::<u64>()
            .ok()?
            .checked_mul(1024)?;
        Some(())
    }
}

/// Takes smaps line by line; holds only the mappings for which `keep` is true.
struct Parser<F> {
    keep: F,
    found: Vec<MappingMemory>,
    in_kept: bool,
}

impl<F: Fn(&Mapping) -> bool> Parser<F> {
    fn line(&mut self, index: usize, line: &str) -> Result<bool, ParseError> {
        if let Some(mapping) = parse_line(line) {
            self.in_kept = (self.keep)(&mapping);
            if self.in_kept {
                self.found.push(MappingMemory::new(mapping));
            }
            return Ok(true);
        }
        let malformed = || ParseError::at(index, "neither a mapping nor a value stands here");
        let (key, value) = line.split_once(':').ok_or_else(malformed)?;
        if let (true, Some(current)) = (self.in_kept, self.found.last_mut()) {
            current.set(key, value.trim()).ok_or_else(malformed)?;
        }
        Ok(true)
    }
}

/// Parses the text of an smaps file.
///
/// # Errors
/// [`ParseError`] with the line.
pub fn parse(text: &str) -> Result<Vec<MappingMemory>, ParseError> {
    let mut parser = Parser {
        keep: |_: &Mapping| true,
        found: Vec::new(),
        in_kept: false,
    };
    for (index, line) in text.lines().enumerate() {
        parser.line(index, line)?;
    }
    Ok(parser.found)
}

/// Reads what stands behind the mappings of a process for which `keep` is true. The kernel walks the
/// page tables of *every* mapping for this, under the mmap lock: 70 ns a page, more than a second for 64
/// GiB of 4 KiB pages. Read it for mappings that are new, and [`maps`](crate::maps) to see which these
/// are.
///
/// # Errors
/// [`SysRootError`]; see [`SysRootError::is_process_gone`].
pub fn read(
    root: &SysRoot,
    pid: u32,
    keep: impl Fn(&Mapping) -> bool,
) -> Result<Vec<MappingMemory>, SysRootError> {
    let path = root.process(pid, "smaps");
    let mut parser = Parser {
        keep,
        found: Vec::new(),
        in_kept: false,
    };
    each_line(open(&path)?, &path, |index, line| parser.line(index, line))?;
    Ok(parser.found)
}

#[cfg(test)]
mod tests {
    use tier_core::addr::Hva;

    use super::*;

    const TWO: &str = include_str!("../tests/data/smaps-hugetlb");

    #[test]
    fn parse_when_hugetlb_counts_its_pages_as_resident() {
        let found = parse(TWO).unwrap();

        let huge = &found[0];
        assert!(huge.is_hugetlb());
        assert_eq!((huge.kernel_page_size, huge.rss), (2 << 20, 0));
        assert_eq!(huge.shared_hugetlb + huge.private_hugetlb, 8 << 20);
    }

    #[test]
    fn parse_when_thp_is_mapped_tells_its_bytes() {
        let found = parse(TWO).unwrap();

        assert_eq!(
            (found[1].kernel_page_size, found[1].anon_huge),
            (4096, 4 << 20)
        );
        assert!(found[1].has_flag("hg") && !found[1].is_hugetlb());
    }

    #[test]
    fn parse_when_a_value_is_no_number_names_the_line() {
        let text = "1000-2000 rw-p 00000000 00:00 0 \nRss:  x kB\n";
        assert_eq!(parse(text).unwrap_err().line, 2);
    }

    #[test]
    fn read_when_asked_for_ourselves_finds_touched_memory() {
        let touched = vec![1u8; 1 << 20];
        let start = Hva(touched.as_ptr() as u64);
        let end = Hva(start.0 + (1 << 20));

        let found = read(&SysRoot::real(), std::process::id(), |mapping| {
            mapping.start < end && start < mapping.end
        })
        .unwrap();

        let resident: u64 = found.iter().map(|mapping| mapping.rss).sum();
        assert!(resident >= 1 << 20, "{resident} bytes");
        assert!(found.iter().all(|m| m.kernel_page_size == 4096));
    }
}
