//! The command line of `vmm-tier what-if`. A contract: tests and users rely on names and meanings.

use std::path::PathBuf;

use clap::Args;
use tier_core::arbiter::Mode;

use crate::{comparison::fast::FastSize, trace::Format};

/// Arguments of `what-if`.
#[derive(Debug, Args)]
pub struct WhatIfArgs {
    /// Recorded guests: traces as `vmm-tier replay` reads them; NAME=FILE names a guest, FILE*3 is three
    /// guests that do the same, each at another time
    #[arg(value_name = "[NAME=]FILE[*COPIES]", required = true)]
    pub(super) recordings: Vec<String>,
    /// DRAM that the guests share: 64G, or 25% or 1:4 of the memory of all guests; several are compared
    #[arg(
        long,
        value_name = "SIZE",
        value_delimiter = ',',
        default_value = "10%,25%,50%,75%"
    )]
    pub(super) dram: Vec<FastSize>,
    /// DRAM that is a guest's whenever it uses as much: 2G, or 25% of its memory
    #[arg(
        long,
        value_name = "[NAME=]SIZE",
        value_delimiter = ',',
        help_heading = "What guests are granted"
    )]
    pub(super) guarantee: Vec<String>,
    /// A guest's part of what is above all guarantees, relative to other guests [default: 1]
    #[arg(
        long,
        value_name = "[NAME=]WEIGHT",
        value_delimiter = ',',
        help_heading = "What guests are granted"
    )]
    pub(super) weight: Vec<String>,
    /// The most DRAM that a guest may have [default: its memory]
    #[arg(
        long,
        value_name = "[NAME=]SIZE",
        value_delimiter = ',',
        help_heading = "What guests are granted"
    )]
    pub(super) cap: Vec<String>,
    /// The share of accesses that DRAM shall serve, for --mode goal [default: 95%]
    #[arg(
        long,
        value_name = "[NAME=]PERCENT",
        value_delimiter = ',',
        help_heading = "What guests are granted"
    )]
    pub(super) goal: Vec<String>,
    /// How many virtual CPUs a guest kept busy while it was recorded, such as 1.5; without it a guest is
    /// taken to do nothing but wait for memory, which is the worst case
    #[arg(
        long,
        value_name = "[NAME=]N",
        value_delimiter = ',',
        help_heading = "What guests are granted"
    )]
    pub(super) cpus: Vec<String>,
    /// What decides: static, weighted, utility, goal
    #[arg(long, value_name = "MODE", default_value_t = Mode::Weighted, value_parser = mode)]
    pub(super) mode: Mode,
    /// For --mode utility: the part of its fair share that a guest can lose to others
    #[arg(long, value_name = "X", default_value_t = 0.2, value_parser = band)]
    pub(super) band: f64,
    /// A guest fits if it takes at most so much longer than with all of its memory in DRAM
    #[arg(long, value_name = "PERCENT", default_value = "5", value_parser = percent)]
    pub(super) loss: f64,
    /// The share of accesses for which the DRAM of each guest is told
    #[arg(long, value_name = "PERCENT", default_value = "95", value_parser = percent)]
    pub(super) target: f64,
    /// Copies of a recording do the same at the same time
    #[arg(long)]
    pub(super) in_step: bool,
    /// The files' format: auto, native, csv, lackey
    #[arg(long, default_value_t)]
    pub(super) format: Format,
    /// Use the intact part of a recording that was cut
    #[arg(long)]
    pub(super) partial: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Draw loss over DRAM here, as SVG; needs a build with the feature `charts`
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
    /// Print no progress
    #[arg(long, short)]
    pub(super) quiet: bool,
}

fn mode(text: &str) -> Result<Mode, String> {
    let found = Mode::ALL.into_iter().find(|mode| mode.name() == text);
    found.ok_or_else(|| {
        let known = Mode::ALL.map(Mode::name).join(", ");
        format!("'{text}' is no mode: {known}")
    })
}

fn band(text: &str) -> Result<f64, String> {
    let number = text
        .trim()
        .parse()
        .ok()
        .filter(|band| (0.0..=1.0).contains(band));
    number.ok_or_else(|| format!("'{text}' is no part from 0 to 1"))
}

/// A percentage as a part.
pub(super) fn percent(text: &str) -> Result<f64, String> {
    let bare = text.trim().trim_end_matches('%').trim_end();
    let number = bare
        .parse()
        .ok()
        .filter(|part| (0.0..=100.0).contains(part));
    number
        .map(|percent: f64| percent / 100.0)
        .ok_or_else(|| format!("'{text}' is not a percentage from 0 to 100"))
}
