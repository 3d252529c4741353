//! The engine against a model of the kernel.

mod common;

use std::{collections::BTreeMap, time::Duration};

use tier_core::{
    addr::{BASE_PAGE, Gpa, HUGE_PAGE, Hva},
    engine::{Action, Event, ScanReport, VmEngine, VmState},
    moves::{Direction, MoveBatch, Outcome, PageResult},
    sample::{AccessKind, AccessSample, SampleAccount, SampleAddress, SampleBatch},
    settings::EngineSettings,
    time::Time,
};

use common::{BASE, FAST, GPA_BASE, Kernel, SLOW, map, settings, tiers};

struct Lab {
    kernel: Kernel,
    engine: VmEngine,
    now: Time,
}

impl Lab {
    fn new(kernel: Kernel, settings: EngineSettings) -> Self {
        let mut engine = VmEngine::new(settings, tiers(), Time(0));
        engine
            .set_map(Time(0), map(1, u32::try_from(kernel.frames.len()).unwrap()))
            .unwrap();
        let mut lab = Self {
            kernel,
            engine,
            now: Time(0),
        };
        lab.step(Event::Source { up: true });
        lab
    }

    /// Gives an event to the engine and carries out what it asks for, until it asks for nothing.
    fn step(&mut self, event: Event) {
        let nodes = self.kernel.nodes();
        let mut todo = self.engine.step(self.now, nodes);
        todo.extend(self.engine.step(self.now, event));
        let mut rounds = 0;
        while let Some(action) = (!todo.is_empty()).then(|| todo.remove(0)) {
            rounds += 1;
            assert!(rounds < 100_000, "the engine never comes to rest");
            let answer = match action {
                Action::Scan(request) => Event::Scanned(self.kernel.scan(request)),
                Action::Move(batch) => {
                    let report = self.kernel.apply(&batch);
                    todo.extend(self.engine.step(self.now, self.kernel.nodes()));
                    Event::Moved(report)
                }
                Action::RefreshMap => continue,
            };
            todo.extend(self.engine.step(self.now, answer));
        }
    }

    /// One aggregation: 20 sampling intervals in 400 ms, hit in each with the page's probability.
    fn observe(&mut self, weight: impl Fn(u32) -> f32) {
        self.now = self.now + Duration::from_millis(400);
        let frames = u32::try_from(self.kernel.frames.len()).unwrap();
        self.step(observation(self.now, frames, weight));
    }

    fn moved(&self) -> u64 {
        self.kernel.moved_bytes.values().sum()
    }
}

fn observation(now: Time, frames: u32, weight: impl Fn(u32) -> f32) -> Event {
    let samples = (0..frames)
        .map(|frame| AccessSample {
            address: SampleAddress::Host(Hva(BASE + u64::from(frame) * BASE_PAGE)),
            len: BASE_PAGE,
            weight: weight(frame),
            kind: AccessKind::Any,
        })
        .collect();
    Event::Samples(SampleBatch {
        end: now,
        span: Duration::from_millis(400),
        tests: 20,
        map_generation: 1,
        samples,
        account: SampleAccount::default(),
    })
}

/// A kernel whose fast node is full of the first frames, and a guest hot at its end.
fn gups(frames: u32, fast: u32) -> Kernel {
    Kernel::new(frames, u64::from(fast) * BASE_PAGE, move |frame| {
        Some(if frame < fast { FAST } else { SLOW })
    })
}

#[test]
fn hot_set_when_it_starts_on_the_slow_node_is_exchanged_once() {
    let mut lab = Lab::new(gups(4096, 800), settings());
    let hot = 3776..4096;
    // 20 of 20 intervals for hot pages, 1 for cold ones, as in a 9:1 workload.
    for _ in 0..50 {
        lab.observe(|frame| if hot.contains(&frame) { 20.0 } else { 1.0 });
    }
    let on_fast = hot
        .clone()
        .filter(|&f| lab.kernel.frames[f as usize] == Some(FAST))
        .count();
    assert_eq!(on_fast, 320);
    // The least possible is the hot set up and as much down, and the headroom once.
    let least = 2 * 320 * BASE_PAGE + 16 * BASE_PAGE;
    assert!(
        lab.moved() <= least + 8 * BASE_PAGE,
        "{} moved, {least} needed",
        lab.moved()
    );
    assert!(lab.kernel.free() >= 16 * BASE_PAGE, "the headroom is kept");
    let snapshot = lab.engine.snapshot();
    assert_eq!(snapshot.state, VmState::Running);
    assert!(snapshot.samples.is_valid());
    assert_eq!(
        snapshot.tiers[0].bytes + snapshot.tiers[1].bytes,
        4096 * BASE_PAGE
    );
    assert!(snapshot.hit_ratio.unwrap() > 0.5);
}

#[test]
fn pages_when_equally_hot_are_left_where_they_are() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    for round in 0..50_u32 {
        // The same rate everywhere, with noise: 4 to 6 of 20.
        lab.observe(|frame| {
            4.0 + ((frame.wrapping_mul(2_654_435_761) >> 7).wrapping_add(round) % 3) as f32
        });
    }
    assert!(
        lab.moved() <= 32 * BASE_PAGE,
        "{} bytes for nothing",
        lab.moved()
    );
}

