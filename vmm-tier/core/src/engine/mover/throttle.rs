//! How fast pages are moved: a token bucket, and rests when nothing that is tried succeeds or pays.
//!
//! None is worth hits or bytes in a replay: bucket and rests bound what the agent costs the host. The
//! rest after looks in vain saves 7 % of the engine's CPU time for a sample on generated accesses, and
//! 17 % on the recorded programs, where it costs 0.1 points of hits (docs/results/policies.md).

use std::time::Duration;

use crate::{quota::TokenBucket, settings::EngineSettings, time::Time};

/// The rest after the second batch in a row of which nothing moved; doubled with each further batch.
const FIRST_REST: Duration = Duration::from_millis(100);
/// The longest rest: a host that refuses every move is asked again this often.
const LONGEST_REST: Duration = Duration::from_secs(10);
/// The rest for each page that was looked at for an exchange that does not pay: a hundred times what the
/// look takes. Without it, a guest that lacks headroom and whose pages are all alike would be searched
/// at every event.
const REST_A_LOOK: Duration = Duration::from_micros(200);

/// When the next batch may go and how large it may be.
#[derive(Debug)]
pub(super) struct Throttle {
    bucket: TokenBucket,
    /// When the last batch is paid for that took more than the bucket held: a huge page may be larger
    /// than all it can hold.
    paid_at: Option<Time>,
    /// Batches in a row of which nothing moved.
    fruitless: u32,
    rest_until: Time,
    /// Until when no exchange is looked for.
    looks_at: Time,
    /// When a batch that had to wait for tokens may go.
    wakes_at: Option<Time>,
}

impl Throttle {
    pub(super) fn new(settings: &EngineSettings, now: Time) -> Self {
        Self {
            bucket: TokenBucket::new(settings.rate_bytes_per_s, settings.batch_bytes, now),
            paid_at: None,
            fruitless: 0,
            rest_until: Time(0),
            looks_at: Time(0),
            wakes_at: None,
        }
    }

    /// Changes the rate from `now` on. What has gathered stays, so a higher rate starts without a burst;
    /// what is owed is paid at the new rate.
    pub(super) fn set_rate(&mut self, now: Time, rate_bytes_per_s: u64, burst_bytes: u64) {
        if let Some(paid_at) = self.paid_at {
            // What comes in while a debt is paid counts for nothing: it must not gather.
            self.bucket.take_up_to(now, u64::MAX);
            let rate = u128::from(self.bucket.rate_bytes_per_s());
            let owed = paid_at.since(now).as_nanos() * rate / 1_000_000_000;
            self.bucket.set_rate(now, rate_bytes_per_s, burst_bytes);
            let owed = u64::try_from(owed).unwrap_or(u64::MAX);
            self.paid_at = (owed > 0).then(|| now + self.time_for(owed));
        } else {
            self.bucket.set_rate(now, rate_bytes_per_s, burst_bytes);
        }
        // Whoever waited looks again when.
        self.wakes_at = self.wakes_at.map(|_| now);
    }

    /// The bytes that a batch may have now, or `None` if it is too early for one.
    ///
    /// Waits until half a batch has gathered: each kernel call has a price for the whole host (it
    /// drains every CPU's page lists), so a large number of small calls costs more than it moves.
    pub(super) fn budget(&mut self, now: Time) -> Option<u64> {
        self.wakes_at = None;
        if self.rests(now) {
            return None;
        }
        if let Some(paid_at) = self.paid_at {
            if now < paid_at {
                self.wakes_at = Some(paid_at);
                return None;
            }
            // What came in until then went into the debt.
            self.bucket.take_up_to(paid_at, u64::MAX);
            self.paid_at = None;
        }
        let least = (self.bucket.burst_bytes() / 2).max(1);
        let available = self.bucket.available(now);
        if available < least {
            self.wakes_at = Some(now + self.time_for(least - available));
            return None;
        }
        Some(available)
    }

    /// Takes the bytes of a batch, which may be more than its budget.
    pub(super) fn take(&mut self, now: Time, bytes: u64) {
        let owed = bytes - self.bucket.take_up_to(now, bytes);
        self.paid_at = (owed > 0).then(|| now + self.time_for(owed));
    }

