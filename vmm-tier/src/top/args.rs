//! The arguments of `vmm-tier top`. A contract: tests and users rely on names and meanings.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use tier_core::text::duration;

use super::columns::Column;

/// Arguments of `top`.
#[derive(Debug, Default, Args)]
pub(crate) struct TopArgs {
    /// The socket of the host daemon, or an agent's control socket [default: /run/vmm-tier/host.sock]
    #[arg(value_name = "SOCKET", conflicts_with = "replay")]
    pub(crate) socket: Option<PathBuf>,
    /// Print the figures once, as a table, and end
    #[arg(long, group = "printed")]
    pub(crate) once: bool,
    /// Print the figures once, as JSON, and end
    #[arg(long, group = "printed")]
    pub(crate) json: bool,
    /// Print the VMs' figures once, as CSV, and end
    #[arg(long, group = "printed")]
    pub(crate) csv: bool,
    /// Show a recording (vmm-tier host --record, vmm-tier top --record)
    #[arg(long, value_name = "FILE")]
    pub(crate) replay: Option<PathBuf>,
    /// Where to begin in the recording, such as 12m
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, requires = "replay")]
    pub(crate) at: Option<Duration>,
    /// Write what is shown to this file, which must not exist: an hour, and 1 GiB, at most
    #[arg(long, value_name = "FILE", conflicts_with_all = ["replay", "printed"])]
    pub(crate) record: Option<PathBuf>,
    /// What VMs are sorted by: a figure such as name, fast-bytes, hit-ratio; the largest come first but for
    /// texts
    #[arg(long, value_name = "FIGURE", value_parser = Column::parse)]
    pub(crate) sort: Option<&'static Column>,
    /// Show only VMs that have this text in their name, state, source or reason
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) filter: String,
}
