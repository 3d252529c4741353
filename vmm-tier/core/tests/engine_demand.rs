//! How much DRAM a guest asks for, as the engine measures it.

use std::time::Duration;

use tier_core::{
    addr::BASE_PAGE,
    arbiter::Rules,
    engine::{DemandBasis, Event, HostGrant, Order, VmState},
    random::Random,
    sample::SourceKind,
    settings::EngineSettings,
};

use crate::{
    accesses::{SPAN, accesses},
    common::{FAST as FAST_NODE, settings},
    lab::{Lab, gups},
};

const FRAMES: u32 = 8192;
const FAST: u32 = 512;
const HOT: std::ops::Range<u32> = 1024..3072;

fn lab() -> Lab {
    let settings = EngineSettings {
        measures_demand: true,
        ..settings()
    };
    Lab::new(gups(FRAMES, FAST), settings)
}

/// Pages that count as used, by the arbiter's rules.
fn used(lab: &Lab) -> f64 {
    let demand = lab.engine.demand(lab.now);
    assert_eq!(demand.basis, DemandBasis::Measured);
    let page = BASE_PAGE as f64;
    let idle = Rules::default().idle_hits_per_page_s / page;
    demand.curve.used_bytes(idle) / page
}

/// Looks for so long, at a guest that uses the hot pages at this many of 20 looks.
fn watch(lab: &mut Lab, seconds: u32, hot: f32) {
    for _ in 0..seconds * 5 / 2 {
        lab.observe(|frame| if HOT.contains(&frame) { hot } else { 0.0 });
    }
}

#[test]
fn demand_when_pages_are_hot_is_theirs() {
    let mut lab = lab();
    watch(&mut lab, 30, 10.0);
    let pages = used(&lab);
    assert!((2000.0..2100.0).contains(&pages), "{pages}");
    // Where no page is used at more than 10 of 20 looks, the guest is taken to run at 10 of them. Such a
    // page has −ln(1 − 10/11) = 2.4 accesses a look, at 25 looks a second.
    let total = lab.engine.demand(lab.now).curve.total_hits();
    let expected = 2048.0 * 2.398 * 25.0;
    assert!((total / expected - 1.0).abs() < 0.05, "{total} {expected}");
}

#[test]
fn demand_when_the_guest_falls_idle_falls_within_ten_seconds() {
    let mut lab = lab();
    watch(&mut lab, 60, 19.0);
    assert!(used(&lab) > 2000.0);
    watch(&mut lab, 10, 0.0);
    let pages = used(&lab);
    assert!(pages < 20.0, "{pages}");
}

#[test]
fn demand_when_the_guest_rests_is_known_by_seldom_looks() {
    let mut lab = lab();
    watch(&mut lab, 30, 10.0);
    lab.step(Event::Rest(true));
    for _ in 0..8 {
        // A look each second; the guest has just fallen idle.
        lab.now = lab.now + Duration::from_millis(600);
        lab.observe(|_| 0.0);
    }
    let pages = used(&lab);
    assert!(pages < 20.0, "{pages}");
    // It wakes.
    lab.step(Event::Rest(false));
    watch(&mut lab, 3, 10.0);
    let pages = used(&lab);
    assert!(pages > 2000.0, "{pages}");
}

#[test]
fn memory_when_a_scan_comes_to_it_once_a_minute_is_demand() {
    let mut lab = lab();
    // Of 4096 pages, another 1/125 at each report of 400 ms: each once in 50 s.
    for round in 1..=300 {
        lab.observe(|frame| {
            let turn = frame.wrapping_mul(2_654_435_761) % 125;
            if frame < 4096 && turn == round % 125 {
                1.0
            } else {
                0.0
            }
        });
    }
    let pages = used(&lab);
    assert!((3600.0..4200.0).contains(&pages), "{pages}");
    // The scan ends.
    watch(&mut lab, 10, 0.0);
    let pages = used(&lab);
    assert!(pages < 20.0, "{pages}");
}

#[test]
fn memory_when_each_page_is_used_twice_a_minute_is_demand_and_other_memory_is_not() {
    let mut lab = lab();
    let mut random = Random::new(11);
    let mut least = f64::MAX;
    let mut most = 0.0_f64;
    for round in 0..400 {
        let used_now: Vec<bool> = (0..4096).map(|_| random.below(75) == 0).collect();
        lab.observe(|frame| match frame {
            ..64 => 15.0,
            _ => f32::from(u8::from(*used_now.get(frame as usize).unwrap_or(&false))),
        });
        if round > 200 {
            least = least.min(used(&lab));
            most = most.max(used(&lab));
        }
    }
    assert!((3500.0..4200.0).contains(&least), "{least}");
    assert!((3500.0..4200.0).contains(&most), "{most}");
}

