//! The command line of `vmm-tier replay`. A contract: tests and users rely on names and meanings.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::Args;
use tier_core::{
    settings::PolicyName,
    text::{duration, size::Size},
};

use super::fast::FastSize;
use crate::trace::Format;

/// Arguments of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// Traces: recordings of `vmm-tier record`, lines of time_ns,address,kind, or output of valgrind's
    /// lackey
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Generated workloads, or all; an unknown name prints the list
    #[arg(long, value_name = "NAME", value_delimiter = ',', group = "generated")]
    pub(crate) workload: Vec<String>,
    /// Let so many generated VMs share the DRAM of a host, by rules that are compared: first come, and the
    /// arbiter's modes
    #[arg(
        long,
        value_name = "N",
        group = "generated",
        value_parser = clap::value_parser!(u16).range(1..=1000),
        conflicts_with_all = [
            "files", "policy", "period", "format", "svg", "timeline", "target", "stretch", "step",
            "partial", "memory", "huge", "bias", "loss", "half_life", "sketch_memory", "pages", "rate",
        ]
    )]
    pub(crate) vms: Option<u16>,
    /// Policies, or all; the oracle always runs, as the measure of the others
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = PolicyName::DualHeap.name()
    )]
    pub(crate) policy: Vec<String>,
    /// DRAM for the guest: 512M, 25% or 1:4 of its memory; several give the curve
    #[arg(
        long,
        value_name = "SIZE",
        value_delimiter = ',',
        default_value = "25%"
    )]
    pub(crate) fast: Vec<FastSize>,
    /// Policies see one access in N as a sample [default: 4093; every record of a recording whose
    /// source sampled]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) period: Option<u64>,
    /// The files' format: auto, native, csv, lackey
    #[arg(long, default_value_t)]
    pub(crate) format: Format,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Write tables for a document here
    #[arg(long, value_name = "FILE")]
    pub(crate) markdown: Option<PathBuf>,
    /// Draw hit ratio over DRAM here, as SVG; needs a build with the feature `charts`
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Print no curve
    #[arg(long)]
    pub(crate) no_chart: bool,
    /// Add the share of hits in each second to the JSON
    #[arg(long, requires = "json")]
    pub(crate) timeline: bool,
    /// Print no progress
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// Hit ratio in percent for which the report names the DRAM that each policy needs
    #[arg(long, value_name = "PERCENT", default_value = "95", value_parser = percent)]
    pub(crate) target: f64,

    /// Play a trace N times slower; auto stretches a shorter trace to 120 s, as policies count in
    /// seconds
    #[arg(
        long,
        value_name = "N|auto",
        default_value = "auto",
        help_heading = "Time and memory"
    )]
    pub(crate) stretch: Stretch,
    /// Time that each data access takes in a format without a clock, which is lackey's
    #[arg(
        long,
        alias = "access-time",
        value_name = "DURATION",
        default_value = "1us",
        value_parser = duration::parse,
        help_heading = "Time and memory"
    )]
    pub(crate) step: Duration,
    /// Replay the intact part of a recording that was cut
    #[arg(long, help_heading = "Time and memory")]
    pub(crate) partial: bool,
    /// Memory for the oracle's knowledge of the future: with less, its epochs are longer than a second
    #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = memory, help_heading = "Time and memory")]
    pub(crate) memory: u64,
    /// The guest has pages of 2 MiB
    #[arg(long, help_heading = "Time and memory")]
    pub(crate) huge: bool,

    /// Accesses to DRAM are sampled N times as often as accesses to slow memory
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = bias, help_heading = "Sampling and policies")]
    pub(crate) bias: f64,
    /// Percentage of samples that are lost
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = percent, help_heading = "Sampling and policies")]
    pub(crate) loss: f64,
    /// The half-life of heat, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds, help_heading = "Sampling and policies")]
    pub(crate) half_life: f64,
    /// Memory for the sketch of the policy sds [default: 4 bytes a page, from 16K to 4M]
    #[arg(long, value_name = "SIZE", value_parser = sketch_memory, help_heading = "Sampling and policies")]
    pub(crate) sketch_memory: Option<u64>,
    /// Seed of the random numbers
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        help_heading = "Sampling and policies"
    )]
    pub(crate) seed: u64,

    /// Pages of 4 KiB of a generated guest
    #[arg(long, value_name = "N", requires = "workload", help_heading = "Workloads", value_parser = clap::value_parser!(u32).range(64..=1 << 28))]
    pub(crate) pages: Option<u32>,
    /// Accesses a second
    #[arg(long, value_name = "N", requires = "workload", help_heading = "Workloads", value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000))]
    pub(crate) rate: Option<u64>,
    /// How long it runs
    #[arg(long, value_name = "SECONDS", requires = "generated", help_heading = "Workloads", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) seconds: Option<u32>,
}

