//! The two stores of heat side by side: the same happens to both, and both say the same of it.

#[path = "common/heat_ops.rs"]
mod heat_ops;

use std::{ops::Range, time::Duration};

use proptest::prelude::*;
use tier_core::{
    dual_heap::{DualHeap, PageId, PageState, Placement},
    heat_store::{HeatStore, HeatStoreError, StoreChoice, StorePlan, StoreSnapshot},
    sketch::SketchHeat,
    time::Time,
};

use heat_ops::{PAGES, USUAL, Usual, page, placement, run, usual, weight};

const HALF_LIFE: Duration = Duration::from_secs(2);
/// Of the counts of a sketch that forgets nothing: keys are rounded to 23 bits, a few hundred times at most.
const RELATIVE: f64 = 1e-4;
/// Below this a count may be forgotten; see `Decay::shifted`.
const NOTHING: f64 = 1e-15;
/// More lines than pages: none is ever full.
const LARGE: usize = 64 << 10;

#[derive(Clone, Debug)]
enum Op {
    Usual(Usual),
    SampleRun(Range<u32>, f32),
    SetCount(u32, f64),
    Pin(Vec<u32>),
    TakePinned(u32),
    FirstPinned(Range<u32>, Placement),
    /// What the sketch takes, the heaps take too.
    TakeOfSketch(Placement),
    /// And the other way round.
    TakeOfHeaps(Placement),
    Scale(f64),
}

fn tier() -> impl Strategy<Value = Placement> {
    prop_oneof![Just(Placement::Fast), Just(Placement::Slow)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        USUAL => usual(page, run, weight).prop_map(Op::Usual),
        4 => (run(), weight()).prop_map(|(run, w)| Op::SampleRun(run, w)),
        3 => (page(), prop_oneof![Just(0.0), Just(f64::NAN), 0.1..50.0f64])
            .prop_map(|(id, c)| Op::SetCount(id, c)),
        2 => proptest::collection::vec(page(), 0..12).prop_map(Op::Pin),
        2 => page().prop_map(Op::TakePinned),
        2 => (run(), placement()).prop_map(|(run, at)| Op::FirstPinned(run, at)),
        4 => tier().prop_map(Op::TakeOfSketch),
        4 => tier().prop_map(Op::TakeOfHeaps),
        1 => (0.5..2.0f64).prop_map(Op::Scale),
    ]
}

/// Both stores, and the time.
struct Pair {
    heaps: DualHeap,
    sketch: SketchHeat,
    now: Time,
}

impl Pair {
    fn new(bytes: usize, seed: u64) -> Self {
        Self {
            heaps: DualHeap::new(PAGES, HALF_LIFE).unwrap(),
            sketch: SketchHeat::new(PAGES, bytes, HALF_LIFE, seed).unwrap(),
            now: Time(0),
        }
    }

    fn apply(&mut self, op: Op) {
        let Self { heaps, sketch, now } = self;
        let now = *now;
        match op {
            Op::Usual(op) => self.apply_usual(op),
            Op::SampleRun(run, weight) => assert_eq!(
                sketch.sample_run(now, run.clone(), weight),
                heaps.sample_run(now, run, weight)
            ),
            Op::SetCount(id, count) => {
                let id = PageId(id);
                assert_eq!(
                    sketch.set_count(id, count, now),
                    heaps.set_count(id, count, now)
                );
            }
            Op::Pin(mut ends) => {
                ends.sort_unstable();
                let pairs = ends.chunks_exact(2).filter(|pair| pair[0] < pair[1]);
                let mut ranges: Vec<Range<u32>> = pairs.map(|pair| pair[0]..pair[1]).collect();
                ranges.dedup_by(|next, last| next.start < last.end);
                heaps.set_pinned(ranges.clone());
                sketch.set_pinned(ranges);
            }
            Op::TakePinned(id) => {
                let id = PageId(id);
                assert_eq!(sketch.take_pinned(id), heaps.take_pinned(id));
            }
            Op::FirstPinned(run, at) => assert_eq!(
                sketch.first_pinned(run.clone(), at),
                heaps.first_pinned(run, at)
            ),
            Op::TakeOfSketch(at) => {
                let (offered, taken) = match at {
                    Placement::Fast => (sketch.coldest_fast(now), sketch.take_coldest_fast(now)),
                    _ => (sketch.hottest_slow(now), sketch.take_hottest_slow(now)),
                };
                assert_eq!(offered, taken);
                if let Some((id, _)) = taken {
                    assert_eq!(heaps.take(id), Some(at));
                }
            }
            Op::TakeOfHeaps(at) => {
                let taken = match at {
                    Placement::Fast => heaps.take_coldest_fast(now),
                    _ => heaps.take_hottest_slow(now),
                };
                if let Some((id, _)) = taken {
                    assert_eq!(sketch.take(id), Some(at));
                }
            }
            Op::Scale(factor) => {
                heaps.scale(now, factor);
                sketch.scale(now, factor);
            }
        }
    }

