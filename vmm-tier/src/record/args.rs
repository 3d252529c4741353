//! The arguments of `vmm-tier record`. A contract: tests and users rely on names and meanings.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use tier_core::text::duration;
use tier_replay::trace::Format;

/// Arguments of `record`.
#[derive(Debug, Args)]
pub(crate) struct RecordArgs {
    /// A QMP socket of the guest's QEMU that no other client uses
    #[arg(long, value_name = "SOCKET", required_unless_present = "import")]
    pub(crate) qmp: Option<PathBuf>,
    /// The trace to make
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// How long to record [default: until stopped, or until the guest ends]
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
    pub(crate) time: Option<Duration>,
    /// Where samples come from, as for run
    #[arg(long, value_name = "SOURCE", value_parser = crate::source::checked)]
    pub(crate) source: Option<String>,
    /// The VM's or the program's name in the trace
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// A configuration file, as for run
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Make the trace from this file: CSV lines, output of valgrind's lackey, or a recording that was
    /// cut;
    /// - is the standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["qmp", "time", "source", "config"])]
    pub(crate) import: Option<PathBuf>,
    /// The imported file's format: auto, native, csv, lackey
    #[arg(long, default_value_t, conflicts_with = "qmp")]
    pub(crate) format: Format,
    /// Time that each data access takes where the imported file has no clock
    #[arg(
        long, value_name = "DURATION", default_value = "1us", value_parser = duration::parse,
        conflicts_with = "qmp"
    )]
    pub(crate) step: Duration,
    /// Keep the intact part of a recording that was cut
    #[arg(long, conflicts_with = "qmp")]
    pub(crate) partial: bool,
}
