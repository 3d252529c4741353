//! The page's HTML.

use std::fmt::Write as _;

use tier_core::text::{size::human, table::count};

use super::{
    Page, TARGETS,
    plot::{self, Curve},
};
use crate::comparison::{
    curve::{curves, need},
    report::{Bound, Run},
};

/// The page's style.
const STYLE: &str = include_str!("page.css");
/// Most marks that are listed: a trace may have a thousand.
const MOST_MARKS: usize = 40;
/// Labels beside the heat map.
const ADDRESSES: usize = 6;
const TIMES: u32 = 4;

/// A text in HTML.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // What turns the direction of text, or is not seen, could make a name look like another.
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.push('\u{fffd}');
            }
            control if control.is_control() => out.push('\u{fffd}'),
            plain => out.push(plain),
        }
    }
    out
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * index)) as usize & 63];
            let is_there = index <= group.len() as u32;
            out.push(if is_there { char::from(letter) } else { '=' });
        }
    }
    out
}

/// `4 min 5 s`, `12.3 s`, `2 h 3 min`.
fn time(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() || s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{} min {} s", (s / 60.0) as u64, (s % 60.0) as u64),
        s => format!(
            "{} h {} min",
            (s / 3600.0) as u64,
            (s % 3600.0 / 60.0) as u64
        ),
    }
}

/// The day and time of a number of seconds since 1970, in UTC (Howard Hinnant, `civil_from_days`).
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (rest / 3600, rest % 3600 / 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Bytes, and the part of the guest that they are.
fn part_of(bytes: u64, guest_bytes: u64) -> String {
    let part = 100.0 * bytes as f64 / guest_bytes.max(1) as f64;
    format!("{} <span class=\"part\">{part:.0} %</span>", human(bytes))
}

/// Makes the page.
pub(super) fn page(page: &Page<'_>) -> String {
    let name = match page.info.header.name.as_str() {
        "" => &page.trace.trace,
        name => name,
    };
    let name = escape(name);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n\
         <title>{name}: recorded memory</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{name}</h1>\n"
    );
    facts(&mut out, page);
    heat(&mut out, page);
    demand(&mut out, page);
    policies(&mut out, page);
    notes(&mut out, page);
    out += "</main>\n</body>\n</html>\n";
    out
}

