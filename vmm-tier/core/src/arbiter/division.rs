//! A division of the pool: what each VM is to have, without regard to what it has.

use super::{
    Mode, Rules, Vm,
    curve::{DemandCurve, believable},
    water::{Vessel, fill, whole_pages},
};
use crate::addr::BASE_PAGE;

/// In [`Mode::Utility`] a VM has up to 1 + 8 · band / (1 − band) times its fair share: three times with a
/// band of 0.2, and no bound with a band of 1. So a guest that spins can't collect the bands of all others.
/// Of 1,000 generated VMs, of which 67 lie, hits are 0.983 instead of 0.973 of what one who knows better
/// makes of the boxes, and 0.3 points of all accesses fewer (`vmm-tier replay --vms 1000 --fast 5%`).
const GAIN: f64 = 8.0;

/// What a VM is to have.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Due {
    /// What the VM would have if every VM wanted as much as it may have, in bytes: the guarantee, and by
    /// weight what is above all guarantees.
    pub entitled_bytes: u64,
    /// What the VM was measured to use, in whole pages, up to its cap.
    pub demand_bytes: u64,
    /// What the VM has by weight and demand: its entitlement, less what it lends, with what it borrows.
    pub fair_bytes: u64,
    /// What the VM is to have by the mode: whole pages. All together are at most the pool.
    pub target_bytes: u64,
    /// What others use of its entitlement.
    pub lent_bytes: f64,
    /// What it uses of others' entitlements.
    pub borrowed_bytes: f64,
}

/// All that VMs are to have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Division {
    /// One for each VM, in the VMs' order.
    pub dues: Vec<Due>,
    /// By how many bytes the guarantees exceed the pool, 0 unless the pool shrank below what was
    /// admitted: then each VM is guaranteed the same share of its guarantee.
    pub shortfall_bytes: u64,
}

/// A VM's wishes, in numbers that can be reckoned with.
#[derive(Clone, Copy)]
struct Claim<'a> {
    guarantee: f64,
    cap: f64,
    weight: f64,
    page: u64,
    demand: f64,
    goal: Option<f64>,
    curve: &'a DemandCurve,
    /// What a hit is worth: below 1 where more is claimed than the VM's virtual CPUs could do.
    worth: f64,
    /// What it is owed, in bytes for as long as the payback lasts.
    head_start: f64,
}

impl<'a> Claim<'a> {
    fn new(rules: &Rules, vm: &'a Vm, credit_byte_s: f64) -> Self {
        let (page, cap) = (vm.terms.page(), vm.terms.cap() as f64);
        let curve = &vm.curve;
        let worth = worth(rules, vm);
        let idle_hits_per_byte = believable(rules.idle_hits_per_page_s)
            / BASE_PAGE as f64
            / worth.max(f64::MIN_POSITIVE);
        let used = match worth > 0.0 {
            true => curve.used_bytes(idle_hits_per_byte),
            false => 0.0,
        };
        let whole = |bytes: f64| ((bytes / page as f64).ceil() * page as f64).min(cap);
        Self {
            guarantee: (vm.terms.guarantee() as f64).min(cap),
            cap,
            weight: vm.terms.believed_weight(),
            page,
            demand: whole(used),
            goal: vm.terms.goal.map(|goal| match worth > 0.0 {
                true => whole(curve.bytes_for(goal)),
                false => 0.0,
            }),
            curve,
            worth,
            head_start: credit_byte_s / rules.payback.as_secs_f64().max(1.0),
        }
    }

    /// What of the guarantee is used.
    fn needed_guarantee(&self) -> f64 {
        self.guarantee.min(self.demand)
    }
}

/// What a hit of this VM is worth, 0 to 1. A hit saves the time by which slow memory is slower, and a VM
/// can't save more time than its virtual CPUs ran: who claims more hits than that has all of them
/// scaled down.
fn worth(rules: &Rules, vm: &Vm) -> f64 {
    let claimed_s = vm.curve.total_hits() * rules.saved_per_hit.as_secs_f64();
    match claimed_s > 0.0 {
        true => (believable(vm.vcpu_s_per_s) / claimed_s).min(1.0),
        false => 1.0,
    }
}

