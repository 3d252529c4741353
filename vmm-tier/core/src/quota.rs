//! How much may be moved: a token bucket for the rate.

use crate::time::Time;

const NS_PER_S: u128 = 1_000_000_000;

/// Grants bytes at a steady rate, with bursts. Over any span of t seconds it grants at most
/// `rate · t + burst` bytes. Starts full.
///
/// Counts in billionths of a byte, so nothing is lost to rounding however often it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    rate_bytes_per_s: u64,
    burst_bytes: u64,
    level_byte_ns: u128,
    filled_at: Time,
}

impl TokenBucket {
    /// A full bucket. A burst smaller than the largest page would never let that page move.
    #[must_use]
    pub fn new(rate_bytes_per_s: u64, burst_bytes: u64, now: Time) -> Self {
        Self {
            rate_bytes_per_s,
            burst_bytes,
            level_byte_ns: u128::from(burst_bytes) * NS_PER_S,
            filled_at: now,
        }
    }

    /// Bytes a second.
    #[must_use]
    pub fn rate_bytes_per_s(&self) -> u64 {
        self.rate_bytes_per_s
    }

    /// The most bytes that are granted at once.
    #[must_use]
    pub fn burst_bytes(&self) -> u64 {
        self.burst_bytes
    }

    /// Bytes that would be granted at `now`.
    #[must_use]
    pub fn available(&self, now: Time) -> u64 {
        u64::try_from(self.level_at(now) / NS_PER_S).unwrap_or(u64::MAX)
    }

    /// Takes all of `bytes` or nothing; returns whether they were granted.
    pub fn take(&mut self, now: Time, bytes: u64) -> bool {
        let granted = bytes <= self.available(now);
        if granted {
            self.take_up_to(now, bytes);
        }
        granted
    }

    /// Takes what there is, at most `bytes`; returns what was granted.
    pub fn take_up_to(&mut self, now: Time, bytes: u64) -> u64 {
        self.fill(now);
        let granted = bytes.min(self.available(now));
        self.level_byte_ns -= u128::from(granted) * NS_PER_S;
        granted
    }

    /// Gives back bytes that were granted and not used (a move that failed), up to the burst.
    pub fn give_back(&mut self, bytes: u64) {
        self.level_byte_ns =
            (self.level_byte_ns + u128::from(bytes) * NS_PER_S).min(self.full_byte_ns());
    }

    /// Changes rate and burst from `now` on; what has gathered so far stays, up to the new burst.
    pub fn set_rate(&mut self, now: Time, rate_bytes_per_s: u64, burst_bytes: u64) {
        self.fill(now);
        self.rate_bytes_per_s = rate_bytes_per_s;
        self.burst_bytes = burst_bytes;
        self.level_byte_ns = self.level_byte_ns.min(self.full_byte_ns());
    }

    /// Whether the level is within the burst.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.level_byte_ns <= self.full_byte_ns()
    }

    fn full_byte_ns(&self) -> u128 {
        u128::from(self.burst_bytes) * NS_PER_S
    }

    fn level_at(&self, now: Time) -> u128 {
        let gained = now.since(self.filled_at).as_nanos() * u128::from(self.rate_bytes_per_s);
        (self.level_byte_ns + gained).min(self.full_byte_ns())
    }

    /// Time that goes back fills nothing, and the same time is never counted twice.
    fn fill(&mut self, now: Time) {
        self.level_byte_ns = self.level_at(now);
        self.filled_at = self.filled_at.max(now);
    }
}
