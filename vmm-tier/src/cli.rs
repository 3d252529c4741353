//! The command line. A contract: tests and users rely on names and meanings.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use tier_core::addr::NodeSet;

use crate::{duration, replay::ReplayArgs, size::Size, trace::Format};

/// Memory tiering for hosts of KVM/QEMU guests.
#[derive(Debug, Parser)]
#[command(name = "vmm-tier", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Tier one QEMU guest: run beside it until it ends
    Run(Box<RunArgs>),
    /// Send one QMP command to an agent's control socket and print the reply
    #[command(
        after_help = "Exit status: 0 on a return, 1 on an error reply or if the agent can't be reached."
    )]
    Ctl {
        /// The agent's control socket
        socket: PathBuf,
        /// The command, such as query-tier
        command: String,
        /// Its arguments, a JSON object
        arguments: Option<String>,
    },
    /// Show the guest's memory: guest-physical ranges, RAM blocks, page size and bytes on each node
    Map {
        /// A QMP socket of the guest's QEMU that no other client uses
        #[arg(long, value_name = "SOCKET")]
        qmp: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Record the accesses of a guest into a trace, or make a trace of what other programs wrote
    #[command(
        after_help = "The trace is called OUTPUT.part until it is whole. Nothing of the guest is moved."
    )]
    Record(Box<RecordArgs>),
    /// Let policies place a recorded guest's pages again, and compare them with one that knows the future
    #[command(
        after_help = "Exit status: 0 if all was replayed. With the same input the figures are the same, but for CPU time."
    )]
    Replay(Box<ReplayArgs>),
    /// Say what works on this host, what would fight the tiering, and what to do
    #[command(after_help = "Exit status: 0 only if tiering can run here.")]
    Doctor {
        /// Look at the guest behind this QMP socket too
        #[arg(long, value_name = "SOCKET")]
        qmp: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `run`. Each overrides the configuration file.
#[derive(Debug, Default, Args)]
pub(crate) struct RunArgs {
    /// A QMP socket of the guest's QEMU that no other client uses
    #[arg(long, value_name = "SOCKET")]
    pub(crate) qmp: Option<PathBuf>,
    /// The VM's name in reports [default: QEMU's -name, or its pid]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Nodes of the fast tier, such as 0 or 0,2-3 [default: as the kernel ranks them]
    #[arg(long, value_name = "NODES")]
    pub(crate) fast: Option<NodeSet>,
    /// Nodes of the slow tier
    #[arg(long, value_name = "NODES")]
    pub(crate) slow: Option<NodeSet>,
    /// Most of the fast tier that the guest may hold: 512M, or 20% of its memory
    #[arg(long, value_name = "SIZE")]
    pub(crate) fast_limit: Option<Size>,
    /// Where samples come from: auto, or names joined by commas: damon, ibs, ibs=FILE, pebs, guest=SOCKET,
    /// guest=vsock:CID:PORT, replay=FILE
    #[arg(long, value_name = "SOURCE", value_parser = crate::source::checked)]
    pub(crate) source: Option<String>,
    /// The tiering policy: dual-heap
    #[arg(long, value_name = "NAME")]
    pub(crate) policy: Option<String>,
    /// Listen for QMP commands here
    #[arg(long, value_name = "SOCKET")]
    pub(crate) control: Option<PathBuf>,
    /// Serve QEMU's monitor to many clients here, with the tier commands and events beside QEMU's
    #[arg(long, value_name = "SOCKET")]
    pub(crate) proxy: Option<PathBuf>,
    /// A configuration file; see examples/vmm-tier.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Plan and report, but move nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Arguments of `record`.
#[derive(Debug, Args)]
pub(crate) struct RecordArgs {
    /// A QMP socket of the guest's QEMU that no other client uses
    #[arg(long, value_name = "SOCKET", required_unless_present = "import")]
    pub(crate) qmp: Option<PathBuf>,
    /// The trace to make
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// How long to record [default: until told to end, or the guest ends]
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
    /// Make the trace from this file: CSV lines, output of valgrind's lackey, or a recording that was cut;
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
    /// Keep what is whole of a recording that was cut
    #[arg(long, conflicts_with = "qmp")]
    pub(crate) partial: bool,
}
