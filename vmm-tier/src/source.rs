//! Sources of accesses: what they have in common, and how each is opened.
//!
//! ```text
//!  kernel, guest agent ─► Source (in a thread of its own) ─► SampleBatch ─► agent ─► VmEngine
//! ```
//!
//! A source knows how to get records and what each of them says. It knows nothing of heat or of other
//! sources. Every record is counted once: as a sample, or in the account with the reason why it is none.

mod choice;
pub(crate) mod damon;
pub(crate) mod guest;
pub(crate) mod ibs;
pub(crate) mod pebs;
mod replay;
pub(crate) mod thread;
mod turn;
mod vcpus;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tier_core::{
    addr::Hva,
    damon_pace::{Pace, PaceKeeper},
    map::GuestMemoryMap,
    sample::{SampleBatch, Sight, SourceKind},
};
use tier_sys::{damon::DamonSettings, sysroot::SysRoot, wait::Wait};

pub(crate) use self::choice::{Candidate, ParseSourceError, SourceChoice, checked};

/// What a source is opened with.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) root: SysRoot,
    pub(crate) run_dir: PathBuf,
    /// QEMU's process.
    pub(crate) pid: u32,
    /// The threads of the guest's CPUs.
    pub(crate) vcpus: Vec<u32>,
    /// Whether KVM runs the guest's code; else QEMU itself does.
    pub(crate) is_kvm: bool,
    /// How DAMON samples while pages are to be found.
    pub(crate) damon: DamonSettings,
    /// How many times less often DAMON samples while the guest is at rest.
    pub(crate) quiet_factor: u32,
    /// The share of one core that a source which can choose its period may take.
    pub(crate) cpu_budget: f64,
}

/// Two looks of DAMON at a region never come closer: its thread can hardly sleep for less.
const LEAST_SAMPLING: Duration = Duration::from_millis(1);

impl Setup {
    /// The pace as set of a source that tests pages.
    fn base_pace(&self) -> Pace {
        Pace {
            sampling: self.damon.sampling,
            aggregation: self.damon.aggregation,
            max_regions: self.damon.max_regions,
            turns: None,
        }
    }

    /// The pace of a source that tests pages, on the host or in the guest. It begins as set.
    fn pace_keeper(&self) -> PaceKeeper {
        PaceKeeper::new(self.base_pace(), LEAST_SAMPLING, self.quiet_factor)
    }
}

/// What one poll brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Polled {
    /// Oldest first.
    pub(crate) batches: Vec<SampleBatch>,
    /// What was found page by page in a small part of the guest, beside the batches.
    pub(crate) grid: Option<SampleBatch>,
    /// Why nothing more will come; `None` while the source works.
    pub(crate) ended: Option<String>,
}

/// A source of accesses to one guest's memory. Dropping it without [`Self::stop`] may leave something
/// behind that a later agent clears away.
pub(crate) trait Source: Send {
    fn kind(&self) -> SourceKind;

    fn sight(&self) -> Sight;

    /// One line for operators: what it is, its period, what it sees.
    fn label(&self) -> String;

    /// Waits and takes what has come. Called in a loop by the source's own thread.
    fn poll(&mut self, wait: Wait<'_>) -> anyhow::Result<Polled>;

    /// Batches are of this map from now on.
    fn set_map(&mut self, map: &Arc<GuestMemoryMap>) -> anyhow::Result<()>;

    /// The guest is at rest, or no longer.
    fn set_quiet(&mut self, quiet: bool) -> anyhow::Result<()> {
        let _ = quiet;
        Ok(())
    }

    /// The guest's CPUs run in these threads from now on.
    fn set_vcpus(&mut self, tids: &[u32]) -> anyhow::Result<()> {
        let _ = tids;
        Ok(())
    }

    /// These pages (host-virtual start, bytes) were just moved: they have other physical addresses.
    fn moved(&mut self, pages: &[(Hva, u64)]) {
        let _ = pages;
    }

    /// Ends the source and leaves nothing behind.
    fn stop(self: Box<Self>) -> anyhow::Result<()>;
}

/// Opens a source, each time it is called.
pub(crate) type Opener =
    Box<dyn FnMut(&Setup, &Arc<GuestMemoryMap>) -> anyhow::Result<Box<dyn Source>> + Send>;
