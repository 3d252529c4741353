//! The oracle: knows every access beforehand, and places pages best in each epoch.
//!
//! Two of them. `oracle-free` pays nothing for moves: in each epoch the pages with the most accesses a
//! byte stand in DRAM. `oracle` pays for moves what all policies pay
//! ([`assumed_cost_ns`](tier_core::moves::assumed_cost_ns)) and maximises the time that accesses gain
//! less the time that moves take: what an online policy can hope for.
//!
//! With x(p, e) = 1 for page p in DRAM in epoch e, c accesses, b bytes, Δ the difference of latencies
//! and m the cost of a move, it maximises
//!
//! ```text
//! Σ c(p, e) Δ x(p, e) − Σ m(p) |x(p, e) − x(p, e − 1)|     with  Σ b(p) x(p, e) ≤ DRAM  in every e
//! ```
//!
//! Lagrangian relaxation (Held, Wolfe, Crowder, "Validation of subgradient optimization", Mathematical
//! Programming 6, 1974): a price λ(e) a byte of DRAM takes the place of the constraint; each page then
//! finds its best way through the epochs alone (two states, dynamic programming), and the prices follow
//! the demand. What the prices leave over or unfilled is mended epoch by epoch. The plan is compared
//! with the one that moves once to the best placement overall and with the one that never moves; the
//! best of them is taken, so the oracle is never worse than these.

mod plan;
mod prices;
mod problem;

use std::sync::Arc;

pub use plan::Plan;
pub use problem::PlanKind;

use tier_core::moves::Outcome;

use super::{Policy, Seen};
use crate::machine::Host;

/// Carries a plan out.
#[derive(Debug)]
pub struct Oracle {
    plan: Arc<Plan>,
    next: usize,
    /// What is still to be done: moves that failed are tried again in the next slice.
    demote: Vec<u32>,
    promote: Vec<u32>,
}

impl Oracle {
    /// Carries out this plan.
    #[must_use]
    pub const fn new(plan: Arc<Plan>) -> Self {
        Self {
            plan,
            next: 0,
            demote: Vec::new(),
            promote: Vec::new(),
        }
    }
}

impl Policy for Oracle {
    fn name(&self) -> &'static str {
        self.plan.kind().name()
    }

    fn step(&mut self, seen: &Seen<'_>, host: &mut Host) {
        while let Some(epoch) = self.plan.epoch(self.next)
            && epoch.from <= seen.end
        {
            self.next += 1;
            // A page may have been waiting for the opposite.
            self.promote
                .retain(|page| epoch.demote.binary_search(page).is_err());
            self.demote
                .retain(|page| epoch.promote.binary_search(page).is_err());
            self.demote.extend(&epoch.demote);
            self.promote.extend(&epoch.promote);
        }
        let waits = |outcome| matches!(outcome, Outcome::Busy | Outcome::NoMemory);
        self.demote.retain(|&page| waits(host.demote(page)));
        if !self.promote.is_empty() {
            self.promote.retain(|&page| waits(host.promote(page)));
        }
    }

    fn memory_bytes(&self) -> usize {
        self.plan.memory_bytes()
    }
}
