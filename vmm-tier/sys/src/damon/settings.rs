//! The settings of a kdamond: how often to look, how finely, and where.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tier_core::addr::{BASE_PAGE, HUGE_PAGE, Hva};

use super::DamonError;

/// What DAMON watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operations {
    /// Given ranges of virtual addresses (`fvaddr`), or `vaddr` where the kernel lacks it.
    #[default]
    Virtual,
    /// Physical addresses (`paddr`): the addresses in samples are then no HVAs. For hosts without
    /// virtual-address operations, to check the way from the kernel to the samples.
    Physical,
}

/// What regions a kdamond begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pieces {
    /// Pieces of one size, a third of the most regions.
    #[default]
    Even,
    /// Each aligned 2 MiB, at the start and whenever the settings change: for memory in huge pages.
    HugePages,
    /// Each 4 KiB.
    Pages,
}

/// How DAMON samples, and what its numbers do (mm/damon/core.c of 6.12).
///
/// In each sampling interval it looks at *one* random 4 KiB page of each region and counts if that
/// page was accessed. At the end of an aggregation interval
/// 1. neighbours whose counts differ by at most a tenth of the highest count are joined, as long as
///    the joined region is not larger than all memory divided by `min_regions`; while there are still
///    more than `max_regions`, the tolerance is doubled and this repeated (`kdamond_merge_regions`);
/// 2. the regions are told, as they are then: this is what arrives as samples;
/// 3. if there are at most `max_regions / 2`, each region of more than two pages is split in two (in
///    three if their number has stood still below `max_regions / 3`) at a random place
///    (`kdamond_split_regions`).
///
/// What follows for the settings:
/// - `min_regions` is the *coarseness of idle memory*: keep it small (10 to 100). As large as the number
///   of pages it makes a fixed grid, and costs as much as one.
/// - `max_regions` is what a kdamond may cost: each region costs one page-table walk each sampling
///   interval. Splitting stops at half of it, so a hot set that lies in k runs wants some 6 · k (its
///   runs, the gaps between them, and room to split both), and more makes edges sharper sooner.
/// - One page: a region of three pages or more can be split down to one page; a region of two pages
///   stays whole. An edge moves to its place in about log₂(region / page) aggregations, as only splits
///   that separate pages of different counts survive the next join. So an aggregation should be short
///   (100 to 400 ms) rather than the sampling interval.
/// - `aggregation / sampling` is the highest count. Below 10 the tolerance is 0 and noise alone keeps
///   regions apart; 20 is a good value. A page that is touched less than once in a sampling interval
///   counts in proportion to how often it is.
/// - Where the guest's memory is mapped by whole huge pages, in QEMU *and* in the second stage, there is
///   one accessed bit for 2 MiB: nothing finer can be seen there, whatever the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamonSettings {
    /// Time between two looks.
    pub sampling: Duration,
    /// Time between two reports; regions are joined and split then.
    pub aggregation: Duration,
    /// Time between two looks for new mappings (only `vaddr`).
    pub update: Duration,
    /// Regions at least, 3 or more.
    pub min_regions: u64,
    /// Regions at most.
    pub max_regions: u64,
    /// The regions to begin with. To keep regions of pages apart, `min_regions` must be as many.
    pub pieces: Pieces,
    /// What is watched.
    pub operations: Operations,
}

impl Default for DamonSettings {
    fn default() -> Self {
        Self {
            sampling: Duration::from_millis(10),
            aggregation: Duration::from_millis(200),
            update: Duration::from_secs(1),
            min_regions: 10,
            max_regions: 1200,
            pieces: Pieces::Even,
            operations: Operations::Virtual,
        }
    }
}

impl DamonSettings {
    /// How often a page can be found accessed in one aggregation.
    #[must_use]
    pub fn max_accesses(&self) -> u32 {
        let (aggregation, sampling) = (self.aggregation.as_micros(), self.sampling.as_micros());
        u32::try_from(aggregation / sampling.max(1)).unwrap_or(u32::MAX)
    }

    /// Whether each 2 MiB of `bytes` can have a region of its own.
    #[must_use]
    pub const fn fit_huge_pages(bytes: u64, max_regions: u64) -> bool {
        bytes.div_ceil(HUGE_PAGE) <= max_regions
    }

    /// A fixed grid: each of so many pages is a region, and stays one.
    #[must_use]
    pub fn grid(self, pages: u64) -> Self {
        Self {
            min_regions: pages.max(3),
            max_regions: pages.max(3),
            pieces: Pieces::Pages,
            ..self
        }
    }

    /// With `max_regions` regions at most for `bytes` of memory, and a quarter of that at least. Where
    /// they fit there are at least as many regions as huge pages: DAMON joins neighbours whose counts
    /// are nearly equal, and where pages saturate these are hot and warm pages.
    #[must_use]
    pub fn with_regions(self, bytes: u64, max_regions: u64) -> Self {
        let apart = match Self::fit_huge_pages(bytes, max_regions) {
            true => bytes.div_ceil(HUGE_PAGE),
            false => 0,
        };
        Self {
            min_regions: (max_regions / 4).max(apart).max(3),
            max_regions,
            ..self
        }
    }

