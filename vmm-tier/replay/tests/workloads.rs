//! The workloads against their definitions.

use tier_core::{addr::BASE_PAGE, sample::AccessKind, time::Time};
use tier_replay::{
    machine::Access,
    workload::{self, Scale, Workload},
};

const PAGES: u32 = 8192;
const SECOND: u64 = 1_000_000_000;

/// A small guest and few accesses: enough to tell shares to a hundredth.
const SMALL: Scale = Scale {
    pages: PAGES,
    rate_per_s: 10_000,
    seconds: 120,
    seed: 1,
};

fn all(mut workload: Workload) -> Vec<Access> {
    let mut accesses = Vec::new();
    while workload.accesses.fill(&mut accesses).unwrap() {}
    accesses
}

fn run(name: &str, scale: &Scale) -> Vec<Access> {
    all(workload::make(name, scale).unwrap())
}

/// The number of the 4 KiB page of an access.
fn frame(access: &Access) -> u32 {
    ((access.address - (1 << 32)) / BASE_PAGE) as u32
}

/// Accesses to each 4 KiB page.
fn counts<'a>(accesses: impl IntoIterator<Item = &'a Access>) -> Vec<u32> {
    let mut counts = vec![0; PAGES as usize];
    for access in accesses {
        counts[frame(access) as usize] += 1;
    }
    counts
}

/// The pages by falling count.
fn ranking(counts: &[u32]) -> Vec<usize> {
    let mut pages: Vec<usize> = (0..counts.len()).collect();
    pages.sort_by_key(|&page| std::cmp::Reverse(counts[page]));
    pages
}

fn share(accesses: &[Access], is: impl Fn(&Access) -> bool) -> f64 {
    accesses.iter().filter(|access| is(access)).count() as f64 / accesses.len() as f64
}

#[track_caller]
fn assert_near(got: f64, expected: f64, tolerance: f64) {
    assert!((got - expected).abs() < tolerance, "{got} for {expected}");
}

/// Share of the most popular by Zipf's law.
fn zipf_share(top: u32, of: u32, exponent: f64) -> f64 {
    let sum = |n: u32| -> f64 { (1..=n).map(|rank| f64::from(rank).powf(-exponent)).sum() };
    sum(top) / sum(of)
}

#[test]
fn every_workload_stays_in_its_guest_and_in_time() {
    for name in workload::names() {
        let workload = workload::make(name, &SMALL).unwrap();
        assert_eq!(workload.name, name);
        let (guest, phases) = (workload.guest.clone(), workload.phases.clone());
        assert_eq!(guest.bytes(), u64::from(PAGES) * BASE_PAGE, "{name}");
        assert_eq!(phases[0], Time(0), "{name}");
        assert!(phases.is_sorted_by(|a, b| a < b), "{name}");
        let accesses = all(workload);
        assert_eq!(accesses.len(), 1_200_000, "{name}");
        for (number, access) in (0..).zip(&accesses) {
            assert_eq!(access.at.0, number * 100_000, "{name}");
            assert!(guest.page_at(access.address).is_some(), "{name}");
            assert_eq!((access.len, access.weight), (1, 1), "{name}");
        }
    }
}

#[test]
fn every_workload_when_made_again_is_the_same_and_with_another_seed_is_not() {
    for name in workload::names() {
        let scale = Scale {
            seconds: 85,
            ..SMALL
        };
        let first = run(name, &scale);
        assert!(first == run(name, &scale), "{name}");
        let other = run(name, &Scale { seed: 2, ..scale });
        // A sweep has nothing to draw.
        assert_eq!(first == other, name == "sequential", "{name}");
    }
}

#[test]
fn every_workload_runs_at_the_smallest_scale_and_at_an_odd_one() {
    let smallest = Scale {
        pages: 0,
        rate_per_s: 0,
        seconds: 3,
        seed: 0,
    };
    let odd = Scale {
        pages: 777,
        rate_per_s: 33_333,
        seconds: 7,
        seed: 0,
    };
    for name in workload::names() {
        assert_eq!(run(name, &smallest).len(), 3, "{name}");
        let workload = workload::make(name, &odd).unwrap();
        assert_eq!(workload.guest.bytes(), 1024 * BASE_PAGE, "{name}");
        let guest = workload.guest.clone();
        let accesses = all(workload);
        assert_eq!(accesses.len(), 7 * 33_333, "{name}");
        let mut inside = accesses.iter().map(|a| guest.page_at(a.address).is_some());
        assert!(inside.all(|inside| inside), "{name}");
    }
}

