//! A guest whose two halves are used in turn, which no policy can follow at a gain.

use std::{sync::Arc, time::Duration};

use tier_core::{addr::BASE_PAGE, sample::AccessKind, time::Time};
use tier_replay::{
    machine::{Conditions, Guest, Sample, Slice, Touch},
    policy::{self, PolicySetup},
    simulation::{Score, Simulation},
};

/// 64 MiB, of which half is DRAM.
const PAGES: u32 = 16 << 10;
const HALF: u32 = PAGES / 2;
const SLICE: Duration = Duration::from_millis(10);
/// Accesses in a slice: each page of a half is used six times a second.
const ACCESSES: u32 = 500;

/// The halves are used in turn, for `turn_s` seconds each, in rising order of pages; from second
/// `steady_s` on the second half only. Every access is sampled.
fn play(name: &str, turn_s: u32, steady_s: u32, seconds: u32) -> Score {
    let guest = Arc::new(Guest::uniform(0, PAGES, BASE_PAGE));
    let setup = PolicySetup {
        period: 1,
        ..PolicySetup::default()
    };
    let fast_bytes = u64::from(HALF) * BASE_PAGE;
    let conditions = Conditions::default();
    let mut simulation = Simulation::new(guest, fast_bytes, conditions, |host| {
        policy::make(name, host, &setup)
    })
    .unwrap_or_else(|error| panic!("{error}"));
    let mut next = 0;
    for number in 0..seconds * 100 {
        let start = Time(0) + SLICE * number;
        let second = number / 100;
        let uses_second = second >= steady_s || (second / turn_s).is_multiple_of(2);
        let first = if uses_second { HALF } else { 0 };
        let pages = (0..ACCESSES).map(|_| {
            next = (next + 1) % HALF;
            first + next
        });
        let pages: Vec<u32> = pages.collect();
        let slice = Slice {
            start,
            end: start + SLICE,
            touched: pages
                .iter()
                .map(|&page| Touch {
                    page,
                    accesses: 1,
                    stores: 0,
                })
                .collect(),
            samples: pages
                .iter()
                .map(|&page| Sample {
                    at: start,
                    page,
                    weight: 1.0,
                    kind: AccessKind::Load,
                    luck: 0,
                })
                .collect(),
            period: 1,
            ..Slice::default()
        };
        simulation.step(&slice, &mut || Duration::ZERO);
    }
    simulation.finish(&[])
}

fn moved_mib(score: &Score) -> u64 {
    (score.ledger.promoted_bytes + score.ledger.demoted_bytes) >> 20
}

fn told(score: &Score) -> String {
    let (moved, slowdown) = (moved_mib(score), score.slowdown);
    format!(
        "{moved} MiB, slowdown {slowdown:.2}, hits {:.3}",
        score.hit_ratio()
    )
}

#[test]
fn moves_when_halves_are_used_in_turn_are_slowed_until_they_cost_little() {
    let left = play("static", 6, 60, 60);
    assert!((1.7..1.8).contains(&left.slowdown), "{}", told(&left));

    let score = play("dual-heap", 6, 60, 60);

    // Without the guard 640 MiB, and a slowdown of 4.62.
    assert!(moved_mib(&score) < 200, "{}", told(&score));
    assert!(score.slowdown < 2.8, "{}", told(&score));
}

#[test]
fn moves_when_turns_are_long_are_not_slowed() {
    let score = play("dual-heap", 20, 60, 60);
    // As without the guard: three times all of DRAM.
    assert_eq!(moved_mib(&score), 3 * 64, "{}", told(&score));
    assert!(score.hit_ratio() > 0.85, "{}", told(&score));
}

#[test]
fn moves_when_the_pattern_stays_at_last_are_free_again() {
    let score = play("dual-heap", 6, 36, 90);
    let last = &score.timeline[80..];
    let (fast, all) = last
        .iter()
        .fold((0, 0), |(f, a), (fast, all)| (f + fast, a + all));
    assert!(
        fast as f64 > 0.95 * all as f64,
        "{fast} of {all}: {}",
        told(&score)
    );
}
