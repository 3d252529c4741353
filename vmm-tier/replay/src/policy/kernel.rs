//! What the kernel's own tiering rests on: hint faults and the two lists of each node's pages.
//!
//! `tpp` and `nomad` share it. Facts are those of Linux 5.13 to 6.12 (`mm/vmscan.c`, `mm/swap.c`,
//! `kernel/sched/fair.c`).
//!
//! # Hint faults
//! A scanner makes pages of the slow tier inaccessible (it *arms* them), a stretch of the address space
//! at a time; the next access to such a page faults, and the kernel learns that it is used. 256 MiB are
//! armed in a period, which is 1 s over the number of such stretches in the guest, and at least 100 ms:
//! a guest of up to 256 MiB is gone through once a second, one of 16 GiB in 6.4 s. These times are kept;
//! the stretches are not. A large guest has many, whose faults find room that was made since the last
//! one; so that a small one has as many chances, the scanner goes on evenly. The kernel lengthens the
//! period up to 60 s when it finds faults of no use; that is not modelled, which makes it react sooner.
//!
//! A hot page faults as soon as it is armed, a cold one later or never: that decides who finds room. The
//! time is drawn: the first of n accesses that are spread evenly over a slice comes at the least of n
//! uniform numbers.
//!
//! # Lists
//! Pages come into the *inactive* list of their node, at the front. `kswapd` looks at its back: a page
//! whose accessed bit is not set is demoted. One with the bit goes to the front again, and is activated
//! when the bit is found set a second time. When the active list is larger than the inactive one (times
//! √(10 · GiB) for more than 1 GiB), pages from its back are deactivated, and their accessed bit is
//! cleared.
//!
//! `kswapd` looks at 317 000 pages a second: 92 416 425 pages in 291 s were measured on Linux 5.15 under
//! TPP, in an experiment in which it carried pages from list to list and demoted none. Accessed bits are
//! known for each slice, so a page is looked at once a slice at most. Within a slice, faults and
//! `kswapd` take turns.
//!
//! With accesses coming so often that every page is used within a slice, `kswapd` finds no page to
//! demote. On a host this happens as well, if seldom as thoroughly: replayed guests are small for the
//! accesses that they make.

use std::{sync::Arc, time::Duration};

use tier_core::{moves::Outcome, random::Random};

use super::{
    PolicySetup, Seen,
    lists::Lists,
    parts::{ENOUGH_FAILURES, lists},
};
use crate::machine::{Guest, Host, Touch};

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

/// Parts of a slice in which faults and `kswapd` take turns.
const PARTS: usize = 8;

/// A page with a mark that was used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    /// When it faulted or was used first, as a share of the slice.
    pub(super) when: f32,
    pub(super) page: u32,
    /// The marks before; armed if it faulted, and it is disarmed by now.
    pub(super) marks: u8,
    /// Accesses to it in this slice.
    pub(super) accesses: u32,
    /// Stores among them.
    pub(super) stores: u32,
}

/// Events by turns.
pub(super) fn turns(events: &[Event]) -> impl Iterator<Item = &[Event]> {
    let mut rest = events;
    (1..=PARTS).map(move |part| {
        let end = part as f32 / PARTS as f32;
        let now = match part {
            PARTS => rest.len(),
            _ => rest.partition_point(|event| event.when < end),
        };
        let (now, later) = rest.split_at(now);
        rest = later;
        now
    })
}

/// The share of a slice that a turn takes.
pub(super) const TURN: f64 = 1.0 / PARTS as f64;

/// The pages that the scanner came by in a slice.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    from: u32,
    len: u32,
    /// The guest's pages: the scanner begins again after the last.
    pages: u32,
}

impl Stretch {
    /// When an armed page was armed, as a share of the slice: 0 if that was before.
    fn armed_at(self, page: u32) -> f32 {
        let after = (page + self.pages - self.from) % self.pages;
        if after < self.len {
            after as f32 / self.len as f32
        } else {
            0.0
        }
    }
}

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
    /// The time in which it goes through the guest.
    pass: Duration,
    /// Bytes that it is due to go through; below zero after a large page.
    scan_bytes: f64,
    /// Pages that `kswapd` may still look at.
    looks: f64,
    random: Random,
}

