//! The records of a guest's CPUs: from perf events on their threads, or from a software PMU's ring file.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use tier_core::sampling_period::{PeriodGoals, PeriodGovernor, PeriodLook};
use tier_sys::perf::{
    collect::Collected,
    record::Sample,
    ring::{MappedRing, Ring},
    ring_file,
    threads::{ThreadEvent, ThreadEvents},
};
use tier_sys::wait::Wait;

use crate::source::Setup;

/// A ring file wakes nobody: the longest time between two looks at a file that fills.
const FILE_WAIT: Duration = Duration::from_millis(100);
/// A ring file fills if this share of it, or more, was written between two looks.
const FILLS: f64 = 1.0 / 16.0;

/// See the [module](self).
pub(in crate::source) enum Feed {
    Threads {
        events: ThreadEvents,
        governor: PeriodGovernor,
        /// The period that the events have.
        period: u64,
    },
    File {
        ring: Ring<MappedRing>,
        path: PathBuf,
        /// It filled before the last look.
        fills: bool,
    },
}

impl Feed {
    /// Opens `events` on the vCPU threads of `setup`. Each begins with `period`, and has what serves
    /// `goals` later.
    pub(in crate::source) fn open(
        setup: &Setup,
        events: Vec<ThreadEvent>,
        (goals, period): (PeriodGoals, u64),
    ) -> anyhow::Result<Self> {
        let mut events = ThreadEvents::new(&setup.root, events);
        anyhow::ensure!(
            events.follow(&setup.vcpus)? > 0,
            "none of the vCPU threads of process {} is there to be watched: QEMU has ended, or did not \
             tell its threads",
            setup.pid
        );
        Ok(Self::Threads {
            events,
            governor: PeriodGovernor::new(goals, period),
            period,
        })
    }

    /// Opens the file `path`, into which a software PMU writes samples with the fields `sample_type`.
    pub(in crate::source) fn open_file(path: &Path, sample_type: u64) -> anyhow::Result<Self> {
        Ok(Self::File {
            ring: ring_file::open(path, sample_type)?,
            path: path.to_owned(),
            fills: true,
        })
    }

    /// Waits for records.
    pub(super) fn wait(&mut self, wait: Wait<'_>) -> anyhow::Result<()> {
        match self {
            Self::Threads { events, .. } => events.wait(wait),
            Self::File { fills: true, .. } => wait.at_most(FILE_WAIT).pass(),
            Self::File { .. } => wait.pass(),
        }
        .context("the rings of the vCPU threads can't be waited for")
    }

    /// Hands every sample to `take`, with the index of its event.
    #[inline]
    pub(super) fn collect(&mut self, mut take: impl FnMut(usize, Sample<'_>)) -> Collected {
        match self {
            Self::Threads { events, .. } => events.collect(take),
            Self::File { ring, fills, .. } => {
                *fills = ring.filled() >= FILLS;
                ring.collect(|sample| take(0, sample))
            }
        }
    }

    /// The accesses that a sample stands for, where the sample does not say.
    pub(in crate::source) fn period(&self) -> u64 {
        match self {
            Self::Threads { period, .. } => *period,
            Self::File { .. } => 1,
        }
    }

    /// The threads that are watched.
    pub(in crate::source) fn watched(&self) -> usize {
        match self {
            Self::Threads { events, .. } => events.watched(),
            Self::File { .. } => 0,
        }
    }

    /// The ring file, if the records come from one.
    pub(in crate::source) fn file(&self) -> Option<&Path> {
        match self {
            Self::Threads { .. } => None,
            Self::File { path, .. } => Some(path),
        }
    }

    /// Whether nothing will come any more.
    pub(super) fn has_ended(&self) -> bool {
        self.file().is_none() && self.watched() == 0
    }

    /// Watches exactly these threads from now on.
    pub(super) fn follow(&mut self, tids: &[u32]) -> anyhow::Result<()> {
        if let Self::Threads { events, .. } = self {
            events.follow(tids)?;
        }
        Ok(())
    }

    /// Takes `ease` times less from now on.
    pub(super) fn set_ease(&mut self, ease: u32) {
        if let Self::Threads { governor, .. } = self {
            governor.set_ease(ease);
        }
    }

    /// The period that suits what happened, if that is another one.
    pub(super) fn next_period(&mut self, look: &PeriodLook) -> Option<u64> {
        match self {
            Self::Threads { governor, .. } => governor.observe(look),
            Self::File { .. } => None,
        }
    }

    /// Every event samples one in `next` from now on.
    pub(super) fn set_period(&mut self, next: u64) -> anyhow::Result<()> {
        if let Self::Threads { events, period, .. } = self {
            for index in 0..events.events() {
                events.set_period(index, next)?;
            }
            *period = next;
        }
        Ok(())
    }
}