#[test]
fn hot_set_when_it_shifts_is_followed() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    for hot in [1500..1756, 1000..1256] {
        for _ in 0..75 {
            lab.observe(|frame| if hot.contains(&frame) { 20.0 } else { 0.0 });
        }
        let on_fast = hot
            .clone()
            .filter(|&f| lab.kernel.frames[f as usize] == Some(FAST))
            .count();
        assert_eq!(on_fast, 256);
    }
}

#[test]
fn huge_pages_when_hot_move_whole() {
    let mut kernel = gups(8 * 512, 2 * 512);
    kernel.huge = (0..8).map(|i| i * 512).collect();
    let mut lab = Lab::new(
        kernel,
        EngineSettings {
            headroom_bytes: 0,
            ..settings()
        },
    );
    for _ in 0..50 {
        lab.observe(|frame| if frame / 512 == 6 { 20.0 } else { 0.0 });
    }
    assert!(
        lab.kernel.frames[6 * 512..7 * 512]
            .iter()
            .all(|&node| node == Some(FAST))
    );
    assert_eq!(lab.moved(), 2 * HUGE_PAGE);
    assert_eq!(
        lab.engine.snapshot().page_sizes,
        BTreeMap::from([(HUGE_PAGE, 8 * HUGE_PAGE)])
    );
}

#[test]
fn huge_page_when_it_is_split_or_collapsed_keeps_its_heat() {
    let mut kernel = gups(8 * 512, 2 * 512);
    kernel.huge = (0..8).map(|i| i * 512).collect();
    let mut lab = Lab::new(
        kernel,
        EngineSettings {
            headroom_bytes: 0,
            ..settings()
        },
    );
    for _ in 0..3 {
        lab.observe(|_| 5.0);
    }
    for huge in [vec![], (0..8).map(|i| i * 512).collect::<Vec<u32>>()] {
        lab.kernel.huge = huge;
        for _ in 0..20 {
            lab.now = lab.now + Duration::from_secs(1);
            lab.step(Event::Tick);
        }
        let snapshot = lab.engine.snapshot();
        let size = if lab.kernel.huge.is_empty() {
            BASE_PAGE
        } else {
            HUGE_PAGE
        };
        assert_eq!(snapshot.page_sizes, BTreeMap::from([(size, 8 * HUGE_PAGE)]));
        assert_eq!(snapshot.tiers[0].bytes, 2 * HUGE_PAGE);
    }
}

#[test]
fn pages_when_they_fail_are_counted_and_the_others_take_their_place() {
    let mut kernel = gups(2048, 512);
    // A quarter of the hot pages can't be moved, each quarter of those for another reason.
    let reasons = [
        Outcome::Busy,
        Outcome::Pinned,
        Outcome::Shared,
        Outcome::Absent,
    ];
    for (i, reason) in (1536..1600_u64).zip(reasons.iter().cycle()) {
        kernel.fails.insert(BASE + i * BASE_PAGE, *reason);
    }
    let mut lab = Lab::new(kernel, settings());
    for _ in 0..75 {
        lab.observe(|frame| {
            if (1536..1792).contains(&frame) {
                20.0
            } else {
                0.0
            }
        });
    }
    let snapshot = lab.engine.snapshot();
    let on_fast = (1600..1792)
        .filter(|&f| lab.kernel.frames[f] == Some(FAST))
        .count();
    assert_eq!(on_fast, 192);
    assert_eq!(snapshot.failed[&Outcome::Shared], 16, "never tried again");
    assert_eq!(
        snapshot.failed[&Outcome::Pinned],
        16,
        "not tried again within a minute"
    );
    assert!(snapshot.failed[&Outcome::Busy] > 16, "tried again");
}

#[test]
fn limit_when_lowered_is_obeyed_at_once_and_kept() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    for _ in 0..10 {
        lab.observe(|frame| if frame < 256 { 20.0 } else { 0.0 });
    }
    lab.step(Event::Limit(Some(128 * BASE_PAGE)));
    for _ in 0..10 {
        lab.observe(|frame| if frame < 256 { 20.0 } else { 0.0 });
    }
    let snapshot = lab.engine.snapshot();
    assert_eq!(snapshot.tiers[0].bytes, 128 * BASE_PAGE);
    let hot_on_fast = (0..256)
        .filter(|&f| lab.kernel.frames[f] == Some(FAST))
        .count();
    assert_eq!(hot_on_fast, 128, "what stays is the hottest");
}

#[test]
fn engine_when_it_may_not_move_moves_nothing() {
    let conditions: [(Event, VmState); 5] = [
        (Event::Pause(true), VmState::Paused),
        (Event::Guest { stopped: true }, VmState::GuestStopped),
        (Event::Monitor { attached: false }, VmState::Detached),
        (Event::Source { up: false }, VmState::Blind),
        (Event::Tick, VmState::Running),
    ];
    for (event, state) in conditions {
        let mut lab = Lab::new(gups(2048, 512), settings());
        lab.step(event);
        for _ in 0..20 {
            lab.observe(|frame| if frame > 1792 { 20.0 } else { 0.0 });
        }
        assert_eq!(lab.engine.state(), state);
        assert_eq!(lab.moved() > 0, state == VmState::Running, "{state:?}");
        assert!(lab.engine.snapshot().samples.is_valid());
    }
}

