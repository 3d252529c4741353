//! The estimate against guests whose bias is known.

use std::{collections::HashMap, time::Duration};

use super::{estimate::Group, *};
use crate::sample::SampleAccount;

const PAGE: u64 = 4096;
/// DRAM of a small guest: 128 pages may be held back at a time.
const DRAM: u64 = 32 << 20;
const BATCH: Duration = Duration::from_millis(100);

fn batch(source: SourceKind, end: Time) -> SampleBatch {
    SampleBatch {
        source,
        end,
        span: BATCH,
        tests: 0,
        period: 4093,
        settled: true,
        map_generation: 1,
        samples: Vec::new(),
        account: SampleAccount::default(),
    }
}

/// A Poisson count (Knuth's product method).
fn poisson(random: &mut Random, mean: f64) -> u32 {
    let (mut left, mut count) = (mean, 0);
    while left > 0.0 {
        let limit = (-left.min(20.0)).exp();
        left -= 20.0;
        let mut product = random.share();
        while product > limit {
            product *= random.share();
            count += 1;
        }
    }
    count
}

/// Pages that are promoted for what was counted of them, hottest first, as the engine does it.
struct Guest {
    /// Records of a page a second, were all seen.
    rate: fn(&mut Random) -> f64,
    /// By what rates are multiplied in a second, of all pages.
    pace: fn(f64) -> f64,
    /// Whether half of the pages that are hot go cold each second.
    changes: bool,
    bias: f64,
}

impl Guest {
    /// What is found after this many rounds of half a second, in each of which 64 of 1024 fresh slow
    /// pages are promoted.
    fn play(&self, seed: u64, rounds: u64) -> Bias {
        let (mut random, mut bias) = (Random::new(seed), Bias::default());
        bias.random = Random::new(seed ^ 0x5555);
        let seen = |stays: bool| match (stays, self.bias < 1.0) {
            (true, false) => 1.0 / self.bias,
            (false, true) => self.bias,
            _ => 1.0,
        };
        let mut rates: HashMap<u32, f64> = HashMap::new();
        for round in 0..rounds {
            let now = Time(round * 500_000_000);
            let pace = (self.pace)(now.as_secs_f64());
            let mut slow: Vec<(u32, u32, f64)> = (0..1024)
                .map(|n| {
                    let rate = (self.rate)(&mut random);
                    let counted = poisson(&mut random, 2.0 * rate * seen(true) * pace);
                    (counted, round as u32 * 1024 + n, rate)
                })
                .collect();
            slow.sort_by_key(|&(counted, page, _)| (std::cmp::Reverse(counted), page));
            for &(counted, page, rate) in &slow[..64] {
                let lot = bias.draw(PAGE, DRAM);
                if lot != Lot::Go {
                    // The count itself: too high by luck, and of another pace than that to come.
                    bias.watch(now, PageId(page), PAGE, lot, f64::from(counted) / 2.0);
                    if lot == Lot::GoWatched {
                        bias.settled(now, PageId(page), true);
                    }
                    let goes_cold = self.changes && random.happens(0.5);
                    rates.insert(page, if goes_cold { rate / 10.0 } else { rate });
                }
            }
            for part in 1..=5 {
                let end = now + BATCH * part;
                bias.begin(&batch(SourceKind::Ibs, end));
                let pages: Vec<(PageId, bool)> = bias
                    .watched
                    .iter()
                    .map(|(page, watch)| (page, watch.stays))
                    .collect();
                for (page, stays) in pages {
                    let mean = rates[&page.0] * seen(stays) * pace * BATCH.as_secs_f64();
                    bias.see(page, poisson(&mut random, mean) as f32);
                }
                bias.end(end);
            }
        }
        bias
    }
}

/// Half of the pages are used once a second, a tenth of them ten times.
fn two_kinds(random: &mut Random) -> f64 {
    if random.happens(0.1) { 10.0 } else { 1.0 }
}

/// Pareto with a shape of 1.2, whose variance is infinite; cut at what is too hot to be held back.
fn heavy_tail(random: &mut Random) -> f64 {
    (0.3 * (1.0 - random.share()).powf(-1.0 / 1.2)).min(200.0)
}

/// How far the estimates of 20 guests lie from the truth, in deviations.
fn errors(rate: fn(&mut Random) -> f64, pace: fn(f64) -> f64, changes: bool) -> Vec<f64> {
    let mut errors = Vec::new();
    for bias in [0.2, 1.0, 2.0, 5.0] {
        for seed in 0..5 {
            let guest = Guest {
                rate,
                pace,
                changes,
                bias,
            };
            let found = guest.play(seed * 7 + 1, 240);
            let (ratio, deviation) = found.estimate.known().unwrap_or((1.0, 100.0));
            assert!(deviation < 0.3, "{bias}: {:?}", found.report());
            errors.push((ratio / bias).ln() / deviation);
            assert!(
                found.report().significant == (bias != 1.0),
                "{bias}: {:?}",
                found.report()
            );
        }
    }
    errors
}

