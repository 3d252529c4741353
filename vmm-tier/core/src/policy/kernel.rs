//! What the kernel's own tiering rests on: hint faults and the two lists of each node's pages.
//!
//! `tpp` and `nomad` share it. Facts are those of Linux 5.13 to 6.12 (`mm/vmscan.c`, `mm/swap.c`,
//! `kernel/sched/fair.c`).
//!
//! # Hint faults
//! A scanner makes pages of the slow tier inaccessible, a stretch of the address space at a time; the next access
//! to such a page faults, and the kernel learns that it is used. 256 MiB are scanned in a period, which is
//! 1 s over the number of such stretches in the guest and at least 100 ms: a guest of up to 256 MiB is scanned
//! once a second, one of 16 GiB in 6.4 s. The kernel lengthens the period up to 60 s when it finds faults of no
//! use; that is not modelled, which makes it react sooner.
//!
//! # Lists
//! Pages come into the *inactive* list of their node, at the front. `kswapd` looks at its back: a page whose
//! accessed bit is not set is demoted. One with the bit goes to the front again, and is activated when the
//! bit is found set a second time. When the active list is larger than the inactive one (times √(10 · GiB)
//! for more than 1 GiB), pages from its back are deactivated, and their accessed bit is cleared.
//!
//! `kswapd` looks at 317 000 pages a second: 92 416 425 pages in 291 s were measured on Linux 5.15 under
//! TPP, in the experiment in which it scanned pages from list to list and demoted none. Accessed bits are known
//! for each slice, so a page is looked at once a slice at most.
//!
//! With accesses coming so often that every page is used within a slice, `kswapd` finds no page to demote. On a
//! host this happens as well, if seldom as thoroughly: replayed guests are small for the accesses that they make.

use std::{sync::Arc, time::Duration};

use super::{
    Seen,
    lists::Lists,
    parts::{ENOUGH_FAILURES, Timer, placed},
};
use crate::{
    moves::Outcome,
    replay::{Guest, Host},
    settings::Tier,
};

pub(super) const FAST_INACTIVE: u8 = 0;
pub(super) const FAST_ACTIVE: u8 = 1;
pub(super) const SLOW_INACTIVE: u8 = 2;
pub(super) const SLOW_ACTIVE: u8 = 3;

/// The next access faults.
pub(super) const ARMED: u8 = 1;
/// The accessed bit was found set once since the page became inactive.
const REFERENCED: u8 = 2;
/// The first mark that a policy can use for itself.
pub(super) const FIRST_FREE_MARK: u8 = 4;

const SCAN_BYTES: u64 = 256 << 20;
const SCAN_PERIOD: Duration = Duration::from_secs(1);
const LEAST_SCAN_PERIOD: Duration = Duration::from_millis(100);
const KSWAPD_PAGES_PER_S: f64 = 317_000.0;

/// What the kernel knows of a page.
#[derive(Clone, Copy, Debug, Default)]
struct Page {
    /// The slice of its last access, from 1.
    used: u32,
    /// The slice at whose end its accessed bit was cleared.
    cleared: u32,
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    pub(super) guest: Arc<Guest>,
    pub(super) lists: Lists,
    pub(super) marks: Vec<u8>,
    pages: Vec<Page>,
    slice: u32,
    /// Where the scanner goes on.
    cursor: u32,
    scan: Timer,
    /// Pages that `kswapd` may still look at.
    looks: f64,
}

impl Kernel {
    pub(super) fn new(host: &Host) -> Self {
        let guest = host.shared_guest();
        let mut lists = Lists::new(host.shared_guest(), 4);
        for (page, tier) in placed(host) {
            let inactive = match tier {
                Tier::Fast => FAST_INACTIVE,
                Tier::Slow => SLOW_INACTIVE,
            };
            lists.to_front(inactive, page);
        }
        let stretches = guest.bytes().div_ceil(SCAN_BYTES).clamp(1, 1 << 20) as u32;
        let period = (SCAN_PERIOD / stretches).max(LEAST_SCAN_PERIOD);
        Self {
            lists,
            marks: vec![0; guest.pages() as usize],
            pages: vec![Page::default(); guest.pages() as usize],
            guest,
            slice: 0,
            cursor: 0,
            scan: Timer::new(period),
            looks: 0.0,
        }
    }

