//! Leaving the fast tier on an operator's word, and how far that has come.

use serde::Serialize;

use crate::engine::{VmEngine, VmState, mover::plan::Stall};
use crate::settings::Tier;

/// Why a drain does not come on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrainStall {
    /// The slow nodes have no room.
    NoSlowRoom,
    /// More than the target is pinned to the fast tier. Unpin to go on.
    Pinned,
    /// What is left can't be moved: other processes share it, or the kernel refuses.
    Unmovable,
}

/// How far a drain has come. All sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DrainProgress {
    /// What is to be left on the fast tier at most.
    pub target_bytes: u64,
    /// What was there when the drain began; if the guest was not looked at by then, when it was.
    pub start_bytes: u64,
    /// What is there now.
    pub fast_bytes: u64,
    /// Pinned to the fast tier and there: not drained.
    pub pinned_bytes: u64,
    /// Whether the target was reached.
    pub done: bool,
    /// Whether it does not come on.
    pub stuck: bool,
    /// Why it does not come on; `null` while it does.
    pub stuck_because: Option<DrainStall>,
}

/// A drain that was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    target_bytes: u64,
    /// Not known before all pages were looked up once.
    start_bytes: Option<u64>,
    done: bool,
    /// What was told last; `None` before anything was.
    told: Option<DrainProgress>,
}

impl VmEngine {
    /// Leaves the fast tier down to `bytes` bytes, coldest pages first, whatever it costs. The limit
    /// stays there when that is reached; another limit ends the drain. Pages pinned to the fast tier
    /// are not drained.
    pub fn drain(&mut self, bytes: u64) {
        self.settings.fast_limit_bytes = Some(bytes);
        self.drain = Some(Drain {
            target_bytes: bytes,
            start_bytes: self.fast_bytes_if_known(),
            done: false,
            told: None,
        });
        self.look_for_changes();
    }

    /// How far the drain has come; `None` if none was asked for since the limit was set last.
    #[must_use]
    pub fn drain_progress(&self) -> Option<DrainProgress> {
        let drain = self.drain?;
        let fast_bytes = self.bytes.of(Tier::Fast);
        // What was not looked at yet, or is on its way up, may be too much still.
        let is_low = self.fast_bytes_if_known().is_some_and(|bytes| {
            bytes.saturating_add(self.flights.promoting_bytes()) <= drain.target_bytes
        });
        let done = drain.done || is_low;
        let stuck_because = self.drain_stall(&drain).filter(|_| !done);
        Some(DrainProgress {
            target_bytes: drain.target_bytes,
            start_bytes: drain.start_bytes.unwrap_or(fast_bytes),
            fast_bytes,
            pinned_bytes: self.pinned_fast_bytes(),
            done,
            stuck: stuck_because.is_some(),
            stuck_because,
        })
    }

    /// Bytes on the fast tier; `None` before all pages were looked up once.
    fn fast_bytes_if_known(&self) -> Option<u64> {
        self.scanner
            .has_seen_all()
            .then(|| self.bytes.of(Tier::Fast))
    }

    fn drain_stall(&self, drain: &Drain) -> Option<DrainStall> {
        if self.state() != VmState::Running {
            return None;
        }
        // While something is under way nothing new is known.
        if !self.flights.is_empty() {
            return drain.told.and_then(|told| told.stuck_because);
        }
        match self.shrink_stall? {
            Stall::NoSlowRoom => Some(DrainStall::NoSlowRoom),
            Stall::NothingOffered if self.pinned_fast_bytes() > drain.target_bytes => {
                Some(DrainStall::Pinned)
            }
            // What cools down is tried again.
            Stall::NothingOffered if self.heap.counts().cooling > 0 => None,
            Stall::NothingOffered => Some(DrainStall::Unmovable),
        }
    }

    /// The progress, if it differs from what was told last by a hundredth of the way or in kind.
    pub(crate) fn drain_news(&mut self) -> Option<DrainProgress> {
        // While pages are looked up, what is found says nothing of the drain.
        let fast_bytes = self.fast_bytes_if_known()?;
        let progress = self.drain_progress()?;
        let drain = self.drain.as_mut()?;
        drain.start_bytes.get_or_insert(fast_bytes);
        drain.done = progress.done;
        let (told_bytes, told_kind) = drain
            .told
            .map_or((progress.start_bytes, (false, None)), |told| {
                (told.fast_bytes, (told.done, told.stuck_because))
            });
        let way = progress.start_bytes.saturating_sub(progress.target_bytes);
        let moved = told_bytes.abs_diff(progress.fast_bytes);
        let kind = (progress.done, progress.stuck_because);
        // Nothing more is told of a drain that is done.
        let is_news = kind != told_kind || (!progress.done && moved > 0 && moved >= way / 100);
        if !is_news {
            return None;
        }
        drain.told = Some(progress);
        Some(progress)
    }
}