/// Of 20 normal errors one exceeds 3 deviations in one of 19 tries; their mean varies by 0.22.
fn assert_fair(errors: &[f64]) {
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    assert!(mean.abs() < 0.8, "{errors:?}");
    let far = errors.iter().filter(|error| error.abs() > 2.0).count();
    assert!(far <= 3, "{errors:?}");
    assert!(errors.iter().all(|error| error.abs() < 4.0), "{errors:?}");
}

#[test]
fn estimate_when_pages_were_chosen_for_their_luck_is_right() {
    // All pages are alike: those that are chosen had nothing but luck.
    assert_fair(&errors(|_| 2.0, |_| 1.0, false));
    assert_fair(&errors(two_kinds, |_| 1.0, false));
}

#[test]
fn estimate_when_few_pages_have_most_accesses_is_right() {
    assert_fair(&errors(heavy_tail, |_| 1.0, false));
}

#[test]
fn estimate_when_the_guest_changes_is_right() {
    // It swings between a fifth and nine fifths of its pace within ten seconds, and what is hot goes
    // cold.
    let pace = |seconds: f64| 1.0 + 0.8 * (seconds * 0.628).sin();
    assert_fair(&errors(two_kinds, pace, true));
}

#[test]
fn estimate_when_there_is_little_evidence_is_not_known() {
    let guest = Guest {
        rate: two_kinds,
        pace: |_| 1.0,
        changes: false,
        bias: 5.0,
    };
    let bias = guest.play(1, 2);
    assert_eq!(bias.report().fast_to_slow, None);
    assert!(!bias.report().significant);
}

#[test]
fn pages_when_the_trial_is_full_or_over_are_all_promoted() {
    let mut bias = Bias::default();
    let mut held = 0;
    for page in 0..100_000 {
        let lot = bias.draw(PAGE, DRAM);
        if lot != Lot::Go {
            bias.watch(Time(0), PageId(page), PAGE, lot, 1.0);
        }
        held += u64::from(lot == Lot::Stay);
    }
    assert_eq!(held, DRAM / HELD_ONE_IN / PAGE);
    assert_eq!(bias.report().held, held);
    assert!(bias.watched.len() <= MOST_WATCHED);
    bias.forget_pages();
    assert_eq!((bias.watched.held_bytes(), bias.report().held), (0, 0));
    let enough = Group {
        pages: 1000.0,
        seen: 1000.0,
        expected: 1000.0,
        seen_seen: 2000.0,
        seen_expected: 1000.0,
        expected_expected: 1000.0,
    };
    (bias.estimate.stayed, bias.estimate.moved) = (enough, enough);
    assert!((0..1000).all(|_| bias.draw(PAGE, DRAM) == Lot::Go));
}

#[test]
fn evidence_when_it_is_old_fades_and_the_trial_goes_on() {
    let guest = Guest {
        rate: two_kinds,
        pace: |_| 1.0,
        changes: false,
        bias: 1.0,
    };
    let mut bias = guest.play(3, 240);
    assert!((0..100).all(|_| bias.draw(PAGE, DRAM) == Lot::Go));
    let before = bias.report();
    // A page whose move never ends leaves the trial, and time has gone by.
    bias.watch(Time(0), PageId(7), PAGE, Lot::GoWatched, 1.0);
    bias.end(Time(1800 * 1_000_000_000));
    let after = bias.report();
    assert!(after.pages < before.pages / 4, "{after:?}");
    assert!(after.deviation > before.deviation);
    assert!((0..100).any(|_| bias.draw(PAGE, DRAM) != Lot::Go));
}

#[test]
fn bias_when_another_source_is_believed_is_its_own() {
    let mut bias = Bias {
        source: Some(SourceKind::Ibs),
        ..Bias::default()
    };
    bias.estimate.is_significant = true;
    bias.begin(&batch(SourceKind::Ibs, Time(1_000_000_000)));
    assert!(bias.report().significant);
    bias.begin(&batch(SourceKind::Guest, Time(2_000_000_000)));
    assert!(!bias.report().significant);
    assert_eq!(bias.report().pages, 0);
}

#[test]
fn page_when_its_move_fails_or_it_moves_again_leaves_the_trial() {
    let mut bias = Bias::default();
    for page in 0..2 {
        bias.watch(Time(0), PageId(page), PAGE, Lot::GoWatched, 1.0);
    }
    bias.watch(Time(0), PageId(2), PAGE, Lot::Stay, 1.0);
    assert!(bias.holds(PageId(2)) && !bias.holds(PageId(1)));
    bias.settled(Time(1), PageId(0), false);
    bias.settled(Time(1), PageId(1), true);
    assert_eq!(bias.watched.len(), 2);
    bias.settled(Time(2), PageId(1), true);
    bias.settled(Time(2), PageId(2), true);
    assert!(bias.watched.is_empty());
    assert_eq!((bias.watched.held(), bias.watched.held_bytes()), (0, 0));
}
