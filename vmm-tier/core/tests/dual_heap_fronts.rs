//! The dual heaps where only some of their pages are in order: against sorted vectors, with guests large
//! enough for fronts to be cut and filled, and for words to be moved.

use std::{ops::Range, time::Duration};

use proptest::prelude::*;
use tier_core::{
    dual_heap::{DualHeap, PageId, Placement},
    time::Time,
};

/// A front of so many pages keeps 142 of them when it is cut, which is at 568.
const PAGES: u32 = 4000;
const HALF_LIFE: Duration = Duration::from_secs(2);
/// Keys have 24 bits, and a page is sampled up to some thousands of times in a half-life.
const RELATIVE: f64 = 1e-3;

#[derive(Clone, Debug)]
enum Step {
    Pass(Duration),
    /// One batch: this many samples, drawn by the seed, most of them below the page.
    Batch(usize, u64, u32),
    Run(u32, u32),
    /// Takes the hottest slow pages and settles them.
    Promote(usize, Placement),
    /// Takes the coldest fast pages and settles them.
    Demote(usize, Placement),
    Forget(u32, u32),
}

/// Places each page of a run.
fn place_all(heap: &mut DualHeap, ids: Range<u32>, placement: Placement) {
    for id in ids {
        heap.place(PageId(id), placement);
    }
}

fn step() -> impl Strategy<Value = Step> {
    let to = || prop_oneof![3 => Just(Placement::Fast), 3 => Just(Placement::Slow), 1 => Just(Placement::Untracked)];
    prop_oneof![
        3 => (1..4000u64).prop_map(|ms| Step::Pass(Duration::from_millis(ms))),
        1 => (0..200u64).prop_map(|s| Step::Pass(Duration::from_secs(s))),
        6 => (1..3000usize, any::<u64>(), 1..=PAGES).prop_map(|(n, seed, end)| Step::Batch(n, seed, end)),
        1 => (0..PAGES, 1..2000u32).prop_map(|(first, len)| Step::Run(first, len)),
        4 => (1..400usize, to()).prop_map(|(n, to)| Step::Promote(n, to)),
        4 => (1..400usize, to()).prop_map(|(n, to)| Step::Demote(n, to)),
        1 => (0..PAGES, 1..600u32).prop_map(|(first, len)| Step::Forget(first, len)),
    ]
}

/// All pages: where each lies and its count, multiplied down as time passes.
struct Model {
    pages: Vec<(Placement, f64)>,
    now: Time,
}

impl Model {
    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        let factor = (-time.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        self.pages.iter_mut().for_each(|page| page.1 *= factor);
    }

    fn settle(&mut self, id: PageId, to: Placement) {
        let page = &mut self.pages[id.0 as usize];
        page.0 = to;
        if to == Placement::Untracked {
            page.1 = 0.0;
        }
    }

    /// The counts of a tier in rising order.
    fn sorted(&self, placement: Placement) -> Vec<f64> {
        let pages = self.pages.iter().filter(|page| page.0 == placement);
        let mut counts: Vec<f64> = pages.map(|page| page.1).collect();
        counts.sort_by(f64::total_cmp);
        counts
    }
}

fn near(a: f64, b: f64) -> bool {
    // What is below is forgotten; see `heat::MIN_KEY`.
    (a - b).abs() <= RELATIVE * a.max(b) + 1e-15
}

/// Numbers below `end`, the smaller the likelier.
fn drawn(count: usize, mut seed: u64, end: u32) -> Vec<PageId> {
    std::iter::repeat_with(|| {
        // An xorshift generator (Marsaglia 2003), its square for the slope.
        seed = (seed | 1) ^ (seed << 13);
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let unit = (seed >> 11) as f64 / (1u64 << 53) as f64;
        PageId((unit * unit * f64::from(end)) as u32)
    })
    .take(count)
    .collect()
}

