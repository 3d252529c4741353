use std::time::Instant;

use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyCode};
use serde_json::json;
use tempfile::NamedTempFile;

use super::{
    super::{columns::Order, feed::News, player::Player},
    *,
};
use crate::host::published_host as published;

const MIB: u64 = 1 << 20;

/// A host of three VMs, one of which is below its guarantee.
fn host() -> Value {
    let mut host = serde_json::to_value(published(3)).unwrap();
    let vms = host["vms"].as_array_mut().unwrap();
    for (at, vm) in vms.iter_mut().enumerate() {
        vm["share-bytes"] = json!((15 + 4 * at as u64) * MIB);
        vm["moves-per-s"] = json!(at as u64 * MIB);
    }
    vms[0]["waits-for"] = json!("room");
    vms[0]["control"] = json!("/run/vmm-tier/vm1.sock");
    vms[1]["state"] = json!("quiet");
    vms[2]["state"] = json!("unmanaged");
    vms[2]["hit-ratio"] = Value::Null;
    vms[2]["share-bytes"] = Value::Null;
    host["alarms"] = json!([
        {"severity": "warning", "since-s": 30, "text": "3 MiB of the pool are nobody's"},
        {"vm": "vm1", "severity": "critical", "since-s": 14,
         "text": "vm1 is 120 MiB below its guarantee for 14 s: its pages are pinned"},
    ]);
    host
}

/// What an agent tells, as far as the view needs it.
fn tier() -> Value {
    json!({
        "name": "vm1", "pid": 1001, "state": "running", "waits-for": "room",
        "waits-because": "node 0 has no room: 3 MiB are free, 64 MiB are kept free",
        "paused-by": [], "holds": {"by": ["vfio"], "reason": "VFIO has pages of the guest pinned"},
        "source": {"kind": "damon", "down": null}, "hit-ratio": 0.9375,
        "tiers": [
            {"rank": 0, "nodes": [0], "bytes": 22 * MIB, "limit-bytes": 23 * MIB, "free-bytes": 3 * MIB},
            {"rank": 1, "nodes": [1, 2], "bytes": 234 * MIB, "limit-bytes": null, "free-bytes": 700 * MIB},
        ],
        "sources": [
            {"kind": "damon", "health": "good", "believed": true, "quality": 0.75, "accepted-per-s": 1200.0},
            {"kind": "ibs", "health": "down", "believed": false, "quality": null, "accepted-per-s": 0.0,
             "reason": "this CPU has no IBS"},
        ],
        "promoted-bytes": 512 * MIB, "demoted-bytes": 498 * MIB, "moved-pages": 258_000,
        "tried-pages": 258_700, "failed": {"busy": 0, "pinned": 700},
        "host": {"share-bytes": 23 * MIB, "demand-bytes": 31 * MIB, "state": "registered"},
    })
}

fn heat() -> Value {
    let cells = (0..64 * 14).map(|at: u64| {
        let (row, column) = (at / 64, at % 64);
        let rate = match row {
            0..4 => 20.0 / f64::from(1 << (column / 8)),
            4..8 => 0.0,
            _ => 0.5,
        };
        let share = match row {
            7 => None,
            0..4 => Some(1.0),
            _ => Some(0.2),
        };
        json!({"gpa": at * MIB / 4, "rate": rate, "fast-share": share})
    });
    json!({"rows": 14, "columns": 64, "ram-bytes": 224 * MIB, "cells": cells.collect::<Vec<_>>()})
}

/// A screen that has just been told what there is.
fn app_of(news: News) -> (App, Instant) {
    let now = Instant::now();
    let socket = "/run/vmm-tier/host.sock";
    let mut app = App::new(socket, Order::default(), None, now);
    app.take(news, now);
    (app, now)
}

fn terminal(
    app: &mut App,
    now: Instant,
    size: (u16, u16),
    has_colours: bool,
) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
    terminal
        .draw(|frame| draw(app, frame, now, has_colours))
        .unwrap();
    terminal
}

/// The screen as text.
fn screen(app: &mut App, now: Instant, size: (u16, u16)) -> String {
    let terminal = terminal(app, now, size, true);
    let buffer = terminal.backend().buffer();
    let rows = (0..size.1).map(|y| {
        let mut row = String::new();
        let mut x = 0;
        while x < size.0 {
            let symbol = buffer[(x, y)].symbol();
            row.push_str(symbol);
            x += columns(symbol).max(1) as u16;
        }
        row.trim_end().to_owned()
    });
    rows.collect::<Vec<_>>().join("\n")
}

fn press(app: &mut App, keys: &str) {
    for key in keys.chars() {
        app.key(KeyCode::Char(key).into());
    }
}

