//! `sketch`: the engine that `vmm-tier run` runs, with heat in bounded memory ([`SketchHeat`]).
//!
//! All of it is [`dual_heap`](super::dual_heap)'s, but for where heat is kept: what its counts are off, and
//! what it forgets, is the whole difference between the two.
//!
//! # Constants
//! The sketch is granted 2 bytes for each page, 16 KiB at least and 1 MiB at most, unless
//! [`PolicySetup::sketch_bytes`] says otherwise. Beside it, each page has two bits.
//!
//! # What it can't know
//! A page that the sketch has forgotten counts as never sampled. Its count is then taken as 0, though it is only
//! below those of the pages that pushed it out: with too small a sketch, DRAM pages that are used a little give
//! way to hotter ones too easily.

use super::{Policy, PolicySetup, Seen, dual_heap::DualHeaps};
use crate::{
    engine::Refusal,
    heat_store::{HeatStore, StoreChoice},
    replay::Host,
    sketch::SketchHeat,
};

const BYTES_PER_PAGE: usize = 2;
const LEAST_BYTES: usize = 16 << 10;
const MOST_BYTES: usize = 1 << 20;

/// See the [module](self).
pub struct Sketch(DualHeaps);

impl Sketch {
    /// A sketch of as many bytes as `setup` says, or of 2 bytes a page, from 16 KiB to 1 MiB.
    #[must_use]
    pub fn new(host: &Host, setup: &PolicySetup) -> Self {
        let pages = host.guest().pages();
        let usual = (pages as usize * BYTES_PER_PAGE).clamp(LEAST_BYTES, MOST_BYTES);
        let bytes = setup.sketch_bytes.unwrap_or(usual);
        // As large as it must be, it is not refused.
        Self::of(host, setup, bytes.max(SketchHeat::least_bytes(pages))).0
    }

    /// A sketch of so many bytes.
    ///
    /// # Errors
    /// If that is too small for the guest.
    pub fn with_bytes(host: &Host, setup: &PolicySetup, bytes: usize) -> Result<Self, Refusal> {
        let (policy, tracked) = Self::of(host, setup, bytes);
        tracked.map(|()| policy)
    }

    fn of(host: &Host, setup: &PolicySetup, bytes: usize) -> (Self, Result<(), Refusal>) {
        let memory_bytes = bytes + SketchHeat::place_bytes(host.guest().pages());
        let (policy, tracked) =
            DualHeaps::with_heat(host, setup, StoreChoice::Sketch, memory_bytes as u64);
        (Self(policy), tracked)
    }

    /// The store of heat.
    #[must_use]
    pub fn heat(&self) -> &HeatStore {
        self.0.engine().heat()
    }
}

impl Policy for Sketch {
    fn name(&self) -> &'static str {
        "sketch"
    }

    fn step(&mut self, seen: &Seen<'_>, host: &mut Host) {
        self.0.step(seen, host);
    }

    fn memory_bytes(&self) -> usize {
        self.0.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::{ops::Range, sync::Arc, time::Duration};

    use super::*;
    use crate::{
        engine::SetMapError,
        heat_store::{HeatStoreError, StoreSnapshot},
        moves::Outcome,
        replay::{Conditions, Failures, Guest, Sample, Slice},
        sample::AccessKind,
        time::Time,
    };

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
    fn run(
        policy: &mut impl Policy,
        host: &mut Host,
        slices: Range<u32>,
        page: impl Fn(u32) -> u32,
    ) {
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
    }

    /// Nine in ten samples on 100 slow pages: 9 a second each.
    fn mostly_hot(i: u32) -> u32 {
        match i % 10 {
            0 => i * 7919 % 4_000,
            _ => 2_000 + (i - i / 10) * 31 % 100,
        }
    }

    #[test]
    fn pages_when_hot_on_the_slow_tier_are_moved_as_with_exact_counts() {
        let setup = PolicySetup::default();
        let mut exact_host = small(0.0);
        let mut exact = DualHeaps::new(&exact_host, &setup);
        run(&mut exact, &mut exact_host, 0..1600, mostly_hot);
        let mut host = small(0.0);
        let mut policy = Sketch::new(&host, &setup);
        run(&mut policy, &mut host, 0..1600, mostly_hot);
        assert_eq!(policy.0.engine().check(), Ok(()));
        assert!((2_000..2_100).all(|page| host.is_fast(page)));
        let (moved, by_exact) = (host.ledger().moves, exact_host.ledger().moves);
        // 16 KiB hold a count of each of the 4 000 pages: what differs is in what order equal ones go.
        assert!(
            moved.abs_diff(by_exact) <= by_exact / 10,
            "{moved}, {by_exact}"
        );
        // Beside what was granted, the pages that cool down.
        let aside = 72 * moved as usize;
        assert!(policy.memory_bytes() <= LEAST_BYTES + 4_000 / 4 + 8 + aside);
    }

    #[test]
    fn pages_when_the_sketch_holds_a_tenth_of_them_arrive_all_the_same() {
        let mut host = small(0.0);
        // About 400 slots for 4 000 pages.
        let mut policy = Sketch::with_bytes(&host, &PolicySetup::default(), 2_000).unwrap();
        run(&mut policy, &mut host, 0..1600, mostly_hot);
        assert_eq!(policy.0.engine().check(), Ok(()));
        assert!((2_000..2_100).all(|page| host.is_fast(page)));
        let StoreSnapshot::Sketch { slots, evicted, .. } = policy.heat().snapshot() else {
            panic!("it is a sketch");
        };
        assert!((300..500).contains(&slots), "{slots} slots");
        assert!(evicted > 0, "what is cold makes room");
    }

    #[test]
    fn pages_when_moves_often_fail_arrive_in_the_end() {
        let mut host = small(0.5);
        let mut policy = Sketch::new(&host, &PolicySetup::default());
        run(&mut policy, &mut host, 0..1500, |i| 3_000 + i % 50);
        assert!((3_000..3_050).all(|page| host.is_fast(page)));
        let failed = host.ledger().failed[&Outcome::Busy];
        assert!(failed > 20, "half of a hundred moves: {failed}");
        assert_eq!(host.ledger().ping_pongs, 0);
        assert!(host.fast_used() <= host.fast_bytes());
    }

    #[test]
    fn sketch_when_too_small_is_refused_with_what_it_needs() {
        let error = Sketch::with_bytes(&small(0.0), &PolicySetup::default(), 100).err();
        assert_eq!(
            error,
            Some(Refusal::Map(SetMapError::Heat(HeatStoreError::TooSmall {
                pages: 4_000,
                memory_bytes: 1_100,
                least_bytes: 1_000 + 384,
            })))
        );
    }
}
