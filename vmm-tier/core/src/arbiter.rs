//! The arbiter: divides the DRAM of a host among its VMs.
//!
//! # Units
//! Bytes of DRAM; hits, which are accesses a second that DRAM serves; seconds. A VM's share is whole
//! pages of the VM. Credits are byte-seconds.
//!
//! # Problem
//! VMs are granted [terms](Terms): a guarantee, a cap and a weight. They are measured: a
//! [demand curve](DemandCurve), the bytes that they hold, the time that their virtual CPUs ran. Who gets
//! how much of the pool, so that guarantees and caps are kept, nothing lies idle that another could use,
//! nobody gains by a lie, and few bytes change hands?
//!
//! # Approach
//! 1. [`admit`] refuses a VM whose guarantee the pool can't keep beside the others'. Guarantees are
//!    never scaled in silence.
//! 2. [`divide`] says what each VM is to have, from terms and measurements alone:
//!    - *Entitled*: the guarantee, and by weight what is above all guarantees, up to the cap: weighted
//!      max-min fairness, by water-filling. Demand plays no part.
//!    - *Demand*: the bytes that the curve shows in use.
//!    - *Fair*: a VM that uses less than its entitlement offers the *idle tax*, a share of what it does
//!      not use (ESX: Waldspurger, OSDI 2002). VMs that want more borrow that by weight, the creditors
//!      among them first. What nobody borrows stays with its owner. With a tax of 1 and no credits this
//!      is weighted max-min fairness on demand above the guarantees (Sprumont's uniform rule), which is
//!      efficient, free of envy, and can't be gamed by a wrong demand.
//!    - *Target*: by the [mode](Mode) the entitlement, the fair share, or the most hits within a band
//!      below the fair share, or goals.
//! 3. *Credits* remember who lent (Karma: Vuppalapati et al., OSDI 2023). A lender gains a byte-second
//!    for each byte that was in use elsewhere for a second, and a borrower pays it. Credits are paid
//!    back from what others offer, over [`Rules::payback`].
//! 4. [`Arbiter::deal`] moves shares towards targets: not for less than the hysteresis, not more bytes a
//!    second than the rate, guarantees first and within their time. A byte is granted only when no VM
//!    holds it any more, by what the kernel says.
//!
//! Heat is worth no more than time: a hit saves the time by which slow memory is slower, and a VM can't
//! save more time than its virtual CPUs ran. A guest that spins, or claims more hits than that, gains no
//! more than the band allows, and nothing in [`Mode::Weighted`].
//!
//! # Cost
//! A few passes over the VMs, sorting what rounding to pages lost, and for [`Mode::Utility`] a few
//! searches in each curve. Bench `arbiter` measures it.

pub mod alarms;
mod curve;
mod division;
mod fairness;
pub mod history;
mod moves;
mod pace;
mod terms;
mod water;

use std::{cmp::Ordering, collections::BTreeMap, time::Duration};

use self::pace::Pace;
pub use self::{
    curve::{DemandCurve, MAX_POINTS, Piece, Point},
    division::{Division, Due, divide},
    fairness::{Fairness, FairnessMeter, Standing, jain},
    moves::{Moving, deal_moves},
    terms::{AdmitError, MAX_VMS, MAX_WEIGHT, MIN_WEIGHT, Terms, admit},
};
use crate::time::Time;

/// The longest time that one decision is reckoned to span: a clock that jumps costs no more.
const LONGEST_ROUND: Duration = Duration::from_secs(10);
/// What the first decision is reckoned to span.
const FIRST_ROUND: Duration = Duration::from_secs(1);

crate::words! {
    /// What decides who has how much DRAM.
    pub enum Mode {
        /// Guarantee and weight alone: nobody lends or borrows.
        Static = "static",
        /// Weighted max-min fairness on what is used, above the guarantees.
        Weighted = "weighted",
        /// The most hits, within the band below the fair share.
        Utility = "utility",
        /// Goals first, then what is used, by weight.
        Goal = "goal",
    }
}

