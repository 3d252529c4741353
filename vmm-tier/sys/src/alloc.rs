//! The program's allocator: the system's, which asks for huge pages under large blocks.
//!
//! The heat of a large guest is a gigabyte that samples touch at random. In 4 KiB pages each sample is a miss
//! of the TLB, and its page walk another of the caches; in huge pages a thousand entries reach all of it.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ffi::c_void,
};

use rustix::{
    mm::{Advice, madvise},
    param::page_size,
};

/// Blocks from this size on get huge pages: what the TLB reaches in 4 KiB pages (2048 entries, 8 MiB),
/// less what others need of it. Smaller ones would waste memory at their ends for little.
const LARGE: usize = 4 << 20;

/// The system's allocator. Asks for transparent huge pages under blocks of 4 MiB and more, as far as the
/// host gives them (`/sys/kernel/mm/transparent_hugepage/enabled` is `madvise` or `always`).
#[derive(Clone, Copy, Debug, Default)]
pub struct HugePages;

// SAFETY: every call is the system allocator's, with the caller's own arguments; advice changes neither
// addresses nor contents.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises what `System` demands: the layout's size is not 0.
        advise(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        advise(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises what `System` demands: the block is of this allocator, whose blocks
        // are all the system's, and of this layout; the new size is not 0 and doesn't overflow.
        advise(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Asks for huge pages in the whole pages of a block, if it is large. Returns the block.
#[inline]
fn advise(block: *mut u8, size: usize) -> *mut u8 {
    if size >= LARGE && !block.is_null() {
        advise_large(block, size);
    }
    block
}

#[cold]
fn advise_large(block: *mut u8, size: usize) {
    let page = page_size();
    let skip = block.align_offset(page);
    let len = size.saturating_sub(skip) / page * page;
    let start = block.wrapping_add(skip).cast::<c_void>();
    // SAFETY: MADV_HUGEPAGE only says how the kernel may back the range. The range is whole pages inside a block
    // that was just allocated; nobody unmaps them meanwhile.
    let advised = unsafe { madvise(start, len, Advice::LinuxHugepage) };
    // A kernel without transparent huge pages refuses: the block is as good as the system's.
    let _ = advised;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_advised(address: usize) -> bool {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_inside = false;
        for line in smaps.lines() {
            let range = line
                .split(' ')
                .next()
                .and_then(|range| range.split_once('-'));
            if let Some((start, end)) = range
                && let Ok(start) = usize::from_str_radix(start, 16)
                && let Ok(end) = usize::from_str_radix(end, 16)
            {
                is_inside = (start..end).contains(&address);
            }
            if is_inside && let Some(flags) = line.strip_prefix("VmFlags:") {
                return flags.split_whitespace().any(|flag| flag == "hg");
            }
        }
        false
    }

    /// Allocates, fills, grows, looks and frees; returns whether the kernel was asked for huge pages.
    fn advised_after_growth(from: usize, to: usize) -> bool {
        let layout = Layout::from_size_align(from, 8).unwrap();
        // SAFETY: the size is not 0.
        let block = unsafe { HugePages.alloc_zeroed(layout) };
        assert!(!block.is_null());
        // SAFETY: the block has `from` bytes.
        unsafe { block.wrapping_add(from - 1).write(7) };
        // SAFETY: the block and layout are those of above, `to` is not 0.
        let block = unsafe { HugePages.realloc(block, layout, to) };
        assert!(!block.is_null());
        // SAFETY: the block has `to` bytes, of which `from` were initialised.
        let kept = unsafe { block.wrapping_add(from - 1).read() };
        assert_eq!(kept, 7);
        let advised = is_advised(block as usize + to / 2);
        let layout = Layout::from_size_align(to, 8).unwrap();
        // SAFETY: the block is of this layout since `realloc`.
        unsafe { HugePages.dealloc(block, layout) };
        advised
    }

    #[test]
    fn block_when_large_is_advised_and_keeps_its_contents_as_it_grows() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            eprintln!("SKIPPED: this kernel has no transparent huge pages");
            return;
        }
        assert!(advised_after_growth(64 << 20, 96 << 20));
        assert!(advised_after_growth(4096, 64 << 20));
    }

    #[test]
    fn block_when_small_is_the_systems() {
        assert!(!advised_after_growth(64, 256 << 10));
    }
}