impl Kernel {
    pub(super) fn new(host: &Host, setup: &PolicySetup) -> Self {
        let guest = host.shared_guest();
        let stretches = guest.bytes().div_ceil(SCAN_BYTES).clamp(1, 1 << 20) as u32;
        let pass = (LEAST_SCAN_PERIOD * stretches).max(SCAN_PERIOD);
        Self {
            lists: lists(host, 4, FAST_INACTIVE, SLOW_INACTIVE),
            marks: vec![0; guest.pages() as usize],
            pages: vec![Page::default(); guest.pages() as usize],
            guest,
            slice: 0,
            cursor: 0,
            pass,
            scan_bytes: 0.0,
            looks: 0.0,
            random: Random::new(setup.seed),
        }
    }

    /// Arms pages and takes the accessed bits of a slice. Returns used pages with a mark of which
    /// `wanted` says so (of their marks and stores), in the order of time: of their fault, or else of
    /// their first use. What a policy marks with `until_armed` is unmarked when the scanner comes by.
    pub(super) fn take(
        &mut self,
        seen: &Seen<'_>,
        host: &Host,
        until_armed: u8,
        wanted: impl Fn(u8, u32) -> bool,
    ) -> Vec<Event> {
        self.slice += 1;
        let stretch = self.arm(seen, host, until_armed);
        let mut events = Vec::new();
        for &Touch {
            page,
            accesses,
            stores,
        } in seen.touched
        {
            let at = page as usize;
            let Some(known) = self.pages.get_mut(at) else {
                continue;
            };
            known.used = self.slice;
            let mut marks = self.marks[at];
            if marks & ARMED == 0 && !wanted(marks, stores) {
                continue;
            }
            let mut when = self.random.least_of(accesses.max(1)) as f32;
            if marks & ARMED != 0 {
                let fault = when + stretch.armed_at(page);
                // Otherwise it was used before it was armed.
                if fault <= 1.0 {
                    when = fault;
                    self.marks[at] &= !ARMED;
                } else {
                    marks &= !ARMED;
                }
            }
            if wanted(marks, stores) {
                events.push(Event {
                    when,
                    page,
                    marks,
                    accesses,
                    stores,
                });
            }
        }
        events.sort_by(|a, b| a.when.total_cmp(&b.when));
        events
    }

    /// Arms the slow pages that the scanner comes by in a slice.
    fn arm(&mut self, seen: &Seen<'_>, host: &Host, until_armed: u8) -> Stretch {
        let all = self.guest.bytes() as f64;
        let share = seen.end.since(seen.start).as_secs_f64() / self.pass.as_secs_f64();
        // Unevenly, so that no page is armed at the same point of every pass.
        self.scan_bytes += all * share.min(1.0) * (0.5 + self.random.share());
        let mut stretch = Stretch {
            from: self.cursor,
            len: 0,
            pages: self.guest.pages(),
        };
        while self.scan_bytes > 0.0 {
            let page = self.cursor;
            self.scan_bytes -= self.guest.page_bytes(page) as f64;
            if !host.is_fast(page) {
                let marks = &mut self.marks[page as usize];
                *marks = (*marks & !until_armed) | ARMED;
            }
            self.cursor = (page + 1) % self.guest.pages();
            stretch.len += 1;
        }
        stretch
    }

    /// Demotes inactive pages until so many bytes are free, as far as `kswapd` comes in this time.
    pub(super) fn kswapd(
        &mut self,
        span_s: f64,
        host: &mut Host,
        free_bytes: u64,
        mut demote: impl FnMut(&mut Host, u32, &mut u8) -> Outcome,
    ) {
        // What is not used lapses, but for a page's fraction. Each page once a slice, and in all turns
        // alike.
        let pages = self.lists.len(FAST_INACTIVE) + self.lists.len(FAST_ACTIVE);
        let looks = (span_s * KSWAPD_PAGES_PER_S).min((f64::from(pages) * TURN).ceil());
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
            self.lists.put_in_front(to, page);
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
