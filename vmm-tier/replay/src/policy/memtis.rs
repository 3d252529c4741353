//! `memtis`: counts in a logarithmic histogram, from which follows who is hot (Lee, Monga, Min and Eom,
//! "MEMTIS: Efficient Memory Tiering with Dynamic Page Classification and Page Size Determination", SOSP
//! 2023, and its published kernel).
//!
//! # What it does
//! - Every sample adds to its page's count: 1 for a huge page, 512 for a 4 KiB page, so that counts are
//!   accesses for each byte and pages of different sizes can be compared.
//! - A histogram of 16 bins holds how much memory has a count of 2ⁿ − 1 to 2ⁿ⁺¹ − 2. Every 100 000
//!   samples the *hot threshold* is read from it: the lowest bin from which on everything fits into
//!   DRAM. If what is hot leaves a quarter of DRAM or more, the bin below is *warm*: not promoted, but
//!   not demoted either.
//! - Every 2 000 000 samples all counts are halved (*cooling*). Between coolings counts only grow, so
//!   the threshold only rises; after one it may fall by one bin, as everything in the histogram does.
//! - `kmigrated` wakes up every 500 ms. If the fast tier's free memory does not suffice for the hot
//!   pages of the slow one, it demotes inactive pages from the tail of their list, none that is warm
//!   unless nothing else is left; then it promotes the hot pages, as far as the watermark allows.
//!
//! # Constants
//! Bins, periods, shares and the 2 GiB/s of migration are those of the published kernel (`htmm.h`,
//! `htmm_core.c`, `htmm_migrater.c`), with two exceptions:
//! - *Periods counted in samples* are those of its own sampling, 1 access in 199. At 1 in 4093 the same
//!   number of samples is twenty times as many accesses: a guest with 8 000 samples a second would be
//!   cooled once in four minutes, and counts of small guests would long have left the histogram. They
//!   are therefore scaled by 199 / period, so that cooling comes after as many *accesses* as in the
//!   source. This makes it adapt sooner. With a period below 199 they stay as published.
//! - *Watermarks*: 2 % of DRAM is kept free, 3 % before a promotion. The source has lower bounds of 50
//!   and 100 MB, which are for machines; a small replayed guest would have no DRAM left, so they are
//!   left out. The upper bounds (1000 and 1500 MB) stand.
//!
//! # What is not modelled
//! Splitting huge pages whose heat is skewed, and the histogram of 4 KiB pages that decides it: a
//! replayed page keeps its size. The sampling period that adapts to a CPU quota of 3 %: all policies see
//! the same samples. New pages that start as hot: the guest's memory is all there at the start.

use std::{sync::Arc, time::Duration};

use tier_core::{addr::HUGE_PAGE, moves::Outcome, quota::TokenBucket, time::Time};

use super::{
    Policy, PolicySetup, Seen,
    lists::Lists,
    parts::{ENOUGH_FAILURES, Timer, largest_page, lists},
};
use crate::machine::{Guest, Host, Sample};

const FAST_INACTIVE: u8 = 0;
const FAST_ACTIVE: u8 = 1;
const SLOW_INACTIVE: u8 = 2;
const SLOW_ACTIVE: u8 = 3;

const BINS: usize = 16;
/// The sampling period for which the periods below are meant.
const OWN_PERIOD: u64 = 199;
/// Samples from one cooling to the next.
const COOLING_SAMPLES: u64 = 2_000_000;
/// Samples from one look at the histogram to the next.
const ADAPTATION_SAMPLES: u64 = 100_000;
/// The lowest hot threshold.
const LEAST_HOT: usize = 1;
/// How often `kmigrated` wakes up.
const WAKE: Duration = Duration::from_millis(500);
const RATE_BYTES_PER_S: u64 = 2 << 30;

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Memtis {
    guest: Arc<Guest>,
    counts: Vec<u32>,
    lists: Lists,
    /// Bytes of the pages in each bin.
    histogram: [u64; BINS],
    hot: usize,
    warm: usize,
    cooled: bool,
    /// Lists are to be brought to a new threshold.
    adjust: bool,
    sampled: u64,
    cooling_samples: u64,
    adaptation_samples: u64,
    /// Bytes of hot pages that fit.
    room: u64,
    keep_free: u64,
    free_to_promote: u64,
    wake: Timer,
    rate: TokenBucket,
    work: Work,
}

