//! `lab-plot NAME=RESULT.json… > PICTURE.svg`: the hot set's share in DRAM over time, each run of the
//! results a picture, each result a line in it.
//!
//! `lab-plot --pools RESULT.json > PICTURE.svg`: the pages of each node's hugetlb pool at each look, a picture
//! for each run that has pools.
//!
//! `lab-plot --shares RESULT.json > PICTURE.svg`: the DRAM of each guest over time, by what the kernel says, and what
//! the host daemon entitles it to, a picture for each run that measured it.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, bail};
use plotters::prelude::*;
use serde::Deserialize;

/// Pixels of one run's picture.
const SIZE: (u32, u32) = (900, 260);
/// The height of a run's picture of pools.
const POOLS_HEIGHT: u32 = 190;
/// Where more guests share DRAM, all have one colour and no legend.
const MOST_NAMED: usize = 4;
/// Bytes of a mebibyte.
const MIB: f64 = 1_048_576.0;
/// Blue and orange of Tableau's ten colours (Maureen Stone, 2016), then green and red.
const COLOURS: [RGBColor; 4] = [
    RGBColor(242, 142, 43),
    RGBColor(78, 121, 167),
    RGBColor(89, 161, 79),
    RGBColor(225, 87, 89),
];

/// What is read of a result; see `lab::result`.
#[derive(Deserialize)]
struct Lab {
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    run: String,
    marks: Vec<(f64, String, String)>,
    series: Vec<Point>,
}

#[derive(Deserialize)]
struct Point {
    t: f64,
    #[serde(default)]
    phase: String,
    #[serde(default)]
    pools: Vec<Pool>,
    guests: BTreeMap<String, Guest>,
    host: Option<Host>,
}

