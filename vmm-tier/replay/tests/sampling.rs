//! The slicer and the model of sampling.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use proptest::prelude::*;
use tier_core::{
    addr::{BASE_PAGE, HUGE_PAGE},
    random::Random,
    sample::AccessKind,
    time::Time,
};
use tier_replay::machine::{
    Access, Accesses, Guest, Sample, Sampler, SamplerSettings, Sampling, Slice, Slicer,
    SlicerError, SlicerSettings, Touch, guest::MemoryRange,
};

const MS: u64 = 1_000_000;
const BASE: u64 = 1 << 32;

/// Accesses from a list, a few at a time.
struct Listed {
    rest: std::vec::IntoIter<Access>,
}

impl Accesses for Listed {
    type Error = Infallible;

    fn fill(&mut self, out: &mut Vec<Access>) -> Result<bool, Infallible> {
        out.extend(self.rest.by_ref().take(7));
        Ok(self.rest.len() > 0)
    }
}

fn load(at: u64, page: u64) -> Access {
    Access {
        at: Time(at),
        address: BASE + page * BASE_PAGE,
        len: 1,
        weight: 1,
        kind: AccessKind::Load,
    }
}

/// A sampler that records every access.
const EVERY: SamplerSettings = SamplerSettings {
    period: 1,
    jitter: 0.0,
    loss: 0.0,
    burst_loss: 0.0,
    burst_len: 1.0,
    seed: 1,
};

fn every() -> SlicerSettings {
    SlicerSettings {
        sampling: Sampling::Every(EVERY),
        ..SlicerSettings::default()
    }
}

fn small() -> Guest {
    Guest::uniform(BASE, 100, BASE_PAGE)
}

fn slicer(guest: Guest, accesses: Vec<Access>, settings: &SlicerSettings) -> Slicer<Listed> {
    let listed = Listed {
        rest: accesses.into_iter(),
    };
    Slicer::new(Arc::new(guest), listed, settings).unwrap()
}

fn slices(slicer: &mut Slicer<Listed>) -> Vec<Slice> {
    let mut buffer = Slice::default();
    let mut slices = Vec::new();
    while let Some(slice) = slicer.next_slice(&mut buffer).unwrap() {
        slices.push(slice.clone());
    }
    slices
}

fn cut(accesses: Vec<Access>, settings: &SlicerSettings) -> Vec<Slice> {
    slices(&mut slicer(small(), accesses, settings))
}

fn touch(page: u32, accesses: u32, stores: u32) -> Touch {
    Touch {
        page,
        accesses,
        stores,
    }
}

fn span(slice: &Slice) -> (u64, u64) {
    (slice.start.0, slice.end.0)
}

#[test]
fn accesses_when_cut_are_counted_for_each_page_in_their_slice() {
    let store = Access {
        kind: AccessKind::Store,
        ..load(9 * MS, 5)
    };
    let of_weight = Access {
        weight: 4,
        kind: AccessKind::Any,
        ..load(10 * MS, 2)
    };
    let all = vec![
        load(0, 5),
        load(MS, 3),
        store,
        load(10 * MS - 1, 99),
        of_weight,
    ];
    let slices = cut(all, &every());
    assert_eq!(slices.len(), 2);
    assert_eq!(
        slices[0].touched,
        [touch(3, 1, 0), touch(5, 2, 1), touch(99, 1, 0)]
    );
    assert_eq!(slices[1].touched, [touch(2, 4, 0)]);
    assert_eq!(span(&slices[0]), (0, 10 * MS));
    assert_eq!(span(&slices[1]), (10 * MS, 20 * MS));
    let sampled: Vec<_> = slices[0]
        .samples
        .iter()
        .map(|s| (s.at.0, s.page, s.kind))
        .collect();
    assert_eq!(
        sampled,
        [
            (0, 5, AccessKind::Load),
            (MS, 3, AccessKind::Load),
            (9 * MS, 5, AccessKind::Store),
            (10 * MS - 1, 99, AccessKind::Load)
        ]
    );
    assert_eq!(slices[1].samples[0].weight, 4.0);
}

