//! The dual heaps in the situations that the policy meets.

use std::{ops::Range, time::Duration};

use tier_core::{
    dual_heap::{DualHeap, PageId, Placement},
    time::Time,
};

const SECOND: Duration = Duration::from_secs(1);
const T0: Time = Time(0);

/// Places each page of a run.
fn place_all(heap: &mut DualHeap, ids: Range<u32>, placement: Placement) {
    for id in ids {
        heap.place(PageId(id), placement);
    }
}

fn heap(pages: u32) -> DualHeap {
    DualHeap::new(pages, 10 * SECOND).unwrap()
}

#[test]
fn fast_page_when_never_sampled_is_colder_than_any_other() {
    let mut heap = heap(8);
    place_all(&mut heap, 0..8, Placement::Fast);
    heap.sample_run(T0, 0..5, 1e-3);
    assert_eq!(heap.coldest_fast(T0), Some((PageId(5), 0.0)));
}

#[test]
fn never_sampled_fast_pages_when_taken_in_turn_come_in_address_order_and_go_round() {
    let mut heap = heap(2000);
    place_all(&mut heap, 0..2000, Placement::Fast);
    heap.sample_run(T0, 3..1998, 1.0);
    let mut next = || heap.take_coldest_fast(T0).unwrap().0.0;
    assert_eq!((next(), next()), (0, 1));
    heap.settle(PageId(0), Placement::Fast, None);
    // Page 0 is cold again, but the search goes on from where it was.
    let mut next = || heap.take_coldest_fast(T0).unwrap().0.0;
    assert_eq!([next(), next(), next(), next()], [2, 1998, 1999, 0]);
}

#[test]
fn slow_page_when_never_sampled_is_not_offered() {
    let mut heap = heap(8);
    place_all(&mut heap, 0..8, Placement::Slow);
    assert_eq!(heap.hottest_slow(T0), None);
    heap.sample(T0, PageId(3), 1.0);
    assert_eq!(heap.hottest_slow(T0), Some((PageId(3), 1.0)));
}

#[test]
fn page_when_it_changes_its_tier_keeps_its_heat() {
    let mut heap = heap(8);
    heap.place(PageId(1), Placement::Slow);
    heap.sample(T0, PageId(1), 4.0);
    assert_eq!(heap.place(PageId(1), Placement::Fast), Placement::Slow);
    assert_eq!(heap.coldest_fast(T0), Some((PageId(1), 4.0)));
    heap.place(PageId(1), Placement::Untracked);
    heap.place(PageId(1), Placement::Slow);
    assert_eq!(
        heap.count(PageId(1), T0),
        0.0,
        "a page that went away is another when it comes back"
    );
}

#[test]
fn page_in_flight_when_sampled_gathers_heat_and_is_not_offered() {
    let mut heap = heap(8);
    heap.place(PageId(1), Placement::Slow);
    heap.sample(T0, PageId(1), 4.0);
    assert_eq!(heap.take(PageId(1)), Some(Placement::Slow));
    assert_eq!(heap.take(PageId(1)), None);
    heap.sample(T0, PageId(1), 1.0);
    assert_eq!(heap.hottest_slow(T0), None);
    assert!(heap.settle(PageId(1), Placement::Fast, None));
    assert_eq!(heap.coldest_fast(T0), Some((PageId(1), 5.0)));
    assert!(
        !heap.settle(PageId(1), Placement::Fast, None),
        "its flight is over"
    );
}

#[test]
fn page_in_cooldown_when_its_end_is_ticked_past_is_offered_again() {
    let mut heap = heap(8);
    heap.place(PageId(1), Placement::Slow);
    heap.take(PageId(1));
    heap.settle(PageId(1), Placement::Fast, Some(T0 + 2 * SECOND));
    assert_eq!(heap.tick(T0 + SECOND), 0);
    assert_eq!(heap.coldest_fast(T0 + SECOND), None);
    assert_eq!(heap.state(PageId(1)).cooldown_until, Some(T0 + 2 * SECOND));
    assert_eq!(heap.tick(T0 + 2 * SECOND), 1);
    assert_eq!(heap.coldest_fast(T0 + 2 * SECOND), Some((PageId(1), 0.0)));
}