#[test]
fn dry_run_when_asked_plans_and_moves_nothing() {
    let mut lab = Lab::new(
        gups(2048, 512),
        EngineSettings {
            dry_run: true,
            ..settings()
        },
    );
    for _ in 0..20 {
        lab.observe(|frame| if frame >= 1792 { 20.0 } else { 0.0 });
    }
    let planned = lab.engine.snapshot().dry_run.unwrap();
    assert_eq!(lab.moved(), 0);
    assert_eq!(planned.promote_bytes, 256 * BASE_PAGE);
    assert!(planned.demote_bytes >= planned.promote_bytes);
}

#[test]
fn source_when_it_watches_little_does_not_make_the_unsampled_cold() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    for _ in 0..20 {
        lab.now = lab.now + Duration::from_millis(400);
        let hot = AccessSample {
            address: SampleAddress::Guest(Gpa(GPA_BASE + 2000 * BASE_PAGE)),
            len: 1,
            weight: 20.0,
            kind: AccessKind::Load,
        };
        // One access of a hundred is seen: nothing is known of pages without a sample.
        let outside = AccessSample {
            address: SampleAddress::Guest(Gpa(0x10)),
            ..hot
        };
        let batch = SampleBatch {
            end: lab.now,
            span: Duration::from_millis(400),
            tests: 20,
            map_generation: 1,
            samples: vec![hot, outside],
            account: SampleAccount::default(),
        };
        lab.step(Event::Samples(batch));
    }
    let account = lab.engine.snapshot().samples;
    assert_eq!((account.arrived, account.accepted), (40, 20));
    assert_eq!(lab.moved(), 0);
}

#[test]
fn samples_when_made_under_an_older_map_are_dropped_and_counted() {
    let mut lab = Lab::new(gups(1024, 512), settings());
    let mut batch = SampleBatch {
        end: lab.now,
        span: Duration::from_millis(400),
        tests: 20,
        map_generation: 0,
        samples: vec![],
        account: SampleAccount::default(),
    };
    batch.samples.push(AccessSample {
        address: SampleAddress::Host(Hva(BASE)),
        len: 4096,
        weight: 1.0,
        kind: AccessKind::Any,
    });
    lab.step(Event::Samples(batch));
    let account = lab.engine.snapshot().samples;
    assert_eq!((account.arrived, account.accepted), (1, 0));
    assert!(account.is_valid());
}

#[test]
fn map_when_it_grows_keeps_what_was_known() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    for _ in 0..20 {
        lab.observe(|frame| if frame >= 1792 { 20.0 } else { 0.0 });
    }
    let moved = lab.moved();
    lab.kernel.frames.resize(4096, None);
    lab.engine.set_map(lab.now, map(1, 4096)).unwrap();
    for _ in 0..20 {
        lab.observe(|frame| {
            if (1792..2048).contains(&frame) {
                20.0
            } else {
                0.0
            }
        });
    }
    assert_eq!(lab.moved(), moved, "the hot set stays where it is");
    let snapshot = lab.engine.snapshot();
    assert_eq!(
        snapshot.tiers[0].bytes + snapshot.tiers[1].bytes,
        2048 * BASE_PAGE
    );
    assert_eq!(snapshot.absent_bytes, 2048 * BASE_PAGE);
}

/// What is to be done after an event, without doing it.
fn moves_of(lab: &mut Lab, event: Event) -> Vec<MoveBatch> {
    let moves = |action| match action {
        Action::Move(batch) => Some(batch),
        Action::Scan(_) | Action::RefreshMap => None,
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
        lab.step(Event::Pause(true));
        assert_eq!(lab.engine.snapshot().in_flight_pages, 0);
    }
}

#[test]
fn exchange_when_tiering_is_paused_in_the_middle_is_not_completed() {
    for (event, least_bytes) in [
        (Event::Pause(true), 0),
        (Event::Guest { stopped: true }, 0),
        (Event::Monitor { attached: false }, 0),
        (Event::Limit(Some(0)), 0),
        (Event::Tick, BASE_PAGE),
    ] {
        let mut lab = ready(settings());
        let mut moves = until_it_moves(&mut lab);
        let demotion = moves.remove(0);
        assert_eq!(demotion.direction, Direction::Demote);
        moves_of(&mut lab, event);
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
                Action::RefreshMap => continue,
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
        lab.step(Event::Limit(Some(0)));
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
    lab.step(Event::Limit(Some(412 * BASE_PAGE)));
    for _ in 0..20 {
        lab.observe(|_| 5.0);
    }
    let after = lab.engine.snapshot().dry_run.unwrap().demote_bytes;
    assert_eq!(after - before, 100 * BASE_PAGE);
}
