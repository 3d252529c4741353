//! The views: each turns figures into lines of text with styles, and the screen shows as many as fit.

pub(super) mod heat;
mod host;
mod vm;

use std::time::{Duration, Instant};

use ratatui::{
    Frame,
    buffer::Buffer,
    layout::Rect,
    style::{Color, Modifier, Style},
};
use serde_json::Value;

pub(super) use self::{
    host::{alarms, pieces},
    vm::{agent_lines, vm_lines},
};
use super::{
    app::{App, Told, View},
    columns::{Chosen, Severity},
    figures::{list, text},
    spark,
    text::{clock, columns, cut, fitted, harmless, packed, time, wrapped},
};

/// The most alarms above the table; the others have a view of their own.
const MOST_ALARMS: usize = 3;
/// The most lines that say why there are no figures.
const MOST_REASONS: usize = 2;
/// The most lines of the host's figures.
const MOST_PIECES: usize = 5;

/// What a text is, which its style shows. No style alone tells anything: marks and words do too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Plain,
    Title,
    Faint,
    Warning,
    Critical,
    Selected,
    /// DRAM; blue and yellow differ for every eye that sees colours.
    Fast,
    Slow,
}

impl Look {
    fn style(self, has_colours: bool) -> Style {
        let style = match self {
            Self::Plain | Self::Fast | Self::Slow => Style::new(),
            Self::Title | Self::Warning => Style::new().add_modifier(Modifier::BOLD),
            Self::Critical => Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED),
            Self::Faint => Style::new().add_modifier(Modifier::DIM),
            Self::Selected => Style::new().add_modifier(Modifier::REVERSED),
        };
        let colour = match self {
            Self::Warning | Self::Slow => Color::Yellow,
            Self::Critical => Color::Magenta,
            Self::Fast => Color::Cyan,
            Self::Plain | Self::Title | Self::Faint | Self::Selected => return style,
        };
        if has_colours { style.fg(colour) } else { style }
    }

    fn of(severity: Severity) -> Self {
        match severity {
            Severity::None => Self::Plain,
            Severity::Warning => Self::Warning,
            Severity::Critical => Self::Critical,
        }
    }
}

/// A line: pieces of harmless text, each with its look.
pub(super) type Line = Vec<(String, Look)>;

/// A line of one look.
pub(super) fn line(text: impl Into<String>, look: Look) -> Line {
    vec![(text.into(), look)]
}

/// Draws the screen.
pub(super) fn draw(app: &mut App, frame: &mut Frame, now: Instant, has_colours: bool) {
    let area = frame.area();
    let mut page = Page {
        buffer: frame.buffer_mut(),
        area,
        next: 0,
        has_colours,
    };
    let (width, height) = (usize::from(area.width), usize::from(area.height));
    for line in head(app, width, now) {
        page.put(&line);
    }
    let used = usize::from(page.next);
    let room = height.saturating_sub(used + 1);
    for line in body(app, width, room, now) {
        page.put(&line);
    }
    page.next = area.height.saturating_sub(1);
    page.put(&footer(app, width));
}

/// What is drawn on.
struct Page<'a> {
    buffer: &'a mut Buffer,
    area: Rect,
    next: u16,
    has_colours: bool,
}

impl Page<'_> {
    fn put(&mut self, line: &Line) {
        if self.next >= self.area.height {
            return;
        }
        let (mut x, y) = (self.area.x, self.area.y + self.next);
        for (text, look) in line {
            let room = usize::from(self.area.right().saturating_sub(x));
            let style = look.style(self.has_colours);
            (x, _) = self.buffer.set_stringn(x, y, text, room, style);
        }
        self.next += 1;
    }
}

