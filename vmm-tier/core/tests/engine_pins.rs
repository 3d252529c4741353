//! Pins: pages stay where the operator wants them, whatever their heat.

use std::{ops::Range, sync::Arc, time::Duration};

use tier_core::{
    addr::{BASE_PAGE, Gpa, HUGE_PAGE, Hva},
    engine::{
        Event, MAX_PINS, Order, Pin, PinError, PinReport, PinsSnapshot, Refusal, VmEngine, WhenFull,
    },
    map::{BlockIndex, GuestMemoryMap, MapRange, RamBlock},
    moves::Outcome,
    settings::{EngineSettings, Tier},
    time::Time,
};

use crate::{
    common::{BASE, FAST, GPA_BASE, SLOW, map, settings, tiers},
    lab::{Lab, gups},
};

fn gpa(frame: u32) -> Gpa {
    Gpa(GPA_BASE + u64::from(frame) * BASE_PAGE)
}

fn pin(frames: Range<u32>, tier: Tier, when_full: WhenFull) -> Pin {
    Pin {
        start: gpa(frames.start),
        bytes: frames.len() as u64 * BASE_PAGE,
        tier,
        when_full,
    }
}

/// Pins a range, or says why not.
fn try_pin(lab: &mut Lab, pin: Pin) -> Result<PinReport, PinError> {
    match lab.order(Order::Pin(pin)) {
        Ok(reply) => Ok(reply.pins),
        Err(Refusal::Pin(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

/// Unpins so many frames, or says why not.
fn try_unpin(lab: &mut Lab, first: u32, frames: u64) -> Result<PinReport, Refusal> {
    let order = Order::Unpin {
        start: gpa(first),
        bytes: frames * BASE_PAGE,
    };
    lab.order(order).map(|reply| reply.pins)
}

fn on_fast(lab: &Lab, frames: Range<u32>) -> usize {
    let frames = &lab.kernel.frames[frames.start as usize..frames.end as usize];
    frames.iter().filter(|&&node| node == Some(FAST)).count()
}

/// A guest of 2048 frames, the first 512 on the full fast node; hot from 1536 on.
fn lab() -> Lab {
    let mut lab = Lab::new(gups(2048, 512), settings());
    observe(&mut lab, 1);
    lab
}

fn observe(lab: &mut Lab, times: u32) {
    for _ in 0..times {
        lab.observe(|frame| if frame >= 1536 { 20.0 } else { 1.0 });
    }
}

#[test]
fn cold_pages_when_pinned_to_the_fast_tier_push_others_out_if_they_may() {
    let mut lab = lab();
    let made = lab
        .order(Order::Pin(pin(1000..1100, Tier::Fast, WhenFull::Demote)))
        .unwrap()
        .pins;
    assert_eq!(
        (made.placed_bytes, made.elsewhere_bytes),
        (0, 100 * BASE_PAGE)
    );
    observe(&mut lab, 60);
    assert_eq!(on_fast(&lab, 1000..1100), 100, "and they stay");
    // The hot 512 have what the pin and the headroom leave of the 512.
    assert_eq!(on_fast(&lab, 1536..2048), 512 - 100 - 16);
    assert_eq!(lab.engine.pins()[0].placed_bytes, 100 * BASE_PAGE);

    let gone = try_unpin(&mut lab, 1000, 100).unwrap();
    assert_eq!((gone.pins, gone.placed_bytes), (1, 100 * BASE_PAGE));
    observe(&mut lab, 60);
    assert_eq!(on_fast(&lab, 1000..1100), 0, "cold pages are as before");
    lab.engine.check().unwrap();
}

#[test]
fn hot_pages_when_pinned_to_the_slow_tier_leave_and_stay_away() {
    let mut lab = lab();
    observe(&mut lab, 60);
    assert_eq!(on_fast(&lab, 1536..1600), 64);
    lab.order(Order::Pin(pin(1536..1600, Tier::Slow, WhenFull::Refuse)))
        .unwrap();
    observe(&mut lab, 60);
    assert_eq!(on_fast(&lab, 1536..1600), 0);
    assert_eq!(on_fast(&lab, 1600..2048), 448, "others have the room");
    let moved = lab.moved();
    observe(&mut lab, 60);
    assert_eq!(lab.moved(), moved, "at rest");
}

#[test]
fn pins_when_set_again_before_the_first_look_hold_what_lies_in_their_place() {
    // The fast node is full, the limit lower than what the guest has of it: cold pages leave at once.
    let mut lab = Lab::new(gups(2048, 512), settings());
    let again = [
        pin(0..100, Tier::Fast, WhenFull::Refuse),
        pin(200..300, Tier::Fast, WhenFull::Refuse),
        pin(250..260, Tier::Fast, WhenFull::Fill),
        pin(4000..4001, Tier::Slow, WhenFull::Fill),
    ];
    let mut engine = VmEngine::new(settings(), tiers(), Time(0));
    let first = engine.order(Time(0), Order::Map(map(1, 2048))).unwrap();
    let reply = engine.order(Time(0), Order::PinAgain(again.into()));
    let refused = reply.unwrap().refused;
    let [(second, overlaps), (third, no_ram)] = &refused[..] else {
        panic!("nothing was looked at yet, so two are set: {refused:?}");
    };
    assert_eq!((second, third), (&again[2], &again[3]));
    assert!(matches!(overlaps, PinError::Overlaps { .. }));
    assert!(matches!(no_ram, PinError::NotRam(_)));
    lab.engine = engine;
    lab.order(Order::Limit(Some(210 * BASE_PAGE))).unwrap();
    lab.carry_out(first.actions);
    lab.step(Event::Source(Some(tier_core::sample::SourceKind::Damon)));
    observe(&mut lab, 40);
    assert_eq!((on_fast(&lab, 0..100), on_fast(&lab, 200..300)), (100, 100));
    assert!(on_fast(&lab, 0..2048) <= 210);

    let gone = lab.order(Order::UnpinAll).unwrap().pins;
    assert_eq!((gone.pins, gone.bytes), (2, 200 * BASE_PAGE));
    assert_eq!(lab.order(Order::UnpinAll).unwrap().pins.pins, 0);
    lab.engine.check().unwrap();
}

#[test]
fn pin_when_the_tier_is_full_is_refused_if_it_asks_for_that() {
    let mut lab = lab();
    let limit = Some(450 * BASE_PAGE);
    lab.order(Order::Limit(limit)).unwrap();
    observe(&mut lab, 10);
    let refused = try_pin(&mut lab, pin(600..900, Tier::Fast, WhenFull::Refuse));
    let Err(PinError::NoRoom {
        tier: Tier::Fast,
        need_bytes,
        room_bytes,
    }) = refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!(need_bytes, 300 * BASE_PAGE);
    assert!(room_bytes < 300 * BASE_PAGE);
    // 451 frames never fit below a limit of 450; 446 do, if all others leave.
    let too_many = pin(600..1051, Tier::Fast, WhenFull::Demote);
    assert_eq!(
        try_pin(&mut lab, too_many),
        Err(PinError::NoRoom {
            tier: Tier::Fast,
            need_bytes: 451 * BASE_PAGE,
            room_bytes: 450 * BASE_PAGE,
        })
    );
    assert!(lab.engine.pins().is_empty());
    lab.order(Order::Pin(pin(600..1046, Tier::Fast, WhenFull::Demote)))
        .unwrap();
    // What the first has still to move is not there for a second.
    let second = pin(1200..1210, Tier::Fast, WhenFull::Demote);
    let refused = try_pin(&mut lab, second).unwrap_err().to_string();
    assert!(
        refused
            .starts_with("the fast tier can't take the range: 40960 bytes are needed, 16384 are"),
        "{refused}"
    );
    observe(&mut lab, 60);
    assert_eq!(on_fast(&lab, 600..1046), 446);
}

#[test]
fn pin_when_it_fills_takes_the_room_there_is_and_waits_for_more() {
    let mut lab = lab();
    observe(&mut lab, 60);
    lab.order(Order::Pin(pin(600..700, Tier::Fast, WhenFull::Fill)))
        .unwrap();
    observe(&mut lab, 10);
    assert_eq!(on_fast(&lab, 600..700), 0, "the fast node is full");
    lab.kernel.fast_capacity += 40 * BASE_PAGE;
    observe(&mut lab, 10);
    assert_eq!(on_fast(&lab, 600..700), 40, "before hotter pages");
    let status = lab.engine.pins()[0];
    assert_eq!(
        (status.placed_bytes, status.elsewhere_bytes),
        (40 * BASE_PAGE, 60 * BASE_PAGE)
    );
}

#[test]
fn pinned_page_when_it_appears_later_follows() {
    let mut lab = lab();
    lab.kernel.frames[1000..1010].fill(None);
    for _ in 0..5 {
        lab.now = lab.now + Duration::from_secs(1);
        lab.step(Event::Tick);
    }
    lab.order(Order::Pin(pin(1000..1010, Tier::Fast, WhenFull::Demote)))
        .unwrap();
    assert_eq!(
        lab.engine.pins()[0].elsewhere_bytes,
        0,
        "nothing is present"
    );
    observe(&mut lab, 5);
    lab.kernel.frames[1000..1010].fill(Some(SLOW));
    observe(&mut lab, 30);
    assert_eq!(on_fast(&lab, 1000..1010), 10);
}

#[test]
fn pinned_page_when_its_moves_fail_is_tried_again_and_keeps_none_from_moving() {
    let mut lab = lab();
    for frame in 1000..1005 {
        let busy = BASE + frame * BASE_PAGE;
        lab.kernel.fails.insert(busy, Outcome::Busy);
    }
    lab.order(Order::Pin(pin(1000..1010, Tier::Fast, WhenFull::Demote)))
        .unwrap();
    observe(&mut lab, 60);
    assert_eq!(on_fast(&lab, 1000..1010), 5);
    assert!(
        on_fast(&lab, 1536..2048) > 400,
        "hot pages go on being promoted"
    );
    assert!(lab.engine.snapshot().failed[&Outcome::Busy] > 5);
    lab.kernel.fails.clear();
    observe(&mut lab, 30);
    assert_eq!(on_fast(&lab, 1000..1010), 10);
}

#[test]
fn huge_page_when_a_part_of_it_is_pinned_is_pinned_whole_until_it_splits() {
    let mut kernel = gups(8 * 512, 2 * 512);
    kernel.huge = (0..8).map(|i| i * 512).collect();
    let no_headroom = EngineSettings {
        headroom_bytes: 0,
        ..settings()
    };
    let mut lab = Lab::new(kernel, no_headroom);
    let heat = |frame| if frame / 512 == 6 { 20.0 } else { 0.0 };
    lab.observe(heat);
    // The end of page 3 and the beginning of page 4.
    let part = pin(4 * 512 - 10..4 * 512 + 10, Tier::Fast, WhenFull::Demote);
    let made = lab.order(Order::Pin(part)).unwrap().pins;
    assert_eq!(
        (made.bytes, made.elsewhere_bytes),
        (20 * BASE_PAGE, 2 * HUGE_PAGE)
    );
    for _ in 0..50 {
        lab.observe(heat);
    }
    assert_eq!(on_fast(&lab, 3 * 512..5 * 512), 2 * 512);
    assert_eq!(on_fast(&lab, 6 * 512..7 * 512), 0, "pins have all the room");

    lab.kernel.huge.clear();
    for _ in 0..50 {
        lab.observe(heat);
        lab.engine.check().unwrap();
    }
    assert_eq!(on_fast(&lab, 4 * 512 - 10..4 * 512 + 10), 20);
    assert_eq!(
        on_fast(&lab, 6 * 512..7 * 512),
        512,
        "the parts that are not pinned made room"
    );
    assert_eq!(lab.engine.pins()[0].placed_bytes, 20 * BASE_PAGE);
}

#[test]
fn pin_when_its_memory_leaves_and_comes_back_holds_again() {
    let mut lab = lab();
    lab.order(Order::Pin(pin(1000..1100, Tier::Fast, WhenFull::Demote)))
        .unwrap();
    observe(&mut lab, 30);
    lab.order(Order::Map(map(2, 1050))).unwrap();
    lab.engine.check().unwrap();
    assert_eq!(lab.engine.pins()[0].placed_bytes, 50 * BASE_PAGE);
    lab.order(Order::Map(map(1, 2048))).unwrap();
    // What was plugged again is elsewhere.
    lab.kernel.frames[1050..2048].fill(Some(SLOW));
    observe(&mut lab, 30);
    assert_eq!(on_fast(&lab, 1000..1100), 100);
    lab.engine.check().unwrap();
}

#[test]
fn range_when_it_can_not_be_pinned_is_refused_with_the_reason() {
    let mut lab = lab();
    let mut try_range = |start: u64, bytes| {
        let pin = Pin {
            start: Gpa(start),
            bytes,
            tier: Tier::Slow,
            when_full: WhenFull::Fill,
        };
        try_pin(&mut lab, pin).map_err(|e| e.to_string())
    };
    let end = GPA_BASE + 2048 * BASE_PAGE;
    for (start, bytes, says) in [
        (
            GPA_BASE + 1,
            BASE_PAGE,
            "4096 bytes at 0x100001 are not one or more whole pages",
        ),
        (
            GPA_BASE,
            100,
            "100 bytes at 0x100000 are not one or more whole pages",
        ),
        (
            GPA_BASE,
            0,
            "0 bytes at 0x100000 are not one or more whole pages",
        ),
        (
            u64::MAX - 4095,
            BASE_PAGE,
            "4096 bytes at 0xfffffffffffff000 are not",
        ),
        (0, BASE_PAGE, "guest address 0x0 is not guest RAM"),
        (
            end - BASE_PAGE,
            2 * BASE_PAGE,
            "guest address 0x900000 is not guest RAM",
        ),
    ] {
        let error = try_range(start, bytes).unwrap_err();
        assert!(error.starts_with(says), "{error}");
    }
    try_range(GPA_BASE + 10 * BASE_PAGE, 10 * BASE_PAGE).unwrap();
    for (first, count) in [(0, 2048), (12, 2), (19, 5), (5, 6)] {
        let error = try_range(GPA_BASE + first * BASE_PAGE, count * BASE_PAGE).unwrap_err();
        let says = "the range overlaps the pin of 40960 bytes at 0x10a000; unpin that one first";
        assert_eq!(error, says);
    }
    try_range(GPA_BASE + 20 * BASE_PAGE, BASE_PAGE).unwrap();
    try_range(GPA_BASE, 10 * BASE_PAGE).unwrap();

    let cut = try_unpin(&mut lab, 0, 15).unwrap_err();
    assert_eq!(
        cut.to_string(),
        "the range would cut the pin of 40960 bytes at 0x10a000; unpin it whole"
    );
    let none = try_unpin(&mut lab, 30, 1).unwrap_err();
    assert_eq!(
        none.to_string(),
        "no pin lies in the 4096 bytes at 0x11e000"
    );
    let snapshot = lab.engine.pins_snapshot();
    assert_eq!((snapshot.count, snapshot.slow_bytes), (3, 21 * BASE_PAGE));
    let all = try_unpin(&mut lab, 0, 2048).unwrap();
    assert_eq!((all.pins, all.bytes), (3, 21 * BASE_PAGE));
    assert_eq!(lab.engine.pins_snapshot(), PinsSnapshot::default());
}

#[test]
fn pins_when_there_are_too_many_are_refused() {
    let mut lab = lab();
    for frame in 0..MAX_PINS as u32 {
        let single = pin(frame..frame + 1, Tier::Slow, WhenFull::Fill);
        lab.order(Order::Pin(single)).unwrap();
    }
    let more = pin(2000..2001, Tier::Slow, WhenFull::Fill);
    assert_eq!(try_pin(&mut lab, more), Err(PinError::TooMany));
}

#[test]
fn memory_when_the_guest_sees_it_twice_is_pinned_once() {
    let block = RamBlock {
        name: "ram0".to_owned(),
        hva: Hva(BASE),
        used: 16 * BASE_PAGE,
        total: 16 * BASE_PAGE,
        page_size: BASE_PAGE,
        backing: None,
    };
    let range = |gpa, first: u64, count: u64| MapRange {
        gpa: Gpa(gpa),
        len: count * BASE_PAGE,
        block: BlockIndex(0),
        offset: first * BASE_PAGE,
        hva: Hva(BASE + first * BASE_PAGE),
    };
    let alias = 1 << 32;
    let ranges = vec![range(GPA_BASE, 0, 16), range(alias, 4, 4)];
    let map = GuestMemoryMap::new(1, vec![block], ranges).unwrap();
    let mut engine = VmEngine::new(settings(), tiers(), Time(0));
    let fill = |start, bytes| Pin {
        start: Gpa(start),
        bytes,
        tier: Tier::Fast,
        when_full: WhenFull::Fill,
    };
    let mut pin = |start, bytes| engine.order(Time(0), Order::Pin(fill(start, bytes)));
    assert_eq!(pin(GPA_BASE, 4096), Err(Refusal::Pin(PinError::NoMap)));
    engine.order(Time(0), Order::Map(Arc::new(map))).unwrap();
    let mut pin = |start, bytes| engine.order(Time(0), Order::Pin(fill(start, bytes)));
    pin(alias, 2 * BASE_PAGE).unwrap();
    assert_eq!(
        pin(GPA_BASE + 5 * BASE_PAGE, BASE_PAGE),
        Err(Refusal::Pin(PinError::Overlaps {
            start: alias,
            bytes: 2 * BASE_PAGE
        }))
    );
    pin(GPA_BASE + 6 * BASE_PAGE, BASE_PAGE).unwrap();
}
