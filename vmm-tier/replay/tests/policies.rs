//! The policies of others: what each is known for, on small machines, and what holds for all.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use proptest::prelude::*;
use tier_core::{moves::Outcome, sample::AccessKind, time::Time};
use tier_replay::{
    machine::{Conditions, Failures, Guest, Host, Sample, Slice, Touch, guest::MemoryRange},
    policy::{
        self, Policy, PolicySetup, Seen, hemem::HeMem, lru::Lru, memtis::Memtis, nomad::Nomad,
        random::RandomExchange, tpp::Tpp,
    },
};

const PAGE: u64 = 4096;
const SLICE: Duration = Duration::from_millis(10);

/// A machine, and the number of slices that went by.
struct Machine {
    host: Host,
    slices: u32,
}

impl Machine {
    /// Of pages of 4 KiB, of which the first `fast` lie in DRAM. Moves never fail by chance.
    fn new(pages: u32, fast: u32) -> Self {
        let never = Failures {
            busy: 0.0,
            ..Failures::default()
        };
        Self::with(
            Guest::uniform(0, pages, PAGE),
            u64::from(fast) * PAGE,
            never,
        )
    }

    fn with(guest: Guest, fast_bytes: u64, failures: Failures) -> Self {
        let conditions = Conditions {
            failures,
            ..Conditions::default()
        };
        let host = Host::new(Arc::new(guest), fast_bytes, conditions);
        Self { host, slices: 0 }
    }

    fn slice(&mut self, touched: &[Touch], samples: &[Sample]) -> Slice {
        let start = Time(0) + SLICE * self.slices;
        self.slices += 1;
        Slice {
            start,
            end: start + SLICE,
            touched: touched.to_vec(),
            samples: samples.to_vec(),
            period: 4093,
            ..Slice::default()
        }
    }

    /// One slice.
    fn step(&mut self, policy: &mut dyn Policy, touched: &[Touch], samples: &[Sample]) {
        let slice = self.slice(touched, samples);
        self.host.enter(&slice);
        policy.step(&seen(&slice), &mut self.host);
    }

    /// A slice with samples, no more.
    fn sampled(&mut self, policy: &mut dyn Policy, pages: &[u32]) {
        self.step(policy, &[], &loads(pages));
    }

    /// A slice in which these pages were read once each.
    fn read(&mut self, policy: &mut dyn Policy, pages: impl IntoIterator<Item = u32>) {
        self.step(policy, &reads(pages), &[]);
    }

    /// Slices in which nothing happens.
    fn rest(&mut self, policy: &mut dyn Policy, slices: u32) {
        for _ in 0..slices {
            self.step(policy, &[], &[]);
        }
    }

    fn fast_pages(&self) -> BTreeSet<u32> {
        let all = 0..self.host.guest().pages();
        all.filter(|&page| self.host.is_fast(page)).collect()
    }
}

fn seen(slice: &Slice) -> Seen<'_> {
    Seen {
        start: slice.start,
        end: slice.end,
        samples: &slice.samples,
        lost: slice.lost,
        period: slice.period,
        tests: slice.tests,
        touched: &slice.touched,
    }
}

fn sample(page: u32, kind: AccessKind) -> Sample {
    Sample {
        at: Time(0),
        page,
        weight: 1.0,
        kind,
        luck: 0,
    }
}

fn loads(pages: &[u32]) -> Vec<Sample> {
    let sample = |&page| sample(page, AccessKind::Load);
    pages.iter().map(sample).collect()
}

fn reads(pages: impl IntoIterator<Item = u32>) -> Vec<Touch> {
    let touch = |page| Touch {
        page,
        accesses: 1,
        stores: 0,
    };
    pages.into_iter().map(touch).collect()
}

fn stores(page: u32, stores: u32) -> Touch {
    Touch {
        page,
        accesses: stores,
        stores,
    }
}

