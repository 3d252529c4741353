//! `sketch`: exchange as the engine does, over heat in bounded memory ([`SketchHeat`]).
//!
//! # What it does
//! - Samples go into the sketch, whose counts decay with the half-life.
//! - The hottest slow page and the coldest fast page change places if the difference of their counts is
//!   significant, more so than that of the extremes of so many equally hot pages, and pays back within the
//!   horizon ([`crate::exchange`]). Room that is free is filled by the same rule, against a page that nobody uses.
//! - A page that moved is left alone for the cooldown; what could not be moved, for as long as its class says.
//! - Nothing moves in the warm-up, nor beyond the rate.
//!
//! # Constants
//! Those of [`EngineSettings`]. The sketch is granted 2 bytes for each page, 16 KiB at least and 1 MiB at most;
//! [`Sketch::with_bytes`] takes any other size. Beside it, each page has two bits.
//!
//! # Pages of several sizes
//! Heat is counted for each byte of the smallest page: a sample on a page of n times that size adds 1/n. What is
//! compared are the samples that a page of the hot one's size would have.
//!
//! # What it can't know
//! A page that the sketch has forgotten counts as never sampled. Its count is then taken as 0 in the test, though
//! it is only below those of the pages that pushed it out: with too small a sketch, DRAM pages that are used a
//! little give way to hotter ones too easily.

use std::{sync::Arc, time::Duration};

use super::{Policy, PolicySetup, Seen, parts::ENOUGH_FAILURES};
use crate::{
    dual_heap::{PageId, Placement},
    exchange::{self, PayBack},
    moves::{self, Outcome},
    quota::TokenBucket,
    replay::{Guest, Host, Sample},
    settings::{EngineSettings, Tier},
    sketch::{SketchHeat, SketchTooSmall},
    time::Time,
};

const BYTES_PER_PAGE: usize = 2;
const LEAST_BYTES: usize = 16 << 10;
const MOST_BYTES: usize = 1 << 20;
/// Cold pages that are tried for the room of one hot page, beyond those that it takes.
const SPARE_VICTIMS: u32 = ENOUGH_FAILURES;

/// See the [module](self).
pub struct Sketch {
    guest: Arc<Guest>,
    heat: SketchHeat,
    settings: EngineSettings,
    observed: Observed,
    bucket: TokenBucket,
    /// Of the fast and the slow tier, in nanoseconds.
    latencies: (f64, f64),
    /// The page size that heat is counted for.
    unit_bytes: u64,
    /// A batch of samples on its way into the sketch.
    batch: Vec<PageId>,
}

/// A page that was taken, and its decayed count for each unit of bytes.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: PageId,
    bytes: u64,
    count: f64,
}

/// What was observed of the whole guest, decayed as the counts of pages are.
#[derive(Clone, Copy, Debug, Default)]
struct Observed {
    /// When the first slice began.
    since: Option<Time>,
    at: Time,
    seconds: f64,
    samples: f64,
    /// Tests of each page, for a source that tests pages.
    looks: f64,
    period: f64,
}

impl Observed {
    fn take(&mut self, seen: &Seen<'_>, half_life: Duration) {
        let since = *self.since.get_or_insert(seen.start);
        let passed = seen.end.since(self.at.max(since));
        let left = (-passed.as_secs_f64() / half_life.as_secs_f64()).exp2();
        let new: f64 = seen.samples.iter().map(|s| f64::from(s.weight)).sum();
        self.seconds = self.seconds * left + seen.end.since(seen.start).as_secs_f64();
        self.samples = self.samples * left + new;
        self.looks = self.looks * left + f64::from(seen.tests);
        self.period = seen.period.max(1) as f64;
        self.at = seen.end;
    }

    /// How long the guest has been observed.
    fn span(&self) -> Duration {
        self.since
            .map_or(Duration::ZERO, |since| self.at.since(since))
    }

    /// Plain counts behind a decayed one.
    fn plain(&self, half_life: Duration) -> f64 {
        exchange::plain_counts(self.seconds, half_life.as_secs_f64())
    }

    /// Accesses a second of a page with this many samples. A page that is tested is found used or not,
    /// however often: λ = −ln(1 − share) accesses a test, if they come at random.
    fn rate(&self, samples: f64) -> f64 {
        if self.seconds <= 0.0 {
            return 0.0;
        }
        if self.looks <= 0.0 {
            return samples * self.period / self.seconds;
        }
        let share = samples.min(self.looks) / (self.looks + 1.0);
        -(-share).ln_1p() * self.looks / self.seconds
    }
}

