//! The token bucket and the headroom arithmetic, and the rules for when a move pays.

use std::time::Duration;

use proptest::prelude::*;
use tier_core::{
    exchange::{PayBack, chance_significance, plain_counts, share_significance, significance},
    quota::{Headroom, TokenBucket},
    time::Time,
};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn bucket_when_asked_for_more_than_it_holds_grants_nothing_of_it() {
    let mut bucket = TokenBucket::new(1000, 4096, Time(0));
    assert!(bucket.take(Time(0), 4096));
    assert!(!bucket.take(Time(0), 1));
    assert_eq!(bucket.available(Time(0) + SECOND), 1000);
    assert!(!bucket.take(Time(0) + SECOND, 1001));
    assert_eq!(bucket.take_up_to(Time(0) + SECOND, 1001), 1000);
}

#[test]
fn bucket_when_time_goes_back_grants_nothing_twice() {
    let mut bucket = TokenBucket::new(1000, 1000, Time(0) + SECOND);
    assert!(bucket.take(Time(0) + SECOND, 1000));
    assert_eq!(bucket.take_up_to(Time(0), 1000), 0);
    assert_eq!(bucket.take_up_to(Time(0) + SECOND, 1000), 0);
}

#[test]
fn bucket_when_asked_every_nanosecond_loses_nothing_to_rounding() {
    let mut bucket = TokenBucket::new(333, 1000, Time(0));
    assert!(bucket.take(Time(0), 1000));
    let granted: u64 = (1..=100_000)
        .map(|ns| bucket.take_up_to(Time(ns * 10_000), 1000))
        .sum();
    assert_eq!(granted, 333);
}

#[test]
fn headroom_when_below_the_reserve_promotes_nothing_and_tells_the_deficit() {
    let headroom = Headroom {
        free_bytes: 50,
        watermark_bytes: 60,
        margin_bytes: 40,
    };
    assert_eq!(headroom.promotable_bytes(), 0);
    assert_eq!(headroom.deficit_bytes(), 50);
}

/// Var C = E C / 2 is what the test of significance stands on.
#[test]
fn decayed_count_of_a_poisson_process_when_simulated_varies_half_as_much_as_its_mean() {
    // A linear congruential generator (Knuth's MMIX constants): the test needs no better one.
    let mut state = 1u64;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let (rate, runs) = (10.0, 4000);
    let counts: Vec<f64> = (0..runs)
        .map(|_| {
            // Events of the last 20 half-lives, H = 1.
            let (mut age, mut count) = (0.0, 0.0);
            while age < 20.0 {
                count += f64::exp2(-age);
                age -= (1.0 - uniform()).ln() / rate;
            }
            // The first event stands at age 0 without having been drawn.
            count - 1.0
        })
        .collect();
    let mean = counts.iter().sum::<f64>() / f64::from(runs);
    let variance = counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / f64::from(runs);
    assert!((mean - rate / std::f64::consts::LN_2).abs() < 0.2, "{mean}");
    assert!((variance / mean - 0.5).abs() < 0.04, "{variance} / {mean}");
}

#[test]
fn significance_when_counts_are_small_needs_more_than_one_event() {
    // Worked from the formula: √2 (√(2a + 3/8) − √(3/8)).
    assert!(significance(1.0, 0.0, 2.0) < 2.0);
    assert!(significance(1.9, 0.0, 2.0) > 2.0);
    assert!(significance(3.6, 0.0, 2.0) > 3.0);
    assert_eq!(significance(5.0, 5.0, 2.0), 0.0);
    assert!(significance(1.0, 5.0, 2.0) < 0.0);
}

#[test]
fn plain_counts_when_counting_begins_are_one_and_soon_two() {
    let after = |t: f64| {
        let decayed = 10.0 / std::f64::consts::LN_2 * (1.0 - (-t / 10.0).exp2());
        plain_counts(decayed, 10.0)
    };
    assert_eq!(after(0.0), 1.0);
    assert!((after(10.0) - 4.0 / 3.0).abs() < 1e-9);
    assert!((after(200.0) - 2.0).abs() < 1e-5);
    // A source that says that it watched longer than there was time for.
    assert_eq!(plain_counts(1e9, 10.0), 2.0);
}

#[test]
fn share_significance_when_shares_are_small_is_that_of_counts() {
    for (hot, cold) in [(5.0, 0.0), (40.0, 20.0), (3.0, 9.0)] {
        let (share, count) = (
            share_significance(hot, cold, 1e6),
            significance(hot, cold, 2.0),
        );
        assert!(
            (share - count).abs() < 0.01,
            "{hot} {cold}: {share} {count}"
        );
    }
}

