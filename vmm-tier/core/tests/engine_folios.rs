//! The engine over pages of several sizes: folios of 64 KiB, huge pages that come and go, and heat that
//! is that of few frames.

use std::{collections::BTreeMap, time::Duration};

use tier_core::{
    addr::{BASE_PAGE, Gpa, HUGE_PAGE},
    engine::{Event, Explanation, ReshapeOutcome, ReshapeRequest, Shape},
    moves::Outcome,
    random::Random,
    sample::SourceKind,
    settings::EngineSettings,
};

use crate::{
    accesses::{SPAN, accesses},
    common::{BASE, FAST, GPA_BASE, settings},
    lab::{Lab, gups},
};

const FOLIO: u64 = 16 * BASE_PAGE;

fn lab(huge: &[u32], small: &[u32]) -> Lab {
    lab_with(huge, small, settings())
}

fn lab_with(huge: &[u32], small: &[u32], mut settings: EngineSettings) -> Lab {
    let mut kernel = gups(8 * 512, 2 * 512);
    kernel.huge = huge.iter().map(|number| number * 512).collect();
    kernel.small_folios = small.to_vec();
    settings.headroom_bytes = 0;
    Lab::new(kernel, settings)
}

/// Lets the engine look at all of the guest again.
fn look_around(lab: &mut Lab) {
    for _ in 0..20 {
        lab.now = lab.now + Duration::from_secs(1);
        lab.step(Event::Tick);
    }
}

fn explain(lab: &Lab, frame: u64) -> Explanation {
    let gpa = Gpa(GPA_BASE + frame * BASE_PAGE);
    lab.engine.explain(lab.now, gpa).unwrap()
}

#[test]
fn folio_when_one_of_its_frames_is_hot_moves_as_one_page_and_its_bytes_are_told() {
    let all: Vec<u32> = (0..8 * 512).step_by(16).collect();
    let mut lab = lab(&[], &all);
    // Every second frame of 32 folios.
    let is_hot = |frame: u32| frame / 512 == 6 && frame.is_multiple_of(2);
    for _ in 0..50 {
        lab.observe(|frame| if is_hot(frame) { 20.0 } else { 0.0 });
    }
    let snapshot = lab.engine.snapshot();
    assert_eq!(
        snapshot.page_sizes,
        BTreeMap::from([(FOLIO, 8 * HUGE_PAGE)])
    );
    let frames = &lab.kernel.frames[6 * 512..7 * 512];
    assert!(frames.iter().all(|&node| node == Some(FAST)));
    // One address a folio: nothing was tried in vain, and what was told is what moved.
    assert_eq!(lab.moved(), 2 * HUGE_PAGE);
    assert_eq!(
        snapshot.promoted_bytes + snapshot.demoted_bytes,
        lab.moved()
    );
    assert_eq!(snapshot.moved_pages, 64);
    assert_eq!(snapshot.failed, BTreeMap::new());
    assert_eq!(explain(&lab, 6 * 512 + 5).page_bytes, FOLIO);
}

#[test]
fn folios_when_they_grow_and_fall_apart_keep_their_places_and_bytes() {
    let mut lab = lab(&[], &[]);
    let small: Vec<u32> = (0..8 * 512).step_by(16).collect();
    let states = [
        (vec![], small.clone(), FOLIO),
        (vec![], vec![], BASE_PAGE),
        ((0..8).map(|n| n * 512).collect(), vec![], HUGE_PAGE),
        (vec![], small, FOLIO),
    ];
    for (huge, small, size) in states {
        lab.kernel.huge = huge;
        lab.kernel.small_folios = small;
        look_around(&mut lab);
        let snapshot = lab.engine.snapshot();
        assert_eq!(snapshot.page_sizes, BTreeMap::from([(size, 8 * HUGE_PAGE)]));
        assert_eq!(snapshot.tiers[0].bytes, 2 * HUGE_PAGE);
        assert_eq!(lab.engine.check(), Ok(()));
    }
}

#[test]
fn frames_when_collapsed_between_looks_are_not_moved_one_by_one() {
    let mut lab = lab(&[], &[]);
    for _ in 0..6 {
        lab.observe(|_| 1.0);
    }
    let before = lab.moved();
    // khugepaged comes first.
    lab.kernel.huge = vec![0, 6 * 512];
    for _ in 0..50 {
        lab.observe(|frame| if frame / 512 == 6 { 20.0 } else { 0.0 });
    }
    let snapshot = lab.engine.snapshot();
    assert!(
        snapshot.failed[&Outcome::Resized] > 0,
        "{:?}",
        snapshot.failed
    );
    assert_eq!(snapshot.page_sizes[&HUGE_PAGE], 2 * HUGE_PAGE);
    let frames = &lab.kernel.frames[6 * 512..7 * 512];
    assert!(frames.iter().all(|&node| node == Some(FAST)));
    assert_eq!(
        snapshot.promoted_bytes + snapshot.demoted_bytes,
        lab.moved()
    );
    assert!(lab.moved() - before <= 3 * HUGE_PAGE, "{}", lab.moved());
}

