//! How the heat of a guest is spread over its memory, kept up to date page by page.

use super::curve::DemandCurve;
use crate::heat::{Decay, MIN_KEY};

/// Keys of one bucket share their exponent and the first bit of their mantissa: two buckets an octave.
const SHIFT: u32 = f32::MANTISSA_DIGITS - 2;
const FIRST: usize = (MIN_KEY.to_bits() >> SHIFT) as usize;
const BUCKETS: usize = (f32::MAX.to_bits() >> SHIFT) as usize + 1 - FIRST;

/// The bytes and the heat of all pages, in buckets of like keys.
///
/// A page's key under [forward decay](crate::heat) does not change until the page is sampled. So a page
/// changes its bucket when it is sampled, at a constant cost, and ageing touches nothing: the decay's
/// boost turns keys into rates when the curve is asked for. Takes 6 KiB.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatBuckets {
    buckets: Box<[Bucket; BUCKETS]>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Bucket {
    bytes: u64,
    /// Sum of key times bytes.
    key_bytes: f64,
}

impl Default for HeatBuckets {
    fn default() -> Self {
        Self {
            buckets: Box::new([Bucket::default(); BUCKETS]),
        }
    }
}

impl HeatBuckets {
    /// Counts `bytes` bytes of pages with this key. A key below [`MIN_KEY`] is no heat, and is not
    /// counted.
    pub fn add(&mut self, key: f32, bytes: u64) {
        if let Some(at) = bucket_of(key) {
            let bucket = &mut self.buckets[at];
            bucket.bytes = bucket.bytes.saturating_add(bytes);
            bucket.key_bytes += f64::from(key) * bytes as f64;
        }
    }

    /// Takes away what [`HeatBuckets::add`] counted.
    pub fn remove(&mut self, key: f32, bytes: u64) {
        if let Some(at) = bucket_of(key) {
            let bucket = &mut self.buckets[at];
            bucket.bytes = bucket.bytes.saturating_sub(bytes);
            // An empty bucket has no rounding errors left.
            bucket.key_bytes = match bucket.bytes {
                0 => 0.0,
                _ => bucket.key_bytes - f64::from(key) * bytes as f64,
            };
        }
    }

    /// Follows a landmark that moved by `halves` half-lives ([`Decay::shift`]): exact, as it is for
    /// keys.
    pub fn shift(&mut self, halves: u64) {
        let down = usize::try_from(halves.saturating_mul(2)).unwrap_or(usize::MAX);
        let down = down.min(BUCKETS);
        self.buckets.copy_within(down.., 0);
        self.buckets[BUCKETS - down..].fill(Bucket::default());
        let factor = (-(halves.min(1000) as f64)).exp2();
        for bucket in self.buckets.iter_mut() {
            bucket.key_bytes *= factor;
        }
    }

    /// The demand curve: a page of 4 KiB with a decayed count of 1 has `hits_per_count` hits a second.
    #[must_use]
    pub fn curve(&self, decay: &Decay, now: crate::time::Time, hits_per_count: f64) -> DemandCurve {
        let hits_per_key_byte =
            hits_per_count / crate::addr::BASE_PAGE as f64 * (-decay.age(now)).exp2();
        let filled = self
            .buckets
            .iter()
            .enumerate()
            .filter(|(_, bucket)| bucket.bytes > 0);
        DemandCurve::of_buckets(filled.map(|(at, bucket)| {
            // Rounding errors of many pages never leave the bucket's bounds.
            let [least, most] = [at, at + 1].map(|at| f64::from(least_key(at)));
            let key_bytes = bucket.key_bytes;
            let bytes = bucket.bytes as f64;
            let key_bytes = key_bytes.clamp(least * bytes, most * bytes);
            (bucket.bytes, key_bytes * hits_per_key_byte)
        }))
    }
}

fn bucket_of(key: f32) -> Option<usize> {
    (MIN_KEY..=f32::MAX)
        .contains(&key)
        .then(|| (key.to_bits() >> SHIFT) as usize - FIRST)
}

/// The least key of a bucket; the greatest key for the bucket behind the last.
fn least_key(bucket: usize) -> f32 {
    f32::from_bits(((bucket + FIRST) as u32) << SHIFT).min(f32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{random::Random, time::Time};

    const START: Time = Time(0);

    fn decay() -> Decay {
        Decay::new(Duration::from_secs(10), START)
    }

    #[test]
    fn buckets_when_pages_come_and_go_have_the_curve_of_those_that_stay() {
        let (mut random, mut buckets) = (Random::new(1), HeatBuckets::default());
        let key = |random: &mut Random| (random.share() * 40.0 - 20.0).exp2() as f32;
        let mut pages: Vec<f32> = (0..2000).map(|_| key(&mut random)).collect();
        for &key in &pages {
            buckets.add(key, 4096);
        }
        // Each page is sampled some times: it leaves its bucket for another.
        for _ in 0..20_000 {
            let page = random.below(pages.len() as u64) as usize;
            buckets.remove(pages[page], 4096);
            pages[page] = key(&mut random);
            buckets.add(pages[page], 4096);
        }
        let curve = buckets.curve(&decay(), START, 1.0);
        let exact = DemandCurve::of_buckets(pages.iter().map(|&key| (4096, f64::from(key))));
        assert!((curve.total_hits() / exact.total_hits() - 1.0).abs() < 1e-9);
        let mut fresh = HeatBuckets::default();
        pages.iter().for_each(|&key| fresh.add(key, 4096));
        let anew = fresh.curve(&decay(), START, 1.0);
        assert_eq!(curve.points().len(), anew.points().len());
        for page in 0..2000 {
            let bytes = f64::from(page) * 4096.0;
            let (is, was) = (curve.hits_at(bytes), exact.hits_at(bytes));
            assert!((is - was).abs() < 0.04 * exact.total_hits(), "{is} {was}");
        }
    }

    #[test]
    fn buckets_when_time_passes_and_the_landmark_moves_decay_as_keys_do() {
        let mut buckets = HeatBuckets::default();
        let mut decay = decay();
        buckets.add(1.0, 4096);
        buckets.add(3e18, 8192);
        let later = START + Duration::from_secs(640);
        let before = buckets.curve(&decay, later, 5.0);
        let halves = decay.shift(later).expect("64 half-lives have passed");
        buckets.shift(halves);
        let after = buckets.curve(&decay, later, 5.0);
        // The cold page's key fell below the least; the others' hits are 3e18 / 2^64 · 5 for each 4 KiB.
        assert_eq!(after.points().len(), 1);
        let hot = f64::from(3e18_f32) / 64_f64.exp2() * 5.0 * 2.0;
        assert!((after.total_hits() / hot - 1.0).abs() < 1e-12);
        assert_eq!(after.points()[0], before.points()[0]);
        buckets.shift(u64::MAX);
        assert_eq!(buckets, HeatBuckets::default());
    }

    #[test]
    fn buckets_when_fed_keys_that_are_none_stay_empty() {
        let mut buckets = HeatBuckets::default();
        for key in [0.0, -1.0, f32::NAN, f32::INFINITY, MIN_KEY / 2.0] {
            buckets.add(key, 4096);
            buckets.remove(key, 4096);
        }
        assert_eq!(buckets, HeatBuckets::default());
        buckets.add(f32::MAX, u64::MAX);
        buckets.add(MIN_KEY, 1);
        assert!(
            buckets
                .curve(&decay(), START, 1e300)
                .total_hits()
                .is_finite()
        );
    }
}
