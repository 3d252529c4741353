//! The token bucket.

use std::time::Duration;

use proptest::prelude::*;
use tier_core::{quota::TokenBucket, time::Time};

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
}
