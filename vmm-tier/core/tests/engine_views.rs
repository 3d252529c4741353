//! What the engine shows: one page explained, the guest's heat drawn.

use std::{sync::Arc, time::Duration};

use tier_core::{
    addr::{BASE_PAGE, Gpa, HUGE_PAGE, Hva, NodeId, NodeSet},
    constraints::ClosedNode,
    dual_heap::Placement,
    engine::{
        Action, Event, ExplainError, Explanation, HeatmapError, MAX_CELLS, Order, PageCondition,
        Pin, Strain, VmEngine, Wait, WhenFull,
    },
    map::{BlockIndex, GuestMemoryMap, MapRange, RamBlock},
    moves::{Direction, Outcome},
    sample::SourceKind,
    settings::{EngineSettings, Tier},
    time::Time,
};

use crate::{
    common::{BASE, FAST, GPA_BASE, Kernel, SLOW, map, settings, tiers},
    lab::{Lab, gups},
};

fn gpa(frame: u32) -> Gpa {
    Gpa(GPA_BASE + u64::from(frame) * BASE_PAGE)
}

fn explain(lab: &Lab, frame: u32) -> Explanation {
    lab.engine.explain(lab.now, gpa(frame)).unwrap()
}

fn reason(lab: &Lab, frame: u32) -> String {
    explain(lab, frame).would_move_if
}

fn observe(lab: &mut Lab, times: u32) {
    for _ in 0..times {
        lab.observe(|frame| if frame >= 1792 { 20.0 } else { 1.0 });
    }
}

#[test]
fn waits_when_an_agent_starts_are_told_one_after_the_other() {
    let kernel = gups(2048, 512);
    let mut engine = VmEngine::new(settings(), tiers(), Time(0));
    let mut told = vec![engine.waits_for(Time(0))];
    let reply = engine.order(Time(0), Order::Map(map(1, 2048))).unwrap();
    told.push(engine.waits_for(Time(0)));
    let mut todo = reply.actions;
    while let Some(action) = todo.pop() {
        if let Action::Scan(request) = action {
            todo.extend(engine.step(Time(0), Event::Scanned(kernel.scan(request))));
        }
    }
    told.push(engine.waits_for(Time(0)));
    engine.step(Time(0), Event::Source(Some(SourceKind::Damon)));
    told.push(engine.waits_for(Time(0)));
    let expected = [Wait::LookUp, Wait::LookUp, Wait::Source, Wait::WarmUp];
    assert_eq!(told, expected.map(Some));
}

#[test]
fn waits_when_nothing_moves_name_what_is_missing() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    let waits = |lab: &Lab| lab.engine.waits_for(lab.now);
    let closed = |node| ClosedNode {
        node,
        by: vec![],
        reason: "closed".to_owned(),
    };
    observe(&mut lab, 1);
    assert_eq!(waits(&lab), Some(Wait::WarmUp));
    lab.step(Event::Closed(vec![closed(FAST)]));
    observe(&mut lab, 10);
    assert_eq!(waits(&lab), Some(Wait::Cpuset));
    lab.step(Event::Closed(vec![closed(SLOW)]));
    assert_eq!(waits(&lab), Some(Wait::Room));
    lab.step(Event::Closed(vec![]));
    observe(&mut lab, 40);
    assert_eq!(waits(&lab), Some(Wait::Gain), "all hot pages are fast");
    for (event, back, wait) in [
        (
            Event::Guest { stopped: true },
            Event::Guest { stopped: false },
            Wait::Guest,
        ),
        (
            Event::Monitor { attached: false },
            Event::Monitor { attached: true },
            Wait::Monitor,
        ),
        (
            Event::Source(None),
            Event::Source(Some(SourceKind::Damon)),
            Wait::Source,
        ),
    ] {
        lab.step(event);
        assert_eq!(waits(&lab), Some(wait));
        lab.step(back);
    }
    lab.order(Order::Pause(true)).unwrap();
    assert_eq!(waits(&lab), Some(Wait::Pause));
}

