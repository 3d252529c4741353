//! The arbiter: worked examples, those of docs/fairness.md among them, and shares over time.

use std::{collections::BTreeMap, time::Duration};

use tier_core::{
    arbiter::{
        Arbiter, Decision, DemandCurve, Division, FairnessMeter, Mode, Rules, Standing, Terms, Vm,
        divide,
    },
    time::Time,
};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// A VM that uses `used` MiB evenly, with `hits` hits a second for each MiB.
fn vm_of(guarantee: u64, weight: f64, used: u64, hits: f64) -> Vm {
    Vm {
        terms: Terms {
            guarantee_bytes: guarantee * MIB,
            cap_bytes: 1024 * MIB,
            weight,
            page_bytes: PAGE,
            goal: None,
        },
        curve: DemandCurve::of_buckets([(used * MIB, hits * used as f64)]),
        holds_bytes: 0,
        vcpu_s_per_s: 1.0,
    }
}

fn vm(guarantee: u64, weight: f64, used: u64) -> Vm {
    vm_of(guarantee, weight, used, 10_000.0)
}

fn rules(mode: Mode) -> Rules {
    Rules {
        mode,
        ..Rules::default()
    }
}

fn divided(rules: &Rules, pool: u64, vms: &[Vm]) -> Division {
    divide(rules, pool * MIB, &vms.iter().collect::<Vec<_>>(), &[])
}

fn targets(division: &Division) -> Vec<f64> {
    let dues = division.dues.iter();
    dues.map(|due| due.target_bytes as f64 / MIB as f64)
        .collect()
}

/// The example of docs/fairness.md.
fn example(used: [u64; 3]) -> [Vm; 3] {
    [
        vm(8, 1.0, used[0]),
        vm(8, 1.0, used[1]),
        vm(8, 2.0, used[2]),
    ]
}

#[test]
fn example_when_all_are_busy_gives_each_its_entitlement() {
    let division = divided(&rules(Mode::Weighted), 84, &example([24, 48, 96]));
    // 84 − 3 · 8 = 60, dealt 1:1:2: 15, 15, 30.
    assert_eq!(targets(&division), [23.0, 23.0, 38.0]);
    assert!(division.dues.iter().all(|due| due.lent_bytes == 0.0));
    assert!(
        division
            .dues
            .iter()
            .all(|due| due.entitled_bytes == due.target_bytes)
    );
}

#[test]
fn example_when_a_is_idle_lends_three_quarters_of_its_entitlement() {
    let division = divided(&rules(Mode::Weighted), 84, &example([0, 48, 96]));
    // a offers 75 % of 23 = 17.25; b and c borrow it 1:2.
    assert_eq!(targets(&division), [5.75, 28.75, 49.5]);
    assert_eq!(division.dues[0].lent_bytes, 17.25 * MIB as f64);
    assert_eq!(division.dues[2].borrowed_bytes, 11.5 * MIB as f64);
}

#[test]
fn example_when_a_has_lent_for_a_minute_gets_back_first() {
    // a has lent 17.25 MiB for 60 s, of which b borrowed a third and c the rest.
    let lent = 17.25 * 60.0 * MIB as f64;
    let credits = [lent, -lent / 3.0, -lent * 2.0 / 3.0];
    let vms = example([60, 0, 96]);
    let division = divide(
        &rules(Mode::Weighted),
        84 * MIB,
        &vms.iter().collect::<Vec<_>>(),
        &credits,
    );
    // b is idle now and offers 17.25. a is owed as much; without credits it would be 5.75 and 11.5.
    assert_eq!(targets(&division), [40.25, 5.75, 38.0]);
    assert_eq!(
        targets(&divided(&rules(Mode::Weighted), 84, &vms)),
        [28.75, 5.75, 49.5]
    );
}

#[test]
fn example_when_static_lends_nothing() {
    let division = divided(&rules(Mode::Static), 84, &example([0, 48, 96]));
    assert_eq!(targets(&division), [23.0, 23.0, 38.0]);
}

#[test]
fn utility_when_within_a_band_goes_as_far_as_the_band() {
    let vms = [vm_of(0, 1.0, 40, 100.0), vm_of(0, 1.0, 40, 300.0)];
    let with_band = |band| {
        let rules = Rules {
            band,
            ..rules(Mode::Utility)
        };
        targets(&divided(&rules, 60, &vms))
    };
    // Fair is 30 each; with a fifth of it in the band 24 stay, and b makes more of the other 12.
    assert_eq!(with_band(0.2), [24.0, 36.0]);
    assert_eq!(with_band(0.0), [30.0, 30.0]);
    assert_eq!(with_band(1.0), [20.0, 40.0]);
    // A guarantee that is used is never in the band.
    let guaranteed = [vm_of(28, 1.0, 40, 100.0), vms[1].clone()];
    let rules = Rules {
        band: 1.0,
        ..rules(Mode::Utility)
    };
    assert_eq!(targets(&divided(&rules, 60, &guaranteed)), [28.0, 32.0]);
}