fn setup(period: u64) -> PolicySetup {
    PolicySetup {
        period,
        ..PolicySetup::default()
    }
}

// ---- memtis

/// Periods as published: cooling after 2 000 000 samples, a look at the histogram after 100 000.
fn memtis(machine: &Machine) -> Memtis {
    Memtis::new(&machine.host, &setup(199))
}

#[test]
fn memtis_cools_after_as_many_accesses_as_in_the_source_when_samples_are_rarer() {
    let machine = Machine::new(10, 5);
    let published = Memtis::new(&machine.host, &setup(199));
    let rarer = Memtis::new(&machine.host, &setup(1990));
    let denser = Memtis::new(&machine.host, &setup(1));
    assert_eq!(published.cooling_samples(), 2_000_000);
    assert_eq!(rarer.cooling_samples(), 200_000);
    assert_eq!(denser.cooling_samples(), 2_000_000);
}

#[test]
fn memtis_halves_all_counts_when_it_cools() {
    let mut machine = Machine::new(10, 5);
    // 199 / 398 000 of 2 000 000: 1000 samples.
    let mut memtis = Memtis::new(&machine.host, &setup(398_000));
    machine.sampled(&mut memtis, &[7; 4]);
    machine.sampled(&mut memtis, &[3; 995]);
    // A sample of a 4 KiB page counts as much as 512 of a huge page.
    assert_eq!((memtis.count(7), memtis.count(3)), (4 * 512, 995 * 512));
    machine.sampled(&mut memtis, &[3]);
    assert_eq!((memtis.count(7), memtis.count(3)), (2 * 512, 996 * 256));
}

#[test]
fn memtis_counts_a_huge_page_for_its_size() {
    let ranges = [
        MemoryRange {
            address: 0,
            len: 2 << 20,
            page_bytes: 2 << 20,
        },
        MemoryRange {
            address: 2 << 20,
            len: PAGE,
            page_bytes: PAGE,
        },
    ];
    let guest = Guest::from_ranges(&ranges).unwrap();
    let mut machine = Machine::with(guest, 2 << 20, Failures::default());
    let mut memtis = memtis(&machine);
    machine.sampled(&mut memtis, &[0, 1]);
    assert_eq!((memtis.count(0), memtis.count(1)), (1, 512));
}

#[test]
fn memtis_raises_the_threshold_until_what_is_hot_fits() {
    let mut machine = Machine::new(400, 100);
    // A look at the histogram after each 1000 samples.
    let mut memtis = Memtis::new(&machine.host, &setup(19_900));
    assert_eq!(memtis.hot_threshold(), 1);
    // 200 pages with one sample, which is a count of 512: too many. 80 with eight, 2^12: they fit.
    let once = 200..400;
    let eight = (100..180).flat_map(|page| [page; 8]);
    let others = [0; 160];
    let pages: Vec<u32> = once.chain(eight).chain(others).collect();
    assert_eq!(pages.len(), 1000);
    machine.sampled(&mut memtis, &pages);
    assert_eq!(memtis.hot_threshold(), 10);
    // 81 of 97 pages are hot: DRAM is used well enough without a warm bin.
    assert_eq!(memtis.warm_threshold(), 10);
    machine.rest(&mut memtis, 51);
    let fast = machine.fast_pages();
    assert!((100..180).all(|page| fast.contains(&page)));
    assert!((200..400).all(|page| !fast.contains(&page)));
    assert!(fast.contains(&0));
}

