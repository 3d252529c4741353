//! Forward decay: an exponentially decayed count that ages without being touched.
//!
//! Source: Cormode, Shkapenyuk, Srivastava, Xu, "Forward Decay: A Practical Time Decay Model for
//! Streaming Systems", ICDE 2009, with the exponential function g(n) = 2^(n / H).
//!
//! A sample of weight w at time t adds `w · boost(t)`, `boost(t) = 2^((t − L) / H)`, to a page's *key*.
//! The decayed count at time `now` is `key / boost(now)`: the divisor is the same for all pages, so
//! the order of two pages is the order of their keys, at any time, until one of them is sampled.
//! Before the boost grows out of range the landmark L moves by a whole number k of half-lives and all
//! keys are multiplied by 2^−k, which is exact in binary floating point.

use std::time::Duration;

use crate::time::Time;

/// Half-lives between landmark and now after which the landmark is moved. Keys then lie below
/// 2^64 times the greatest count, far from the end of `f32` (2^127).
const SHIFT_AT_HALF_LIVES: i128 = 64;

/// The least key: a smaller one is nothing, and its page is forgotten. A count is remembered for at
/// least 62 half-lives after its last sample, in which it falls below 10^−18. (Not 2^−126, where `f32`
/// ends: the bit patterns in between are words of the dual heaps.)
pub const MIN_KEY: f32 = f32::from_bits((127 - 62) << 23);

/// How far one change of unit may move the landmark, in half-lives: keys stay far from the ends of
/// `f32`.
const MAX_SCALE: f64 = 20.0;

/// The shortest half-life accepted: a shorter one is below what any source resolves.
pub const MIN_HALF_LIFE: Duration = Duration::from_millis(1);
/// The longest half-life accepted: a week.
pub const MAX_HALF_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// The clock of forward decay: a half-life and a landmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decay {
    half_life_ns: i128,
    /// May lie before the epoch, when the half-life was made longer.
    landmark_ns: i128,
}

impl Decay {
    /// A decay with its landmark at `landmark`. The half-life is brought into
    /// [`MIN_HALF_LIFE`]..=[`MAX_HALF_LIFE`].
    #[must_use]
    pub fn new(half_life: Duration, landmark: Time) -> Self {
        Self {
            half_life_ns: bounded_ns(half_life),
            landmark_ns: i128::from(landmark.0),
        }
    }

    /// The half-life.
    #[must_use]
    pub fn half_life(&self) -> Duration {
        Duration::from_nanos(u64::try_from(self.half_life_ns).unwrap_or(u64::MAX))
    }

    /// Half-lives from the landmark to `t`; negative before it.
    #[must_use]
    pub fn age(&self, t: Time) -> f64 {
        (i128::from(t.0) - self.landmark_ns) as f64 / self.half_life_ns as f64
    }

    /// What a sample of weight 1 at `t` adds to a key.
    #[must_use]
    pub fn boost(&self, t: Time) -> f64 {
        self.age(t).exp2()
    }

    /// The decayed count at `now` of a page with this key.
    #[must_use]
    pub fn value(&self, key: f32, now: Time) -> f64 {
        f64::from(key) * (-self.age(now)).exp2()
    }

    /// The key of a page whose decayed count at `now` is `count`.
    #[must_use]
    pub fn key(&self, count: f64, now: Time) -> f64 {
        count * self.boost(now)
    }

    /// Moves the landmark if that is due at `now`; returns the number k of half-lives it moved by.
    /// The caller must then pass every key through [`Decay::shifted`].
    #[must_use]
    pub fn shift(&mut self, now: Time) -> Option<u64> {
        let halves = (i128::from(now.0) - self.landmark_ns) / self.half_life_ns;
        if halves < SHIFT_AT_HALF_LIVES {
            return None;
        }
        self.landmark_ns += halves * self.half_life_ns;
        Some(u64::try_from(halves).unwrap_or(u64::MAX))
    }

    /// A key after the landmark moved by `halves` half-lives: `key · 2^−halves`, exact unless the
    /// result is below [`MIN_KEY`], which becomes 0: the heat is forgotten.
    #[must_use]
    pub fn shifted(key: f32, halves: u64) -> f32 {
        // Through f64, whose range holds the factor for every shift that leaves anything of an f32.
        let factor = (-(halves.min(1000) as f64)).exp2();
        key_or_zero(f64::from(key) * factor)
    }

    /// Multiplies every decayed count by `factor`, brought into 2^±20: all counts are in another unit
    /// now. Nothing changes for a factor that is not above 0.
    ///
    /// No key changes: the landmark moves.
    pub fn scale(&mut self, factor: f64) {
        if factor > 0.0 {
            let halves = factor.log2().clamp(-MAX_SCALE, MAX_SCALE);
            self.landmark_ns += (halves * self.half_life_ns as f64).round() as i128;
        }
    }

    /// Changes the half-life so that every key keeps its decayed count at `now`.
    ///
    /// No key changes: the landmark moves to where its age at `now`, in half-lives, stays the same.
    pub fn set_half_life(&mut self, half_life: Duration, now: Time) {
        let new_ns = bounded_ns(half_life);
        let now_ns = i128::from(now.0);
        // In integers: the product stays below 2^64 · 2^60 and the landmark is right to 1 ns.
        self.landmark_ns = now_ns - (now_ns - self.landmark_ns) * new_ns / self.half_life_ns;
        self.half_life_ns = new_ns;
    }
}

/// A key as `f32`: 0 below [`MIN_KEY`], the greatest finite number above the range.
#[must_use]
pub(crate) fn key_or_zero(key: f64) -> f32 {
    let key = (key as f32).min(f32::MAX);
    if key >= MIN_KEY { key } else { 0.0 }
}

fn bounded_ns(half_life: Duration) -> i128 {
    let bounded = half_life.clamp(MIN_HALF_LIFE, MAX_HALF_LIFE);
    i128::try_from(bounded.as_nanos()).unwrap_or(i128::MAX)
}
