//! `sds`: a streaming decaying sketch beside two indexable heaps, whose tops change places.
//!
//! # What it does
//! - Each sample adds to its page's frequency in a `sketch` of fixed size. The sketch knows
//!   pages and no tiers, so that a move changes nothing in it.
//! - Two heaps find their pages by number: the slow tier's has the most frequent page on top, the fast
//!   tier's the least frequent. After each sample the page's entry takes the frequency that the sketch
//!   tells. Fast pages stand in their heap from the start, slow pages from their first sample on.
//! - Every 100 ms the tops change places, as long as the slow page is more frequent by one sample at
//!   least. Where DRAM has room, the slow page is promoted alone.
//!
//! # Constants
//! The sketch has 4 bytes for each page, as exact counts have, from 16 KiB to 4 MiB, unless
//! [`PolicySetup::sketch_bytes`] says otherwise. A frequency is that of a page's average 4 KiB, so that pages of
//! different sizes can be compared. Moves are bounded by the rate that the engine has by default
//! ([`EngineSettings::rate_bytes_per_s`]), both directions together.
//!
//! # What it lacks
//! It asks neither whether a difference is chance, nor whether a move pays. Pages that share counters in
//! the sketch seem hotter than they are.

mod heap;
mod sketch;

use std::time::Duration;

use tier_core::{
    addr::BASE_PAGE,
    heat::Decay,
    moves::Outcome,
    quota::TokenBucket,
    settings::{EngineSettings, Tier},
    time::Time,
};

use self::{heap::IndexableHeap, sketch::DecayingSketch};
use super::{
    Policy, PolicySetup, Seen,
    parts::{ENOUGH_FAILURES, Timer, largest_page, placed},
};
use crate::machine::{Host, Sample};

/// How often tops change places.
const PERIOD: Duration = Duration::from_millis(100);
const SKETCH_BYTES_A_PAGE: usize = 4;
const LEAST_SKETCH_BYTES: usize = 16 << 10;
const MOST_SKETCH_BYTES: usize = 4 << 20;

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Sds {
    sketch: DecayingSketch,
    /// Sampled pages of the slow tier.
    hottest: IndexableHeap,
    /// Pages of the fast tier.
    coldest: IndexableHeap,
    timer: Timer,
    quota: TokenBucket,
}

impl Sds {
    /// Starts without frequencies, with the pages where they lie.
    #[must_use]
    pub fn new(host: &Host, setup: &PolicySetup) -> Self {
        let usual = (host.guest().pages() as usize * SKETCH_BYTES_A_PAGE)
            .clamp(LEAST_SKETCH_BYTES, MOST_SKETCH_BYTES);
        let bytes = setup.sketch_bytes.unwrap_or(usual);
        let pages = host.guest().pages();
        let mut coldest = IndexableHeap::new(pages, f32::lt);
        for (page, tier) in placed(host) {
            if tier == Tier::Fast {
                coldest.put(page, 0.0);
            }
        }
        let settings = EngineSettings::default();
        let burst = settings.batch_bytes.max(2 * largest_page(host));
        Self {
            sketch: DecayingSketch::new(bytes, setup.half_life, setup.seed),
            hottest: IndexableHeap::new(pages, f32::gt),
            coldest,
            timer: Timer::new(PERIOD),
            quota: TokenBucket::new(settings.rate_bytes_per_s, burst, Time(0)),
        }
    }

    /// Moves the landmark of forward decay if that is due.
    fn advance(&mut self, now: Time) {
        let Some(halves) = self.sketch.advance(now) else {
            return;
        };
        for heap in [&mut self.hottest, &mut self.coldest] {
            heap.rescale(|key| Decay::shifted(key, halves));
        }
    }

    fn sample(&mut self, sample: &Sample, host: &Host) {
        let page = sample.page;
        // A weight of 0 says "watched and found idle".
        if page >= host.guest().pages() || sample.weight <= 0.0 {
            return;
        }
        let weight = sample.weight * share_of_frame(host.guest().page_bytes(page));
        let key = self.sketch.add(page, weight, sample.at);
        match host.tier(page) {
            Tier::Fast => self.coldest.put(page, key),
            Tier::Slow => self.hottest.put(page, key),
        }
    }

    /// Lets the tops of the heaps change places as long as that is worth it.
    fn exchange(&mut self, now: Time, host: &mut Host) {
        // Pages that could not be moved. They are tried again next time.
        let mut failed_hot = Vec::new();
        let mut failed_cold = Vec::new();
        while failed_hot.len() + failed_cold.len() < ENOUGH_FAILURES as usize
            && let Some((page, key)) = self.hottest.top()
        {
            let bytes = host.guest().page_bytes(page);
            if bytes > host.fast_bytes() {
                // It never fits.
                self.hottest.pop();
                continue;
            }
            if host.fast_free() >= bytes {
                if !self.quota.take(now, bytes) {
                    break;
                }
                self.hottest.pop();
                if host.promote(page) == Outcome::Moved {
                    self.coldest.put(page, key);
                } else {
                    self.quota.give_back(bytes);
                    failed_hot.push((page, key));
                }
                continue;
            }
            let Some((cold, least)) = self.coldest.top() else {
                break;
            };
            let cost = host.guest().page_bytes(cold);
            let one_sample = self.sketch.gain(share_of_frame(bytes), now);
            if key < least + one_sample || !self.quota.take(now, cost) {
                break;
            }
            self.coldest.pop();
            if host.demote(cold) == Outcome::Moved {
                if least > 0.0 {
                    self.hottest.put(cold, least);
                }
            } else {
                self.quota.give_back(cost);
                failed_cold.push((cold, least));
            }
        }
        for (page, key) in failed_hot {
            self.hottest.put(page, key);
        }
        for (page, key) in failed_cold {
            self.coldest.put(page, key);
        }
    }
}