/// What is left to do since the last wake-up.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    demote_bytes: u64,
    demote_scan: u32,
    promote_scan: u32,
    demoted: u64,
    wanted: u64,
}

impl Memtis {
    /// Starts without counts, with the pages where they lie.
    #[must_use]
    pub fn new(host: &Host, setup: &PolicySetup) -> Self {
        let guest = host.shared_guest();
        let mut histogram = [0; BINS];
        histogram[0] = guest.bytes();
        let fast = host.fast_bytes();
        let free_to_promote = (fast / 100 * 3).min(1500 << 20);
        let scaled = |samples: u64| (samples * OWN_PERIOD / setup.period.max(OWN_PERIOD)).max(1);
        Self {
            counts: vec![0; guest.pages() as usize],
            lists: lists(host, 4, FAST_INACTIVE, SLOW_INACTIVE),
            histogram,
            hot: LEAST_HOT,
            warm: LEAST_HOT,
            cooled: false,
            adjust: false,
            sampled: 0,
            cooling_samples: scaled(COOLING_SAMPLES),
            adaptation_samples: scaled(ADAPTATION_SAMPLES),
            room: fast - free_to_promote,
            keep_free: (fast / 100 * 2).min(1000 << 20),
            free_to_promote,
            wake: Timer::new(WAKE),
            rate: TokenBucket::new(
                RATE_BYTES_PER_S,
                (RATE_BYTES_PER_S / 100).max(largest_page(host)),
                Time(0),
            ),
            work: Work::default(),
            guest,
        }
    }

    /// The bin from which on pages are hot.
    #[must_use]
    pub const fn hot_threshold(&self) -> usize {
        self.hot
    }

    /// The bin from which on pages are not demoted.
    #[must_use]
    pub const fn warm_threshold(&self) -> usize {
        self.warm
    }

    /// A page's count: accesses for each 2 MiB. 0 for a page that does not exist.
    #[must_use]
    pub fn count(&self, page: u32) -> u32 {
        self.counts.get(page as usize).copied().unwrap_or(0)
    }

    /// Samples from one cooling to the next.
    #[must_use]
    pub const fn cooling_samples(&self) -> u64 {
        self.cooling_samples
    }

    fn sample(&mut self, sample: &Sample) {
        let page = sample.page;
        let Some(count) = self.counts.get_mut(page as usize) else {
            return;
        };
        if sample.weight <= 0.0 {
            return;
        }
        let bytes = self.guest.page_bytes(page);
        let each = (HUGE_PAGE / bytes).max(1) as f32;
        let before = bin(*count);
        *count = count.saturating_add((sample.weight * each) as u32);
        let after = bin(*count);
        self.histogram[before] -= bytes;
        self.histogram[after] += bytes;
        self.list(page);
        self.sampled += 1;
        if self.sampled.is_multiple_of(self.cooling_samples) {
            self.cool();
        } else if self.sampled.is_multiple_of(self.adaptation_samples) {
            self.adapt();
        }
    }

    /// Puts a page into the list that its count asks for, if it is not there.
    fn list(&mut self, page: u32) {
        let is_hot = bin(self.counts[page as usize]) >= self.hot;
        let target = match (self.lists.list_of(page), is_hot) {
            (Some(FAST_INACTIVE), true) => FAST_ACTIVE,
            (Some(FAST_ACTIVE), false) => FAST_INACTIVE,
            (Some(SLOW_INACTIVE), true) => SLOW_ACTIVE,
            (Some(SLOW_ACTIVE), false) => SLOW_INACTIVE,
            _ => return,
        };
        self.lists.put_in_front(target, page);
    }

    fn cool(&mut self) {
        self.histogram = [0; BINS];
        for (page, count) in (0..).zip(&mut self.counts) {
            *count /= 2;
            self.histogram[bin(*count)] += self.guest.page_bytes(page);
        }
        self.cooled = true;
        self.adjust = true;
    }

