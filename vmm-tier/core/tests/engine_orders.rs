//! What an operator orders: another policy, a drain; and what the engine tells of it.

use std::time::Duration;

use tier_core::{
    addr::{BASE_PAGE, Gpa},
    engine::{DrainStall, Event, Notice, Order, Pin, PolicyChange, VmEngine, VmState, WhenFull},
    moves::{Direction, Outcome},
    settings::{EngineSettings, Tier},
    time::Time,
};

use crate::{
    common::{self, BASE, GPA_BASE, settings},
    lab::{Lab, gups},
};

const HOT: std::ops::Range<u32> = 1536..1792;

fn observe(lab: &mut Lab, times: u32) {
    for _ in 0..times {
        lab.observe(|frame| if HOT.contains(&frame) { 20.0 } else { 1.0 });
    }
}

#[test]
fn counts_when_the_half_life_changes_stay_and_the_rate_with_them() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    observe(&mut lab, 30);
    let ask = |lab: &Lab| {
        let page = Gpa(GPA_BASE + 1600 * BASE_PAGE);
        let told = lab.engine.explain(lab.now, page).unwrap();
        (told.samples, told.accesses_per_s)
    };
    let before = ask(&lab);
    for seconds in [1, 3600, 10] {
        let change = PolicyChange {
            half_life: Some(Duration::from_secs(seconds)),
            ..PolicyChange::default()
        };
        lab.order(Order::Policy(change)).unwrap();
        let after = ask(&lab);
        assert!(
            (after.0 / before.0 - 1.0).abs() < 1e-6,
            "{before:?} {after:?}"
        );
        assert!(
            (after.1 / before.1 - 1.0).abs() < 1e-6,
            "{before:?} {after:?}"
        );
        assert_eq!(lab.engine.policy().half_life_s, seconds as f64);
    }
    // The tallies age by the new half-life as the pages do: the estimated rate does not drift.
    let change = PolicyChange {
        half_life: Some(Duration::from_secs(2)),
        ..PolicyChange::default()
    };
    lab.order(Order::Policy(change)).unwrap();
    observe(&mut lab, 50);
    let after = ask(&lab);
    // 20 hits in 20 tests of 400 ms; a steady count is 20 / 0.4 · 2 s / ln 2 = 144, sampled in steps.
    assert!((130.0..165.0).contains(&after.0), "{after:?}");
}

#[test]
fn policy_when_out_of_bounds_is_refused_with_what_is_allowed() {
    let mut lab = Lab::new(gups(64, 32), settings());
    let before = lab.engine.policy();
    let hour = Some(Duration::from_secs(3600));
    let year = Some(Duration::from_secs(365 * 24 * 3600));
    let cases = [
        (
            PolicyChange {
                half_life: Some(Duration::ZERO),
                horizon: hour,
                ..Default::default()
            },
            "half-life of 0 s is out of bounds: 0.001 to 604800 s are allowed",
        ),
        (
            PolicyChange {
                half_life: hour,
                horizon: year,
                ..Default::default()
            },
            "horizon of 31536000 s is out of bounds: 0.1 to 604800 s are allowed",
        ),
        (
            PolicyChange {
                horizon: hour,
                rate_bytes_per_s: Some(0),
                ..Default::default()
            },
            "rate of 0 bytes/s is out of bounds: 4096 to 1099511627776 are allowed; \
             pause to move nothing",
        ),
    ];
    for (change, says) in cases {
        let error = lab.order(Order::Policy(change)).unwrap_err();
        assert_eq!(error.to_string(), says);
        assert_eq!(lab.engine.policy(), before, "all or nothing");
    }
}

#[test]
fn rate_when_lowered_binds_from_then_on() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    observe(&mut lab, 2);
    let change = PolicyChange {
        rate_bytes_per_s: Some(20 * BASE_PAGE),
        ..PolicyChange::default()
    };
    lab.order(Order::Policy(change)).unwrap();
    let before = (lab.moved(), lab.now);
    observe(&mut lab, 100);
    let seconds = lab.now.since(before.1).as_secs();
    // What had gathered is one batch of 2 MiB at most, and one batch may be taken on account.
    let most = 2 * (2 << 20) + seconds * 20 * BASE_PAGE;
    assert!(lab.moved() > before.0);
    assert!(
        lab.moved() - before.0 <= most,
        "{} of {most}",
        lab.moved() - before.0
    );
    assert_eq!(
        lab.engine.snapshot().policy.rate_bytes_per_s,
        20 * BASE_PAGE
    );
}

