//! Forward decay against exact exponential decay.

use std::{f64::consts::LN_2, time::Duration};

use proptest::prelude::*;
use tier_core::{
    dual_heap::{DualHeap, PageId, Placement},
    heat::Decay,
    time::Time,
};

fn one_page(half_life: Duration) -> DualHeap {
    let mut heap = DualHeap::new(1, half_life).unwrap();
    heap.place(PageId(0), Placement::Fast);
    heap
}

#[test]
fn decayed_count_when_a_half_life_passes_is_half() {
    let mut heap = one_page(Duration::from_secs(10));
    heap.sample(Time(0), PageId(0), 8.0);
    assert_eq!(heap.count(PageId(0), Time(10_000_000_000)), 4.0);
    assert_eq!(heap.count(PageId(0), Time(30_000_000_000)), 1.0);
}

#[test]
fn counts_when_brought_to_another_unit_are_multiplied_and_go_on_decaying() {
    let mut heap = one_page(Duration::from_secs(10));
    heap.sample(Time(0), PageId(0), 8.0);
    heap.scale(Time(0), 0.3);
    let count = heap.count(PageId(0), Time(10_000_000_000));
    assert!((count - 1.2).abs() < 1e-6, "{count}");
    heap.sample(Time(10_000_000_000), PageId(0), 1.0);
    let count = heap.count(PageId(0), Time(10_000_000_000));
    assert!((count - 2.2).abs() < 1e-6, "{count}");
    // No factor: nothing happens.
    for factor in [0.0, -1.0, f64::NAN] {
        heap.scale(Time(10_000_000_000), factor);
    }
    assert_eq!(heap.count(PageId(0), Time(10_000_000_000)), count);
}

#[test]
fn steady_rate_when_counted_long_enough_is_found_again() {
    let mut heap = one_page(Duration::from_secs(2));
    // 1000 events a second for 40 s, 20 half-lives: within 2^-20 of steady.
    for ms in 0..40_000u64 {
        heap.sample(Time(ms * 1_000_000), PageId(0), 1.0);
    }
    let count = heap.count(PageId(0), Time(40_000_000_000));
    // A steady rate r settles at r · ∫ 2^(−s/H) ds = r · H / ln 2.
    let rate = count * LN_2 / 2.0;
    assert!((rate - 1000.0).abs() < 2.0, "{rate}");
}

#[test]
fn weight_when_not_a_positive_number_changes_nothing() {
    let mut heap = one_page(Duration::from_secs(1));
    for weight in [0.0, -1.0, f32::NAN, f32::NEG_INFINITY] {
        assert!(heap.sample(Time(5), PageId(0), weight));
    }
    assert_eq!(heap.count(PageId(0), Time(5)), 0.0);
    heap.sample(Time(5), PageId(0), f32::INFINITY);
    assert!(heap.count(PageId(0), Time(5)).is_finite());
    assert!(heap.is_valid());
}

#[test]
fn landmark_when_time_jumps_to_the_end_of_time_forgets_and_stays_valid() {
    let mut heap = one_page(Duration::from_millis(1));
    heap.sample(Time(0), PageId(0), 1.0);
    heap.tick(Time(u64::MAX));
    assert!(heap.is_valid());
    assert_eq!(heap.count(PageId(0), Time(u64::MAX)), 0.0);
    assert_eq!(heap.stats().fast_never_sampled, 1);
    heap.sample(Time(u64::MAX), PageId(0), 1.0);
    let count = heap.count(PageId(0), Time(u64::MAX));
    assert!((count - 1.0).abs() < 1e-6, "{count}");
}

proptest! {
    #[test]
    fn forward_decay_when_samples_come_at_random_is_exact_decay(
        steps in proptest::collection::vec((0..3_000u64, 0.1..30.0f32), 1..400),
        half_life_ms in 500..5_000u64,
    ) {
        let half_life = Duration::from_millis(half_life_ms);
        let mut heap = one_page(half_life);
        let (mut now, mut exact) = (Time(0), 0.0f64);
        for (ms, weight) in steps {
            now = now + Duration::from_millis(ms);
            exact = exact * (-(ms as f64) / half_life_ms as f64).exp2() + f64::from(weight);
            heap.sample(now, PageId(0), weight);
            let count = heap.count(PageId(0), now);
            prop_assert!((count - exact).abs() <= 1e-3 * exact, "{count} is not {exact}");
        }
    }

    #[test]
    fn count_when_its_page_rests_within_the_horizon_is_exact_decay(
        samples in proptest::collection::vec((0..2_000u64, 0.5..30.0f32), 1..60),
        rest_ms in 0..60_000u64,
        placement in prop_oneof![Just(Placement::Fast), Just(Placement::Slow)],
    ) {
        // 60 half-lives of 1 s; after 62 a count may be forgotten.
        let mut heap = DualHeap::new(2, Duration::from_secs(1)).unwrap();
        for id in [0, 1] {
            heap.place(PageId(id), placement);
        }
        let (mut now, mut exact) = (Time(0), 0.0f64);
        for (ms, weight) in samples {
            now = now + Duration::from_millis(ms);
            exact = exact * (-(ms as f64) / 1e3).exp2() + f64::from(weight);
            heap.sample_batch(now, &[PageId(1)], weight);
        }
        now = now + Duration::from_millis(rest_ms);
        exact *= (-(rest_ms as f64) / 1e3).exp2();
        // Another page's sample moves the landmark if that is due.
        heap.sample(now, PageId(0), 1.0);
        let count = heap.count(PageId(1), now);
        prop_assert!((count - exact).abs() <= 1e-3 * exact, "{count} is not {exact}");
    }

    #[test]
    fn keys_when_the_landmark_moves_keep_their_order_and_value(
        a in 1e-30..1e30f32, b in 1e-30..1e30f32, halves in 64..200u32,
    ) {
        let half_life = Duration::from_secs(1);
        let mut decay = Decay::new(half_life, Time(0));
        let now = Time(0) + half_life * halves;
        let before = (decay.value(a, now), decay.value(b, now));
        let moved = decay.shift(now).unwrap();
        let (a2, b2) = (Decay::shifted(a, moved), Decay::shifted(b, moved));
        // A key below the least is forgotten; any other is exact, so the order is too.
        if a2 > 0.0 && b2 > 0.0 {
            prop_assert_eq!(a.total_cmp(&b), a2.total_cmp(&b2));
            prop_assert_eq!(before, (decay.value(a2, now), decay.value(b2, now)));
        } else {
            prop_assert!(a2 == 0.0 || a >= b);
            prop_assert!(b2 == 0.0 || b >= a);
        }
    }

    #[test]
    fn counts_when_the_half_life_changes_stay(
        key in 1e-3..1e9f32, now_ms in 0..100_000u64, from_ms in 1_000..20_000u64, to_ms in 1_000..20_000u64,
    ) {
        let now = Time(now_ms * 1_000_000);
        let mut decay = Decay::new(Duration::from_millis(from_ms), Time(0));
        let before = decay.value(key, now);
        decay.set_half_life(Duration::from_millis(to_ms), now);
        let after = decay.value(key, now);
        prop_assert!((after - before).abs() <= 1e-6 * before, "{before} became {after}");
        let later = decay.value(key, now + Duration::from_millis(to_ms));
        prop_assert!((later - before / 2.0).abs() <= 1e-6 * before);
    }
}
