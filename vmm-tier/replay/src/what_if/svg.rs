//! The loss of each recorded guest and of the host over DRAM, as a picture.

use plotters::{
    prelude::{
        ChartBuilder, DashedLineSeries, IntoDrawingArea as _, LineSeries, PathElement, SVGBackend,
        Text, WHITE,
    },
    style::{BLACK, Color as _, RGBColor, ShapeStyle},
};

use super::report::{Verdict, WhatIf, WhatIfHost};
use crate::comparison::svg::{COLOURS, SvgError};

/// Pixels.
const WIDTH: u32 = 860;
const HEIGHT: u32 = 460;
/// The part at the right with the names: where it begins, and a row of it.
const LEGEND: u32 = 200;
const LEGEND_TOP: i32 = 50;
const LEGEND_ROW: i32 = 20;
/// Recordings that have a line; of others there is only the host's.
const MOST_LINES: usize = 12;
/// Characters of a name.
const MOST_NAME: usize = 22;

/// A line of the picture.
struct Line {
    name: String,
    colour: RGBColor,
    width: u32,
    /// DRAM in the picture's unit, and the loss in percent.
    points: Vec<(f64, f64)>,
}

/// Loss over DRAM. A guest that would be refused has no point.
///
/// # Errors
/// If the drawing fails.
pub(super) fn draw(answer: &WhatIf, curve: &[WhatIfHost]) -> Result<String, SvgError> {
    let largest = curve.last().map_or(0, |host| host.dram_bytes);
    let unit = unit_for(largest);
    let lines = lines(answer, curve, unit.1);
    let points = || lines.iter().flat_map(|line| &line.points);
    let most = points()
        .map(|point| point.0)
        .fold(f64::MIN_POSITIVE, f64::max);
    let highest = points()
        .map(|point| point.1)
        .fold(100.0 * answer.loss_limit, f64::max);
    let mut out = String::new();
    {
        let root = SVGBackend::with_string(&mut out, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE)?;
        let (plot, legend) = root.split_horizontally(WIDTH - LEGEND);
        let guests: u64 = answer
            .recordings
            .iter()
            .map(|recording| recording.guests)
            .sum();
        let title = format!("{guests} guests that share DRAM, {}", answer.mode);
        let mut chart = ChartBuilder::on(&plot)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d(0.0..most * 1.02, 0.0..highest.max(1.0) * 1.05)?;
        chart
            .configure_mesh()
            .x_desc(format!("DRAM, {}", unit.0))
            .y_desc("loss, %")
            .y_label_formatter(&|loss| format!("{loss:.0}"))
            .max_light_lines(0)
            .draw()?;
        let limit = 100.0 * answer.loss_limit;
        chart.draw_series(DashedLineSeries::new(
            [(0.0, limit), (most * 1.02, limit)],
            4,
            4,
            ShapeStyle::from(&BLACK.mix(0.5)),
        ))?;
        for line in &lines {
            let style = line.colour.stroke_width(line.width);
            chart.draw_series(LineSeries::new(line.points.clone(), style))?;
        }
        for (row, line) in (0..).zip(&lines) {
            let y = LEGEND_TOP + LEGEND_ROW * row;
            let style = line.colour.stroke_width(line.width);
            legend.draw(&PathElement::new(vec![(4, y), (24, y)], style))?;
            legend.draw(&Text::new(
                line.name.clone(),
                (30, y - 6),
                ("sans-serif", 13),
            ))?;
        }
        let below = LEGEND_TOP + LEGEND_ROW * lines.len() as i32;
        let hidden = answer.recordings.len().saturating_sub(MOST_LINES);
        if hidden > 0 {
            let text = format!("and {hidden} more");
            legend.draw(&Text::new(text, (30, below - 6), ("sans-serif", 13)))?;
        }
        root.present()?;
    }
    Ok(out)
}

/// The unit in which so many bytes are a number that can be read, and its bytes.
fn unit_for(bytes: u64) -> (&'static str, f64) {
    let (unit, shift) = match bytes {
        ..0x20_0000 => ("KiB", 10),
        0x20_0000..0x8000_0000 => ("MiB", 20),
        0x8000_0000..0x200_0000_0000 => ("GiB", 30),
        _ => ("TiB", 40),
    };
    (unit, (1_u64 << shift) as f64)
}

/// The recordings, each the mean of its guests, and all guests.
fn lines(answer: &WhatIf, curve: &[WhatIfHost], unit: f64) -> Vec<Line> {
    let point = |host: &WhatIfHost, slowdown: f64| {
        (host.dram_bytes as f64 / unit, 100.0 * (slowdown - 1.0))
    };
    let mut first = 0;
    let mut lines: Vec<Line> = answer
        .recordings
        .iter()
        .zip(COLOURS)
        .take(MOST_LINES)
        .map(|(recording, colour)| {
            let guests = first..first + recording.guests as usize;
            first = guests.end;
            let points = curve.iter().filter_map(|host| {
                let guests = host.guests[guests.clone()].iter();
                let there: Vec<f64> = guests
                    .filter(|guest| guest.verdict != Verdict::Refused)
                    .map(|guest| guest.slowdown)
                    .collect();
                let mean = there.iter().sum::<f64>() / there.len() as f64;
                (!there.is_empty()).then(|| point(host, mean))
            });
            let name: String = recording.name.chars().take(MOST_NAME).collect();
            Line {
                name: match recording.guests {
                    1 => name,
                    guests => format!("{guests} × {name}"),
                },
                colour,
                width: 2,
                points: points.collect(),
            }
        })
        .collect();
    let is_there = |host: &&WhatIfHost| host.fits + host.suffers > 0;
    lines.push(Line {
        name: "all".to_owned(),
        colour: BLACK,
        width: 3,
        points: curve
            .iter()
            .filter(is_there)
            .map(|host| point(host, host.slowdown))
            .collect(),
    });
    lines
}