    fn time_for(&self, bytes: u64) -> Duration {
        let rate = u128::from(self.bucket.rate_bytes_per_s().max(1));
        let ns = (u128::from(bytes) * 1_000_000_000).div_ceil(rate);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// Takes note of a finished batch.
    pub(super) fn finished(&mut self, now: Time, any_moved: bool) {
        if any_moved {
            self.fruitless = 0;
            return;
        }
        self.fruitless = self.fruitless.saturating_add(1);
        let doublings = self.fruitless.saturating_sub(2).min(16);
        if self.fruitless > 1 {
            self.rest_until = now + (FIRST_REST * (1 << doublings)).min(LONGEST_REST);
        }
    }

    /// Whether it rests after batches of which nothing moved.
    pub(super) fn rests(&self, now: Time) -> bool {
        now < self.rest_until
    }

    /// Takes note that `pages` pages were looked at for an exchange that does not pay.
    pub(super) fn looked_in_vain(&mut self, now: Time, pages: usize) {
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        self.looks_at = now + REST_A_LOOK.saturating_mul(pages);
    }

    /// Whether an exchange may be looked for.
    pub(super) fn may_look(&self, now: Time) -> bool {
        now >= self.looks_at
    }

    /// Whether the bucket holds no more than a burst.
    pub(super) fn is_valid(&self) -> bool {
        self.bucket.is_valid()
    }

    /// When something may move that had to wait; `None` if nothing waits.
    pub(super) const fn wakes_at(&self) -> Option<Time> {
        self.wakes_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn throttle() -> Throttle {
        let settings = EngineSettings {
            rate_bytes_per_s: 8 * MIB,
            batch_bytes: 4 * MIB,
            ..EngineSettings::default()
        };
        Throttle::new(&settings, Time(0))
    }

    #[test]
    fn looks_when_in_vain_rest_as_long_as_they_were_many() {
        let mut throttle = throttle();
        let at = |ms: u64| Time(ms * 1_000_000);
        throttle.looked_in_vain(at(0), 1);
        assert!(!throttle.may_look(at(0)) && throttle.may_look(at(1)));
        throttle.looked_in_vain(at(1), 1024);
        assert!(!throttle.may_look(at(200)) && throttle.may_look(at(206)));
        assert!(throttle.budget(at(200)).is_some(), "orders do not wait");
    }

    #[test]
    fn budget_when_a_batch_took_more_than_there_was_waits_until_it_is_paid() {
        let mut throttle = throttle();
        assert_eq!(throttle.budget(Time(0)), Some(4 * MIB));
        // A page of 1 GiB: 1020 MiB of debt, then half a batch, at 8 MiB a second.
        throttle.take(Time(0), 1 << 30);
        for wait_ms in [127_500, 127_750] {
            let wake = Time(0) + Duration::from_millis(wait_ms);
            assert_eq!(throttle.budget(Time(wake.0 - 1_000_000)), None);
            let error = throttle.wakes_at().unwrap().since(wake);
            assert!(error < Duration::from_micros(1), "rounded to a byte");
            let before = throttle.budget(wake);
            assert_eq!(before.is_some(), wait_ms == 127_750);
        }
        assert_eq!(throttle.wakes_at(), None);
    }

    #[test]
    fn rate_when_changed_gives_no_burst_and_debts_are_paid_at_the_new_rate() {
        let mut throttle = throttle();
        throttle.take(Time(0), 4 * MIB);
        throttle.set_rate(Time(0), 64 * MIB, 4 * MIB);
        assert_eq!(throttle.budget(Time(0)), None, "what was taken stays taken");
        // Half a batch of 4 MiB at 64 MiB/s.
        let half = Time(0) + Duration::from_micros(31_250);
        assert_eq!(throttle.budget(Time(half.0 - 1000)), None);
        assert_eq!(throttle.budget(half), Some(2 * MIB));
        // 30 MiB beyond the 2 MiB that there are, at 64 MiB/s; a quarter second later 14 MiB are left,
        // and at 7 MiB/s they take two seconds more.
        throttle.take(half, 32 * MIB);
        let later = half + Duration::from_millis(250);
        throttle.set_rate(later, 7 * MIB, 4 * MIB);
        assert_eq!(throttle.budget(later + Duration::from_millis(1999)), None);
        // Then half a batch.
        let ready = Duration::from_millis(2000) + Duration::from_secs(2) / 7;
        assert_eq!(
            throttle.budget(later + (ready - Duration::from_millis(1))),
            None
        );
        assert!(
            throttle
                .budget(later + ready + Duration::from_millis(1))
                .is_some()
        );
    }

    #[test]
    fn rests_when_nothing_moves_grow_and_end_with_a_success() {
        let mut throttle = throttle();
        throttle.finished(Time(0), false);
        assert!(
            throttle.budget(Time(0)).is_some(),
            "one failure may be chance"
        );
        let mut now = Time(0);
        for expected_ms in [100, 200, 400] {
            throttle.finished(now, false);
            let rest = Duration::from_millis(expected_ms);
            assert_eq!(throttle.budget(Time((now + rest).0 - 1)), None);
            now = now + rest;
            assert!(throttle.budget(now).is_some());
        }
        for _ in 0..100 {
            throttle.finished(now, false);
        }
        assert!(throttle.budget(now + LONGEST_REST).is_some());
        throttle.finished(now, true);
        throttle.finished(now + LONGEST_REST, false);
        assert!(throttle.budget(now + LONGEST_REST).is_some());
    }
}