/// The title, how current the figures are, and the host's figures.
fn head(app: &App, width: usize, now: Instant) -> Vec<Line> {
    let mut lines = Vec::new();
    let main = if app.is_agent {
        &app.agent.tier
    } else {
        &app.host
    };
    let (state, look) = state(app, main, now);
    let name = format!("vmm-tier top  {}", app.from);
    let room = width.saturating_sub(columns(&state) + 2);
    lines.push(vec![
        (fitted(&name, room, false), Look::Title),
        ("  ".to_owned(), Look::Plain),
        (state, look),
    ]);
    let why = [&main.lost, &app.record_ended];
    for why in why.into_iter().flatten() {
        let reasons = wrapped(&harmless(why), width);
        lines.extend(
            reasons
                .into_iter()
                .take(MOST_REASONS)
                .map(|why| line(why, Look::Warning)),
        );
    }
    let Some(host) = app.host() else {
        return lines;
    };
    if !matches!(app.view(), View::Table | View::Alarms) {
        lines.extend(played(app, width));
        return lines;
    }
    let look = if main.stale(now).is_some() {
        Look::Faint
    } else {
        Look::Plain
    };
    let pieces = packed(&pieces(host), width);
    lines.extend(
        pieces
            .into_iter()
            .take(MOST_PIECES)
            .map(|text| line(text, look)),
    );
    lines.extend(sparkline(app, width, now));
    let alarms = alarms(
        host,
        app.selected.as_deref().filter(|_| app.view() == View::Vm),
    );
    let shown = if app.view() == View::Alarms {
        0
    } else {
        MOST_ALARMS
    };
    let more = alarms.len().saturating_sub(shown);
    for (severity, text) in alarms.into_iter().take(shown) {
        lines.push(line(
            cut(&format!("{}{text}", severity.mark()), width),
            Look::of(severity),
        ));
    }
    if more > 0 && shown > 0 {
        lines.push(line(format!("  and {more} more: a"), Look::Warning));
    }
    lines
}

/// How current the figures are.
fn state(app: &App, main: &Told, now: Instant) -> (String, Look) {
    if let Some(player) = &app.player {
        let sign = if player.is_paused { "paused" } else { "play" };
        return (format!("{sign} {}×", player.speed()), Look::Title);
    }
    match (main.stale(now), main.seen, &main.lost) {
        (Some(age), ..) => {
            let age = time(age.as_secs().max(1) as f64);
            (format!("!! last seen {age} ago"), Look::Critical)
        }
        (None, Some(_), _) => ("live".to_owned(), Look::Plain),
        (None, None, Some(_)) => ("!! never seen".to_owned(), Look::Critical),
        (None, None, None) => ("asking".to_owned(), Look::Faint),
    }
}

/// Jain's index over the last hour, or over the recording with the place that is shown.
fn sparkline(app: &App, width: usize, now: Instant) -> Vec<Line> {
    const LABEL: &str = "fairness ";
    const SCALE: usize = 9;
    let room = width.saturating_sub(LABEL.len() + SCALE).min(120);
    let Some(player) = &app.player else {
        let to = app.seconds(now);
        let from = to - super::feed::HISTORY_S as f64;
        let spark = spark::draw(app.jain.iter().copied(), from, to, room);
        return vec![vec![
            (LABEL.to_owned(), Look::Plain),
            (spark.line, Look::Fast),
            (format!(" {}–1 1h", spark.begin), Look::Faint),
        ]];
    };
    let recording = player.recording();
    let points = (0..recording.len()).filter_map(|moment| {
        let at = recording.since_ms(moment) as f64;
        Some((at, recording.jain(moment)?))
    });
    let length = player.length_ms();
    let spark = spark::draw(points, 0.0, length as f64, room);
    let mut lines = vec![vec![
        (LABEL.to_owned(), Look::Plain),
        (spark.line, Look::Fast),
        (format!(" {}–1", spark.begin), Look::Faint),
    ]];
    let place = player.since_ms() as f64 / (length as f64).max(1.0) * room as f64;
    let place = (place as usize).min(room.saturating_sub(1));
    let track = "━".repeat(place) + "◆" + &"─".repeat(room.saturating_sub(place + 1));
    lines.push(line(" ".repeat(LABEL.len()) + &track, Look::Plain));
    lines.extend(played(app, width));
    lines
}