/// A guest on huge pages; of the third few frames are hot, and all of the fourth.
fn with_skew() -> Lab {
    let mut lab = lab(&[0, 1, 2, 3, 4, 5, 6, 7], &[]);
    lab.step(Event::Source(Some(SourceKind::Ibs)));
    let mut random = Random::new(5);
    for _ in 0..10 {
        lab.now = lab.now + SPAN;
        let sampled =
            (0..200).flat_map(|_| [3 * 512 + random.below(8) * 64, 4 * 512 + random.below(512)]);
        lab.step(accesses(SourceKind::Ibs, lab.now, sampled));
    }
    lab
}

#[test]
fn huge_page_when_few_of_its_frames_are_hit_is_told_to_be_skewed() {
    let lab = with_skew();
    let skewed = explain(&lab, 3 * 512 + 100);
    assert_eq!(skewed.recent_frames, Some(8));
    assert!((128..=256).contains(&skewed.recent_samples.unwrap()));
    assert!(
        skewed.sentences.iter().any(|told| told
            .ends_with("fell on 8 of its 512 frames of 4 KiB: few of them make the page hot.")),
        "{:#?}",
        skewed.sentences
    );
    let even = explain(&lab, 4 * 512);
    assert!(even.recent_frames.unwrap() > 90, "{even:#?}");
    assert_eq!(explain(&lab, 0).recent_frames, None, "none was seen");
    assert_eq!(lab.engine.snapshot().skewed_pages, 1);
}

#[test]
fn huge_page_when_it_falls_apart_hands_its_heat_to_the_frames_that_were_hit() {
    let mut lab = with_skew();
    let even = |lab: &Lab| explain(lab, 4 * 512).samples;
    let before = explain(&lab, 3 * 512).samples / even(&lab);
    lab.kernel.huge.retain(|&head| head != 3 * 512);
    look_around(&mut lab);

    let hot = explain(&lab, 3 * 512 + 64);
    assert_eq!((hot.page_bytes, hot.recent_frames), (BASE_PAGE, None));
    // Each of the eight frames has an eighth of what all 512 had together; a page that is hot all over
    // has cooled as much meanwhile.
    let after = hot.samples * 8.0 / (even(&lab) * 512.0);
    assert!((after / before - 1.0).abs() < 0.01, "{after} of {before}");
    assert_eq!(explain(&lab, 3 * 512 + 65).samples, 0.0);
    // What is hot all over stays so.
    let whole = explain(&lab, 4 * 512);
    assert_eq!(whole.page_bytes, HUGE_PAGE);
    assert_eq!(lab.engine.check(), Ok(()));
}

/// The numbers of the ranges of 2 MiB that were to have this shape.
fn asked(lab: &Lab, shape: Shape) -> Vec<u64> {
    let of_shape = |request: &&ReshapeRequest| request.shape == shape;
    let requests = lab.kernel.reshaped.iter().filter(of_shape);
    let pages = requests.map(|request| request.page);
    pages.map(|page| (page.hva.0 - BASE) / HUGE_PAGE).collect()
}

/// Lets eight frames of the third huge page be hot for 24 s, and nothing else.
fn make_skewed(lab: &mut Lab) {
    lab.step(Event::Source(Some(SourceKind::Ibs)));
    let mut random = Random::new(5);
    for _ in 0..60 {
        lab.now = lab.now + SPAN;
        let sampled = (0..400).map(|_| 3 * 512 + random.below(8) * 64);
        lab.step(accesses(SourceKind::Ibs, lab.now, sampled));
    }
}

fn fast_frames(lab: &Lab, number: usize) -> Vec<usize> {
    let frames = lab.kernel.frames[number * 512..][..512].iter().enumerate();
    let fast = frames.filter(|(_, node)| **node == Some(FAST));
    fast.map(|(frame, _)| frame).collect()
}

#[test]
fn skewed_huge_page_when_splits_are_asked_for_is_split_and_only_its_hot_frames_go_up() {
    let split_huge = true;
    let settings = EngineSettings {
        split_huge,
        ..settings()
    };
    let mut lab = lab_with(&[2, 3, 4, 5, 6, 7], &[], settings);
    make_skewed(&mut lab);

    assert_eq!(asked(&lab, Shape::Split), [3]);
    let hot: Vec<usize> = (0..8).map(|n| n * 64).collect();
    assert_eq!(fast_frames(&lab, 3), hot);
    assert_eq!(lab.moved(), 2 * 8 * BASE_PAGE);
    let snapshot = lab.engine.snapshot();
    assert_eq!(snapshot.splits, BTreeMap::from([(ReshapeOutcome::Done, 1)]));
    assert_eq!(snapshot.collapses, BTreeMap::new());
    assert_eq!(lab.engine.check(), Ok(()));
}

