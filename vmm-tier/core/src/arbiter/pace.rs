//! The pace of the arbiter: how shares move towards their targets.

use std::time::Duration;

use super::{Division, Held, Rules, Vm, curve::believable, water::whole_pages};
use crate::{quota::TokenBucket, time::Time};

/// What is remembered between decisions.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    budget: Option<TokenBucket>,
}

/// A VM whose share may change.
pub(super) struct Wanting {
    page: u64,
    cap: u64,
    target: u64,
    holds: u64,
    /// What it uses of its guarantee.
    needed_guarantee: u64,
    /// Since when its share is less than that.
    short_since: Option<Time>,
    /// Whether its share is on the way up, which goes on until it has arrived.
    pub(super) is_rising: bool,
}

/// What a step did.
pub(super) struct Paced {
    /// Bytes by which shares grew above what VMs held.
    pub(super) granted: u64,
    pub(super) is_settled: bool,
}

impl Pace {
    /// What each VM wants, and since when it is short of its guarantee.
    pub(super) fn wanting(
        &self,
        now: Time,
        vms: &[&Vm],
        division: &Division,
        held: &mut [Held],
    ) -> Vec<Wanting> {
        // Where the pool shrank below the guarantees, the target is what there is of them.
        let can_be_kept = division.shortfall_bytes == 0;
        let due = vms.iter().zip(&division.dues).zip(held);
        due.map(|((vm, due), held)| {
            let guarantee = vm.terms.guarantee().min(vm.terms.cap());
            let needed = guarantee.min(due.demand_bytes).min(match can_be_kept {
                true => u64::MAX,
                false => due.target_bytes,
            });
            held.short_since = (held.share < needed).then(|| held.short_since.unwrap_or(now));
            Wanting {
                page: vm.terms.page(),
                cap: vm.terms.cap(),
                target: due.target_bytes,
                holds: vm.holds_bytes,
                needed_guarantee: needed,
                short_since: held.short_since,
                is_rising: held.is_rising,
            }
        })
        .collect()
    }

    /// Moves shares towards targets for a round of `span`; says in `wanting` which still rise.
    pub(super) fn step(
        &mut self,
        rules: &Rules,
        now: Time,
        span: Duration,
        pool: u64,
        wanting: &mut [Wanting],
        shares: &mut [u64],
    ) -> Paced {
        for (share, vm) in shares.iter_mut().zip(&*wanting) {
            *share = (*share).min(vm.cap);
        }
        let excess = shares.iter().sum::<u64>().saturating_sub(pool);
        take(excess, wanting, shares);
        let hysteresis = believable(rules.hysteresis).min(1.0);
        for (vm, &share) in wanting.iter_mut().zip(&*shares) {
            let gain = vm.gain(rules, share);
            let is_far = gain as f64 > vm.target as f64 * hysteresis;
            vm.is_rising = gain > 0 && (vm.is_rising || is_far || vm.short(share) > 0);
        }
        if !wanting.iter().any(|vm| vm.is_rising) {
            return Paced {
                granted: 0,
                is_settled: true,
            };
        }
        let urgent = urgent(rules, now, span, wanting, shares);
        let urgent_bytes: u64 = urgent.iter().sum();
        let budget = self.budget(rules, now, wanting);
        // Guarantees are not delayed by the rate, and count towards it.
        let most = budget.available(now).max(urgent_bytes);
        let wanted = gains(rules, wanting, shares);
        let granted = grant(pool, most, &urgent, &wanted, wanting, shares);
        budget.take_up_to(now, granted);
        // What is to be granted next is taken now, so that it is free when the next round comes.
        let left: u64 = gains(rules, wanting, shares).iter().sum();
        let urgent_left: u64 = short(wanting, shares).iter().sum();
        let next = left
            .min(rules.redeal_bytes_per_s.max(largest_page(wanting)))
            .max(urgent_left);
        let free = pool - shares.iter().sum::<u64>();
        take(next.saturating_sub(free), wanting, shares);
        Paced {
            granted,
            is_settled: left == 0,
        }
    }

    /// The rate of the rules, with bursts of a second or a page.
    fn budget(&mut self, rules: &Rules, now: Time, wanting: &[Wanting]) -> &mut TokenBucket {
        // More would be more than any host moves, and too much to reckon with.
        let rate = rules.redeal_bytes_per_s.min(1 << 50);
        let burst = rate.max(largest_page(wanting));
        let budget = self
            .budget
            .get_or_insert_with(|| TokenBucket::new(rate, burst, now));
        if (budget.rate_bytes_per_s(), budget.burst_bytes()) != (rate, burst) {
            budget.set_rate(now, rate, burst);
        }
        budget
    }
}

impl Wanting {
    /// By how much its share is below its target, if that is a step at least.
    fn gain(&self, rules: &Rules, share: u64) -> u64 {
        let gain = self.target.saturating_sub(share);
        match gain >= rules.step_bytes.max(self.page) {
            true => gain,
            // The last step to a guarantee may be small.
            false => self.needed_guarantee.min(self.target).saturating_sub(share),
        }
    }

