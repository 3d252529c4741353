//! The heat map: heat over guest-physical space, in as many cells as a screen has room for.

use crate::engine::VmEngine;
use crate::{
    addr::{BASE_PAGE, Gpa, gpa_number},
    dual_heap::Placement,
    map::{GuestMemoryMap, MapRange},
    time::Time,
};

/// The most cells that a heat map may have: about a megabyte of JSON, and more than a screen has room
/// for.
pub const MAX_CELLS: u64 = 16_384;

crate::report! {
    /// An equal share of the guest's RAM.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct HeatCell = "TierHeatCell" {
        /// Its first guest-physical address.
        #[serde(with = "gpa_number")]
        pub gpa: Gpa,
        /// Mean accesses a second for each 4 KiB of it, present or not.
        pub rate: f32,
        /// Share of its present bytes on the fast tier; absent if nothing is present.
        pub fast_share: Option<f32>,
    }
}

crate::report! {
    /// The guest's RAM cut into cells of equal size in rising guest-physical order. Holes between RAM
    /// are passed over: a cell may reach over one.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Heatmap = "TierHeatmap" {
        /// Rows.
        pub rows: u32,
        /// Cells in a row.
        pub columns: u32,
        /// Guest RAM, which the cells divide among them.
        pub ram_bytes: u64,
        /// All cells, row by row.
        pub cells: Vec<HeatCell>,
    }
}

/// Why there is no heat map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeatmapError {
    /// Too many cells or none.
    #[error(
        "{rows} rows of {columns} columns: each must be at least 1, and there may be {MAX_CELLS} cells"
    )]
    Size {
        /// Rows asked for.
        rows: u32,
        /// Columns asked for.
        columns: u32,
    },
    /// No map yet.
    #[error("the guest's memory map is not known yet; try again when the state is running")]
    NoMap,
}

/// What a cell adds up.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    accesses_per_s: f64,
    fast_bytes: u64,
    slow_bytes: u64,
}

/// How offsets in RAM (guest-physical addresses without the holes) are cut into cells: at whole frames.
struct Cut {
    frames: u64,
    cells: u64,
}

impl Cut {
    fn start(&self, cell: u64) -> u64 {
        let frame = u128::from(self.frames) * u128::from(cell) / u128::from(self.cells);
        u64::try_from(frame).unwrap_or(u64::MAX) * BASE_PAGE
    }

    /// The cell that holds an offset.
    fn cell_at(&self, offset: u64) -> u64 {
        let frame = u128::from(offset / BASE_PAGE) + 1;
        let cell = (frame * u128::from(self.cells) - 1) / u128::from(self.frames.max(1));
        u64::try_from(cell).unwrap_or(u64::MAX).min(self.cells - 1)
    }
}

/// Draws the heat map of an engine.
pub(crate) fn draw(
    engine: &VmEngine,
    now: Time,
    rows: u32,
    columns: u32,
) -> Result<Heatmap, HeatmapError> {
    let cells = u64::from(rows) * u64::from(columns);
    if !(1..=MAX_CELLS).contains(&cells) {
        return Err(HeatmapError::Size { rows, columns });
    }
    let map = engine.map().ok_or(HeatmapError::NoMap)?;
    let ram_bytes = map.total_bytes();
    let cut = Cut {
        frames: ram_bytes.div_ceil(BASE_PAGE),
        cells,
    };
    let sums = sum_cells(engine, now, map, &cut);
    let cells = (0..).zip(sums).map(|(cell, sum)| {
        let start = cut.start(cell);
        let frames = (cut.start(cell + 1) - start) / BASE_PAGE;
        let present = sum.fast_bytes + sum.slow_bytes;
        HeatCell {
            gpa: gpa_at(map, start),
            rate: (sum.accesses_per_s / frames.max(1) as f64) as f32,
            fast_share: (present > 0).then(|| sum.fast_bytes as f32 / present as f32),
        }
    });
    Ok(Heatmap {
        rows,
        columns,
        ram_bytes,
        cells: cells.collect(),
    })
}

fn sum_cells(engine: &VmEngine, now: Time, map: &GuestMemoryMap, cut: &Cut) -> Vec<Sum> {
    let VmEngine {
        pages, evidence, ..
    } = engine;
    let mut sums = vec![Sum::default(); usize::try_from(cut.cells).unwrap_or(0)];
    let mut ram_before = 0;
    // The cell that was looked at last: the next page is nearly always in it, too.
    let (mut cell, mut bounds) = (0, 0..0);
    let rate = evidence.stats.rates(now);
    for range in map.ranges() {
        let touched = pages.index.touched(range.hva, range.len);
        let found = touched
            .into_iter()
            .flat_map(|ids| pages.heap.iter_in(ids, now));
        for (id, placement, count) in found {
            let Some(page) = pages.index.page(id) else {
                continue;
            };
            let from = page.hva.0.max(range.hva.0);
            let to = (page.hva.0 + page.bytes).min(range.hva.0 + range.len);
            let per_byte = match count > 0.0 {
                true => rate(count, page.bytes) / page.bytes as f64,
                false => 0.0,
            };
            // A large page may lie in several cells.
            let mut at = ram_before + (from - range.hva.0);
            let end = ram_before + to.saturating_sub(range.hva.0);
            while at < end {
                if !bounds.contains(&at) {
                    cell = cut.cell_at(at);
                    bounds = cut.start(cell)..cut.start(cell + 1);
                }
                let next = bounds.end.clamp(at + 1, end);
                let Some(sum) = usize::try_from(cell).ok().and_then(|i| sums.get_mut(i)) else {
                    break;
                };
                sum.accesses_per_s += per_byte * (next - at) as f64;
                match placement {
                    Placement::Fast => sum.fast_bytes += next - at,
                    Placement::Slow => sum.slow_bytes += next - at,
                    Placement::Untracked => {}
                }
                at = next;
            }
        }
        ram_before += range.len;
    }
    sums
}

/// The guest-physical address at an offset in RAM; the address after the last past its end.
fn gpa_at(map: &GuestMemoryMap, offset: u64) -> Gpa {
    let mut left = offset;
    for range in map.ranges() {
        if left < range.len {
            return Gpa(range.gpa.0 + left);
        }
        left -= range.len;
    }
    Gpa(map.ranges().last().map_or(0, MapRange::gpa_end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_when_cut_unevenly_cover_all_and_agree_with_their_starts() {
        for (frames, cells) in [(10, 3), (3, 10), (7, 7), (1, 1), (1000, 64)] {
            let cut = Cut { frames, cells };
            assert_eq!((cut.start(0), cut.start(cells)), (0, frames * BASE_PAGE));
            for frame in 0..frames {
                for offset in [frame * BASE_PAGE, (frame + 1) * BASE_PAGE - 1] {
                    let cell = cut.cell_at(offset);
                    assert!(
                        cut.start(cell) <= offset && offset < cut.start(cell + 1),
                        "{offset} of {frames} frames in {cells} cells"
                    );
                }
            }
        }
    }
}
