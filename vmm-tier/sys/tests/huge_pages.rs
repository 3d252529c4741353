//! Sizes of pages on the running kernel: memory of this process on huge pages, before and after they are
//! split.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use tier_core::{
    addr::{BASE_PAGE, HUGE_PAGE, Hva},
    moves::Page,
};
use tier_sys::{
    folios::{self, Folios},
    pagemap::Pagemap,
    process::ProcessHandle,
    sysroot::SysRoot,
    thp,
    thp_events::ThpWatch,
};

/// Memory of this process that begins and ends on a border of 2 MiB. It is never unmapped: tests cut
/// pieces out of it.
struct Memory {
    start: Hva,
    bytes: usize,
}

impl Memory {
    /// Maps so many times 2 MiB, advises the kernel, and touches all of it.
    fn touched(huge_pages: usize, advice: Advice) -> Self {
        Self::mapped(huge_pages, 0..huge_pages * 512, advice)
    }

    /// Maps so many frames from `first` on in 2 MiB, for folios.
    fn touched_part(first: usize, frames: usize) -> Self {
        Self::mapped(1, first..first + frames, Advice::LinuxHugepage)
    }

    fn mapped(huge_pages: usize, frames: std::ops::Range<usize>, advice: Advice) -> Self {
        let all = (huge_pages + 1) * HUGE_PAGE as usize;
        let flags = MapFlags::PRIVATE;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let mapped =
            unsafe { mmap_anonymous(std::ptr::null_mut(), all, protection, flags) }.unwrap();
        let skip = mapped.align_offset(HUGE_PAGE as usize) + frames.start * 4096;
        let start = mapped.cast::<u8>().wrapping_add(skip);
        let bytes = frames.len() * 4096;
        // SAFETY: the advice is for memory that was mapped above and that nobody else knows.
        unsafe { madvise(start.cast(), bytes, advice) }.unwrap();
        for (number, at) in (0..bytes).step_by(4096).enumerate() {
            let at = start.wrapping_add(at);
            // SAFETY: the byte lies in the mapping, which is writable and nobody else's.
            unsafe { at.write_volatile(number as u8) };
        }
        Self {
            start: Hva(start.expose_provenance() as u64),
            bytes,
        }
    }

    /// Each frame holds what was written into it.
    fn assert_content(&self) {
        for (number, at) in (0..self.bytes).step_by(4096).enumerate() {
            let at = std::ptr::with_exposed_provenance::<u8>(self.start.0 as usize + at);
            // SAFETY: the byte lies in this mapping, and was written before.
            let found = unsafe { at.read_volatile() };
            assert_eq!(found, number as u8, "frame {number}");
        }
    }

    /// Unmaps a frame.
    fn cut(&self, frame: usize) {
        assert!(frame * 4096 < self.bytes);
        let at = self.start.0 as usize + frame * 4096;
        let at = std::ptr::with_exposed_provenance_mut(at);
        // SAFETY: the frame lies in this mapping, of which only its address is kept.
        unsafe { munmap(at, 4096) }.unwrap();
    }

