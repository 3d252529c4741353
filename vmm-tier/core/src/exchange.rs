//! Whether a move pays: is the difference of two heats real, and is it worth the cost.
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

/// Plain counts behind one decayed count: 1 to 2, from the time counted, itself decayed like a count
/// (H / ln 2 · (1 − 2^(−t/H)), in seconds).
#[must_use]
pub fn plain_counts(decayed_s: f64, half_life_s: f64) -> f64 {
    let rest = 1.0 - decayed_s * std::f64::consts::LN_2 / half_life_s;
    2.0 / (1.0 + rest.clamp(0.0, 1.0))
}

/// How many standard deviations the decayed count `hot` lies above the decayed count `cold`, with so many
/// [plain counts](plain_counts) behind each: N = plain · C. Negative if it lies below. Counts below 0 are
/// taken as 0.
#[must_use]
pub fn significance(hot: f64, cold: f64, plain: f64) -> f64 {
    let root = |count: f64| (plain * count.max(0.0) + 0.375).sqrt();
    std::f64::consts::SQRT_2 * (root(hot) - root(cold))
}

/// The same where of what there is to count at `hot` only so many times as much is `seen` as at `cold`: below 1 where
/// the source sees it worse. With equal heats √(N + 3/8) of the second, brought to the first by √seen, has the variance
/// seen / 4 (Huffman, "An improved approximate two-sample Poisson test", Applied Statistics 33, 1984).
#[must_use]
pub fn significance_unlike(hot: f64, cold: f64, seen: f64, plain: f64) -> f64 {
    let root = |count: f64| (plain * count.max(0.0) + 0.375).sqrt();
    2.0 * (root(hot) - root(cold) * seen.sqrt()) / (1.0 + seen).sqrt()
}

/// The same for a source that tests pages and finds each used or not: `tests` is the decayed count of a
/// page that was found used at every test. Counts are then binomial, and near the top they vary far
/// less than Poisson counts do, so that two pages used almost always can still be told apart.
///
/// By the argument above the share C / T has the variance p(1 − p) / 2T, that of 2T plain tests. The
/// arcsine stabilises it: asin √p̂ has the variance 1 / 8T, with p̂ = (2C + 3/8) / (2T + 3/4)
/// (Anscombe, as above), hence for a difference
///
/// ```text
/// z = 2 √T · (asin √p̂ₐ − asin √p̂ᵦ)
/// ```
///
/// which for small shares is the z of [`significance`].
#[must_use]
pub fn share_significance(hot: f64, cold: f64, tests: f64) -> f64 {
    let angle = |count: f64| {
        let share = (2.0 * count.clamp(0.0, tests) + 0.375) / (2.0 * tests + 0.75);
        share.sqrt().asin()
    };
    2.0 * tests.sqrt() * (angle(hot) - angle(cold))
}

/// The z that the hottest of `slow_pages` against the coldest of `fast_pages` reaches by chance when
/// all pages are equally hot: an exchange below it is noise, however great the two counts.
///
/// The extremes of n normal values lie about √(2 ln n) standard deviations out; the difference of two
/// such pages is measured in units of √2. Exact enough for large counts, and an upper bound for
/// skewed small ones on the cold side, which cannot fall below zero.
#[must_use]
pub fn chance_significance(slow_pages: u64, fast_pages: u64) -> f64 {
    let extreme = |pages: u64| (2.0 * (pages.max(1) as f64).ln()).sqrt();
    (extreme(slow_pages) + extreme(fast_pages)) / std::f64::consts::SQRT_2
}

/// What it takes for a move to pay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PayBack {
    /// Latency of an access to the slow tier, from HMAT.
    pub slow_latency_ns: f64,
    /// Latency of an access to the fast tier, from HMAT.
    pub fast_latency_ns: f64,
    /// For how long the rates are expected to stay as they are.
    pub horizon_s: f64,
    /// The cost of moving one page of this size: the copy and what the guest waits.
    pub move_cost_ns: f64,
}

impl PayBack {
    /// What the guest gains within the horizon if the two pages change places.
    ///
    /// Rates are accesses (not samples) a second: with a source that reports one access in N, the
    /// rate of its samples times N.
    #[must_use]
    pub fn gain_ns(&self, hot_per_s: f64, cold_per_s: f64) -> f64 {
        (self.slow_latency_ns - self.fast_latency_ns) * (hot_per_s - cold_per_s) * self.horizon_s
    }

    /// What the moves cost: one if there is headroom, two if a page must be demoted for it.
    #[must_use]
    pub fn cost_ns(&self, moves: u32) -> f64 {
        self.move_cost_ns * f64::from(moves)
    }

    /// Whether the gain is at least the cost. Never for a gain of zero or less.
    #[must_use]
    pub fn pays(&self, hot_per_s: f64, cold_per_s: f64, moves: u32) -> bool {
        let gain_ns = self.gain_ns(hot_per_s, cold_per_s);
        gain_ns > 0.0 && gain_ns >= self.cost_ns(moves)
    }
}