#[test]
fn skewed_huge_page_when_few_fast_pages_are_cold_is_split_as_its_hot_frames_need_no_more() {
    let split_huge = true;
    let settings = EngineSettings {
        split_huge,
        ..settings()
    };
    let mut lab = lab_with(&[2, 3, 4, 5, 6, 7], &[], settings);
    lab.step(Event::Source(Some(SourceKind::Ibs)));
    let mut random = Random::new(5);
    for _ in 0..60 {
        lab.now = lab.now + SPAN;
        // Of the 1024 fast pages 20 are idle. The others are each hit more often than the huge page's 512 are
        // on average.
        let fast = (20..1024).flat_map(|frame| [frame; 2]);
        let skewed = (0..400).map(|_| 3 * 512 + random.below(8) * 64);
        let sampled: Vec<u64> = fast.chain(skewed).collect();
        lab.step(accesses(SourceKind::Ibs, lab.now, sampled));
    }

    assert_eq!(asked(&lab, Shape::Split), [3]);
    let hot: Vec<usize> = (0..8).map(|n| n * 64).collect();
    assert_eq!(fast_frames(&lab, 3), hot);
    assert_eq!(lab.moved(), 2 * 8 * BASE_PAGE);
    assert_eq!(lab.engine.check(), Ok(()));
}

#[test]
fn skewed_huge_page_when_it_can_not_or_must_not_be_split_goes_up_whole() {
    let cases = [
        (false, ReshapeOutcome::Unavailable, 0),
        (true, ReshapeOutcome::Unavailable, 1),
        (true, ReshapeOutcome::Busy, 1),
    ];
    for (split_huge, outcome, requests) in cases {
        let settings = EngineSettings {
            split_huge,
            ..settings()
        };
        let mut lab = lab_with(&[2, 3, 4, 5, 6, 7], &[], settings);
        lab.kernel.reshapes_end = Some(outcome);
        make_skewed(&mut lab);
        assert_eq!(asked(&lab, Shape::Split).len(), requests, "once at most");
        assert_eq!(fast_frames(&lab, 3).len(), 512);
    }
}

#[test]
fn small_pages_when_evenly_hot_on_the_fast_tier_are_made_a_huge_page_if_asked_for() {
    let hot = |frame: u32| (6 * 512..7 * 512).contains(&frame);
    let half = |frame: u32| hot(frame) && frame.is_multiple_of(2);
    for (collapse_huge, hole, is_hot, made) in [
        (true, false, &hot as &dyn Fn(u32) -> bool, vec![6]),
        (false, false, &hot, vec![]),
        (true, true, &hot, vec![]),
        (true, false, &half, vec![]),
    ] {
        let settings = EngineSettings {
            collapse_huge,
            ..settings()
        };
        let mut lab = lab_with(&[], &[], settings);
        if hole {
            lab.kernel.frames[6 * 512 + 77] = None;
        }
        for _ in 0..60 {
            lab.observe(|frame| if is_hot(frame) { 20.0 } else { 0.0 });
        }
        assert!(fast_frames(&lab, 6).len() > 250);
        assert_eq!(asked(&lab, Shape::Collapse), made);
        let snapshot = lab.engine.snapshot();
        let done = snapshot.collapses.get(&ReshapeOutcome::Done).copied();
        assert_eq!(done.unwrap_or(0), made.len() as u64);
        let huge = snapshot.page_sizes.get(&HUGE_PAGE).copied();
        assert_eq!(huge.unwrap_or(0), made.len() as u64 * HUGE_PAGE);
        assert_eq!(lab.engine.check(), Ok(()));
    }
}

#[test]
fn skewed_huge_pages_when_many_are_hot_are_split_one_at_a_time() {
    let split_huge = true;
    let settings = EngineSettings {
        split_huge,
        ..settings()
    };
    let mut lab = lab_with(&[2, 3, 4, 5, 6, 7], &[], settings);
    lab.step(Event::Source(Some(SourceKind::Ibs)));
    let mut random = Random::new(9);
    let mut waited = 0;
    for _ in 0..60 {
        lab.now = lab.now + SPAN;
        let sampled = (0..1200).map(|_| 512 * (2 + random.below(6)) + random.below(8) * 64);
        let sampled: Vec<u64> = sampled.collect();
        lab.step(accesses(SourceKind::Ibs, lab.now, sampled));
        for _ in 0..4 {
            let before = lab.kernel.reshaped.len();
            let wakes_at = lab.engine.wakes_at();
            lab.now = lab.now + Duration::from_millis(20);
            lab.step(Event::Tick);
            let asked = lab.kernel.reshaped.len() - before;
            assert!(asked <= 1, "{asked} at once");
            // The agent is told when to come back for what waits.
            assert!(asked == 0 || wakes_at.is_some_and(|at| at <= lab.now));
            waited += asked;
        }
    }
    assert_eq!(lab.kernel.reshaped.len(), 6);
    assert!(waited > 0, "none waited for its turn");
    for number in 2..8 {
        assert_eq!(fast_frames(&lab, number).len(), 8, "{number}");
    }
    let splits = lab.engine.snapshot().splits;
    assert_eq!(splits, BTreeMap::from([(ReshapeOutcome::Done, 6)]));
}
