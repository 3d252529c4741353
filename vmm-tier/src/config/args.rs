//! The arguments of `vmm-tier run`. A contract: tests and users rely on names and meanings.

use std::path::PathBuf;

use clap::Args;
use tier_core::{addr::NodeSet, text::size::Size};

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
    /// The socket of the host daemon that divides DRAM among VMs (vmm-tier host)
    #[arg(long, value_name = "SOCKET")]
    pub(crate) host: Option<PathBuf>,
    /// A configuration file; see examples/vmm-tier.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Let pages that the guest gave back and takes again come from the tier where they lay
    #[arg(long)]
    pub(crate) rebind: bool,
    /// Have the kernel split huge pages that few of their pages make hot; see docs/huge-pages.md
    #[arg(long)]
    pub(crate) thp_split: bool,
    /// Have the kernel make huge pages of evenly hot memory on the fast tier
    #[arg(long)]
    pub(crate) thp_collapse: bool,
    /// Let promotions take free memory beyond the hugetlb pool of the fast node; the pools drift then
    #[arg(long)]
    pub(crate) hugetlb_grow: bool,
    /// Plan and report, but move nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}