#[test]
fn memtis_keeps_warm_pages_when_few_are_hot() {
    let mut machine = Machine::new(400, 100);
    let mut memtis = Memtis::new(&machine.host, &setup(19_900));
    // Ten hot pages in bin 12; in bin 11 more than fits. Then a quarter of DRAM and more is free for
    // warm ones.
    let hot = (300..310).flat_map(|page| [page; 9]);
    let warm = (0..90).chain(200..237).flat_map(|page| [page; 7]);
    let pages: Vec<u32> = hot.chain(warm).chain([399; 21]).collect();
    assert_eq!(pages.len(), 1000);
    machine.sampled(&mut memtis, &pages);
    assert_eq!(memtis.hot_threshold(), 12);
    assert_eq!(memtis.warm_threshold(), 11);
    machine.rest(&mut memtis, 51);
    // Thirteen pages are asked for, and only ten are cold: those go, and the warm ones stay for this
    // time.
    let fast = machine.fast_pages();
    assert!((90..100).all(|page| !fast.contains(&page)));
    assert!((0..90).all(|page| fast.contains(&page)));
}

#[test]
fn memtis_moves_only_when_it_wakes_up() {
    let mut machine = Machine::new(100, 50);
    let mut memtis = memtis(&machine);
    machine.sampled(&mut memtis, &[70]);
    machine.rest(&mut memtis, 48);
    assert_eq!(machine.host.ledger().moves, 0);
    machine.rest(&mut memtis, 1);
    assert!(machine.host.is_fast(70));
    // 3 % of 50 pages: two whole ones.
    assert_eq!(machine.host.fast_free(), 2 * PAGE);
}

#[test]
fn memtis_lowers_the_threshold_by_one_bin_after_it_has_cooled() {
    let mut machine = Machine::new(400, 100);
    // Looks after each 50 samples, cooling after 1000.
    let mut memtis = Memtis::new(&machine.host, &setup(398_000));
    // 200 pages with 2 samples are too many for DRAM, whatever else there is: bin 10 is not hot.
    let pages: Vec<u32> = (200..400).chain(200..400).collect();
    machine.sampled(&mut memtis, &pages);
    assert_eq!(memtis.hot_threshold(), 11);
    machine.sampled(&mut memtis, &[0; 599]);
    assert_eq!((memtis.hot_threshold(), memtis.count(200)), (11, 1024));
    // It cools. At the next look the 200 pages are in bin 9, and bin 10 may be hot.
    machine.sampled(&mut memtis, &[0]);
    assert_eq!((memtis.hot_threshold(), memtis.count(200)), (11, 512));
    machine.sampled(&mut memtis, &[0; 50]);
    assert_eq!(memtis.hot_threshold(), 10);
    machine.sampled(&mut memtis, &[0; 100]);
    assert_eq!(memtis.hot_threshold(), 10);
}

// ---- hemem

fn hemem(machine: &Machine) -> HeMem {
    HeMem::new(&machine.host, &PolicySetup::default())
}

#[test]
fn hemem_calls_a_page_hot_at_the_fourth_read_or_write() {
    let mut machine = Machine::new(10, 5);
    let mut hemem = hemem(&machine);
    let mixed: Vec<Sample> = loads(&[8, 8, 8])
        .into_iter()
        .chain([sample(8, AccessKind::Store); 3])
        .collect();
    machine.step(&mut hemem, &[], &mixed);
    assert!(!hemem.is_hot(8));
    machine.sampled(&mut hemem, &[8]);
    assert!(hemem.is_hot(8));
    machine.step(&mut hemem, &[], &[sample(9, AccessKind::Store); 4]);
    assert!(hemem.is_hot(9));
    assert!(machine.host.is_fast(8) && machine.host.is_fast(9));
}

#[test]
fn hemem_demotes_what_was_cold_first() {
    let mut machine = Machine::new(10, 5);
    let mut hemem = hemem(&machine);
    machine.sampled(&mut hemem, &[0; 4]);
    machine.sampled(&mut hemem, &[8; 4]);
    machine.sampled(&mut hemem, &[9; 4]);
    // Page 0 is hot; 1 and 2 were the first of the cold ones.
    assert_eq!(machine.fast_pages(), BTreeSet::from([0, 3, 4, 8, 9]));
}

