//! Programs that read their memory from one end to the other.

use tier_core::{
    random::{Random, scaled},
    sample::AccessKind,
};

use super::{
    Plan, Scale,
    generator::{LINE, LINES, Pattern, line_in, store_if},
};

/// Bits of a fraction of a cache line.
const FRACTION: u32 = 24;

/// A position that goes round over cache lines, by a line or a fraction of one at a time.
#[derive(Clone, Debug)]
pub(super) struct Sweep {
    at: u64,
    end: u64,
    step: u64,
}

impl Sweep {
    /// Round over the pages with the given accesses, but not faster than line by line.
    pub(super) fn new(pages: u32, accesses: u64) -> Self {
        let end = (u64::from(pages) * u64::from(LINES)) << FRACTION;
        Self {
            at: 0,
            end,
            step: end.div_ceil(accesses.max(1)).min(1 << FRACTION),
        }
    }

    /// Line by line.
    pub(super) fn by_lines(pages: u32) -> Self {
        Self::new(pages, 0)
    }

    /// The offset of the line, and on to the next.
    #[inline]
    pub(super) const fn next(&mut self) -> u64 {
        let line = self.at >> FRACTION;
        self.at += self.step;
        if self.at >= self.end {
            self.at = 0;
        }
        line * LINE
    }
}

struct Sequential {
    sweep: Sweep,
    /// Whether this round writes.
    stores: bool,
}

impl Pattern for Sequential {
    #[inline]
    fn next(&mut self, _: &mut Random) -> (u64, AccessKind) {
        let offset = self.sweep.next();
        self.stores ^= offset == 0;
        (offset, store_if(self.stores))
    }
}

/// A sweep over all memory, cache line by cache line, again and again: every other round writes, as
/// STREAM's copies and a simulation's time steps do. No page is hotter than another: moving any is in
/// vain.
pub(super) fn sequential(scale: &Scale, _: &mut Random) -> Plan {
    Plan::steady(Sequential {
        sweep: Sweep::by_lines(scale.pages),
        stores: true,
    })
}

/// Of 256 accesses, those that go to the hot set: 8 in 10.
const HOT: u8 = 205;
/// Of 256 hot accesses, those that write.
const STORES: u8 = 64;
/// Time of one round of the scan, in seconds: 16 GiB at 1.6 GB/s. At the scale of the generators memory
/// is small against the rate, so a line is read several times in a row.
const ROUND: u64 = 10;

struct ScanHot {
    hot_first: u32,
    hot_len: u32,
    /// Over all pages but the hot ones.
    scan: Sweep,
}

impl Pattern for ScanHot {
    #[inline]
    fn next(&mut self, random: &mut Random) -> (u64, AccessKind) {
        let bits = random.draw();
        if (bits as u8) < HOT {
            let page = self.hot_first + scaled((bits >> 32) as u32, self.hot_len);
            return (
                line_in(page, bits >> 16),
                store_if(((bits >> 8) as u8) < STORES),
            );
        }
        let offset = self.scan.next();
        let behind = offset >= line_in(self.hot_first, 0);
        let skipped = if behind { line_in(self.hot_len, 0) } else { 0 };
        (offset + skipped, AccessKind::Load)
    }
}

/// A database that serves its hot set while a report or a backup reads all the rest: eight of ten
/// accesses go to an eighth of the pages, in the middle of memory; the others are a scan that goes round
/// in ten seconds. A scanned page is used in a burst and not again for a round, so recency misleads.
pub(super) fn scan_hot(scale: &Scale, _: &mut Random) -> Plan {
    let hot_len = scale.share(1, 8);
    let scanned = scale.rate_per_s.saturating_mul(ROUND) / 256 * u64::from(255 - HOT + 1);
    Plan::steady(ScanHot {
        hot_first: scale.pages / 2,
        hot_len,
        scan: Sweep::new(scale.pages - hot_len, scanned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_when_it_goes_by_lines_meets_each_once_a_round() {
        let mut sweep = Sweep::by_lines(3);
        for _ in 0..2 {
            for line in 0..3 * u64::from(LINES) {
                assert_eq!(sweep.next(), line * LINE);
            }
        }
    }

    #[test]
    fn sweep_when_it_is_slow_goes_round_with_so_many_accesses_and_skips_no_line() {
        let mut sweep = Sweep::new(3, 1000);
        let offsets: Vec<u64> = (0..1001).map(|_| sweep.next()).collect();
        assert_eq!((offsets[0], offsets[998]), (0, 191 * LINE));
        assert!(offsets.windows(2).filter(|o| o[1] < o[0]).count() <= 1);
        assert!(offsets.windows(2).all(|o| o[1] <= o[0] + LINE));
        assert_eq!(offsets[1000], 0, "and again");
    }
}