/// Which moment of a recording is shown.
fn played(app: &App, width: usize) -> Option<Line> {
    let player = app.player.as_ref()?;
    let recording = player.recording();
    let times = format!(
        "{} of {}{}  {}",
        clock(player.since_ms() / 1000),
        clock(player.length_ms() / 1000),
        if recording.is_cut() { " (cut)" } else { "" },
        date_and_time(recording.at_ms(player.moment()))
    );
    Some(line(cut(&times, width), Look::Plain))
}

/// The wall clock's date and time, in UTC.
fn date_and_time(at_ms: u64) -> String {
    let seconds = at_ms / 1000;
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // The days of the Gregorian calendar from March of the year 0 on (Hinnant, "chrono-compatible low-level
    // date algorithms", civil_from_days).
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hours, minutes, seconds) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02} UTC")
}

fn body(app: &mut App, width: usize, room: usize, now: Instant) -> Vec<Line> {
    match app.view() {
        View::Table => table(app, width, room, now),
        View::Heat => heat::lines(&app.agent, app.vm(), app.is_agent, width, room),
        View::Vm => {
            let lines = match app.is_agent {
                true => agent_lines(&app.agent, width),
                false => vm_lines(app, width, now),
            };
            scrolled(app, lines, room)
        }
        View::Alarms => {
            let alarms = app.host().map_or(Vec::new(), |host| alarms(host, None));
            let mut lines = vec![line("ALARMS", Look::Title)];
            if alarms.is_empty() {
                lines.push(line("none", Look::Plain));
            }
            for (severity, text) in alarms {
                for (at, part) in wrapped(&text, width.saturating_sub(2)).iter().enumerate() {
                    let mark = if at == 0 { severity.mark() } else { "  " };
                    lines.push(line(format!("{mark}{part}"), Look::of(severity)));
                }
            }
            scrolled(app, lines, room)
        }
        View::Help => {
            let lines = help(app.player.is_some(), width);
            scrolled(app, lines, room)
        }
    }
}

/// The lines that the user scrolled to.
fn scrolled(app: &mut App, lines: Vec<Line>, room: usize) -> Vec<Line> {
    app.scroll = app.scroll.min(lines.len().saturating_sub(room));
    lines.into_iter().skip(app.scroll).take(room).collect()
}

/// The table of VMs, with the selected one on the screen.
fn table(app: &App, width: usize, room: usize, now: Instant) -> Vec<Line> {
    let Some(host) = app.host() else {
        return Vec::new();
    };
    let vms = app.vms();
    let chosen = Chosen::new(Some(width), &vms);
    let mut lines = vec![line(chosen.header(Some(&app.order)), Look::Title)];
    let room = room.saturating_sub(1);
    let selected = app.place(&vms).unwrap_or(0);
    // The selected VM stays in the middle, but for both ends of the table.
    let first = selected
        .saturating_sub(room / 2)
        .min(vms.len().saturating_sub(room));
    let is_stale = app.host.stale(now).is_some();
    for (at, vm) in vms.iter().enumerate().skip(first).take(room) {
        let (row, severity) = chosen.row(host, vm);
        let is_selected = app.selected.is_some() && at == selected;
        let look = match severity {
            _ if is_selected => Look::Selected,
            _ if is_stale => Look::Faint,
            severity => Look::of(severity),
        };
        let row = if is_selected {
            fitted(&row, width, false)
        } else {
            row
        };
        lines.push(line(row, look));
    }
    if vms.is_empty() {
        let none = match app.order.filter.is_empty() {
            true => "  no VMs",
            false => "  no VM has this text: Esc ends the filter",
        };
        lines.push(line(none, Look::Faint));
    }
    lines
}