#[test]
fn hemem_moves_nothing_when_all_of_dram_is_hot() {
    let mut machine = Machine::new(10, 2);
    let mut hemem = hemem(&machine);
    machine.sampled(&mut hemem, &[0, 0, 0, 0, 1, 1, 1, 1, 7, 7, 7, 7, 7, 7]);
    machine.rest(&mut hemem, 5);
    assert_eq!(machine.fast_pages(), BTreeSet::from([0, 1]));
    assert_eq!(machine.host.ledger().moves, 0);
}

#[test]
fn hemem_cools_all_pages_when_one_has_more_than_ten() {
    let mut machine = Machine::new(10, 5);
    let mut hemem = hemem(&machine);
    machine.sampled(&mut hemem, &[0, 0, 0, 0]);
    machine.sampled(&mut hemem, &[1; 10]);
    assert_eq!(hemem.clock(), 0);
    assert!(hemem.is_hot(0) && hemem.is_hot(1));
    machine.sampled(&mut hemem, &[1]);
    assert_eq!(hemem.clock(), 1);
    // Page 0 has 2 left, page 1 has 5.
    assert!(!hemem.is_hot(0) && hemem.is_hot(1));
}

// ---- tpp

/// Slices in which the scanner goes through all of the guest: a second, and some for its unevenness.
fn until_scanned(machine: &mut Machine, policy: &mut dyn Policy) {
    machine.rest(policy, 130);
}

#[test]
fn tpp_promotes_a_slow_page_on_its_second_fault() {
    let mut machine = Machine::new(1000, 500);
    let mut tpp = Tpp::new(&machine.host, &PolicySetup::default());
    // kswapd has freed 2 %: nothing was used so far.
    until_scanned(&mut machine, &mut tpp);
    assert_eq!(machine.host.fast_free(), 10 * PAGE);
    machine.read(&mut tpp, [700]);
    machine.read(&mut tpp, [700]);
    assert_eq!(machine.host.ledger().faults, 1);
    assert!(!machine.host.is_fast(700));
    until_scanned(&mut machine, &mut tpp);
    machine.read(&mut tpp, [700]);
    assert_eq!(machine.host.ledger().faults, 2);
    assert!(machine.host.is_fast(700));
}

#[test]
fn tpp_fast_pages_do_not_fault() {
    let mut machine = Machine::new(1000, 500);
    let mut tpp = Tpp::new(&machine.host, &PolicySetup::default());
    until_scanned(&mut machine, &mut tpp);
    machine.read(&mut tpp, 100..200);
    assert_eq!(machine.host.ledger().faults, 0);
}

#[test]
fn tpp_demotes_pages_that_were_not_used_since_they_were_looked_at() {
    let mut machine = Machine::new(1000, 500);
    let mut tpp = Tpp::new(&machine.host, &PolicySetup::default());
    for _ in 0..10 {
        machine.read(&mut tpp, 0..480);
    }
    // All but the last 20 of DRAM are used in every slice; ten of these make the 2 %.
    assert_eq!(machine.host.fast_free(), 10 * PAGE);
    assert!((0..480).all(|page| machine.host.is_fast(page)));
}

#[test]
fn tpp_promotes_nothing_when_all_of_dram_is_in_use() {
    let mut machine = Machine::new(1000, 500);
    let mut tpp = Tpp::new(&machine.host, &PolicySetup::default());
    for _ in 0..500 {
        machine.read(&mut tpp, 0..1000);
    }
    // kswapd goes from list to list and finds no page to demote, so promotions fail for want of memory.
    let ledger = machine.host.ledger();
    assert_eq!(ledger.moves, 0);
    assert!(ledger.failed[&Outcome::NoMemory] >= 500);
}