impl Sketch {
    /// A sketch of 2 bytes a page, from 16 KiB to 1 MiB.
    #[must_use]
    pub fn new(host: &Host, setup: &PolicySetup) -> Self {
        let pages = host.guest().pages();
        let bytes = (pages as usize * BYTES_PER_PAGE).clamp(LEAST_BYTES, MOST_BYTES);
        let bytes = bytes.max(SketchHeat::least_bytes(pages));
        Self::with_bytes(host, setup, bytes)
            .unwrap_or_else(|_| unreachable!("it is as large as it must be"))
    }

    /// A sketch of so many bytes.
    ///
    /// # Errors
    /// If that is too small for the guest.
    pub fn with_bytes(
        host: &Host,
        setup: &PolicySetup,
        bytes: usize,
    ) -> Result<Self, SketchTooSmall> {
        let settings = EngineSettings {
            half_life: setup.half_life,
            ..EngineSettings::default()
        };
        let guest = host.shared_guest();
        let mut heat = SketchHeat::new(guest.pages(), bytes, setup.half_life, setup.seed)?;
        for page in 0..guest.pages() {
            heat.place(PageId(page), placement(host.tier(page)));
        }
        let sizes = guest.ranges().map(|range| range.page_bytes);
        Ok(Self {
            unit_bytes: sizes.min().unwrap_or(1),
            guest,
            heat,
            bucket: TokenBucket::new(settings.rate_bytes_per_s, settings.batch_bytes, Time(0)),
            settings,
            latencies: host.latencies(),
            observed: Observed::default(),
            batch: Vec::new(),
        })
    }

    /// The store of heat.
    #[must_use]
    pub fn heat(&self) -> &SketchHeat {
        &self.heat
    }

    fn units(&self, bytes: u64) -> f64 {
        (bytes / self.unit_bytes).max(1) as f64
    }

    fn take_samples(&mut self, now: Time, samples: &[Sample]) {
        let (guest, unit_bytes) = (Arc::clone(&self.guest), self.unit_bytes);
        let weight = |sample: &Sample| {
            let units = guest.page_bytes(sample.page) / unit_bytes;
            sample.weight / units.max(1) as f32
        };
        let known = |sample: &&Sample| sample.page < guest.pages();
        let mut samples = samples.iter().filter(known).peekable();
        while let Some(first) = samples.next() {
            let of_all = weight(first);
            self.batch.clear();
            self.batch.push(PageId(first.page));
            while let Some(next) = samples.next_if(|next| weight(next) == of_all) {
                self.batch.push(PageId(next.page));
            }
            self.heat.sample_batch(now, &self.batch, of_all);
        }
    }

    /// Exchanges pages until none pays any more, or the budget is used up.
    fn exchange(&mut self, now: Time, host: &mut Host) {
        // As the engine does: many calls of few pages cost more than they move.
        if self.bucket.available(now) < self.bucket.burst_bytes() / 2 {
            return;
        }
        let least_z = self.least_z();
        let mut failures = 0;
        while failures < ENOUGH_FAILURES && self.bucket.available(now) > 0 {
            let Some((id, count)) = self.heat.take_hottest_slow(now) else {
                return;
            };
            let hot = self.candidate(id, count);
            if !self.pays(hot, None, least_z) || !self.make_room(now, hot, least_z, host) {
                self.heat.settle(hot.id, Placement::Slow, None);
                return;
            }
            if self.promote(now, hot, host) {
                failures = 0;
            } else {
                failures += 1;
            }
        }
    }

    /// Demotes cold pages until the hot one has room. `false` if there are not enough that pay.
    fn make_room(&mut self, now: Time, hot: Candidate, least_z: f64, host: &mut Host) -> bool {
        let wanted = hot.bytes.saturating_sub(host.fast_free());
        // All or none: to demote less than what the hot page needs would be of no use.
        let mut victims: Vec<Candidate> = Vec::new();
        let (mut bytes, mut units) = (0, 0.0);
        while bytes < wanted {
            let Some((id, count)) = self.heat.take_coldest_fast(now) else {
                break;
            };
            let cold = self.candidate(id, count);
            victims.push(cold);
            if !self.pays(hot, Some(cold), least_z) {
                break;
            }
            bytes += cold.bytes;
            units += cold.count * self.units(cold.bytes);
        }
        // Each is colder than the hot page; together they may not be.
        let all = Candidate {
            bytes,
            count: units / self.units(bytes.max(1)),
            ..hot
        };
        if bytes < wanted || (victims.len() > 1 && !self.pays(hot, Some(all), least_z)) {
            for cold in victims {
                self.heat.settle(cold.id, Placement::Fast, None);
            }
            return false;
        }
        for cold in victims {
            self.demote(now, cold, host);
        }
        // Some may have been busy.
        for _ in 0..SPARE_VICTIMS {
            if host.fast_free() >= hot.bytes {
                return true;
            }
            let Some((id, count)) = self.heat.take_coldest_fast(now) else {
                return false;
            };
            let cold = self.candidate(id, count);
            if !self.pays(hot, Some(cold), least_z) {
                self.heat.settle(cold.id, Placement::Fast, None);
                return false;
            }
            self.demote(now, cold, host);
        }
        host.fast_free() >= hot.bytes
    }

