//! The curves of hits over DRAM as a picture.

use plotters::{
    prelude::{
        ChartBuilder, Circle, DashedLineSeries, DrawingAreaErrorKind, IntoDrawingArea as _,
        LineSeries, PathElement, RGBColor, SVGBackend, SeriesLabelPosition, WHITE,
    },
    style::{BLACK, Color as _, ShapeStyle},
};

use super::{
    curve::curves,
    report::{Report, Trace},
};
use crate::size::human;

/// Pixels of one trace's picture.
const WIDTH: u32 = 760;
const HEIGHT: u32 = 460;
/// Pictures that stand beside each other.
const COLUMNS: usize = 2;
/// Tableau's ten colours (Maureen Stone, 2016), which people tell apart well, and two greys.
const COLOURS: [RGBColor; 12] = [
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
    let mut chart = ChartBuilder::on(area)
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
    for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let points: Vec<(f64, f64)> = curve.points.iter().map(percent).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
            .label(curve.policy)
            .legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2))
            });
        let dots = points
            .into_iter()
            .map(|point| Circle::new(point, 3, colour.filled()));
        chart.draw_series(dots)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}