    fn apply_usual(&mut self, op: Usual) {
        let Self { heaps, sketch, now } = self;
        let now = *now;
        match op {
            Usual::Pass(time) => self.now = now + time,
            Usual::Place(id, to) => {
                let id = PageId(id);
                assert_eq!(sketch.place(id, to), heaps.place(id, to));
            }
            Usual::PlaceRun(run, to) => {
                heaps.place_run(run.clone(), to);
                sketch.place_run(run, to);
            }
            Usual::Sample(id, weight) => {
                let id = PageId(id);
                assert_eq!(
                    sketch.sample(now, id, weight),
                    heaps.sample(now, id, weight)
                );
            }
            Usual::SampleBatch(ids, weight) => {
                let ids: Vec<_> = ids.into_iter().map(PageId).collect();
                assert_eq!(
                    sketch.sample_batch(now, &ids, weight),
                    heaps.sample_batch(now, &ids, weight)
                );
            }
            Usual::Take(id) => assert_eq!(sketch.take(PageId(id)), heaps.take(PageId(id))),
            Usual::Settle(id, to, cool) => {
                let (id, end) = (PageId(id), cool.map(|cool| now + cool));
                assert_eq!(sketch.settle(id, to, end), heaps.settle(id, to, end));
            }
            Usual::Exclude(id) => assert_eq!(sketch.exclude(PageId(id)), heaps.exclude(PageId(id))),
            Usual::Readmit(id) => assert_eq!(sketch.readmit(PageId(id)), heaps.readmit(PageId(id))),
            Usual::Tick => assert_eq!(sketch.tick(now), heaps.tick(now)),
            Usual::HalfLife(half_life) => {
                heaps.set_half_life(half_life, now);
                sketch.set_half_life(half_life, now);
            }
        }
    }

    /// Where every page lies and what may be done with it is the same, whatever the sketch has forgotten.
    fn compare_states(&self) {
        assert_eq!(self.heaps.check(), Ok(()));
        assert_eq!(self.sketch.check(), Ok(()));
        let (heaps, sketch) = (&self.heaps, &self.sketch);
        assert_eq!(sketch.stats().pages, heaps.stats().pages);
        let listed = |pages: &mut dyn Iterator<Item = (PageId, Placement, f64)>| {
            pages.map(|(id, at, _)| (id, at)).collect::<Vec<_>>()
        };
        assert_eq!(
            listed(&mut sketch.iter(self.now)),
            listed(&mut heaps.iter(self.now))
        );
        assert_eq!(
            listed(&mut sketch.iter_in(13..77, self.now)),
            listed(&mut heaps.iter_in(13..77, self.now))
        );
        for id in (0..PAGES + 1).map(PageId) {
            // Whether it was ever sampled is what may be forgotten.
            let of_heaps = PageState {
                sampled: sketch.state(id).sampled,
                ..heaps.state(id)
            };
            assert_eq!(sketch.state(id), of_heaps);
        }
        for at in [Placement::Untracked, Placement::Fast, Placement::Slow] {
            assert_eq!(sketch.len(at), heaps.len(at));
        }
        assert_eq!(sketch.is_empty(), heaps.is_empty());
        // A cooldown that was given up may still be listed in one of them.
        let cooling = heaps.stats().pages.cooling > 0;
        assert!(!cooling || sketch.next_cooldown_end().is_some());
        let coldest = (
            self.sketch.look_at_coldest_fast(self.now).is_some(),
            self.heaps.look_at_coldest_fast(self.now).is_some(),
        );
        assert_eq!(coldest.0, coldest.1);
    }

