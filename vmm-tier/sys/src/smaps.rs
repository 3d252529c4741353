//! `/proc/PID/smaps`: what memory stands behind each mapping.

use crate::{
    maps::{Mapping, each_line, parse_line},
    sysroot::{ParseError, SysRoot, SysRootError, open},
};

/// A mapping and what backs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingMemory {
    /// The mapping.
    pub mapping: Mapping,
    /// The size in bytes of a page of the backing: 4 KiB also where huge pages may be mapped
    /// transparently; 2 MiB or 1 GiB for hugetlb.
    pub kernel_page_size: u64,
    /// Whether the backing is hugetlbfs.
    pub is_hugetlb: bool,
}

impl MappingMemory {
    const fn new(mapping: Mapping) -> Self {
        Self {
            mapping,
            kernel_page_size: 0,
            is_hugetlb: false,
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "KernelPageSize" => {
                let kib: u64 = value.strip_suffix("kB")?.trim().parse().ok()?;
                self.kernel_page_size = kib.checked_mul(1024)?;
            }
            "VmFlags" => self.is_hugetlb = value.split_ascii_whitespace().any(|flag| flag == "ht"),
            _ => {}
        }
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
    fn parse_when_there_is_hugetlb_and_thp_tells_them_apart() {
        let found = parse(TWO).unwrap();

        let backing = |memory: &MappingMemory| (memory.kernel_page_size, memory.is_hugetlb);
        let backings: Vec<_> = found.iter().map(backing).collect();
        assert_eq!(backings, [(2 << 20, true), (4096, false)]);
    }

    #[test]
    fn parse_when_a_value_is_no_number_names_the_line() {
        let text = "1000-2000 rw-p 00000000 00:00 0 \nKernelPageSize:  x kB\n";
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

        assert!(found.iter().any(|memory| memory.mapping.contains(start)));
        assert!(
            found
                .iter()
                .all(|m| m.kernel_page_size == 4096 && !m.is_hugetlb)
        );
    }
}