#[test]
fn utility_when_a_vm_makes_more_of_all_others_dram_has_no_more_than_three_fair_shares() {
    // Fair is 10 each, and the band 0.2. 20 others could lose 2 each, but the first gains no more than 20.
    let mut vms = vec![vm_of(0, 1.0, 90, 100.0); 21];
    vms[0] = vm_of(0, 1.0, 90, 300.0);
    let targets = targets(&divided(&rules(Mode::Utility), 210, &vms));
    assert_eq!(targets[0], 30.0);
    assert!(
        targets[1..].iter().all(|&target| target == 9.0),
        "{targets:?}"
    );
}

#[test]
fn utility_when_two_make_the_same_of_a_byte_deals_by_weight() {
    let vms = [vm_of(0, 1.0, 90, 100.0), vm_of(0, 2.0, 90, 100.0)];
    let rules = Rules {
        band: 1.0,
        ..rules(Mode::Utility)
    };
    assert_eq!(targets(&divided(&rules, 60, &vms)), [20.0, 40.0]);
}

#[test]
fn utility_when_a_guest_claims_more_hits_than_its_cpus_can_do_believes_no_more() {
    // 150 ns a hit: a CPU that runs all the time can save no more than 6.7 million hits take.
    let honest = vm_of(0, 1.0, 10, 600_000.0);
    let liar = Vm {
        vcpu_s_per_s: 0.1,
        ..vm_of(0, 1.0, 10, 1e12)
    };
    let rules = Rules {
        band: 1.0,
        ..rules(Mode::Utility)
    };
    assert_eq!(
        targets(&divided(&rules, 10, &[honest.clone(), liar.clone()])),
        [10.0, 0.0]
    );
    // The kernel says that its CPUs did not run: it uses nothing, whatever it says.
    let asleep = Vm {
        vcpu_s_per_s: 0.0,
        ..liar
    };
    let division = divided(&self::rules(Mode::Weighted), 10, &[honest, asleep]);
    assert_eq!(division.dues[1].demand_bytes, 0);
}

#[test]
fn goals_when_they_can_be_met_come_first() {
    let mut vms = [vm(0, 1.0, 40), vm(0, 1.0, 40)];
    vms[0].terms.goal = Some(0.95);
    // 95 % of 40 MiB, used evenly, are 38.
    assert_eq!(
        targets(&divided(&rules(Mode::Goal), 60, &vms)),
        [38.0, 22.0]
    );
    // Both want 38, and have 30 each.
    vms[1].terms.goal = Some(0.95);
    assert_eq!(
        targets(&divided(&rules(Mode::Goal), 60, &vms)),
        [30.0, 30.0]
    );
    // A guarantee in use comes before the other's goal.
    vms[1].terms.goal = None;
    vms[1].terms.guarantee_bytes = 25 * MIB;
    assert_eq!(
        targets(&divided(&rules(Mode::Goal), 60, &vms)),
        [35.0, 25.0]
    );
}

#[test]
fn division_when_the_pool_shrank_below_the_guarantees_says_by_how_much() {
    let vms = [vm(40, 1.0, 50), vm(80, 5.0, 90)];
    let division = divided(&rules(Mode::Weighted), 60, &vms);
    assert_eq!(division.shortfall_bytes, 60 * MIB);
    assert_eq!(targets(&division), [20.0, 40.0]);
}

#[test]
fn division_when_pages_are_large_gives_the_rest_to_small_pages() {
    let mut vms = [vm(0, 1.0, 4000), vm(0, 1.0, 4000), vm(0, 1.0, 4000)];
    for vm in &mut vms {
        vm.terms.cap_bytes = 4096 * MIB;
    }
    vms[0].terms.page_bytes = 1024 * MIB;
    vms[1].terms.page_bytes = 2 * MIB;
    // 1500 each, of which one page of 1 GiB; the others have the rest, in their pages.
    let targets = targets(&divided(&rules(Mode::Weighted), 4500, &vms));
    assert_eq!(targets, [1024.0, 1738.0, 1738.0]);
}

