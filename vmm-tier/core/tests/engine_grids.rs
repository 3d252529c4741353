//! Ranges that are looked at page by page, beside regions in which hot and cold pages lie mixed.

use std::{ops::Range, time::Duration};

use tier_core::{
    addr::{BASE_PAGE, Hva},
    engine::Event,
    random::Random,
    sample::{AccessKind, AccessSample, SampleAccount, SampleAddress, SampleBatch, SourceKind},
};

use crate::{
    common::{BASE, FAST, settings},
    lab::{Lab, aggregation, gups},
};

const FRAMES: u32 = 4096;
/// Frames of a region, as many as of a grid.
const REGION: u32 = 512;
const LOOKS: u32 = 20;

/// A guest whose pages are found used with these probabilities, page by page.
struct Guest<F> {
    lab: Lab,
    random: Random,
    share: F,
}

impl<F: Fn(u32) -> f64> Guest<F> {
    fn new(share: F) -> Self {
        Self {
            lab: Lab::new(gups(FRAMES, 600), settings()),
            random: Random::new(7),
            share,
        }
    }

    /// Looks at one random page of each region, as DAMON does.
    fn watch(&mut self, times: u32) {
        for _ in 0..times {
            self.lab.now = self.lab.now + Duration::from_millis(400);
            let regions: Vec<_> = (0..FRAMES / REGION)
                .map(|region| {
                    let found = (0..LOOKS).filter(|_| {
                        let page = region * REGION + self.random.below(REGION.into()) as u32;
                        self.random.share() < (self.share)(page)
                    });
                    let hva = Hva(BASE + u64::from(region * REGION) * BASE_PAGE);
                    (hva, found.count() as f32)
                })
                .collect();
            let len = u64::from(REGION) * BASE_PAGE;
            let regions = aggregation(self.lab.now, len, regions.into_iter());
            self.lab.step(regions);
        }
    }

    /// Looks at each page.
    fn grid(&mut self, pages: Range<u32>, looks: u32) {
        let samples: Vec<_> = pages
            .map(|page| AccessSample {
                address: SampleAddress::Host(Hva(BASE + u64::from(page) * BASE_PAGE)),
                len: BASE_PAGE,
                weight: (0..looks)
                    .filter(|_| self.random.share() < (self.share)(page))
                    .count() as f32,
                kind: AccessKind::Any,
            })
            .collect();
        self.lab.step(Event::Grid(SampleBatch {
            source: SourceKind::Damon,
            end: self.lab.now,
            span: Duration::from_millis(20) * looks,
            tests: looks,
            period: 1,
            settled: true,
            map_generation: 1,
            samples,
            account: SampleAccount::default(),
        }));
    }

    fn all_grids(&mut self) {
        for region in 0..FRAMES / REGION {
            self.grid(region * REGION..(region + 1) * REGION, LOOKS);
        }
    }

    /// The share of hot pages that lie on the fast node.
    fn placed(&self, is_hot: impl Fn(u32) -> bool) -> f64 {
        let hot: Vec<u32> = (0..FRAMES).filter(|&page| is_hot(page)).collect();
        let fast = hot
            .iter()
            .filter(|&&page| self.lab.kernel.frames[page as usize] == Some(FAST));
        fast.count() as f64 / hot.len() as f64
    }

    fn changes(&self) -> u64 {
        self.lab.engine.snapshot().changes
    }
}

/// One page in eight is hot.
fn scattered(page: u32) -> f64 {
    if page.is_multiple_of(8) { 0.7 } else { 0.02 }
}

#[test]
fn hot_pages_when_scattered_are_found_by_grids() {
    let is_hot = |page: u32| page.is_multiple_of(8);
    let mut guest = Guest::new(scattered);
    guest.watch(40);
    assert!(guest.placed(is_hot) < 0.4, "regions can't tell them");
    for _ in 0..4 {
        guest.all_grids();
        guest.watch(10);
    }
    assert!(guest.placed(is_hot) > 0.98, "{}", guest.placed(is_hot));
    let snapshot = guest.lab.engine.snapshot();
    assert_eq!(snapshot.scattered_bytes, u64::from(FRAMES) * BASE_PAGE);
    assert!(guest.lab.engine.samples().is_valid());

    // The regions' later counts are dealt out by what grids found.
    let moved = guest.lab.moved();
    guest.watch(100);
    assert!(guest.placed(is_hot) > 0.98);
    assert!(guest.lab.moved() - moved < 64 * BASE_PAGE);
}

#[test]
fn pages_when_used_alike_are_left_where_they_are_by_grids() {
    let mut guest = Guest::new(|_| 0.3);
    guest.watch(10);
    let moved = guest.lab.moved();
    for _ in 0..10 {
        guest.all_grids();
        guest.watch(4);
    }
    assert_eq!(guest.lab.engine.snapshot().scattered_bytes, 0);
    assert!(guest.lab.moved() - moved < 64 * BASE_PAGE);
}

#[test]
fn factors_when_the_kernel_makes_huge_pages_of_their_pages_are_forgotten() {
    // The first page of each 2 MiB is idle, so its factor is near 0.
    let is_huge = std::cell::Cell::new(false);
    let mut guest = Guest::new(|page| match is_huge.get() {
        true if page >= FRAMES - 512 => 1.0,
        true => 0.02,
        false => scattered(page + 1),
    });
    guest.watch(10);
    guest.all_grids();
    assert!(guest.lab.engine.snapshot().scattered_bytes > 0);
    guest.lab.kernel.huge = (0..FRAMES).step_by(512).collect();
    for _ in 0..20 {
        guest.lab.now = guest.lab.now + Duration::from_secs(1);
        guest.lab.step(Event::Tick);
    }
    assert_eq!(guest.lab.engine.snapshot().scattered_bytes, 0);

    // A huge page is used whenever one of its pages is.
    is_huge.set(true);
    guest.watch(60);
    assert!(guest.placed(|page| page >= FRAMES - 512) > 0.99);
}

#[test]
fn check_when_the_guest_is_at_rest_notices_that_other_pages_are_hot() {
    let shift = std::cell::Cell::new(0);
    let mut guest = Guest::new(|page| scattered(page + shift.get()));
    guest.watch(10);
    guest.all_grids();
    guest.watch(10);
    guest.lab.step(Event::Rest(true));
    let before = guest.changes();
    for _ in 0..200 {
        guest.grid(0..128, 4);
    }
    assert_eq!(guest.changes(), before, "what is known still holds");

    shift.set(3);
    guest.grid(128..256, 4);
    assert_eq!(guest.changes(), before + 1);
}

#[test]
fn grid_when_of_an_older_map_is_dropped_and_counted() {
    let mut guest = Guest::new(scattered);
    let batch = SampleBatch {
        source: SourceKind::Damon,
        end: guest.lab.now,
        span: Duration::from_millis(400),
        tests: LOOKS,
        period: 1,
        settled: true,
        map_generation: 0,
        samples: vec![AccessSample {
            address: SampleAddress::Host(Hva(BASE)),
            len: BASE_PAGE,
            weight: 3.0,
            kind: AccessKind::Any,
        }],
        account: SampleAccount::default(),
    };
    guest.lab.step(Event::Grid(batch));
    let account = guest.lab.engine.samples();
    assert_eq!((account.samples, account.accepted), (1, 0));
    assert!(account.is_valid());
}