#[test]
fn slices_when_the_trace_starts_late_begin_with_its_first_access() {
    let slices = cut(vec![load(12_345, 1), load(12_345 + 11 * MS, 1)], &every());
    let spans: Vec<_> = slices.iter().map(span).collect();
    let at = |ms: u64| 12_345 + ms * MS;
    assert_eq!(spans, [(at(0), at(10)), (at(10), at(20))]);
}

#[test]
fn no_access_yields_no_slice() {
    assert!(cut(Vec::new(), &every()).is_empty());
}

#[test]
fn accesses_outside_the_guest_are_counted_and_have_no_effect() {
    let below = Access {
        address: BASE - 1,
        weight: 3,
        ..load(0, 0)
    };
    let highest = Access {
        address: u64::MAX,
        len: u64::MAX,
        ..load(0, 0)
    };
    let mut slicer = slicer(small(), vec![below, load(0, 100), highest], &every());
    let slices = slices(&mut slicer);
    assert_eq!(slices[0].outside, 5);
    assert!(slices[0].touched.is_empty() && slices[0].samples.is_empty());
    let account = slicer.account();
    assert_eq!(
        (account.records, account.accesses, account.outside),
        (3, 0, 5)
    );
}

#[test]
fn range_when_it_spans_pages_and_a_hole_counts_for_each_page_of_memory() {
    let ranges = [
        MemoryRange {
            address: 0,
            len: 4 * BASE_PAGE,
            page_bytes: BASE_PAGE,
        },
        MemoryRange {
            address: HUGE_PAGE,
            len: 2 * HUGE_PAGE,
            page_bytes: HUGE_PAGE,
        },
    ];
    let guest = || Guest::from_ranges(&ranges).unwrap();
    let range = Access {
        at: Time(0),
        address: 2 * BASE_PAGE + 1,
        len: HUGE_PAGE,
        weight: 7,
        kind: AccessKind::Any,
    };
    let inside = Access {
        address: HUGE_PAGE + 5,
        len: HUGE_PAGE,
        ..range
    };
    let got = slices(&mut slicer(guest(), vec![range], &every()));
    assert_eq!(
        got[0].touched,
        [touch(2, 7, 0), touch(3, 7, 0), touch(4, 7, 0)]
    );
    assert_eq!(got[0].outside, 7, "the hole lies outside");
    let got = slices(&mut slicer(guest(), vec![inside], &every()));
    assert_eq!(got[0].touched, [touch(4, 7, 0), touch(5, 7, 0)]);
    assert_eq!(got[0].outside, 0);
    let everything = Access {
        address: 0,
        len: u64::MAX,
        ..range
    };
    let got = slices(&mut slicer(guest(), vec![everything], &every()));
    assert_eq!(got[0].touched.len(), 6);
}

#[test]
fn counts_when_they_overflow_stay_at_the_most() {
    let much = Access {
        weight: u32::MAX,
        kind: AccessKind::Store,
        ..load(0, 1)
    };
    let settings = SlicerSettings::default();
    let slices = cut(vec![much, much], &settings);
    assert_eq!(slices[0].touched, [touch(1, u32::MAX, u32::MAX)]);
    let expected = f64::from(u32::MAX) / 4093.0;
    for sample in &slices[0].samples {
        assert!((f64::from(sample.weight) / expected - 1.0).abs() < 1e-3);
    }
}

#[test]
fn idle_time_when_short_is_one_slice() {
    let slices = cut(vec![load(0, 1), load(357 * MS, 1)], &every());
    let spans: Vec<_> = slices.iter().map(span).collect();
    assert_eq!(
        spans,
        [(0, 10 * MS), (10 * MS, 350 * MS), (350 * MS, 360 * MS)]
    );
    assert!(slices[1].touched.is_empty() && slices[1].samples.is_empty());
}

