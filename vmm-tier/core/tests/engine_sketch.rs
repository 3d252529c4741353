//! The engine with heat in a sketch: what it does with exact counts it does with bounded memory too.

#[path = "common/accesses.rs"]
mod accesses;
mod common;
#[path = "common/lab.rs"]
mod lab;

use tier_core::{
    addr::{BASE_PAGE, Gpa},
    dual_heap::Placement,
    engine::{Event, Order, PageCondition, Pin, Refusal, SetMapError, VmEngine, WhenFull},
    heat_store::{HeatStoreError, StoreChoice, StorePlan, StoreSnapshot},
    random::Random,
    sample::SourceKind,
    settings::{EngineSettings, Tier},
    time::Time,
};

use accesses::{SPAN, accesses};
use common::{FAST, GPA_BASE, map, settings, tiers};
use lab::{Lab, gups};

const FRAMES: u32 = 8192;
/// Two bits for each of 8192 pages, and 12 KiB: some 2900 slots.
const MEMORY: u64 = 2048 + (12 << 10);

fn sketch(memory_bytes: u64) -> EngineSettings {
    EngineSettings {
        heat: StorePlan {
            choice: StoreChoice::Sketch,
            memory_bytes,
            seed: 42,
        },
        ..settings()
    }
}

/// Batches of 400 ms with 2000 sampled accesses each, of which nine in ten fall on every 16th frame.
fn run(lab: &mut Lab, random: &mut Random, batches: u32) {
    for _ in 0..batches {
        lab.now = lab.now + SPAN;
        let frames = (0..2000).map(|_| {
            let any = random.below(u64::from(FRAMES));
            if random.below(10) < 9 {
                any / 16 * 16
            } else {
                any
            }
        });
        lab.step(accesses(SourceKind::Ibs, lab.now, frames));
        assert_eq!(lab.engine.check(), Ok(()));
    }
}

/// A guest with DRAM for an eighth of it, whose hot pages have arrived there.
fn at_rest_with(settings: EngineSettings) -> (Lab, Random) {
    let mut lab = Lab::new(gups(FRAMES, 1024), settings);
    lab.step(Event::Source(Some(SourceKind::Ibs)));
    let mut random = Random::new(7);
    run(&mut lab, &mut random, 50);
    (lab, random)
}

fn at_rest() -> (Lab, Random) {
    at_rest_with(sketch(MEMORY))
}

fn hot_share(lab: &Lab) -> f64 {
    let hot = (0..FRAMES as usize).step_by(16);
    let fast = hot
        .clone()
        .filter(|&frame| lab.kernel.frames[frame] == Some(FAST));
    fast.count() as f64 / hot.count() as f64
}

fn gpa(frame: u32) -> Gpa {
    Gpa(GPA_BASE + u64::from(frame) * BASE_PAGE)
}

#[test]
fn hot_pages_when_the_sketch_holds_a_third_of_all_arrive_and_stay() {
    let (lab, _) = at_rest();
    assert!(hot_share(&lab) >= 0.98, "{}", hot_share(&lab));
    // Where there is room for all, the same pages move as with exact counts. What is forgotten costs moves: of
    // pages that are used a little, those that are remembered look hot.
    let (exact, _) = at_rest_with(settings());
    let (large, _) = at_rest_with(sketch(256 << 10));
    assert_eq!(large.moved(), exact.moved());
    assert!(lab.moved() < exact.moved() * 2, "{}", lab.moved());
    let StoreSnapshot::Sketch {
        memory_bytes,
        pages,
        slots,
        refused,
        evicted,
        ..
    } = lab.engine.snapshot().heat
    else {
        panic!("it is a sketch");
    };
    // Beside what was granted, 40 bytes and an end of 16 for each page that cools down.
    assert!(memory_bytes <= MEMORY + 1024 * 72, "{memory_bytes}");
    assert!(pages <= slots && slots < FRAMES / 2, "{pages} of {slots}");
    assert!(evicted > 0 && refused > 0, "{evicted}, {refused}");
}

#[test]
fn hot_pages_when_each_page_is_tested_and_has_room_arrive() {
    // 16 KiB for the counts of 2048 pages.
    let mut lab = Lab::new(gups(2048, 500), sketch(512 + (16 << 10)));
    for _ in 0..30 {
        lab.observe(|frame| if frame >= 1792 { 20.0 } else { 1.0 });
        assert_eq!(lab.engine.check(), Ok(()));
    }
    let hot = &lab.kernel.frames[1792..];
    assert!(hot.iter().all(|&node| node == Some(FAST)));
    let least = 2 * 256 * BASE_PAGE;
    assert!(lab.moved() < least * 3 / 2, "{} of {least}", lab.moved());
}

