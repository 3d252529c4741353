//! The machine of one simulation: where pages lie, what moving them costs, and when it fails.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tier_core::{
    moves::{self, Outcome},
    random::Random,
    settings::Tier,
    tiers::{ASSUMED_FAST_NS, ASSUMED_SLOW_NS},
    time::Time,
};

use super::{Guest, Slice};

/// What moves and faults cost the guest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// An access to the fast tier, in nanoseconds.
    pub fast_ns: f64,
    /// An access to the slow tier, in nanoseconds.
    pub slow_ns: f64,
    /// A hint fault, in nanoseconds: entry, page walk and return; 1 µs natively, more with nested
    /// paging.
    pub fault_ns: f64,
    /// The most that can be copied between the tiers in a second, in bytes: `HeMem`'s 10 GB/s.
    pub copy_bytes_per_s: u64,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            fast_ns: ASSUMED_FAST_NS,
            slow_ns: ASSUMED_SLOW_NS,
            fault_ns: 1_000.0,
            copy_bytes_per_s: 10_000_000_000,
        }
    }
}

/// How moves fail, alike for all policies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Failures {
    /// Share of attempts that find the page busy, at random.
    pub busy: f64,
    /// Share of pages that are pinned and never move.
    pub pinned: f64,
    /// What the random numbers follow from.
    pub seed: u64,
}

impl Default for Failures {
    fn default() -> Self {
        Self {
            busy: 0.01,
            pinned: 0.0,
            seed: 1,
        }
    }
}

/// What all simulations of a comparison have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// What moves and faults cost.
    pub costs: Costs,
    /// How moves fail.
    pub failures: Failures,
    /// By how much better the source sees accesses to the fast tier: 1 for no bias.
    pub fast_bias: f64,
    /// A page that moves again within this time was moved to and fro.
    pub ping_pong: Duration,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            costs: Costs::default(),
            failures: Failures::default(),
            fast_bias: 1.0,
            // The engine's horizon: a move that is undone sooner did not pay back.
            ping_pong: Duration::from_secs(30),
        }
    }
}

/// What a policy did to the machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    /// Bytes copied to the fast tier.
    pub promoted_bytes: u64,
    /// Bytes copied to the slow tier.
    pub demoted_bytes: u64,
    /// Bytes that changed their tier without a copy.
    pub remapped_bytes: u64,
    /// Bytes copied in vain.
    pub wasted_bytes: u64,
    /// Moves of pages, copied or not.
    pub moves: u64,
    /// Moves of pages that had moved less than [`Conditions::ping_pong`] before.
    pub ping_pongs: u64,
    /// Moves that failed, by class.
    pub failed: BTreeMap<Outcome, u64>,
    /// Hint faults.
    pub faults: u64,
    /// Time that moves, copies and faults took from the guest, in nanoseconds.
    pub stall_ns: f64,
}

impl Ledger {
    /// Bytes copied, in vain or not.
    #[must_use]
    pub const fn copied_bytes(&self) -> u64 {
        self.promoted_bytes + self.demoted_bytes + self.wasted_bytes
    }

    /// Share of moves that undid one of shortly before; 0 without moves.
    #[must_use]
    pub fn ping_pong_share(&self) -> f64 {
        match self.moves {
            0 => 0.0,
            moves => self.ping_pongs as f64 / moves as f64,
        }
    }
}

/// How a page's content comes to its new place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copying {
    /// It is copied, and whoever wants the page waits.
    Stopped,
    /// It is copied while the guest goes on using the page.
    Beside,
    /// It is there already.
    Nothing,
}

/// Never moved.
const NEVER: u32 = u32::MAX;

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Host {
    guest: Arc<Guest>,
    conditions: Conditions,
    is_fast: Vec<bool>,
    /// When each page moved last, in milliseconds.
    moved_ms: Vec<u32>,
    fast_bytes: u64,
    fast_used: u64,
    now: Time,
    /// Bytes that can still be copied now.
    copy_bytes: u64,
    attempts: u64,
    ledger: Ledger,
}