#[test]
fn idle_time_when_long_goes_by_in_seconds_and_when_very_long_in_few_slices() {
    let minute = cut(vec![load(0, 1), load(60_000 * MS, 1)], &every());
    assert_eq!(minute.len(), 62);
    let idle = &minute[1..minute.len() - 1];
    assert!(
        idle.iter()
            .all(|s| s.end.since(s.start) <= Duration::from_secs(1))
    );
    let ages = cut(vec![load(0, 1), load(u64::MAX, 1)], &every());
    assert!((1000..3000).contains(&ages.len()), "{}", ages.len());
    assert_eq!(ages.last().unwrap().touched, [touch(1, 1, 0)]);
    for slices in [minute, ages] {
        assert!(slices.windows(2).all(|s| s[0].end == s[1].start));
    }
}

#[test]
fn time_when_it_goes_back_counts_for_the_slice_in_which_it_is_read() {
    let slices = cut(
        vec![load(20 * MS, 1), load(35 * MS, 2), load(3 * MS, 3)],
        &every(),
    );
    assert_eq!(slices.len(), 2);
    assert_eq!(slices[1].touched, [touch(2, 1, 0), touch(3, 1, 0)]);
}

#[test]
fn stretched_time_passes_slower_and_loses_no_access() {
    let accesses: Vec<Access> = (0..1000).map(|n| load(5_000 + n * 1_000, n % 50)).collect();
    let settings = SlicerSettings {
        stretch: 1234.5,
        ..every()
    };
    let slices = cut(accesses, &settings);
    // 999 µs become 1.233 s.
    assert_eq!(slices.len(), 124);
    let total: u32 = slices
        .iter()
        .flat_map(|s| &s.touched)
        .map(|t| t.accesses)
        .sum();
    assert_eq!(total, 1000);
    for slice in &slices {
        assert_eq!(slice.end.since(slice.start), Duration::from_millis(10));
        for sample in &slice.samples {
            assert!((slice.start..slice.end).contains(&sample.at));
        }
    }
    let at = |n: usize| slices.iter().flat_map(|s| &s.samples).nth(n).unwrap().at.0;
    assert_eq!(at(0), 5_000);
    assert_eq!(at(100), 5_000 + 123_450_000);
}

#[test]
fn records_of_a_source_when_replayed_are_samples_of_their_own_weight() {
    let settings = SlicerSettings {
        sampling: Sampling::All {
            period: 4000,
            tests: 20,
        },
        ..SlicerSettings::default()
    };
    let region = Access {
        len: 3 * BASE_PAGE,
        weight: 11,
        kind: AccessKind::Any,
        ..load(0, 10)
    };
    let idle = Access {
        weight: 0,
        ..load(MS, 50)
    };
    let slices = cut(vec![region, idle, idle], &settings);
    let slice = &slices[0];
    assert_eq!((slice.period, slice.tests), (4000, 20));
    let weights: Vec<_> = slice.samples.iter().map(|s| (s.page, s.weight)).collect();
    assert_eq!(
        weights,
        [(10, 11.0), (11, 11.0), (12, 11.0), (50, 0.0), (50, 0.0)]
    );
    assert_eq!(
        slice.touched,
        [touch(10, 11, 0), touch(11, 11, 0), touch(12, 11, 0)],
        "what was found idle was not used"
    );
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let make = |settings: SlicerSettings| {
        let rest = Vec::new().into_iter();
        Slicer::new(Arc::new(small()), Listed { rest }, &settings).err()
    };
    let slice = |slice| SlicerSettings {
        slice,
        ..SlicerSettings::default()
    };
    let stretch = |stretch| SlicerSettings {
        stretch,
        ..SlicerSettings::default()
    };
    assert_eq!(
        make(slice(Duration::ZERO)),
        Some(SlicerError::Slice(Duration::ZERO))
    );
    assert!(make(slice(Duration::MAX)).is_some());
    for factor in [0.0, -1.0, f64::INFINITY] {
        assert_eq!(make(stretch(factor)), Some(SlicerError::Stretch(factor)));
    }
    assert!(make(stretch(f64::NAN)).is_some());
}

/// What can't be read in the middle.
struct Broken {
    good: u32,
}

