//! The dual heaps against a model that ages every page and looks at all of them.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use proptest::{collection::vec, option, prelude::*};
use tier_core::{
    dual_heap::{DualHeap, PageId, Placement},
    time::Time,
};

/// Two chunks of 512 and a part of a third.
const PAGES: u32 = 1200;
/// Keys are `f32`, of 24 bits; a count of up to a few hundred additions is right to well below this.
const RELATIVE: f64 = 1e-4;
/// Below this a count may be forgotten; see `Decay::shifted`.
const NOTHING: f64 = 1e-15;

/// Why a page may not be taken.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Hold {
    No,
    Flight,
    Cooling(Time),
    Excluded,
}

#[derive(Clone, Copy, Debug)]
struct ModelPage {
    placement: Placement,
    count: f64,
    hold: Hold,
}

/// Tracked pages with counts that are multiplied down as time passes.
struct Model {
    pages: BTreeMap<u32, ModelPage>,
    pinned: Vec<Range<u32>>,
    now: Time,
    half_life: Duration,
}

impl Model {
    fn is_pinned(&self, id: u32) -> bool {
        self.pinned.iter().any(|run| run.contains(&id))
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        let factor = (-time.as_secs_f64() / self.half_life.as_secs_f64()).exp2();
        for page in self.pages.values_mut() {
            page.count *= factor;
        }
    }

    fn place(&mut self, id: u32, placement: Placement) {
        if placement == Placement::Untracked {
            self.pages.remove(&id);
            return;
        }
        let page = self.pages.entry(id).or_insert(ModelPage {
            placement,
            count: 0.0,
            hold: Hold::No,
        });
        if page.hold == Hold::Excluded && page.placement != placement {
            page.hold = Hold::No;
        }
        page.placement = placement;
    }

    fn settle(&mut self, id: u32, placement: Placement, end: Option<Time>) -> bool {
        let was = self
            .pages
            .get(&id)
            .is_some_and(|page| page.hold == Hold::Flight);
        self.place(id, placement);
        if let Some(page) = self.pages.get_mut(&id) {
            page.hold = end.map_or(Hold::No, Hold::Cooling);
        }
        was
    }

    fn offered(&self, placement: Placement) -> impl Iterator<Item = (u32, f64)> + '_ {
        self.pages
            .iter()
            .filter(move |(_, page)| page.placement == placement && page.hold == Hold::No)
            .filter(|&(&id, _)| !self.is_pinned(id))
            .map(|(&id, page)| (id, page.count))
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
    Settle(u32, Placement, Option<Duration>),
    Exclude(u32),
    Tick,
    HalfLife(Duration),
    SampleRun(Range<u32>, f32),
    Pin(Vec<u32>),
    TakePinned(u32),
    FirstPinned(Range<u32>, Placement),
    TakeHottest,
    TakeColdest,
    SetCount(u32, f64),
}

/// Places each page of a run.
fn place_all(heap: &mut DualHeap, ids: Range<u32>, placement: Placement) {
    for id in ids {
        heap.place(PageId(id), placement);
    }
}

fn id() -> impl Strategy<Value = u32> {
    // Mostly the same few pages, so that operations meet; the ends of chunks; anywhere; past the end.
    prop_oneof![8 => 0..16u32, 4 => 504..520u32, 2 => 0..PAGES, 1 => PAGES - 2..PAGES + 2]
}

fn run() -> impl Strategy<Value = Range<u32>> {
    (id(), prop_oneof![0..8u32, 0..700u32]).prop_map(|(first, len)| first..first + len)
}

fn weight() -> impl Strategy<Value = f32> {
    prop_oneof![Just(0.0), Just(1.0), 0.01..20.0f32]
}

fn placement() -> impl Strategy<Value = Placement> {
    prop_oneof![
        4 => Just(Placement::Fast),
        4 => Just(Placement::Slow),
        1 => Just(Placement::Untracked),
    ]
}

fn span() -> impl Strategy<Value = Duration> {
    // Against half-lives of 1 to 10 s: the landmark (64 half-lives) moves often.
    prop_oneof![
        6 => (0..2_000u64).prop_map(Duration::from_millis),
        1 => (0..200u64).prop_map(Duration::from_secs),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => span().prop_map(Op::Pass),
        4 => (id(), placement()).prop_map(|(id, to)| Op::Place(id, to)),
        2 => (run(), placement()).prop_map(|(run, to)| Op::PlaceRun(run, to)),
        8 => (id(), weight()).prop_map(|(id, w)| Op::Sample(id, w)),
        4 => (vec(id(), 0..60), weight()).prop_map(|(ids, w)| Op::SampleBatch(ids, w)),
        2 => id().prop_map(Op::Take),
        6 => (id(), placement(), option::of(span()))
            .prop_map(|(id, to, cool)| Op::Settle(id, to, cool)),
        1 => id().prop_map(Op::Exclude),
        3 => Just(Op::Tick),
        1 => (1_000..10_000u64).prop_map(|ms| Op::HalfLife(Duration::from_millis(ms))),
        2 => (run(), weight()).prop_map(|(run, w)| Op::SampleRun(run, w)),
        1 => vec(id(), 0..12).prop_map(Op::Pin),
        2 => id().prop_map(Op::TakePinned),
        1 => (run(), placement()).prop_map(|(run, at)| Op::FirstPinned(run, at)),
        4 => Just(Op::TakeHottest),
        4 => Just(Op::TakeColdest),
        2 => (id(), prop_oneof![Just(0.0), 0.1..50.0f64]).prop_map(|(id, c)| Op::SetCount(id, c)),
    ]
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= RELATIVE * a.max(b) + NOTHING
}