/// Divides a pool of `pool` bytes among the VMs; `credits` are theirs, in byte-seconds, in their order.
///
/// The order of the VMs decides nothing but who gets a page that two have the same right to.
#[must_use]
pub fn divide(rules: &Rules, pool: u64, vms: &[&Vm], credits: &[f64]) -> Division {
    let credits = credits.iter().copied().chain(std::iter::repeat(0.0));
    let mut claims: Vec<Claim<'_>> = vms
        .iter()
        .zip(credits)
        .map(|(vm, credit)| Claim::new(rules, vm, credit))
        .collect();
    let pool_bytes = believable(pool as f64);
    let guaranteed: f64 = claims.iter().map(|claim| claim.guarantee).sum();
    if guaranteed > pool_bytes {
        let scale = pool_bytes / guaranteed;
        for claim in &mut claims {
            claim.guarantee *= scale;
        }
    }
    let fair = fair(rules, pool_bytes, &claims);
    let targets = match rules.mode {
        Mode::Static => fair.iter().map(|fair| fair.entitled).collect(),
        Mode::Weighted => fair.iter().map(Fair::total).collect(),
        Mode::Utility => most_hits(rules, pool_bytes, &claims, &fair),
        Mode::Goal => goals(pool_bytes, &claims),
    };
    let targets = in_whole_pages(targets, pool, &claims);
    let dues = fair.iter().zip(&claims).zip(targets);
    Division {
        dues: dues
            .map(|((fair, claim), target_bytes)| Due {
                entitled_bytes: fair.entitled.round() as u64,
                demand_bytes: claim.demand as u64,
                fair_bytes: fair.total().round() as u64,
                target_bytes,
                lent_bytes: fair.lent,
                borrowed_bytes: fair.borrowed,
            })
            .collect(),
        shortfall_bytes: (guaranteed - pool_bytes).max(0.0) as u64,
    }
}

/// What is a VM's by weight and demand, in bytes.
struct Fair {
    entitled: f64,
    lent: f64,
    borrowed: f64,
}

impl Fair {
    fn total(&self) -> f64 {
        self.entitled - self.lent + self.borrowed
    }
}

