//! The drain: leaving the fast tier by an operator's order, and how far that has come.

use crate::engine::mover::Stall;

crate::words! {
    /// Why a drain makes no progress.
    pub enum DrainStall {
        /// The slow nodes have no room.
        NoSlowRoom = "no-slow-room",
        /// More than the target is pinned to the fast tier. Unpin to go on.
        Pinned = "pinned",
        /// The pages that are left can't be moved: other processes share them, or the kernel refuses.
        Unmovable = "unmovable",
    }
}

crate::report! {
    /// How far a drain has come, in bytes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DrainProgress = "TierDrainProgress" {
        /// What may stay in the fast tier.
        #[metric(gauge = "drain_target_bytes")]
        pub target_bytes: u64,
        /// What was in the fast tier when the drain began, or when all pages had been looked up, if that
        /// was later.
        #[metric(gauge = "drain_start_bytes")]
        pub start_bytes: u64,
        /// What is in the fast tier now.
        #[metric(exempt = "`vmm_tier_tier_bytes` of tier 0")]
        pub fast_bytes: u64,
        /// What is pinned to the fast tier: it is not drained.
        #[metric(exempt = "`vmm_tier_pinned_fast_bytes`")]
        pub pinned_bytes: u64,
        /// Whether the drain's target was reached.
        #[metric(gauge = "drain_done")]
        pub done: bool,
        /// Whether the drain makes no progress.
        #[metric(exempt = "`vmm_tier_drain_stuck` has the reason")]
        pub stuck: bool,
        /// Why the drain makes no progress: the slow nodes have no room; more than the target is pinned;
        /// or what is left can't be moved.
        #[metric(states = "drain_stuck")]
        pub stuck_because: Option<DrainStall>,
    }
}

/// What a drain's progress is judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DrainFacts {
    /// Bytes on the fast tier, as far as pages were looked up.
    pub(crate) fast_bytes: u64,
    /// Whether all pages were looked up once.
    pub(crate) has_seen_all: bool,
    pub(crate) promoting_bytes: u64,
    /// Bytes that pins keep on the fast tier.
    pub(crate) pinned_bytes: u64,
    /// Whether moves may be planned: the state is `running`.
    pub(crate) runs: bool,
    pub(crate) is_idle: bool,
    /// Why the limit could not be obeyed at the last attempt.
    pub(crate) stall: Option<Stall>,
    /// Pages that cool down.
    pub(crate) cooling: u32,
}

/// A drain that was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    target_bytes: u64,
    /// Not known before all pages were looked up once.
    start_bytes: Option<u64>,
    done: bool,
    /// The last progress that was told; `None` before any was.
    told: Option<DrainProgress>,
}

impl Drain {
    pub(super) const fn new(target_bytes: u64, start_bytes: Option<u64>) -> Self {
        Self {
            target_bytes,
            start_bytes,
            done: false,
            told: None,
        }
    }

    pub(super) const fn target_bytes(&self) -> u64 {
        self.target_bytes
    }

    /// How far it has come.
    pub(crate) fn progress(&self, facts: &DrainFacts) -> DrainProgress {
        // What was not looked at yet, or is on its way up, may still be too much.
        let most_bytes = facts.fast_bytes.saturating_add(facts.promoting_bytes);
        let done = self.done || (facts.has_seen_all && most_bytes <= self.target_bytes);
        let stuck_because = self.stall(facts).filter(|_| !done);
        DrainProgress {
            target_bytes: self.target_bytes,
            start_bytes: self.start_bytes.unwrap_or(facts.fast_bytes),
            fast_bytes: facts.fast_bytes,
            pinned_bytes: facts.pinned_bytes,
            done,
            stuck: stuck_because.is_some(),
            stuck_because,
        }
    }