#[test]
fn workload_when_unknown_is_refused_with_the_names_of_all() {
    let error = workload::make("nothing", &SMALL).err().unwrap();
    let text = error.to_string();
    assert!(text.contains("\"nothing\""), "{text}");
    for name in workload::names() {
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn gups_of_demeter_is_hot_at_the_end_of_its_table() {
    let accesses = run("gups-demeter", &SMALL);
    let hot = PAGES / 16 * 13..PAGES / 16 * 14;
    assert_near(share(&accesses, |a| hot.contains(&frame(a))), 0.9, 0.005);
    assert_near(share(&accesses, |a| frame(a) < hot.start), 0.1, 0.005);
    for update in accesses.chunks(2) {
        assert_eq!(update[0].address, update[1].address);
        assert_eq!(
            [update[0].kind, update[1].kind],
            [AccessKind::Load, AccessKind::Store]
        );
    }
    // Inside the hot set all pages are alike: 1055 updates each, with a standard deviation of 32.
    let counts = counts(accesses.iter().step_by(2));
    for page in hot {
        assert!(counts[page as usize].abs_diff(1055) < 200);
    }
}

#[test]
fn gups_of_hemem_has_another_hot_set_from_mid_run_on() {
    let workload = workload::make("gups-hemem", &SMALL).unwrap();
    assert_eq!(workload.phases, [Time(0), Time(60 * SECOND)]);
    let accesses = all(workload);
    let (before, after) = accesses.split_at(600_000);
    assert_eq!(after[0].at, Time(60 * SECOND));
    let in_block = |accesses: &[Access], eighth: u32| {
        let first = PAGES / 8 * eighth;
        share(accesses, |a| {
            (first..first + PAGES / 32).contains(&frame(a))
        })
    };
    for (part, hot, cold) in [(before, 5, 7), (after, 7, 5)] {
        assert_near(in_block(part, hot), 0.9 + 0.1 / 32.0, 0.005);
        assert_near(in_block(part, cold), 0.1 / 32.0, 0.001);
    }
}

#[test]
fn drift_follows_the_law_at_any_time_and_moves_on() {
    let accesses = run("drift", &SMALL);
    let tops: Vec<Vec<usize>> = accesses
        .chunks(100_000)
        .map(|ten_seconds| {
            let counts = counts(ten_seconds);
            let top = ranking(&counts)[..100].to_vec();
            let of_top: u32 = top.iter().map(|&page| counts[page]).sum();
            let expected = zipf_share(100, PAGES, 0.99);
            assert_near(f64::from(of_top) / 100_000.0, expected, 0.04);
            top
        })
        .collect();
    let kept = |from: usize, to: usize| {
        let both = tops[from].iter().filter(|page| tops[to].contains(page));
        both.count()
    };
    // 0.99^10 are left after 10 s, 0.99^110 = 0.33 after 110 s; what is drawn seldom blurs the ranks.
    assert!((65..=97).contains(&kept(0, 1)), "{}", kept(0, 1));
    assert!((15..=50).contains(&kept(0, 11)), "{}", kept(0, 11));
}

#[test]
fn scan_goes_round_in_ten_seconds_beside_a_hot_eighth() {
    let accesses = run("scan-hot", &SMALL);
    let hot = PAGES / 2..PAGES / 2 + PAGES / 8;
    assert_near(share(&accesses, |a| hot.contains(&frame(a))), 0.8, 0.005);
    let scanned: Vec<&Access> = accesses
        .iter()
        .filter(|a| !hot.contains(&frame(a)))
        .collect();
    assert!(scanned.iter().all(|a| a.kind == AccessKind::Load));
    let starts: Vec<u64> = scanned
        .windows(2)
        .filter(|pair| pair[1].address < pair[0].address)
        .map(|pair| pair[1].at.0)
        .collect();
    // At this rate a step of 64 bytes is not enough for a round in 10 s: 458 752 lines at 2000 a second.
    assert!(starts.is_empty());
    let fast = Scale {
        rate_per_s: 1_000_000,
        pages: 512,
        seconds: 35,
        ..SMALL
    };
    let accesses = run("scan-hot", &fast);
    let mut before = 0;
    let mut rounds = Vec::new();
    for access in accesses.iter().filter(|a| !(256..320).contains(&frame(a))) {
        if access.address < before {
            rounds.push(access.at.0);
        }
        before = access.address;
    }
    assert_eq!(rounds.len(), 3);
    for (n, at) in (1..).zip(rounds) {
        assert_near(at as f64 / SECOND as f64, f64::from(n) * 10.0, 0.3);
    }
}

#[test]
fn hot_pages_when_scattered_are_one_in_eight_of_every_huge_page() {
    let accesses = run("scattered", &SMALL);
    let counts = counts(&accesses);
    let mut to_hot = 0;
    for huge in counts.chunks(512) {
        // A hot page has 1066 accesses in the mean, a cold one 15.
        let hot: Vec<u32> = huge.iter().copied().filter(|&n| n > 200).collect();
        assert_eq!(hot.len(), 64);
        assert!(hot.iter().all(|n| n.abs_diff(1066) < 250));
        to_hot += hot.iter().sum::<u32>();
    }
    assert_near(f64::from(to_hot) / 1_200_000.0, 0.898 + 0.102 / 8.0, 0.005);
    let huge = workload::make("scattered-huge", &SMALL).unwrap();
    assert_eq!(
        (huge.guest.pages(), huge.guest.page_bytes(0)),
        (16, 2 << 20)
    );
    assert!(all(huge) == accesses, "only the guest differs");
}

#[test]
fn sweep_reads_and_writes_every_line_in_turn() {
    let scale = Scale {
        pages: 512,
        seconds: 10,
        ..SMALL
    };
    let lines = 512 * 64;
    for (number, access) in (0..).zip(run("sequential", &scale)) {
        assert_eq!(access.address - (1 << 32), number % lines * 64);
        let writes = number / lines % 2 == 1;
        assert_eq!(access.kind == AccessKind::Store, writes);
    }
}

#[test]
fn pagerank_streams_edges_and_gathers_by_popularity() {
    let accesses = run("pagerank", &SMALL);
    let (ranks, gathered) = (PAGES / 16 * 14, PAGES / 16 * 15);
    assert_near(share(&accesses, |a| frame(a) < ranks), 16.0 / 81.0, 0.001);
    assert_near(
        share(&accesses, |a| frame(a) >= gathered),
        64.0 / 81.0,
        0.001,
    );
    for access in &accesses {
        let is_rank = (ranks..gathered).contains(&frame(access));
        assert_eq!(access.kind == AccessKind::Store, is_rank);
    }
    let edges = accesses.iter().filter(|a| frame(a) < ranks);
    let lines: Vec<u64> = edges.map(|a| (a.address - (1 << 32)) / 64).collect();
    assert!(lines.windows(2).all(|pair| pair[1] == pair[0] + 1));
    // 512 pages of 64 vertices' lines. Zipf's law with exponent 0.8 over 32 768 lines gives the first
    // 1/36.
    let counts = counts(&accesses);
    let first = counts[ranking(&counts)[0]];
    let expected = zipf_share(1, 32_768, 0.8);
    let of_gathers = f64::from(first) / (1_200_000.0 * 64.0 / 81.0);
    assert!(
        (expected..1.5 * expected).contains(&of_gathers),
        "{of_gathers} {expected}"
    );
    let used = counts[gathered as usize..].iter().filter(|&&n| n > 500);
    assert!(used.count() > 500, "no page without vertices");
}

#[test]
fn btree_goes_from_root_to_leaf_and_splits_its_leaves() {
    let accesses = run("btree", &SMALL);
    // 4062 leaves become 8124 under 64 parents and a root: seven accesses an operation.
    let (half, parents, root) = (4063, 8126, 8126 + 64);
    let mut inserts = 0;
    let mut newest = 0;
    for operation in accesses.chunks_exact(7) {
        let pages: Vec<u32> = operation.iter().map(frame).collect();
        let leaf = pages[2];
        assert_eq!(pages[0], root);
        assert_eq!(pages[1], parents + leaf % half / 64);
        assert!(leaf < parents && pages[2..].iter().all(|&page| page == leaf));
        let stores = operation.iter().map(|a| a.kind == AccessKind::Store);
        let stores: Vec<bool> = stores.collect();
        inserts += u32::from(stores[6]);
        assert!(stores[..5].iter().all(|store| !store));
        assert_eq!(stores[5], stores[6]);
        newest = newest.max(leaf);
        // New leaves come evenly in time; the number of inserts varies by a hundredth.
        let elapsed = operation[0].at.as_secs_f64() / 120.0;
        assert!(f64::from(leaf) < f64::from(half) * (1.01 + 1.05 * elapsed));
    }
    let operations = accesses.len() as f64 / 7.0;
    assert_near(f64::from(inserts) / operations, 1.0 / 16.0, 0.002);
    assert!(newest > half + half / 10 * 9, "{newest}");
    // Leaves are popular by the keys that they hold: a hundredth gets far more than its share.
    let counts = counts(&accesses);
    let of_leaves = &counts[..half as usize];
    let total: u32 = of_leaves.iter().sum();
    let top: u32 = ranking(of_leaves)[..40].iter().map(|&p| of_leaves[p]).sum();
    let share = f64::from(top) / f64::from(total);
    assert!((0.2..0.6).contains(&share), "{share}");
}

#[test]
fn zipf_follows_its_law_and_is_scattered() {
    let accesses = run("zipf", &SMALL);
    let counts = counts(&accesses);
    let ranking = ranking(&counts);
    for top in [1, 10, 100, 1000, 4096] {
        let of_top: u32 = ranking[..top].iter().map(|&page| counts[page]).sum();
        let expected = zipf_share(top as u32, PAGES, 0.99);
        assert_near(f64::from(of_top) / 1_200_000.0, expected, 0.01);
    }
    // The exponent is the slope of log count over log rank, where counts are large.
    let points = (1..200).map(|rank| {
        let count = f64::from(counts[ranking[rank - 1]]);
        ((rank as f64).ln(), count.ln())
    });
    let points: Vec<(f64, f64)> = points.collect();
    let n = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let covariance: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    let variance: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    assert_near(-covariance / variance, 0.99, 0.02);
    let in_first_half = ranking[..400]
        .iter()
        .filter(|&&page| page < counts.len() / 2);
    assert_near(in_first_half.count() as f64, 200.0, 50.0);
    assert_near(
        share(&accesses, |a| a.kind == AccessKind::Store),
        0.05,
        0.005,
    );
}

#[test]
fn phases_have_hot_sets_of_their_own_for_forty_seconds_each() {
    let workload = workload::make("phases", &SMALL).unwrap();
    assert_eq!(workload.phases, [0, 40, 80].map(|s| Time(s * SECOND)));
    let accesses = all(workload);
    let mut hot_sets: Vec<Vec<usize>> = Vec::new();
    for phase in accesses.chunks(400_000) {
        let counts = counts(phase);
        // A page that is not hot has 5 accesses in the mean, the coldest of the hot ones 45.
        let hot: Vec<usize> = (0..counts.len()).filter(|&p| counts[p] > 20).collect();
        assert_eq!(hot.len(), PAGES as usize / 8);
        let to_hot: u32 = hot.iter().map(|&page| counts[page]).sum();
        // A tenth goes anywhere, also to the hot eighth.
        assert_near(f64::from(to_hot) / 400_000.0, 0.898 + 0.102 / 8.0, 0.01);
        let top: u32 = ranking(&counts)[..100].iter().map(|&p| counts[p]).sum();
        let expected = 0.898 * zipf_share(100, PAGES / 8, 0.99);
        assert_near(f64::from(top) / 400_000.0, expected, 0.01);
        for before in &hot_sets {
            assert!(hot.iter().all(|page| !before.contains(page)));
        }
        hot_sets.push(hot);
    }
    assert_eq!(hot_sets.len(), 3);
}
