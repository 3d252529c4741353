//! The sketch against exact decayed counts.

#[path = "common/heat_ops.rs"]
mod heat_ops;

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use tier_core::{
    heat::Decay,
    random::Random,
    sketch::{DecayingSketch, SketchHeat},
    time::Time,
};

use heat_ops::{PAGES, page, span, weight};

const HALF_LIFE: Duration = Duration::from_secs(10);
/// Below this a count may be forgotten; see `Decay::shifted`.
const NOTHING: f64 = 1e-15;

#[derive(Clone, Debug)]
enum Sampled {
    Pass(Duration),
    Add(u32, f32),
    Remove(u32),
    HalfLife(Duration),
}

fn sampled() -> impl Strategy<Value = Sampled> {
    prop_oneof![
        6 => span().prop_map(Sampled::Pass),
        24 => (page(), weight()).prop_map(|(page, w)| Sampled::Add(page, w)),
        1 => page().prop_map(Sampled::Remove),
        1 => (1_000..10_000u64).prop_map(|ms| Sampled::HalfLife(Duration::from_millis(ms))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// From the least memory, 32 slots for 400 pages, to more than all pages need.
    #[test]
    fn estimate_when_pages_compete_is_never_above_the_exact_count(
        ops in proptest::collection::vec(sampled(), 1..300),
        bytes in prop_oneof![Just(DecayingSketch::least_bytes(PAGES)), 128..8192usize],
        seed in any::<u64>(),
    ) {
        let mut sketch = DecayingSketch::new(PAGES, bytes, HALF_LIFE, seed).unwrap();
        let mut exact = BTreeMap::<u32, f64>::new();
        let (mut now, mut half_life) = (Time(0), HALF_LIFE);
        let mut rounded = 0;
        for op in ops {
            match op {
                Sampled::Pass(time) => {
                    now = now + time;
                    let factor = (-time.as_secs_f64() / half_life.as_secs_f64()).exp2();
                    exact.values_mut().for_each(|count| *count *= factor);
                }
                Sampled::Add(page, weight) => {
                    let added = sketch.add(now, page, weight);
                    rounded += 1;
                    if page < PAGES && weight > 0.0 {
                        *exact.entry(page).or_default() += f64::from(weight);
                    }
                    prop_assert_eq!(added.key, sketch.key(page));
                    if let Some((victim, left)) = added.weakened {
                        prop_assert!(victim != page && exact.contains_key(&victim));
                        prop_assert_eq!(left, sketch.key(victim));
                    }
                }
                Sampled::Remove(page) => {
                    sketch.remove(page);
                    exact.remove(&page);
                    prop_assert_eq!(sketch.key(page), 0.0);
                }
                Sampled::HalfLife(new) => {
                    sketch.advance(now);
                    sketch.set_half_life(new, now);
                    half_life = new;
                }
            }
            prop_assert_eq!(sketch.check(), Ok(()));
            prop_assert!(sketch.memory_bytes() <= bytes);
            // With nine bits of remainder a key has 15 of mantissa, and each addition may round it up.
            let rounding = 1.0 + f64::from(rounded) * (-15.0f64).exp2();
            for (page, _) in sketch.iter() {
                let (count, most) = (sketch.count(page, now), exact.get(&page).copied());
                prop_assert!(
                    count <= most.unwrap_or(0.0) * rounding + NOTHING,
                    "page {}: {} for {:?}", page, count, most
                );
            }
        }
    }

    /// 400 pages have 416 slots and more, but their lines may overflow: what has a count has it right.
    #[test]
    fn counts_when_there_is_room_are_the_exact_ones(
        ops in proptest::collection::vec((page(), 0..300u64), 1..300),
        seed in any::<u64>(),
    ) {
        let mut sketch = DecayingSketch::new(PAGES, 16 << 10, HALF_LIFE, seed).unwrap();
        let decay = Decay::new(HALF_LIFE, Time(0));
        let mut exact = BTreeMap::<u32, f64>::new();
        let mut now = Time(0);
        for (page, ms) in ops {
            now = now + Duration::from_millis(ms);
            sketch.add(now, page, 1.0);
            if page < PAGES {
                *exact.entry(page).or_default() += decay.boost(now);
            }
        }
        prop_assert_eq!(sketch.stats().evicted + sketch.stats().refused, 0);
        for page in 0..PAGES {
            let expected = exact.get(&page).copied().unwrap_or(0.0) / decay.boost(now);
            let count = sketch.count(page, now);
            prop_assert!((count - expected).abs() <= 1e-3 * expected, "{} for {}", count, expected);
        }
    }
}

#[test]
fn order_and_ratios_when_the_landmark_moves_stay_to_the_bit() {
    let mut sketch = DecayingSketch::new(1 << 16, 64 << 10, HALF_LIFE, 5).unwrap();
    let mut random = Random::new(1);
    let mut now = Time(0);
    for i in 0..20_000 {
        now = Time(i * 1_000_000);
        // Squared: the lower the number the hotter.
        let r = random.draw() % 64;
        sketch.add(now, (r * r) as u32, 1.0);
    }
    let ordered = |sketch: &DecayingSketch| {
        let mut pages: Vec<_> = sketch.iter().collect();
        pages.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        pages
    };
    let before = ordered(&sketch);
    assert_eq!(before.len(), 64);
    let counts: Vec<f64> = before.iter().map(|&(p, _)| sketch.count(p, now)).collect();
    // Three moves of the landmark in one go would forget everything: 70 half-lives leave 2^-70.
    for _ in 0..70 {
        now = now + HALF_LIFE;
        sketch.advance(now);
    }
    assert_eq!(sketch.stats().landmark_moves, 1);
    let after = ordered(&sketch);
    assert!(before.iter().zip(&after).all(|(a, b)| a.0 == b.0));
    let ratio = before[0].1 / after[0].1;
    assert!(ratio > 1.0 && ratio.log2().fract() == 0.0);
    assert!(before.iter().zip(&after).all(|(a, b)| a.1 / b.1 == ratio));
    for (&(page, _), count) in after.iter().zip(counts) {
        let left = sketch.count(page, now) * 70f64.exp2();
        assert!((left - count).abs() <= 1e-6 * count);
    }
    sketch.advance(now + HALF_LIFE * 2000);
    assert_eq!(sketch.stats().pages, 0, "heat of 2^-2000 is none");
    assert_eq!(sketch.check(), Ok(()));
}

#[test]
fn hot_pages_when_most_samples_are_noise_keep_their_counts() {
    // 128 hot pages with half of the samples, the other half spread over a million; 480 slots.
    const HOT: u32 = 128;
    let pages = 1 << 20;
    let bytes = 2 << 10;
    let mut sketch = DecayingSketch::new(pages, bytes, HALF_LIFE, 9).unwrap();
    let decay = Decay::new(HALF_LIFE, Time(0));
    let mut exact = vec![0.0; HOT as usize];
    let mut random = Random::new(2);
    let mut now = Time(0);
    for i in 0..300_000u64 {
        now = Time(i * 200_000); // 5 000 samples a second for a minute
        let drawn = random.draw();
        let page = if drawn & 1 == 0 {
            let hot = (drawn >> 1) as u32 % HOT;
            exact[hot as usize] += decay.boost(now);
            hot * 4099
        } else {
            (drawn >> 1) as u32 % pages
        };
        sketch.add(now, page, 1.0);
    }
    let mut errors: Vec<f64> = (0..HOT)
        .map(|hot| {
            let truth = exact[hot as usize] / decay.boost(now);
            (sketch.count(hot * 4099, now) - truth).abs() / truth
        })
        .collect();
    errors.sort_by(f64::total_cmp);
    let mut named: Vec<(u32, f32)> = sketch.iter().collect();
    named.sort_by(|a, b| b.1.total_cmp(&a.1));
    let found = named[..HOT as usize]
        .iter()
        .filter(|(page, _)| page % 4099 == 0);
    assert!(found.count() >= 127, "of 128 hot pages");
    // About 280 samples each within the horizon: by chance such a count is off by 4 %.
    assert!(errors[64] < 0.02 && errors[127] < 0.15, "{errors:?}");
}

#[test]
fn pages_when_their_heat_is_old_make_room_as_cold_ones_do() {
    let bytes = DecayingSketch::least_bytes(1000);
    let mut sketch = DecayingSketch::new(1000, bytes, HALF_LIFE, 3).unwrap();
    for _ in 0..200 {
        (0..32).for_each(|page| {
            sketch.add(Time(0), page, 1.0);
        });
    }
    let newcomers = |sketch: &mut DecayingSketch, now| {
        (100..200).for_each(|page| {
            sketch.add(now, page, 1.0);
        });
        sketch.iter().filter(|&(page, _)| page >= 100).count()
    };
    // At 200 counts one newcomer in five million weakens one; lines that were not full may let some in.
    let free = 32 - sketch.stats().pages as usize;
    assert!(newcomers(&mut sketch, Time(1)) <= free);
    // After twelve half-lives 200 is 0.05, and gives way nearly always.
    assert!(newcomers(&mut sketch, Time(0) + HALF_LIFE * 12) > 28);
}

#[test]
fn counts_when_keys_are_short_have_the_right_mean() {
    // 2^20 pages in 2 × 16 lines: 16 bits of remainder, 8 of mantissa. Above 512 a step is 2 or more.
    let least = DecayingSketch::least_bytes(1 << 20);
    let mean = (0..200)
        .map(|seed| {
            let mut sketch = DecayingSketch::new(1 << 20, least, HALF_LIFE, seed).unwrap();
            (0..3000).for_each(|_| {
                sketch.add(Time(0), 7, 1.0);
            });
            sketch.count(7, Time(0))
        })
        .sum::<f64>()
        / 200.0;
    // A Morris counter of step 2^-8 varies by √(2^-8 / 2) = 4.4 % of its value at most: 0.3 % for the mean.
    assert!((mean / 3000.0 - 1.0).abs() < 0.01, "{mean}");
}

#[test]
fn sketch_when_given_too_little_says_what_it_needs() {
    let error = DecayingSketch::new(1 << 24, 1000, HALF_LIFE, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a sketch of 16777216 pages needs 32768 bytes at least, 1000 were given"
    );
    assert!(DecayingSketch::new(1 << 24, 32768, HALF_LIFE, 1).is_ok());
    for pages in [0, 1, 2, 3, 1000, 1 << 20, (1 << 28) + 1, u32::MAX] {
        let least = SketchHeat::least_bytes(pages.min(1 << 24));
        let heat = SketchHeat::new(pages.min(1 << 24), least, HALF_LIFE, 1);
        assert!(heat.is_ok(), "{pages}");
        let error = SketchHeat::new(pages.min(1 << 24), least - 1, HALF_LIFE, 1).err();
        assert_eq!(error.map(|error| error.least_bytes), Some(least));
        let bytes = DecayingSketch::least_bytes(pages);
        let mut sketch = DecayingSketch::new(pages, bytes, HALF_LIFE, 1).unwrap();
        sketch.add(Time(0), pages.saturating_sub(1), 1.0);
        sketch.add(Time(0), pages, 1.0);
        assert_eq!(sketch.stats().pages, pages.min(1));
        assert_eq!(sketch.check(), Ok(()));
    }
    // 1 TiB of 4 KiB pages, and 4 TiB.
    assert_eq!(DecayingSketch::least_bytes(1 << 28), 512 << 10);
    assert_eq!(DecayingSketch::least_bytes(1 << 30), 2 << 20);
}

#[test]
fn sketch_when_the_seed_is_the_same_does_the_same() {
    let run = |seed| {
        let mut sketch = DecayingSketch::new(PAGES, 256, HALF_LIFE, seed).unwrap();
        let mut random = Random::new(4);
        for i in 0..5_000 {
            let page = random.draw() as u32 % PAGES;
            sketch.add(Time(i * 1_000_000), page, 1.0);
        }
        sketch.iter().collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
