//! The heat store of bounded memory against a model that knows where every page is.

#[path = "common/heat_ops.rs"]
mod heat_ops;

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use tier_core::{
    dual_heap::{PageId, Placement},
    random::Random,
    sketch::SketchHeat,
    time::Time,
};

use heat_ops::{Hold, PAGES, USUAL, Usual, page, run, usual, weight};

const HALF_LIFE: Duration = Duration::from_secs(10);

/// Where pages are. Counts are the sketch's: it is tested above.
#[derive(Default)]
struct Model {
    pages: BTreeMap<u32, (Placement, Hold)>,
    now: Time,
}

impl Model {
    fn place(&mut self, id: u32, to: Placement) {
        if id >= PAGES || to == Placement::Untracked {
            self.pages.remove(&id);
            return;
        }
        let page = self.pages.entry(id).or_insert((to, Hold::No));
        if page.1 == Hold::Excluded && page.0 != to {
            page.1 = Hold::No;
        }
        page.0 = to;
    }

    fn take(&mut self, id: u32) -> Option<Placement> {
        let page = self.pages.get_mut(&id)?;
        (page.1 == Hold::No).then(|| {
            page.1 = Hold::Flight;
            page.0
        })
    }

    fn offered(&self, at: Placement) -> impl Iterator<Item = u32> + '_ {
        let free = self
            .pages
            .iter()
            .filter(move |(_, p)| **p == (at, Hold::No));
        free.map(|(&id, _)| id)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Usual(Usual),
    TakeHottest,
    TakeColdest,
    Scale(f64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        USUAL => usual(page, run, weight).prop_map(Op::Usual),
        4 => Just(Op::TakeHottest),
        4 => Just(Op::TakeColdest),
        1 => (0.01..100.0f64).prop_map(Op::Scale),
    ]
}

fn apply(op: Op, heat: &mut SketchHeat, model: &mut Model) {
    let now = model.now;
    match op {
        Op::Usual(op) => apply_usual(op, heat, model),
        Op::TakeHottest => {
            let seen = heat.hottest_slow(now);
            assert_eq!(heat.take_hottest_slow(now), seen);
            if let Some((id, _)) = seen {
                assert_eq!(model.take(id.0), Some(Placement::Slow));
            }
        }
        Op::TakeColdest => {
            let seen = heat.coldest_fast(now);
            assert_eq!(heat.take_coldest_fast(now), seen);
            if let Some((id, _)) = seen {
                assert_eq!(model.take(id.0), Some(Placement::Fast));
            }
        }
        Op::Scale(factor) => heat.scale(now, factor),
    }
}

fn apply_usual(op: Usual, heat: &mut SketchHeat, model: &mut Model) {
    let now = model.now;
    match op {
        Usual::Pass(time) => model.now = now + time,
        Usual::Place(id, to) => {
            let old = model.pages.get(&id).map_or(Placement::Untracked, |p| p.0);
            assert_eq!(heat.place(PageId(id), to), old);
            model.place(id, to);
        }
        Usual::PlaceRun(run, to) => {
            heat.place_run(run.clone(), to);
            run.for_each(|id| model.place(id, to));
        }
        Usual::Sample(id, weight) => {
            let known = heat.sample(now, PageId(id), weight);
            assert_eq!(known, model.pages.contains_key(&id));
        }
        Usual::SampleBatch(ids, weight) => {
            let batch: Vec<_> = ids.iter().copied().map(PageId).collect();
            let known = ids.iter().filter(|id| model.pages.contains_key(id)).count();
            assert_eq!(
                heat.sample_batch(now, &batch, weight).pages() as usize,
                known
            );
        }
        Usual::Take(id) => assert_eq!(heat.take(PageId(id)), model.take(id)),
        Usual::Settle(id, to, cool) => {
            let end = cool.map(|cool| now + cool);
            let was = model.pages.get(&id).is_some_and(|p| p.1 == Hold::Flight);
            assert_eq!(heat.settle(PageId(id), to, end), was);
            model.place(id, to);
            if let Some(page) = model.pages.get_mut(&id) {
                page.1 = end.map_or(Hold::No, Hold::Cooling);
            }
        }
        Usual::Exclude(id) => {
            let page = model.pages.get_mut(&id);
            assert_eq!(heat.exclude(PageId(id)), page.is_some());
            if let Some(page) = page {
                page.1 = Hold::Excluded;
            }
        }
        Usual::Readmit(id) => {
            let page = model.pages.get_mut(&id).filter(|p| p.1 == Hold::Excluded);
            assert_eq!(heat.readmit(PageId(id)), page.is_some());
            if let Some(page) = page {
                page.1 = Hold::No;
            }
        }
        Usual::Tick => {
            let mut ended = 0;
            for page in model.pages.values_mut() {
                if matches!(page.1, Hold::Cooling(end) if end <= now) {
                    page.1 = Hold::No;
                    ended += 1;
                }
            }
            assert_eq!(heat.tick(now), ended);
        }
        Usual::HalfLife(new) => heat.set_half_life(new, now),
    }
}

