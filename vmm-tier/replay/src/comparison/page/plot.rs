//! Curves of hits over DRAM as inline SVG. Colours come from the page's style, so they follow its light
//! or dark scheme; curves differ by dashes, too.

use std::fmt::Write as _;

use tier_core::text::size::human;

use super::html::escape;

/// Sizes in units of the picture.
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 130.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 48.0;
/// The least distance of labels.
const LABEL_STEP: f64 = 15.0;
/// Kinds of lines in the style of the page: `c0` to `c11`.
pub(super) const KINDS: usize = 12;

/// A curve: bytes, rising, and the share of accesses.
pub(super) struct Curve<'a> {
    pub(super) name: &'a str,
    pub(super) points: &'a [(u64, f64)],
    /// Whether its points are marked.
    pub(super) has_marks: bool,
}

/// Draws curves over `most` bytes.
pub(super) fn draw(title: &str, curves: &[Curve<'_>], most: u64, targets: &[f64]) -> String {
    let most = most.max(1);
    let points = || curves.iter().flat_map(|curve| curve.points);
    let least = points().map(|&(_, share)| share).fold(1.0, f64::min);
    // A scale that begins at a round number shows what is between curves that all lie high.
    let from = ((least * 10.0).floor() / 10.0).clamp(0.0, 0.9);
    let x = |bytes: u64| LEFT + (WIDTH - LEFT - RIGHT) * bytes as f64 / most as f64;
    let y = |share: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - (share - from) / (1.0 - from));
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
        escape(title)
    );
    let steps = ((1.0 - from) * 10.0).round().max(1.0) as u32;
    for step in (0..=steps).step_by(if steps > 5 { 2 } else { 1 }) {
        let share = 1.0 - (1.0 - from) * f64::from(step) / f64::from(steps);
        let at = y(share);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" class=\"end\">{:.0} %</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0,
            100.0 * share
        );
    }
    for step in 0..=4 {
        let bytes = most / 4 * step;
        let (at, base) = (x(bytes), HEIGHT - BOTTOM);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{at:.1} {TOP}V{base}\"/><text x=\"{at:.1}\" y=\"{:.1}\" class=\"middle\">{}</text>",
            base + 18.0,
            human(bytes)
        );
    }
    for target in targets.iter().filter(|target| **target > from) {
        let at = y(*target);
        let _ = writeln!(
            svg,
            "<path class=\"target\" d=\"M{LEFT} {at:.1}H{:.1}\"/>",
            WIDTH - RIGHT
        );
    }
    // What is drawn last is on top: the curve that is listed first.
    for (kind, curve) in curves.iter().enumerate().rev() {
        let kind = kind % KINDS;
        let _ = write!(svg, "<polyline class=\"curve c{kind}\" points=\"");
        for &(bytes, share) in curve.points {
            let _ = write!(svg, "{:.1},{:.1} ", x(bytes), y(share));
        }
        svg.push_str("\"/>\n");
        for &(bytes, share) in curve.points.iter().filter(|_| curve.has_marks) {
            let _ = writeln!(
                svg,
                "<circle class=\"mark c{kind}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>{}, {}: {:.1} %</title></circle>",
                x(bytes),
                y(share),
                escape(curve.name),
                human(bytes),
                100.0 * share
            );
        }
    }
    labels(&mut svg, curves, x, y);
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" class=\"middle\">DRAM</text></svg>",
        LEFT + (WIDTH - LEFT - RIGHT) / 2.0,
        HEIGHT - 8.0
    );
    svg
}

/// Names at the ends of curves, apart from each other.
fn labels(svg: &mut String, curves: &[Curve<'_>], x: impl Fn(u64) -> f64, y: impl Fn(f64) -> f64) {
    let ends = curves.iter().enumerate().filter_map(|(kind, curve)| {
        let &(bytes, share) = curve.points.last()?;
        Some((y(share), x(bytes), kind, curve.name))
    });
    let mut ends: Vec<(f64, f64, usize, &str)> = ends.collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    // From the top down each keeps its distance; what is pushed out below goes up again.
    let mut places: Vec<f64> = Vec::with_capacity(ends.len());
    for end in &ends {
        let least = places.last().map_or(TOP, |last| last + LABEL_STEP);
        places.push(end.0.max(least));
    }
    let mut most = HEIGHT - 6.0;
    for place in places.iter_mut().rev() {
        *place = place.min(most);
        most = *place - LABEL_STEP;
    }
    for (&(end_y, end_x, kind, name), place) in ends.iter().zip(places) {
        let at = WIDTH - RIGHT + 24.0;
        let _ = writeln!(
            svg,
            "<path class=\"lead\" d=\"M{:.1} {end_y:.1}L{:.1} {place:.1}\"/>\
             <path class=\"curve c{}\" d=\"M{at:.1} {place:.1}h16\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            end_x + 5.0,
            at - 3.0,
            kind % KINDS,
            at + 20.0,
            place + 4.0,
            escape(name)
        );
    }
}
