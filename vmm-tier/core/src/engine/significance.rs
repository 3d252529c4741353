//! How significant a difference of two decayed counts is.
//!
//! # The variance of a decayed count
//! A steady page gives events as a Poisson process of rate r. Under decay with half-life H its count
//! is C = Σ 2^(−sᵢ/H) over the events' ages sᵢ. By Campbell's theorem
//!
//! ```text
//! E C   = r ∫ 2^(−s/H)  ds = r · H / ln 2
//! Var C = r ∫ 2^(−2s/H) ds = r · H / (2 ln 2) = E C / 2
//! ```
//!
//! A decayed count thus varies *half* as much as a plain count of the same mean (it remembers more
//! events than its value says), and 2C has a variance equal to its mean, as a Poisson count has.
//!
//! That is the steady state. After a time t of counting from nothing, both integrals end at t, and
//!
//! ```text
//! E C / Var C = 2 (1 − 2^(−t/H)) / (1 − 2^(−2t/H)) = 2 / (1 + 2^(−t/H))
//! ```
//!
//! plain counts stand behind one decayed count: 1 at first, when nothing has decayed yet, and soon 2.
//!
//! # The test
//! The difference over its standard deviation, (a − b) / √((a + b) / 2), is asymptotic and flatters
//! the counts near zero that decide most often: the coldest page has b = 0. The square root
//! stabilises the variance of a Poisson count N: 2√(N + 3/8) has a variance near 1 from N ≈ 2 on
//! (Anscombe, "The transformation of Poisson, binomial and negative-binomial data", Biometrika 35,
//! 1948). With N = 2C for each of the two, and a difference of two such values having variance 2:
//!
//! ```text
//! z = √2 · (√(2a + 3/8) − √(2b + 3/8))
//! ```
//!
//! Against b = 0 this needs a ≥ 1.9 for z = 2 and a ≥ 3.6 for z = 3.

/// Plain counts behind one decayed count: 1 to 2. `decayed_s` is the time counted, itself decayed like a
/// count (H / ln 2 · (1 − 2^(−t/H)), in seconds).
///
/// That it is not always 2 is worth 18 % of the bytes on generated accesses, and 58 % on `gups-demeter`
/// with DRAM for a quarter of the guest, for 0.1 points of hits (docs/results/policies.md).
pub(crate) fn plain_counts(decayed_s: f64, half_life_s: f64) -> f64 {
    let rest = 1.0 - decayed_s * std::f64::consts::LN_2 / half_life_s;
    2.0 / (1.0 + rest.clamp(0.0, 1.0))
}

/// Standard deviations by which the decayed count `hot` lies above the decayed count `cold`; negative if
/// it lies below. N = plain · C is the number of [plain counts](plain_counts) behind each. Counts below
/// 0 are taken as 0.
pub(crate) fn of_counts(hot: f64, cold: f64, plain: f64) -> f64 {
    let root = |count: f64| (plain * count.max(0.0) + 0.375).sqrt();
    std::f64::consts::SQRT_2 * (root(hot) - root(cold))
}

/// The z for a source that tests pages and finds each used or not. `tests` is the decayed count of a
/// page that was found used at every test. Counts are then binomial. Near the top they vary far less
/// than Poisson counts do, so two pages that are used almost always can still be told apart.
///
/// By the argument above the share C / T has the variance p(1 − p) / 2T, that of 2T plain tests. The
/// arcsine stabilises it: asin √p̂ has the variance 1 / 8T, with p̂ = (2C + 3/8) / (2T + 3/4)
/// (Anscombe, as above), hence for a difference
///
/// ```text
/// z = 2 √T · (asin √p̂ₐ − asin √p̂ᵦ)
/// ```
///
/// which for small shares is the z of counts.
pub(crate) fn of_shares(hot: f64, cold: f64, tests: f64) -> f64 {
    let angle = |count: f64| {
        let share = (2.0 * count.clamp(0.0, tests) + 0.375) / (2.0 * tests + 0.75);
        share.sqrt().asin()
    };
    2.0 * tests.sqrt() * (angle(hot) - angle(cold))
}

