//! A keyed permutation of page numbers, cut into a line and what is left of the number.
//!
//! A hash table that stores a hash's *quotient* in the place and only its *remainder* in the entry
//! loses nothing (Knuth, TAOCP 3, 6.4, exercise 13; Cleary, "Compact Hash Tables Using Bidirectional
//! Linear Probing", 1984). With a permutation in the place of a hash, line and remainder name the page
//! exactly: no two pages are ever taken for one another, and an entry says whose it is.

use crate::random::Random;

/// Spreads the numbers below 2^bits over so many lines.
#[derive(Clone, Debug)]
pub(super) struct Scatter {
    bits: u32,
    lines: u32,
    /// Odd, hence invertible modulo 2^bits.
    factors: [u32; 2],
    inverses: [u32; 2],
    remainder_mask: u32,
}

/// Where a page may stand, and what names it there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Home {
    pub(super) line: u32,
    pub(super) remainder: u32,
}

impl Scatter {
    /// For numbers below 2^`bits` (at most 32) over `lines` lines (at least one), keyed by `seed`: who
    /// does not know it can't choose pages that meet in one line.
    pub(super) fn new(bits: u32, lines: u32, seed: u64) -> Self {
        let factors = [odd(seed), odd(seed ^ 0x6a09_e667_f3bc_c909)];
        Self {
            bits,
            lines,
            factors,
            inverses: factors.map(inverse),
            remainder_mask: (1 << Self::remainder_bits(bits, lines)) - 1,
        }
    }

    /// The bits of a remainder: a line's numbers follow each other, so their low bits tell them apart.
    /// At least one.
    pub(super) fn remainder_bits(bits: u32, lines: u32) -> u32 {
        let numbers_a_line = (1u64 << bits).div_ceil(u64::from(lines));
        numbers_a_line.next_power_of_two().trailing_zeros().max(1)
    }

    #[inline]
    pub(super) fn home(&self, page: u32) -> Home {
        let number = self.permute(page);
        Home {
            line: ((u64::from(number) * u64::from(self.lines)) >> self.bits) as u32,
            remainder: number & self.remainder_mask,
        }
    }

    /// The page whose home this is.
    pub(super) fn page(&self, home: Home) -> u32 {
        // The least number whose product with `lines` reaches the line.
        let first = (u64::from(home.line) << self.bits).div_ceil(u64::from(self.lines)) as u32;
        let beyond = home.remainder.wrapping_sub(first) & self.remainder_mask;
        self.restore(first.wrapping_add(beyond))
    }

    #[inline]
    fn permute(&self, page: u32) -> u32 {
        let number = self.fold(self.cut(page.wrapping_mul(self.factors[0])));
        self.fold(self.cut(number.wrapping_mul(self.factors[1])))
    }

    fn restore(&self, number: u32) -> u32 {
        let number = self.cut(self.fold(number).wrapping_mul(self.inverses[1]));
        self.cut(self.fold(number).wrapping_mul(self.inverses[0]))
    }

    #[inline]
    fn cut(&self, number: u32) -> u32 {
        (u64::from(number) & ((1 << self.bits) - 1)) as u32
    }

    /// Brings the high half to the low half, whose bits a product leaves regular. Undoes itself: what
    /// is shifted in comes from bits that do not change.
    #[inline]
    fn fold(&self, number: u32) -> u32 {
        number ^ (u64::from(number) >> self.bits.div_ceil(2)) as u32
    }
}

/// A number that looks random and follows from the seed.
pub(super) const fn mix(seed: u64) -> u64 {
    Random::new(seed).draw()
}

fn odd(seed: u64) -> u32 {
    (mix(seed) >> 32) as u32 | 1
}

/// The inverse of an odd number modulo 2^32, by Newton's iteration: each step doubles the bits that
/// are right, from three on.
fn inverse(factor: u32) -> u32 {
    (0..4).fold(factor, |inverse, _| {
        inverse.wrapping_mul(2u32.wrapping_sub(factor.wrapping_mul(inverse)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_when_a_page_is_scattered_lead_back_to_it_and_to_no_other() {
        for (bits, lines) in [(1, 1), (5, 3), (10, 1), (10, 7), (12, 512), (12, 4096)] {
            let scatter = Scatter::new(bits, lines, 7);
            let mut seen = std::collections::HashSet::new();
            for page in 0..1u32 << bits {
                let home = scatter.home(page);
                assert!(home.line < lines && home.remainder <= scatter.remainder_mask);
                assert!(
                    seen.insert((home.line, home.remainder)),
                    "{bits} bits, page {page}"
                );
                assert_eq!(scatter.page(home), page, "{bits} bits, {lines} lines");
            }
        }
        let large = Scatter::new(30, 40_000, 1);
        for page in (0..1u32 << 30).step_by(997) {
            assert_eq!(large.page(large.home(page)), page);
        }
        let largest = Scatter::new(32, 123_457, 2);
        for page in (0..u32::MAX).step_by(9_973) {
            assert_eq!(largest.page(largest.home(page)), page);
        }
    }

    #[test]
    fn lines_when_pages_follow_each_other_or_are_strided_fill_evenly() {
        let scatter = Scatter::new(20, 1000, 3);
        for stride in [1, 8, 512] {
            let mut load = vec![0u32; 1000];
            let pages = (0..1 << 20).step_by(stride).take(16_000);
            let count = pages
                .map(|page| load[scatter.home(page).line as usize] += 1)
                .count();
            let mean = count as u32 / 1000;
            // A random hash has a standard deviation of √mean: at most 4 at 16, so 48 is 8 of them.
            assert!(
                load.iter().all(|&l| l <= 3 * mean.max(8)),
                "stride {stride}: {:?}",
                load.iter().max()
            );
        }
    }
}
