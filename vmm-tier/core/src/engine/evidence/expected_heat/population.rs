//! The population of pages: how heats are spread over them, and what a page's count then says of its
//! heat.
//!
//! The hottest of many pages by count is mostly a page that had luck: were all pages equally hot, it
//! would be no hotter than the others. Each page's count is therefore judged by the spread of heats over
//! all pages, which is estimated from the counts of a sample of pages: *empirical Bayes* (Robbins, "An
//! empirical Bayes approach to statistics", Berkeley Symposium 1956). The spread is estimated without a
//! shape in mind, as weights of a grid of heats that make the sample most likely (Kiefer and Wolfowitz,
//! Annals of Mathematical Statistics 27, 1956), by expectation maximisation. A page's expected heat then
//! is the mean over the grid, each heat weighted by how well it explains the count. It is not misled by
//! choosing the extremes: where all pages are alike it is nearly the same for all.
//!
//! Counts here are plain counts, whose variance is their mean
//! ([`plain_counts`](crate::engine::significance::plain_counts)); a heat is the count that a
//! page has on average.

/// The grid: heats from 0.02 counts on, each 1.3 times the one before, to 140 000. Counts that tell two
/// neighbours apart are above 100, where the estimate is the count itself.
const GRID: usize = 61;
const FIRST: f64 = 0.02;
const RATIO: f64 = 1.3;

/// Counts are binned by their root, four bins to one: the root of a plain count varies by 1/2, so a bin
/// is half a standard deviation.
const BINS_PER_ROOT: f64 = 4.0;
const BINS: usize = 2048;

/// What is left of older samples of pages when a new one comes: together they weigh as five.
const KEPT: f64 = 0.8;
/// Rounds of expectation maximisation for each new sample; it goes on where the last ended.
const ROUNDS: usize = 40;
/// How often a heat that no page of the sample had is taken to occur: on one page in ten guests like
/// this, over all such heats.
const RARE: f64 = 0.1;

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct Population {
    weights: [f64; GRID],
    /// Pages of the samples, by binned count.
    bins: Vec<f64>,
    pages: f64,
}

impl Default for Population {
    fn default() -> Self {
        Self {
            weights: [1.0 / GRID as f64; GRID],
            bins: vec![0.0; BINS],
            pages: 0.0,
        }
    }
}

impl Population {
    /// Takes in the counts of some pages, chosen regardless of their heat, out of `pages` in all.
    pub(super) fn learn(&mut self, counts: impl IntoIterator<Item = f64>, pages: u64) {
        for bin in &mut self.bins {
            *bin *= KEPT;
        }
        for count in counts {
            let bin = (count.max(0.0).sqrt() * BINS_PER_ROOT).round() as usize;
            self.bins[bin.min(BINS - 1)] += 1.0;
        }
        self.pages = pages.max(1) as f64;
        let filled: Vec<(f64, [f64; GRID])> = explained(&self.bins).collect();
        let all: f64 = filled.iter().map(|(n, _)| n).sum();
        if all <= 0.0 {
            return;
        }
        let floor = RARE / self.pages / GRID as f64;
        for _ in 0..ROUNDS {
            let mut next = [0.0; GRID];
            for (n, likelihoods) in &filled {
                let sum: f64 = likelihoods
                    .iter()
                    .zip(&self.weights)
                    .map(|(l, w)| l * w)
                    .sum();
                for ((next, l), w) in next.iter_mut().zip(likelihoods).zip(&self.weights) {
                    *next += n / all * l * w / sum;
                }
            }
            for next in &mut next {
                *next = next.max(floor);
            }
            let sum: f64 = next.iter().sum();
            self.weights = next.map(|weight| weight / sum);
        }
    }

    /// Forgets the counts of earlier samples: they were others. The heats that they told of are where
    /// the next estimate begins.
    pub(super) fn forget_counts(&mut self) {
        self.bins.fill(0.0);
    }

    /// Whether it has learned from any page.
    pub(super) fn is_known(&self) -> bool {
        self.pages > 0.0
    }