    /// By how much its share is below what it uses of its guarantee.
    fn short(&self, share: u64) -> u64 {
        self.needed_guarantee.saturating_sub(share)
    }
}

fn largest_page(wanting: &[Wanting]) -> u64 {
    wanting.iter().map(|vm| vm.page).max().unwrap_or(0)
}

/// By how much each share that rises is below its target.
fn gains(rules: &Rules, wanting: &[Wanting], shares: &[u64]) -> Vec<u64> {
    let gain = |(vm, &share): (&Wanting, &u64)| match vm.is_rising {
        true => vm.gain(rules, share),
        false => 0,
    };
    wanting.iter().zip(shares).map(gain).collect()
}

/// By how much each share is below what the VM uses of its guarantee.
fn short(wanting: &[Wanting], shares: &[u64]) -> Vec<u64> {
    let vms = wanting.iter().zip(shares);
    vms.map(|(vm, &share)| vm.short(share)).collect()
}

/// What must be granted now so that guarantees are back in time: the same part each round, within half
/// of the time, since what is granted must first be freed and then be filled.
fn urgent(
    rules: &Rules,
    now: Time,
    span: Duration,
    wanting: &[Wanting],
    shares: &[u64],
) -> Vec<u64> {
    let short = short(wanting, shares);
    let vms = short.into_iter().zip(wanting);
    vms.map(|(short, vm)| {
        let Some(since) = vm.short_since else {
            return short;
        };
        let left = (rules.guarantee_back / 2).saturating_sub(now.since(since));
        let part = span.as_secs_f64() / left.max(span).as_secs_f64().max(f64::MIN_POSITIVE);
        let bytes = (short as f64 * part.min(1.0)).ceil() as u64;
        bytes.next_multiple_of(vm.page).min(short)
    })
    .collect()
}

/// Grants what VMs hold already, and then at most `most` bytes of what no VM holds, the urgent ones
/// first. Returns how many of these were granted.
fn grant(
    pool: u64,
    most: u64,
    urgent: &[u64],
    wanted: &[u64],
    wanting: &[Wanting],
    shares: &mut [u64],
) -> u64 {
    let before = shares.to_vec();
    let own: Vec<u64> = (0..shares.len())
        .map(|at| {
            let own = wanting[at].holds.saturating_sub(shares[at]);
            own.min(wanted[at]) / wanting[at].page * wanting[at].page
        })
        .collect();
    let free = pool - shares.iter().sum::<u64>();
    raise(shares, &in_proportion(free, &own, wanting));
    let mut granted = 0;
    for wants in [urgent, wanted] {
        let free = pool - shares.iter().sum::<u64>();
        let charged = shares
            .iter()
            .zip(wanting)
            .map(|(&share, vm)| share.max(vm.holds));
        let unheld = pool.saturating_sub(charged.fold(0, u64::saturating_add));
        let grown = shares
            .iter()
            .zip(&before)
            .map(|(share, before)| share - before);
        let rest = wants
            .iter()
            .zip(grown)
            .map(|(&want, grown)| want.saturating_sub(grown));
        let rest: Vec<u64> = rest.collect();
        let dealt = in_proportion(unheld.min(free).min(most - granted), &rest, wanting);
        granted += dealt.iter().sum::<u64>();
        raise(shares, &dealt);
    }
    granted
}

fn raise(shares: &mut [u64], by: &[u64]) {
    for (share, by) in shares.iter_mut().zip(by) {
        *share += by;
    }
}

/// Deals `amount` in proportion to what is wanted, in whole pages.
fn in_proportion(amount: u64, wants: &[u64], wanting: &[Wanting]) -> Vec<u64> {
    let all: u64 = wants.iter().fold(0, |sum, &want| sum.saturating_add(want));
    if all <= amount {
        return wants.to_vec();
    }
    let part = amount as f64 / all as f64;
    let exact: Vec<f64> = wants.iter().map(|&want| want as f64 * part).collect();
    let pages: Vec<u64> = wanting.iter().map(|vm| vm.page).collect();
    whole_pages(&exact, &pages, wants, amount)
}

/// Takes `amount` bytes, or up to a page more, from shares above their targets: in proportion to how far
/// they are above.
fn take(amount: u64, wanting: &[Wanting], shares: &mut [u64]) {
    if amount == 0 {
        return;
    }
    let above: Vec<u64> = shares
        .iter()
        .zip(wanting)
        .map(|(share, vm)| share.saturating_sub(vm.target))
        .collect();
    let taken = in_proportion(amount, &above, wanting);
    let mut left = amount.saturating_sub(taken.iter().sum());
    for (share, taken) in shares.iter_mut().zip(&taken) {
        *share -= taken;
    }
    // Rounding down left less than a page of each.
    for ((share, vm), (above, taken)) in shares.iter_mut().zip(wanting).zip(above.iter().zip(taken))
    {
        if left == 0 {
            break;
        }
        let page = vm.page.min(above - taken);
        *share -= page;
        left = left.saturating_sub(page);
    }
}
