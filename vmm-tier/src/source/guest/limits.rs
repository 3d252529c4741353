//! How much of a guest's agent is taken in: bytes, samples, reports and observed time, each by a token
//! bucket that outlives sessions.

use tier_core::{
    quota::TokenBucket,
    time::Time,
    wire::{Credit, MAX_FRAME},
};

/// Bytes a second, and at once: thirty times what 10 000 samples a second take.
const BYTES: (u64, u64) = (1 << 20, 2 << 20);
/// Single accesses a second, and at once.
const ACCESSES: (u64, u64) = (200_000, 400_000);
/// Reports of regions a second, and at once: each may touch all of the guest's pages.
const REPORTS: (u64, u64) = (20, 40);
/// Microseconds of observation that may be claimed for each second, and at once. A little more than
/// time itself: clocks differ.
const OBSERVED_US: (u64, u64) = (1_100_000, 10_000_000);
/// Frames that may be on their way.
const WINDOW_FRAMES: u64 = 64;
/// Bytes that may be on their way.
const WINDOW_BYTES: u64 = 256 << 10;
/// Accesses in a frame of an agent that keeps to the rules: so many frames fit what is left of a burst.
const ACCESSES_A_FRAME: u64 = 4096;

/// What is still allowed.
#[derive(Debug)]
pub(super) struct Limits {
    bytes: TokenBucket,
    accesses: TokenBucket,
    reports: TokenBucket,
    observed_us: TokenBucket,
    /// Bytes that were looked at more than once, to be paid for before more are read.
    debt: u64,
}

impl Limits {
    pub(super) fn new(now: Time) -> Self {
        let bucket = |(rate, burst)| TokenBucket::new(rate, burst, now);
        Self {
            bytes: bucket(BYTES),
            accesses: bucket(ACCESSES),
            reports: bucket(REPORTS),
            observed_us: bucket(OBSERVED_US),
            debt: 0,
        }
    }

    /// Bytes that may be read now.
    pub(super) fn may_read(&mut self, now: Time) -> usize {
        self.debt -= self.bytes.take_up_to(now, self.debt);
        if self.debt > 0 {
            return 0;
        }
        self.bytes.available(now).min(MAX_FRAME as u64) as usize
    }

    pub(super) fn has_read(&mut self, now: Time, bytes: usize) {
        self.bytes.take_up_to(now, bytes as u64);
    }

    /// A frame's checksum was computed in vain: its bytes will be looked at again.
    pub(super) fn charge_corrupt(&mut self) {
        self.debt = self.debt.saturating_add(MAX_FRAME as u64);
    }

    pub(super) fn take_accesses(&mut self, now: Time, count: u64) -> bool {
        self.accesses.take(now, count)
    }

    /// A report of regions that claims to have observed for so long.
    pub(super) fn take_report(&mut self, now: Time, observed_us: u64) -> bool {
        self.reports.available(now) > 0
            && self.observed_us.take(now, observed_us)
            && self.reports.take(now, 1)
    }

    /// What may be sent beyond what has come.
    pub(super) fn credit(&self, now: Time, came: Credit) -> Credit {
        let frames = self.accesses.available(now) / ACCESSES_A_FRAME;
        let bytes = self.bytes.available(now).saturating_sub(self.debt);
        Credit {
            sequence: came.sequence.saturating_add(frames.min(WINDOW_FRAMES)),
            bytes: came.bytes.saturating_add(bytes.min(WINDOW_BYTES)),
        }
    }

    /// Whether `new` is so much more than `told` that the guest should hear of it.
    pub(super) const fn is_worth_telling(new: Credit, told: Credit) -> bool {
        new.sequence >= told.sequence.saturating_add(WINDOW_FRAMES / 4)
            || new.bytes >= told.bytes.saturating_add(WINDOW_BYTES / 4)
    }
}