/// What the keys do.
fn help(is_replay: bool, width: usize) -> Vec<Line> {
    const KEYS: [(&str, &str); 13] = [
        (
            "↑ ↓ j k",
            "the VM above or below; also PgUp, PgDn, Home, End",
        ),
        ("Enter v", "the VM: its tiers, demand and reasons"),
        ("h", "heat map of the VM's memory"),
        ("Tab", "the next VM, in these views"),
        ("t", "the table of VMs"),
        ("a", "all alarms"),
        ("Esc", "back"),
        (
            "/",
            "filter: VMs that have this text in name, state, source or reason",
        ),
        ("s S", "sort by the next column, or the one before"),
        ("r", "turn the order round"),
        ("?", "this help"),
        ("q", "leave"),
        ("", ""),
    ];
    const REPLAY: [(&str, &str); 6] = [
        ("Space", "stop, and go on; from the begin at the end"),
        ("← →", "10 s back or forth"),
        ("[ ]", "a minute back or forth"),
        (", .", "a moment back or forth"),
        ("- +", "slower, faster"),
        ("0", "to the begin"),
    ];
    const MARKS: [(&str, &str); 4] = [
        ("", ""),
        ("! !!", "the VM has an alarm: a warning, or a grave one"),
        ("–", "not known"),
        ("+", "more than it is entitled to"),
    ];
    let replay = if is_replay { &REPLAY[..] } else { &[] };
    let all = KEYS.iter().chain(replay).chain(&MARKS);
    let mut lines = vec![line("KEYS", Look::Title)];
    for (keys, what) in all {
        for (at, part) in wrapped(what, width.saturating_sub(10)).iter().enumerate() {
            let keys = if at == 0 { keys } else { "" };
            lines.push(vec![
                (fitted(keys, 9, false), Look::Title),
                (format!(" {part}"), Look::Plain),
            ]);
        }
    }
    lines
}

/// The keys that are of most use in a view, or the filter that is typed.
fn footer(app: &App, width: usize) -> Line {
    if app.is_typing {
        let filter = harmless(&app.order.filter);
        // The end of a long filter is what is typed.
        let room = width.saturating_sub(9);
        let hidden = columns(&filter).saturating_sub(room);
        let shown: String = filter.chars().skip(hidden).collect();
        return line(format!("filter: {shown}▏"), Look::Title);
    }
    let mut keys = vec!["q quit", "? keys"];
    match app.view() {
        View::Table => keys.extend(["Enter VM", "h heat", "/ filter", "s sort", "r reverse"]),
        View::Vm if app.is_agent => keys.push("h heat"),
        View::Vm => keys.extend(["Esc back", "h heat", "Tab next VM"]),
        View::Heat => keys.extend(["Esc back", "v VM"]),
        View::Alarms | View::Help => keys.push("Esc back"),
    }
    if app.player.is_some() {
        keys.splice(1..1, ["Space stop", "←→ 10 s", "+- speed"]);
    }
    let filter = harmless(&app.order.filter);
    if !filter.is_empty() && app.view() == View::Table {
        keys.insert(0, "");
    }
    let mut text = keys.join("  ");
    if !filter.is_empty() && app.view() == View::Table {
        text = format!("filter: {}{text}", cut(&filter, 20));
    }
    line(cut(&text, width), Look::Faint)
}

/// The sentence that says how old an agent's figures are, if they are.
fn of_age(told: &Told, now: Instant) -> Option<String> {
    let age = told.stale(now)?;
    let age = Duration::from_secs(age.as_secs().max(1));
    Some(format!(
        "its agent was last seen {} ago",
        time(age.as_secs_f64())
    ))
}

/// Words of a list of a reply.
fn words(of: &Value, name: &str) -> String {
    let words = list(of, name).iter().filter_map(Value::as_str);
    words.map(harmless).collect::<Vec<_>>().join(", ")
}

/// A text of a reply, harmless.
fn said(of: &Value, name: &str) -> Option<String> {
    text(of, name).filter(|text| !text.is_empty()).map(harmless)
}

#[cfg(test)]
mod tests;