/// The z that the hottest of `slow_pages` against the coldest of `fast_pages` reaches by chance when
/// all pages are equally hot. An exchange below it is noise, however great the two counts.
///
/// The extremes of n normal values lie about √(2 ln n) standard deviations out; the difference of two
/// such pages is measured in units of √2. This is exact enough for large counts. For skewed small counts
/// it is an upper bound on the cold side, which cannot fall below zero.
///
/// Worth 31 % of the bytes on `scattered`, 40 % where the hot set is larger than DRAM, at equal hits;
/// 4 % on the recorded programs (docs/results/policies.md).
pub(crate) fn by_chance(slow_pages: u64, fast_pages: u64) -> f64 {
    let extreme = |pages: u64| (2.0 * (pages.max(1) as f64).ln()).sqrt();
    (extreme(slow_pages) + extreme(fast_pages)) / std::f64::consts::SQRT_2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Var C = E C / 2 is what the test of significance stands on.
    #[test]
    fn decayed_count_of_a_poisson_process_when_simulated_varies_half_as_much_as_its_mean() {
        // A linear congruential generator (Knuth's MMIX constants): the test needs no better one.
        let mut state = 1u64;
        let mut uniform = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let (rate, runs) = (10.0, 4000);
        let counts: Vec<f64> = (0..runs)
            .map(|_| {
                // Events of the last 20 half-lives, H = 1.
                let (mut age, mut count) = (0.0, 0.0);
                while age < 20.0 {
                    count += f64::exp2(-age);
                    age -= (1.0 - uniform()).ln() / rate;
                }
                // The first event stands at age 0 without having been drawn.
                count - 1.0
            })
            .collect();
        let mean = counts.iter().sum::<f64>() / f64::from(runs);
        let variance = counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / f64::from(runs);
        assert!((mean - rate / std::f64::consts::LN_2).abs() < 0.2, "{mean}");
        assert!((variance / mean - 0.5).abs() < 0.04, "{variance} / {mean}");
    }

    #[test]
    fn significance_when_counts_are_small_needs_more_than_one_event() {
        // Worked from the formula: √2 (√(2a + 3/8) − √(3/8)).
        assert!(of_counts(1.0, 0.0, 2.0) < 2.0);
        assert!(of_counts(1.9, 0.0, 2.0) > 2.0);
        assert!(of_counts(3.6, 0.0, 2.0) > 3.0);
        assert_eq!(of_counts(5.0, 5.0, 2.0), 0.0);
        assert!(of_counts(1.0, 5.0, 2.0) < 0.0);
    }

    #[test]
    fn plain_counts_when_counting_begins_are_one_and_soon_two() {
        let after = |t: f64| {
            let decayed = 10.0 / std::f64::consts::LN_2 * (1.0 - (-t / 10.0).exp2());
            plain_counts(decayed, 10.0)
        };
        assert_eq!(after(0.0), 1.0);
        assert!((after(10.0) - 4.0 / 3.0).abs() < 1e-9);
        assert!((after(200.0) - 2.0).abs() < 1e-5);
        // A source that says that it watched longer than there was time for.
        assert_eq!(plain_counts(1e9, 10.0), 2.0);
    }

    #[test]
    fn share_significance_when_shares_are_small_is_that_of_counts() {
        for (hot, cold) in [(5.0, 0.0), (40.0, 20.0), (3.0, 9.0)] {
            let (share, count) = (of_shares(hot, cold, 1e6), of_counts(hot, cold, 2.0));
            assert!(
                (share - count).abs() < 0.01,
                "{hot} {cold}: {share} {count}"
            );
        }
    }

    #[test]
    fn share_significance_when_pages_are_almost_always_used_tells_them_apart() {
        // Found used at every one of 3000 tests, and at 39 of 40 of them.
        assert!(of_shares(3000.0, 2925.0, 3000.0) > 10.0);
        assert!(of_counts(3000.0, 2925.0, 2.0) < 2.0);
        // More than all tests is taken as all.
        assert_eq!(of_shares(4000.0, 3000.0, 3000.0), 0.0);
    }

    #[test]
    fn chance_significance_when_there_are_more_pages_is_greater() {
        assert_eq!(by_chance(1, 1), 0.0);
        // √(2 ln 80000) = 4.75, √(2 ln 20000) = 4.45, their sum over √2 is 6.51.
        assert!((by_chance(80_000, 20_000) - 6.51).abs() < 0.01);
    }
}
