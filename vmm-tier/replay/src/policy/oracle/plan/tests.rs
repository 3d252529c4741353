use std::{sync::Arc, time::Duration};

use super::*;
use crate::machine::{Conditions, Guest, Slice, Touch};

const PAGE: u64 = 4096;

/// A profile with one epoch a second; `uses[epoch][page]` accesses.
fn profile(uses: &[&[u32]]) -> Profile {
    let mut profile = Profile::new(uses[0].len() as u32, Duration::from_secs(1), 1 << 20);
    for (second, pages) in (0..).zip(uses) {
        profile.add(&Slice {
            start: Time(second * 1_000_000_000),
            end: Time((second + 1) * 1_000_000_000),
            touched: (0..)
                .zip(*pages)
                .filter(|(_, n)| **n > 0)
                .map(|(page, &accesses)| Touch {
                    page,
                    accesses,
                    stores: 0,
                })
                .collect(),
            ..Slice::default()
        });
    }
    profile.finish()
}

fn host(pages: u32, fast_pages: u64) -> Host {
    let guest = Arc::new(Guest::uniform(0, pages, PAGE));
    Host::new(guest, fast_pages * PAGE, Conditions::default())
}

fn moves(plan: &Plan) -> Vec<(u64, Vec<u32>, Vec<u32>)> {
    plan.epochs
        .iter()
        .map(|e| {
            (
                e.from.0 / 1_000_000_000,
                e.demote.clone(),
                e.promote.clone(),
            )
        })
        .collect()
}

#[test]
fn plan_when_moves_are_free_follows_every_epoch() {
    let profile = profile(&[&[1, 0, 9], &[9, 1, 0], &[0, 9, 1]]);
    let plan = Plan::new(PlanKind::Free, &profile, &host(3, 1));
    assert_eq!(
        moves(&plan),
        [
            (0, vec![0], vec![2]),
            (1, vec![2], vec![0]),
            (2, vec![0], vec![1])
        ]
    );
}

#[test]
fn plan_when_moves_cost_more_than_they_gain_moves_nothing() {
    // 9 accesses gain 1.35 µs; an exchange costs 11 µs.
    let profile = profile(&[&[1, 0, 9], &[9, 1, 0], &[0, 9, 1]]);
    let plan = Plan::new(PlanKind::Paying, &profile, &host(3, 1));
    assert_eq!(moves(&plan), []);
}

#[test]
fn plan_when_moves_pay_back_over_several_epochs_moves_once() {
    // 50 accesses an epoch gain 7.5 µs: two epochs pay for an exchange, and one in between does not.
    let hot = [0, 50, 0];
    let odd = [50, 0, 0];
    let profile = profile(&[&hot, &hot, &odd, &hot, &hot]);
    let plan = Plan::new(PlanKind::Paying, &profile, &host(3, 1));
    assert_eq!(moves(&plan), [(0, vec![0], vec![1])]);
}

#[test]
fn plan_when_the_hot_set_changes_for_long_moves_again() {
    let (first, then): (&[u32], &[u32]) = (&[0, 900, 0], &[0, 0, 900]);
    let profile = profile(&[first, first, first, then, then, then]);
    let plan = Plan::new(PlanKind::Paying, &profile, &host(3, 1));
    assert_eq!(moves(&plan), [(0, vec![0], vec![1]), (3, vec![1], vec![2])]);
}

/// The best value of all placements in all epochs, and that of never moving.
fn exhaustive(problem: &Problem) -> (f64, f64) {
    let pages = problem.pages();
    let start = (0..pages).fold(0_u32, |set, page| {
        set | u32::from(problem.starts_fast[page]) << page
    });
    let fits = |set: u32| f64::from(set.count_ones()) * PAGE as f64 <= problem.fast_bytes;
    let value = |set: u32, epoch: usize| -> f64 {
        (0..pages)
            .filter(|page| set >> page & 1 == 1)
            .map(|page| f64::from(problem.used(page, epoch)) * problem.gain_ns)
            .sum()
    };
    let mut best: Vec<f64> = (0..1_u32 << pages)
        .map(|set| if set == start { 0.0 } else { f64::NEG_INFINITY })
        .collect();
    let mut stay = 0.0;
    for epoch in 0..problem.epochs() {
        stay += value(start, epoch);
        best = (0..1_u32 << pages)
            .map(|set| {
                if !fits(set) {
                    return f64::NEG_INFINITY;
                }
                let from = (0..1_u32 << pages).map(|old| {
                    best[old as usize] - f64::from((old ^ set).count_ones()) * problem.move_ns(0)
                });
                from.fold(f64::NEG_INFINITY, f64::max) + value(set, epoch)
            })
            .collect();
    }
    (best.into_iter().fold(f64::NEG_INFINITY, f64::max), stay)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    /// On problems small enough to solve exactly, which are the heuristic's worst case: one page of few
    /// is much.
    #[test]
    fn plan_when_anything_is_used_gains_most_of_what_can_be_gained(
        uses in proptest::collection::vec(proptest::collection::vec(0_u32..400, 5), 1..7),
        fast in 1_u64..5,
    ) {
        let rows: Vec<&[u32]> = uses.iter().map(Vec::as_slice).collect();
        let (profile, host) = (profile(&rows), host(5, fast));
        let problem = Problem::new(PlanKind::Paying, &profile, &host);
        let plan = Plan::new(PlanKind::Paying, &profile, &host);
        let mut by_epoch = vec![(Vec::new(), Vec::new()); uses.len()];
        for (from, demote, promote) in moves(&plan) {
            by_epoch[from as usize] = (demote, promote);
        }
        let (gain, (best, stay)) = (problem.gain(&by_epoch), exhaustive(&problem));
        proptest::prop_assert!(gain >= 0.0);
        proptest::prop_assert!(stay + gain <= best + 1e-6);
        proptest::prop_assert!(stay + gain >= 0.8 * best, "{} of {best}", stay + gain);
        // Never more in DRAM than fits.
        let mut fast_pages: std::collections::BTreeSet<u32> =
            (0..5).filter(|&page| host.is_fast(page)).collect();
        for (demote, promote) in &by_epoch {
            for page in demote { proptest::prop_assert!(fast_pages.remove(page)); }
            for page in promote { proptest::prop_assert!(fast_pages.insert(*page)); }
            proptest::prop_assert!(fast_pages.len() as u64 <= fast);
        }
    }
}
