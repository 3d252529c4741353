//! The curves of hits over DRAM as a picture.

use plotters::{
    prelude::{
        ChartBuilder, Circle, DashedLineSeries, DrawingAreaErrorKind, IntoDrawingArea as _,
        LineSeries, PathElement, RGBColor, SVGBackend, Text, WHITE,
    },
    style::{BLACK, Color as _, ShapeStyle},
};
use tier_core::text::size::human;

use super::{
    curve::curves,
    report::{Report, Trace},
};

/// Pixels of one trace's picture.
const WIDTH: u32 = 760;
const HEIGHT: u32 = 460;
/// The part at the right with the policies' names: where it begins, and a row of it.
const LEGEND: u32 = 120;
const LEGEND_TOP: i32 = 50;
const LEGEND_ROW: i32 = 20;
/// Pictures that stand beside each other.
const COLUMNS: usize = 2;
/// Tableau's ten colours (Maureen Stone, 2016), which people tell apart well, and two greys.
pub(crate) const COLOURS: [RGBColor; 12] = [
    RGBColor(78, 121, 167),
    RGBColor(242, 142, 43),
    RGBColor(225, 87, 89),
    RGBColor(118, 183, 178),
    RGBColor(89, 161, 79),
    RGBColor(237, 201, 72),
    RGBColor(176, 122, 161),
    RGBColor(255, 157, 167),
    RGBColor(156, 117, 95),
    RGBColor(186, 176, 172),
    RGBColor(60, 60, 60),
    RGBColor(130, 130, 130),
];

/// A picture that can't be drawn.
#[derive(Debug, thiserror::Error)]
#[error("the curve can't be drawn: {0}")]
pub(crate) struct SvgError(String);

impl<E: std::error::Error + Send + Sync> From<DrawingAreaErrorKind<E>> for SvgError {
    fn from(error: DrawingAreaErrorKind<E>) -> Self {
        Self(error.to_string())
    }
}

/// All traces of the report, a picture each.
///
/// # Errors
/// If the drawing fails.
pub(super) fn draw(report: &Report, target: f64) -> Result<String, SvgError> {
    let columns = report.traces.len().clamp(1, COLUMNS);
    let rows = report.traces.len().div_ceil(columns).max(1);
    let mut out = String::new();
    {
        let size = (WIDTH * columns as u32, HEIGHT * rows as u32);
        let root = SVGBackend::with_string(&mut out, size).into_drawing_area();
        root.fill(&WHITE)?;
        let areas = root.split_evenly((rows, columns));
        for (area, trace) in areas.iter().zip(&report.traces) {
            draw_trace(area, report, trace, target)?;
        }
        root.present()?;
    }
    Ok(out)
}

type Area<'a> = plotters::drawing::DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_trace(
    area: &Area<'_>,
    report: &Report,
    trace: &Trace,
    target: f64,
) -> Result<(), SvgError> {
    let curves = curves(report, &trace.trace);
    let percent = |&(bytes, hits): &(u64, f64)| {
        (
            100.0 * bytes as f64 / trace.guest_bytes as f64,
            100.0 * hits,
        )
    };
    let points = || curves.iter().flat_map(|curve| &curve.points).map(percent);
    let most = points().map(|point| point.0).fold(1.0, f64::max);
    let title = format!("{} ({})", trace.trace, human(trace.guest_bytes));
    let (plot, legend) = area.split_horizontally(WIDTH - LEGEND);
    let mut chart = ChartBuilder::on(&plot)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..most * 1.02, 0.0..100.0)?;
    chart
        .configure_mesh()
        .x_desc("DRAM, % of the guest's memory")
        .y_desc("accesses in DRAM, %")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .max_light_lines(0)
        .draw()?;
    let line = [(0.0, 100.0 * target), (most * 1.02, 100.0 * target)];
    chart.draw_series(DashedLineSeries::new(
        line,
        4,
        4,
        ShapeStyle::from(&BLACK.mix(0.5)),
    ))?;
    // What is drawn last is on top: the policy that is listed first.
    let coloured: Vec<_> = curves.iter().zip(COLOURS.iter().cycle()).collect();
    for &(curve, colour) in coloured.iter().rev() {
        let points: Vec<(f64, f64)> = curve.points.iter().map(percent).collect();
        chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?;
        let dots = points
            .into_iter()
            .map(|point| Circle::new(point, 3, colour.filled()));
        chart.draw_series(dots)?;
    }
    for (row, &(curve, colour)) in (0..).zip(&coloured) {
        let y = LEGEND_TOP + LEGEND_ROW * row;
        let line = vec![(4, y), (24, y)];
        legend.draw(&PathElement::new(line, colour.stroke_width(2)))?;
        let at = (30, y - 6);
        legend.draw(&Text::new(curve.policy, at, ("sans-serif", 13)))?;
    }
    Ok(())
}