#[test]
fn table_when_drawn_shows_the_host_and_its_vms() {
    let (mut app, now) = app_of(News::Host(host()));
    app.take(
        News::History(json!({
            "begins-s-ago": 3500, "step-s": 10,
            "host": {"jain": {"min": (0..350).map(|at| 0.5 + f64::from(at) / 700.0).collect::<Vec<_>>()}},
        })),
        now,
    );
    for (width, height) in [(120, 40), (80, 24), (40, 20)] {
        let shown = screen(&mut app, now, (width, height));
        insta::assert_snapshot!(format!("table_{width}"), shown);
    }
}

#[test]
fn vm_when_drawn_shows_tiers_demand_and_reasons() {
    let (mut app, now) = app_of(News::Host(host()));
    press(&mut app, "v");
    app.take_of_agent(News::Agent(tier()), now);
    for (width, height) in [(120, 28), (80, 28), (40, 20)] {
        let shown = screen(&mut app, now, (width, height));
        insta::assert_snapshot!(format!("vm_{width}"), shown);
    }
    app.key(KeyCode::End.into());
    let shown = screen(&mut app, now, (120, 40));
    assert!(shown.contains("ALL FIGURES"), "{shown}");
    assert!(
        shown.contains("0.5 s                   How long ago its agent reported last"),
        "{shown}"
    );
}

#[test]
fn agent_when_it_answers_itself_is_shown_without_a_daemon() {
    let (mut app, now) = app_of(News::Agent(tier()));
    insta::assert_snapshot!("agent_80", screen(&mut app, now, (80, 34)));
    press(&mut app, "h");
    app.take(News::Heat(heat()), now);
    assert!(screen(&mut app, now, (80, 24)).contains("HEAT  vm1"));
}

#[test]
fn heat_map_when_drawn_tells_heat_and_tier_by_its_blocks() {
    let (mut app, now) = app_of(News::Host(host()));
    press(&mut app, "h");
    assert!(screen(&mut app, now, (80, 24)).contains("asking"));
    app.take_of_agent(News::Agent(tier()), now);
    app.take_of_agent(News::Heat(heat()), now);
    insta::assert_snapshot!("heat_80", screen(&mut app, now, (80, 24)));
    assert!(screen(&mut app, now, (40, 20)).contains("DRAM   ·"));
}

#[test]
fn help_and_alarms_when_asked_for_are_shown() {
    let (mut app, now) = app_of(News::Host(host()));
    press(&mut app, "?");
    insta::assert_snapshot!("help_80", screen(&mut app, now, (80, 24)));
    press(&mut app, "a");
    let shown = screen(&mut app, now, (60, 20));
    let alarms: Vec<&str> = shown.lines().skip_while(|line| *line != "ALARMS").collect();
    assert_eq!(
        alarms[1..4],
        [
            "!!vm1 is 120 MiB below its guarantee for 14 s: its pages are",
            "  pinned",
            "! 3 MiB of the pool are nobody's (30 s)",
        ]
    );
}

#[test]
fn recording_when_played_shows_where_it_is() {
    let file = NamedTempFile::new().unwrap();
    let mut text = "{\"vmm-tier-host-recording\": 1}\n".to_owned();
    for at in 0..600_u64 {
        let mut host = host();
        // 2026-12-01 02:14:05 UTC.
        host["at-ms"] = json!((1_796_091_245 + at) * 1000);
        host["fairness"]["jain"] = json!(0.7 + at as f64 / 2000.0);
        text += &format!("{host}\n");
    }
    std::fs::write(file.path(), text).unwrap();
    let now = Instant::now();
    let player = Player::open(file.path(), 200_000, now).unwrap();
    let mut app = App::new("hour", Order::default(), Some(player), now);
    press(&mut app, " ++");
    app.play(now);
    insta::assert_snapshot!("replay_80", screen(&mut app, now, (80, 20)));
    press(&mut app, "0.");
    app.play(now);
    assert!(screen(&mut app, now, (80, 20)).contains("00:01 of 09:59  2026-12-01 02:14:06 UTC"));
}

#[test]
fn daemon_when_dead_is_said_to_be_and_its_figures_are_faint() {
    let (mut app, now) = app_of(News::Host(host()));
    let later = now + Duration::from_secs(14);
    app.take(
        News::Lost("/run/vmm-tier/host.sock was lost".to_owned()),
        later,
    );
    let shown = screen(&mut app, later, (80, 24));
    let mut lines = shown.lines();
    let first = lines.next().unwrap();
    assert!(first.ends_with("!! last seen 14 s ago"), "{first}");
    assert_eq!(lines.next(), Some("/run/vmm-tier/host.sock was lost"));
    let terminal = terminal(&mut app, later, (80, 24), true);
    let vm2 = shown
        .lines()
        .position(|line| line.contains("  vm2"))
        .unwrap();
    let cell = &terminal.backend().buffer()[(3, vm2 as u16)];
    assert!(cell.modifier.contains(Modifier::DIM), "{cell:?}");

    let mut never = App::new("socket", Order::default(), None, now);
    assert!(screen(&mut never, now, (40, 5)).contains("asking"));
    never.take(News::Lost("no such file".to_owned()), now);
    assert!(screen(&mut never, now, (40, 5)).contains("!! never seen"));
}