#[test]
fn tpp_moves_pages_to_and_fro_when_more_is_in_use_than_fits() {
    let mut machine = Machine::new(1000, 500);
    let mut tpp = Tpp::new(&machine.host, &PolicySetup::default());
    // Every page is used, each in one slice of eight: none is hotter than another.
    for round in 0..2000 {
        let part = round % 8;
        machine.read(&mut tpp, (0..1000).filter(|page| page % 8 == part));
    }
    let ledger = machine.host.ledger();
    assert!(ledger.moves > 2000, "{ledger:?}");
    assert!(ledger.ping_pong_share() > 0.5, "{ledger:?}");
}

// ---- nomad

fn nomad(machine: &Machine) -> Nomad {
    Nomad::new(&machine.host, &PolicySetup::default())
}

#[test]
fn nomad_promotes_after_one_fault_and_another_use() {
    let mut machine = Machine::new(1000, 500);
    let mut nomad = nomad(&machine);
    until_scanned(&mut machine, &mut nomad);
    machine.read(&mut nomad, [700, 800]);
    assert!(!machine.host.is_fast(700));
    machine.read(&mut nomad, [700]);
    assert_eq!(machine.host.ledger().faults, 2);
    assert!(machine.host.is_fast(700) && !machine.host.is_fast(800));
    assert_eq!(nomad.shadows(), 1);
}

#[test]
fn nomad_forgets_a_candidate_that_is_not_used_before_the_next_scan() {
    let mut machine = Machine::new(1000, 500);
    let mut nomad = nomad(&machine);
    until_scanned(&mut machine, &mut nomad);
    machine.read(&mut nomad, [700]);
    until_scanned(&mut machine, &mut nomad);
    machine.read(&mut nomad, [700]);
    assert_eq!(machine.host.ledger().faults, 2);
    assert!(!machine.host.is_fast(700));
}

/// A machine with ten promoted, shadowed pages, 700 to 709.
fn shadowed() -> (Machine, Nomad) {
    let mut machine = Machine::new(1000, 500);
    let mut nomad = nomad(&machine);
    until_scanned(&mut machine, &mut nomad);
    machine.read(&mut nomad, 700..710);
    machine.read(&mut nomad, (0..500).chain(700..710));
    assert_eq!(nomad.shadows(), 10);
    (machine, nomad)
}

/// Uses all other fast pages until nomad has demoted 700 to 709.
fn demote_shadowed(machine: &mut Machine, nomad: &mut Nomad) {
    for _ in 0..100 {
        let others: Vec<u32> = machine.fast_pages().into_iter().collect();
        machine.read(nomad, others.into_iter().filter(|&page| page < 700));
    }
    assert!((700..710).all(|page| !machine.host.is_fast(page)));
}

#[test]
fn nomad_demotes_a_clean_shadowed_page_without_a_copy() {
    let (mut machine, mut nomad) = shadowed();
    let before = machine.host.ledger().demoted_bytes;
    demote_shadowed(&mut machine, &mut nomad);
    assert_eq!(machine.host.ledger().remapped_bytes, 10 * PAGE);
    assert_eq!(machine.host.ledger().demoted_bytes, before);
    assert_eq!(nomad.shadows(), 0);
}

#[test]
fn nomad_loses_a_shadow_to_a_store_with_one_fault() {
    let (mut machine, mut nomad) = shadowed();
    let faults = machine.host.ledger().faults;
    let mut touched = reads((0..500).chain(700..710));
    touched[500] = stores(700, 3);
    machine.step(&mut nomad, &touched, &[]);
    machine.step(&mut nomad, &touched, &[]);
    assert_eq!(machine.host.ledger().faults, faults + 1);
    assert_eq!(nomad.shadows(), 9);
    let before = machine.host.ledger().demoted_bytes;
    demote_shadowed(&mut machine, &mut nomad);
    assert_eq!(machine.host.ledger().remapped_bytes, 9 * PAGE);
    assert_eq!(machine.host.ledger().demoted_bytes, before + PAGE);
}

