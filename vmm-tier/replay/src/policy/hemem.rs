//! `hemem`: fixed thresholds on samples, lists in the order of arrival (Raybuck, Stamler, Zhang, Erez
//! and Peter, "HeMem: Scalable Tiered Memory Management for Big Data Applications and Real NVM", SOSP
//! 2021, and its published library).
//!
//! # What it does
//! - A page is hot once it has 4 sampled reads or 4 sampled writes, and cold below that.
//! - When a page has more than 10 of a kind, a clock advances, and each page's counts are halved once
//!   for each tick since it was looked at last. A page is looked at when it is sampled; and after a tick
//!   the hot lists are gone through, 8192 pages at a time, and what is no longer hot leaves them.
//! - Every 10 ms the hot pages of the slow tier are promoted, first come first served. Where DRAM has no
//!   room the page that has been cold for longest is demoted first. If no page is cold, nothing moves:
//!   all of DRAM is hot.
//!
//! # Constants
//! Those of the published library (`pebs.h`). Thresholds count samples and stay as they are: it samples
//! 1 in 19 997 accesses (the paper: 5000), so that with a shorter period they are reached after fewer
//! accesses and it reacts sooner. Fixed thresholds are the design; where one page gets a large share of
//! the accesses, the clock runs so fast that few others ever become hot.
//!
//! 10 GB/s of migration is what the simulated host can copy at most, so there is no bound of its own.
//! The paper keeps 1 GB of DRAM free for new allocations; the replayed guest makes none, and all of DRAM
//! is used.
//!
//! # What is not modelled
//! Small allocations that always stay in DRAM; write protection of a page while it is copied; the ring
//! that hands no more than 128 newly cold pages to the policy at a time.

use std::{sync::Arc, time::Duration};

use tier_core::{moves::Outcome, sample::AccessKind};

use super::{
    Policy, PolicySetup, Seen,
    lists::Lists,
    parts::{ENOUGH_FAILURES, Timer, lists},
};
use crate::machine::{Guest, Host, Sample};

const FAST_COLD: u8 = 0;
const FAST_HOT: u8 = 1;
const SLOW_COLD: u8 = 2;
const SLOW_HOT: u8 = 3;

const HOT_READS: u32 = 4;
const HOT_WRITES: u32 = 4;
/// A page with more than this many samples of a kind lets the clock advance.
const COOLING: u32 = 10;
/// Pages of a list that are looked at in one go after the clock has advanced.
const SWEEP_PAGES: u32 = 8192;
const PERIOD: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    reads: u32,
    writes: u32,
    /// The clock when they were halved last.
    clock: u32,
}

impl Counts {
    fn cool(&mut self, clock: u32) {
        let ticks = clock.wrapping_sub(self.clock).min(31);
        self.reads >>= ticks;
        self.writes >>= ticks;
        self.clock = clock;
    }

    const fn is_hot(&self) -> bool {
        self.reads >= HOT_READS || self.writes >= HOT_WRITES
    }
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct HeMem {
    guest: Arc<Guest>,
    counts: Vec<Counts>,
    lists: Lists,
    clock: u32,
    /// Pages of the fast and the slow hot list that are still to be looked at since the last tick.
    sweep: [(u8, u8, u32); 2],
    timer: Timer,
}

impl HeMem {
    /// Starts without counts: every page is cold where it lies.
    #[must_use]
    pub fn new(host: &Host, _setup: &PolicySetup) -> Self {
        let guest = host.shared_guest();
        Self {
            counts: vec![Counts::default(); guest.pages() as usize],
            guest,
            lists: lists(host, 4, FAST_COLD, SLOW_COLD),
            clock: 0,
            sweep: [(FAST_HOT, FAST_COLD, 0), (SLOW_HOT, SLOW_COLD, 0)],
            timer: Timer::new(PERIOD),
        }
    }

