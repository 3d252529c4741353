//! `nomad`: TPP with copies that stay behind and moves that do not stop the guest (Xiang et al., "Nomad:
//! Non-Exclusive Memory Tiering via Transactional Page Migration", OSDI 2024, and its published module).
//!
//! # What it does
//! Hint faults, lists and `kswapd` are [the kernel's](super::kernel), the free 2 % of DRAM are
//! [TPP's](super::tpp). Beyond that:
//! - *One fault suffices.* A page that faults becomes a candidate. If it is used again before the next
//!   scan passes, it is queued for promotion. (The published module looks at the accessed bits of the
//!   last 20 candidates on every fault; as the fault itself sets the bit, nearly all are promoted.
//!   Asking for another use is what the paper describes, and the better choice.)
//! - *Transactional promotion.* A thread of its own copies a page while the guest goes on using it, and
//!   gives up if the page was written meanwhile: the copy is wasted, and the page is queued again. With
//!   w stores to the page in a slice of length T and a copy that takes t, that happens with the
//!   probability 1 − e^(−wt/T). A copy takes what a move is taken to cost
//!   ([`tier_core::moves::assumed_cost_ns`]), and the thread does one at a time. The guest waits only
//!   for the change of the mapping, and for taking the page away and giving it back where the copy was
//!   in vain. 512 pages can wait, the queue's length in the module; further ones have to fault again.
//! - *Shadows.* A promoted page's frame on the slow tier is kept while the page is clean. The first
//!   store faults once, as shadowed pages are mapped read-only, and drops it. A page with a shadow is
//!   demoted by changing the mapping, without a copy.
//!
//! # What is not modelled
//! Short slow memory, where shadows are given up first: the simulated host can hold the whole guest on
//! its slow tier, and there is one shadow for a slow frame at most. What the copying thread takes from
//! the guest's CPUs and bandwidth. Huge pages, which the module does not migrate, move as others do, and
//! are more often written during their longer copy.

use std::collections::VecDeque;

use tier_core::{moves, moves::Outcome, random::Random};

use super::{
    Policy, PolicySetup, Seen,
    kernel::{ARMED, Event, FAST_ACTIVE, FIRST_FREE_MARK, Kernel, SLOW_ACTIVE, TURN, turns},
    tpp::DRAM_OVER_FREE,
};
use crate::machine::Host;

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
            kernel: Kernel::new(host, setup),
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

    /// What becomes of a marked page that was used. Whether that was a fault, or two.
    fn event(&mut self, event: &Event, host: &Host) -> u64 {
        let page = event.page;
        let mut faults = 0;
        let marks = &mut self.kernel.marks[page as usize];
        if *marks & SHADOWED != 0 && event.stores > 0 {
            *marks &= !SHADOWED;
            self.shadows -= 1;
            faults += 1;
        }
        let is_fault = event.marks & ARMED != 0;
        if is_fault {
            faults += 1;
            if *marks & QUEUED == 0 && !host.is_fast(page) {
                *marks |= CANDIDATE;
            }
        }
        if *marks & CANDIDATE != 0 && (!is_fault || self.is_used_again(event)) {
            let marks = &mut self.kernel.marks[page as usize];
            *marks = (*marks & !CANDIDATE) | QUEUED;
            self.queue.push_back(page);
            self.kernel.lists.put_in_front(SLOW_ACTIVE, page);
        }
        faults
    }

    /// Whether another use follows the fault in the same slice.
    fn is_used_again(&mut self, fault: &Event) -> bool {
        let others = fault.accesses.saturating_sub(1);
        others > 0 && f64::from(fault.when) + self.random.least_of(others) <= 1.0
    }

    /// Promotes what is queued, for this share of the slice.
    fn promote(&mut self, seen: &Seen<'_>, share: f64, host: &mut Host) {
        let span_ns = seen.end.since(seen.start).as_nanos() as f64;
        // What is not used lapses.
        self.time_ns = self.time_ns.min(0.0) + span_ns * share;
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
                host.charge_abort(bytes);
                self.queue.push_back(page);
                continue;
            }
            let marks = &mut self.kernel.marks[page as usize];
            match host.promote_in_use(page) {
                Outcome::Moved => {
                    // What was armed on the slow tier is mapped anew.
                    *marks = (*marks & !(QUEUED | ARMED)) | SHADOWED;
                    self.shadows += 1;
                    self.kernel.lists.put_in_front(FAST_ACTIVE, page);
                }
                Outcome::Busy => self.queue.push_back(page),
                _ => *marks &= !QUEUED,
            }
        }
        for page in self.queue.drain(QUEUE_LEN.min(self.queue.len())..) {
            self.kernel.marks[page as usize] &= !QUEUED;
        }
    }

    /// Makes room: by a change of the mapping where there is a shadow.
    fn demote(&mut self, span_s: f64, host: &mut Host) {
        let shadows = &mut self.shadows;
        let free = host.fast_bytes() / DRAM_OVER_FREE;
        self.kernel.kswapd(span_s, host, free, |host, page, marks| {
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
        let events = self.kernel.take(seen, host, CANDIDATE, |marks, stores| {
            marks & (ARMED | CANDIDATE) != 0 || (marks & SHADOWED != 0 && stores > 0)
        });
        let turn_s = seen.end.since(seen.start).as_secs_f64() * TURN;
        for turn in turns(&events) {
            let faults = turn.iter().map(|event| self.event(event, host)).sum();
            host.charge_faults(faults);
            self.promote(seen, TURN, host);
            self.demote(turn_s, host);
        }
    }

    fn memory_bytes(&self) -> usize {
        self.kernel.memory_bytes() + self.queue.capacity() * size_of::<u32>()
    }
}
