//! The engine fed by sources that count accesses, alone and beside one that tests pages.

use std::time::Duration;

use tier_core::{
    addr::{BASE_PAGE, Gpa, Hva},
    engine::Event,
    random::Random,
    sample::{
        AccessKind, AccessSample, DropReason, SampleAccount, SampleAddress, SampleBatch, SourceKind,
    },
};

use crate::{
    accesses::{SPAN, accesses},
    common::{BASE, FAST, settings},
    lab::{Lab, gups},
};

fn on_fast(lab: &Lab, frames: impl Iterator<Item = u64>) -> usize {
    let is_fast = |&frame: &u64| lab.kernel.frames[frame as usize] == Some(FAST);
    frames.filter(is_fast).count()
}

#[test]
fn scattered_hot_pages_when_accesses_are_sampled_are_all_promoted() {
    // Every eighth page is hot and gets 90 % of the accesses; a fifth of the guest is fast.
    let frames = 4096;
    let mut lab = Lab::new(gups(frames, 900), settings());
    lab.step(Event::Source(Some(SourceKind::Ibs)));
    let mut random = Random::new(7);
    for _ in 0..40 {
        lab.now = lab.now + SPAN;
        let sampled = (0..1000).map(|_| {
            let hot = random.below(10) < 9;
            let frame = random.below(u64::from(frames));
            if hot { frame / 8 * 8 } else { frame }
        });
        lab.step(accesses(SourceKind::Ibs, lab.now, sampled));
    }
    let share = on_fast(&lab, (0..4096).step_by(8)) as f64 / 512.0;
    assert!(share >= 0.98, "{share}");
    // 112 hot pages began on the fast node.
    let least = 2 * 400 * BASE_PAGE;
    assert!(lab.moved() < least * 3 / 2, "{} of {least}", lab.moved());
    let hit_ratio = lab.engine.snapshot().hit_ratio.unwrap();
    // 92 % in the end; the first seconds still count.
    assert!((0.85..0.93).contains(&hit_ratio), "{hit_ratio}");
    assert_eq!(lab.engine.check(), Ok(()));
}

#[test]
fn equally_hot_pages_when_accesses_are_sampled_are_left_where_they_are() {
    let mut lab = Lab::new(gups(4096, 900), settings());
    lab.step(Event::Source(Some(SourceKind::Ibs)));
    let mut random = Random::new(11);
    // From one sample on eight pages in a batch to four on each.
    for count in [500, 2000, 16_000] {
        for _ in 0..40 {
            lab.now = lab.now + SPAN;
            let sampled = (0..count).map(|_| random.below(4096));
            lab.step(accesses(SourceKind::Ibs, lab.now, sampled));
        }
    }
    let headroom = 16 * BASE_PAGE;
    assert!(lab.moved() <= 2 * headroom, "{}", lab.moved());
}

#[test]
fn heat_when_another_source_is_believed_keeps_its_order_and_nothing_moves_back() {
    let mut lab = Lab::new(gups(2048, 500), settings());
    let hot = 1792..2048;
    for _ in 0..30 {
        lab.observe(|frame| if hot.contains(&frame) { 20.0 } else { 1.0 });
    }
    assert_eq!(on_fast(&lab, 1792..2048), 256);
    let before = lab.moved();
    lab.step(Event::Source(Some(SourceKind::Guest)));
    let mut random = Random::new(3);
    for _ in 0..30 {
        lab.now = lab.now + SPAN;
        let sampled = (0..2000).map(|_| match random.below(10) {
            0 => random.below(2048),
            _ => 1792 + random.below(256),
        });
        lab.step(accesses(SourceKind::Guest, lab.now, sampled));
    }
    assert_eq!(on_fast(&lab, 1792..2048), 256);
    let since = lab.moved() - before;
    assert!(
        since <= 32 * BASE_PAGE,
        "{since} bytes moved after the change"
    );
}

#[test]
fn records_when_several_sources_deliver_are_accounted_for_each() {
    let mut lab = Lab::new(gups(64, 16), settings());
    lab.observe(|_| 1.0);
    let sample = |address| AccessSample {
        address,
        len: 1,
        weight: 1.0,
        kind: AccessKind::Store,
    };
    let mut account = SampleAccount::default();
    account.drop_records(DropReason::Hostile, 5);
    let batch = SampleBatch {
        source: SourceKind::Guest,
        end: lab.now,
        span: Duration::from_millis(100),
        tests: 0,
        period: 1,
        settled: true,
        map_generation: 1,
        samples: vec![
            sample(SampleAddress::Guest(Gpa(u64::MAX))),
            sample(SampleAddress::Guest(Gpa(0))),
            sample(SampleAddress::Host(Hva(BASE))),
        ],
        account,
    };
    lab.step(Event::Samples(batch));

    let sources: Vec<_> = lab.engine.sources().collect();
    let [(SourceKind::Damon, damon), (SourceKind::Guest, guest)] = sources[..] else {
        panic!("{sources:?}");
    };
    assert_eq!((damon.account.samples, damon.account.accepted), (64, 64));
    assert_eq!((guest.account.samples, guest.account.accepted), (8, 1));
    assert_eq!(guest.account.dropped[&DropReason::NotGuestRam], 2);
    assert_eq!(guest.account.dropped[&DropReason::Hostile], 5);
    assert!(damon.tests_pages && !guest.tests_pages);
    assert_eq!(guest.precision, Some(1.0));
    assert_eq!(lab.engine.samples().samples, 72);
    assert_eq!(lab.engine.check(), Ok(()));
}