    /// Whether a page stands in a hot list.
    #[must_use]
    pub fn is_hot(&self, page: u32) -> bool {
        matches!(self.lists.list_of(page), Some(FAST_HOT | SLOW_HOT))
    }

    /// How often the clock has advanced.
    #[must_use]
    pub const fn clock(&self) -> u32 {
        self.clock
    }

    fn sample(&mut self, sample: &Sample) {
        let page = sample.page;
        let Some(counts) = self.counts.get_mut(page as usize) else {
            return;
        };
        if sample.weight <= 0.0 {
            return;
        }
        counts.cool(self.clock);
        let count = match sample.kind {
            AccessKind::Store => &mut counts.writes,
            AccessKind::Load | AccessKind::Any => &mut counts.reads,
        };
        *count = count.saturating_add(sample.weight.round().max(1.0) as u32);
        let ticks = *count > COOLING;
        let target = match (self.lists.list_of(page), counts.is_hot()) {
            (Some(FAST_COLD), true) => Some(FAST_HOT),
            (Some(FAST_HOT), false) => Some(FAST_COLD),
            (Some(SLOW_COLD), true) => Some(SLOW_HOT),
            (Some(SLOW_HOT), false) => Some(SLOW_COLD),
            _ => None,
        };
        if let Some(target) = target {
            self.lists.put_in_front(target, page);
        }
        if ticks {
            self.clock = self.clock.wrapping_add(1);
            for (hot, _, left) in &mut self.sweep {
                *left = self.lists.len(*hot);
            }
        }
    }

    /// A page's counts as they are now.
    fn cooled(&mut self, page: u32) -> Counts {
        let counts = &mut self.counts[page as usize];
        counts.cool(self.clock);
        *counts
    }

    fn promote(&mut self, host: &mut Host) {
        let mut failures = 0;
        for _ in 0..self.lists.len(SLOW_HOT) {
            let Some(page) = self.lists.back(SLOW_HOT) else {
                return;
            };
            if !self.cooled(page).is_hot() {
                self.lists.put_in_front(SLOW_COLD, page);
                continue;
            }
            while host.fast_free() < self.guest.page_bytes(page) {
                let Some(cold) = self.lists.back(FAST_COLD) else {
                    return;
                };
                if host.demote(cold) == Outcome::Moved {
                    self.lists.put_in_front(SLOW_COLD, cold);
                    failures = 0;
                } else {
                    self.lists.put_in_front(FAST_COLD, cold);
                    failures += 1;
                }
                if failures == ENOUGH_FAILURES {
                    return;
                }
            }
            if host.promote(page) == Outcome::Moved {
                self.lists.put_in_front(FAST_HOT, page);
                failures = 0;
            } else {
                self.lists.put_in_front(SLOW_HOT, page);
                failures += 1;
            }
            if failures == ENOUGH_FAILURES {
                return;
            }
        }
    }

    /// Goes through the hot lists, oldest first; what is still hot has its place at the front.
    fn sweep(&mut self) {
        for of in 0..self.sweep.len() {
            let (hot, cold, left) = self.sweep[of];
            let now = left.min(SWEEP_PAGES);
            for _ in 0..now {
                let Some(page) = self.lists.back(hot) else {
                    break;
                };
                let target = if self.cooled(page).is_hot() {
                    hot
                } else {
                    cold
                };
                self.lists.put_in_front(target, page);
            }
            self.sweep[of].2 = left - now;
        }
    }
}

impl Policy for HeMem {
    fn name(&self) -> &'static str {
        "hemem"
    }

    fn step(&mut self, seen: &Seen<'_>, host: &mut Host) {
        for sample in seen.samples {
            self.sample(sample);
        }
        if self.timer.is_due(seen) {
            self.promote(host);
            self.sweep();
        }
    }

    fn memory_bytes(&self) -> usize {
        self.counts.capacity() * size_of::<Counts>() + self.lists.memory_bytes()
    }
}
