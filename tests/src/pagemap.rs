//! Page frames, as `/proc/PID/pagemap` tells them.

pub use lab_guest::PAGE_BYTES;

/// Joins page addresses into runs `[address, bytes]`, in the order in which they come.
#[must_use]
pub fn runs_of_pages(pages: impl IntoIterator<Item = u64>) -> Vec<[u64; 2]> {
    let mut runs: Vec<[u64; 2]> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(run) if run[0] + run[1] == page => run[1] += PAGE_BYTES as u64,
            _ => runs.push([page, PAGE_BYTES as u64]),
        }
    }
    runs
}

/// The page frame number of a `/proc/self/pagemap` entry, `None` when the page is not present
/// or the reader may not know (Documentation/admin-guide/mm/pagemap.rst).
#[must_use]
pub fn frame_of_pagemap_entry(entry: u64) -> Option<u64> {
    let frame = entry & ((1 << 55) - 1);
    (entry >> 63 == 1 && frame != 0).then_some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_when_pages_follow_one_another_are_joined() {
        let runs = runs_of_pages([0x1000, 0x2000, 0x5000, 0x4000]);

        assert_eq!(runs, [[0x1000, 0x2000], [0x5000, 0x1000], [0x4000, 0x1000]]);
    }

    #[test]
    fn pagemap_entry_when_absent_has_no_frame() {
        assert_eq!(frame_of_pagemap_entry(1 << 63 | 0x1234), Some(0x1234));
        assert_eq!(frame_of_pagemap_entry(0x1234), None);
        assert_eq!(frame_of_pagemap_entry(1 << 63), None);
    }
}