#[test]
fn brake_when_a_share_shrinks_and_grows_again_is_not_pulled() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    observe(&mut lab, 10);
    for _ in 0..3 {
        for limit in [64 * BASE_PAGE, 512 * BASE_PAGE] {
            let before = lab.moved();
            lab.order(Order::Limit(Some(limit))).unwrap();
            // 8 s: longer than a page rests, and less than half of the horizon.
            observe(&mut lab, 20);
            assert!(lab.moved() > before);
        }
    }
    let snapshot = lab.engine.snapshot();
    assert_eq!(snapshot.brake, None);
    // Some exchanges for gain come back, as in any guest whose pages are nearly alike.
    assert!(
        snapshot.returned_bytes < lab.moved() / 16,
        "{}",
        snapshot.returned_bytes
    );
}

#[test]
fn strain_when_the_guest_comes_to_rest_slows_nothing_any_more() {
    let slow = EngineSettings {
        rate_bytes_per_s: 16 << 20,
        ..settings()
    };
    let mut lab = Lab::new(gups(2048, 512), slow);
    observe(&mut lab, 10);
    assert!(lab.moved() > 0);
    lab.step(Event::Strain(Strain {
        memory_pressure: Some(0.9),
        guest_cpus: None,
    }));
    assert!(lab.engine.snapshot().brake.is_some());
    // From here on nobody tells how the host does.
    lab.step(Event::Rest(true));
    assert_eq!(lab.engine.snapshot().brake, None);
}

#[test]
fn guest_pace_when_the_guest_was_stopped_meanwhile_is_no_strain() {
    let is_slowed = |is_stopped: bool| {
        let slow = EngineSettings {
            rate_bytes_per_s: 16 << 20,
            ..settings()
        };
        let mut lab = Lab::new(gups(2048, 512), slow);
        let strain = |guest_cpus| {
            Event::Strain(Strain {
                memory_pressure: None,
                guest_cpus: Some(guest_cpus),
            })
        };
        lab.now = lab.now + Duration::from_secs(1);
        lab.step(strain(4.0));
        observe(&mut lab, 10);
        assert!(lab.moved() > 0);
        if is_stopped {
            lab.step(Event::Guest { stopped: true });
            lab.step(Event::Guest { stopped: false });
        } else {
            // As an agent says that finds a guest that runs.
            lab.step(Event::Guest { stopped: false });
        }
        lab.step(strain(0.4));
        lab.engine.snapshot().brake.is_some()
    };
    assert!(is_slowed(false));
    assert!(!is_slowed(true));
}

#[test]
fn waits_when_moves_fail_or_are_slow_say_so() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    let all = (0..2048).map(|frame| (BASE + frame * BASE_PAGE, Outcome::Busy));
    lab.kernel.fails = all.collect();
    let mut told = Vec::new();
    for _ in 0..60 {
        observe(&mut lab, 1);
        told.extend(lab.engine.waits_for(lab.now));
    }
    assert!(told.contains(&Wait::Rest), "{told:?}");

    let slow = EngineSettings {
        rate_bytes_per_s: 16 * BASE_PAGE,
        batch_bytes: 16 * BASE_PAGE,
        ..settings()
    };
    let mut lab = Lab::new(gups(2048, 512), slow);
    let mut told = Vec::new();
    for _ in 0..20 {
        observe(&mut lab, 1);
        told.extend(lab.engine.waits_for(lab.now));
    }
    assert!(told.contains(&Wait::Rate), "{told:?}");
}

#[test]
fn waits_when_told_are_whole_sentences() {
    for wait in Wait::ALL {
        let sentence = wait.sentence();
        assert!(
            sentence.ends_with('.') && !sentence.contains(['\n', '\t']),
            "{wait}"
        );
        assert!(!sentence.contains("  "), "{wait}: {sentence}");
    }
}