    fn stall(&self, facts: &DrainFacts) -> Option<DrainStall> {
        if !facts.runs {
            return None;
        }
        // While moves are under way nothing new is known.
        if !facts.is_idle {
            return self.told.and_then(|told| told.stuck_because);
        }
        match facts.stall? {
            Stall::NoSlowRoom => Some(DrainStall::NoSlowRoom),
            Stall::NothingOffered if facts.pinned_bytes > self.target_bytes => {
                Some(DrainStall::Pinned)
            }
            // Pages that cool down are tried again.
            Stall::NothingOffered if facts.cooling > 0 => None,
            Stall::NothingOffered => Some(DrainStall::Unmovable),
        }
    }

    /// The progress, if it differs from what was told last by a hundredth of the way or in kind.
    pub(crate) fn news(&mut self, facts: &DrainFacts) -> Option<DrainProgress> {
        // While pages are looked up, what is found says nothing of the drain.
        if !facts.has_seen_all {
            return None;
        }
        let progress = self.progress(facts);
        self.start_bytes.get_or_insert(facts.fast_bytes);
        self.done = progress.done;
        let (told_bytes, told_kind) = self
            .told
            .map_or((progress.start_bytes, (false, None)), |told| {
                (told.fast_bytes, (told.done, told.stuck_because))
            });
        let way = progress.start_bytes.saturating_sub(progress.target_bytes);
        let moved = told_bytes.abs_diff(progress.fast_bytes);
        let kind = (progress.done, progress.stuck_because);
        // A drain that is done is reported once.
        let is_news = kind != told_kind || (!progress.done && moved > 0 && moved >= way / 100);
        if !is_news {
            return None;
        }
        self.told = Some(progress);
        Some(progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: DrainFacts = DrainFacts {
        fast_bytes: 1000,
        has_seen_all: true,
        promoting_bytes: 0,
        pinned_bytes: 0,
        runs: true,
        is_idle: true,
        stall: None,
        cooling: 0,
    };

    #[test]
    fn drain_when_it_makes_progress_tells_each_hundredth_once() {
        let mut drain = Drain::new(0, Some(1000));
        let mut told = 0;
        for fast_bytes in (0..1000).rev() {
            let facts = DrainFacts {
                fast_bytes,
                ..FACTS
            };
            told += u32::from(drain.news(&facts).is_some());
        }
        assert_eq!(told, 100);
        assert!(drain.progress(&FACTS).done, "once done it stays done");
    }

    #[test]
    fn drain_when_bytes_are_on_their_way_up_is_not_done() {
        let drain = Drain::new(1000, Some(2000));
        assert!(drain.progress(&FACTS).done);
        let facts = DrainFacts {
            promoting_bytes: 1,
            ..FACTS
        };
        assert!(!drain.progress(&facts).done);
        let facts = DrainFacts {
            has_seen_all: false,
            ..FACTS
        };
        assert!(!drain.progress(&facts).done);
    }

    #[test]
    fn drain_when_stuck_names_the_cause() {
        let drain = Drain::new(100, Some(1000));
        let because = |facts: DrainFacts| drain.progress(&facts).stuck_because;
        let stalled = |stall| DrainFacts {
            stall: Some(stall),
            ..FACTS
        };
        assert_eq!(because(FACTS), None);
        let full = stalled(Stall::NoSlowRoom);
        assert_eq!(because(full), Some(DrainStall::NoSlowRoom));
        let none = stalled(Stall::NothingOffered);
        assert_eq!(because(none), Some(DrainStall::Unmovable));
        let pinned = DrainFacts {
            pinned_bytes: 101,
            ..none
        };
        assert_eq!(because(pinned), Some(DrainStall::Pinned));
        assert_eq!(because(DrainFacts { cooling: 1, ..none }), None);
        assert_eq!(
            because(DrainFacts {
                runs: false,
                ..none
            }),
            None
        );
        let under_way = DrainFacts {
            is_idle: false,
            ..none
        };
        assert_eq!(because(under_way), None, "nothing was told yet");
    }
}