#[test]
fn pages_when_pinned_or_drained_go_where_they_are_ordered() {
    let (mut lab, mut random) = at_rest();
    // 256 frames, of which 16 are hot and fast.
    let pin = Pin {
        start: gpa(4096),
        bytes: 256 * BASE_PAGE,
        tier: Tier::Slow,
        when_full: WhenFull::Fill,
    };
    lab.order(Order::Pin(pin)).unwrap();
    run(&mut lab, &mut random, 20);
    assert!((4096..4352).all(|frame| lab.kernel.frames[frame] != Some(FAST)));
    let told = lab.engine.explain(lab.now, gpa(4096)).unwrap();
    assert_eq!((told.state, told.rank), (PageCondition::Pinned, None));
    assert!(told.samples > 1.0, "it goes on gathering heat: {told:?}");

    lab.order(Order::UnpinAll).unwrap();
    run(&mut lab, &mut random, 20);
    assert!(hot_share(&lab) >= 0.98, "{}", hot_share(&lab));

    lab.order(Order::Drain(100 * BASE_PAGE)).unwrap();
    run(&mut lab, &mut random, 20);
    let progress = lab.engine.drain_progress().unwrap();
    assert!(progress.done, "{progress:?}");
    assert!(lab.engine.snapshot().tiers[0].bytes <= 100 * BASE_PAGE);
    // The hottest stay: nearly all of the hundred are of the 512.
    let kept = (0..FRAMES as usize).step_by(16);
    let kept = kept.filter(|&frame| lab.kernel.frames[frame] == Some(FAST));
    assert!(kept.count() >= 90);
}

#[test]
fn explanations_when_heat_is_in_a_sketch_say_that_they_are_estimates() {
    let (lab, _) = at_rest();
    let hot = lab.engine.explain(lab.now, gpa(512)).unwrap();
    assert!(hot.estimated && hot.placement == Placement::Fast);
    assert!(hot.samples > 10.0 && hot.rank.unwrap() > 0, "{hot:?}");
    let all = (0..FRAMES).map(|frame| lab.engine.explain(lab.now, gpa(frame)).unwrap());
    let unknown = all.filter(|told| told.state == PageCondition::NeverSampled);
    let mut slow = unknown.filter(|told| told.placement == Placement::Slow);
    let told = slow.next().unwrap();
    assert_eq!(
        told.would_move_if,
        "an access to it is seen: none is remembered"
    );
    // The map of heat: a cell of 512 frames has 32 hot ones, and all are alike.
    let map = lab.engine.heatmap(lab.now, 1, 16).unwrap();
    let rates: Vec<f32> = map.cells.iter().map(|cell| cell.rate).collect();
    let (least, most) = rates.iter().fold((f32::MAX, 0.0_f32), |(a, b), &rate| {
        (a.min(rate), b.max(rate))
    });
    assert!(least > 0.0 && most < 2.0 * least, "{rates:?}");
    // 5000 samples a second, of a period of 1000, on 8192 frames: 610 accesses each; a little is forgotten.
    let mean = rates.iter().sum::<f32>() / 16.0;
    assert!((450.0..650.0).contains(&mean), "{mean}");
}

#[test]
fn map_when_it_outgrows_exact_counts_keeps_its_heat_in_a_sketch() {
    let auto = EngineSettings {
        heat: StorePlan {
            choice: StoreChoice::Auto,
            memory_bytes: 64 << 10,
            seed: 1,
        },
        ..settings()
    };
    let mut lab = Lab::new(gups(FRAMES, 1024), auto);
    lab.step(Event::Source(Some(SourceKind::Ibs)));
    let mut random = Random::new(7);
    run(&mut lab, &mut random, 20);
    assert!(matches!(
        lab.engine.snapshot().heat,
        StoreSnapshot::Exact { .. }
    ));
    let before = lab.engine.explain(lab.now, gpa(512)).unwrap();
    // Memory is plugged: 64 Ki pages of 4.1 bytes are more than 64 KiB.
    lab.kernel.frames.resize(65_536, None);
    lab.order(Order::Map(map(2, 65_536))).unwrap();
    assert_eq!(lab.engine.check(), Ok(()));
    assert!(matches!(
        lab.engine.snapshot().heat,
        StoreSnapshot::Sketch { .. }
    ));
    let after = lab.engine.explain(lab.now, gpa(512)).unwrap();
    assert_eq!(after.placement, before.placement);
    assert!((after.samples / before.samples - 1.0).abs() < 0.02);
    // And unplugged again.
    lab.order(Order::Map(map(3, FRAMES))).unwrap();
    let last = lab.engine.explain(lab.now, gpa(512)).unwrap();
    assert!(!last.estimated && last.samples == after.samples);
    assert_eq!(lab.engine.check(), Ok(()));
}

#[test]
fn map_when_its_heat_does_not_fit_is_refused_and_the_old_one_stays() {
    let mut engine = VmEngine::new(sketch(4096), tiers(), Time(0));
    engine.order(Time(0), Order::Map(map(1, FRAMES))).unwrap();
    let too_large = Order::Map(map(2, 1 << 20));
    let error = engine.order(Time(1), too_large).unwrap_err();
    assert!(matches!(
        error,
        Refusal::Map(SetMapError::Heat(HeatStoreError::TooSmall {
            memory_bytes: 4096,
            ..
        }))
    ));
    assert!(error.to_string().contains("heat.memory is 4096 bytes"));
    assert_eq!(engine.map().unwrap().generation(), 1);
    assert_eq!(engine.check(), Ok(()));
}
