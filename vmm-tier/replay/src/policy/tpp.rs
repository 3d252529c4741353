//! `tpp`: the kernel's own tiering, as Meta proposed it (Al Maruf et al., "TPP: Transparent Page
//! Placement for CXL-Enabled Tiered-Memory", ASPLOS 2023) and Linux has it since 5.18
//! (`numa_balancing=2`, demotion on).
//!
//! # What it does
//! - Pages of the slow tier are made to fault on their next access ([hint faults](super::kernel)). A
//!   page that faults while it is inactive becomes active. One that faults while it is active is
//!   promoted at once: it takes two faults in two scans.
//! - When less than 2 % of DRAM is free (TPP's `demote_scale_factor`), `kswapd` demotes from the back of
//!   the inactive list. Promotions may use all of that: TPP does not ask for the kernel's high
//!   watermark, so that what `kswapd` frees is there for them. A promotion that finds no room fails, and
//!   the page waits for its next fault.
//! - A demoted page is inactive again, and needs two faults to come back.
//!
//! Which page is hot is known from one bit, so once the pages in use exceed DRAM, pages go to and fro:
//! nothing bounds it but what `kswapd` finds to demote and the host can copy.
//!
//! # What is not modelled
//! Linux promotes, instead of on the second fault, where the fault comes within a hot threshold of 1 s
//! after the page was armed; the threshold adapts to a promotion rate of 64 GB/s, which is more than the
//! tiers can copy, and thus only rises. Active pages of the slow tier do not age there without pressure,
//! and none is modelled. Allocations, which TPP keeps apart from promotions: the guest makes none. Where
//! a guest's memory is a shared file there are no hint faults at all; the model has them.

use tier_core::moves::Outcome;

use super::{
    Policy, PolicySetup, Seen,
    kernel::{ARMED, FAST_ACTIVE, Kernel, SLOW_ACTIVE, SLOW_INACTIVE, TURN, turns},
};
use crate::machine::Host;

/// One in so many bytes of DRAM is kept free: 2 %.
pub(super) const DRAM_OVER_FREE: u64 = 50;

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Tpp {
    kernel: Kernel,
}

impl Tpp {
    /// Starts with all pages inactive where they lie.
    #[must_use]
    pub fn new(host: &Host, setup: &PolicySetup) -> Self {
        Self {
            kernel: Kernel::new(host, setup),
        }
    }
}

impl Policy for Tpp {
    fn name(&self) -> &'static str {
        "tpp"
    }

    fn step(&mut self, seen: &Seen<'_>, host: &mut Host) {
        let faults = self
            .kernel
            .take(seen, host, 0, |marks, _| marks & ARMED != 0);
        host.charge_faults(faults.len() as u64);
        let turn_s = seen.end.since(seen.start).as_secs_f64() * TURN;
        let free = host.fast_bytes() / DRAM_OVER_FREE;
        for turn in turns(&faults) {
            for fault in turn {
                let lists = &mut self.kernel.lists;
                match lists.list_of(fault.page) {
                    Some(SLOW_INACTIVE) => lists.put_in_front(SLOW_ACTIVE, fault.page),
                    Some(SLOW_ACTIVE) if host.promote(fault.page) == Outcome::Moved => {
                        lists.put_in_front(FAST_ACTIVE, fault.page);
                    }
                    _ => {}
                }
            }
            self.kernel
                .kswapd(turn_s, host, free, |host, page, _| host.demote(page));
        }
    }

    fn memory_bytes(&self) -> usize {
        self.kernel.memory_bytes()
    }
}