/// What the operator sets for all VMs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// What decides.
    pub mode: Mode,
    /// For [`Mode::Utility`]: which part of its fair share above the used guarantee a VM can lose to
    /// others that make more hits of it. 0 is the same as [`Mode::Weighted`], 1 is utility alone.
    pub band: f64,
    /// Which part of its unused entitlement a VM offers to others, 0 to 1.
    pub idle_tax: f64,
    /// Memory counts as used that takes this share of the VM's accesses, the hottest first.
    pub coverage: f64,
    /// Memory with fewer accesses a second for each 4 KiB counts as unused.
    pub idle_hits_per_page_s: f64,
    /// The time that a hit saves: the latency of slow memory less that of DRAM, from the HMAT.
    pub saved_per_hit: Duration,
    /// How fast credits are paid back: a VM that is owed a byte for that long is owed that byte now.
    pub payback: Duration,
    /// Credits grow to at most the VM's entitlement for that long.
    pub most_credit: Duration,
    /// Shares stay as they are while none is further below its target than this part of the target, and
    /// all together no more than this part of the pool.
    pub hysteresis: f64,
    /// A share changes by no less than this, in bytes, or a page if that is more.
    pub step_bytes: u64,
    /// The most bytes of shares that change hands a second.
    pub redeal_bytes_per_s: u64,
    /// How long a VM may wait for its guarantee after it uses it again.
    pub guarantee_back: Duration,
}

impl Default for Rules {
    /// Weighted, with the idle tax of ESX (75 %).
    fn default() -> Self {
        Self {
            mode: Mode::Weighted,
            band: 0.2,
            idle_tax: 0.75,
            coverage: 0.99,
            idle_hits_per_page_s: 1.0 / 60.0,
            saved_per_hit: Duration::from_nanos(150),
            payback: Duration::from_secs(60),
            most_credit: Duration::from_secs(1800),
            hysteresis: 0.01,
            step_bytes: 256 << 10,
            redeal_bytes_per_s: 1 << 30,
            guarantee_back: Duration::from_secs(10),
        }
    }
}

/// A VM: what it is granted, and what was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Vm {
    /// What it is granted.
    pub terms: Terms,
    /// How many hits a second it would have with how much DRAM.
    pub curve: DemandCurve,
    /// The DRAM that its QEMU holds, in bytes, by what the kernel says.
    pub holds_bytes: u64,
    /// How long its virtual CPUs ran in a second, all together, in seconds, by what the kernel says.
    pub vcpu_s_per_s: f64,
}

/// A VM's part of a decision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// What it is to have.
    pub due: Due,
    /// What it may have now, in bytes.
    pub share_bytes: u64,
    /// What it is owed by others, in byte-seconds; below 0 what it owes.
    pub credit_byte_s: f64,
}

/// A decision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// One for each VM, by name.
    pub shares: Vec<Share>,
    /// Bytes of the pool that are nobody's share.
    pub free_bytes: u64,
    /// By how many bytes the guarantees exceed the pool; see [`Division::shortfall_bytes`].
    pub shortfall_bytes: u64,
    /// Bytes by which shares grew, but for those that the VMs held already.
    pub redealt_bytes: u64,
    /// Whether all shares have reached their targets, or are as near as the hysteresis asks.
    pub is_settled: bool,
}

/// What is remembered of a VM.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    share: u64,
    credit_byte_s: f64,
    /// Since when it has less than what it uses of its guarantee.
    short_since: Option<Time>,
}

/// The arbiter: shares, and who owes whom.
#[derive(Clone, Debug)]
pub struct Arbiter {
    rules: Rules,
    /// By name.
    held: Vec<(String, Held)>,
    pace: Pace,
    decided: Option<Time>,
}

