//! Which huge pages are folded: a bit for each 2 MiB that may be one.

use std::ops::Range;

/// Bits in rising order of address. A guest of 1 TiB has half a million of them, 64 KiB: they stay in a core's
/// caches, and a sample asks one.
#[derive(Clone, Debug, Default)]
pub(super) struct Folded {
    words: Vec<u64>,
    count: usize,
}

impl Folded {
    /// Room for `bits` bits in all; new bits are clear.
    pub(super) fn grow(&mut self, bits: u32) {
        self.words.resize(bits.div_ceil(64) as usize, 0);
    }

    /// How many are set.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    #[inline]
    pub(super) fn contains(&self, bit: u32) -> bool {
        let word = self.words.get((bit / 64) as usize);
        word.is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// Sets a bit, or clears it. Returns whether it was set before.
    pub(super) fn set(&mut self, bit: u32, to: bool) -> bool {
        let was = self.contains(bit);
        if was != to
            && let Some(word) = self.words.get_mut((bit / 64) as usize)
        {
            *word ^= 1 << (bit % 64);
            match to {
                true => self.count += 1,
                false => self.count -= 1,
            }
        }
        was
    }

    /// The bits of a range that are set, in rising order.
    pub(super) fn range(&self, bits: Range<u32>) -> impl Iterator<Item = u32> + '_ {
        let mut next = bits.start;
        std::iter::from_fn(move || {
            while next < bits.end {
                let left = self.words.get((next / 64) as usize)? >> (next % 64);
                if left != 0 {
                    let bit = next + left.trailing_zeros();
                    next = bit + 1;
                    return (bit < bits.end).then_some(bit);
                }
                next = (next / 64 + 1) * 64;
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_when_set_and_cleared_are_found_in_order() {
        let mut folded = Folded::default();
        folded.grow(200);
        for bit in [0, 63, 64, 130, 199] {
            assert!(!folded.set(bit, true));
        }
        assert!(folded.set(64, true));
        assert!(folded.set(130, false));
        assert_eq!(folded.count(), 4);
        assert_eq!(folded.range(0..200).collect::<Vec<_>>(), [0, 63, 64, 199]);
        assert_eq!(folded.range(1..199).collect::<Vec<_>>(), [63, 64]);
        assert_eq!(folded.range(65..70).count(), 0);
        assert_eq!(folded.range(150..10_000).collect::<Vec<_>>(), [199]);
        assert!(!folded.contains(10_000) && !folded.set(10_000, true));
        assert_eq!(folded.count(), 4);
    }
}