#[test]
fn share_significance_when_pages_are_almost_always_used_tells_them_apart() {
    // Found used at every one of 3000 tests, and at 39 of 40 of them.
    assert!(share_significance(3000.0, 2925.0, 3000.0) > 10.0);
    assert!(significance(3000.0, 2925.0, 2.0) < 2.0);
    // More than all tests is taken as all.
    assert_eq!(share_significance(4000.0, 3000.0, 3000.0), 0.0);
}

#[test]
fn chance_significance_when_there_are_more_pages_is_greater() {
    assert_eq!(chance_significance(1, 1), 0.0);
    // √(2 ln 80000) = 4.75, √(2 ln 20000) = 4.45, their sum over √2 is 6.51.
    assert!((chance_significance(80_000, 20_000) - 6.51).abs() < 0.01);
}

#[test]
fn pay_back_when_a_demotion_is_needed_asks_for_twice_the_gain() {
    // 100 ns saved an access, 10 s ahead, 10 µs a move: one move pays from 10 accesses a second on.
    let rule = PayBack {
        slow_latency_ns: 200.0,
        fast_latency_ns: 100.0,
        horizon_s: 10.0,
        move_cost_ns: 10_000.0,
    };
    assert!(rule.pays(10.0, 0.0, 1));
    assert!(!rule.pays(10.0, 0.0, 2));
    assert!(rule.pays(20.0, 0.0, 2));
    assert!(!rule.pays(20.0, 1.0, 2));
}

#[test]
fn pay_back_when_the_slow_tier_is_not_slower_never_pays() {
    let rule = PayBack {
        slow_latency_ns: 100.0,
        fast_latency_ns: 100.0,
        horizon_s: 10.0,
        move_cost_ns: 0.0,
    };
    assert!(!rule.pays(1e9, 0.0, 1));
}

proptest! {
    #[test]
    fn bucket_when_asked_at_random_never_grants_more_than_rate_and_burst(
        rate in 0..1u64 << 40, burst in 0..1u64 << 34,
        asks in proptest::collection::vec((0..2_000_000_000u64, 0..1u64 << 36, any::<bool>()), 1..100),
    ) {
        let mut bucket = TokenBucket::new(rate, burst, Time(0));
        let (mut now, mut granted) = (Time(0), 0u128);
        for (ns, bytes, whole) in asks {
            now = now + Duration::from_nanos(ns);
            let offered = bucket.available(now);
            let got = match whole {
                true => if bucket.take(now, bytes) { bytes } else { 0 },
                false => bucket.take_up_to(now, bytes),
            };
            prop_assert!(got <= offered);
            prop_assert!(bucket.is_valid());
            granted += u128::from(got);
            let bound = u128::from(rate) * u128::from(now.0) / 1_000_000_000 + u128::from(burst);
            prop_assert!(granted <= bound, "{granted} > {bound}");
        }
    }

    #[test]
    fn bucket_when_the_rate_changes_stays_within_its_burst(
        changes in proptest::collection::vec((0..5_000_000_000u64, 0..1u64 << 30, 0..1u64 << 30), 1..50),
    ) {
        let mut bucket = TokenBucket::new(1 << 20, 1 << 20, Time(0));
        let mut now = Time(0);
        for (ns, rate, burst) in changes {
            now = now + Duration::from_nanos(ns);
            bucket.set_rate(now, rate, burst);
            bucket.give_back(rate);
            prop_assert!(bucket.is_valid());
            prop_assert!(bucket.available(now) <= burst);
        }
    }

    #[test]
    fn headroom_when_what_it_asks_is_done_leaves_the_reserve_free(
        free_bytes in 0..1u64 << 40, watermark_bytes in 0..1u64 << 36, margin_bytes in 0..1u64 << 36,
    ) {
        let headroom = Headroom { free_bytes, watermark_bytes, margin_bytes };
        let reserve = headroom.reserve_bytes();
        let promotable = headroom.promotable_bytes();
        prop_assert!(promotable == 0 || free_bytes - promotable == reserve);
        prop_assert!(promotable == 0 || headroom.deficit_bytes() == 0);
        let demoted = headroom.deficit_bytes();
        prop_assert!(free_bytes + demoted >= reserve);
        prop_assert!(demoted == 0 || free_bytes + demoted == reserve);
    }
}