#[test]
fn page_when_it_was_moved_tells_its_address_heat_rank_and_past() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    observe(&mut lab, 20);
    let hot = lab.engine.explain(lab.now, Gpa(gpa(1900).0 + 5)).unwrap();
    assert_eq!(
        (hot.block.as_str(), hot.block_offset),
        ("ram0", 1900 * BASE_PAGE + 5)
    );
    assert_eq!(hot.hva, Hva(BASE + 1900 * BASE_PAGE + 5));
    assert_eq!(
        (hot.page_hva, hot.page_bytes),
        (Hva(BASE + 1900 * BASE_PAGE), BASE_PAGE)
    );
    assert_eq!((hot.placement, hot.node), (Placement::Fast, Some(FAST)));
    let last = hot.last_move.unwrap();
    assert_eq!(
        (last.direction, last.outcome),
        (Direction::Promote, Outcome::Moved)
    );
    assert!((0.0..8.0).contains(&last.seconds_ago));
    assert_eq!(hot.last_failure, None);
    // 20 of 20 looks each 400 ms: at least ln(n + 1) accesses a look, at 50 looks a second.
    let looks = hot.samples;
    let least = (looks + 1.0).ln() * 50.0;
    assert!((hot.accesses_per_s / least - 1.0).abs() < 0.1, "{hot:?}");

    // 256 hot pages above it at rest: 240 cold ones would go before.
    lab.now = lab.now + Duration::from_secs(10);
    observe(&mut lab, 5);
    let hot = explain(&lab, 1900);
    assert_eq!(hot.state, PageCondition::InHeap);
    assert_eq!((hot.rank, hot.heap_pages), (Some(240), Some(496)));
    assert!(
        hot.would_move_if
            .starts_with("the hottest slow page's rate must be above this page's with z at least ")
    );

    let json = serde_json::to_value(&hot).unwrap();
    assert_eq!(json["gpa"], gpa(1900).0);
    assert_eq!(json["last-failure"], serde_json::Value::Null);
    assert_eq!(json["state"], "in-heap");
    assert_eq!(json["last-move"]["direction"], "promote");
    assert_eq!(json["cooling-ms"], serde_json::Value::Null);
}

/// Lets cooldowns end and nothing be left to do.
fn rest(lab: &mut Lab) {
    lab.now = lab.now + Duration::from_secs(6);
    observe(lab, 5);
}

#[test]
fn slow_page_when_too_cold_names_the_z_it_lacks() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    observe(&mut lab, 1);
    assert_eq!(reason(&lab, 0), "tiering runs: the state is starting");
    observe(&mut lab, 20);
    rest(&mut lab);
    let cold = explain(&lab, 600);
    assert_eq!(
        (cold.state, cold.placement),
        (PageCondition::InHeap, Placement::Slow)
    );
    // √(ln n) for each tier's pages: 1552 slow ones, 496 fast ones.
    let least_z = 1552_f64.ln().sqrt() + 496_f64.ln().sqrt();
    let says = format!(
        "its rate must be above the coldest fast page's with z at least {least_z:.1} (now 0.0), or 4096 bytes are \
         freed: node 0 has 65536 bytes free and keeps 65536 (watermark and headroom)"
    );
    assert_eq!(cold.would_move_if, says);
    lab.order(Order::Pause(true)).unwrap();
    assert_eq!(reason(&lab, 600), "tiering runs: the state is paused");
}

#[test]
fn explanations_when_the_engine_is_at_rest_promise_no_move() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    observe(&mut lab, 40);
    rest(&mut lab);
    let moved = lab.moved();
    for frame in 0..2048 {
        let told = explain(&lab, frame);
        let reason = &told.would_move_if;
        assert!(!reason.starts_with("its turn comes"), "{frame}: {reason}");
        assert!(!reason.starts_with("nothing more"), "{frame}: {reason}");
    }
    lab.step(Event::Tick);
    assert_eq!(lab.moved(), moved);
}

#[test]
fn slow_page_when_an_exchange_pays_waits_only_for_its_turn() {
    // A rate so low that the second batch is far off.
    let slowly = EngineSettings {
        rate_bytes_per_s: BASE_PAGE,
        batch_bytes: 32 * BASE_PAGE,
        ..settings()
    };
    let mut lab = Lab::new(gups(2048, 512), slowly);
    observe(&mut lab, 15);
    assert!(lab.moved() > 0);
    let waiting = (1792..2048).map(|frame| explain(&lab, frame));
    let waiting: Vec<_> = waiting
        .filter(|p| p.state == PageCondition::InHeap)
        .collect();
    assert!(waiting.len() > 100);
    for page in waiting {
        // All are as hot as each other.
        assert_eq!(
            page.would_move_if,
            "its turn comes: 0 hotter pages go first"
        );
    }
}

