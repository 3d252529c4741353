//! What holds for every division of the arbiter, whatever VMs there are, what they claim and what comes.

use std::{collections::BTreeMap, time::Duration};

use proptest::{collection::vec, prelude::*};
use tier_core::{
    arbiter::{Arbiter, DemandCurve, Division, Due, Mode, Rules, Terms, Vm, divide},
    random::Random,
    time::Time,
};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const CASES: u32 = 400;

/// Curves of up to eight parts of up to 64 MiB each; also of nothing.
fn curve() -> impl Strategy<Value = DemandCurve> {
    let part = (1..64 * MIB, 0.0..1e6);
    vec(part, 0..8).prop_map(DemandCurve::of_buckets)
}

/// VMs that make sense, with pages from `pages`.
fn vm(pages: &'static [u64]) -> impl Strategy<Value = Vm> {
    (
        (0..64 * MIB, 0..512 * MIB, 0.01..100.0),
        (0..pages.len(), prop::option::of(0.01..=1.0)),
        (curve(), 0.0..4.0),
    )
        .prop_map(
            |((guarantee_bytes, more, weight), (page, goal), (curve, vcpu_s_per_s))| Vm {
                terms: Terms {
                    guarantee_bytes,
                    cap_bytes: (guarantee_bytes + more).next_multiple_of(pages[page]),
                    weight,
                    page_bytes: pages[page],
                    goal,
                },
                curve,
                holds_bytes: 0,
                vcpu_s_per_s,
            },
        )
}

const ALL_PAGES: &[u64] = &[PAGE, PAGE, 2 * MIB, 64 * MIB];
const SMALL_PAGES: &[u64] = &[PAGE];

fn rules() -> impl Strategy<Value = Rules> {
    let mode = (0..Mode::ALL.len()).prop_map(|mode| Mode::ALL[mode]);
    (mode, 0.0..=1.0, 0.0..=1.0).prop_map(|(mode, band, idle_tax)| Rules {
        mode,
        band,
        idle_tax,
        ..Rules::default()
    })
}

/// Weighted, and as efficient as it gets.
fn weighted() -> Rules {
    Rules {
        mode: Mode::Weighted,
        idle_tax: 1.0,
        ..Rules::default()
    }
}

fn whole_guarantee(vm: &Vm) -> u64 {
    vm.terms
        .guarantee_bytes
        .next_multiple_of(vm.terms.page_bytes)
}

/// The guarantees, and so much above them.
fn pool_of(vms: &[Vm], above: u64) -> u64 {
    vms.iter().map(whole_guarantee).sum::<u64>() + above
}

fn divided(rules: &Rules, pool: u64, vms: &[Vm]) -> Division {
    divide(rules, pool, &vms.iter().collect::<Vec<_>>(), &[])
}

