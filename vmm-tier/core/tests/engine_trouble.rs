//! The engine when something fails, changes in the middle, or answers oddly.

use std::time::Duration;

use tier_core::{
    addr::{BASE_PAGE, HUGE_PAGE, Hva},
    engine::{Action, Event, Order, ScanReport, VmEngine},
    moves::{Direction, MoveBatch, Outcome, PageResult},
    settings::EngineSettings,
    time::Time,
};

use crate::{
    common::{BASE, settings},
    lab::{Lab, gups, observation},
};

/// What is to be done after an event, without doing it.
fn moves_of(lab: &mut Lab, event: Event) -> Vec<MoveBatch> {
    let moves = |action| match action {
        Action::Move(batch) => Some(batch),
        Action::MovePaired(_) => unreachable!("no page is of a pool"),
        Action::Rebind(_) => unreachable!("nobody asks for it"),
        Action::Scan(_) | Action::Reshape(_) | Action::RefreshMap => None,
    };
    lab.engine
        .step(lab.now, event)
        .into_iter()
        .filter_map(moves)
        .collect()
}

/// An engine that knows the nodes.
fn ready(settings: EngineSettings) -> Lab {
    let mut lab = Lab::new(gups(2048, 512), settings);
    let nodes = lab.kernel.nodes();
    lab.engine.step(lab.now, nodes);
    lab
}

/// Samples of a guest that is hot from 1536 to 1792, given to the engine without doing what it asks for.
fn until_it_moves(lab: &mut Lab) -> Vec<MoveBatch> {
    for _ in 0..20 {
        lab.now = lab.now + Duration::from_millis(400);
        let moves = moves_of(lab, observation(lab.now, 2048, hot));
        if !moves.is_empty() {
            return moves;
        }
    }
    panic!("nothing is moved")
}

fn hot(frame: u32) -> f32 {
    if (1536..1792).contains(&frame) {
        20.0
    } else {
        0.0
    }
}

#[test]
fn report_when_it_lacks_pages_or_has_others_leaves_none_in_flight() {
    for mangle in [
        |_: &mut Vec<PageResult>| (),
        |results: &mut Vec<PageResult>| results.clear(),
        |results: &mut Vec<PageResult>| results.reverse(),
        |results: &mut Vec<PageResult>| results.extend(results.clone()),
        |results: &mut Vec<PageResult>| results.iter_mut().for_each(|r| r.page.hva = Hva(1 << 40)),
    ] {
        let mut lab = ready(settings());
        let moves = until_it_moves(&mut lab);
        for batch in moves {
            let mut report = lab.kernel.apply(&batch);
            mangle(&mut report.results);
            for promotion in moves_of(&mut lab, Event::Moved(report)) {
                let report = lab.kernel.apply(&promotion);
                moves_of(&mut lab, Event::Moved(report));
            }
        }
        lab.engine.check().unwrap();
        lab.order(Order::Pause(true)).unwrap();
        assert_eq!(lab.engine.snapshot().in_flight_pages, 0);
    }
}

