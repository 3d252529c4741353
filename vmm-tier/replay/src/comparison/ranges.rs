//! The memory of a recording, in whole pages.

use tier_core::addr::BASE_PAGE;

use crate::{format::TraceRange, machine::guest::MemoryRange};

/// The memory of a trace, in pages of the size that backs it. Where a range does not begin or end with
/// such a page (a guest's first mebibyte is not its RAM, a slot may end in the middle of a huge page),
/// what is over stands in pages of 4 KiB; what is no whole page of 4 KiB is left out.
pub(super) fn in_whole_pages(ranges: &[TraceRange]) -> Vec<MemoryRange> {
    ranges.iter().flat_map(whole_pages).collect()
}

fn whole_pages(range: &TraceRange) -> impl Iterator<Item = MemoryRange> {
    let page_bytes = range.page_size.max(BASE_PAGE);
    let up = |address: u64, to: u64| address.checked_next_multiple_of(to);
    let down = |address: u64, to: u64| address / to * to;
    let range_end = range.gpa.saturating_add(range.len);
    let end = down(range_end, BASE_PAGE);
    let start = up(range.gpa, BASE_PAGE).map_or(end, |start| start.min(end));
    // Without a whole page in the middle all of it is head.
    let (from, to) = match up(start, page_bytes) {
        Some(from) if from <= down(end, page_bytes) => (from, down(end, page_bytes)),
        _ => (end, end),
    };
    let part = |address: u64, end: u64, page_bytes| MemoryRange {
        address,
        len: end - address,
        page_bytes,
    };
    [
        part(start, from, BASE_PAGE),
        part(from, to, page_bytes),
        part(to, end, BASE_PAGE),
    ]
    .into_iter()
    .filter(|part| part.len > 0)
}

#[cfg(test)]
mod tests {
    use tier_core::addr::HUGE_PAGE;

    use super::*;
    use crate::machine::Guest;

    fn parts(gpa: u64, len: u64, page_size: u64) -> Vec<(u64, u64, u64)> {
        let range = TraceRange {
            gpa,
            len,
            page_size,
        };
        let parts = in_whole_pages(&[range]);
        if !parts.is_empty() {
            let guest = Guest::from_ranges(&parts).unwrap();
            let bytes: u64 = parts.iter().map(|part| part.len).sum();
            assert_eq!(guest.bytes(), bytes);
        }
        let parts = parts.into_iter();
        parts
            .map(|part| (part.address, part.len, part.page_bytes))
            .collect()
    }

    #[test]
    fn range_when_it_begins_in_a_huge_page_has_small_pages_at_its_ends() {
        const MIB: u64 = 1 << 20;
        assert_eq!(
            parts(MIB, 6 * MIB, HUGE_PAGE),
            [
                (MIB, MIB, 4096),
                (2 * MIB, 4 * MIB, HUGE_PAGE),
                (6 * MIB, MIB, 4096)
            ]
        );
        assert_eq!(parts(MIB, 64 << 10, HUGE_PAGE), [(MIB, 64 << 10, 4096)]);
        assert_eq!(
            parts(4 * MIB, 2 * MIB, HUGE_PAGE),
            [(4 * MIB, 2 * MIB, HUGE_PAGE)]
        );
    }

    #[test]
    fn range_when_it_is_no_whole_pages_loses_its_ends() {
        assert_eq!(parts(0x1800, 0x2000, 1), [(0x2000, 0x1000, 4096)]);
        assert_eq!(parts(0x1800, 0x100, 4096), []);
        let last = u64::MAX - 0x1fff;
        assert_eq!(parts(last, 0x1fff, HUGE_PAGE), [(last, 0x1000, 4096)]);
    }
}
