//! The answer as text: what each recorded guest needs, and a table for each amount of DRAM.

use std::fmt::Write as _;

use tier_core::text::{
    size::human,
    table::{count, table},
};

use super::report::{Verdict, WhatIf, WhatIfGuest, WhatIfHost, WhatIfRecording};

/// Guests that are shown for an amount of DRAM: the first ones, or of more than that the slowest.
const MOST_ROWS: usize = 24;
/// Characters of a guest's name.
const MOST_NAME: usize = 20;

pub(super) fn text(answer: &WhatIf) -> String {
    let mut out = String::new();
    let guests: u64 = answer
        .recordings
        .iter()
        .map(|recording| recording.guests)
        .sum();
    let memory = answer
        .recordings
        .iter()
        .map(|r| r.guests * r.memory_bytes)
        .sum();
    let _ = writeln!(
        out,
        "{} with {} of memory, {}, {} s\n",
        guests_of(guests),
        human(memory),
        answer.mode,
        answer.seconds,
    );
    write_needs(&mut out, answer);
    for host in &answer.hosts {
        write_host(&mut out, answer, host, memory);
    }
    for note in &answer.notes {
        let _ = writeln!(out, "\nnote: {note}");
    }
    out
}

fn guests_of(guests: u64) -> String {
    match guests {
        1 => "1 guest".to_owned(),
        _ => format!("{} guests", count(guests)),
    }
}

/// What a guest of each recording needs for itself.
fn write_needs(out: &mut String, answer: &WhatIf) {
    let _ = writeln!(
        out,
        "DRAM that a guest needs for itself: for {} of its accesses, and for {} loss",
        percent(answer.target_ratio),
        percent(answer.loss_limit),
    );
    let heads = [
        "recording".to_owned(),
        "guests".to_owned(),
        "memory".to_owned(),
        "used".to_owned(),
        percent(answer.target_ratio),
        format!("{} loss", percent(answer.loss_limit)),
    ];
    let row = |recording: &WhatIfRecording| {
        vec![
            short(&recording.name),
            count(recording.guests),
            human(recording.memory_bytes),
            human(recording.used_bytes),
            human(recording.target_bytes),
            human(recording.fits_bytes),
        ]
    };
    let mut rows = vec![heads.to_vec()];
    rows.extend(answer.recordings.iter().map(row));
    out.push_str(&table(&rows, |column| column != 0));
}

fn write_host(out: &mut String, answer: &WhatIf, host: &WhatIfHost, memory: u64) {
    let all = host.guests.len();
    let _ = writeln!(
        out,
        "\n{} of DRAM, {} of the memory: {} of {all} {}",
        human(host.dram_bytes),
        percent(host.dram_bytes as f64 / memory as f64),
        host.fits,
        if host.fits == 1 { "fits" } else { "fit" },
    );
    let mut shown: Vec<&WhatIfGuest> = host.guests.iter().collect();
    if all > MOST_ROWS {
        shown.sort_by(|a, b| b.slowdown.total_cmp(&a.slowdown));
        shown.truncate(MOST_ROWS);
    }
    let mut rows = vec![
        ["guest", "share", "in DRAM", "slowdown", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(shown.iter().map(|guest| row(guest)));
    if all > 1 {
        rows.push(vec![
            "all".to_owned(),
            human(host.guests.iter().map(|guest| guest.share_bytes).sum()),
            percent(host.hit_ratio),
            format!("{:.2}", host.slowdown),
        ]);
    }
    out.push_str(&table(&rows, |column| (1..4).contains(&column)));
    if all > MOST_ROWS {
        let _ = writeln!(
            out,
            "The {MOST_ROWS} slowest guests are shown; --json has the other {}.",
            all - MOST_ROWS
        );
    }
    let because = shown
        .iter()
        .filter_map(|guest| guest.refused_because.as_ref());
    for why in because {
        let _ = writeln!(out, "refused: {why}");
    }
    write_density(out, answer, host);
}

fn row(guest: &WhatIfGuest) -> Vec<String> {
    let dash = || "-".to_owned();
    let (share, in_dram, slowdown) = match guest.verdict {
        Verdict::Refused => (dash(), dash(), dash()),
        _ => (
            human(guest.share_bytes),
            percent(guest.hit_ratio),
            format!("{:.2}", guest.slowdown),
        ),
    };
    let verdict = guest.verdict.to_string();
    vec![short(&guest.name), share, in_dram, slowdown, verdict]
}

/// How many fit.
fn write_density(out: &mut String, answer: &WhatIf, host: &WhatIfHost) {
    let alone: Vec<String> = host
        .density
        .iter()
        .map(|density| format!("{} {}", density.guests, short(&density.name)))
        .collect();
    if alone.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "room for {} with at most {} loss",
        alone.join(", or "),
        percent(answer.loss_limit),
    );
    let _ = match host.all_fit_times.filter(|_| host.guests.len() > 1) {
        Some(times) => writeln!(out, "; for all of them {times} times"),
        None => writeln!(out),
    };
}

fn short(name: &str) -> String {
    match name.chars().count() > MOST_NAME {
        true => name.chars().take(MOST_NAME - 1).chain(['…']).collect(),
        false => name.to_owned(),
    }
}

/// `5 %`, `97.1 %`.
fn percent(part: f64) -> String {
    let value = part * 100.0;
    match (value - value.round()).abs() < 0.05 {
        true => format!("{value:.0} %"),
        false => format!("{value:.1} %"),
    }
}