impl Arbiter {
    /// An arbiter that knows no VM.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            held: Vec::new(),
            pace: Pace::default(),
            decided: None,
        }
    }

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Changes the rules; shares and credits stay.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Decides at `now` what each VM may have of a pool of `pool` bytes. All shares together are at most
    /// the pool.
    ///
    /// A VM that is new begins with what it holds, as far as the pool has it. A VM that is gone leaves
    /// its share to the others, and its credits lapse.
    pub fn deal(&mut self, now: Time, pool: u64, vms: &BTreeMap<String, Vm>) -> Decision {
        let span = self
            .decided
            .map_or(FIRST_ROUND, |decided| now.since(decided).min(LONGEST_ROUND));
        self.decided = Some(self.decided.map_or(now, |decided| decided.max(now)));
        let mut held = self.take_held(pool, vms);
        let in_order: Vec<&Vm> = vms.values().collect();
        let credits: Vec<f64> = held.iter().map(|held| held.credit_byte_s).collect();
        let division = divide(&self.rules, pool, &in_order, &credits);
        let mut shares: Vec<u64> = held.iter().map(|held| held.share).collect();
        let wanting = self.pace.wanting(now, &in_order, &division, &mut held);
        let paced = self
            .pace
            .step(&self.rules, now, span, pool, &wanting, &mut shares);
        for ((held, &share), due) in held.iter_mut().zip(&shares).zip(&division.dues) {
            held.share = share;
            self.account(held, due, span);
        }
        let decision = Decision {
            shares: held
                .iter()
                .zip(&division.dues)
                .map(|(held, &due)| Share {
                    due,
                    share_bytes: held.share,
                    credit_byte_s: held.credit_byte_s,
                })
                .collect(),
            free_bytes: pool - shares.iter().sum::<u64>(),
            shortfall_bytes: division.shortfall_bytes,
            redealt_bytes: paced.granted,
            is_settled: paced.is_settled,
        };
        self.held
            .iter_mut()
            .zip(held)
            .for_each(|((_, before), held)| *before = held);
        decision
    }

    /// What is remembered of these VMs, in their order; what new VMs hold becomes their share. What is
    /// remembered of others is forgotten.
    fn take_held(&mut self, pool: u64, vms: &BTreeMap<String, Vm>) -> Vec<Held> {
        // Both are in the order of names.
        let mut before = self.held.iter().peekable();
        let mut known_of = |name: &String| {
            while let Some((other, held)) = before.peek() {
                match other.cmp(name) {
                    Ordering::Greater => return None,
                    Ordering::Equal => return Some(*held),
                    Ordering::Less => before.next(),
                };
            }
            None
        };
        let known: Vec<Option<Held>> = vms.keys().map(&mut known_of).collect();
        let are_the_same = self.held.len() == vms.len() && known.iter().all(Option::is_some);
        if !are_the_same {
            // The values follow when all is decided.
            let blank = Held::default();
            self.held = vms.keys().map(|name| (name.clone(), blank)).collect();
        }
        let taken: u64 = known.iter().flatten().map(|held| held.share).sum();
        let new = |vm: &Vm| vm.holds_bytes.min(vm.terms.cap()) / vm.terms.page() * vm.terms.page();
        let asked: f64 = vms
            .values()
            .zip(&known)
            .filter(|(_, held)| held.is_none())
            .map(|(vm, _)| new(vm) as f64)
            .sum();
        let fits = (pool.saturating_sub(taken) as f64 / asked.max(1.0)).min(1.0);
        let mut free = pool.saturating_sub(taken);
        vms.values()
            .zip(known)
            .map(|(vm, held)| {
                held.unwrap_or_else(|| {
                    let page = vm.terms.page();
                    let share = ((new(vm) as f64 * fits) as u64).min(free) / page * page;
                    free -= share;
                    Held {
                        share,
                        credit_byte_s: 0.0,
                        short_since: None,
                    }
                })
            })
            .collect()
    }

    /// Books what was lent and borrowed for `span`.
    fn account(&self, held: &mut Held, due: &Due, span: Duration) {
        if matches!(self.rules.mode, Mode::Weighted | Mode::Utility) {
            let lent_byte_s = (due.lent_bytes - due.borrowed_bytes) * span.as_secs_f64();
            let most = due.entitled_bytes as f64 * self.rules.most_credit.as_secs_f64();
            held.credit_byte_s = (held.credit_byte_s + lent_byte_s).clamp(-most, most);
        }
    }
}