impl Accesses for Broken {
    type Error = &'static str;

    fn fill(&mut self, out: &mut Vec<Access>) -> Result<bool, &'static str> {
        self.good = self.good.checked_sub(1).ok_or("broken")?;
        out.push(load(0, 1));
        Ok(true)
    }
}

#[test]
fn error_when_it_comes_is_returned_once_and_nothing_follows() {
    let mut slicer = Slicer::new(Arc::new(small()), Broken { good: 3 }, &every()).unwrap();
    let mut slice = Slice::default();
    assert_eq!(slicer.next_slice(&mut slice).unwrap_err(), "broken");
    assert_eq!(slicer.next_slice(&mut slice).unwrap(), None);
}

proptest! {
    #[test]
    fn slices_when_accesses_are_anything_hold_each_of_them_once(
        steps in prop::collection::vec((0_u64..30 * MS, 0_u64..120, 0_u64..4 * BASE_PAGE, 0_u32..5, any::<bool>()), 1..200),
        slice_us in 1_u64..20_000,
        stretch in prop::sample::select(vec![0.1, 1.0, 3.7]),
        pages in 0_u32..100,
    ) {
        let guest = Guest::uniform(BASE, pages, BASE_PAGE);
        let mut now = 0;
        let accesses: Vec<Access> = steps.iter().map(|&(after, page, len, weight, store)| {
            now += after;
            let kind = if store { AccessKind::Store } else { AccessKind::Load };
            Access { len, weight, kind, ..load(now, page) }
        }).collect();
        let mut expected: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        let (mut outside, mut inside) = (0, 0);
        for access in &accesses {
            let last = access.address + access.len.max(1) - 1;
            for page in (0..u64::from(pages)).filter(|page| {
                let start = BASE + page * BASE_PAGE;
                start <= last && access.address < start + BASE_PAGE
            }) {
                let weight = u64::from(access.weight);
                let (all, stores) = expected.entry(page as u32).or_default();
                *all += weight;
                *stores += if access.kind == AccessKind::Store { weight } else { 0 };
                inside += weight;
            }
            if last >= BASE + u64::from(pages) * BASE_PAGE {
                outside += u64::from(access.weight);
            }
        }
        expected.retain(|_, (all, _)| *all > 0);
        let settings = SlicerSettings {
            slice: Duration::from_micros(slice_us),
            stretch,
            ..every()
        };
        let mut slicer = slicer(guest, accesses, &settings);
        let slices = slices(&mut slicer);
        let mut got: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        let mut sampled: BTreeMap<u32, u64> = BTreeMap::new();
        for slice in &slices {
            prop_assert!(slice.touched.is_sorted_by(|a, b| a.page < b.page));
            prop_assert!(slice.samples.is_sorted_by_key(|s| s.at));
            prop_assert!(slice.start < slice.end);
            for touch in &slice.touched {
                let (all, stores) = got.entry(touch.page).or_default();
                *all += u64::from(touch.accesses);
                *stores += u64::from(touch.stores);
            }
            for Sample { page, weight, at, .. } in &slice.samples {
                prop_assert!((slice.start..slice.end).contains(at));
                *sampled.entry(*page).or_default() += *weight as u64;
            }
        }
        prop_assert!(slices.windows(2).all(|pair| pair[0].end == pair[1].start));
        let all: BTreeMap<u32, u64> = expected.iter().map(|(&page, &(all, _))| (page, all)).collect();
        prop_assert_eq!(got, expected);
        prop_assert_eq!(sampled, all);
        let account = slicer.account();
        prop_assert_eq!((account.accesses, account.outside, account.sampled), (inside, outside, inside));
        prop_assert_eq!(slices.iter().map(|s| s.outside).sum::<u64>(), outside);
    }
}