    /// Has the kernel make huge pages of all of it.
    fn collapse(&self) -> std::io::Result<()> {
        let start = std::ptr::with_exposed_provenance_mut(self.start.0 as usize);
        // SAFETY: the advice is for memory of this mapping, of which only its address is kept; its
        // content stays.
        let done = unsafe { libc::madvise(start, self.bytes, libc::MADV_COLLAPSE) };
        match done {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    fn page(&self, first: u64, frames: u64) -> Page {
        Page {
            hva: Hva(self.start.0 + first * BASE_PAGE),
            bytes: frames * BASE_PAGE,
        }
    }
}

fn pagemap() -> Pagemap {
    Pagemap::open(&SysRoot::real(), std::process::id()).unwrap()
}

/// Memory on huge pages, or `None` with the reason told.
fn on_huge_pages(map: &Pagemap) -> Option<Memory> {
    let memory = Memory::touched(2, Advice::LinuxHugepage);
    match map.is_huge(memory.start) {
        Ok(Some(true)) => Some(memory),
        Ok(Some(false)) => {
            eprintln!("SKIPPED: this host gives no transparent huge pages");
            None
        }
        Ok(None) => {
            eprintln!("SKIPPED: this kernel has no PAGEMAP_SCAN");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn huge_page_when_a_frame_is_unmapped_is_a_folio_that_is_mapped_frame_by_frame() {
    let map = pagemap();
    let Some(memory) = on_huge_pages(&map) else {
        return;
    };
    let middle = Hva(memory.start.0 + 300 * BASE_PAGE + 9);
    assert_eq!(map.is_huge(middle).unwrap(), Some(true));

    memory.cut(511);

    assert_eq!(
        map.is_huge(middle).unwrap(),
        Some(false),
        "its size is read anew"
    );
    let second = Hva(memory.start.0 + HUGE_PAGE);
    assert_eq!(map.is_huge(second).unwrap(), Some(true));
    let Ok(folios) = Folios::open(&SysRoot::real()) else {
        eprintln!("SKIPPED: /proc/kpageflags belongs to root");
        return;
    };
    let found = folios.find(&map, memory.start, HUGE_PAGE).unwrap();
    if found.is_empty() {
        eprintln!("SKIPPED: the kernel hides frame numbers, or has split the huge page already");
        return;
    }
    assert_eq!(found, [memory.page(0, 511)]);
    // A range that begins inside it has the rest of it.
    let rest = folios.find(&map, memory.page(500, 1).hva, 12 * BASE_PAGE);
    assert_eq!(rest.unwrap(), [memory.page(500, 11)]);
}

#[test]
fn small_pages_when_looked_at_are_no_folios() {
    let map = pagemap();
    let Ok(folios) = Folios::open(&SysRoot::real()) else {
        eprintln!("SKIPPED: /proc/kpageflags belongs to root");
        return;
    };
    let memory = Memory::touched(1, Advice::LinuxNoHugepage);
    assert_ne!(map.is_huge(memory.start).unwrap(), Some(true));
    assert_eq!(folios.find(&map, memory.start, HUGE_PAGE).unwrap(), []);
}

#[test]
fn collapse_when_followed_is_counted_by_the_kernels_word_for_it() {
    let root = SysRoot::real();
    let map = pagemap();
    let watch = match ThpWatch::start(&root) {
        Ok(watch) => watch,
        Err(error) => return eprintln!("SKIPPED: {error}"),
    };
    let memory = Memory::touched(1, Advice::Normal);
    if map.is_huge(memory.start).unwrap() != Some(false) {
        return eprintln!("SKIPPED: this host gives huge pages at the first touch");
    }
    if let Err(error) = memory.collapse() {
        return eprintln!("SKIPPED: this kernel did not collapse the memory: {error}");
    }
    assert_eq!(map.is_huge(memory.start).unwrap(), Some(true));

    let found = watch.finish();

    let succeeded = found.collapses.get("succeeded").copied().unwrap_or(0);
    assert!(succeeded >= 1, "{found:?}");
    assert!(found.scans.contains_key("succeeded"), "{found:?}");
}

#[test]
fn huge_page_when_split_from_outside_keeps_its_content() {
    let map = pagemap();
    let root = SysRoot::real();
    let Some(memory) = on_huge_pages(&map) else {
        return;
    };
    let first = memory.page(0, 512);
    if let Err(error) = thp::split(&root, std::process::id(), first) {
        return eprintln!("SKIPPED: {error}");
    }
    assert_eq!(map.is_huge(first.hva).unwrap(), Some(false));
    let second = Hva(first.hva.0 + HUGE_PAGE);
    assert_eq!(map.is_huge(second).unwrap(), Some(true), "it was not named");
    if let Ok(folios) = Folios::open(&root) {
        assert_eq!(folios.find(&map, first.hva, HUGE_PAGE).unwrap(), []);
    }
    memory.assert_content();
}

#[test]
fn small_pages_when_collapsed_from_outside_are_a_huge_page_of_the_same_content() {
    let map = pagemap();
    let memory = Memory::touched(1, Advice::Normal);
    if map.is_huge(memory.start).unwrap() != Some(false) {
        return eprintln!("SKIPPED: this host gives huge pages at the first touch");
    }
    let process = ProcessHandle::open(std::process::id()).unwrap();
    if let Err(error) = thp::collapse(&process, memory.page(0, 512)) {
        return eprintln!("SKIPPED: this kernel did not collapse the memory: {error}");
    }
    assert_eq!(map.is_huge(memory.start).unwrap(), Some(true));
    memory.assert_content();
}

#[test]
fn folios_of_64_kib_when_the_host_gives_them_are_found() {
    let map = pagemap();
    let (Ok(folios), true) = (
        Folios::open(&SysRoot::real()),
        folios::may_exist(&SysRoot::real()),
    ) else {
        return eprintln!(
            "SKIPPED: /proc/kpageflags belongs to root, or every size of folios is never"
        );
    };
    // Too little for a huge page.
    let memory = Memory::touched_part(16, 256);
    let found = folios
        .find(&map, memory.start, memory.bytes as u64)
        .unwrap();
    if found.is_empty() {
        return eprintln!("SKIPPED: the kernel gave no folio of several frames");
    }
    let bytes: u64 = found.iter().map(|page| page.bytes).sum();
    assert!(bytes <= memory.bytes as u64, "{found:?}");
    assert!(
        found.iter().all(|page| page.bytes >= 2 * BASE_PAGE),
        "{found:?}"
    );
    let ends = found.iter().map(|page| page.hva.0 + page.bytes);
    assert!(
        ends.zip(found.iter().skip(1))
            .all(|(end, next)| end <= next.hva.0)
    );
    eprintln!("{} folios of {:?} bytes", found.len(), found[0].bytes);
}