#[test]
fn exchange_when_tiering_is_paused_in_the_middle_is_not_completed() {
    type Interrupt<'a> = &'a dyn Fn(&mut VmEngine, Time);
    let order = |order: Order| {
        move |engine: &mut VmEngine, now| {
            engine.order(now, order.clone()).unwrap();
        }
    };
    let event = |event: Event| {
        move |engine: &mut VmEngine, now| {
            engine.step(now, event.clone());
        }
    };
    let cases: [(Interrupt<'_>, u64); 5] = [
        (&order(Order::Pause(true)), 0),
        (&event(Event::Guest { stopped: true }), 0),
        (&event(Event::Monitor { attached: false }), 0),
        (&order(Order::Limit(Some(0))), 0),
        (&event(Event::Tick), BASE_PAGE),
    ];
    for (interrupt, least_bytes) in cases {
        let mut lab = ready(settings());
        let mut moves = until_it_moves(&mut lab);
        let demotion = moves.remove(0);
        assert_eq!(demotion.direction, Direction::Demote);
        interrupt(&mut lab.engine, lab.now);
        let report = lab.kernel.apply(&demotion);
        let after = moves_of(&mut lab, Event::Moved(report));
        let promoted = after
            .iter()
            .filter(|batch| batch.direction == Direction::Promote)
            .flat_map(|batch| &batch.pages)
            .map(|page| page.bytes)
            .sum::<u64>();
        assert_eq!(promoted.min(BASE_PAGE), least_bytes);
        lab.engine.check().unwrap();
    }
}

#[test]
fn rate_when_pages_are_larger_than_it_grants_is_kept_all_the_same() {
    let mut kernel = gups(64 * 512, 16 * 512);
    kernel.huge = (0..64).map(|i| i * 512).collect();
    let rate = 1 << 20;
    let mut lab = Lab::new(
        kernel,
        EngineSettings {
            headroom_bytes: 0,
            rate_bytes_per_s: rate,
            ..settings()
        },
    );
    for _ in 0..50 {
        lab.observe(|frame| if frame / 512 >= 48 { 20.0 } else { 0.0 });
    }
    // 20 s at 1 MiB a second, the burst, and the pair that began before the bucket was empty.
    let most = 20 * rate + HUGE_PAGE + 2 * HUGE_PAGE;
    assert!(lab.moved() <= most, "{} of {most}", lab.moved());
    assert!(lab.moved() >= 10 * rate, "{} only", lab.moved());
}

#[test]
fn moves_when_the_kernel_refuses_them_all_are_tried_ever_less() {
    let mut kernel = gups(64 * 512, 16 * 512);
    kernel.fails = (0..64 * 512)
        .map(|frame| (BASE + frame * BASE_PAGE, Outcome::Busy))
        .collect();
    let mut lab = Lab::new(kernel, settings());
    let mut batches = 0;
    for _ in 0..250 {
        lab.now = lab.now + Duration::from_millis(400);
        let now = lab.now;
        let mut todo = lab.engine.step(
            now,
            observation(now, 64 * 512, |f| if f / 512 >= 48 { 20.0 } else { 0.0 }),
        );
        let nodes = lab.kernel.nodes();
        todo.extend(lab.engine.step(now, nodes));
        while let Some(action) = todo.pop() {
            let answer = match action {
                Action::Scan(request) => Event::Scanned(lab.kernel.scan(request)),
                Action::Move(batch) => {
                    batches += 1;
                    Event::Moved(lab.kernel.apply(&batch))
                }
                Action::MovePaired(_) => unreachable!("no page is of a pool"),
                Action::Rebind(_) => unreachable!("nobody asks for it"),
                Action::Reshape(_) | Action::RefreshMap => continue,
            };
            todo.extend(lab.engine.step(now, answer));
        }
    }
    // 100 s: nine while the rests grow to 10 s, then one each 10 s.
    assert!((5..=20).contains(&batches), "{batches}");
}

#[test]
fn demotion_when_the_slow_node_has_no_room_is_left_undone() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    lab.kernel.slow_free = 8 * BASE_PAGE;
    for _ in 0..20 {
        lab.observe(hot);
    }
    for _ in 0..5 {
        lab.order(Order::Limit(Some(0))).unwrap();
    }
    let snapshot = lab.engine.snapshot();
    assert_eq!(snapshot.failed.get(&Outcome::NoMemory), None);
    assert_eq!(lab.kernel.slow_free, 0, "its room was used");
}

#[test]
fn placements_when_the_kernel_can_not_be_asked_stay_as_they_were() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    let before = lab.engine.snapshot();
    lab.now = lab.now + Duration::from_secs(60);
    for action in lab.engine.step(lab.now, Event::Tick) {
        if let Action::Scan(request) = action {
            let report = ScanReport {
                pages: Vec::new(),
                ..lab.kernel.scan(request)
            };
            lab.engine.step(lab.now, Event::Scanned(report));
        }
    }
    assert_eq!(lab.engine.snapshot().tiers, before.tiers);
}

#[test]
fn dry_run_when_the_limit_is_lowered_plans_the_excess_once() {
    let mut lab = Lab::new(
        gups(2048, 512),
        EngineSettings {
            dry_run: true,
            ..settings()
        },
    );
    for _ in 0..10 {
        lab.observe(|_| 5.0);
    }
    let before = lab.engine.snapshot().dry_run.unwrap().demote_bytes;
    lab.order(Order::Limit(Some(412 * BASE_PAGE))).unwrap();
    for _ in 0..20 {
        lab.observe(|_| 5.0);
    }
    let after = lab.engine.snapshot().dry_run.unwrap().demote_bytes;
    assert_eq!(after - before, 100 * BASE_PAGE);
}

#[test]
fn exchange_when_the_source_still_looks_for_its_pace_waits() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    for settled in [false, true] {
        for _ in 0..20 {
            lab.now = lab.now + Duration::from_millis(400);
            let hot_end = |frame| if frame >= 1792 { 20.0 } else { 0.0 };
            let Event::Samples(mut batch) = observation(lab.now, 2048, hot_end) else {
                unreachable!("an observation is made of samples")
            };
            batch.settled = settled;
            lab.step(Event::Samples(batch));
        }
        assert_eq!(lab.moved() > 0, settled);
    }
}
