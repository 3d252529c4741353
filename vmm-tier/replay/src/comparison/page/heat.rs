//! How often each part of memory was used in each part of the time, and how few pages serve most
//! accesses.

use std::time::Duration;

use tier_core::{addr::BASE_PAGE, time::Time};

use crate::{
    comparison::passes::Watcher,
    machine::{Guest, Slice},
    picture::{self, PictureError},
};

/// Cells of the map, at most: space from the top, time from the left.
const ROWS: u32 = 160;
const COLUMNS: u32 = 320;
/// Points of the demand curve.
const POINTS: usize = 200;

/// Pages that follow each other, and where they stand in the guest's memory without its holes.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: u32,
    offset: u64,
    page_bytes: u64,
}

/// See the [module](self). Its memory is four bytes a page, and the cells.
#[derive(Debug, Default)]
pub(super) struct Heat {
    spans: Vec<Span>,
    bytes: u64,
    seconds: f64,
    start: Option<Time>,
    rows: u32,
    columns: u32,
    /// Accesses by row and column.
    cells: Vec<f64>,
    /// Accesses of each page.
    totals: Vec<u32>,
    /// The first address of each row.
    addresses: Vec<u64>,
}

/// The DRAM that shares of accesses need, if the pages that are hottest in all of the recording lie
/// there and none moves.
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// Bytes, rising, and the share of accesses.
    pub(super) points: Vec<(u64, f64)>,
    /// The bytes with any access.
    pub(super) used_bytes: u64,
    /// Bytes for each of the targets, in their order.
    pub(super) needs: Vec<u64>,
}

impl Watcher for Heat {
    fn begin(&mut self, guest: &Guest, seconds: f64) {
        let (mut first, mut offset) = (0, 0);
        for range in guest.ranges() {
            self.spans.push(Span {
                first,
                offset,
                page_bytes: range.page_bytes,
            });
            first += (range.len / range.page_bytes) as u32;
            offset += range.len;
        }
        self.bytes = guest.bytes();
        self.seconds = seconds.max(1e-9);
        self.rows = guest.pages().clamp(1, ROWS);
        self.columns = COLUMNS;
        self.cells = vec![0.0; (self.rows * self.columns) as usize];
        self.totals = vec![0; guest.pages() as usize];
        self.addresses = (0..self.rows)
            .map(|row| {
                let offset = self.row_start(row) / BASE_PAGE * BASE_PAGE;
                let span = self.spans.partition_point(|span| span.offset <= offset);
                self.spans.get(span.saturating_sub(1)).map_or(0, |span| {
                    let page = (offset - span.offset) / span.page_bytes;
                    guest.address(span.first + page as u32)
                        + (offset - span.offset) % span.page_bytes
                })
            })
            .collect();
    }

    fn see(&mut self, slice: &Slice) {
        let start = *self.start.get_or_insert(slice.start);
        let part = slice.start.since(start).as_secs_f64() / self.seconds;
        let column = ((part * f64::from(self.columns)) as u32).min(self.columns - 1);
        let mut span = 0;
        for touch in &slice.touched {
            let Some(total) = self.totals.get_mut(touch.page as usize) else {
                continue;
            };
            *total = total.saturating_add(touch.accesses);
            // Pages come by rising number.
            while self
                .spans
                .get(span + 1)
                .is_some_and(|next| next.first <= touch.page)
            {
                span += 1;
            }
            let Some(&Span {
                first,
                offset,
                page_bytes,
            }) = self.spans.get(span)
            else {
                continue;
            };
            let from = offset + u64::from(touch.page - first) * page_bytes;
            self.spread(column, from, page_bytes, f64::from(touch.accesses));
        }
    }
}

impl Heat {
    /// Where a row begins, in bytes of memory without its holes.
    fn row_start(&self, row: u32) -> u64 {
        (u128::from(self.bytes) * u128::from(row) / u128::from(self.rows.max(1))) as u64
    }

    /// Adds accesses of a page to the rows that it lies in.
    fn spread(&mut self, column: u32, from: u64, page_bytes: u64, accesses: f64) {
        let row_of = |offset: u64| {
            (u128::from(offset) * u128::from(self.rows) / u128::from(self.bytes.max(1))) as u32
        };
        let first = row_of(from).min(self.rows - 1);
        let last = row_of(from + page_bytes - 1).min(self.rows - 1);
        let each = accesses / f64::from(last - first + 1);
        for row in first..=last {
            if let Some(cell) = self.cells.get_mut((row * self.columns + column) as usize) {
                *cell += each;
            }
        }
    }

    /// The share of the most used cell in a rate: accesses a second for each 4 KiB.
    pub(super) fn hottest(&self) -> f64 {
        let most = self.cells.iter().copied().fold(0.0, f64::max);
        let frames = (self.bytes / BASE_PAGE).max(1) as f64 / f64::from(self.rows.max(1));
        most / frames / (self.seconds / f64::from(self.columns.max(1)))
    }