fn apply(step: &Step, heap: &mut DualHeap, model: &mut Model) {
    let now = model.now;
    match *step {
        Step::Pass(time) => {
            model.pass(time);
            heap.tick(model.now);
        }
        Step::Batch(count, seed, end) => {
            let ids = drawn(count, seed, end);
            heap.sample_batch(now, &ids, 1.0);
            for id in ids {
                let page = &mut model.pages[id.0 as usize];
                page.1 += f64::from(u8::from(page.0 != Placement::Untracked));
            }
        }
        Step::Run(first, len) => {
            let end = (first + len).min(PAGES);
            heap.sample_run(now, first..end, 0.5);
            for page in &mut model.pages[first as usize..end as usize] {
                page.1 += f64::from(u8::from(page.0 != Placement::Untracked)) / 2.0;
            }
        }
        Step::Promote(count, to) => {
            let sorted = model.sorted(Placement::Slow);
            let mut taken = Vec::new();
            for expected in sorted.into_iter().rev().take(count) {
                let Some((id, count)) = heap.take_hottest_slow(now) else {
                    assert!(near(0.0, expected), "nothing is left, but {expected}");
                    break;
                };
                assert!(near(count, expected), "{id:?}: {count}, not {expected}");
                assert!(near(count, model.pages[id.0 as usize].1));
                taken.push(id);
            }
            give_back(&taken, to, heap, model);
        }
        Step::Demote(count, to) => {
            let sorted = model.sorted(Placement::Fast);
            let mut taken = Vec::new();
            for expected in sorted.into_iter().take(count) {
                let (id, count) = heap.take_coldest_fast(now).unwrap();
                assert!(near(count, expected), "{id:?}: {count}, not {expected}");
                assert!(near(count, model.pages[id.0 as usize].1));
                taken.push(id);
            }
            give_back(&taken, to, heap, model);
        }
        Step::Forget(first, len) => {
            let end = (first + len).min(PAGES);
            place_all(heap, first..end, Placement::Untracked);
            for id in first..end {
                model.settle(PageId(id), Placement::Untracked);
            }
        }
    }
}