#[test]
fn names_and_figures_when_hostile_do_not_leave_their_cells() {
    let names = [
        "\u{1b}[2J\u{7}",
        "a\u{202e}b\u{2066}",
        "<img onerror=alert(1)>",
        "数据库",
    ];
    let long = "x".repeat(200);
    let mut told = host();
    let vm = told["vms"][0].clone();
    let vms = names.into_iter().chain([long.as_str()]).map(|name| {
        let mut vm = vm.clone();
        vm["name"] = json!(name);
        vm["state"] = json!(name.repeat(9));
        vm["fast-bytes"] = json!(-1e300);
        vm["hit-ratio"] = json!("NaN");
        vm["slowdown"] = json!([name]);
        vm["source"] = json!({});
        vm
    });
    told["vms"] = vms.collect();
    told["mode"] = json!("\u{1b}c");
    told["moves"] = json!(7);
    told["fairness"] = json!({"jain": -5, "worst-vm": long, "worst-ratio": "x"});
    told["alarms"] = json!([{"vm": 3}, 4, null, {"text": "\u{1b}]0;x\u{7}", "severity": []}]);
    told["drain"] = json!({"done": "no"});
    for size in [(120, 40), (80, 24), (40, 20), (10, 5), (1, 1)] {
        let (mut app, now) = app_of(News::Host(told.clone()));
        for keys in ["", "v", "h", "a", "?"] {
            press(&mut app, keys);
            let shown = screen(&mut app, now, size);
            let acting = shown
                .chars()
                .find(|&char| char != '\n' && harmless(&char.to_string()) != char.to_string());
            assert_eq!(acting, None, "{shown}");
        }
    }
    for nothing in [
        json!(null),
        json!([]),
        json!({"vms": {}}),
        json!({"vms": [null, 3, []]}),
    ] {
        let (mut app, now) = app_of(News::Host(nothing));
        assert!(screen(&mut app, now, (80, 24)).contains("DRAM –"));
        press(&mut app, "v");
        assert!(screen(&mut app, now, (80, 24)).contains("no VM is selected"));
    }
    let (mut app, now) = app_of(News::Agent(
        json!({"tiers": [3], "sources": [{}], "failed": {"\u{1b}": 1}}),
    ));
    assert!(screen(&mut app, now, (80, 40)).contains("failed     \u{fffd} 1"));
}

#[test]
fn colours_when_not_wanted_are_not_used() {
    let (mut app, now) = app_of(News::Host(host()));
    let has_colour = |terminal: &Terminal<TestBackend>| {
        let mut cells = terminal.backend().buffer().content.iter();
        cells.any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    for keys in ["", "v", "h"] {
        press(&mut app, keys);
        app.take_of_agent(News::Agent(tier()), now);
        app.take_of_agent(News::Heat(heat()), now);
        let [without, with] = [false, true]
            .map(|has_colours| has_colour(&terminal(&mut app, now, (100, 30), has_colours)));
        assert_eq!((without, with), (false, true), "{keys}");
    }
}

#[test]
fn rows_when_more_than_the_screen_keep_the_selected_vm_on_it() {
    let told = serde_json::to_value(published(200)).unwrap();
    let (mut app, now) = app_of(News::Host(told));
    for (keys, vm) in [("", "vm1 "), ("G", "vm99"), ("k", "vm98"), ("g", "vm1 ")] {
        press(&mut app, keys);
        let terminal = terminal(&mut app, now, (80, 24), true);
        let buffer = terminal.backend().buffer();
        let row = (0..24)
            .find(|&y| buffer[(2, y)].modifier.contains(Modifier::REVERSED))
            .unwrap();
        let name: String = (2..6).map(|x| buffer[(x, row)].symbol()).collect();
        assert_eq!(name, vm);
    }
}

#[test]
fn date_when_given_in_milliseconds_is_of_the_calendar() {
    assert_eq!(date_and_time(0), "1970-01-01 00:00:00 UTC");
    // 2024 was a leap year; date -u -d @1709251199.
    assert_eq!(date_and_time(1_709_251_199_000), "2024-02-29 23:59:59 UTC");
    assert_eq!(date_and_time(1_796_091_245_999), "2026-12-01 02:14:05 UTC");
    assert!(date_and_time(u64::MAX).ends_with("UTC"));
}