#[test]
fn slow_page_when_headroom_lacks_names_the_bytes_that_go_first() {
    // The guest holds all 512 frames of the fast node, of which 16 must stay free. Only four pages there
    // are cold.
    let mut lab = Lab::new(gups(2048, 512), settings());
    for _ in 0..40 {
        lab.observe(|frame| match frame {
            4..512 | 1900 => 20.0,
            _ => 0.0,
        });
    }
    assert_eq!(lab.moved(), 0, "not all that must go is colder");
    // 16 frames that must be free, and the page itself.
    let bytes = 17 * BASE_PAGE;
    assert_eq!(
        reason(&lab, 1900),
        format!(
            "{bytes} bytes of the fast tier, all colder than it, are demoted first: node 0 has 0 bytes free and keeps \
             65536 (watermark and headroom); 0 hotter pages go before it"
        )
    );
}

#[test]
fn page_when_it_cools_down_or_is_pinned_or_excluded_says_so() {
    let mut kernel = gups(2048, 512);
    kernel.frames[1000] = None;
    kernel
        .fails
        .insert(BASE + 2000 * BASE_PAGE, Outcome::Shared);
    let mut lab = Lab::new(kernel, settings());
    while lab.moved() < 100 * BASE_PAGE {
        observe(&mut lab, 1);
    }
    let moved = explain(&lab, 1792 + 20);
    assert_eq!(moved.state, PageCondition::Cooling);
    assert!((1..=5000).contains(&moved.cooling_ms.unwrap()));
    assert!(moved.would_move_if.starts_with("its cooldown is over, in "));
    observe(&mut lab, 40);
    rest(&mut lab);
    let absent = explain(&lab, 1000);
    assert_eq!(
        (absent.state, absent.node),
        (PageCondition::Untracked, None)
    );
    assert!(absent.would_move_if.starts_with("it is present"));
    let shared = explain(&lab, 2000);
    assert_eq!(shared.state, PageCondition::Excluded);
    assert_eq!(shared.last_failure.unwrap().outcome, Outcome::Shared);
    assert!(shared.would_move_if.starts_with("its placement changes"));

    let pin = |first, tier| Pin {
        start: gpa(first),
        bytes: 4 * BASE_PAGE,
        tier,
        when_full: WhenFull::Fill,
    };
    lab.order(Order::Pin(pin(1900, Tier::Fast))).unwrap();
    lab.order(Order::Pin(pin(800, Tier::Fast))).unwrap();
    let there = explain(&lab, 1903);
    assert_eq!((there.state, there.rank), (PageCondition::Pinned, None));
    assert_eq!(there.pin.unwrap().start, gpa(1900));
    assert_eq!(
        there.would_move_if,
        "it is unpinned: it is pinned to the fast tier, where it is"
    );
    assert_eq!(
        reason(&lab, 801),
        "the fast tier, to which it is pinned, has room for it: 0 of 4096 bytes"
    );
    assert_eq!(explain(&lab, 804).pin, None);
}

#[test]
fn fast_page_when_above_the_limit_waits_for_room_below() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    observe(&mut lab, 40);
    rest(&mut lab);
    lab.kernel.slow_free = 0;
    lab.order(Order::Limit(Some(100 * BASE_PAGE))).unwrap();
    assert_eq!(
        reason(&lab, 1900),
        "the slow tier has room: the fast tier is above its limit"
    );
}

#[test]
fn page_when_nothing_is_known_of_the_others_says_what_is_to_be_known() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    for _ in 0..20 {
        lab.observe(|frame| if frame >= 1792 { 20.0 } else { 0.0 });
    }
    assert_eq!(reason(&lab, 700), "an access to it is seen: there was none");
    let idle = explain(&lab, 450);
    assert_eq!(idle.samples, 0.0);

    // Room on the fast node: the rival is nobody.
    lab.kernel.fast_capacity *= 2;
    for _ in 0..20 {
        lab.observe(|frame| match frame {
            1792.. => 20.0,
            1000 => 0.01,
            _ => 0.0,
        });
    }
    let says = reason(&lab, 1000);
    assert!(
        says.starts_with("its rate must be above that of a page without accesses with z at least "),
        "{says}"
    );
    let full = reason(&lab, 1900);
    assert!(
        full.starts_with("the fast tier is full: it has room for "),
        "{full}"
    );
}