/// What a sample of a page of so many bytes is worth to each of its 4 KiB.
fn share_of_frame(page_bytes: u64) -> f32 {
    BASE_PAGE as f32 / page_bytes as f32
}

impl Policy for Sds {
    fn name(&self) -> &'static str {
        "sds"
    }

    fn step(&mut self, seen: &Seen<'_>, host: &mut Host) {
        self.advance(seen.start);
        for sample in seen.samples {
            self.sample(sample, host);
        }
        if self.timer.is_due(seen) {
            self.exchange(seen.end, host);
        }
    }

    fn memory_bytes(&self) -> usize {
        self.sketch.memory_bytes() + self.hottest.memory_bytes() + self.coldest.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::{ops::Range, sync::Arc};

    use tier_core::sample::AccessKind;

    use super::*;
    use crate::machine::{Conditions, Failures, Guest, Slice};

    const PAGE: u64 = 4096;
    const SLICE: Duration = Duration::from_millis(10);

    /// 4 000 pages, of which the first 400 lie in DRAM.
    fn small(busy: f64) -> Host {
        let conditions = Conditions {
            failures: Failures {
                busy,
                ..Failures::default()
            },
            ..Conditions::default()
        };
        let guest = Guest::uniform(0, 4_000, PAGE);
        Host::new(Arc::new(guest), 400 * PAGE, conditions)
    }

    /// Slices with ten samples each, on pages that `page` names by the number of the sample.
    fn run(policy: &mut Sds, host: &mut Host, slices: Range<u32>, page: impl Fn(u32) -> u32) {
        for number in slices {
            let start = Time(0) + SLICE * number;
            let samples = (number * 10..(number + 1) * 10).map(|i| Sample {
                at: start,
                page: page(i),
                weight: 1.0,
                kind: AccessKind::Load,
                luck: 0,
            });
            let slice = Slice {
                start,
                end: start + SLICE,
                samples: samples.collect(),
                period: 4093,
                ..Slice::default()
            };
            host.enter(&slice);
            let seen = Seen {
                start: slice.start,
                end: slice.end,
                samples: &slice.samples,
                lost: 0,
                period: slice.period,
                tests: 0,
                touched: &[],
            };
            policy.step(&seen, host);
        }
        let fast = policy.coldest.pages().all(|page| host.is_fast(page));
        let slow = policy.hottest.pages().all(|page| !host.is_fast(page));
        assert!(fast && slow, "each heap has pages of its own tier only");
    }

    /// Nine in ten samples on 100 slow pages: 9 a second each.
    fn mostly_hot(i: u32) -> u32 {
        match i % 10 {
            0 => i * 7919 % 4_000,
            _ => 2_000 + (i - i / 10) * 31 % 100,
        }
    }

    #[test]
    fn pages_when_hot_on_the_slow_tier_are_exchanged_for_cold_ones() {
        let mut host = small(0.0);
        let mut policy = Sds::new(&host, &PolicySetup::default());
        run(&mut policy, &mut host, 0..1600, mostly_hot);
        assert!((2_000..2_100).all(|page| host.is_fast(page)));
        assert_eq!(policy.coldest.pages().count(), 400);
        assert_eq!(host.fast_free(), 0);
    }

    #[test]
    fn pages_when_the_sketch_has_few_counters_arrive_all_the_same() {
        let mut host = small(0.0);
        let setup = PolicySetup {
            // 250 counters in each row for 4 000 pages.
            sketch_bytes: Some(4_000),
            ..PolicySetup::default()
        };
        let mut policy = Sds::new(&host, &setup);
        run(&mut policy, &mut host, 0..1600, mostly_hot);
        let arrived = (2_000..2_100).filter(|&page| host.is_fast(page));
        assert_eq!(arrived.count(), 100);
    }

    #[test]
    fn pages_when_moves_often_fail_arrive_in_the_end() {
        let mut host = small(0.5);
        let mut policy = Sds::new(&host, &PolicySetup::default());
        run(&mut policy, &mut host, 0..1500, |i| 3_000 + i % 50);
        assert!((3_000..3_050).all(|page| host.is_fast(page)));
        assert!(host.ledger().failed[&Outcome::Busy] > 20);
        assert!(host.fast_used() <= host.fast_bytes());
    }

    #[test]
    fn pages_when_one_sample_does_not_part_them_stay() {
        let mut host = small(0.0);
        let mut policy = Sds::new(&host, &PolicySetup::default());
        // One sample for each fast page, then half as much as another would be worth for slow pages.
        run(&mut policy, &mut host, 0..40, |i| i);
        let moved = host.ledger().moves;
        run(&mut policy, &mut host, 40..80, |i| 1_000 + i % 400);
        assert_eq!((moved, host.ledger().moves), (0, 0));
    }

    #[test]
    fn frequencies_when_the_landmark_moves_keep_their_order() {
        let mut host = small(0.0);
        let setup = PolicySetup {
            half_life: Duration::from_millis(100),
            ..PolicySetup::default()
        };
        let mut policy = Sds::new(&host, &setup);
        // 20 s are 200 half-lives: the landmark moves three times.
        run(&mut policy, &mut host, 0..2000, mostly_hot);
        let (_, most) = policy.hottest.top().unwrap();
        assert!(most.is_finite() && most > 0.0, "{most}");
        let hot = (2_000..2_100).filter(|&page| host.is_fast(page));
        assert!(hot.count() >= 90);
    }
}