/// Every page is where the model says, and what is offered is the best of all that may be taken.
fn compare(heat: &mut SketchHeat, model: &Model) {
    assert_eq!(heat.check(), Ok(()));
    let now = model.now;
    let listed: Vec<_> = heat.iter(now).map(|(id, at, _)| (id.0, at)).collect();
    let expected: Vec<_> = model.pages.iter().map(|(&id, p)| (id, p.0)).collect();
    assert_eq!(listed, expected);
    for (&id, &(placement, hold)) in &model.pages {
        let state = heat.state(PageId(id));
        assert_eq!(state.placement, placement);
        assert_eq!(state.in_flight, hold == Hold::Flight);
        assert_eq!(state.excluded, hold == Hold::Excluded);
        let cooling = match hold {
            Hold::Cooling(end) => Some(end),
            _ => None,
        };
        assert_eq!(state.cooldown_until, cooling);
    }
    for at in [Placement::Fast, Placement::Slow] {
        let there = model.pages.values().filter(|p| p.0 == at).count();
        assert_eq!(heat.len(at) as usize, there);
    }
    let counts = |at| {
        let pages = model.offered(at);
        pages
            .map(|id| heat.count(PageId(id), now))
            .collect::<Vec<_>>()
    };
    let hottest = counts(Placement::Slow).into_iter().fold(0.0, f64::max);
    let coldest = counts(Placement::Fast).into_iter().reduce(f64::min);
    let offered = heat.hottest_slow(now);
    assert_eq!(offered.map_or(0.0, |(_, count)| count), hottest);
    if let Some((id, _)) = offered {
        assert_eq!(model.pages[&id.0], (Placement::Slow, Hold::No));
    }
    let offered = heat.coldest_fast(now);
    assert_eq!(offered.map(|(_, count)| count), coldest);
    if let Some((id, _)) = offered {
        assert_eq!(model.pages[&id.0], (Placement::Fast, Hold::No));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The least memory has 32 slots and sets of 16; the most has a slot for each page.
    #[test]
    fn store_when_anything_happens_agrees_with_the_model_within_its_memory(
        ops in proptest::collection::vec(op(), 1..150),
        bytes in prop_oneof![
            Just(SketchHeat::least_bytes(PAGES)),
            SketchHeat::least_bytes(PAGES)..8192usize
        ],
        seed in any::<u64>(),
    ) {
        let mut heat = SketchHeat::new(PAGES, bytes, HALF_LIFE, seed).unwrap();
        let mut model = Model::default();
        for op in ops {
            apply(op, &mut heat, &mut model);
            compare(&mut heat, &model);
            if model.pages.values().all(|page| page.1 == Hold::No) {
                // Two bits a page, in whole words.
                let places = (PAGES as usize).div_ceil(32) * 8;
                let ends = heat.memory_bytes() - heat.sketch().memory_bytes();
                prop_assert!(heat.sketch().memory_bytes() <= bytes);
                prop_assert!(ends <= places + bytes + 64 * 16);
            }
        }
    }
}

#[test]
fn memory_when_a_guest_is_large_is_two_bits_a_page_and_what_was_granted() {
    let pages = 1 << 24; // 64 GiB
    let granted = 1 << 20;
    let mut heat = SketchHeat::new(pages, granted, HALF_LIFE, 1).unwrap();
    heat.place_run(0..pages / 8, Placement::Fast);
    heat.place_run(pages / 8..pages, Placement::Slow);
    let mut random = Random::new(1);
    for i in 0..200_000 {
        let page = random.draw() as u32 % pages;
        heat.sample(Time(i * 100_000), PageId(page), 1.0);
    }
    assert!(heat.memory_bytes() <= pages as usize / 4 + granted);
    assert!(heat.memory_bytes() >= pages as usize / 4 + granted * 9 / 10);
}

#[test]
fn count_when_a_page_moves_is_what_it_was() {
    let mut heat = SketchHeat::new(1000, 4096, HALF_LIFE, 1).unwrap();
    heat.place_run(0..500, Placement::Fast);
    heat.place_run(500..1000, Placement::Slow);
    let now = Time(1_000_000_000);
    for (page, samples) in [(700, 9), (800, 5), (3, 2)] {
        (0..samples).for_each(|_| {
            heat.sample(now, PageId(page), 1.0);
        });
    }
    let (hot, count) = heat.take_hottest_slow(now).unwrap();
    assert_eq!((hot, count.round()), (PageId(700), 9.0));
    let (cold, none) = heat.take_coldest_fast(now).unwrap();
    assert_eq!(none, 0.0);
    let end = now + Duration::from_secs(5);
    assert!(heat.settle(hot, Placement::Fast, Some(end)));
    assert!(heat.settle(cold, Placement::Slow, Some(end)));
    assert_eq!(heat.count(hot, now), count);
    assert_eq!(heat.hottest_slow(now).unwrap().0, PageId(800));
    // It goes on gathering heat while it cools down.
    heat.sample(now, hot, 1.0);
    assert_eq!(heat.count(hot, now).round(), 10.0);
    assert_eq!(heat.next_cooldown_end(), Some(end));
    assert_eq!(heat.tick(end), 2);
    assert_eq!(heat.state(hot).placement, Placement::Fast);
    assert_eq!(heat.place(hot, Placement::Untracked), Placement::Fast);
    assert_eq!(heat.count(hot, now), 0.0);
    assert_eq!(heat.check(), Ok(()));
}

#[test]
fn coldest_when_all_fast_pages_have_a_count_is_the_least_of_them() {
    // 2 000 fast pages against a set of 32: refilled again and again.
    let mut heat = SketchHeat::new(4000, 16 << 10, HALF_LIFE, 1).unwrap();
    heat.place_run(0..2000, Placement::Fast);
    heat.place_run(2000..4000, Placement::Slow);
    let now = Time(0);
    for page in 0..2000u32 {
        heat.sample(now, PageId(page), 1.0 + (page * 7 % 2000) as f32);
    }
    let stats = heat.stats();
    assert_eq!((stats.pages.fast, stats.pages.slow), (2000, 2000));
    assert_eq!(stats.sketch.pages, 2000, "there are 3 968 slots");
    let mut last = 0.0;
    for _ in 0..2000 {
        let (id, count) = heat.take_coldest_fast(now).unwrap();
        assert!(count >= last);
        assert!((count / f64::from(1 + id.0 * 7 % 2000) - 1.0).abs() < 1e-3);
        last = count;
    }
    assert_eq!(heat.coldest_fast(now), None);
    assert_eq!(heat.check(), Ok(()));
}