#[test]
fn moves_that_wait_for_their_rate_when_paused_wake_nobody() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    let slowly = PolicyChange {
        rate_bytes_per_s: Some(4096),
        ..PolicyChange::default()
    };
    lab.order(Order::Policy(slowly)).unwrap();
    observe(&mut lab, 60);
    let due = lab.engine.wakes_at().unwrap();
    assert!(due > lab.now);
    let cases: [fn(&mut Lab, bool); 3] = [
        |lab, stops| {
            lab.order(Order::Pause(stops)).unwrap();
        },
        |lab, stopped| lab.step(Event::Guest { stopped }),
        |lab, lost| lab.step(Event::Monitor { attached: !lost }),
    ];
    for pause in cases {
        pause(&mut lab, true);
        // Due or not: whoever waited until then would wake again and again.
        assert_eq!(lab.engine.wakes_at(), None);
        lab.order(Order::Policy(slowly)).unwrap();
        assert_eq!(lab.engine.wakes_at(), None);
        pause(&mut lab, false);
        assert!(lab.engine.wakes_at().is_some_and(|at| at > lab.now));
    }
}

fn drains(lab: &mut Lab) -> Vec<tier_core::engine::DrainProgress> {
    let drain = |notice| match notice {
        Notice::Drain(progress) => Some(progress),
        _ => None,
    };
    lab.engine
        .take_notices()
        .into_iter()
        .filter_map(drain)
        .collect()
}

#[test]
fn drain_when_asked_for_goes_down_tells_how_far_and_stays() {
    let small_steps = EngineSettings {
        batch_bytes: 16 * BASE_PAGE,
        ..settings()
    };
    let mut lab = Lab::new(gups(2048, 512), small_steps);
    observe(&mut lab, 40);
    drains(&mut lab);
    // 64 pages a second.
    let slowly = PolicyChange {
        rate_bytes_per_s: Some(64 * BASE_PAGE),
        ..PolicyChange::default()
    };
    lab.order(Order::Policy(slowly)).unwrap();
    let start_bytes = lab.engine.snapshot().tiers[0].bytes;
    lab.order(Order::Drain(100 * BASE_PAGE)).unwrap();
    assert_eq!(
        lab.engine.drain_progress().unwrap().start_bytes,
        start_bytes
    );
    let mut told = Vec::new();
    for _ in 0..60 {
        observe(&mut lab, 1);
        told.extend(drains(&mut lab));
    }
    assert!(
        told.len() > 1 && told.len() <= 101,
        "{} notices",
        told.len()
    );
    assert!(told.windows(2).all(|w| w[0].fast_bytes >= w[1].fast_bytes));
    let last = told.last().unwrap();
    assert!(last.done && !last.stuck && last.fast_bytes <= 100 * BASE_PAGE);
    assert_eq!(told.iter().filter(|progress| progress.done).count(), 1);
    let hot = &lab.kernel.frames[HOT.start as usize..HOT.end as usize];
    let hot_left = hot
        .iter()
        .filter(|&&node| node == Some(common::FAST))
        .count();
    assert_eq!(hot_left, 100, "what stays is the hottest");
    assert_eq!(lab.engine.snapshot().drain, lab.engine.drain_progress());

    lab.order(Order::Limit(None)).unwrap();
    assert_eq!(lab.engine.drain_progress(), None, "another limit ends it");
}

#[test]
fn drain_when_not_all_pages_were_looked_up_is_not_done_before_they_are() {
    let settings = EngineSettings {
        dry_run: true,
        ..settings()
    };
    // No look-up is carried out: the engine only asks for one.
    let mut engine = VmEngine::new(settings.clone(), common::tiers(), Time(0));
    engine
        .order(Time(0), Order::Map(common::map(1, 2048)))
        .unwrap();
    engine
        .order(Time(0), Order::Drain(100 * BASE_PAGE))
        .unwrap();
    let progress = engine.drain_progress().unwrap();
    assert!(!progress.done && !progress.stuck, "{progress:?}");
    assert_eq!(engine.take_notices(), []);

    // The same order, and then the first look at the guest.
    let kernel = gups(2048, 512);
    let mut lab = Lab {
        kernel,
        engine,
        now: Time(0),
    };
    let actions = lab.engine.step(Time(0), Event::Tick);
    assert_eq!(actions, [], "the look-up is under way already");
    lab.order(Order::Map(common::map(2, 2047))).unwrap();
    let progress = lab.engine.drain_progress().unwrap();
    assert!(!progress.done, "{progress:?}");
    assert_eq!(progress.start_bytes, 512 * BASE_PAGE);
    lab.order(Order::Drain(512 * BASE_PAGE)).unwrap();
    let told = drains(&mut lab);
    assert_eq!(told.iter().filter(|progress| progress.done).count(), 1);
}