#[test]
fn demand_when_accesses_are_counted_is_in_accesses_a_second() {
    let mut lab = lab();
    lab.step(Event::Source(Some(SourceKind::Ibs)));
    let mut random = Random::new(3);
    for _ in 0..50 {
        lab.now = lab.now + SPAN;
        // 4000 records of a period of 1000 in 400 ms: ten million accesses a second.
        let frames: Vec<u64> = (0..4000)
            .map(|_| u64::from(HOT.start) + random.below(2048))
            .collect();
        lab.step(accesses(SourceKind::Ibs, lab.now, frames));
    }
    let total = lab.engine.demand(lab.now).curve.total_hits();
    assert!((total / 1e7 - 1.0).abs() < 0.05, "{total}");
    let pages = used(&lab);
    assert!((2000.0..2200.0).contains(&pages), "{pages}");
    // One record in a thousand falls on other memory, which would be two accesses a second of each page.
    for _ in 0..50 {
        lab.now = lab.now + SPAN;
        let frames = (0..4004).map(|record| match record {
            ..4000 => u64::from(HOT.start) + random.below(2048),
            _ => u64::from(HOT.end) + random.below(4096),
        });
        lab.step(accesses(SourceKind::Ibs, lab.now, frames));
    }
    let pages = used(&lab);
    assert!((2000.0..2200.0).contains(&pages), "{pages}");
    // Such a source tells nothing of an idle guest.
    for _ in 0..20 {
        lab.now = lab.now + SPAN;
        lab.step(Event::Tick);
    }
    assert_eq!(used(&lab), 0.0);
}

#[test]
fn demand_when_nothing_is_moved_is_what_the_guest_holds() {
    let mut lab = lab();
    watch(&mut lab, 30, 10.0);
    lab.order(Order::Pause(true)).unwrap();
    assert_eq!(lab.engine.state(), VmState::Paused);
    let demand = lab.engine.demand(lab.now);
    assert_eq!(demand.basis, DemandBasis::Held);
    let held = lab.engine.snapshot().tiers[0].bytes as f64;
    assert!(held > 0.0);
    let idle = Rules::default().idle_hits_per_page_s / BASE_PAGE as f64;
    assert_eq!(demand.curve.used_bytes(idle), held);
    lab.order(Order::Pause(false)).unwrap();
    assert_eq!(lab.engine.demand(lab.now).basis, DemandBasis::Measured);
    lab.step(Event::Source(None));
    assert_eq!(lab.engine.demand(lab.now).basis, DemandBasis::Held);
}

/// Fast pages now.
fn held(lab: &Lab) -> u64 {
    lab.engine.snapshot().tiers[0].bytes / BASE_PAGE
}

#[test]
fn share_when_it_falls_and_rises_is_filled_with_the_hottest_pages() {
    let mut lab = Lab::new(gups(FRAMES, 4096), settings());
    let weight = |frame: u32| match frame {
        1024..1536 => 18.0,
        1536..3072 => 10.0,
        _ => 1.0,
    };
    let share = |pages: u64| {
        Order::Grant(HostGrant {
            share_bytes: Some(pages * BASE_PAGE),
            rate_bytes_per_s: None,
        })
    };
    let watch = |lab: &mut Lab| (0..50).for_each(|_| lab.observe(weight));
    watch(&mut lab);
    for (pages, hot, warm) in [(600, 512, 80), (1600, 512, 1000), (600, 512, 80)] {
        lab.order(share(pages)).unwrap();
        watch(&mut lab);
        // Filled to within 2 %.
        assert!((pages - pages / 50..=pages).contains(&held(&lab)));
        let count = |range: std::ops::Range<u32>| {
            let frames = &lab.kernel.frames[range.start as usize..range.end as usize];
            frames
                .iter()
                .filter(|&&node| node == Some(FAST_NODE))
                .count()
        };
        assert!(count(1024..1536) >= hot * 97 / 100, "{}", count(1024..1536));
        assert!(
            count(1536..3072) >= warm * 95 / 100,
            "{}",
            count(1536..3072)
        );
    }
    // A share that stays moves nothing.
    let moved = lab.moved();
    watch(&mut lab);
    assert!(lab.moved() - moved <= 40 * BASE_PAGE);
}

#[test]
fn drain_when_the_share_is_smaller_is_done_below_its_own_target() {
    let mut lab = Lab::new(gups(FRAMES, 4096), settings());
    watch(&mut lab, 10, 10.0);
    let pages = |pages: u64| pages * BASE_PAGE;
    lab.order(Order::Grant(HostGrant {
        share_bytes: Some(pages(1000)),
        rate_bytes_per_s: Some(64 << 20),
    }))
    .unwrap();
    lab.order(Order::Drain(pages(2000))).unwrap();
    watch(&mut lab, 10, 10.0);
    assert!(lab.engine.drain_progress().unwrap().done);
    assert!(held(&lab) <= 1000);
    // Without a share the operator's limit holds, which is the drain's.
    lab.order(Order::Grant(HostGrant::default())).unwrap();
    watch(&mut lab, 20, 10.0);
    assert!((1900..=2000).contains(&held(&lab)), "{}", held(&lab));
    assert!(lab.engine.drain_progress().unwrap().done);
}