#[test]
fn excluded_page_when_placed_where_it_was_stays_out_and_elsewhere_comes_back() {
    let mut heap = heap(8);
    heap.place(PageId(1), Placement::Slow);
    heap.sample(T0, PageId(1), 4.0);
    assert!(heap.exclude(PageId(1)));
    // A scan that finds the page where it was says nothing new.
    heap.place(PageId(1), Placement::Slow);
    assert_eq!(heap.hottest_slow(T0), None);
    heap.place(PageId(1), Placement::Fast);
    assert_eq!(heap.coldest_fast(T0), Some((PageId(1), 4.0)));
}

#[test]
fn count_when_set_lower_makes_a_fast_page_the_coldest() {
    let mut heap = heap(8);
    place_all(&mut heap, 0..4, Placement::Fast);
    heap.sample_run(T0, 0..4, 8.0);
    assert!(heap.set_count(PageId(2), 1.0, T0));
    assert_eq!(heap.coldest_fast(T0), Some((PageId(2), 1.0)));
    assert!(!heap.set_count(PageId(7), 1.0, T0));
}

#[test]
fn fast_heap_when_pages_come_and_go_does_not_grow() {
    let mut heap = heap(1024);
    place_all(&mut heap, 0..1024, Placement::Fast);
    heap.sample_run(T0, 0..1024, 1.0);
    let before = heap.memory_bytes();
    for round in 0..50u64 {
        place_all(&mut heap, 0..1024, Placement::Untracked);
        place_all(&mut heap, 0..1024, Placement::Fast);
        heap.sample_run(Time(round), 0..1024, 1.0);
    }
    // Left-behind entries may be as many again as pages, plus slack: 16 bytes a page.
    assert!(
        heap.memory_bytes() < before + 1024 * 16 + 2048,
        "{} from {before}",
        heap.memory_bytes()
    );
    assert!(heap.is_valid());
}

#[test]
fn memory_when_nothing_or_only_huge_pages_are_tracked_is_the_directory() {
    // 64 GiB in 4 KiB frames; 12 bytes for every 512 of them and a bit.
    let pages = 16 << 20;
    let mut heap = heap(pages);
    let directory = heap.memory_bytes();
    assert!(directory < (pages as usize / 512) * 13, "{directory}");
    (0..pages).step_by(512).for_each(|head| {
        heap.place(PageId(head), Placement::Slow);
    });
    assert_eq!(heap.memory_bytes(), directory);
    heap.place(PageId(1), Placement::Slow);
    // 512 words, and whose they are.
    assert_eq!(heap.memory_bytes(), directory + 2048 + 4);
    heap.place(PageId(1), Placement::Untracked);
    heap.place(PageId(0), Placement::Untracked);
    assert_eq!(
        heap.memory_bytes(),
        directory,
        "an empty chunk is given back"
    );
}

#[test]
fn heap_when_the_guest_is_larger_than_can_be_indexed_is_refused() {
    let error = DualHeap::new((1 << 30) + 1, SECOND).unwrap_err();
    assert!(error.to_string().starts_with("1073741825 pages"), "{error}");
}

#[test]
fn id_past_the_end_when_used_is_untracked() {
    let mut heap = heap(10);
    for id in [PageId(10), PageId(u32::MAX)] {
        assert_eq!(heap.place(id, Placement::Fast), Placement::Untracked);
        assert!(!heap.sample(T0, id, 1.0));
        assert!(!heap.settle(id, Placement::Fast, None));
        assert!(!heap.exclude(id));
        assert_eq!(heap.take(id), None);
        assert_eq!(heap.state(id).placement, Placement::Untracked);
    }
    assert_eq!(heap.sample_run(T0, 5..u32::MAX, 1.0).pages(), 0);
    place_all(&mut heap, 8..16, Placement::Slow);
    assert_eq!(heap.len(Placement::Slow), 2);
    assert!(heap.is_valid());
}
