//! Guest-physical memory: where it lies, and which frame a process's address is in.

use std::collections::HashMap;

use anyhow::Context;
use tier_core::{
    addr::{BASE_PAGE, Gpa, Hva},
    sample::AccessKind,
};
use tier_sys::{
    pagemap::{PageEntry, Pagemap},
    sysroot::{SMALL_FILE, SysRoot, read_text},
};

/// What lies below belongs to firmware; the host does not tier it.
const LOWEST: u64 = 1 << 20;
/// Pages near enough to be looked up by one read.
const NEIGHBOURS: u64 = 256;
/// Processes whose page tables are kept open.
const MAX_OPEN: usize = 64;

/// The guest's RAM as (first address, bytes), rising; nothing if addresses are hidden from us.
pub(super) fn system_ram(root: &SysRoot) -> anyhow::Result<Vec<(u64, u64)>> {
    let path = root.proc("iomem");
    let text = read_text(&path, SMALL_FILE).context("where memory lies can't be read")?;
    Ok(text.lines().filter_map(ram_of_line).collect())
}

/// `00100000-18ffffff : System RAM`, not indented, without what lies below 1 MiB.
fn ram_of_line(line: &str) -> Option<(u64, u64)> {
    let (range, name) = line.split_once(" : ")?;
    if name != "System RAM" || range.starts_with(' ') {
        return None;
    }
    let (first, last) = range.split_once('-')?;
    let first = u64::from_str_radix(first, 16).ok()?.max(LOWEST);
    let end = u64::from_str_radix(last, 16).ok()?.checked_add(1)?;
    // Without CAP_SYS_ADMIN all addresses are told as 0.
    (end > first).then(|| (first, end - first))
}

/// An access at an address of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) pid: u32,
    pub(super) address: u64,
    pub(super) kind: AccessKind,
}

/// Finds the frames of addresses of processes.
#[derive(Debug)]
pub(super) struct Frames {
    root: SysRoot,
    open: HashMap<u32, Pagemap>,
}

impl Frames {
    pub(super) fn new(root: &SysRoot) -> Self {
        Self {
            root: root.clone(),
            open: HashMap::new(),
        }
    }

    /// The guest-physical address of an address of a process; `None` if the process is gone, the page
    /// is not present, or its frame is hidden.
    pub(super) fn gpa(&mut self, pid: u32, address: u64) -> Option<Gpa> {
        let mut found = None;
        let place = Place {
            pid,
            address,
            kind: AccessKind::Any,
        };
        self.each(&mut [place], |_, gpa| found = gpa);
        found
    }

    /// Looks many addresses of processes up, in any order; sorts them, as neighbours share one read.
    pub(super) fn each(&mut self, wanted: &mut [Place], mut take: impl FnMut(&Place, Option<Gpa>)) {
        wanted.sort_unstable_by_key(|place| (place.pid, place.address));
        let mut entries = [PageEntry::default(); NEIGHBOURS as usize];
        let mut rest = &*wanted;
        while let Some(&Place { pid, address, .. }) = rest.first() {
            let base = address / BASE_PAGE;
            let near = |own: &&Place| own.pid == pid && own.address / BASE_PAGE - base < NEIGHBOURS;
            let count = rest.iter().take_while(near).count();
            let (group, behind) = rest.split_at(count);
            rest = behind;
            let last = group.last().map_or(address, |own| own.address) / BASE_PAGE;
            // Less than NEIGHBOURS.
            let entries = &mut entries[..=(last - base) as usize];
            let read = self.read(pid, Hva(base * BASE_PAGE), entries);
            for place in group {
                let entry = entries[(place.address / BASE_PAGE - base) as usize];
                let frame = entry.frame().filter(|&frame| read && frame != 0);
                let offset = place.address % BASE_PAGE;
                take(place, frame.map(|frame| Gpa(frame * BASE_PAGE + offset)));
            }
        }
    }

    /// Reads entries of a process's page table; `false` if it is gone.
    fn read(&mut self, pid: u32, start: Hva, entries: &mut [PageEntry]) -> bool {
        if !self.open.contains_key(&pid) {
            if self.open.len() >= MAX_OPEN {
                self.open.clear();
            }
            let Ok(map) = Pagemap::open(&self.root, pid) else {
                return false;
            };
            self.open.insert(pid, map);
        }
        let read = self.open.get(&pid).map(|map| map.entries(start, entries));
        let is_there = matches!(read, Some(Ok(())));
        if !is_there {
            // It ended, or its number went to another.
            self.open.remove(&pid);
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_when_iomem_lists_it_leaves_out_what_is_low_or_inner() {
        let text = "00001000-0009fbff : System RAM\n\
                    00100000-18ffffff : System RAM\n  01000000-01ffffff : Kernel code\n\
                    fee00000-fee00fff : Local APIC\n\
                    100000000-13fffffff : System RAM\n  100000000-1000fffff : System RAM\n";
        let ram: Vec<_> = text.lines().filter_map(ram_of_line).collect();
        let expected = [(0x10_0000, 0x18f0_0000), (0x1_0000_0000, 0x4000_0000)];
        assert_eq!(ram, expected);
        assert_eq!(ram_of_line("00000000-00000000 : System RAM"), None);
    }

    #[test]
    fn gpa_when_a_page_was_written_is_in_memory() {
        let root = SysRoot::real();
        let ram = system_ram(&root).unwrap();
        if ram.is_empty() {
            eprintln!("SKIPPED: addresses in /proc/iomem are hidden without CAP_SYS_ADMIN");
            return;
        }
        let page = vec![7_u8; 8192];
        let address = page.as_ptr().expose_provenance() as u64;
        let mut frames = Frames::new(&root);
        let Some(gpa) = frames.gpa(std::process::id(), address) else {
            eprintln!("SKIPPED: frames are hidden without CAP_SYS_ADMIN");
            return;
        };
        assert_eq!(gpa.0 % BASE_PAGE, address % BASE_PAGE);
        let inside = |&(start, len): &(u64, u64)| (start..start + len).contains(&gpa.0);
        assert!(ram.iter().any(inside), "{gpa:?}");
        assert_eq!(frames.gpa(5_000_000, address), None);
        // Together, in any order, with a stranger between them.
        let pid = std::process::id();
        let place = |pid, address| Place {
            pid,
            address,
            kind: AccessKind::Store,
        };
        let mut wanted = [
            place(pid, address + 4096),
            place(5_000_000, 0),
            place(pid, address),
        ];
        let mut found = Vec::new();
        frames.each(&mut wanted, |place, gpa| found.push((*place, gpa)));
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], (place(pid, address), Some(gpa)));
        assert!(found[1].1.is_some() && found[2].1.is_none(), "{found:?}");
        assert_eq!(page[0], 7);
    }
}