impl Host {
    /// A machine with `fast_bytes` bytes of DRAM for this guest, filled in the order of first touch, and
    /// slow memory for the rest.
    #[must_use]
    pub fn new(guest: Arc<Guest>, fast_bytes: u64, conditions: Conditions) -> Self {
        let mut is_fast = vec![false; guest.pages() as usize];
        let mut fast_used = 0;
        for page in guest.first_touch() {
            let bytes = guest.page_bytes(page);
            if fast_used + bytes <= fast_bytes {
                fast_used += bytes;
                is_fast[page as usize] = true;
            }
        }
        Self {
            moved_ms: vec![NEVER; is_fast.len()],
            is_fast,
            guest,
            conditions,
            fast_bytes,
            fast_used,
            now: Time(0),
            copy_bytes: 0,
            attempts: 0,
            ledger: Ledger::default(),
        }
    }

    /// The guest.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// The guest, to keep.
    #[must_use]
    pub fn shared_guest(&self) -> Arc<Guest> {
        Arc::clone(&self.guest)
    }

    /// What holds for all simulations.
    #[must_use]
    pub const fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// Latencies of the fast and the slow tier, in nanoseconds.
    #[must_use]
    pub const fn latencies(&self) -> (f64, f64) {
        (self.conditions.costs.fast_ns, self.conditions.costs.slow_ns)
    }

    /// Where a page lies.
    #[inline]
    #[must_use]
    pub fn tier(&self, page: u32) -> Tier {
        if self.is_fast(page) {
            Tier::Fast
        } else {
            Tier::Slow
        }
    }

    /// Whether a page lies in DRAM; not one that does not exist.
    #[inline]
    #[must_use]
    pub fn is_fast(&self, page: u32) -> bool {
        self.is_fast.get(page as usize).is_some_and(|&fast| fast)
    }

    /// Bytes of DRAM.
    #[must_use]
    pub const fn fast_bytes(&self) -> u64 {
        self.fast_bytes
    }

    /// Bytes of DRAM in use.
    #[must_use]
    pub const fn fast_used(&self) -> u64 {
        self.fast_used
    }

    /// Bytes of DRAM that are free.
    #[must_use]
    pub const fn fast_free(&self) -> u64 {
        self.fast_bytes.saturating_sub(self.fast_used)
    }