#[test]
fn docs_when_they_give_the_example_give_what_is_dealt() {
    let lent = 17.25 * 60.0 * MIB as f64;
    let owed = [lent, -lent / 3.0, -lent * 2.0 / 3.0];
    let cases = [
        (
            Mode::Weighted,
            [24, 48, 96],
            [0.0; 3],
            "they use 24, 48 and 96",
        ),
        (Mode::Weighted, [0, 48, 96], [0.0; 3], "a is idle"),
        (
            Mode::Weighted,
            [60, 0, 96],
            owed,
            "a was idle for a minute; now a uses 60 and b is idle",
        ),
        (
            Mode::Weighted,
            [60, 0, 96],
            [0.0; 3],
            "the same, but nobody owes anything",
        ),
        (
            Mode::Static,
            [0, 48, 96],
            [0.0; 3],
            "a is idle, mode `static`",
        ),
    ];
    let page = include_str!("../../../docs/fairness.md");
    for (mode, used, credits, case) in cases {
        let vms = example(used);
        let vms: Vec<&Vm> = vms.iter().collect();
        let [a, b, c] = targets(&divide(&rules(mode), 84 * MIB, &vms, &credits))[..] else {
            panic!("three VMs have three shares");
        };
        let row = format!("| {case} | {a:.2} | {b:.2} | {c:.2} |");
        assert!(page.contains(&row), "{row}");
    }
}

/// A host whose VMs obey: within a second they give up what they may not have, and fill what they may.
struct Host {
    arbiter: Arbiter,
    meter: FairnessMeter,
    vms: BTreeMap<String, Vm>,
    pool: u64,
    now: Time,
}

impl Host {
    fn new(rules: Rules, pool: u64, vms: impl IntoIterator<Item = Vm>) -> Self {
        let names = ["a", "b", "c"].map(str::to_owned);
        Self {
            arbiter: Arbiter::new(rules),
            meter: FairnessMeter::default(),
            vms: names.into_iter().zip(vms).collect(),
            pool: pool * MIB,
            now: Time(0),
        }
    }

    fn second(&mut self) -> Decision {
        self.now = self.now + Duration::from_secs(1);
        let decision = self.arbiter.deal(self.now, self.pool, &self.vms);
        for (vm, share) in self.vms.values_mut().zip(&decision.shares) {
            vm.holds_bytes = share.share_bytes;
        }
        decision
    }

    fn seconds(&mut self, seconds: u32) -> Vec<f64> {
        for _ in 0..seconds {
            self.second();
        }
        let vms = self.vms.values();
        vms.map(|vm| vm.holds_bytes as f64 / MIB as f64).collect()
    }

    fn uses(&mut self, name: &str, used: u64) {
        let vm = self.vms.get_mut(name).expect("there is such a VM");
        vm.curve = DemandCurve::of_buckets([(used * MIB, 10_000.0 * used as f64)]);
    }
}

#[test]
fn shares_when_the_first_to_come_holds_all_become_fair_within_seconds() {
    let mut host = Host::new(rules(Mode::Weighted), 84, example([24, 48, 96]));
    for (vm, held) in host.vms.values_mut().zip([60, 20, 4]) {
        vm.holds_bytes = held * MIB;
    }
    // In the first round the others' bytes are taken, in the second they are granted.
    assert_eq!(host.seconds(1), [23.0, 20.0, 4.0]);
    assert_eq!(host.seconds(1), [23.0, 23.0, 38.0]);
    assert!(host.second().is_settled);
}

#[test]
fn guarantee_when_a_vm_wakes_is_back_within_its_time() {
    // Slow: 1 MiB a second.
    let rules = Rules {
        redeal_bytes_per_s: MIB,
        ..rules(Mode::Weighted)
    };
    let mut vms = example([24, 48, 96]);
    vms[0].terms.guarantee_bytes = 20 * MIB;
    let mut host = Host::new(rules, 84, vms);
    host.seconds(120);
    host.uses("a", 0);
    // It keeps a quarter of the 32 MiB that it is entitled to.
    assert_eq!(host.seconds(120), [8.0, 28.0, 48.0]);
    host.uses("a", 24);
    let woken = host.seconds(10);
    assert!(woken[0] >= 20.0, "{woken:?}");
    // It uses 24 of 32, and keeps a quarter of the rest: 26. What is above guarantees comes at the rate.
    assert!(woken[0] < 26.0, "{woken:?}");
    assert_eq!(host.seconds(10)[0], 26.0);
}

#[test]
fn credits_when_demand_changes_sides_even_out() {
    let mut host = Host::new(
        rules(Mode::Weighted),
        60,
        [vm(0, 1.0, 0), vm(0, 1.0, 90), vm(0, 1.0, 90)],
    );
    // a lends 15 of its 20 MiB to the others for ten minutes.
    host.seconds(600);
    let credits = |host: &mut Host| -> Vec<f64> {
        let shares = host.second().shares;
        shares
            .iter()
            .map(|share| share.credit_byte_s / MIB as f64)
            .collect()
    };
    let owed = credits(&mut host);
    assert!((owed.iter().sum::<f64>()).abs() < 1e-6, "{owed:?}");
    assert!((owed[0] - 601.0 * 15.0).abs() < 1.0, "{owed:?}");
    // Now b is idle, and a gets all that b offers for as long as c owes.
    host.uses("a", 90);
    host.uses("b", 0);
    assert_eq!(host.seconds(10), [35.0, 5.0, 20.0]);
    host.seconds(1200);
    let owed = credits(&mut host);
    assert!((owed[0] - owed[2]).abs() < 0.2 * 601.0 * 15.0, "{owed:?}");
}