    fn candidate(&self, id: PageId, count: f64) -> Candidate {
        let bytes = self.guest.page_bytes(id.0);
        Candidate { id, bytes, count }
    }

    /// Whether promoting `hot` at the price of demoting `cold` is significant and pays back.
    fn pays(&self, hot: Candidate, cold: Option<Candidate>, least_z: f64) -> bool {
        let seen = &self.observed;
        let units = self.units(hot.bytes);
        // What a page as hot as the cold one, and as large as the hot one, would have.
        let rival = cold.map_or(0.0, |cold| cold.count) * units;
        let hot_samples = hot.count * units;
        let z = if seen.looks > 0.0 {
            exchange::share_significance(hot_samples, rival, seen.looks)
        } else {
            let plain = seen.plain(self.settings.half_life);
            exchange::significance(hot_samples, rival, plain)
        };
        if z < least_z {
            return false;
        }
        let (bytes, samples) = cold.map_or((0, 0.0), |cold| {
            (cold.bytes, cold.count * self.units(cold.bytes))
        });
        let demotion_ns = if bytes > 0 {
            moves::assumed_cost_ns(bytes)
        } else {
            0.0
        };
        let (fast_latency_ns, slow_latency_ns) = self.latencies;
        let payback = PayBack {
            slow_latency_ns,
            fast_latency_ns,
            horizon_s: self.settings.horizon.as_secs_f64(),
            move_cost_ns: moves::assumed_cost_ns(hot.bytes) + demotion_ns,
        };
        payback.pays(seen.rate(hot_samples), seen.rate(samples), 1)
    }

    /// What the extremes of so many equally hot pages do not reach by chance, and the operator asks for.
    fn least_z(&self) -> f64 {
        let (slow, fast) = (
            u64::from(self.heat.len(Placement::Slow)),
            u64::from(self.heat.len(Placement::Fast)),
        );
        let seen = &self.observed;
        let chance = if seen.looks > 0.0 {
            exchange::chance_significance(slow, fast)
        } else {
            let mean = seen.samples / (slow + fast).max(1) as f64;
            let plain = seen.plain(self.settings.half_life);
            exchange::chance_significance_of_counts(slow, fast, mean, plain)
        };
        self.settings.min_z.max(chance)
    }

    fn promote(&mut self, now: Time, hot: Candidate, host: &mut Host) -> bool {
        let outcome = host.promote(hot.id.0);
        self.settle(now, hot, outcome, host)
    }

    fn demote(&mut self, now: Time, cold: Candidate, host: &mut Host) -> bool {
        let outcome = host.demote(cold.id.0);
        self.settle(now, cold, outcome, host)
    }

    /// Takes note of where a page that was taken lies now, and until when it is left alone.
    fn settle(&mut self, now: Time, page: Candidate, outcome: Outcome, host: &Host) -> bool {
        let placement = placement(host.tier(page.id.0));
        let moved = outcome == Outcome::Moved;
        if moved {
            self.bucket.take_up_to(now, page.bytes);
        }
        let rest = if moved {
            Some(self.settings.cooldown)
        } else {
            outcome.retry_after()
        };
        self.heat
            .settle(page.id, placement, rest.map(|rest| now + rest));
        if rest.is_none() {
            self.heat.exclude(page.id);
        }
        moved
    }
}

const fn placement(tier: Tier) -> Placement {
    match tier {
        Tier::Fast => Placement::Fast,
        Tier::Slow => Placement::Slow,
    }
}