    /// What is offered is the best by the sketch's own counts, and looks without changing say so.
    fn compare_looks(&mut self) {
        let now = self.now;
        let count = |page: Option<(PageId, f64)>| page.map(|(_, count)| count);
        let seen = self.sketch.look_at_hottest_slow(now);
        assert_eq!(count(seen), count(self.sketch.hottest_slow(now)));
        let seen = self.sketch.look_at_coldest_fast(now);
        assert_eq!(count(seen), count(self.sketch.coldest_fast(now)));
    }

    /// Standing of a page where the sketch forgets: as many may be taken on the fast tier, and never more are
    /// known on the slow one.
    fn compare_standing(&self, id: PageId) {
        match (self.sketch.standing(id), self.heaps.standing(id)) {
            (Some((before, all)), Some((_, of_heaps))) => {
                assert!(before < all.max(1) && all <= of_heaps);
                if self.heaps.state(id).placement == Placement::Fast {
                    assert_eq!(all, of_heaps);
                }
            }
            (None, None) => {}
            (None, Some(_)) => {
                // Sampled on the slow tier, and forgotten; or the heaps rank what never was.
                assert_eq!(self.heaps.state(id).placement, Placement::Slow);
                assert!(!self.sketch.state(id).sampled);
            }
            (Some(_), None) => panic!("{id:?} may be taken of the sketch only"),
        }
    }