    /// Takes the accessed bits of a slice. `event` is told of each used page with a mark: the page, its marks before
    /// (the page is disarmed by then), and its stores.
    pub(super) fn take(&mut self, seen: &Seen<'_>, mut event: impl FnMut(&mut Self, u32, u8, u32)) {
        self.slice += 1;
        for touch in seen.touched {
            let at = touch.page as usize;
            let Some(page) = self.pages.get_mut(at) else {
                continue;
            };
            page.used = self.slice;
            let marks = self.marks[at];
            if marks & !REFERENCED != 0 {
                self.marks[at] &= !ARMED;
                event(self, touch.page, marks, touch.stores);
            }
        }
    }

    /// Arms the next stretch of the guest if it is time. What a policy marks with `until_armed` is unmarked.
    pub(super) fn arm(&mut self, seen: &Seen<'_>, host: &Host, until_armed: u8) {
        if !self.scan.is_due(seen) {
            return;
        }
        let mut bytes = 0;
        while bytes < SCAN_BYTES && self.cursor < self.guest.pages() {
            let page = self.cursor;
            bytes += self.guest.page_bytes(page);
            if !host.is_fast(page) {
                let marks = &mut self.marks[page as usize];
                *marks = (*marks & !until_armed) | ARMED;
            }
            self.cursor += 1;
        }
        if self.cursor == self.guest.pages() {
            self.cursor = 0;
        }
    }

    /// Demotes inactive pages until so many bytes are free, as far as `kswapd` comes in this slice.
    pub(super) fn kswapd(
        &mut self,
        seen: &Seen<'_>,
        host: &mut Host,
        free_bytes: u64,
        mut demote: impl FnMut(&mut Host, u32, &mut u8) -> Outcome,
    ) {
        let looks = seen.end.since(seen.start).as_secs_f64() * KSWAPD_PAGES_PER_S;
        // What is not used lapses, but for a page's fraction.
        self.looks = self.looks.fract() + looks;
        let mut failures = 0;
        while host.fast_free() < free_bytes && self.looks >= 1.0 && failures < ENOUGH_FAILURES {
            self.looks -= 1.0;
            let from = if self.is_inactive_low() {
                FAST_ACTIVE
            } else {
                FAST_INACTIVE
            };
            let Some(page) = self.lists.back(from) else {
                return;
            };
            let Page { used, cleared } = self.pages[page as usize];
            if cleared == self.slice {
                return;
            }
            self.pages[page as usize].cleared = self.slice;
            let marks = &mut self.marks[page as usize];
            let is_second = *marks & REFERENCED != 0;
            *marks &= !REFERENCED;
            let to = if from == FAST_ACTIVE {
                FAST_INACTIVE
            } else if used > cleared {
                if is_second {
                    FAST_ACTIVE
                } else {
                    *marks |= REFERENCED;
                    FAST_INACTIVE
                }
            } else if demote(host, page, marks) == Outcome::Moved {
                failures = 0;
                SLOW_INACTIVE
            } else {
                failures += 1;
                FAST_INACTIVE
            };
            self.lists.to_front(to, page);
        }
    }

    fn is_inactive_low(&self) -> bool {
        let inactive = self.lists.bytes(FAST_INACTIVE);
        let active = self.lists.bytes(FAST_ACTIVE);
        let gib = (inactive + active) >> 30;
        let ratio = if gib > 0 { (10 * gib).isqrt() } else { 1 };
        active > inactive.saturating_mul(ratio)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let pages = self.pages.capacity() * size_of::<Page>() + self.marks.capacity();
        pages + self.lists.memory_bytes()
    }
}