/// Lets a sampler see accesses to the pages of a loop; what it delivers.
fn sample_loop(settings: &SamplerSettings, accesses: u64, pages: u32) -> (Sampler, Vec<Sample>) {
    let mut sampler = Sampler::new(settings);
    let mut out = Vec::new();
    for n in 0..accesses {
        let page = (n % u64::from(pages)) as u32;
        sampler.see(Time(n), page, 1, AccessKind::Load, &mut out);
    }
    (sampler, out)
}

#[test]
fn samples_when_the_jitter_is_any_come_once_a_period_in_the_mean() {
    for (period, jitter) in [
        (4093, 0.125),
        (4093, 0.0),
        (100, 0.125),
        (100, 1.0),
        (7, 0.5),
        (1, 0.125),
    ] {
        let settings = SamplerSettings {
            period,
            jitter,
            ..SamplerSettings::default()
        };
        let (sampler, samples) = sample_loop(&settings, 5_000 * period, 1);
        assert_eq!(samples.len() as u64, sampler.arrived());
        // With full jitter 5000 gaps vary by 0.8 % in the mean; else by less than 0.4 %.
        let tolerance = if jitter > 0.9 { 0.025 } else { 0.01 };
        let ratio = samples.len() as f64 / 5_000.0;
        assert!(
            (ratio - 1.0).abs() < tolerance,
            "{period} ± {jitter}: {ratio}"
        );
        for pair in samples.windows(2) {
            let gap = (pair[1].at - pair[0].at).as_nanos() as f64;
            assert!((gap / period as f64 - 1.0).abs() <= jitter, "{gap}");
        }
    }
}

#[test]
fn loop_whose_length_divides_the_period_is_sampled_evenly_thanks_to_jitter() {
    // Each page of the loop is seen 62 times in 1000 records, ± 8.
    let settings = SamplerSettings {
        period: 4096,
        ..SamplerSettings::default()
    };
    let count = |settings: &SamplerSettings| {
        let mut counts = [0_i32; 16];
        for sample in sample_loop(settings, 4096 * 16_000, 16).1 {
            counts[sample.page as usize] += 1;
        }
        counts
    };
    for counted in count(&settings) {
        // 1000 each, with a standard deviation of 31.
        assert!((counted - 1000).abs() < 150, "{counted}");
    }
    let without = SamplerSettings {
        jitter: 0.0,
        ..settings
    };
    let seen = count(&without).iter().filter(|&&n| n > 0).count();
    assert_eq!(seen, 1, "without jitter the loop shows one page for ever");
}

#[test]
fn pages_when_accessed_unevenly_are_sampled_in_proportion() {
    let mut random = Random::new(7);
    let mut sampler = Sampler::new(&SamplerSettings {
        period: 101,
        ..SamplerSettings::default()
    });
    let mut out = Vec::new();
    for n in 0..10_000_000 {
        let page = u32::from(random.happens(0.1));
        sampler.see(Time(n), page, 1, AccessKind::Load, &mut out);
    }
    let share = out.iter().filter(|s| s.page == 1).count() as f64 / out.len() as f64;
    // 99 000 samples: a standard deviation of 0.001.
    assert!((share - 0.1).abs() < 0.004, "{share}");
}

#[test]
fn weights_when_large_or_small_count_as_so_many_accesses() {
    let mut random = Random::new(3);
    for most in [3_u64, 5_000, 40_000_000] {
        let mut sampler = Sampler::new(&SamplerSettings {
            period: 997,
            ..SamplerSettings::default()
        });
        let (mut out, mut seen) = (Vec::new(), 0);
        while seen < 20_000_000.max(most * 50) {
            let weight = random.below(most) + 1;
            seen += weight;
            sampler.see(Time(0), 1, weight as u32, AccessKind::Load, &mut out);
        }
        let sampled: f64 = out.iter().map(|s| f64::from(s.weight)).sum();
        let ratio = sampled * 997.0 / seen as f64;
        assert!((ratio - 1.0).abs() < 0.005, "up to {most}: {ratio}");
        assert_eq!(sampled as u64, sampler.arrived());
    }
}