/// What of a share the VM can use.
fn useful(due: &Due, demand: u64) -> u64 {
    due.target_bytes.min(demand)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn division_keeps_pool_guarantees_and_caps_and_leaves_nothing_that_anyone_could_have(
        rules in rules(), vms in vec(vm(ALL_PAGES), 1..12), above in 0..1024 * MIB,
    ) {
        let pool = pool_of(&vms, above);
        let division = divided(&rules, pool, &vms);
        prop_assert_eq!(division.shortfall_bytes, 0);
        let mut free = pool;
        for (vm, due) in vms.iter().zip(&division.dues) {
            prop_assert!(due.target_bytes <= vm.terms.cap_bytes);
            prop_assert_eq!(due.target_bytes % vm.terms.page_bytes, 0);
            let needed = match rules.mode {
                Mode::Static => whole_guarantee(vm),
                _ => whole_guarantee(vm).min(due.demand_bytes),
            };
            prop_assert!(due.target_bytes >= needed, "{} < {needed}", due.target_bytes);
            prop_assert!(due.target_bytes <= free);
            free -= due.target_bytes;
        }
        for (vm, due) in vms.iter().zip(&division.dues) {
            let room = vm.terms.cap_bytes - due.target_bytes;
            prop_assert!(room == 0 || free < vm.terms.page_bytes, "{free} are free, {room} are room");
        }
    }

    #[test]
    fn division_when_weighted_is_pareto_efficient(
        vms in vec(vm(SMALL_PAGES), 1..12), above in 0..1024 * MIB, idle_tax in 0.0..=1.0,
    ) {
        let rules = Rules { idle_tax, ..weighted() };
        let division = divided(&rules, pool_of(&vms, above), &vms);
        let is_short = division.dues.iter().any(|due| due.target_bytes + PAGE < due.demand_bytes);
        for due in &division.dues {
            // While one lacks something, nobody has more than it uses but for what the tax leaves it.
            let unused = due.entitled_bytes.saturating_sub(due.demand_bytes);
            let left = (unused as f64 * (1.0 - idle_tax)) as u64;
            prop_assert!(!is_short || due.target_bytes <= due.demand_bytes + left + 2 * PAGE);
        }
    }

    #[test]
    fn share_when_the_weight_grows_does_not_shrink(
        mut vms in vec(vm(SMALL_PAGES), 2..12), above in 0..1024 * MIB, factor in 1.0..10.0, tax in 0.0..=1.0,
    ) {
        let rules = Rules { idle_tax: tax, ..weighted() };
        let pool = pool_of(&vms, above);
        let before = divided(&rules, pool, &vms).dues[0];
        vms[0].terms.weight *= factor;
        let after = divided(&rules, pool, &vms).dues[0];
        prop_assert!(after.entitled_bytes + 1 >= before.entitled_bytes);
        let (before, after) = (useful(&before, before.demand_bytes), useful(&after, after.demand_bytes));
        prop_assert!(after + 2 * PAGE >= before, "{after} < {before}");
    }

    #[test]
    fn vm_when_weighted_envies_nobody(
        vms in vec(vm(SMALL_PAGES), 2..12), above in 0..1024 * MIB, tax in 0.0..=1.0,
    ) {
        let rules = Rules { idle_tax: tax, ..weighted() };
        let division = divided(&rules, pool_of(&vms, above), &vms);
        for (vm, due) in vms.iter().zip(&division.dues) {
            let is_content = due.target_bytes + PAGE >= due.demand_bytes;
            for (other, its) in vms.iter().zip(&division.dues) {
                // What the VM would have of the other's share above the guarantee, by its own weight.
                let above = its.target_bytes.saturating_sub(whole_guarantee(other)) as f64;
                let envied = above / other.terms.weight * vm.terms.weight;
                let own = due.target_bytes.saturating_sub(whole_guarantee(vm)) as f64;
                let slack = PAGE as f64 * 2.0 * (1.0 + vm.terms.weight / other.terms.weight);
                prop_assert!(is_content || own + slack >= envied, "{own} < {envied}");
            }
        }
    }

    #[test]
    fn vm_when_weighted_gains_nothing_by_a_lie(
        vms in vec(vm(SMALL_PAGES), 2..8), above in 0..512 * MIB, tax in 0.0..=1.0,
        credits in vec(-1e12..1e12, 8), seed in any::<u64>(),
    ) {
        let rules = Rules { idle_tax: tax, ..weighted() };
        let pool = pool_of(&vms, above);
        let divided = |vms: &[Vm]| divide(&rules, pool, &vms.iter().collect::<Vec<_>>(), &credits);
        let truth = divided(&vms).dues[0];
        let honest = useful(&truth, truth.demand_bytes);
        let mut random = Random::new(seed);
        let mut lying = vms.clone();
        for _ in 0..40 {
            let bytes = (random.share() * 1e9) as u64;
            let hits = (random.share() * 50.0).exp2();
            lying[0].curve = DemandCurve::of_buckets([(bytes, hits), (bytes / 3, random.share() * hits)]);
            let got = useful(&divided(&lying).dues[0], truth.demand_bytes);
            prop_assert!(got <= honest + 2 * PAGE, "{got} by a lie, {honest} by the truth");
        }
    }

    #[test]
    fn vms_when_in_another_order_get_the_same(
        rules in rules(), vms in vec(vm(SMALL_PAGES), 2..12), above in 0..1024 * MIB, seed in any::<u64>(),
    ) {
        let pool = pool_of(&vms, above);
        let before = divided(&rules, pool, &vms);
        let mut order: Vec<usize> = (0..vms.len()).collect();
        Random::new(seed).shuffle(&mut order);
        let shuffled: Vec<Vm> = order.iter().map(|&at| vms[at].clone()).collect();
        let after = divided(&rules, pool, &shuffled);
        for (at, due) in order.iter().zip(&after.dues) {
            prop_assert!(due.target_bytes.abs_diff(before.dues[*at].target_bytes) <= 2 * PAGE);
        }
    }

    #[test]
    fn liars_when_utility_has_a_band_cost_nobody_more_than_the_band(
        vms in vec(vm(SMALL_PAGES), 2..8), above in 0..512 * MIB, band in 0.0..=1.0, lie in 0.0..1e18,
    ) {
        let pool = pool_of(&vms, above);
        let mut lying = vms;
        lying[0].curve = DemandCurve::of_buckets([(512 * MIB, lie)]);
        lying[0].vcpu_s_per_s = 1e9;
        let rules = Rules { mode: Mode::Utility, band, ..weighted() };
        let division = divided(&rules, pool, &lying);
        for (vm, due) in lying.iter().zip(&division.dues) {
            let base = whole_guarantee(vm).min(due.demand_bytes).min(due.fair_bytes);
            let least = base as f64 + (1.0 - band) * (due.fair_bytes - base) as f64;
            prop_assert!(due.target_bytes as f64 + 2.0 * PAGE as f64 >= least);
        }
    }

    #[test]
    fn vm_when_utility_decides_has_more_than_its_box_only_if_all_boxes_are_full(
        vms in vec(vm(SMALL_PAGES), 2..24), above in 0..512 * MIB, band in 0.0..1.0,
    ) {
        let rules = Rules { mode: Mode::Utility, band, ..Rules::default() };
        let division = divided(&rules, pool_of(&vms, above), &vms);
        let most = |due: &Due| due.fair_bytes as f64 * (1.0 + 8.0 * band / (1.0 - band));
        let is_above = |due: &&Due| due.target_bytes as f64 > most(due) + 2.0 * PAGE as f64;
        if division.dues.iter().any(|due| is_above(&due)) {
            for due in &division.dues {
                let full = most(due).min(due.demand_bytes as f64) - 2.0 * PAGE as f64;
                prop_assert!(due.target_bytes as f64 >= full, "{} < {full}", due.target_bytes);
            }
        }
    }

    #[test]
    fn hits_when_utility_decides_are_the_most_that_a_random_search_finds(
        vms in vec(vm(SMALL_PAGES), 2..6), above in 0..512 * MIB, seed in any::<u64>(),
    ) {
        let mut vms = vms;
        vms.iter_mut().for_each(|vm| vm.vcpu_s_per_s = 1e6);
        let pool = pool_of(&vms, above);
        let rules = Rules { mode: Mode::Utility, band: 1.0, ..weighted() };
        let division = divided(&rules, pool, &vms);
        let hits = |shares: &[u64]| -> f64 {
            vms.iter().zip(shares).map(|(vm, &share)| vm.curve.hits_at(share as f64)).sum()
        };
        let best: Vec<u64> = division.dues.iter().map(|due| due.target_bytes).collect();
        let most = hits(&best);
        let mut random = Random::new(seed);
        for _ in 0..200 {
            // Some bytes go from one VM to another, inside the boxes.
            let (from, to) = (random.below(vms.len() as u64) as usize, random.below(vms.len() as u64) as usize);
            let needed = whole_guarantee(&vms[from]).min(division.dues[from].demand_bytes);
            let room = (best[from].saturating_sub(needed)).min(vms[to].terms.cap_bytes - best[to]);
            let bytes = random.below(room + 1);
            let mut other = best.clone();
            other[from] -= bytes;
            other[to] += bytes;
            // Rounding to pages loses up to two pages of hits.
            let slope = vms.iter().filter_map(|vm| vm.curve.pieces().next()).map(|piece| piece.slope);
            let slack = slope.fold(0.0, f64::max) * PAGE as f64 * 2.0 * vms.len() as f64;
            prop_assert!(hits(&other) <= most + slack, "{} > {most}", hits(&other));
        }
    }
}