    fn adapt(&mut self) {
        let mut hot_bytes = 0;
        let mut lowest = BINS;
        while lowest > 0 && hot_bytes + self.histogram[lowest - 1] <= self.room {
            lowest -= 1;
            hot_bytes += self.histogram[lowest];
        }
        // Even the hottest bin alone may be too much; it is hot nevertheless.
        let fitting = lowest.clamp(LEAST_HOT, BINS - 1);
        if std::mem::take(&mut self.cooled) {
            if fitting < self.hot {
                self.hot = (self.hot - 1).max(LEAST_HOT);
            }
            self.adjust = true;
        } else if fitting > self.hot {
            self.hot = fitting;
            self.adjust = true;
        }
        let warm = usize::from(hot_bytes < self.room / 100 * 75);
        self.warm = self.hot - warm;
    }

    /// What `kmigrated` finds to do when it wakes up.
    fn wake_up(&mut self, host: &Host) {
        if std::mem::take(&mut self.adjust) {
            for page in 0..self.guest.pages() {
                self.list(page);
            }
        }
        let wanted = self.lists.bytes(SLOW_ACTIVE);
        let enough = if wanted > 0 {
            wanted + self.free_to_promote
        } else {
            self.keep_free
        };
        let free = host.fast_free();
        let demote_bytes = if free < enough {
            (wanted + self.free_to_promote).saturating_sub(free)
        } else {
            0
        };
        self.work = Work {
            demote_bytes,
            demote_scan: self.lists.len(FAST_INACTIVE),
            promote_scan: self.lists.len(SLOW_ACTIVE),
            demoted: 0,
            wanted,
        };
    }

    fn demote(&mut self, now: Time, host: &mut Host) {
        let mut failures = 0;
        while self.work.demoted < self.work.demote_bytes && self.work.demote_scan > 0 {
            let Some(page) = self.lists.back(FAST_INACTIVE) else {
                break;
            };
            if bin(self.counts[page as usize]) < self.warm {
                let bytes = self.guest.page_bytes(page);
                if failures == ENOUGH_FAILURES || !self.rate.take(now, bytes) {
                    return;
                }
                if host.demote(page) == Outcome::Moved {
                    self.lists.put_in_front(SLOW_INACTIVE, page);
                    self.work.demoted += bytes;
                    failures = 0;
                } else {
                    self.rate.give_back(bytes);
                    self.lists.put_in_front(FAST_INACTIVE, page);
                    failures += 1;
                }
            } else {
                self.lists.put_in_front(FAST_INACTIVE, page);
            }
            self.work.demote_scan -= 1;
        }
        // Hot pages wait and too little was cold: next time warm pages go as well.
        if self.work.demoted < self.work.demote_bytes.min(self.work.wanted) {
            self.warm = self.hot;
        }
        self.work.demote_bytes = 0;
    }

    fn promote(&mut self, now: Time, host: &mut Host) {
        let mut failures = 0;
        while self.work.promote_scan > 0 {
            let Some(page) = self.lists.back(SLOW_ACTIVE) else {
                break;
            };
            let bytes = self.guest.page_bytes(page);
            let short = host.fast_free() < self.free_to_promote + bytes;
            if short || failures == ENOUGH_FAILURES || !self.rate.take(now, bytes) {
                return;
            }
            if host.promote(page) == Outcome::Moved {
                self.lists.put_in_front(FAST_ACTIVE, page);
                failures = 0;
            } else {
                self.rate.give_back(bytes);
                self.lists.put_in_front(SLOW_ACTIVE, page);
                failures += 1;
            }
            self.work.promote_scan -= 1;
        }
    }
}

/// The bin of a count: the logarithm of the count + 1 to the base 2.
const fn bin(count: u32) -> usize {
    let bin = (count as u64 + 1).ilog2() as usize;
    if bin < BINS { bin } else { BINS - 1 }
}

impl Policy for Memtis {
    fn name(&self) -> &'static str {
        "memtis"
    }

    fn step(&mut self, seen: &Seen<'_>, host: &mut Host) {
        for sample in seen.samples {
            self.sample(sample);
        }
        if self.wake.is_due(seen) {
            self.wake_up(host);
        }
        self.demote(seen.end, host);
        self.promote(seen.end, host);
    }

    fn memory_bytes(&self) -> usize {
        self.counts.capacity() * size_of::<u32>() + self.lists.memory_bytes()
    }
}
