//! `lru`: the pages that were sampled last belong in DRAM.
//!
//! Fast pages stand in a list by the time of their last sample, those without one at its end, in the
//! order of first touch. A sample of a slow page promotes it; for its room the least recently sampled
//! fast pages are demoted. This is what every cache does, with samples in place of accesses, and it
//! knows recency only: one sample is as good as a hundred.
//!
//! Moves are bounded by the rate that the engine has by default ([`EngineSettings::rate_bytes_per_s`]),
//! both directions together; a sample that comes when it is used up promotes nothing.

use tier_core::{
    moves::Outcome,
    quota::TokenBucket,
    settings::{EngineSettings, Tier},
    time::Time,
};

use super::{
    Policy, PolicySetup, Seen,
    lists::Lists,
    parts::{ENOUGH_FAILURES, largest_page, placed},
};
use crate::machine::Host;

/// The only list: the fast pages.
const FAST: u8 = 0;

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Lru {
    lists: Lists,
    quota: TokenBucket,
}

impl Lru {
    /// Starts from where the pages lie.
    #[must_use]
    pub fn new(host: &Host, _setup: &PolicySetup) -> Self {
        let mut lists = Lists::new(host.shared_guest(), 1);
        for (page, tier) in placed(host) {
            if tier == Tier::Fast {
                lists.put_in_front(FAST, page);
            }
        }
        let settings = EngineSettings::default();
        let burst = settings.batch_bytes.max(2 * largest_page(host));
        Self {
            lists,
            quota: TokenBucket::new(settings.rate_bytes_per_s, burst, Time(0)),
        }
    }

    /// Demotes the oldest pages until so many bytes are free. Whether they are.
    fn make_room(&mut self, bytes: u64, now: Time, host: &mut Host) -> bool {
        let mut failures = 0;
        while host.fast_free() < bytes {
            let Some(oldest) = self.lists.back(FAST) else {
                return false;
            };
            let cost = host.guest().page_bytes(oldest);
            if failures == ENOUGH_FAILURES || !self.quota.take(now, cost) {
                return false;
            }
            if host.demote(oldest) == Outcome::Moved {
                self.lists.remove(oldest);
            } else {
                // It may be pinned: the next one in line has its turn.
                self.lists.put_in_front(FAST, oldest);
                self.quota.give_back(cost);
                failures += 1;
            }
        }
        true
    }
}

impl Policy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn step(&mut self, seen: &Seen<'_>, host: &mut Host) {
        for sample in seen.samples {
            let page = sample.page;
            // A weight of 0 says "watched and found idle".
            if page >= host.guest().pages() || sample.weight <= 0.0 {
                continue;
            }
            if host.is_fast(page) {
                self.lists.put_in_front(FAST, page);
                continue;
            }
            let bytes = host.guest().page_bytes(page);
            if bytes > host.fast_bytes() || !self.make_room(bytes, seen.end, host) {
                continue;
            }
            if !self.quota.take(seen.end, bytes) {
                continue;
            }
            if host.promote(page) == Outcome::Moved {
                self.lists.put_in_front(FAST, page);
            } else {
                self.quota.give_back(bytes);
            }
        }
    }

    fn memory_bytes(&self) -> usize {
        self.lists.memory_bytes()
    }
}
