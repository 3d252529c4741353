//! `random`: pages of the two tiers change places at random. The zero line for policies that move.
//!
//! In each second pages of a hundredth of DRAM are exchanged, spread over the time. A slow page and fast
//! pages for it are drawn at random, alike for all. What was observed has no influence.

use std::time::Duration;

use tier_core::{moves::Outcome, quota::TokenBucket, random::Random, settings::Tier};

use super::{
    Policy, PolicySetup, Seen,
    parts::{ENOUGH_FAILURES, Timer, largest_page, placed},
};
use crate::machine::Host;

/// How often pages are exchanged.
const PERIOD: Duration = Duration::from_millis(100);
/// DRAM over the bytes that are promoted in a second.
const DRAM_OVER_RATE: u64 = 100;

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct RandomExchange {
    random: Random,
    timer: Timer,
    /// Pages of the two tiers, in no order.
    fast: Vec<u32>,
    slow: Vec<u32>,
    quota: TokenBucket,
}

impl RandomExchange {
    /// Starts from where the pages lie.
    #[must_use]
    pub fn new(host: &Host, setup: &PolicySetup) -> Self {
        let (mut fast, mut slow) = (Vec::new(), Vec::new());
        for (page, tier) in placed(host) {
            match tier {
                Tier::Fast => fast.push(page),
                Tier::Slow => slow.push(page),
            }
        }
        let rate = host.fast_bytes() / DRAM_OVER_RATE;
        let burst = (rate / 10).max(largest_page(host));
        Self {
            random: Random::new(setup.seed),
            timer: Timer::new(PERIOD),
            fast,
            slow,
            quota: TokenBucket::new(rate, burst, tier_core::time::Time(0)),
        }
    }

    /// Exchanges one slow page for as many fast ones as it takes. Whether all of it succeeded.
    fn exchange(&mut self, host: &mut Host) -> bool {
        let chosen = self.random.below(self.slow.len() as u64) as usize;
        let bytes = host.guest().page_bytes(self.slow[chosen]);
        while host.fast_free() < bytes {
            if self.fast.is_empty() {
                return false;
            }
            let victim = self.random.below(self.fast.len() as u64) as usize;
            if host.demote(self.fast[victim]) != Outcome::Moved {
                return false;
            }
            let page = self.fast.swap_remove(victim);
            self.slow.push(page);
        }
        if host.promote(self.slow[chosen]) != Outcome::Moved {
            return false;
        }
        let page = self.slow.swap_remove(chosen);
        self.fast.push(page);
        true
    }
}

impl Policy for RandomExchange {
    fn name(&self) -> &'static str {
        "random"
    }

    fn step(&mut self, seen: &Seen<'_>, host: &mut Host) {
        if !self.timer.is_due(seen) {
            return;
        }
        let mut failures = 0;
        while failures < ENOUGH_FAILURES && !self.slow.is_empty() && !self.fast.is_empty() {
            // The average page will do: a page is paid for before it is known which one it is.
            let bytes = host.guest().bytes() / u64::from(host.guest().pages());
            if !self.quota.take(seen.end, bytes) {
                break;
            }
            failures = if self.exchange(host) { 0 } else { failures + 1 };
        }
    }

    fn memory_bytes(&self) -> usize {
        (self.fast.capacity() + self.slow.capacity()) * size_of::<u32>()
    }
}
