//! The curve of hits over DRAM, drawn with characters.

use std::fmt::Write as _;

use ratatui::{
    buffer::{Buffer, Cell},
    layout::Rect,
    symbols::Marker,
    text::Line as Label,
    widgets::{Axis, Chart, Dataset, GraphType, Widget as _},
};
use tier_core::text::size::human;

use super::{
    curve::curves,
    report::{Report, Trace},
};

/// Characters of the drawing: it fits into a narrow terminal and into a mail.
const WIDTH: u16 = 76;
const HEIGHT: u16 = 20;

/// A policy's points: DRAM and hits in percent.
struct Line<'a> {
    letter: char,
    policy: &'a str,
    points: Vec<(f64, f64)>,
}

/// Hits over DRAM, a letter for each policy. Where curves meet, the policy that is listed first is seen.
pub(super) fn draw(report: &Report, trace: &Trace) -> String {
    let curves = curves(report, &trace.trace);
    let lines: Vec<Line> = ('a'..='z')
        .zip(&curves)
        .map(|(letter, curve)| {
            let percent = |&(bytes, hits): &(u64, f64)| {
                (
                    100.0 * bytes as f64 / trace.guest_bytes as f64,
                    100.0 * hits,
                )
            };
            let points = curve.points.iter().map(percent).collect();
            Line {
                letter,
                policy: curve.policy,
                points,
            }
        })
        .collect();
    let points = || lines.iter().flat_map(|line| &line.points);
    let most = points().map(|point| point.0).fold(0.0, f64::max);
    let least_hits = points().map(|point| point.1).fold(100.0, f64::min);
    // A scale that begins at a round number shows what is between curves that all lie high.
    let from = (least_hits / 10.0).floor() * 10.0;

    // What is drawn last is on top: lines first, then letters from the last policy to the first.
    let dotted = lines.iter().map(|line| {
        let set = Dataset::default().data(&line.points);
        set.marker(Marker::Custom('·')).graph_type(GraphType::Line)
    });
    let letters = lines.iter().rev().map(|line| {
        let set = Dataset::default().data(&line.points);
        set.marker(Marker::Custom(line.letter))
    });
    let labels = |from: f64, to: f64, steps: u32| {
        (0..=steps).map(move |step| {
            let value = from + (to - from) * f64::from(step) / f64::from(steps);
            Label::from(short_percent(value))
        })
    };
    let chart = Chart::new(dotted.chain(letters).collect())
        .x_axis(
            Axis::default()
                .bounds([0.0, most])
                .labels(labels(0.0, most, 4)),
        )
        .y_axis(
            Axis::default()
                .bounds([from, 100.0])
                .labels(labels(from, 100.0, 5)),
        )
        .legend_position(None);
    let area = Rect::new(0, 0, WIDTH, HEIGHT);
    let mut buffer = Buffer::empty(area);
    chart.render(area, &mut buffer);

    let mut out = format!(
        "accesses in DRAM, over DRAM as a share of the guest's {}\n",
        human(trace.guest_bytes)
    );
    for y in 0..HEIGHT {
        let row: String = (0..WIDTH)
            .filter_map(|x| buffer.cell((x, y)).map(Cell::symbol))
            .collect();
        let _ = writeln!(out, "{}", row.trim_end());
    }
    let names: Vec<String> = lines
        .iter()
        .map(|line| format!("{} {}", line.letter, line.policy))
        .collect();
    let _ = writeln!(out, "{}", names.join("  "));
    out
}

/// `6.2 %`, `25 %`.
fn short_percent(value: f64) -> String {
    match value {
        v if (v - v.round()).abs() < 0.05 => format!("{v:.0} %"),
        v => format!("{v:.1} %"),
    }
}
