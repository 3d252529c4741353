//! Random numbers that a seed repeats (SplitMix64: Steele, Lea, Flood, OOPSLA 2014).

/// A sequence of random numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.any() % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_when_the_seed_is_zero_are_those_of_the_reference() {
        let mut random = Random::new(0);

        // The first outputs of the authors' splitmix64.c.
        assert_eq!(random.any(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.any(), 0x6e78_9e6a_a1b9_65f4);
        assert!(random.below(8) < 8);
    }
}