/// How much slower a trace is played.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stretch {
    /// Such that it is long enough.
    Auto,
    /// So many times.
    By(f64),
}

/// A text that is no number, or a number out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not {what}")]
pub(crate) struct ParseNumberError {
    text: String,
    what: &'static str,
}

fn number(
    text: &str,
    what: &'static str,
    range: std::ops::RangeInclusive<f64>,
) -> Result<f64, ParseNumberError> {
    let number = text.trim().parse().ok().filter(|n| range.contains(n));
    number.ok_or_else(|| ParseNumberError {
        text: text.to_owned(),
        what,
    })
}

fn percent(text: &str) -> Result<f64, ParseNumberError> {
    let bare = text.trim().trim_end_matches('%');
    number(bare, "a percentage from 0 to 100", 0.0..=100.0)
}

pub(super) fn memory(text: &str) -> Result<u64, ParseNumberError> {
    match text.parse() {
        Ok(Size::Bytes(bytes)) if bytes >= 1 << 20 => Ok(bytes),
        _ => Err(ParseNumberError {
            text: text.to_owned(),
            what: "an amount of memory from 1M on, such as 512M or 4G",
        }),
    }
}

fn sketch_memory(text: &str) -> Result<u64, ParseNumberError> {
    match text.parse() {
        Ok(Size::Bytes(bytes)) if bytes <= 1 << 40 => Ok(bytes),
        _ => Err(ParseNumberError {
            text: text.to_owned(),
            what: "an amount of memory up to 1T, such as 64K or 4M",
        }),
    }
}

fn bias(text: &str) -> Result<f64, ParseNumberError> {
    number(text, "a factor from 1 to 1000", 1.0..=1000.0)
}

fn seconds(text: &str) -> Result<f64, ParseNumberError> {
    number(
        text,
        "a number of seconds from 0.01 to 86400",
        0.01..=86_400.0,
    )
}

impl FromStr for Stretch {
    type Err = ParseNumberError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WHAT: &str = "auto or a factor from 0.000001 to 1000000000";
        match text {
            "auto" => Ok(Self::Auto),
            _ => number(text, WHAT, 1e-6..=1e9).map(Self::By),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_when_out_of_range_are_refused() {
        assert_eq!(percent("95%"), Ok(95.0));
        assert_eq!("auto".parse(), Ok(Stretch::Auto));
        assert_eq!("1e3".parse(), Ok(Stretch::By(1000.0)));
        for text in ["", "NaN", "-1", "101", "x"] {
            assert!(percent(text).is_err(), "{text}");
        }
        for text in ["0", "NaN", "inf", "fast"] {
            assert!(text.parse::<Stretch>().is_err(), "{text}");
        }
        assert_eq!(memory("512M"), Ok(512 << 20));
        for text in ["1K", "20%", "much"] {
            assert!(memory(text).is_err(), "{text}");
        }
        assert!(bias("0.5").is_err());
        assert!(seconds("0").is_err());
    }
}