#[test]
fn shares_when_demand_flutters_stay() {
    let mut host = Host::new(
        rules(Mode::Weighted),
        840,
        [vm(0, 1.0, 300), vm(0, 1.0, 900), vm(0, 2.0, 900)],
    );
    let settled = host.seconds(60);
    host.uses("a", 0);
    host.seconds(60);
    host.uses("a", 150);
    let steady = host.seconds(60);
    assert_ne!(settled, steady);
    let mut moved = 0;
    for second in 0..100 {
        host.uses("a", 149 + second % 3);
        moved += host.second().redealt_bytes;
    }
    assert_eq!(moved, 0);
    assert_eq!(host.seconds(1), steady);
}

#[test]
fn bytes_when_re_dealt_keep_the_rate() {
    let rules = Rules {
        redeal_bytes_per_s: 2 * MIB,
        ..rules(Mode::Weighted)
    };
    let mut host = Host::new(rules, 84, [vm(0, 1.0, 48), vm(0, 1.0, 48), vm(0, 2.0, 96)]);
    host.vms.get_mut("a").expect("there is an a").holds_bytes = 84 * MIB;
    let mut granted = Vec::new();
    while granted.len() < 60 {
        granted.push(host.second().redealt_bytes);
    }
    assert_eq!(granted.iter().max(), Some(&(2 * MIB)));
    // 63 MiB in 2 MiB a second.
    assert_eq!(granted.iter().filter(|&&bytes| bytes > 0).count(), 32);
    assert_eq!(granted.iter().sum::<u64>(), 63 * MIB);
}

#[test]
fn bytes_when_a_vm_does_not_give_them_up_are_granted_to_nobody() {
    let vms = BTreeMap::from([
        (
            "a".to_owned(),
            Vm {
                holds_bytes: 84 * MIB,
                ..vm(0, 1.0, 24)
            },
        ),
        ("b".to_owned(), vm(0, 1.0, 90)),
    ]);
    let mut arbiter = Arbiter::new(rules(Mode::Weighted));
    for second in 1..30 {
        let now = Time(0) + Duration::from_secs(second);
        let decision = arbiter.deal(now, 84 * MIB, &vms);
        assert_eq!(decision.shares[1].share_bytes, 0);
        // a was told to give them up.
        assert!(decision.shares[0].share_bytes < 84 * MIB);
    }
}

#[test]
fn pool_when_it_shrinks_is_never_exceeded() {
    let mut host = Host::new(rules(Mode::Weighted), 84, example([24, 48, 96]));
    host.seconds(10);
    host.pool = 40 * MIB;
    let decision = host.second();
    let shares: u64 = decision.shares.iter().map(|share| share.share_bytes).sum();
    assert!(shares <= 40 * MIB);
    // 16 MiB above the guarantees, 1:1:2.
    assert_eq!(host.seconds(3), [12.0, 12.0, 16.0]);
}

#[test]
fn fairness_when_three_guests_settle_is_near_1() {
    let mut host = Host::new(rules(Mode::Weighted), 84, example([24, 48, 96]));
    for (vm, held) in host.vms.values_mut().zip([60, 20, 4]) {
        vm.holds_bytes = held * MIB;
    }
    let mut seen = Vec::new();
    for _ in 0..5 {
        let decision = host.arbiter.deal(host.now, host.pool, &host.vms);
        let vms = host.vms.iter().zip(&decision.shares);
        let standings: Vec<Standing<'_>> = vms
            .map(|((name, vm), share)| Standing::new(name, vm, share))
            .collect();
        seen.push(
            host.meter
                .look(host.now, &standings, decision.redealt_bytes),
        );
        host.second();
    }
    let (first, last) = (&seen[0], &seen[4]);
    // c has 4 of the 38 MiB that it should have: (1 + 20/23 + 4/38)² / (3 · (1 + …)).
    assert!((first.jain - 0.735).abs() < 0.001, "{}", first.jain);
    assert_eq!((first.worst_vm.as_deref(), first.envy), (Some("c"), 2));
    assert_eq!((last.jain, last.envy), (1.0, 0));
    assert_eq!(last.settled_after_s, Some(2.0));
    // c lacked 4 MiB of its guarantee, until the look a second later found that b and c still had to
    // wait.
    assert!(last.deficit_byte_seconds <= 8.0 * MIB as f64);
    assert_eq!(seen[3].deficit_byte_seconds, last.deficit_byte_seconds);
}