    /// Counts, and what follows from them, are the same where nothing is forgotten.
    fn compare_counts(&mut self) {
        let now = self.now;
        let near = |a: f64, b: f64| (a - b).abs() <= RELATIVE * a.max(b) + NOTHING;
        for id in (0..PAGES).map(PageId) {
            let (a, b) = (self.sketch.count(id, now), self.heaps.count(id, now));
            assert!(near(a, b), "{id:?} has {b}, of the sketch {a}");
        }
        let count = |page: Option<(PageId, f64)>| page.map_or(0.0, |(_, count)| count);
        let hottest = (self.sketch.hottest_slow(now), self.heaps.hottest_slow(now));
        assert!(near(count(hottest.0), count(hottest.1)), "{hottest:?}");
        let coldest = (self.sketch.coldest_fast(now), self.heaps.coldest_fast(now));
        assert!(near(count(coldest.0), count(coldest.1)), "{coldest:?}");
        assert_eq!(coldest.0.is_some(), coldest.1.is_some());
        for id in (0..24).map(PageId) {
            let own = self.heaps.count(id, now);
            let ties = self.heaps.iter(now);
            let ties = ties.filter(|&(_, _, count)| near(count, own)).count() as u32;
            let about = |a: u32, b: u32| assert!(a.abs_diff(b) <= ties, "{id:?}: {a}, {b}, {ties}");
            match (self.sketch.rank(id), self.heaps.rank(id)) {
                (Some(a), Some(b)) => about(a, b),
                ranks => assert_eq!(ranks, (None, None)),
            }
            if let (Some(a), Some(b)) = (self.sketch.standing(id), self.heaps.standing(id)) {
                about(a.0, b.0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn stores_when_the_sketch_has_room_for_all_agree_in_all(
        ops in proptest::collection::vec(op(), 1..120),
        seed in any::<u64>(),
    ) {
        let mut pair = Pair::new(LARGE, seed);
        for op in ops {
            pair.apply(op);
            pair.compare_states();
            pair.compare_looks();
            pair.compare_counts();
        }
        prop_assert_eq!(pair.sketch.stats().sketch.refused, 0);
    }

    #[test]
    fn stores_when_the_sketch_forgets_agree_in_where_pages_are(
        ops in proptest::collection::vec(op(), 1..120),
        bytes in prop_oneof![
            Just(SketchHeat::least_bytes(PAGES)),
            SketchHeat::least_bytes(PAGES)..2048usize
        ],
        seed in any::<u64>(),
    ) {
        let mut pair = Pair::new(bytes, seed);
        for (step, op) in ops.into_iter().enumerate() {
            pair.apply(op);
            pair.compare_states();
            pair.compare_looks();
            pair.compare_standing(PageId(step as u32 * 7 % 24));
        }
    }
}

fn plan(choice: StoreChoice, memory_bytes: u64) -> StorePlan {
    StorePlan {
        choice,
        memory_bytes,
        seed: 1,
    }
}

#[test]
fn store_when_chosen_by_size_is_exact_up_to_what_was_granted() {
    let new = |pages, plan| HeatStore::new(pages, HALF_LIFE, plan).unwrap().snapshot();
    let auto = plan(StoreChoice::Auto, 1 << 20);
    let is_exact = |pages| matches!(new(pages, auto), StoreSnapshot::Exact { .. });
    // A MiB holds 262 144 words; chunks and fronts take a tenth of it.
    assert!(is_exact(230_000) && !is_exact(245_000));
    let StoreSnapshot::Sketch {
        memory_bytes,
        slots,
        ..
    } = new(1 << 20, auto)
    else {
        panic!("a million pages do not fit");
    };
    // 256 KiB say where pages lie; of the rest 1/32 are candidates.
    assert!(memory_bytes <= 1 << 20 && memory_bytes > (1 << 20) - 200);
    assert!((185_000..196_608).contains(&slots), "{slots}");
    let exact = new(1 << 20, plan(StoreChoice::Exact, 0));
    assert!(matches!(exact, StoreSnapshot::Exact { .. }));
    let small = new(100, plan(StoreChoice::Sketch, 4096));
    assert!(matches!(small, StoreSnapshot::Sketch { .. }));
}

#[test]
fn store_when_granted_too_little_is_refused_with_the_least_that_does() {
    for choice in [StoreChoice::Auto, StoreChoice::Sketch] {
        let error = HeatStore::new(1 << 20, HALF_LIFE, plan(choice, 4096)).unwrap_err();
        let HeatStoreError::TooSmall { least_bytes, .. } = error else {
            panic!("{error}");
        };
        assert!(error.to_string().contains(&least_bytes.to_string()));
        // Two bits a page and about one byte for 500.
        assert!((264_000..266_000).contains(&least_bytes), "{least_bytes}");
        assert!(HeatStore::new(1 << 20, HALF_LIFE, plan(choice, least_bytes)).is_ok());
        assert!(HeatStore::new(1 << 20, HALF_LIFE, plan(choice, least_bytes - 1)).is_err());
    }
}

#[test]
fn exact_counts_when_every_page_has_one_take_what_was_foretold() {
    for pages in [1, 511, 4096, 300_000, 2_000_000] {
        let mut heaps = DualHeap::new(pages, HALF_LIFE).unwrap();
        heaps.place_run(0..pages / 3, Placement::Fast);
        heaps.place_run(pages / 3..pages, Placement::Slow);
        heaps.sample_run(Time(1), 0..pages, 1.0);
        let (held, foretold) = (heaps.memory_bytes() as u64, DualHeap::most_bytes(pages));
        assert!(
            held <= foretold + foretold / 50 + 64,
            "{pages} pages: {held} of {foretold}"
        );
        assert!(
            pages < 300_000 || foretold <= held + held / 20,
            "{pages} pages: {held}"
        );
        if pages > 1_000_000 {
            // 4.1 where the fronts, which grow as the root of all pages, no longer count.
            assert!(foretold < u64::from(pages) * 42 / 10);
        }
    }
}