fn apply(op: &Op, heap: &mut DualHeap, model: &mut Model) {
    let now = model.now;
    match op.clone() {
        Op::Pass(time) => model.pass(time),
        Op::Place(id, to) => {
            heap.place(PageId(id), to);
            if id < PAGES {
                model.place(id, to);
            }
        }
        Op::PlaceRun(run, to) => {
            place_all(heap, run.clone(), to);
            run.filter(|&id| id < PAGES)
                .for_each(|id| model.place(id, to));
        }
        Op::Sample(id, weight) => {
            let known = heap.sample(now, PageId(id), weight);
            assert_eq!(known, model.pages.contains_key(&id));
            if let Some(page) = model.pages.get_mut(&id) {
                page.count += f64::from(weight);
            }
        }
        Op::SampleBatch(ids, weight) => {
            let batch: Vec<_> = ids.iter().copied().map(PageId).collect();
            let touched = heap.sample_batch(now, &batch, weight);
            let among = |tier| {
                let placed = ids.iter().filter_map(|id| model.pages.get(id));
                placed.filter(|page| page.placement == tier).count() as u32
            };
            assert_eq!(touched.fast, among(Placement::Fast));
            assert_eq!(touched.slow, among(Placement::Slow));
            for id in &ids {
                if let Some(page) = model.pages.get_mut(id) {
                    page.count += f64::from(weight);
                }
            }
        }
        Op::Take(id) => {
            let taken = heap.take(PageId(id));
            let is_pinned = model.is_pinned(id);
            let page = model
                .pages
                .get_mut(&id)
                .filter(|page| page.hold == Hold::No && !is_pinned);
            assert_eq!(taken, page.as_ref().map(|page| page.placement));
            if let Some(page) = page {
                page.hold = Hold::Flight;
            }
        }
        Op::Settle(id, to, cool) => {
            let end = cool.map(|cool| now + cool);
            let was = heap.settle(PageId(id), to, end);
            if id < PAGES {
                assert_eq!(was, model.settle(id, to, end));
            }
        }
        Op::Exclude(id) => {
            let known = heap.exclude(PageId(id));
            assert_eq!(known, model.pages.contains_key(&id));
            if let Some(page) = model.pages.get_mut(&id) {
                page.hold = Hold::Excluded;
            }
        }
        Op::Tick => {
            let mut released = 0;
            for page in model.pages.values_mut() {
                if matches!(page.hold, Hold::Cooling(end) if end <= now) {
                    page.hold = Hold::No;
                    released += 1;
                }
            }
            assert_eq!(heap.tick(now), released);
        }
        Op::HalfLife(half_life) => {
            heap.set_half_life(half_life, now);
            model.half_life = half_life;
        }
        Op::SampleRun(run, weight) => {
            let touched = heap.sample_run(now, run.clone(), weight);
            let (mut fast, mut slow) = (0, 0);
            for (_, page) in model.pages.range_mut(run) {
                page.count += f64::from(weight);
                fast += u32::from(page.placement == Placement::Fast);
                slow += u32::from(page.placement == Placement::Slow);
            }
            assert_eq!((touched.fast, touched.slow), (fast, slow));
        }
        Op::Pin(mut ends) => {
            // Every second stretch between the ends.
            ends.sort_unstable();
            let pairs = ends.chunks_exact(2).filter(|pair| pair[0] < pair[1]);
            model.pinned = pairs.map(|pair| pair[0]..pair[1]).collect();
            heap.set_pinned(model.pinned.clone());
        }
        Op::TakePinned(id) => {
            let taken = heap.take_pinned(PageId(id));
            let is_pinned = model.is_pinned(id);
            let page = model
                .pages
                .get_mut(&id)
                .filter(|page| page.hold == Hold::No && is_pinned);
            assert_eq!(taken, page.as_ref().map(|page| page.placement));
            if let Some(page) = page {
                page.hold = Hold::Flight;
            }
        }
        Op::FirstPinned(run, at) => {
            let expected = model.pages.range(run.clone()).find(|&(&id, page)| {
                model.is_pinned(id) && page.hold == Hold::No && page.placement == at
            });
            let found = heap.first_pinned(run, at).map(|id| id.0);
            assert_eq!(found, expected.map(|(&id, _)| id));
        }
        Op::TakeHottest => {
            check_answers(heap, model);
            if let Some((PageId(id), _)) = heap.take_hottest_slow(now) {
                model.pages.get_mut(&id).unwrap().hold = Hold::Flight;
            }
        }
        Op::TakeColdest => {
            check_answers(heap, model);
            let offered = heap.coldest_fast(now);
            assert_eq!(heap.take_coldest_fast(now), offered);
            if let Some((PageId(id), _)) = offered {
                model.pages.get_mut(&id).unwrap().hold = Hold::Flight;
            }
        }
        Op::SetCount(id, count) => {
            heap.set_count(PageId(id), count, now);
            if let Some(page) = model.pages.get_mut(&id) {
                page.count = count;
            }
        }
    }
}