#[test]
fn huge_page_when_it_does_not_pay_back_tells_gain_and_cost() {
    // The numbers are those of the exchange's own test: 0.05 ms a second against 3.1 ms of moves, here
    // for the page alone against the coldest of the small ones.
    let mut kernel = gups(2 * 512, 512);
    kernel.huge = vec![512];
    let mut lab = Lab::new(
        kernel,
        EngineSettings {
            headroom_bytes: 0,
            horizon: Duration::from_secs(1),
            ..settings()
        },
    );
    for _ in 0..20 {
        lab.observe(|frame| if frame >= 512 { 20.0 } else { 0.0 });
    }
    let huge = explain(&lab, 700);
    assert_eq!(
        (huge.page_bytes, huge.page_hva),
        (HUGE_PAGE, Hva(BASE + 512 * BASE_PAGE))
    );
    let (gain, cost) = huge
        .would_move_if
        .strip_prefix("the gain in 1 s reaches the cost: gain ")
        .and_then(|rest| rest.split_once(" µs, cost "))
        .unwrap();
    let gain: f64 = gain.parse().unwrap();
    let (cost, room) = cost.split_once(" µs, or ").unwrap();
    let cost: f64 = cost.parse().unwrap();
    assert_eq!(
        room,
        "2097152 bytes are freed: node 0 has 0 bytes free and keeps 0 (watermark and headroom)"
    );
    assert!(
        (gain / (huge.accesses_per_s * 0.17) - 1.0).abs() < 0.05,
        "170 ns each"
    );
    // 5 µs and 0.5 µs a frame, for 512 frames and for one.
    assert!((cost - (5.0 + 256.0 + 5.0 + 0.5)).abs() <= 0.5, "{cost}");
    assert_eq!(lab.moved(), 0);
}

#[test]
fn address_when_it_is_no_ram_is_not_explained() {
    let lab = Lab::new(gups(64, 32), settings());
    let ask = |gpa| lab.engine.explain(lab.now, Gpa(gpa)).unwrap_err();
    for gpa in [0, GPA_BASE - 1, GPA_BASE + 64 * BASE_PAGE, u64::MAX] {
        assert_eq!(ask(gpa), ExplainError::NotRam(gpa));
    }
    let blank = VmEngine::new(settings(), tiers(), Time(0));
    assert_eq!(blank.explain(Time(0), gpa(0)), Err(ExplainError::NoMap));
    assert_eq!(blank.heatmap(Time(0), 1, 1), Err(HeatmapError::NoMap));
}

#[test]
fn node_when_its_tier_has_several_is_that_of_the_last_move() {
    let mut several = tiers();
    several.slow = NodeSet::from_iter([SLOW, NodeId(2)]);
    let mut lab = Lab {
        engine: VmEngine::new(settings(), several, Time(0)),
        now: Time(0),
        kernel: gups(2048, 512),
    };
    lab.order(Order::Map(map(1, 2048))).unwrap();
    lab.step(Event::Source(Some(SourceKind::Damon)));
    observe(&mut lab, 40);
    assert_eq!(explain(&lab, 1000).node, None, "one of two");
    let demoted = (0..512).map(|frame| explain(&lab, frame));
    let demoted: Vec<_> = demoted.filter(|p| p.placement == Placement::Slow).collect();
    assert!(!demoted.is_empty());
    assert!(demoted.iter().all(|page| page.node == Some(SLOW)));
}

