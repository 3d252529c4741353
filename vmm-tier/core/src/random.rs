//! Random numbers that follow from a seed: for models and generators, never for secrets.

/// What the counter grows by: 2^64 over the golden ratio, made odd.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The splitmix64 generator (Steele, Lea, Flood, OOPSLA 2014): a counter and a mixer. Its numbers don't wait
/// for one another, so it costs about a nanosecond.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Numbers that follow from this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number, uniform over all.
    #[inline]
    pub const fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Numbers that go on where `numbers` of them have been drawn.
    #[must_use]
    pub const fn after(seed: u64, numbers: u64) -> Self {
        Self::new(seed.wrapping_add(numbers.wrapping_mul(STEP)))
    }

    /// A number in [0, 1).
    #[inline]
    pub const fn share(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The least of `numbers` numbers in [0, 1], at least one.
    pub fn least_of(&mut self, numbers: u32) -> f64 {
        1.0 - self.share().powf(1.0 / f64::from(numbers))
    }

    /// A number below `bound`, uniform but for `bound` in 2^64; 0 for a bound of 0.
    #[inline]
    pub const fn below(&mut self, bound: u64) -> u64 {
        ((self.draw() as u128 * bound as u128) >> 64) as u64
    }

    /// Whether something of this probability happens.
    #[inline]
    pub fn happens(&mut self, probability: f64) -> bool {
        self.share() < probability
    }

    /// Puts items into a random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// A number below `bound` from 32 random bits, without another draw (Lemire, 2019): uniform but for `bound`
/// in 2^32.
#[inline]
pub const fn scaled(bits: u32, bound: u32) -> u32 {
    ((bits as u64 * bound as u64) >> 32) as u32
}

/// Spreads numbers evenly over 32 bits, those that follow each other too: times an odd number near 2^32 over the golden
/// ratio (Knuth, volume 3, 6.4).
#[inline]
#[must_use]
pub const fn spread(number: u32) -> u32 {
    number.wrapping_mul(2_654_435_769)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_when_begun_later_are_those_that_would_have_come() {
        let mut all = Random::new(7);
        for drawn in 0..100 {
            assert_eq!(Random::after(7, drawn).draw(), all.draw());
        }
        // Before the first one stands the seed itself.
        assert_eq!(
            Random::after(7, u64::MAX).share(),
            Random::new(7_u64.wrapping_sub(STEP)).share()
        );
    }

    #[test]
    fn draws_when_seeded_alike_are_alike_and_else_differ() {
        let mut drawn = [1, 1, 2].map(|seed| {
            let mut random = Random::new(seed);
            (0..100).map(|_| random.draw()).collect::<Vec<_>>()
        });
        let other = drawn[2].split_off(0);
        assert_eq!(drawn[0], drawn[1]);
        assert_ne!(drawn[0], other);
    }

    #[test]
    fn draw_when_seeded_with_0_is_the_published_first_number() {
        // The first output of splitmix64 with seed 0, as in its authors' test vectors.
        assert_eq!(Random::new(0).draw(), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn numbers_below_a_bound_are_uniform() {
        let mut random = Random::new(1);
        let (mut by_below, mut by_scaled) = ([0_i32; 10], [0_i32; 10]);
        for _ in 0..100_000 {
            by_below[random.below(10) as usize] += 1;
            by_scaled[scaled(random.draw() as u32, 10) as usize] += 1;
        }
        // 10 000 each, with a standard deviation of 95.
        for count in by_below.iter().chain(&by_scaled) {
            assert!((count - 10_000).abs() < 500, "{count}");
        }
        assert_eq!(random.below(0), 0);
    }

    #[test]
    fn what_has_a_probability_happens_as_often() {
        let mut random = Random::new(1);
        let often = (0..100_000).filter(|_| random.happens(0.2)).count();
        assert!((19_000..21_000).contains(&often), "{often}");
        assert!(!random.happens(0.0));
        assert!(random.happens(1.0));
    }

    #[test]
    fn items_when_shuffled_are_the_same_in_another_order() {
        let mut items: Vec<u32> = (0..1000).collect();
        Random::new(1).shuffle(&mut items);
        let at_their_place = (0..1000).filter(|&i| items[i as usize] == i).count();
        assert!(at_their_place < 10, "{at_their_place}");
        items.sort_unstable();
        assert!(items.into_iter().eq(0..1000));
    }
}