    /// What has been done so far.
    #[must_use]
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Moves a page to DRAM: `Moved`, `NoMemory`, `Pinned`, or `Busy` (by chance, or because the tiers'
    /// link is saturated). A page that is there already is `Moved` at no cost; one that does not exist
    /// is `Absent`.
    pub fn promote(&mut self, page: u32) -> Outcome {
        self.move_to(page, Tier::Fast, Copying::Stopped)
    }

    /// Moves a page to the slow tier; see [`Self::promote`].
    pub fn demote(&mut self, page: u32) -> Outcome {
        self.move_to(page, Tier::Slow, Copying::Stopped)
    }

    /// Moves a page to DRAM while the guest goes on using it, as Nomad's transactions do: it is copied
    /// as ever, but the guest waits only for the change of the mapping.
    pub fn promote_in_use(&mut self, page: u32) -> Outcome {
        self.move_to(page, Tier::Fast, Copying::Beside)
    }

    /// Demotes a page whose copy on the slow tier is still valid: nothing is copied.
    pub fn remap_to_slow(&mut self, page: u32) -> Outcome {
        self.move_to(page, Tier::Slow, Copying::Nothing)
    }

    /// Counts hint faults that the guest paid for.
    pub fn charge_faults(&mut self, faults: u64) {
        self.ledger.faults += faults;
        self.ledger.stall_ns += faults as f64 * self.conditions.costs.fault_ns;
    }

    /// Counts a copy that led to nothing: a transaction that was aborted. The guest went on meanwhile;
    /// it waits only while the page is taken from it and, found written, given back.
    pub fn charge_abort(&mut self, bytes: u64) {
        self.ledger.wasted_bytes += bytes;
        self.ledger.stall_ns += moves::assumed_cost_ns(0);
    }

    /// Takes the time of a slice's end, and grants the copies that fit into it.
    pub fn enter(&mut self, slice: &Slice) {
        self.now = slice.end;
        let span = slice.end.since(slice.start).as_nanos();
        let bytes = span * u128::from(self.conditions.costs.copy_bytes_per_s) / 1_000_000_000;
        self.copy_bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    }

    fn move_to(&mut self, page: u32, tier: Tier, copying: Copying) -> Outcome {
        if page >= self.guest.pages() {
            return Outcome::Absent;
        }
        if self.tier(page) == tier {
            return Outcome::Moved;
        }
        let bytes = self.guest.page_bytes(page);
        let copies = copying != Copying::Nothing;
        let outcome = if self.is_pinned(page) {
            Outcome::Pinned
        } else if tier == Tier::Fast && bytes > self.fast_free() {
            Outcome::NoMemory
        } else if self.is_busy(page) || (copies && bytes > self.copy_bytes) {
            Outcome::Busy
        } else {
            Outcome::Moved
        };
        if outcome == Outcome::Moved {
            self.moved(page, tier, bytes, copying);
        } else {
            *self.ledger.failed.entry(outcome).or_default() += 1;
        }
        outcome
    }

    fn moved(&mut self, page: u32, tier: Tier, bytes: u64, copying: Copying) {
        let copies = copying != Copying::Nothing;
        self.is_fast[page as usize] = tier == Tier::Fast;
        let ledger = &mut self.ledger;
        if copies {
            self.copy_bytes -= bytes;
        } else {
            ledger.remapped_bytes += bytes;
        }
        let waited_for = match copying {
            Copying::Stopped => bytes,
            Copying::Beside | Copying::Nothing => 0,
        };
        ledger.stall_ns += moves::assumed_cost_ns(waited_for);
        match tier {
            Tier::Fast => {
                self.fast_used += bytes;
                ledger.promoted_bytes += bytes;
            }
            Tier::Slow => {
                self.fast_used -= bytes;
                ledger.demoted_bytes += if copies { bytes } else { 0 };
            }
        }
        let now_ms = u32::try_from(self.now.0 / 1_000_000).unwrap_or(NEVER - 1);
        let last = std::mem::replace(&mut self.moved_ms[page as usize], now_ms);
        let within = self.conditions.ping_pong.as_millis();
        ledger.moves += 1;
        if last != NEVER && u128::from(now_ms.saturating_sub(last)) < within {
            ledger.ping_pongs += 1;
        }
    }

    fn is_pinned(&self, page: u32) -> bool {
        chance(self.conditions.failures.seed, u64::from(page)) < self.conditions.failures.pinned
    }

    fn is_busy(&mut self, page: u32) -> bool {
        self.attempts += 1;
        let drawn = chance(
            self.conditions.failures.seed ^ u64::from(page),
            self.attempts,
        );
        drawn < self.conditions.failures.busy
    }
}

/// A number in [0, 1) that follows from the seed and the number.
const fn chance(seed: u64, number: u64) -> f64 {
    Random::after(seed, number.wrapping_sub(1)).share()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promotion_when_the_page_stays_in_use_copies_as_much_and_stalls_less() {
        let failures = Failures {
            busy: 0.0,
            ..Failures::default()
        };
        let conditions = Conditions {
            failures,
            ..Conditions::default()
        };
        let guest = Arc::new(Guest::uniform(0, 4, 4096));
        let mut host = Host::new(guest, 8192, conditions);
        let slice = Slice {
            end: Time(1_000_000_000),
            ..Slice::default()
        };
        host.enter(&slice);
        let remap = moves::assumed_cost_ns(0);
        let copy = moves::assumed_cost_ns(4096);
        assert!(copy > remap);
        let moved = |outcome| assert_eq!(outcome, Outcome::Moved);
        type Act = fn(&mut Host) -> Outcome;
        let acts: [(Act, u64, f64); 4] = [
            (|host| host.demote(0), 4096, copy),
            (|host| host.promote_in_use(2), 4096, remap),
            (|host| host.remap_to_slow(2), 0, remap),
            (|host| host.promote(3), 4096, copy),
        ];
        let (mut copied, mut stalled) = (0, 0.0);
        for (act, copies, stalls) in acts {
            moved(act(&mut host));
            copied += copies;
            stalled += stalls;
            assert_eq!(host.ledger().copied_bytes(), copied);
            assert_eq!(host.ledger().stall_ns, stalled);
        }
        host.charge_abort(4096);
        assert_eq!(host.ledger().wasted_bytes, 4096);
        assert_eq!(host.ledger().stall_ns, stalled + remap);
    }
}
