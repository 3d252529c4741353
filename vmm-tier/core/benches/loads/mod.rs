//! Which pages samples fall on, and the clock, for the benches of heaps.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tier_core::dual_heap::PageId;

/// A load and its name.
pub(crate) type Load = (&'static str, fn(u32, usize) -> Vec<PageId>);

pub(crate) const LOADS: [Load; 3] = [("zipf-0.99", zipf), ("gups", gups), ("uniform", uniform)];

/// CPU time of this thread: what others do on the machine is not in it, but for the caches they share.
pub(crate) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Uniform numbers: splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn below(&mut self, end: u32) -> u32 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u32
    }
}

/// Zipf ranks with exponent 0.99, as YCSB draws them (Gray et al., SIGMOD 1994), spread over the pages.
pub(crate) fn zipf(pages: u32, samples: usize) -> Vec<PageId> {
    const THETA: f64 = 0.99;
    let n = f64::from(pages);
    let (zeta_n, zeta_2) = (zeta(pages, THETA), zeta(2, THETA));
    let eta = (1.0 - (2.0 / n).powf(1.0 - THETA)) / (1.0 - zeta_2 / zeta_n);
    let mut random = Random(1);
    let draw = || {
        let u = random.unit();
        let rank = match u * zeta_n {
            uz if uz < 1.0 => 0,
            uz if uz < zeta_2 => 1,
            _ => (n * (eta * u - eta + 1.0).powf(1.0 / (1.0 - THETA))) as u32,
        };
        // An odd multiplier permutes the ranks of a power of two of pages.
        PageId(rank.min(pages - 1).wrapping_mul(0x9e37_79b1) % pages)
    };
    std::iter::repeat_with(draw).take(samples).collect()
}

/// Σ 1/i^θ for i = 1 ..= n; past the first million by the integral, which is right to 10^−9 there.
fn zeta(n: u32, theta: f64) -> f64 {
    let summed = n.min(1 << 20);
    let sum: f64 = (1..=summed).map(|i| f64::from(i).powf(-theta)).sum();
    let integral = |i: u32| (f64::from(i) + 0.5).powf(1.0 - theta) / (1.0 - theta);
    sum + integral(n) - integral(summed)
}

/// GUPS: 90 % of samples fall on the last sixteenth of the pages, the others anywhere.
pub(crate) fn gups(pages: u32, samples: usize) -> Vec<PageId> {
    let hot = pages / 16;
    let mut random = Random(2);
    let draw = || match random.below(10) {
        0 => PageId(random.below(pages)),
        _ => PageId(pages - hot + random.below(hot)),
    };
    std::iter::repeat_with(draw).take(samples).collect()
}

pub(crate) fn uniform(pages: u32, samples: usize) -> Vec<PageId> {
    let mut random = Random(3);
    std::iter::repeat_with(|| PageId(random.below(pages)))
        .take(samples)
        .collect()
}