#[test]
fn records_when_lost_are_counted_and_are_the_share_that_was_asked_for() {
    let settings = SamplerSettings {
        period: 10,
        loss: 0.1,
        burst_loss: 0.25,
        burst_len: 50.0,
        ..SamplerSettings::default()
    };
    let (sampler, samples) = sample_loop(&settings, 20_000_000, 1);
    let all = sampler.arrived() + sampler.lost();
    assert_eq!(samples.len() as u64, sampler.arrived());
    assert!(all.abs_diff(2_000_000) < 20_000, "{all}");
    let share = sampler.lost() as f64 / all as f64;
    // A quarter in runs, and a tenth of the rest: 10 000 runs make it right to about 1 %.
    assert!((share - 0.325).abs() < 0.01, "{share}");
}

/// How many records in a row are lost where any are, of those that come every ten accesses.
fn mean_run_of_losses(samples: &[Sample]) -> f64 {
    let gaps = samples.windows(2).map(|s| s[1].at.0 - s[0].at.0);
    let runs: Vec<u64> = gaps
        .filter(|&gap| gap > 10)
        .map(|gap| gap / 10 - 1)
        .collect();
    runs.iter().sum::<u64>() as f64 / runs.len() as f64
}

#[test]
fn records_when_lost_in_runs_are_lost_in_runs_of_that_length() {
    let settings = SamplerSettings {
        period: 10,
        jitter: 0.0,
        burst_loss: 0.2,
        burst_len: 40.0,
        ..SamplerSettings::default()
    };
    let (_, samples) = sample_loop(&settings, 10_000_000, 1);
    let mean = mean_run_of_losses(&samples);
    // 5000 runs with a standard deviation of 40.
    assert!((mean - 40.0).abs() < 2.5, "{mean}");
    let alone = SamplerSettings {
        loss: 0.2,
        burst_loss: 0.0,
        ..settings
    };
    let (_, samples) = sample_loop(&alone, 10_000_000, 1);
    let mean = mean_run_of_losses(&samples);
    assert!((mean - 1.25).abs() < 0.02, "each for itself: {mean}");
}

#[test]
fn everything_when_asked_for_is_lost() {
    for settings in [
        SamplerSettings { loss: 1.0, ..EVERY },
        SamplerSettings {
            burst_loss: 1.0,
            ..EVERY
        },
    ] {
        let (sampler, samples) = sample_loop(&settings, 1000, 1);
        assert!(samples.is_empty());
        assert_eq!((sampler.arrived(), sampler.lost()), (0, 1000));
    }
}

#[test]
fn luck_of_samples_is_uniform() {
    let (_, samples) = sample_loop(&EVERY, 160_000, 1);
    let mut sixteenths = [0_i32; 16];
    for sample in &samples {
        sixteenths[usize::from(sample.luck >> 12)] += 1;
    }
    for count in sixteenths {
        // 10 000 each, with a standard deviation of 97.
        assert!((count - 10_000).abs() < 500, "{count}");
    }
}

#[test]
fn samples_when_seeded_alike_are_alike_and_else_differ() {
    let with = |seed| SamplerSettings {
        seed,
        period: 50,
        loss: 0.1,
        ..SamplerSettings::default()
    };
    let run = |seed| sample_loop(&with(seed), 100_000, 1000).1;
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn slices_when_sampled_tell_what_was_lost() {
    let settings = SlicerSettings {
        sampling: Sampling::Every(SamplerSettings { loss: 0.5, ..EVERY }),
        ..SlicerSettings::default()
    };
    let accesses = (0..10_000).map(|n| load(n * 10_000, n % 100)).collect();
    let mut slicer = slicer(small(), accesses, &settings);
    let slices = slices(&mut slicer);
    for slice in &slices {
        assert_eq!(slice.samples.len() as u64 + slice.lost, 1000);
        assert!((400..600).contains(&slice.lost), "{}", slice.lost);
    }
    let account = slicer.account();
    assert_eq!(slices.len(), 10);
    assert_eq!(
        account.lost,
        slices.iter().map(|slice| slice.lost).sum::<u64>()
    );
    assert_eq!(account.sampled + account.lost, account.accesses);
}