    /// What `damon_set_attrs` (mm/damon/core.c) and common sense ask for.
    pub(super) fn check(&self) -> Result<(), DamonError> {
        if self.sampling.as_micros() == 0 {
            return Err(DamonError::Settings(
                "the sampling interval is shorter than 1 µs",
            ));
        }
        if self.aggregation < self.sampling {
            return Err(DamonError::Settings(
                "the aggregation interval is shorter than the sampling interval",
            ));
        }
        if self.aggregation > Duration::from_secs(3600) {
            return Err(DamonError::Settings(
                "the aggregation interval is longer than an hour",
            ));
        }
        if self.min_regions < 3 {
            return Err(DamonError::Settings("there must be at least 3 regions"));
        }
        if self.max_regions < self.min_regions {
            return Err(DamonError::Settings("more regions at least than at most"));
        }
        Ok(())
    }
}

/// The same ranges in pieces, so that DAMON need not find its way down from one region a range, which
/// takes an aggregation for each halving. A third of `max_regions` leaves it room to split further; by
/// huge page there is nothing to split.
pub(super) fn in_pieces(ranges: &[(u64, u64)], settings: &DamonSettings) -> Vec<(u64, u64)> {
    let total: u64 = ranges.iter().map(|(start, end)| end - start).sum();
    // A region is a folder in sysfs; beyond some thousand, making them takes longer than it saves.
    let (wanted, unit) = match settings.pieces {
        Pieces::Even => (settings.max_regions / 3, BASE_PAGE),
        Pieces::HugePages => (settings.max_regions, HUGE_PAGE),
        Pieces::Pages => (u64::MAX, BASE_PAGE),
    };
    let piece = total
        .div_ceil(wanted.clamp(1, 2048))
        .next_multiple_of(unit)
        .max(unit);
    let mut pieces = Vec::new();
    for &(start, end) in ranges {
        let mut at = start;
        while at < end {
            let next = (at - at % unit).saturating_add(piece).min(end);
            pieces.push((at, next));
            at = next;
        }
    }
    pieces
}

/// Ranges as (start, end), rising, whole pages, neighbours joined.
pub(super) fn sorted_ranges(ranges: &[(Hva, u64)]) -> Result<Vec<(u64, u64)>, DamonError> {
    let mut sorted = Vec::with_capacity(ranges.len());
    for &(start, len) in ranges.iter().filter(|(_, len)| *len > 0) {
        let end = start
            .0
            .checked_add(len)
            .and_then(|end| end.checked_next_multiple_of(BASE_PAGE));
        let end = end.ok_or(DamonError::Settings(
            "a range goes past the end of the address space",
        ))?;
        sorted.push((start.align_down(BASE_PAGE).0, end));
    }
    if sorted.is_empty() {
        return Err(DamonError::Settings("there is no range to watch"));
    }
    sorted.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::with_capacity(sorted.len());
    for (start, end) in sorted {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_regions_when_each_huge_page_fits_keeps_as_many_apart() {
        let regions = |bytes, most| {
            let settings = DamonSettings::default().with_regions(bytes, most);
            (settings.min_regions, settings.max_regions)
        };
        // A quarter, one for each of 300 huge pages, a quarter where 401 don't fit, and DAMON's least.
        assert_eq!(regions(100 * HUGE_PAGE, 1000), (250, 1000));
        assert_eq!(regions(300 * HUGE_PAGE, 400), (300, 400));
        assert_eq!(regions(401 * HUGE_PAGE, 400), (100, 400));
        assert_eq!(regions(100 * HUGE_PAGE, 8), (3, 8));
    }

    #[test]
    fn in_pieces_when_cut_covers_the_same_bytes_in_order() {
        let ranges = [(0x1000, 0x3000), (0x10_0000, 0x90_0000)];
        let settings = DamonSettings {
            max_regions: 30,
            ..DamonSettings::default()
        };

        let pieces = in_pieces(&ranges, &settings);

        // A third of 30, and one more where a range ends within a piece.
        assert!(pieces.len() <= 12, "{pieces:x?}");
        let joined: Vec<_> = pieces
            .iter()
            .map(|&(start, end)| (Hva(start), end - start))
            .collect();
        assert_eq!(sorted_ranges(&joined).unwrap(), ranges);
        assert!(pieces.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        assert!(pieces.iter().all(|(start, _)| start % BASE_PAGE == 0));
    }

    #[test]
    fn in_pieces_when_by_huge_page_are_aligned() {
        let settings = DamonSettings {
            max_regions: 30,
            pieces: Pieces::HugePages,
            ..DamonSettings::default()
        };

        let pieces = in_pieces(&[(0x1000, 0x50_0000)], &settings);

        let expected = [
            (0x1000, 0x20_0000),
            (0x20_0000, 0x40_0000),
            (0x40_0000, 0x50_0000),
        ];
        assert_eq!(pieces, expected);
    }

    #[test]
    fn in_pieces_when_a_grid_are_its_pages() {
        let pages = 512;
        let settings = DamonSettings::default().grid(pages);
        assert_eq!(settings.check().map_err(|error| error.to_string()), Ok(()));
        let pieces = in_pieces(&[(HUGE_PAGE, 2 * HUGE_PAGE)], &settings);
        assert_eq!(pieces.len() as u64, pages);
        assert!(pieces.iter().all(|(start, end)| end - start == BASE_PAGE));
    }

    #[test]
    fn in_pieces_when_memory_is_one_page_is_that_page() {
        assert_eq!(
            in_pieces(&[(0, 4096)], &DamonSettings::default()),
            [(0, 4096)]
        );
    }

    #[test]
    fn sorted_ranges_when_past_the_address_space_is_refused() {
        assert!(sorted_ranges(&[(Hva(u64::MAX - 10), 4096)]).is_err());
        assert!(sorted_ranges(&[(Hva(u64::MAX - 4096), 4090)]).is_err());
    }
}
