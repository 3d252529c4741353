//! A recording as one page of HTML: its heat over time and space, its demand for DRAM, and what it would
//! get under each policy.
//!
//! The page needs nothing beside it, and no script. Its size does not grow with the recording: a few
//! hundred kilobytes.

mod heat;
mod html;
mod plot;

use std::path::PathBuf;

use clap::Args;

use self::heat::{Demand, Heat};
use super::{
    ComparisonError,
    args::memory,
    fast::FastSize,
    passes,
    progress::Progress,
    report::{Report, Trace},
    settings::Settings,
};
use crate::trace::{self, Options, TraceInfo};

/// The shares of accesses for which the page names the DRAM.
const TARGETS: [f64; 3] = [0.9, 0.95, 0.99];

/// What `vmm-tier report` makes a page of, and how.
#[derive(Debug, Args)]
pub struct PageArgs {
    /// The recording, of `vmm-tier record`; other traces that `replay` reads will do, too
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Policies, or all; the oracle always runs, as the measure of the others
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "all"
    )]
    pub(crate) policy: Vec<String>,
    /// DRAM for the guest: 512M, 25% or 1:4 of its memory
    #[arg(
        long,
        value_name = "SIZE",
        value_delimiter = ',',
        default_value = "10%,25%,50%,75%"
    )]
    pub(crate) fast: Vec<FastSize>,
    /// Policies see one access in N as a sample [default: 4093; every record of a recording whose
    /// source sampled]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) period: Option<u64>,
    /// Take the intact part of a recording that was cut
    #[arg(long)]
    pub(crate) partial: bool,
    /// Memory for the oracle's knowledge of the future
    #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = memory)]
    pub(crate) memory: u64,
    /// Print no progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

impl PageArgs {
    /// The recording.
    #[must_use]
    pub fn file(&self) -> &std::path::Path {
        &self.file
    }
}

/// What the page shows.
struct Page<'a> {
    info: &'a TraceInfo,
    /// The policies' runs, and what is known of the trace.
    report: &'a Report,
    trace: &'a Trace,
    heat: &'a Heat,
    /// PNG of the heat map.
    picture: &'a [u8],
    demand: &'a Demand,
}

/// Makes the page.
///
/// # Errors
/// If the recording can't be replayed, or a policy is not known.
pub fn make(args: &PageArgs) -> Result<String, ComparisonError> {
    let settings = Settings::of_recording(args)?;
    let options = Options {
        partial: args.partial,
        ..Options::default()
    };
    let opened = trace::open(&args.file, trace::Format::Auto, options);
    let info = opened.map_err(ComparisonError::Trace)?.info;
    let progress = Progress::new(args.quiet);
    let mut heat = Heat::default();
    let mut report = Report::default();
    for input in &settings.inputs {
        let outcome = passes::replay(input, &settings, &progress, &mut heat)
            .map_err(|error| ComparisonError::of(error, input.name()))?;
        report.add(outcome.trace, outcome.runs);
    }
    progress.end();
    let demand = heat.demand();
    let picture = heat.png()?;
    let trace = report.traces.first().cloned().unwrap_or_default();
    Ok(html::page(&Page {
        info: &info,
        report: &report,
        trace: &trace,
        heat: &heat,
        picture: &picture,
        demand: &demand,
    }))
}

#[cfg(test)]
mod tests;