    /// The heat that a page with this count is expected to have, in counts. Never falls when the count
    /// rises.
    pub(super) fn expected(&self, count: f64) -> f64 {
        let likelihoods = likelihoods(count.max(0.0));
        let (mut sum, mut mean) = (0.0, 0.0);
        for ((l, w), heat) in likelihoods.iter().zip(&self.weights).zip(grid()) {
            sum += l * w;
            mean += l * w * heat;
        }
        mean / sum
    }

    /// Whether the weights are a distribution.
    pub(super) fn is_valid(&self) -> bool {
        let sum: f64 = self.weights.iter().sum();
        (sum - 1.0).abs() < 1e-9 && self.weights.iter().all(|w| w.is_finite() && *w > 0.0)
    }
}

fn grid() -> impl Iterator<Item = f64> {
    std::iter::successors(Some(FIRST), |heat| Some(heat * RATIO)).take(GRID)
}

/// How many pages have each binned count, and how well each heat explains it.
fn explained(bins: &[f64]) -> impl Iterator<Item = (f64, [f64; GRID])> {
    let filled = (0u32..).zip(bins).filter(|(_, n)| **n > 1e-3);
    filled.map(move |(bin, &n)| {
        let root = f64::from(bin) / BINS_PER_ROOT;
        (n, likelihoods(root * root))
    })
}

/// How well each heat of the grid explains a count, up to a factor: Poisson, over the likeliest of them.
fn likelihoods(count: f64) -> [f64; GRID] {
    let mut logs = [0.0; GRID];
    for (log, heat) in logs.iter_mut().zip(grid()) {
        *log = count * heat.ln() - heat;
    }
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // Never 0, so that no count is without explanation.
    logs.map(|log| (log - most).exp().max(1e-300))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Poisson counts of pages with these heats, from a small generator (Knuth's product method, sums of
    /// small ones for large heats).
    fn counts(heats: impl Iterator<Item = f64>) -> Vec<f64> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut uniform = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            ((state >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
        };
        heats
            .map(|heat| {
                let (mut left, mut count) = (heat, 0.0);
                while left > 0.0 {
                    let limit = (-left.min(20.0)).exp();
                    left -= 20.0;
                    let mut product = uniform();
                    while product > limit {
                        product *= uniform();
                        count += 1.0;
                    }
                }
                count
            })
            .collect()
    }

    fn learned(heats: &[f64]) -> Population {
        let mut population = Population::default();
        for _ in 0..20 {
            population.learn(counts(heats.iter().copied()), heats.len() as u64);
        }
        assert!(population.is_valid());
        population
    }

    #[test]
    fn expected_when_all_pages_are_alike_is_nearly_the_same_for_all_counts_that_occur() {
        let population = learned(&vec![7.0; 4096]);
        // The extremes of 4096 Poisson counts of mean 7 are about 0 and 18.
        let (cold, hot) = (population.expected(1.0), population.expected(16.0));
        assert!(cold > 5.0 && hot < 9.5, "{cold} {hot}");
    }

    #[test]
    fn expected_when_pages_are_hot_or_cold_tells_which() {
        let heats: Vec<f64> = (0..4096)
            .map(|i| if i % 16 == 0 { 60.0 } else { 1.0 })
            .collect();
        let population = learned(&heats);
        assert!((population.expected(3.0) - 1.0).abs() < 0.3);
        assert!((population.expected(50.0) - 60.0).abs() < 8.0);
    }

    #[test]
    fn expected_when_a_count_was_never_met_believes_it_all_the_same() {
        let population = learned(&vec![1.0; 4096]);
        let found = population.expected(80.0);
        assert!((60.0..100.0).contains(&found), "{found}");
    }

    #[test]
    fn expected_when_the_count_rises_never_falls() {
        let heats: Vec<f64> = (1..4096).map(|rank| 2000.0 / f64::from(rank)).collect();
        let population = learned(&heats);
        let found: Vec<f64> = (0..4000)
            .map(|n| population.expected(f64::from(n) / 4.0))
            .collect();
        assert!(
            found
                .windows(2)
                .all(|pair| pair[0] <= pair[1] * (1.0 + 1e-9))
        );
    }

    #[test]
    fn expected_when_nothing_is_known_follows_the_count() {
        let population = Population::default();
        assert!(!population.is_known());
        assert!((population.expected(100.0) - 100.0).abs() < 10.0);
    }
}