#[test]
fn nomad_aborts_a_copy_that_is_written_meanwhile() {
    let mut machine = Machine::new(1000, 500);
    let mut nomad = nomad(&machine);
    until_scanned(&mut machine, &mut nomad);
    // 5.5 µs of 10 ms, with 100 000 stores: e^-55 is the chance to get by.
    for _ in 0..3 {
        machine.step(&mut nomad, &[stores(700, 100_000)], &[]);
    }
    assert!(!machine.host.is_fast(700));
    let wasted = machine.host.ledger().wasted_bytes;
    assert!(wasted > 0);
    machine.read(&mut nomad, [700]);
    assert!(machine.host.is_fast(700));
    assert_eq!(machine.host.ledger().wasted_bytes, wasted);
}

// ---- lru, random, static

#[test]
fn lru_keeps_the_pages_that_were_sampled_last() {
    let mut machine = Machine::new(10, 3);
    let mut lru = Lru::new(&machine.host, &PolicySetup::default());
    // 0 is the oldest, then 2, then 1.
    machine.sampled(&mut lru, &[0, 2, 1]);
    machine.sampled(&mut lru, &[7]);
    assert_eq!(machine.fast_pages(), BTreeSet::from([1, 2, 7]));
    machine.sampled(&mut lru, &[2, 8]);
    assert_eq!(machine.fast_pages(), BTreeSet::from([2, 7, 8]));
}

#[test]
fn lru_moves_no_faster_than_the_engine_may() {
    // 256 MiB/s: 2.56 MiB in a slice, after 4 MiB in the first.
    let mut machine = Machine::new(20_000, 10_000);
    let mut lru = Lru::new(&machine.host, &PolicySetup::default());
    for slice in 0..4 {
        let from = 10_000 + slice * 2500;
        let pages: Vec<u32> = (from..from + 2500).collect();
        machine.sampled(&mut lru, &pages);
    }
    let copied = machine.host.ledger().copied_bytes();
    let most = (4 << 20) + 3 * (256 << 20) / 100;
    assert!(copied <= most && copied > most - 2 * PAGE, "{copied}");
}

#[test]
fn random_exchanges_a_hundredth_of_dram_a_second() {
    let mut machine = Machine::new(20_000, 10_000);
    let mut random = RandomExchange::new(&machine.host, &PolicySetup::default());
    machine.rest(&mut random, 1000);
    // Ten seconds, and a tenth of a second's worth for a start.
    let promoted = machine.host.ledger().promoted_bytes / PAGE;
    assert!((990..=1010).contains(&promoted), "{promoted}");
    assert_eq!(machine.host.fast_free(), 0);
}

#[test]
fn static_leaves_everything_where_it_is() {
    let mut machine = Machine::new(100, 50);
    let mut fixed = policy::make("static", &machine.host, &PolicySetup::default()).unwrap();
    let busy: Vec<u32> = (0..100).collect();
    for _ in 0..200 {
        let samples = loads(&busy);
        machine.step(fixed.as_mut(), &reads(0..100), &samples);
    }
    assert_eq!(machine.host.ledger().moves, 0);
    assert_eq!(machine.fast_pages(), (0..50).collect());
}

// ---- all

#[test]
fn every_policy_is_found_by_its_name_and_by_no_other() {
    let machine = Machine::new(10, 5);
    let names: BTreeSet<&str> = policy::names().collect();
    assert_eq!(names.len(), policy::ALL.len());
    for name in names {
        let made = policy::make(name, &machine.host, &PolicySetup::default()).unwrap();
        assert_eq!(made.name(), name);
    }
    let unknown = policy::make("clock", &machine.host, &PolicySetup::default());
    let text = unknown.map(|_| ()).unwrap_err().to_string();
    assert!(
        text.contains("\"clock\"") && text.contains("memtis"),
        "{text}"
    );
}

