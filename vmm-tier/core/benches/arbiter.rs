//! How the arbiter scales: what a decision costs for 10 to 10,000 VMs, each with a demand curve of 64
//! points.
//!
//! In each round a tenth of the VMs have another demand, and shares move. Figures are CPU time, medians
//! of many rounds; `±` is half of the range between their quartiles. Rounds of all sizes are made in
//! turn, since a machine is faster at one time than at another: `times 100` compares within one run.
//!
//! Arguments that don't begin with `-` filter the modes by name. Without `--bench` (as `cargo test` runs
//! it) few rounds are made.

use std::{collections::BTreeMap, hint::black_box, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use tier_core::{
    arbiter::{Arbiter, DemandCurve, MAX_POINTS, Mode, Rules, Terms, Vm},
    random::Random,
    time::Time,
};

/// That of the program.
#[global_allocator]
static ALLOCATOR: tier_sys::alloc::HugePages = tier_sys::alloc::HugePages;

/// A pool has 1,000 VMs at most; the last size shows how the cost grows.
const SIZES: [usize; 4] = [10, 100, 1000, 10_000];
const GIB: u64 = 1 << 30;

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A curve of 64 points: parts of like size, with heats that fall by a power law.
fn curve(random: &mut Random) -> DemandCurve {
    let (bytes, hits) = (random.below(GIB / 16), random.share() * 1e6);
    let skew = 0.5 + random.share();
    DemandCurve::of_buckets((1..=MAX_POINTS).map(|part| {
        (
            bytes + random.below(GIB / 16),
            hits / (part as f64).powf(skew),
        )
    }))
}

struct Host {
    arbiter: Arbiter,
    vms: BTreeMap<String, Vm>,
    pool: u64,
    now: Time,
    random: Random,
}

impl Host {
    fn new(mode: Mode, vms: usize) -> Self {
        let mut random = Random::new(1);
        let vm = |vm| {
            let terms = Terms {
                guarantee_bytes: random.below(GIB / 2),
                cap_bytes: 8 * GIB,
                weight: 0.5 + random.share(),
                page_bytes: 4096,
                goal: Some(0.5 + random.share() / 2.0),
            };
            let vm_of = Vm {
                terms,
                curve: curve(&mut random),
                holds_bytes: 0,
                vcpu_s_per_s: 2.0,
            };
            (format!("guest-{vm:04}"), vm_of)
        };
        let rules = Rules {
            mode,
            ..Rules::default()
        };
        Self {
            arbiter: Arbiter::new(rules),
            vms: (0..vms).map(vm).collect(),
            pool: vms as u64 * 2 * GIB,
            now: Time(0),
            random,
        }
    }

    /// CPU time of a decision, in microseconds.
    fn round(&mut self) -> f64 {
        for vm in self.vms.values_mut() {
            if self.random.happens(0.1) {
                vm.curve = curve(&mut self.random);
            }
        }
        self.now = self.now + Duration::from_secs(1);
        let start = cpu_time();
        let decision = black_box(self.arbiter.deal(self.now, self.pool, black_box(&self.vms)));
        let took = cpu_time() - start;
        for (vm, share) in self.vms.values_mut().zip(&decision.shares) {
            vm.holds_bytes = share.share_bytes;
        }
        took.as_secs_f64() * 1e6
    }
}

fn quartiles(mut figures: Vec<f64>) -> [f64; 3] {
    figures.sort_by(f64::total_cmp);
    let last = figures.len() - 1;
    [last / 4, last / 2, last - last / 4].map(|rank| figures[rank])
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let rounds = if words.iter().any(|word| word == "--bench") {
        201
    } else {
        3
    };
    let filters: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    println!(
        "{:<10} {:>6} {:>12} {:>8} {:>12} {:>10}",
        "mode", "VMs", "us/decision", "±", "ns/VM", "times 100"
    );
    for mode in Mode::ALL {
        let row = format!("arbiter/{mode}");
        if !filters.iter().all(|filter| row.contains(filter.as_str())) {
            continue;
        }
        let mut hosts = SIZES.map(|size| Host::new(mode, size));
        let mut costs = SIZES.map(|_| Vec::with_capacity(rounds));
        for _ in 0..rounds {
            for (host, costs) in hosts.iter_mut().zip(&mut costs) {
                costs.push(host.round());
            }
        }
        let quartiles = costs.map(quartiles);
        let per_vm = |at: usize| quartiles[at][1] / SIZES[at] as f64;
        for (at, size) in SIZES.iter().enumerate() {
            println!(
                "{:<10} {size:>6} {:>12.0} {:>8.0} {:>12.0} {:>10.2}",
                mode.name(),
                quartiles[at][1],
                (quartiles[at][2] - quartiles[at][0]) / 2.0,
                per_vm(at) * 1e3,
                per_vm(at) / per_vm(1),
            );
        }
    }
}