/// Any VM at all: every number may be anything.
fn hostile_vm() -> impl Strategy<Value = Vm> {
    let number = || {
        prop_oneof![
            any::<f64>(),
            Just(f64::NAN),
            Just(f64::INFINITY),
            Just(0.0),
            Just(1e300)
        ]
    };
    let bytes = || prop_oneof![any::<u64>(), Just(0), Just(u64::MAX), 0..1u64 << 34];
    (
        (bytes(), bytes(), number(), bytes()),
        prop::option::of(number()),
        (vec((bytes(), number()), 0..4), any::<bool>()),
        (bytes(), number()),
    )
        .prop_map(
            |(
                (guarantee_bytes, cap_bytes, weight, page_bytes),
                goal,
                (parts, whole),
                (holds_bytes, vcpu),
            )| Vm {
                terms: Terms {
                    guarantee_bytes,
                    cap_bytes,
                    weight,
                    page_bytes,
                    goal,
                },
                curve: match whole {
                    true => DemandCurve::of_points(parts),
                    false => DemandCurve::of_buckets(parts),
                },
                holds_bytes,
                vcpu_s_per_s: vcpu,
            },
        )
}

fn hostile_rules() -> impl Strategy<Value = Rules> {
    let mode = (0..Mode::ALL.len()).prop_map(|mode| Mode::ALL[mode]);
    let number = || prop_oneof![any::<f64>(), 0.0..1.0, Just(f64::NAN)];
    let time = || {
        prop_oneof![
            any::<u64>().prop_map(Duration::from_nanos),
            Just(Duration::ZERO),
            Just(Duration::MAX)
        ]
    };
    (
        (mode, number(), number(), number()),
        (time(), time(), time(), time()),
        (number(), any::<u64>(), any::<u64>()),
    )
        .prop_map(
            |((mode, band, idle_tax, idle), times, (hysteresis, step, rate))| Rules {
                mode,
                band,
                idle_tax,
                idle_hits_per_page_s: idle,
                saved_per_hit: times.0,
                payback: times.1,
                most_credit: times.2,
                hysteresis,
                step_bytes: step,
                redeal_bytes_per_s: rate,
                guarantee_back: times.3,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn arbiter_when_all_input_is_hostile_stays_within_the_pool(
        rounds in vec((hostile_rules(), any::<u64>(), prop_oneof![any::<u64>(), 0..1u64 << 36],
            vec((0..6u8, hostile_vm()), 0..6)), 1..6),
    ) {
        let mut arbiter = Arbiter::new(Rules::default());
        for (rules, now, pool, vms) in rounds {
            arbiter.set_rules(rules);
            let vms: BTreeMap<String, Vm> = vms.into_iter().map(|(name, vm)| (name.to_string(), vm)).collect();
            let decision = arbiter.deal(Time(now), pool, &vms);
            prop_assert_eq!(decision.shares.len(), vms.len());
            let mut free = pool;
            for (vm, share) in vms.values().zip(&decision.shares) {
                prop_assert!(share.share_bytes <= vm.terms.cap_bytes);
                prop_assert!(share.share_bytes <= free);
                prop_assert!(share.credit_byte_s.is_finite());
                free -= share.share_bytes;
            }
            prop_assert_eq!(free, decision.free_bytes);
        }
    }

    #[test]
    fn shares_when_vms_come_go_and_change_exceed_neither_pool_nor_what_is_free(
        rules in rules(), vms in vec(vm(ALL_PAGES), 4), above in 0..512 * MIB,
        rounds in vec((any::<u8>(), 0..4usize, curve(), 0..3000u64, 0.0..=1.0), 1..40),
    ) {
        let pool = pool_of(&vms, above);
        let mut arbiter = Arbiter::new(rules);
        let mut there: BTreeMap<String, Vm> = BTreeMap::new();
        let mut now = Time(0);
        let mut before: BTreeMap<String, u64> = BTreeMap::new();
        for (present, changes, curve, ms, speed) in rounds {
            now = now + Duration::from_millis(ms);
            for (at, vm) in vms.iter().enumerate() {
                let name = at.to_string();
                match present >> at & 1 {
                    0 => drop((there.remove(&name), before.remove(&name))),
                    _ => drop(there.entry(name).or_insert_with(|| vm.clone())),
                }
            }
            if let Some(vm) = there.get_mut(&changes.to_string()) {
                vm.curve = curve;
            }
            let decision = arbiter.deal(now, pool, &there);
            let mut sum = 0;
            let held: u64 = there.values().map(|vm| vm.holds_bytes).sum();
            for ((name, vm), share) in there.iter_mut().zip(&decision.shares) {
                prop_assert!(share.share_bytes <= vm.terms.cap_bytes);
                sum += share.share_bytes;
                // Who grows holds at once what it may; who shrinks takes its time.
                let goal = share.share_bytes;
                before.insert(name.clone(), goal);
                vm.holds_bytes = match goal >= vm.holds_bytes {
                    true => goal,
                    false => vm.holds_bytes - ((vm.holds_bytes - goal) as f64 * speed) as u64,
                };
            }
            prop_assert!(sum <= pool);
            // Nobody was granted what another still holds.
            let holds: u64 = there.values().map(|vm| vm.holds_bytes).sum();
            prop_assert!(holds <= pool.max(held), "{holds} held of {pool}");
        }
    }

    #[test]
    fn guarantee_when_it_is_used_again_is_back_within_its_time(
        vms in vec(vm(ALL_PAGES), 2..8), above in 0..512 * MIB, rate in 1..1u64 << 30, idle_s in 1..200u64,
    ) {
        let pool = pool_of(&vms, above);
        let rules = Rules { redeal_bytes_per_s: rate, ..Rules::default() };
        let mut arbiter = Arbiter::new(rules);
        let mut vms: BTreeMap<String, Vm> = vms.into_iter().enumerate().map(|(at, vm)| (at.to_string(), vm)).collect();
        let mut now = Time(0);
        let mut second = |vms: &mut BTreeMap<String, Vm>| {
            now = now + Duration::from_secs(1);
            let decision = arbiter.deal(now, pool, vms);
            for (vm, share) in vms.values_mut().zip(&decision.shares) {
                vm.holds_bytes = share.share_bytes;
            }
            decision
        };
        let busy = vms["0"].curve.clone();
        vms.get_mut("0").unwrap().curve = DemandCurve::default();
        for _ in 0..idle_s {
            second(&mut vms);
        }
        vms.get_mut("0").unwrap().curve = busy;
        for _ in 0..9 {
            second(&mut vms);
        }
        let decision = second(&mut vms);
        for (vm, share) in vms.values().zip(&decision.shares) {
            let needed = whole_guarantee(vm).min(share.due.demand_bytes);
            prop_assert!(share.share_bytes >= needed, "{} < {needed}", share.share_bytes);
        }
    }
}

#[test]
fn arbiter_when_there_are_1001_vms_deals_all_of_the_pool_to_them() {
    let mut random = Random::new(1);
    let vms: BTreeMap<String, Vm> = (0..1001)
        .map(|vm| {
            let terms = Terms {
                guarantee_bytes: 16 * MIB,
                cap_bytes: 4096 * MIB,
                weight: 1.0 + random.share(),
                page_bytes: PAGE,
                goal: None,
            };
            let curve = DemandCurve::of_buckets([(random.below(512 * MIB), 1e5)]);
            let vm_of = Vm {
                terms,
                curve,
                holds_bytes: 0,
                vcpu_s_per_s: 1.0,
            };
            (vm.to_string(), vm_of)
        })
        .collect();
    let pool = 1001 * 128 * MIB;
    for mode in Mode::ALL {
        let rules = Rules {
            mode,
            redeal_bytes_per_s: u64::MAX,
            ..Rules::default()
        };
        let decision = Arbiter::new(rules).deal(Time(0), pool, &vms);
        assert!(
            decision.free_bytes < PAGE,
            "{mode}: {}",
            decision.free_bytes
        );
        assert!(
            decision
                .shares
                .iter()
                .all(|share| share.share_bytes >= share.due.demand_bytes.min(16 * MIB))
        );
    }
}
