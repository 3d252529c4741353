//! The workloads: which page each sample falls on, and how the accesses really are spread at the end.

use tier_core::{dual_heap::PageId, random::Random};

/// Seconds after which the hot set of `HotScan` is another.
const SHIFT_S: u64 = 20;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// Zipf 0.99, as YCSB draws it.
    Zipf,
    /// 90 % to a sixteenth of the pages, 10 % to all (`HeMem`'s GUPS).
    Gups,
    Uniform,
    /// 60 % to a thirty-second of the pages, another every two half-lives; 40 % scan all pages in turn.
    HotScan,
}

impl Load {
    pub(crate) const ALL: [Self; 4] = [Self::Zipf, Self::Gups, Self::Uniform, Self::HotScan];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Zipf => "zipf-0.99",
            Self::Gups => "gups",
            Self::Uniform => "uniform",
            Self::HotScan => "hot+scan",
        }
    }

    /// The pages sampled, in order.
    pub(crate) fn samples(self, pages: u32, seconds: u64, per_s: u64) -> Vec<PageId> {
        let mut random = Random::new(1);
        let zipf = Zipf::new(pages);
        let count = seconds * per_s;
        (0..count)
            .map(|i| {
                let page = match self {
                    Self::Zipf => scattered(zipf.rank(random.share()), pages),
                    Self::Gups if random.happens(0.9) => {
                        scattered(drawn(&mut random, pages / 16), pages)
                    }
                    Self::Gups | Self::Uniform => drawn(&mut random, pages),
                    Self::HotScan if random.happens(0.6) => {
                        hot(i / per_s, drawn(&mut random, pages / 32), pages)
                    }
                    // Three times round, whatever the number of samples.
                    Self::HotScan => ((3 * i * u64::from(pages) / count) % u64::from(pages)) as u32,
                };
                PageId(page)
            })
            .collect()
    }

    /// The share of all accesses that each page draws at the end.
    pub(crate) fn rates(self, pages: u32, seconds: u64) -> Vec<f64> {
        let n = f64::from(pages);
        let mut rates = vec![
            match self {
                Self::Zipf => 0.0,
                Self::Gups => 0.1 / n,
                Self::Uniform => 1.0 / n,
                Self::HotScan => 0.4 / n,
            };
            pages as usize
        ];
        match self {
            Self::Zipf => {
                for rank in 0..pages {
                    rates[scattered(rank, pages) as usize] = (f64::from(rank) + 1.0).powf(-0.99);
                }
            }
            Self::Gups => (0..pages / 16)
                .for_each(|i| rates[scattered(i, pages) as usize] += 0.9 / (n / 16.0)),
            Self::Uniform => {}
            Self::HotScan => (0..pages / 32)
                .for_each(|i| rates[hot(seconds - 1, i, pages) as usize] += 0.6 / (n / 32.0)),
        }
        rates
    }
}

fn drawn(random: &mut Random, pages: u32) -> u32 {
    random.below(u64::from(pages)) as u32
}

/// An odd multiplier permutes the numbers below a power of two.
fn scattered(number: u32, pages: u32) -> u32 {
    number.wrapping_mul(0x9e37_79b1) % pages
}

fn hot(second: u64, number: u32, pages: u32) -> u32 {
    let set = (second / SHIFT_S) as u32;
    scattered(set * (pages / 32) + number, pages)
}

/// Gray et al., "Quickly Generating Billion-Record Synthetic Databases", SIGMOD 1994.
struct Zipf {
    n: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    const THETA: f64 = 0.99;

    fn new(pages: u32) -> Self {
        let zeta = |n: u32| {
            (1..=n)
                .map(|i| f64::from(i).powf(-Self::THETA))
                .sum::<f64>()
        };
        let n = f64::from(pages);
        let all = zeta(pages);
        let eta = (1.0 - (2.0 / n).powf(1.0 - Self::THETA)) / (1.0 - zeta(2) / all);
        Self { n, zeta: all, eta }
    }

    fn rank(&self, u: f64) -> u32 {
        let rank = match u * self.zeta {
            uz if uz < 1.0 => 0.0,
            uz if uz < 1.0 + 0.5f64.powf(Self::THETA) => 1.0,
            _ => self.n * (self.eta * u - self.eta + 1.0).powf(1.0 / (1.0 - Self::THETA)),
        };
        rank.min(self.n - 1.0) as u32
    }
}