/// What the host daemon said.
#[derive(Deserialize)]
struct Host {
    vms: BTreeMap<String, Vm>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Vm {
    entitled_bytes: u64,
}

/// A node's pool, in pages.
#[derive(Clone, Copy, Deserialize)]
struct Pool {
    total: u32,
    free: u32,
    surplus: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Guest {
    hot_share: Option<f64>,
    dram_bytes: Option<u64>,
}

impl Run {
    /// The guests whose DRAM was measured.
    fn sharers(&self) -> Vec<&str> {
        let guests = self.series.iter().flat_map(|point| &point.guests);
        let measured = guests.filter(|(_, guest)| guest.dram_bytes.is_some());
        let mut names: Vec<&str> = measured.map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// A guest's DRAM, and what it is entitled to: seconds since the run began, and MiB.
    fn shares(&self, guest: &str) -> [Vec<(f64, f64)>; 2] {
        let has = self.series.iter().filter_map(|point| {
            let bytes = point.guests.get(guest)?.dram_bytes?;
            Some((point.t, bytes as f64 / MIB))
        });
        let entitled = self.series.iter().filter_map(|point| {
            let vm = point.host.as_ref()?.vms.get(guest)?;
            Some((point.t, vm.entitled_bytes as f64 / MIB))
        });
        [has.collect(), entitled.collect()]
    }

    /// When each phase began, but for the stretch before the first.
    fn phases(&self) -> Vec<(f64, &str)> {
        let mut phases: Vec<(f64, &str)> = Vec::new();
        for point in &self.series {
            if phases.last().map_or("", |(_, name)| name) != point.phase {
                phases.push((point.t, &point.phase));
            }
        }
        phases
    }

    /// Seconds since the workload was ready, and percent.
    fn line(&self) -> Vec<(f64, f64)> {
        let start = self.start();
        let share = |point: &Point| {
            let guest = point.guests.values().next()?;
            Some((point.t - start, 100.0 * guest.hot_share?))
        };
        let points = self.series.iter().filter_map(share);
        points.filter(|(t, _)| *t >= 0.0).collect()
    }

    /// The pools of all nodes at each look that found any: seconds since the run began, and the pools.
    fn pools(&self) -> Vec<(f64, &[Pool])> {
        let has_pages = |point: &&Point| point.pools.iter().any(|pool| pool.total > 0);
        let points = self.series.iter().filter(has_pages);
        points.map(|point| (point.t, &point.pools[..])).collect()
    }

    /// When the hot set moved.
    fn moves(&self) -> Vec<f64> {
        let marks = self.marks.iter();
        let moved = marks.filter(|(_, mark, _)| mark == "hot-moved");
        moved.map(|(t, _, _)| t - self.start()).collect()
    }

    fn start(&self) -> f64 {
        let mut marks = self.marks.iter();
        marks
            .find(|(_, mark, _)| mark == "work-ready")
            .map_or(0.0, |(t, _, _)| *t)
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match picture(&arguments) {
        Ok(svg) => {
            print!("{svg}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("lab-plot: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn read(path: &str) -> anyhow::Result<Lab> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    serde_json::from_str(&text).with_context(|| format!("{path} is no result of the lab"))
}

fn picture(arguments: &[String]) -> anyhow::Result<String> {
    if let [option, path] = arguments
        && option == "--pools"
    {
        return pools_picture(&read(path)?);
    }
    if let [option, path] = arguments
        && option == "--shares"
    {
        return shares_picture(&read(path)?);
    }
    let mut labs = Vec::new();
    for argument in arguments {
        let (name, path) = argument
            .split_once('=')
            .with_context(|| format!("'{argument}' is not NAME=RESULT.json"))?;
        labs.push((name, read(path)?));
    }
    let Some((_, first)) = labs.first() else {
        bail!("give NAME=RESULT.json, once or more; the result is what `scripts/lab --json` wrote");
    };
    let runs: Vec<&str> = first.runs.iter().map(|run| run.run.as_str()).collect();
    below_one_another(SIZE.1, &runs, |area, name| {
        let lines: Vec<(&str, &Run)> = labs
            .iter()
            .filter_map(|(label, lab)| {
                let run = lab.runs.iter().find(|run| run.run == *name)?;
                Some((*label, run))
            })
            .collect();
        draw(area, name, &lines)
    })
}

/// Pictures of this height below one another, one for each of `items`.
fn below_one_another<T>(
    height: u32,
    items: &[T],
    draw: impl Fn(&Area<'_>, &T) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let size = (SIZE.0, height * items.len() as u32);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        for (area, item) in root.split_evenly((items.len(), 1)).iter().zip(items) {
            draw(area, item)?;
        }
        root.present()?;
    }
    Ok(svg)
}

fn pools_picture(lab: &Lab) -> anyhow::Result<String> {
    let runs: Vec<&Run> = lab
        .runs
        .iter()
        .filter(|run| !run.pools().is_empty())
        .collect();
    if runs.is_empty() {
        bail!("no run of this result had pools");
    }
    below_one_another(POOLS_HEIGHT, &runs, |area, run| draw_pools(area, run))
}

fn shares_picture(lab: &Lab) -> anyhow::Result<String> {
    let runs = lab.runs.iter().filter(|run| !run.sharers().is_empty());
    let runs: Vec<&Run> = runs.collect();
    if runs.is_empty() {
        bail!("no run of this result measured the DRAM of guests");
    }
    below_one_another(SIZE.1, &runs, |area, run| draw_shares(area, run))
}

fn draw_shares(area: &Area<'_>, run: &Run) -> anyhow::Result<()> {
    let names = run.sharers();
    let is_named = names.len() <= MOST_NAMED;
    let all: Vec<[Vec<(f64, f64)>; 2]> = names.iter().map(|name| run.shares(name)).collect();
    let points = all.iter().flatten().flatten();
    let (end, most) = points.fold((1.0_f64, 1.0_f64), |(end, most), (t, mib)| {
        (end.max(*t), most.max(*mib))
    });
    let mut chart = ChartBuilder::on(area)
        .caption(&run.run, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(34)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..end, 0.0..most * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("seconds; dashed: what the guest is entitled to")
        .y_desc("MiB of DRAM")
        .y_label_formatter(&|y| format!("{y:.0}"))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .max_light_lines(0)
        .draw()?;
    for (at, phase) in run.phases() {
        let line = [(at, 0.0), (at, most * 1.1)];
        chart.draw_series(LineSeries::new(line, BLACK.mix(0.3)))?;
        let place = (at + end * 0.005, most * 1.08);
        chart.draw_series([Text::new(phase.to_owned(), place, ("sans-serif", 12))])?;
    }
    for ((name, [has, entitled]), colour) in names.iter().zip(all).zip(COLOURS.iter().cycle()) {
        let colour = if is_named { *colour } else { COLOURS[1] };
        let line = colour.stroke_width(if is_named { 2 } else { 1 });
        let drawn = chart.draw_series(LineSeries::new(has, line))?;
        if is_named {
            drawn
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], line));
        }
        chart.draw_series(DashedLineSeries::new(
            entitled,
            6,
            4,
            colour.stroke_width(1),
        ))?;
    }
    if is_named {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::MiddleRight)
            .background_style(WHITE.mix(0.8))
            .draw()?;
    }
    Ok(())
}

fn draw_pools(area: &Area<'_>, run: &Run) -> anyhow::Result<()> {
    let looks = run.pools();
    let all = looks.iter().flat_map(|(_, pools)| *pools);
    let most = all.map(|pool| pool.total).max().unwrap_or(1);
    let end = looks.last().map_or(1.0, |(t, _)| *t);
    let mut chart = ChartBuilder::on(area)
        .caption(&run.run, ("sans-serif", 14))
        .margin(6)
        .x_label_area_size(30)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..end, 0.0..f64::from(most) * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("seconds")
        .y_desc("pages")
        .y_label_formatter(&|y| format!("{y:.0}"))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .max_light_lines(0)
        .y_labels(4)
        .draw()?;
    let nodes = looks.iter().map(|(_, pools)| pools.len()).max();
    for (node, colour) in (0..nodes.unwrap_or(0)).zip(COLOURS.iter().cycle()) {
        type Figure = (&'static str, u32, fn(&Pool) -> u32);
        let figures: [Figure; 3] = [
            ("pages", 3, |pool| pool.total),
            ("free", 1, |pool| pool.free),
            ("surplus", 2, |pool| pool.surplus),
        ];
        for (figure, width, of) in figures {
            let points = looks.iter().filter_map(|(t, pools)| {
                let pool = pools.get(node)?;
                Some((*t, f64::from(of(pool))))
            });
            let points: Vec<(f64, f64)> = points.collect();
            if figure == "surplus" && points.iter().all(|(_, pages)| *pages == 0.0) {
                continue;
            }
            let line = colour.stroke_width(width);
            chart
                .draw_series(LineSeries::new(points, line))?
                .label(format!("node {node}: {figure}"))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], line));
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(area: &Area<'_>, name: &str, lines: &[(&str, &Run)]) -> anyhow::Result<()> {
    let ends = lines
        .iter()
        .filter_map(|(_, run)| run.line().last().copied());
    let end = ends.map(|(t, _)| t).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(name, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(34)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..end, 0.0..105.0)?;
    chart
        .configure_mesh()
        .x_desc("seconds; dashed: the hot set moves")
        .y_desc("hot set in DRAM, %")
        .y_label_formatter(&|y| format!("{y:.0}"))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .max_light_lines(0)
        .draw()?;
    // All runs follow one plan.
    for at in lines.last().map(|(_, run)| run.moves()).unwrap_or_default() {
        let line = [(at, 0.0), (at, 105.0)];
        let style = ShapeStyle::from(&BLACK.mix(0.5));
        chart.draw_series(DashedLineSeries::new(line, 4, 4, style))?;
    }
    for ((label, run), colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(run.line(), colour.stroke_width(2)))?
            .label(*label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}
