//! A sketch that counts samples and forgets: count-min with conservative update under forward decay.
//!
//! Sources: Cormode and Muthukrishnan, "An Improved Data Stream Summary: The Count-Min Sketch and its
//! Applications", J. Algorithms 55, 2005; Estan and Varghese, "New Directions in Traffic Measurement and
//! Accounting", SIGCOMM 2002 (conservative update); [forward decay](tier_core::heat).
//!
//! A page has one counter in each of four rows, and shares each with other pages. The least of the four
//! is its frequency: never too low, and too high only where the page shares all four. A sample raises no
//! counter above the page's new frequency.

use std::time::Duration;

use tier_core::{heat::Decay, random::Random, time::Time};

const ROWS: usize = 4;
/// The fewest counters in a row.
const LEAST_WIDTH: usize = 16;

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct DecayingSketch {
    /// Keys under forward decay, row by row.
    counters: Vec<f32>,
    /// Odd numbers by which a page's number is multiplied to find its counter in each row.
    multipliers: [u64; ROWS],
    decay: Decay,
}

impl DecayingSketch {
    /// All frequencies are 0. As many counters as fit in `bytes` bytes, 64 at least; which pages share
    /// them follows from `seed`.
    pub(super) fn new(bytes: usize, half_life: Duration, seed: u64) -> Self {
        let width = (bytes / size_of::<f32>() / ROWS).max(LEAST_WIDTH);
        let mut random = Random::new(seed);
        Self {
            counters: vec![0.0; ROWS * width],
            multipliers: std::array::from_fn(|_| random.draw() | 1),
            decay: Decay::new(half_life, Time(0)),
        }
    }

    /// Adds `weight` to a page's frequency; returns the key of the new frequency.
    pub(super) fn add(&mut self, page: u32, weight: f32, now: Time) -> f32 {
        let counters = self.counters_of(page);
        let least = counters.map(|counter| self.counters[counter]);
        let least = least.into_iter().fold(f32::MAX, f32::min);
        let key = (least + self.gain(weight, now)).min(f32::MAX);
        for counter in counters {
            self.counters[counter] = self.counters[counter].max(key);
        }
        key
    }

    /// What a sample of this weight adds to a key at `now`.
    pub(super) fn gain(&self, weight: f32, now: Time) -> f32 {
        self.decay.key(f64::from(weight), now) as f32
    }

    /// Moves the landmark if that is due. Returns by how many half-lives: keys outside the sketch must
    /// be
    /// [shifted](Decay::shifted) by as many.
    pub(super) fn advance(&mut self, now: Time) -> Option<u64> {
        let halves = self.decay.shift(now)?;
        for counter in &mut self.counters {
            *counter = Decay::shifted(*counter, halves);
        }
        Some(halves)
    }

    /// Bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.counters.capacity() * size_of::<f32>()
    }

    /// Where a page's counters are. The upper half of the product is uniform over 32 bits, and is scaled
    /// to the row.
    fn counters_of(&self, page: u32) -> [usize; ROWS] {
        let width = self.counters.len() / ROWS;
        std::array::from_fn(|row| {
            let hash = u64::from(page)
                .wrapping_add(1)
                .wrapping_mul(self.multipliers[row])
                >> 32;
            row * width + ((hash * width as u64) >> 32) as usize
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    const HALF_LIFE: Duration = Duration::from_secs(2);

    /// The frequency at `now` without a sample.
    fn frequency(sketch: &mut DecayingSketch, page: u32, now: Time) -> f64 {
        let key = sketch.add(page, 0.0, now);
        sketch.decay.value(key, now)
    }

    #[test]
    fn frequency_when_time_passes_halves_with_each_half_life() {
        let mut sketch = DecayingSketch::new(1 << 10, HALF_LIFE, 1);
        sketch.add(7, 3.0, Time(0));
        for halves in 0..10_u32 {
            let told = frequency(&mut sketch, 7, Time(0) + HALF_LIFE * halves);
            assert!((told - 3.0 * 0.5_f64.powi(halves as i32)).abs() < 1e-6);
        }
        assert_eq!(sketch.memory_bytes(), 1 << 10);
    }

    #[test]
    fn frequency_when_the_sketch_is_wide_is_that_of_the_page() {
        let mut sketch = DecayingSketch::new(1 << 20, HALF_LIFE, 1);
        for page in 0..1000 {
            for _ in 0..page % 7 {
                sketch.add(page, 1.0, Time(0));
            }
        }
        // 65 536 counters in each row: hardly a page shares all four with one of 1 000 others.
        for page in 0..1000 {
            assert_eq!(frequency(&mut sketch, page, Time(0)), f64::from(page % 7));
        }
    }

    proptest! {
        #[test]
        fn frequency_when_pages_share_counters_is_never_too_low(
            samples in vec((0..200_u32, 0.01..4.0_f32, 0..400_u64), 1..300),
            bytes in 0..2048_usize,
            seed in any::<u64>(),
        ) {
            let mut sketch = DecayingSketch::new(bytes, HALF_LIFE, seed);
            let mut exact = BTreeMap::<u32, f64>::new();
            let mut now = Time(0);
            let mut total = 0.0;
            for (page, weight, millis) in samples {
                let passed = Duration::from_millis(millis * 4);
                let kept = (-passed.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
                now = now + passed;
                exact.values_mut().for_each(|count| *count *= kept);
                total = total * kept + f64::from(weight);
                sketch.advance(now);
                sketch.add(page, weight, now);
                *exact.entry(page).or_default() += f64::from(weight);
            }
            for (page, count) in exact {
                let told = frequency(&mut sketch, page, now);
                prop_assert!(told >= count * (1.0 - 1e-4) - 1e-12, "{page}: {told}, has {count}");
                prop_assert!(told <= total * (1.0 + 1e-4), "{page}: {told} of {total}");
            }
        }
    }
}