    /// The length of a column.
    pub(super) fn column_time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds / f64::from(self.columns.max(1)))
    }

    /// Bytes of a row.
    pub(super) fn row_bytes(&self) -> u64 {
        self.bytes / u64::from(self.rows.max(1))
    }

    /// The first address of each row.
    pub(super) fn addresses(&self) -> &[u64] {
        &self.addresses
    }

    /// The map, a pixel a cell.
    ///
    /// # Errors
    /// If it can't be encoded.
    pub(super) fn png(&self) -> Result<Vec<u8>, PictureError> {
        let most = self.cells.iter().copied().fold(0.0, f64::max);
        let colours = self.cells.iter();
        let pixels: Vec<u8> = colours
            .flat_map(|&cell| picture::colour(picture::on_scale(cell, most)))
            .collect();
        picture::png(self.columns, self.rows, &pixels)
    }

    /// The demand for DRAM.
    pub(super) fn demand(&self) -> Demand {
        let mut pages: Vec<(u32, u64)> = Vec::new();
        let mut spans = self.spans.iter().peekable();
        let mut page_bytes = BASE_PAGE;
        for (page, &accesses) in (0..).zip(&self.totals) {
            while let Some(span) = spans.next_if(|span| span.first <= page) {
                page_bytes = span.page_bytes;
            }
            if accesses > 0 {
                pages.push((accesses, page_bytes));
            }
        }
        // The most accesses for each byte first.
        pages.sort_unstable_by(|a, b| {
            let [a, b] = [a, b].map(|&(accesses, bytes)| f64::from(accesses) / bytes as f64);
            b.total_cmp(&a)
        });
        let all: u64 = pages.iter().map(|&(accesses, _)| u64::from(accesses)).sum();
        let mut demand = Demand {
            points: vec![(0, 0.0)],
            ..Demand::default()
        };
        let mut targets = super::TARGETS.iter().peekable();
        let step = pages.len().div_ceil(POINTS).max(1);
        let (mut bytes, mut served) = (0, 0);
        for (number, &(accesses, page_bytes)) in (1..).zip(&pages) {
            bytes += page_bytes;
            served += u64::from(accesses);
            let share = served as f64 / all as f64;
            if number % step == 0 || number == pages.len() {
                demand.points.push((bytes, share));
            }
            while targets.next_if(|target| share >= **target).is_some() {
                demand.needs.push(bytes);
            }
        }
        demand.used_bytes = bytes;
        demand
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::guest::MemoryRange;

    /// 4 pages of 4 KiB, a hole, and a huge page.
    fn guest() -> Guest {
        let range = |address, len, page_bytes| MemoryRange {
            address,
            len,
            page_bytes,
        };
        Guest::from_ranges(&[range(0, 16 << 10, 4096), range(1 << 32, 2 << 20, 2 << 20)]).unwrap()
    }

    #[test]
    fn heat_when_seen_lies_where_and_when_pages_were_used() {
        let mut heat = Heat::default();
        heat.begin(&guest(), 320.0);
        assert_eq!(heat.rows, 5);
        heat.see(&Slice::second(100, &[(0, 4), (4, 8)]));
        heat.see(&Slice::second(419, &[(4, 1)]));
        heat.see(&Slice::second(999, &[(4, 1)]));

        // The huge page lies in all rows, the small ones in the first.
        let cell = |row: u32, column: u32| heat.cells[(row * COLUMNS + column) as usize];
        assert_eq!(cell(0, 0), 4.0 + 8.0 / 5.0);
        assert_eq!(cell(4, 0), 8.0 / 5.0);
        assert_eq!(cell(4, 319), 2.0 / 5.0);
        assert_eq!(heat.cells.iter().sum::<f64>(), 14.0);
        assert_eq!(heat.addresses()[0], 0);
        assert!(heat.addresses()[1] > 1 << 32);
        assert_eq!(heat.column_time(), Duration::from_secs(1));
        assert_eq!(heat.png().unwrap()[..4], *b"\x89PNG");
    }

    #[test]
    fn demand_when_few_pages_are_hot_is_theirs() {
        let mut heat = Heat::default();
        heat.begin(&guest(), 1.0);
        heat.see(&Slice::second(0, &[(1, 95), (2, 4), (4, 1)]));
        let demand = heat.demand();
        assert_eq!(demand.needs, [4096, 4096, 8192]);
        assert_eq!(demand.used_bytes, (2 << 20) + 8192);
        assert_eq!(demand.points.last(), Some(&(demand.used_bytes, 1.0)));
        let nothing = Heat::default().demand();
        assert_eq!((nothing.needs.len(), nothing.used_bytes), (0, 0));
    }
}
