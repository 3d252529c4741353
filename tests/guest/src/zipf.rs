//! Ranks by Zipf's law, from a table that fits a page.

use crate::random::below;

/// Each bucket of ranks is an eighth longer than the one before: enough for 2^32 ranks.
const BUCKETS: usize = 224;
/// Within a bucket all ranks are as likely; the law changes by less than this part of itself there.
const FINENESS: u32 = 8;

/// Draws ranks 0, 1, 2 … with a likelihood proportional to 1 / (rank + 1)^exponent.
///
/// The law is drawn in steps: ranks below 16 have buckets of their own, later ones share a bucket
/// with at most an eighth of the ranks before it.
#[derive(Debug, Clone)]
pub(crate) struct Zipf {
    /// First rank of each bucket, and behind the last.
    starts: [u32; BUCKETS + 1],
    /// Likelihood of this bucket and all before it, of 2^32.
    ends: [u32; BUCKETS],
    buckets: usize,
}

impl Zipf {
    /// A law over `ranks` ranks; the exponent is in thousandths.
    pub(crate) fn new(ranks: usize, exponent_permille: u32) -> Self {
        let ranks = u32::try_from(ranks).unwrap_or(u32::MAX).max(1);
        let exponent = f64::from(exponent_permille) / 1000.0;
        let mut law = Self {
            starts: [0; BUCKETS + 1],
            ends: [u32::MAX; BUCKETS],
            buckets: 0,
        };
        let mut sums = [0.0; BUCKETS];
        let (mut start, mut sum) = (0_u32, 0.0);
        while start < ranks && law.buckets < BUCKETS {
            let length = (start / FINENESS).max(1).min(ranks - start);
            sum += weight(start, length, exponent);
            sums[law.buckets] = sum;
            law.buckets += 1;
            start += length;
            law.starts[law.buckets] = start;
        }
        for (end, so_far) in law.ends.iter_mut().zip(&sums[..law.buckets]) {
            // `as` saturates: the last is all that there is.
            *end = (so_far / sum * 4_294_967_296.0) as u32;
        }
        law.ends[law.buckets - 1] = u32::MAX;
        law
    }

    /// A rank from the lower 32 bits of two random numbers.
    #[inline]
    pub(crate) fn rank(&self, choice: u64, place: u64) -> usize {
        let ends = &self.ends[..self.buckets];
        let bucket = ends.partition_point(|end| u64::from(*end) < (choice & 0xffff_ffff));
        let start = self.starts[bucket] as usize;
        start + below(place, self.starts[bucket + 1] as usize - start)
    }
}

/// The sum of 1 / (rank + 1)^exponent over ranks, by the integral between the midpoints where there
/// are many.
fn weight(start: u32, length: u32, exponent: f64) -> f64 {
    if length == 1 {
        return libm::pow(f64::from(start) + 1.0, -exponent);
    }
    let from = f64::from(start) + 0.5;
    let to = from + f64::from(length);
    let power = 1.0 - exponent;
    if power.abs() < 1e-9 {
        libm::log(to / from)
    } else {
        (libm::pow(to, power) - libm::pow(from, power)) / power
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix;

    /// Draws and compares with the law, added up exactly.
    fn off_by(ranks: usize, exponent_permille: u32, top: usize) -> f64 {
        let law = Zipf::new(ranks, exponent_permille);
        let mut random = SplitMix::new(1);
        let draws = 400_000;
        let hits = (0..draws)
            .filter(|_| law.rank(random.next_u64(), random.next_u64()) < top)
            .count();
        let exponent = f64::from(exponent_permille) / 1000.0;
        let sum = |n: usize| {
            (1..=n)
                .map(|rank| (rank as f64).powf(-exponent))
                .sum::<f64>()
        };
        hits as f64 / f64::from(draws) - sum(top) / sum(ranks)
    }

    #[test]
    fn ranks_when_drawn_often_follow_the_law() {
        for (ranks, exponent) in [
            (1_usize, 990),
            (5, 990),
            (76_800, 990),
            (76_800, 1000),
            (76_800, 600),
        ] {
            for top in [1, ranks.div_ceil(100), ranks.div_ceil(4), ranks] {
                let off = off_by(ranks, exponent, top);
                // Three deviations of 400,000 draws, and the steps of the table.
                assert!(off.abs() < 0.004, "{top} of {ranks}, {exponent}: {off}");
            }
        }
    }

    #[test]
    fn ranks_when_bits_are_extreme_stay_within_bounds() {
        for ranks in [1, 2, 17, 1 << 20, u32::MAX as usize] {
            let law = Zipf::new(ranks, 990);
            assert_eq!(law.starts[law.buckets] as usize, ranks);
            assert!(law.rank(u64::MAX, u64::MAX) < ranks);
            assert_eq!(law.rank(0, 0), 0);
        }
    }
}