#[test]
fn heatmap_when_drawn_shows_where_heat_and_tiers_are() {
    let mut lab = Lab::new(gups(2048, 512), settings());
    lab.kernel.frames[512..768].fill(None);
    observe(&mut lab, 40);
    rest(&mut lab);
    let drawn = lab.engine.heatmap(lab.now, 2, 4).unwrap();
    assert_eq!(
        (drawn.rows, drawn.columns, drawn.ram_bytes),
        (2, 4, 2048 * BASE_PAGE)
    );
    for (i, cell) in (0..8_u32).zip(&drawn.cells) {
        assert_eq!(cell.gpa, gpa(256 * i));
    }
    let hottest = drawn.cells[7];
    assert_eq!(hottest.fast_share, Some(1.0));
    assert!(
        drawn.cells[..7]
            .iter()
            .all(|cell| hottest.rate > 10.0 * cell.rate)
    );
    assert_eq!(
        (drawn.cells[2].rate, drawn.cells[2].fast_share),
        (0.0, None),
        "absent"
    );
    assert_eq!(drawn.cells[5].fast_share, Some(0.0));
    let json = serde_json::to_value(&drawn).unwrap();
    assert_eq!(json["cells"][2]["fast-share"], serde_json::Value::Null);
    assert_eq!(json["cells"][7]["gpa"], gpa(1792).0);

    // However it is cut, it is the same heat.
    let pages = (0..2048).map(|frame| explain(&lab, frame).accesses_per_s);
    let all: f64 = pages.sum();
    for (rows, columns) in [(1, 1), (3, 5), (64, 64), (1, MAX_CELLS as u32)] {
        let drawn = lab.engine.heatmap(lab.now, rows, columns).unwrap();
        let mut sum = 0.0;
        for (cell, next) in drawn.cells.iter().zip(&drawn.cells[1..]) {
            sum += f64::from(cell.rate) * ((next.gpa.0 - cell.gpa.0) / BASE_PAGE) as f64;
        }
        let last = drawn.cells.last().unwrap();
        sum += f64::from(last.rate) * ((gpa(2048).0 - last.gpa.0) / BASE_PAGE) as f64;
        assert!(
            (sum / all - 1.0).abs() < 1e-4,
            "{rows} x {columns}: {sum}, {all}"
        );
    }
    for (rows, columns) in [(0, 5), (5, 0), (128, 129), (u32::MAX, u32::MAX)] {
        let refused = lab.engine.heatmap(lab.now, rows, columns);
        assert_eq!(refused, Err(HeatmapError::Size { rows, columns }));
    }
}

#[test]
fn heatmap_when_ram_has_holes_and_huge_pages_shares_them_out() {
    // 3 MiB from 1 MiB on, the rest of 4 MiB at 4 GiB.
    let block = RamBlock {
        name: "ram0".to_owned(),
        hva: Hva(BASE),
        used: 2 * HUGE_PAGE,
        total: 2 * HUGE_PAGE,
        page_size: BASE_PAGE,
        backing: None,
    };
    let mib = 1 << 20;
    let range = |gpa, offset, len| MapRange {
        gpa: Gpa(gpa),
        len,
        block: BlockIndex(0),
        offset,
        hva: Hva(BASE + offset),
    };
    let ranges = vec![range(mib, 0, 3 * mib), range(4 << 30, 3 * mib, mib)];
    let map = GuestMemoryMap::new(1, vec![block], ranges).unwrap();
    let mut kernel = Kernel::new(1024, 4 * mib, |frame| {
        Some(if frame < 512 { SLOW } else { FAST })
    });
    kernel.huge = vec![0, 512];
    let mut lab = Lab {
        kernel,
        engine: VmEngine::new(settings(), tiers(), Time(0)),
        now: Time(0),
    };
    lab.order(Order::Map(Arc::new(map))).unwrap();
    lab.step(Event::Source(Some(SourceKind::Damon)));
    lab.observe(|frame| if frame >= 512 { 10.0 } else { 0.0 });
    let drawn = lab.engine.heatmap(lab.now, 1, 4).unwrap();
    let at: Vec<u64> = drawn.cells.iter().map(|cell| cell.gpa.0).collect();
    assert_eq!(at, [mib, 2 * mib, 3 * mib, 4 << 30]);
    let shares: Vec<_> = drawn
        .cells
        .iter()
        .map(|cell| cell.fast_share.unwrap())
        .collect();
    assert_eq!(shares, [0.0, 0.0, 1.0, 1.0]);
    assert_eq!((drawn.cells[0].rate, drawn.cells[1].rate), (0.0, 0.0));
    assert!(drawn.cells[2].rate > 0.0);
    assert_eq!(
        drawn.cells[2].rate, drawn.cells[3].rate,
        "halves of one page"
    );
}