#[test]
fn drain_when_the_rest_is_pinned_says_that_it_is_stuck() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    observe(&mut lab, 10);
    let pin = Pin {
        start: Gpa(GPA_BASE),
        bytes: 50 * BASE_PAGE,
        tier: Tier::Fast,
        when_full: WhenFull::Demote,
    };
    lab.order(Order::Pin(pin)).unwrap();
    observe(&mut lab, 10);
    drains(&mut lab);
    lab.order(Order::Drain(0)).unwrap();
    observe(&mut lab, 40);
    let stuck = lab.engine.drain_progress().unwrap();
    assert_eq!(
        (stuck.fast_bytes, stuck.pinned_bytes),
        (50 * BASE_PAGE, 50 * BASE_PAGE)
    );
    assert!(stuck.stuck && !stuck.done);
    assert_eq!(stuck.stuck_because, Some(DrainStall::Pinned));
    assert_eq!(drains(&mut lab).iter().filter(|told| told.stuck).count(), 1);
    let Pin { start, bytes, .. } = pin;
    lab.order(Order::Unpin { start, bytes }).unwrap();
    observe(&mut lab, 40);
    assert!(lab.engine.drain_progress().unwrap().done);
}

#[test]
fn drain_when_the_slow_tier_is_full_is_stuck_until_it_has_room() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    observe(&mut lab, 10);
    lab.kernel.slow_free = 0;
    lab.step(Event::Tick);
    lab.order(Order::Drain(0)).unwrap();
    observe(&mut lab, 10);
    let stuck = lab.engine.drain_progress().unwrap();
    assert_eq!(stuck.stuck_because, Some(DrainStall::NoSlowRoom));
    lab.kernel.slow_free = 1 << 30;
    observe(&mut lab, 40);
    assert!(lab.engine.drain_progress().unwrap().done);
    let told = drains(&mut lab);
    assert!(told.iter().any(|progress| progress.stuck));
    assert!(told.last().unwrap().done);
}

#[test]
fn notices_when_states_change_and_moves_fail_tell_of_them() {
    let mut kernel = gups(2048, 512);
    for frame in HOT {
        kernel
            .fails
            .insert(BASE + u64::from(frame) * BASE_PAGE, Outcome::Shared);
    }
    let mut lab = Lab::new(kernel, settings());
    observe(&mut lab, 30);
    lab.order(Order::Pause(true)).unwrap();
    let told = lab.engine.take_notices();
    let states: Vec<_> = told
        .iter()
        .filter_map(|notice| match notice {
            Notice::State { from, to } => Some((*from, *to)),
            _ => None,
        })
        .collect();
    // Not blind at first: the source is up before the guest was looked at.
    assert_eq!(
        states,
        [
            (VmState::Starting, VmState::Running),
            (VmState::Running, VmState::Paused)
        ]
    );
    let failures: Vec<_> = told
        .iter()
        .filter(|notice| matches!(notice, Notice::MoveFailed { .. }))
        .collect();
    assert_eq!(failures.len(), 64, "the newest are kept");
    let all = lab.engine.snapshot().failed[&Outcome::Shared];
    assert_eq!(
        lab.engine.notices_dropped(),
        all - 64,
        "the others are counted"
    );
    let Notice::MoveFailed {
        gpa,
        hva,
        bytes,
        direction,
        outcome,
    } = *failures[0]
    else {
        unreachable!()
    };
    assert_eq!(gpa.unwrap().0 - GPA_BASE, hva.0 - BASE);
    assert_eq!(
        (bytes, direction, outcome),
        (BASE_PAGE, Direction::Promote, Outcome::Shared)
    );
    assert!(lab.engine.take_notices().is_empty(), "each is told once");
}
