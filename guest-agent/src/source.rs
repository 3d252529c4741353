//! Where observations come from in this guest, best first: PEBS or IBS if records carry addresses, else
//! DAMON, else page faults.

mod cpus;
mod damon;
mod faults;
mod frames;
mod precise;

use std::{path::Path, time::Duration};

use anyhow::Context;
use tier_core::wire::{BatchBuilder, Drops, InGuest, Wish};
use tier_sys::sysroot::SysRoot;

/// What was observed in one stretch of time.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) observed: BatchBuilder,
    /// When it ended, on the monotonic clock.
    pub(crate) clock_ns: u64,
    /// How long it took.
    pub(crate) span_ns: u64,
}

/// A source in the guest.
pub(crate) trait InGuestSource {
    /// Waits up to `timeout` and takes what has come.
    fn poll(&mut self, timeout: Duration) -> anyhow::Result<Vec<Taken>>;

    /// Keeps to this pace from now on, as far as it can.
    fn set_wish(&mut self, wish: &Wish) -> anyhow::Result<()>;

    /// What it lost or left out so far.
    fn drops(&self) -> Drops;

    /// Ends it and leaves nothing behind.
    fn stop(self: Box<Self>) -> anyhow::Result<()>;
}

/// What sources are opened with.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) root: SysRoot,
    pub(crate) run_dir: std::path::PathBuf,
    /// Most regions, whatever is wished.
    pub(crate) max_regions: u32,
    /// The guest's memory, as (first address, bytes), rising; empty where that is hidden from us.
    pub(crate) memory: Vec<(u64, u64)>,
}

impl Setup {
    pub(crate) fn new(root: SysRoot, run_dir: &Path, max_regions: u32) -> Self {
        let mut setup = Self {
            root,
            run_dir: run_dir.to_owned(),
            max_regions,
            memory: Vec::new(),
        };
        setup.look_for_memory();
        setup
    }

    /// Reads where memory lies; whether that has changed: it may be plugged in or out.
    pub(crate) fn look_for_memory(&mut self) -> bool {
        // Only DAMON needs it, and says so where it can't be read.
        let memory = frames::system_ram(&self.root).unwrap_or_default();
        let changed = memory != self.memory;
        self.memory = memory;
        changed
    }
}

/// In which order sources are tried.
const BEST_FIRST: [InGuest; 4] = [InGuest::Pebs, InGuest::Ibs, InGuest::Damon, InGuest::Faults];

/// What is known of the sources of this guest.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Those that work, best first.
    pub(crate) can: Vec<InGuest>,
    /// Why the others don't.
    pub(crate) cannot: Vec<(InGuest, String)>,
}

impl Found {
    /// The reasons, in one line.
    pub(crate) fn reasons(&self) -> String {
        let reasons: Vec<_> = self
            .cannot
            .iter()
            .map(|(kind, why)| format!("{kind}: {why}"))
            .collect();
        reasons.join("; ")
    }
}

/// Tries every source (or only the one asked for): a hardware source must deliver the addresses of a known
/// buffer, the others must be there.
pub(crate) fn probe(setup: &Setup, only: Option<InGuest>) -> Found {
    let mut found = Found::default();
    for kind in BEST_FIRST {
        if only.is_some_and(|only| only != kind) {
            continue;
        }
        let probed = match kind {
            InGuest::Pebs => precise::probe_pebs(setup),
            InGuest::Ibs => precise::probe_ibs(setup),
            InGuest::Damon => damon::probe(setup),
            InGuest::Faults => faults::probe(setup),
            InGuest::Nothing => continue,
        };
        match probed {
            Ok(()) => found.can.push(kind),
            Err(error) => found.cannot.push((kind, format!("{error:#}"))),
        }
    }
    found
}

/// Opens a source.
pub(crate) fn open(
    setup: &Setup,
    kind: InGuest,
    wish: &Wish,
) -> anyhow::Result<Box<dyn InGuestSource>> {
    let opened = match kind {
        InGuest::Pebs => precise::open_pebs(setup, wish),
        InGuest::Ibs => precise::open_ibs(setup, wish),
        InGuest::Damon => damon::open(setup, wish),
        InGuest::Faults => faults::open(setup, wish),
        InGuest::Nothing => anyhow::bail!("no source works in this guest"),
    };
    opened.with_context(|| format!("{kind} can't be started"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setup_when_memory_is_plugged_sees_it_once() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("proc")).unwrap();
        let iomem = root.path().join("proc/iomem");
        let low = "00100000-0fffffff : System RAM\n";
        std::fs::write(&iomem, low).unwrap();
        let mut setup = Setup::new(SysRoot::at(root.path()), root.path(), 100);
        assert_eq!(setup.memory, [(1 << 20, 255 << 20)]);
        assert!(!setup.look_for_memory());

        std::fs::write(&iomem, format!("{low}100000000-10fffffff : System RAM\n")).unwrap();
        assert!(setup.look_for_memory());
        assert_eq!(setup.memory.len(), 2);
        assert!(!setup.look_for_memory());
    }

    #[test]
    fn probe_when_nothing_is_there_says_why_of_each() {
        let root = tempfile::tempdir().unwrap();
        let setup = Setup::new(SysRoot::at(root.path()), root.path(), 100);
        let found = probe(&setup, None);
        assert_eq!(found.can, []);
        let reasons = found.reasons();
        for word in ["pebs: ", "ibs: ", "damon: ", "page-faults: ", "run as root"] {
            assert!(reasons.contains(word), "{reasons}");
        }
        assert!(open(&setup, InGuest::Nothing, &Wish::default()).is_err());
    }
}
