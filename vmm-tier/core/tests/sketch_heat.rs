//! The heat store of bounded memory against a model that knows where every page is.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use proptest::prelude::*;
use tier_core::{
    dual_heap::{PageId, Placement},
    random::Random,
    sketch::SketchHeat,
    time::Time,
};

const HALF_LIFE: Duration = Duration::from_secs(10);
const PAGES: u32 = 400;

fn page() -> impl Strategy<Value = u32> {
    // Mostly the same few, anywhere, past the end.
    prop_oneof![8 => 0..24u32, 8 => 0..PAGES, 1 => PAGES - 2..PAGES + 2]
}

fn weight() -> impl Strategy<Value = f32> {
    prop_oneof![4 => Just(1.0), 1 => Just(0.0), 1 => Just(f32::NAN), 1 => 0.01..20.0f32]
}

fn span() -> impl Strategy<Value = Duration> {
    // Against half-lives of 1 to 10 s: the landmark (64 half-lives) moves often.
    prop_oneof![
        6 => (0..2_000u64).prop_map(Duration::from_millis),
        1 => (0..200u64).prop_map(Duration::from_secs),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Hold {
    No,
    Flight,
    Cooling(Time),
    Excluded,
}

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
    Pass(Duration),
    Place(u32, Placement),
    PlaceRun(Range<u32>, Placement),
    Sample(u32, f32),
    SampleBatch(Vec<u32>, f32),
    Take(u32),
    TakeHottest,
    TakeColdest,
    Settle(u32, Placement, Option<Duration>),
    Exclude(u32),
    Readmit(u32),
    Tick,
    HalfLife(Duration),
    Scale(f64),
}

fn placement() -> impl Strategy<Value = Placement> {
    prop_oneof![
        4 => Just(Placement::Fast),
        4 => Just(Placement::Slow),
        1 => Just(Placement::Untracked),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => span().prop_map(Op::Pass),
        4 => (page(), placement()).prop_map(|(id, to)| Op::Place(id, to)),
        2 => (page(), 0..200u32, placement())
            .prop_map(|(first, len, to)| Op::PlaceRun(first..first + len, to)),
        8 => (page(), weight()).prop_map(|(id, w)| Op::Sample(id, w)),
        8 => (proptest::collection::vec(page(), 0..60), weight())
            .prop_map(|(ids, w)| Op::SampleBatch(ids, w)),
        2 => page().prop_map(Op::Take),
        4 => Just(Op::TakeHottest),
        4 => Just(Op::TakeColdest),
        6 => (page(), placement(), proptest::option::of(span()))
            .prop_map(|(id, to, cool)| Op::Settle(id, to, cool)),
        1 => page().prop_map(Op::Exclude),
        1 => page().prop_map(Op::Readmit),
        3 => Just(Op::Tick),
        1 => (1_000..10_000u64).prop_map(|ms| Op::HalfLife(Duration::from_millis(ms))),
        1 => (0.01..100.0f64).prop_map(Op::Scale),
    ]
}

fn apply(op: Op, heat: &mut SketchHeat, model: &mut Model) {
    let now = model.now;
    match op {
        Op::Pass(time) => model.now = now + time,
        Op::Place(id, to) => {
            let old = model.pages.get(&id).map_or(Placement::Untracked, |p| p.0);
            assert_eq!(heat.place(PageId(id), to), old);
            model.place(id, to);
        }
        Op::PlaceRun(run, to) => {
            heat.place_run(run.clone(), to);
            run.for_each(|id| model.place(id, to));
        }
        Op::Sample(id, weight) => {
            let known = heat.sample(now, PageId(id), weight);
            assert_eq!(known, model.pages.contains_key(&id));
        }
        Op::SampleBatch(ids, weight) => {
            let batch: Vec<_> = ids.iter().copied().map(PageId).collect();
            let known = ids.iter().filter(|id| model.pages.contains_key(id)).count();
            assert_eq!(
                heat.sample_batch(now, &batch, weight).pages() as usize,
                known
            );
        }
        Op::Take(id) => assert_eq!(heat.take(PageId(id)), model.take(id)),
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
        Op::Settle(id, to, cool) => {
            let end = cool.map(|cool| now + cool);
            let was = model.pages.get(&id).is_some_and(|p| p.1 == Hold::Flight);
            assert_eq!(heat.settle(PageId(id), to, end), was);
            model.place(id, to);
            if let Some(page) = model.pages.get_mut(&id) {
                page.1 = end.map_or(Hold::No, Hold::Cooling);
            }
        }
        Op::Exclude(id) => {
            let page = model.pages.get_mut(&id);
            assert_eq!(heat.exclude(PageId(id)), page.is_some());
            if let Some(page) = page {
                page.1 = Hold::Excluded;
            }
        }
        Op::Readmit(id) => {
            let page = model.pages.get_mut(&id).filter(|p| p.1 == Hold::Excluded);
            assert_eq!(heat.readmit(PageId(id)), page.is_some());
            if let Some(page) = page {
                page.1 = Hold::No;
            }
        }
        Op::Tick => {
            let mut ended = 0;
            for page in model.pages.values_mut() {
                if matches!(page.1, Hold::Cooling(end) if end <= now) {
                    page.1 = Hold::No;
                    ended += 1;
                }
            }
            assert_eq!(heat.tick(now), ended);
        }
        Op::HalfLife(new) => heat.set_half_life(new, now),
        Op::Scale(factor) => heat.scale(now, factor),
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
