//! `nomad`: TPP with copies that stay behind and moves that do not stop the guest (Xiang et al., "Nomad:
//! Non-Exclusive Memory Tiering via Transactional Page Migration", OSDI 2024, and its published module).
//!
//! # What it does
//! Hint faults, lists and `kswapd` are [the kernel's](super::kernel), the free 2 % of DRAM are
//! [TPP's](super::tpp). Beyond that:
//! - *One fault suffices.* A page that faults becomes a candidate. If it is used again in a later slice, and before
//!   the next scan passes, it is queued for promotion. (The published module looks at the accessed bits of the
//!   last 20 candidates on every fault; as the fault itself sets the bit, nearly all are promoted. Asking for
//!   another use is what the paper describes, and the better choice.)
//! - *Transactional promotion.* A thread of its own copies a page while the guest goes on using it, and gives up
//!   if the page was written meanwhile: the copy is wasted, and the page is queued again. With w stores to the
//!   page in a slice of length T and a copy that takes t, that happens with the probability 1 − e^(−wt/T).
//!   A copy takes what a move is taken to cost ([`crate::moves::assumed_cost_ns`]), and the thread does one at
//!   a time. 512 pages can wait, the queue's length in the module; further ones have to fault again.
//! - *Shadows.* A promoted page's frame on the slow tier is kept while the page is clean. The first store faults
//!   once, as shadowed pages are mapped read-only, and drops it. A page with a shadow is demoted by changing the
//!   mapping, without a copy.
//!
//! # What is not modelled
//! Short slow memory, where shadows are given up first: the simulated host can hold the whole guest on its slow
//! tier, and there is one shadow for a slow frame at most. That a promotion does not stop the guest: the host
//! charges the time of every copy alike, so that what is compared is bytes. Huge pages, which the module does not
//! migrate, move as others do, and are more often written during their longer copy.

use std::collections::VecDeque;

use super::{
    Policy, PolicySetup, Seen,
    kernel::{ARMED, FAST_ACTIVE, FIRST_FREE_MARK, Kernel, SLOW_ACTIVE},
    parts::Random,
    tpp::DRAM_OVER_FREE,
};
use crate::{moves, moves::Outcome, replay::Host};

/// It has faulted and was not used again yet.
const CANDIDATE: u8 = FIRST_FREE_MARK;
/// It stands in the queue.
const QUEUED: u8 = FIRST_FREE_MARK << 1;
/// Its frame on the slow tier is a valid copy.
const SHADOWED: u8 = FIRST_FREE_MARK << 2;

/// Pages that can wait for their promotion.
const QUEUE_LEN: usize = 512;

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Nomad {
    kernel: Kernel,
    queue: VecDeque<u32>,
    random: Random,
    /// Time that the promoting thread has in hand; below zero after a long copy.
    time_ns: f64,
    shadows: u32,
}

impl Nomad {
    /// Starts with all pages inactive where they lie, without shadows.
    #[must_use]
    pub fn new(host: &Host, setup: &PolicySetup) -> Self {
        Self {
            kernel: Kernel::new(host),
            queue: VecDeque::new(),
            random: Random::new(setup.seed),
            time_ns: 0.0,
            shadows: 0,
        }
    }

    /// The number of pages whose copy on the slow tier is valid.
    #[must_use]
    pub const fn shadows(&self) -> u32 {
        self.shadows
    }

    /// Faults, candidates, and stores to shadowed pages.
    fn take(&mut self, seen: &Seen<'_>, host: &mut Host) {
        let mut faults = 0;
        let (queue, shadows) = (&mut self.queue, &mut self.shadows);
        self.kernel.take(seen, |kernel, page, marks, stores| {
            let now = &mut kernel.marks[page as usize];
            if marks & SHADOWED != 0 && stores > 0 {
                *now &= !SHADOWED;
                *shadows -= 1;
                faults += 1;
            }
            // Of a page that was promoted after it was armed nothing more is to be learnt.
            let is_slow = !host.is_fast(page);
            if marks & ARMED != 0 {
                faults += 1;
                if is_slow && marks & QUEUED == 0 {
                    *now |= CANDIDATE;
                }
            } else if marks & CANDIDATE != 0 {
                *now &= !CANDIDATE;
                if is_slow {
                    *now |= QUEUED;
                    queue.push_back(page);
                    kernel.lists.to_front(SLOW_ACTIVE, page);
                }
            }
        });
        host.charge_faults(faults);
    }

    fn promote(&mut self, seen: &Seen<'_>, host: &mut Host) {
        let span_ns = seen.end.since(seen.start).as_nanos() as f64;
        // What is not used lapses.
        self.time_ns = self.time_ns.min(0.0) + span_ns;
        for _ in 0..self.queue.len() {
            if self.time_ns <= 0.0 {
                break;
            }
            let Some(page) = self.queue.pop_front() else {
                break;
            };
            let bytes = self.kernel.guest.page_bytes(page);
            if host.fast_free() < bytes {
                self.queue.push_front(page);
                break;
            }
            let copy_ns = moves::assumed_cost_ns(bytes);
            self.time_ns -= copy_ns;
            if self.is_written(page, copy_ns / span_ns, seen) {
                host.charge_copies(bytes);
                self.queue.push_back(page);
                continue;
            }
            let marks = &mut self.kernel.marks[page as usize];
            match host.promote(page) {
                Outcome::Moved => {
                    // What was armed on the slow tier is mapped anew.
                    *marks = (*marks & !(QUEUED | ARMED)) | SHADOWED;
                    self.shadows += 1;
                    self.kernel.lists.to_front(FAST_ACTIVE, page);
                }
                Outcome::Busy => self.queue.push_back(page),
                _ => *marks &= !QUEUED,
            }
        }
        for page in self.queue.drain(QUEUE_LEN.min(self.queue.len())..) {
            self.kernel.marks[page as usize] &= !QUEUED;
        }
    }

    /// Whether a page is written during this share of the slice.
    fn is_written(&mut self, page: u32, share: f64, seen: &Seen<'_>) -> bool {
        let found = seen.touched.binary_search_by_key(&page, |touch| touch.page);
        let stores = found.map_or(0, |at| seen.touched[at].stores);
        stores > 0 && self.random.share() < -(-f64::from(stores) * share).exp_m1()
    }
}

impl Policy for Nomad {
    fn name(&self) -> &'static str {
        "nomad"
    }

    fn step(&mut self, seen: &Seen<'_>, host: &mut Host) {
        self.take(seen, host);
        self.promote(seen, host);
        let shadows = &mut self.shadows;
        let free = host.fast_bytes() / DRAM_OVER_FREE;
        self.kernel.kswapd(seen, host, free, |host, page, marks| {
            if *marks & SHADOWED == 0 {
                return host.demote(page);
            }
            let outcome = host.remap_to_slow(page);
            if outcome == Outcome::Moved {
                *marks &= !SHADOWED;
                *shadows -= 1;
            }
            outcome
        });
        self.kernel.arm(seen, host, CANDIDATE);
    }

    fn memory_bytes(&self) -> usize {
        self.kernel.memory_bytes() + self.queue.capacity() * size_of::<u32>()
    }
}