fn give_back(taken: &[PageId], to: Placement, heap: &mut DualHeap, model: &mut Model) {
    let mut ids: Vec<_> = taken.to_vec();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), taken.len(), "a page was taken twice");
    for &id in taken {
        assert!(heap.settle(id, to, None));
        model.settle(id, to);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 500, ..ProptestConfig::default() })]

    #[test]
    fn pages_when_taken_in_turn_come_as_if_all_were_sorted(
        steps in proptest::collection::vec(step(), 1..40),
        fast in 0..PAGES,
    ) {
        let mut heap = DualHeap::new(PAGES, HALF_LIFE).unwrap();
        place_all(&mut heap, 0..fast, Placement::Fast);
        place_all(&mut heap, fast..PAGES, Placement::Slow);
        let tier = |id| if id < fast { Placement::Fast } else { Placement::Slow };
        let mut model = Model { pages: (0..PAGES).map(|id| (tier(id), 0.0)).collect(), now: Time(0) };
        for (number, step) in steps.iter().enumerate() {
            apply(step, &mut heap, &mut model);
            if let Err(broken) = heap.check() {
                panic!("step {number}, {step:?}: {broken}");
            }
        }
        // Nothing stands in two places: every page comes once, and all of them do.
        let (fast, slow) = (model.sorted(Placement::Fast).len(), heap.stats().slow_sampled as usize);
        apply(&Step::Demote(fast, Placement::Untracked), &mut heap, &mut model);
        prop_assert_eq!(heap.coldest_fast(model.now), None);
        apply(&Step::Promote(slow, Placement::Untracked), &mut heap, &mut model);
        prop_assert_eq!(heap.hottest_slow(model.now), None);
        prop_assert_eq!(heap.len(Placement::Slow) as usize, model.sorted(Placement::Slow).len());
        prop_assert!(heap.is_valid());
    }

    #[test]
    fn any_two_pages_when_the_landmark_moves_stay_in_order(
        seed in any::<u64>(), rounds in 1..30usize, rest in 1..150u32, fast in 0..PAGES,
    ) {
        let mut heap = DualHeap::new(PAGES, HALF_LIFE).unwrap();
        place_all(&mut heap, 0..fast, Placement::Fast);
        place_all(&mut heap, fast..PAGES, Placement::Slow);
        let mut now = Time(0);
        for round in 0..rounds {
            now = now + Duration::from_millis(seed % 7001);
            heap.sample_batch(now, &drawn(500, seed ^ round as u64, PAGES), 1.3);
        }
        let before: Vec<f64> = heap.iter(now).map(|(_, _, count)| count).collect();
        let later = now + HALF_LIFE * rest;
        heap.tick(later);
        let after: Vec<f64> = heap.iter(later).map(|(_, _, count)| count).collect();
        let mut ids: Vec<usize> = (0..before.len()).collect();
        ids.sort_by(|&a, &b| before[a].total_cmp(&before[b]));
        for pair in ids.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            // Of two that are forgotten nothing is left to compare.
            if after[b] > 0.0 {
                prop_assert_eq!(before[a].total_cmp(&before[b]), after[a].total_cmp(&after[b]));
            } else {
                prop_assert_eq!(after[a], 0.0);
            }
        }
        prop_assert!(heap.is_valid());
    }

    #[test]
    fn pages_when_placed_in_runs_over_many_chunks_are_where_they_were_placed(
        // 3 groups of 64 chunks of 512 frames and a bit.
        runs in proptest::collection::vec((0..99_000u32, prop_oneof![1..3u32, 1..1500u32, 1..80_000u32], 0..5u32), 1..8),
    ) {
        const FRAMES: u32 = 99_000;
        let mut heap = DualHeap::new(FRAMES, HALF_LIFE).unwrap();
        let mut model = vec![Placement::Untracked; FRAMES as usize];
        for (first, len, to) in runs {
            let to = [Placement::Fast, Placement::Slow, Placement::Fast, Placement::Slow, Placement::Untracked][to as usize];
            let end = (first + len).min(FRAMES);
            place_all(&mut heap, first..end, to);
            model[first as usize..end as usize].fill(to);
            prop_assert_eq!(heap.check(), Ok(()));
            heap.sample(Time(0), PageId(first), 1.0);
        }
        let is = |placement| model.iter().filter(|&&at| at == placement).count() as u32;
        prop_assert_eq!(heap.len(Placement::Fast), is(Placement::Fast));
        prop_assert_eq!(heap.len(Placement::Slow), is(Placement::Slow));
        for (id, placement, _) in heap.iter(Time(0)) {
            prop_assert_eq!(model[id.0 as usize], placement);
        }
    }
}

#[test]
fn memory_when_all_pages_are_sampled_is_little_more_than_a_word_each() {
    let pages = 1 << 20;
    let mut heap = DualHeap::new(pages, HALF_LIFE).unwrap();
    place_all(&mut heap, 0..pages / 5, Placement::Fast);
    place_all(&mut heap, pages / 5..pages, Placement::Slow);
    heap.sample_run(Time(0), 0..pages, 1.0);
    for step in 1..50u32 {
        let now = Time(0) + HALF_LIFE / 10 * step;
        heap.sample_batch(now, &drawn(20_000, u64::from(step), pages), 1.0);
        assert!(heap.take_hottest_slow(now).is_some());
        assert!(heap.take_coldest_fast(now).is_some());
    }
    let bytes_a_page = heap.memory_bytes() as f64 / f64::from(pages);
    assert!(bytes_a_page < 4.5, "{bytes_a_page}");
    assert!(heap.is_valid());
}

#[test]
fn slow_pages_when_more_are_taken_than_stand_in_order_are_looked_for_among_all() {
    let mut heap = DualHeap::new(PAGES, HALF_LIFE).unwrap();
    place_all(&mut heap, 0..PAGES, Placement::Slow);
    for id in 0..PAGES {
        heap.sample(Time(0), PageId(id), 1.0 + (id * 1237 % PAGES) as f32);
    }
    for rank in (1..=PAGES).rev() {
        let (_, count) = heap.take_hottest_slow(Time(0)).unwrap();
        assert_eq!(count, f64::from(rank));
    }
    assert_eq!(heap.hottest_slow(Time(0)), None);
    assert!(heap.is_valid());
}