/// What the records are called: samples stand for more than they are.
fn records(page: &Page<'_>) -> &'static str {
    if page.trace.samples_recorded {
        "records"
    } else {
        "accesses"
    }
}

/// How many times slower the recording was played than it was made.
fn slower(page: &Page<'_>) -> f64 {
    match page.trace.stretched {
        stretched if stretched > 0.0 => stretched,
        _ => 1.0,
    }
}

fn facts(out: &mut String, page: &Page<'_>) {
    let header = &page.info.header;
    let trace = page.trace;
    let recorded_s = trace.seconds / slower(page);
    let mut facts = vec![
        ("Guest memory", human(trace.guest_bytes)),
        (
            "Used of it",
            part_of(page.demand.used_bytes, trace.guest_bytes),
        ),
        ("Length", time(recorded_s)),
        (
            if trace.samples_recorded {
                "Records"
            } else {
                "Accesses"
            },
            count(trace.accesses),
        ),
        ("Source", escape(header.origin.name())),
    ];
    if header.started > 0 {
        facts.push(("Begun", date(header.started)));
    }
    if let Some(bytes) = page.demand.needs.get(1) {
        facts.push(("DRAM for 95 %", part_of(*bytes, trace.guest_bytes)));
    }
    out.push_str("<dl class=\"facts\">\n");
    for (name, value) in facts {
        let _ = writeln!(out, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    out.push_str("</dl>\n");
}

fn heat(out: &mut String, page: &Page<'_>) {
    let heat = page.heat;
    let slower = slower(page);
    let seconds = page.trace.seconds / slower;
    let _ = write!(
        out,
        "<section>\n<h2>Heat over time and space</h2>\n<p>Each row is {} of the guest's memory by rising address, \
         holes left out. Each column is {}. Yellow is hot: {} {} a second for 4 KiB. Each step towards dark is colder, \
         a thousandth or less at the dark end.</p>\n",
        human(heat.row_bytes()),
        time(heat.column_time().as_secs_f64() / slower),
        three_digits(heat.hottest() * slower),
        records(page),
    );
    out.push_str("<div class=\"map\">\n<div class=\"addresses\">");
    let addresses = heat.addresses();
    let labels = ADDRESSES.min(addresses.len().max(1));
    for label in 0..labels {
        let index = label * addresses.len() / labels;
        let _ = write!(
            out,
            "<span>{:#x}</span>",
            addresses.get(index).copied().unwrap_or(0)
        );
    }
    let _ = write!(
        out,
        "</div>\n<img alt=\"Heat map: memory from the top down, time from the left to the right\" \
         src=\"data:image/png;base64,{}\">\n<div class=\"times\">",
        base64(page.picture)
    );
    for label in 0..=TIMES {
        let _ = write!(
            out,
            "<span>{}</span>",
            time(seconds * f64::from(label) / f64::from(TIMES))
        );
    }
    out.push_str("</div>\n</div>\n<p class=\"scale\"><span>cold</span><span class=\"colours\"></span><span>hot</span></p>\n");
    let marks = page.info.end.as_ref().map_or(&[][..], |end| &end.marks);
    let first = page.info.end.as_ref().map_or(0, |end| end.first);
    if !marks.is_empty() {
        out.push_str("<details><summary>Marks in the recording</summary>\n<ul>\n");
        for mark in marks.iter().take(MOST_MARKS) {
            let at = mark.at.0.saturating_sub(first) as f64 / 1e9;
            let _ = writeln!(out, "<li>{}: {}</li>", time(at), escape(&mark.text));
        }
        if marks.len() > MOST_MARKS {
            let _ = writeln!(out, "<li>and {} more</li>", marks.len() - MOST_MARKS);
        }
        out.push_str("</ul>\n</details>\n");
    }
    out.push_str("</section>\n");
}

/// Adds a chart. On a narrow screen it is scrolled, so that its letters can be read.
fn chart(out: &mut String, title: &str, svg: &str) {
    let _ = writeln!(
        out,
        "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"{title}\">{svg}</div>"
    );
}

fn three_digits(value: f64) -> String {
    if value <= 0.0 || !value.is_finite() {
        return "0".to_owned();
    }
    let before = value.log10().floor() as i32;
    let decimals = usize::try_from(2 - before).unwrap_or(0).min(9);
    format!("{value:.decimals$}")
}

fn demand(out: &mut String, page: &Page<'_>) {
    let guest = page.trace.guest_bytes;
    let _ = write!(
        out,
        "<section>\n<h2>Demand for DRAM</h2>\n<p>The share of {} that DRAM serves if the pages lie there that are hottest \
         in the whole recording, and none moves. A policy that follows changes can do better; one that has yet to learn \
         does worse.</p>\n",
        records(page)
    );
    let curve = Curve {
        name: "hottest pages",
        points: &page.demand.points,
        has_marks: false,
    };
    // A guest that uses little of its memory would be a step at the left.
    let most = page.demand.used_bytes.max(1);
    chart(
        out,
        "Accesses in DRAM over DRAM",
        &plot::draw("Accesses in DRAM over DRAM", &[curve], most, &TARGETS),
    );
    out.push_str(
        "<table><thead><tr><th>Hits</th><th>DRAM that it takes</th></tr></thead>\n<tbody>\n",
    );
    for (target, bytes) in TARGETS.iter().zip(&page.demand.needs) {
        let _ = writeln!(
            out,
            "<tr><th>{:.0} %</th><td>{}</td></tr>",
            100.0 * target,
            part_of(*bytes, guest)
        );
    }
    out.push_str("</tbody></table>\n</section>\n");
}

fn policies(out: &mut String, page: &Page<'_>) {
    let Page { report, trace, .. } = page;
    let sizes = report.sizes_of(&trace.trace);
    let found = curves(report, &trace.trace);
    let _ = write!(
        out,
        "<section>\n<h2>What each policy makes of it</h2>\n<p>The recording was played again on a simulated machine: the share of \
         {} in DRAM, by size of DRAM. The oracle knows the future, and makes the moves that pay for themselves; oracle-free \
         moves at no cost.</p>\n",
        records(page)
    );
    if !trace.notes.is_empty() {
        out.push_str("<ul class=\"small\">\n");
        for note in &trace.notes {
            let _ = writeln!(out, "<li>{}</li>", escape(note));
        }
        out.push_str("</ul>\n");
    }
    let lines: Vec<Curve<'_>> = found
        .iter()
        .map(|curve| Curve {
            name: curve.policy,
            points: &curve.points,
            has_marks: true,
        })
        .collect();
    if sizes.len() > 1 {
        let most = sizes.last().copied().unwrap_or(1);
        chart(
            out,
            "Hits of each policy over DRAM",
            &plot::draw("Hits of each policy over DRAM", &lines, most, &[]),
        );
    }
    out.push_str("<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Policies\"><table><thead><tr><th>Policy</th>");
    for size in &sizes {
        let _ = write!(out, "<th>{}</th>", part_of(*size, trace.guest_bytes));
    }
    for target in TARGETS.iter().filter(|_| sizes.len() > 1) {
        let _ = write!(out, "<th>for {:.0} %</th>", 100.0 * target);
    }
    out.push_str("<th>Slowdown</th><th>Moved</th></tr></thead>\n<tbody>\n");
    for curve in &found {
        let _ = write!(out, "<tr><th>{}</th>", escape(curve.policy));
        let slowdown_at = |policy: &str, size: u64| {
            let mut runs = report.runs_of(&trace.trace);
            let run = runs.find(|run| run.policy == policy && run.fast_bytes == size);
            run.map_or(f64::INFINITY, |run| run.slowdown)
        };
        let best = |size: u64| {
            let online = found.iter().filter(|other| is_online(other.policy));
            let slowdowns = online.map(|other| slowdown_at(other.policy, size));
            slowdowns.fold(f64::INFINITY, f64::min)
        };
        for &size in &sizes {
            let hits = hits_at(&curve.points, size);
            let is_best = is_online(curve.policy) && slowdown_at(curve.policy, size) <= best(size);
            let class = if is_best { " class=\"best\"" } else { "" };
            let _ = write!(
                out,
                "<td{class}>{}</td>",
                hits.map(percent).unwrap_or_default()
            );
        }
        for target in TARGETS.iter().filter(|_| sizes.len() > 1) {
            let text = match need(&curve.points, *target) {
                Some((bytes, Bound::About)) => human(bytes),
                Some((bytes, Bound::AtMost)) => format!("≤ {}", human(bytes)),
                Some((bytes, Bound::MoreThan)) => format!("&gt; {}", human(bytes)),
                None => String::new(),
            };
            let _ = write!(out, "<td>{text}</td>");
        }
        let runs: Vec<&Run> = report
            .runs_of(&trace.trace)
            .filter(|run| run.policy == curve.policy)
            .collect();
        let range = |figures: Vec<f64>, write: fn(f64) -> String| {
            let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
            let most = figures.iter().copied().fold(0.0, f64::max);
            match write(least) == write(most) {
                true => write(least),
                false => format!("{}–{}", write(least), write(most)),
            }
        };
        let slowdown = range(runs.iter().map(|run| run.slowdown).collect(), |value| {
            format!("{value:.2}")
        });
        let moved = range(
            runs.iter().map(|run| run.moved_bytes as f64).collect(),
            |value| human(value as u64),
        );
        let _ = writeln!(out, "<td>{slowdown}</td><td>{moved}</td></tr>");
    }
    out.push_str(
        "</tbody></table></div>\n<p class=\"small\">Bold: where the guest is slowed down least, of those that do not know the future; moves take time, too. <em>for 95 %</em>: the DRAM from \
         which on that share is reached, between two sizes by a straight line. Slowdown: the time of all accesses and moves over \
         that with all memory in DRAM, from the smallest to the largest over the sizes. Moved: bytes copied to and fro.</p>\n</section>\n",
    );
}

/// Whether a policy decides from what it has seen.
fn is_online(policy: &str) -> bool {
    !policy.starts_with("oracle")
}

fn hits_at(points: &[(u64, f64)], size: u64) -> Option<f64> {
    let mut points = points.iter();
    Some(points.find(|point| point.0 == size)?.1)
}

fn notes(out: &mut String, page: &Page<'_>) {
    let trace = page.trace;
    let header = &page.info.header;
    out.push_str("<section>\n<h2>The recording</h2>\n<ul>\n");
    let _ = writeln!(out, "<li>File: {}</li>", escape(&trace.trace));
    let each = match (header.tests, header.period) {
        (0, 1) => "every access".to_owned(),
        (0, period) => format!("one record for {} accesses", count(period)),
        (tests, _) => format!("counts of {tests} looks at each page"),
    };
    let _ = writeln!(
        out,
        "<li>Source {}: {each}</li>",
        escape(header.origin.name())
    );
    if let Some(end) = &page.info.end {
        let dropped: u64 = end.account.dropped.values().sum();
        let _ = writeln!(
            out,
            "<li>{} {} in {} batches; the source lost {} and dropped {}; {} lay outside the guest's memory</li>",
            count(end.accesses),
            records(page),
            count(end.batches),
            count(end.account.lost),
            count(dropped),
            count(end.outside)
        );
    }
    out.push_str("</ul>\n</section>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_when_it_has_markup_or_turns_is_shown_as_it_is() {
        let escaped = escape("<img onerror='x'>&\"\u{202e}\u{7}é");
        assert_eq!(
            escaped,
            "&lt;img onerror=&#39;x&#39;&gt;&amp;&quot;\u{fffd}\u{fffd}é"
        );
    }

    #[test]
    fn base64_when_encoded_is_that_of_the_rfc() {
        // RFC 4648, section 10.
        let encoded =
            ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()));
        assert_eq!(
            encoded,
            [
                "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"
            ]
        );
    }

    #[test]
    fn time_when_written_is_short() {
        assert_eq!(
            [0.0, 12.34, 245.0, 7380.0].map(time),
            ["0.0 s", "12.3 s", "4 min 5 s", "2 h 3 min"]
        );
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400 + 3660), "2000-02-29 01:01 UTC");
        assert_eq!(date(1_798_761_599), "2026-12-31 23:59 UTC");
    }
}