fn guest() -> impl Strategy<Value = Guest> {
    let mixed = [
        MemoryRange {
            address: 0,
            len: 4 << 20,
            page_bytes: 2 << 20,
        },
        MemoryRange {
            address: 1 << 30,
            len: 40 * PAGE,
            page_bytes: PAGE,
        },
    ];
    prop_oneof![
        Just(Guest::uniform(0, 60, PAGE)),
        Just(Guest::uniform(1 << 40, 9, 2 << 20)),
        Just(Guest::from_ranges(&mixed).unwrap()),
        Just(Guest::uniform(0, 1, PAGE)),
    ]
}

/// Pages from 0 to 69: the guest does not have all of them.
fn content() -> impl Strategy<Value = (Vec<Touch>, Vec<Sample>)> {
    let touched = prop::collection::btree_map(0..70_u32, (1..2000_u32, 0.0..1.0_f64), 0..40);
    let touched = touched.prop_map(|pages| {
        let touch = |(page, (accesses, written)): (u32, (u32, f64))| Touch {
            page,
            accesses,
            stores: (f64::from(accesses) * written) as u32,
        };
        pages.into_iter().map(touch).collect()
    });
    let kind = prop_oneof![
        Just(AccessKind::Load),
        Just(AccessKind::Store),
        Just(AccessKind::Any)
    ];
    let page = prop_oneof![9 => 0..70_u32, 1 => Just(u32::MAX)];
    let weight = prop_oneof![9 => Just(1.0_f32), 1 => 0.0..20.0_f32];
    let sample = (page, weight, kind).prop_map(|(page, weight, kind)| Sample {
        weight,
        ..sample(page, kind)
    });
    (touched, prop::collection::vec(sample, 0..60))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_policy_overfills_dram_or_moves_but_through_the_host(
        guest in guest(),
        share in prop_oneof![Just(0.0), Just(1.0), Just(2.0), 0.0..1.0_f64],
        busy in prop_oneof![Just(0.0), Just(1.0), 0.0..0.5_f64],
        pinned in prop_oneof![Just(0.0), Just(1.0), 0.0..0.5_f64],
        period in prop_oneof![Just(1_u64), Just(4093), Just(10_000_000)],
        slices in prop::collection::vec(content(), 1..40),
        gap in 0..120_u32,
    ) {
        let failures = Failures { busy, pinned, seed: 1 };
        let fast_bytes = (guest.bytes() as f64 * share) as u64;
        for name in policy::names() {
            let mut machine = Machine::with(guest.clone(), fast_bytes, failures);
            let setup = setup(period);
            let mut policy = policy::make(name, &machine.host, &setup).unwrap();
            for (touched, samples) in &slices {
                let before = (machine.fast_pages(), machine.host.ledger().moves);
                machine.step(policy.as_mut(), touched, samples);
                let after = (machine.fast_pages(), machine.host.ledger().moves);
                let used: u64 = after.0.iter().map(|&page| guest.page_bytes(page)).sum();
                prop_assert_eq!(used, machine.host.fast_used(), "{}", name);
                prop_assert!(used <= fast_bytes, "{}", name);
                let changed = before.0.symmetric_difference(&after.0).count() as u64;
                prop_assert!(changed <= after.1 - before.1, "{}", name);
                // Time goes by, so that what is done once in a period comes in between.
                machine.slices += gap;
            }
            if pinned >= 1.0 || busy >= 1.0 {
                prop_assert_eq!(machine.host.ledger().moves, 0, "{}", name);
            }
            if fast_bytes >= guest.bytes() {
                prop_assert!(machine.host.ledger().promoted_bytes <= machine.host.ledger().demoted_bytes
                    + machine.host.ledger().remapped_bytes, "{}", name);
            }
            // Nothing at all may happen in a slice, which may have no length.
            let empty = Slice { start: Time(1 << 40), end: Time(1 << 40), ..Slice::default() };
            machine.host.enter(&empty);
            policy.step(&seen(&empty), &mut machine.host);
            prop_assert!(policy.memory_bytes() < 1 << 20);
        }
    }
}