impl Policy for Sketch {
    fn name(&self) -> &'static str {
        "sketch"
    }

    fn step(&mut self, seen: &Seen<'_>, host: &mut Host) {
        let now = seen.end;
        self.observed.take(seen, self.settings.half_life);
        self.take_samples(now, seen.samples);
        self.heat.tick(now);
        if self.observed.span() >= self.settings.warm_up {
            self.exchange(now, host);
        }
    }

    fn memory_bytes(&self) -> usize {
        self.heat.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::{
        replay::{Conditions, Failures, Slice, guest::MemoryRange},
        sample::AccessKind,
    };

    const PAGE: u64 = 4096;
    const SLICE: Duration = Duration::from_millis(10);

    fn host(guest: Guest, fast_bytes: u64, busy: f64) -> Host {
        let conditions = Conditions {
            failures: Failures {
                busy,
                ..Failures::default()
            },
            ..Conditions::default()
        };
        Host::new(Arc::new(guest), fast_bytes, conditions)
    }

    /// Slices with ten samples each, on pages that `page` names by the number of the sample.
    fn run(policy: &mut Sketch, host: &mut Host, slices: Range<u32>, page: impl Fn(u32) -> u32) {
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
            assert_eq!(policy.heat.check(), Ok(()), "slice {number}");
        }
    }

    /// 4 000 pages, of which the first 400 lie in DRAM.
    fn small(busy: f64) -> (Host, Sketch) {
        let host = host(Guest::uniform(0, 4_000, PAGE), 400 * PAGE, busy);
        let policy = Sketch::new(&host, &PolicySetup::default());
        (host, policy)
    }

    #[test]
    fn pages_when_hot_on_the_slow_tier_change_places_with_cold_ones_once() {
        let (mut host, mut policy) = small(0.0);
        // Nine in ten samples on 100 slow pages: 9 a second each.
        let page = |i: u32| match i % 10 {
            0 => i * 7919 % 4_000,
            _ => 2_000 + (i - i / 10) * 31 % 100,
        };
        run(&mut policy, &mut host, 0..199, page);
        assert_eq!(host.ledger().moves, 0, "in the warm-up");
        run(&mut policy, &mut host, 199..1600, page);
        assert!((2_000..2_100).all(|page| host.is_fast(page)));
        let ledger = host.ledger();
        assert_eq!(
            (ledger.promoted_bytes, ledger.demoted_bytes),
            (100 * PAGE, 100 * PAGE)
        );
        assert_eq!(ledger.ping_pongs, 0);
        assert!(policy.memory_bytes() <= LEAST_BYTES + 4_000 / 4 + 8);
    }

    #[test]
    fn pages_when_all_are_equally_hot_stay() {
        let (mut host, mut policy) = small(0.0);
        let mut random = 1u64;
        let draws: Vec<u32> = (0..10_000)
            .map(|_| {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                ((random >> 33) % 4_000) as u32
            })
            .collect();
        run(&mut policy, &mut host, 0..1000, |i| draws[i as usize]);
        assert_eq!(host.ledger().moves, 0, "{:?}", host.ledger());
    }

    #[test]
    fn pages_when_moves_often_fail_arrive_in_the_end() {
        let (mut host, mut policy) = small(0.5);
        run(&mut policy, &mut host, 0..1500, |i| 3_000 + i % 50);
        assert!((3_000..3_050).all(|page| host.is_fast(page)));
        let failed = host.ledger().failed[&Outcome::Busy];
        assert!(failed > 20, "half of a hundred moves: {failed}");
        assert_eq!(host.ledger().ping_pongs, 0);
        assert!(host.fast_used() <= host.fast_bytes());
    }

    #[test]
    fn moves_when_many_pay_keep_to_the_rate() {
        // 2 000 huge pages, all of the hot ones slow: at 256 MiB/s, 64 exchanges a second.
        let guest = Guest::uniform(0, 2_000, 2 << 20);
        let mut host = host(guest, 1_000 << 21, 0.0);
        let mut policy = Sketch::new(&host, &PolicySetup::default());
        run(&mut policy, &mut host, 0..700, |i| 1_000 + i % 300);
        let bytes = host.ledger().promoted_bytes + host.ledger().demoted_bytes;
        let settings = EngineSettings::default();
        // Five seconds after the warm-up, and one exchange that a batch may be exceeded by.
        let most = settings.rate_bytes_per_s * 5 + settings.batch_bytes + (4 << 20);
        assert!(bytes <= most, "{bytes} of {most}");
        assert!(bytes >= most * 9 / 10, "{bytes} of {most}");
    }

    #[test]
    fn pages_when_of_two_sizes_are_compared_by_their_density() {
        let huge = 2u64 << 20;
        let ranges = [
            MemoryRange {
                address: 0,
                len: 4 * huge,
                page_bytes: huge,
            },
            MemoryRange {
                address: 4 * huge,
                len: 2_000 * PAGE,
                page_bytes: PAGE,
            },
        ];
        // DRAM holds the four huge pages. One of them is idle; each of the others is sampled 250 times a second,
        // each of 40 small pages six times: less often, but denser.
        let mut host = host(Guest::from_ranges(&ranges).unwrap(), 4 * huge, 0.0);
        let mut policy = Sketch::new(&host, &PolicySetup::default());
        let page = |i: u32| match i % 4 {
            3 => 100 + i / 4 % 40,
            huge => huge,
        };
        run(&mut policy, &mut host, 0..1000, page);
        assert!((100..140).all(|page| host.is_fast(page)));
        assert_eq!(host.ledger().demoted_bytes, huge, "the idle one only");
        assert!((0..3).all(|page| host.is_fast(page)));
    }

    #[test]
    fn sketch_when_too_small_is_refused() {
        let (host, _) = small(0.0);
        let error = Sketch::with_bytes(&host, &PolicySetup::default(), 100).err();
        assert_eq!(error.map(|e| e.least_bytes), Some(384));
    }
}