/// Weighted max-min fairness on demand above the guarantees, in two steps that show who lends to whom:
/// entitlements as if all wanted all, then what is unused of them, less what the idle tax leaves to its
/// owner, to those that want more.
fn fair(rules: &Rules, pool: f64, claims: &[Claim<'_>]) -> Vec<Fair> {
    let guaranteed: f64 = claims.iter().map(|claim| claim.guarantee).sum();
    let above: Vec<Vessel> = claims
        .iter()
        .map(|claim| Vessel::new(claim.weight, claim.cap - claim.guarantee))
        .collect();
    let above = fill(pool - guaranteed, &above);
    let tax = believable(rules.idle_tax).min(1.0);
    let entitled = |at: usize| claims[at].guarantee + above[at];
    let offered: Vec<f64> = (0..claims.len())
        .map(|at| (entitled(at) - claims[at].demand).max(0.0) * tax)
        .collect();
    let wanted: Vec<Vessel> = (0..claims.len())
        .map(|at| Vessel {
            head_start: claims[at].head_start,
            ..Vessel::new(claims[at].weight, claims[at].demand - entitled(at))
        })
        .collect();
    let all_offered: f64 = offered.iter().sum();
    let all_wanted: f64 = wanted.iter().map(|vessel| vessel.room).sum();
    let dealt = all_offered.min(all_wanted);
    let used = match all_offered > 0.0 {
        true => dealt / all_offered,
        false => 0.0,
    };
    let borrowed = fill(dealt, &wanted);
    (0..claims.len())
        .map(|at| Fair {
            entitled: entitled(at),
            lent: offered[at] * used,
            borrowed: borrowed[at],
        })
        .collect()
}

/// The most hits that the boxes allow. A box reaches from what the band leaves of the fair share above
/// the used guarantee to what the band adds to the fair share, but not above the cap. Curves are concave,
/// so hits are greatest where the next byte of every VM is worth the same: at one price.
fn most_hits(rules: &Rules, pool: f64, claims: &[Claim<'_>], fair: &[Fair]) -> Vec<f64> {
    let band = believable(rules.band).min(1.0);
    let least = |(claim, fair): (&Claim<'_>, &Fair)| {
        let base = claim.needed_guarantee().min(fair.total());
        base + (1.0 - band) * (fair.total() - base)
    };
    let mut shares: Vec<f64> = claims.iter().zip(fair).map(least).collect();
    let mut rest = (pool - shares.iter().sum::<f64>()).max(0.0);
    let most = match band < 1.0 {
        true => 1.0 + GAIN * band / (1.0 - band),
        false => f64::INFINITY,
    };
    let boxes: Vec<Claim<'_>> = claims
        .iter()
        .zip(fair)
        .map(|(claim, fair)| Claim {
            // Where nothing is fair and nothing bounds, `min` takes the cap.
            cap: (fair.total() * most).min(claim.cap),
            ..*claim
        })
        .collect();
    let price = price(&boxes, &shares, rest);
    // All that is worth more than the price, then by weight what is worth it.
    let mut at_price = Vec::with_capacity(claims.len());
    for (claim, share) in boxes.iter().zip(&mut shares) {
        let bytes = claim.bytes_above(*share, |worth| worth > price);
        *share += bytes;
        rest -= bytes;
        let tied = claim.bytes_above(*share, |worth| worth >= price && worth > 0.0);
        at_price.push(Vessel::new(claim.weight, tied));
    }
    let tied = fill(rest, &at_price);
    rest -= tied.iter().sum::<f64>();
    shares
        .iter_mut()
        .zip(&tied)
        .for_each(|(share, tied)| *share += tied);
    // What all boxes leave is for those that would use it.
    let rest = deal_by_weight(&mut shares, rest, claims, |claim| claim.demand);
    deal_by_weight(&mut shares, rest, claims, |claim| claim.cap);
    shares
}

impl Claim<'_> {
    /// The bytes above `share` bytes, up to the cap, for which `is_wanted` holds for the worth of a
    /// byte.
    fn bytes_above(&self, share: f64, is_wanted: impl Fn(f64) -> bool) -> f64 {
        let end = self
            .curve
            .bytes_while(|slope| is_wanted(slope * self.worth));
        (end.min(self.cap) - share).max(0.0)
    }
}

/// The worth of a byte at which all bytes above the shares that are worth more are no more than
/// `amount`, and with those of the same worth no less; 0 if all bytes together are less.
///
/// Some pieces of all curves are marks, between which the price is searched; what lies between two
/// marks is then selected from. So most pieces are never looked at.
fn price(claims: &[Claim<'_>], shares: &[f64], amount: f64) -> f64 {
    const MARKS: usize = 15;
    let every = claims.len().div_ceil(MARKS).max(1);
    let mut marks: Vec<f64> = claims
        .iter()
        .step_by(every)
        .enumerate()
        .filter_map(|(at, claim)| {
            // A spread of places on the curves: multiples of the golden ratio.
            let place = (at as f64 * 0.618_034).fract();
            claim.curve.slope_at(place).map(|slope| slope * claim.worth)
        })
        .collect();
    marks.sort_unstable_by(|a, b| b.total_cmp(a));
    // One look at each curve serves all marks.
    let mut bytes = vec![0.0; marks.len()];
    for (claim, &share) in claims.iter().zip(shares) {
        let ends = claim.curve.bytes_down_to(&marks, claim.worth);
        for (bytes, end) in bytes.iter_mut().zip(ends) {
            *bytes += (end.min(claim.cap) - share).max(0.0);
        }
    }
    let too_dear = bytes.partition_point(|&bytes| bytes < amount);
    let above = too_dear
        .checked_sub(1)
        .map_or(f64::INFINITY, |at| marks[at]);
    let least = marks.get(too_dear).copied().unwrap_or(0.0);
    let mut amount = amount;
    let mut offers: Vec<(f64, f64)> = Vec::new();
    for (claim, &share) in claims.iter().zip(shares) {
        let dearer = claim.bytes_above(share, |worth| worth >= above);
        amount -= dearer;
        let from = share + dearer;
        let pieces = claim.curve.pieces_from(from).map(|piece| {
            let length = piece.to.min(claim.cap) - piece.from.max(from);
            (piece.slope * claim.worth, length)
        });
        offers.extend(
            pieces.take_while(|&(worth, length)| worth >= least && worth > 0.0 && length > 0.0),
        );
    }
    price_of_offers(&mut offers, amount, least)
}

/// The same among offers: what a byte is worth, and how many bytes; `least` if they are too few. Takes
/// linear time: a weighted quickselect.
fn price_of_offers(offers: &mut [(f64, f64)], amount: f64, least: f64) -> f64 {
    let (mut offers, mut amount, mut least) = (offers, amount, least);
    while !offers.is_empty() {
        let middle = offers.len() / 2;
        let (above, &mut (worth, length), below) =
            offers.select_nth_unstable_by(middle, |a, b| b.0.total_cmp(&a.0));
        let more: f64 = above.iter().map(|offer| offer.1).sum();
        if more >= amount && !above.is_empty() {
            // Should rounding say later that they are too few, these were enough.
            least = worth;
            offers = above;
        } else if more + length >= amount {
            return worth;
        } else {
            amount -= more + length;
            offers = below;
        }
    }
    least
}

/// Goals first, by weight where they can't all be met; then demands, then what is left.
fn goals(pool: f64, claims: &[Claim<'_>]) -> Vec<f64> {
    let aim = |claim: &Claim<'_>| claim.goal.unwrap_or(0.0);
    let mut shares: Vec<f64> = claims
        .iter()
        .map(|claim| claim.guarantee.min(claim.demand.max(aim(claim))))
        .collect();
    let mut rest = pool - shares.iter().sum::<f64>();
    let most: [fn(&Claim<'_>) -> f64; 3] = [
        |claim| claim.goal.unwrap_or(0.0),
        |claim| claim.demand,
        |claim| claim.cap,
    ];
    for most in most {
        rest = deal_by_weight(&mut shares, rest, claims, most);
    }
    shares
}

/// Deals `amount` bytes more, to each VM at most up to `most`, so that what VMs then have above their
/// used guarantees is as their weights; who has more already waits. Returns what is left.
fn deal_by_weight(
    shares: &mut [f64],
    amount: f64,
    claims: &[Claim<'_>],
    most: impl Fn(&Claim<'_>) -> f64,
) -> f64 {
    if amount <= 0.0 {
        return 0.0;
    }
    let vessels: Vec<Vessel> = claims
        .iter()
        .zip(shares.iter())
        .map(|(claim, share)| Vessel {
            head_start: claim.needed_guarantee() - share,
            ..Vessel::new(claim.weight, most(claim) - share)
        })
        .collect();
    let dealt = fill(amount, &vessels);
    shares
        .iter_mut()
        .zip(&dealt)
        .for_each(|(share, dealt)| *share += dealt);
    (amount - dealt.iter().sum::<f64>()).max(0.0)
}

/// The shares in whole pages. What is too little for a page of one VM goes to VMs with smaller pages.
fn in_whole_pages(shares: Vec<f64>, pool: u64, claims: &[Claim<'_>]) -> Vec<u64> {
    let pages: Vec<u64> = claims.iter().map(|claim| claim.page).collect();
    let caps: Vec<u64> = claims.iter().map(|claim| claim.cap as u64).collect();
    let mut whole = whole_pages(&shares, &pages, &caps, pool);
    let mut rest = pool - whole.iter().sum::<u64>();
    let mut shares = shares;
    // Each turn deals out all but less than a page of those that take part, so the pages that fit
    // shrink.
    while rest >= BASE_PAGE {
        for (share, &whole) in shares.iter_mut().zip(&whole) {
            *share = whole as f64;
        }
        let most = |claim: &Claim<'_>| if claim.page <= rest { claim.cap } else { 0.0 };
        if deal_by_weight(&mut shares, rest as f64, claims, most) >= rest as f64 {
            break;
        }
        whole = whole_pages(&shares, &pages, &caps, pool);
        let left = pool - whole.iter().sum::<u64>();
        if left >= rest {
            break;
        }
        rest = left;
    }
    whole
}