/// Whether a page's standing is what counting finds, and the cold look is the lazy one's.
fn check_standing(heap: &mut DualHeap, model: &Model, id: u32) {
    let now = model.now;
    let seen = heap.look_at_coldest_fast(now).map(|(_, count)| count);
    assert_eq!(seen, heap.coldest_fast(now).map(|(_, count)| count));
    let Some((before, all)) = heap.standing(PageId(id)) else {
        return;
    };
    let is_fast = heap.state(PageId(id)).placement == Placement::Fast;
    let own = heap.count(PageId(id), now);
    let rivals: Vec<f64> = heap
        .iter(now)
        .filter(|&(other, placement, _)| {
            let state = heap.state(other);
            let held =
                state.in_flight || state.excluded || state.pinned || state.cooldown_until.is_some();
            (placement == Placement::Fast) == is_fast && !held && (is_fast || state.sampled)
        })
        .map(|(_, _, count)| count)
        .collect();
    assert_eq!(all as usize, rivals.len());
    let goes_first = |count: &&f64| {
        if is_fast {
            **count < own
        } else {
            **count > own
        }
    };
    assert_eq!(before as usize, rivals.iter().filter(goes_first).count());
}

/// Whether both tops are what looking at every page finds.
fn check_answers(heap: &mut DualHeap, model: &Model) {
    let now = model.now;
    let max = model
        .offered(Placement::Slow)
        .map(|(_, count)| count)
        .fold(0.0, f64::max);
    match heap.hottest_slow(now) {
        Some((PageId(id), count)) => {
            assert!(near(count, max), "hottest slow {count}, expected {max}");
            let (_, own) = model
                .offered(Placement::Slow)
                .find(|&(page, _)| page == id)
                .unwrap();
            assert!(
                near(count, own),
                "page {id} has {own}, offered with {count}"
            );
        }
        None => assert!(max <= NOTHING, "nothing offered, expected {max}"),
    }
    let min = model
        .offered(Placement::Fast)
        .map(|(_, count)| count)
        .reduce(f64::min);
    let coldest = heap.coldest_fast(now);
    assert_eq!(coldest.is_some(), min.is_some());
    if let (Some((PageId(id), count)), Some(min)) = (coldest, min) {
        assert!(near(count, min), "coldest fast {count}, expected {min}");
        assert!(
            min > 0.0 || count == 0.0,
            "a never-sampled page is colder than {count}"
        );
        let (_, own) = model
            .offered(Placement::Fast)
            .find(|&(page, _)| page == id)
            .unwrap();
        assert!(
            near(count, own),
            "page {id} has {own}, offered with {count}"
        );
    }
}

fn check_pages(heap: &DualHeap, model: &Model) {
    let tracked: Vec<_> = heap.iter(model.now).collect();
    assert_eq!(tracked.len(), model.pages.len());
    for ((id, placement, count), (&expected_id, page)) in tracked.into_iter().zip(&model.pages) {
        assert_eq!((id.0, placement), (expected_id, page.placement));
        assert!(
            near(count, page.count),
            "page {expected_id}: {count}, expected {}",
            page.count
        );
        let state = heap.state(id);
        assert_eq!(state.in_flight, page.hold == Hold::Flight);
        assert_eq!(state.pinned, model.is_pinned(expected_id));
        assert_eq!(state.excluded, page.hold == Hold::Excluded);
        let cooling = matches!(page.hold, Hold::Cooling(_));
        assert_eq!(state.cooldown_until.is_some(), cooling);
    }
    for placement in [Placement::Fast, Placement::Slow] {
        let expected = model
            .pages
            .values()
            .filter(|page| page.placement == placement)
            .count();
        assert_eq!(heap.len(placement) as usize, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn dual_heap_when_driven_at_random_answers_as_the_model(
        ops in vec(op(), 1..150),
    ) {
        let half_life = Duration::from_secs(2);
        let mut heap = DualHeap::new(PAGES, half_life).unwrap();
        let mut model = Model { pages: BTreeMap::new(), pinned: Vec::new(), now: Time(0), half_life };
        for (step, op) in ops.iter().enumerate() {
            apply(op, &mut heap, &mut model);
            if let Err(broken) = heap.check() {
                panic!("step {step}, {op:?}: {broken}");
            }
            check_answers(&mut heap, &model);
            prop_assert!(heap.is_valid(), "after a look at the tops");
            check_pages(&heap, &model);
            check_standing(&mut heap, &model, (step as u32 * 7) % 16);
        }
    }
}
