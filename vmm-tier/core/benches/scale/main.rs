//! How the dual heaps and the engine over them scale: what a sample costs, and what
//! memory a page takes, for guests of 4 GiB to 1 TiB.
//!
//! Every page is tracked and has been sampled, a fifth of them on the fast tier. Samples come 4096 at a
//! time, 10 ms apart; after each batch four pairs of tops change their tiers, 400 a second. Figures are
//! CPU time, medians of many short runs; `±` is half of the range between their quartiles. `array` is
//! what the same samples cost, in the same batches, where all that is done is to add to one word a page:
//! what the machine's memory takes. A machine is faster at one time than at another: what a guest costs
//! is compared with what the least costs in runs in turn with its own.
//!
//! `TIER_BENCH_JSON=FILE` keeps the figures. Arguments that don't begin with `-` filter the rows by
//! name. Without `--bench` (as `cargo test` runs it) only small guests are tried.

mod engine;
mod heaps;
#[path = "../loads/mod.rs"]
mod loads;

use std::time::Duration;

use engine::Kind;
use heaps::Guest;
use loads::{LOADS, Random, cpu_time};
use serde_json::json;
use tier_core::dual_heap::PageId;

/// That of the program.
#[global_allocator]
static ALLOCATOR: tier_sys::alloc::HugePages = tier_sys::alloc::HugePages;

const STEP: Duration = Duration::from_millis(10);
const BATCH: usize = 4096;

/// How much work a table is made of.
struct Effort {
    /// log2 of the pages of each guest.
    guests: &'static [u32],
    /// Samples drawn for a load: half of them warm up, and all are then gone round.
    samples: usize,
    runs: usize,
    /// Samples of a run.
    run: usize,
}

const FULL: Effort = Effort {
    guests: &[20, 24, 26, 28],
    samples: 8 << 20,
    runs: 101,
    run: 64 * BATCH,
};
const SHORT: Effort = Effort {
    guests: &[12, 16],
    samples: 64 << 10,
    runs: 3,
    run: 4 * BATCH,
};

fn size(frames: u64) -> String {
    match frames >> 18 {
        gib @ 1..1024 => format!("{gib} GiB"),
        0 => format!("{} MiB", frames >> 8),
        gib => format!("{} TiB", gib >> 10),
    }
}

/// The quartiles of some figures.
fn quartiles(mut figures: Vec<f64>) -> [f64; 3] {
    figures.sort_by(f64::total_cmp);
    let last = figures.len() - 1;
    [last / 4, last / 2, last - last / 4].map(|rank| figures[rank])
}

fn seconds(of: impl FnOnce()) -> f64 {
    let start = cpu_time();
    of();
    (cpu_time() - start).as_secs_f64()
}

/// What runs cost that are made in turn with those of the least guest.
struct Cost {
    /// Quartiles.
    quartiles: [f64; 3],
    times_least: Option<f64>,
}

impl Cost {
    fn of(
        runs: usize,
        mut run: impl FnMut() -> f64,
        mut least: Option<impl FnMut() -> f64>,
    ) -> Self {
        let (mut costs, mut leasts) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            costs.push(run());
            leasts.extend(least.as_mut().map(|least| least()));
        }
        let quartiles = quartiles(costs);
        Self {
            quartiles,
            times_least: (!leasts.is_empty()).then(|| quartiles[1] / self::quartiles(leasts)[1]),
        }
    }

    fn median(&self) -> f64 {
        self.quartiles[1]
    }

    /// Half of the range between the quartiles.
    fn spread(&self) -> f64 {
        (self.quartiles[2] - self.quartiles[0]) / 2.0
    }
}

/// A guest of mixed pages has untouched frames; samples fall on the others.
fn mixed(frames: u32, samples: usize) -> Vec<PageId> {
    let mut random = Random(4);
    std::iter::repeat_with(|| PageId(random.below(frames / 4 * 3)))
        .take(samples)
        .collect()
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let effort = if words.iter().any(|word| word == "--bench") {
        FULL
    } else {
        SHORT
    };
    let filters: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |guest: &str, load: &str| {
        let row = format!("scale/{guest}/{load}");
        filters.iter().all(|filter| row.contains(filter.as_str()))
    };
    let mut table = Vec::new();
    let last = effort.guests.last().copied().unwrap_or(16);
    let guests: Vec<Guest> = effort
        .guests
        .iter()
        .map(|&shift| Guest::of_base_pages(shift))
        .collect();
    let mixed_guest = Guest::of_mixed_pages(last);
    let of_guests = guests.iter().enumerate().map(|(number, guest)| {
        // All but the least are compared with it.
        let least = guests.first().filter(|_| number > 0);
        (guest, least, LOADS.to_vec())
    });
    let of_mixed: (_, _, Vec<loads::Load>) = (&mixed_guest, None, vec![("uniform", mixed)]);
    for (guest, least, mut loads) in of_guests.chain([of_mixed]) {
        loads.retain(|(load, _)| is_wanted(&guest.name, load));
        if loads.is_empty() {
            continue;
        }
        if table.is_empty() {
            println!(
                "{:<24} {:<10} {:>10} {:>14} {:>7} {:>8} {:>7} {:>9}",
                "guest", "load", "pages", "ns/sample", "M/s", "array ns", "B/page", "move ms"
            );
        }
        for row in heaps::measure(guest, least, &loads, &effort) {
            println!("{row}");
            table.push(row);
        }
    }
    let least_name = &guests[0].name;
    for row in &table {
        if let (Some(times), Some(array)) = (row.times_least, row.array_times_least) {
            let (guest, load) = (&row.guest, row.load);
            println!(
                "{guest}, {load}: {times:.2} times what it costs in {least_name}; an array {array:.2} times"
            );
        }
    }
    let small_pages = |&shift| Kind {
        shift,
        huge: false,
        demand: false,
    };
    let kinds: Vec<Kind> = effort.guests.iter().map(small_pages).collect();
    let huge_pages = Kind {
        shift: last,
        huge: true,
        demand: false,
    };
    // Beside the same guest whose demand is not measured.
    let measured = |&kind: &Kind| {
        let demand = Kind {
            demand: true,
            ..kind
        };
        (demand, Some(kind))
    };
    let of_kinds = kinds.iter().enumerate().map(|(number, &kind)| {
        let least = kinds.first().copied().filter(|_| number > 0);
        (kind, least)
    });
    let mut engines = Vec::new();
    for (kind, least) in of_kinds
        .chain([(huge_pages, None)])
        .chain(kinds[..2].iter().map(measured))
    {
        let mut loads = LOADS.to_vec();
        loads.retain(|(load, _)| is_wanted(&kind.name(), load));
        if loads.is_empty() {
            continue;
        }
        if engines.is_empty() {
            println!(
                "\n{:<46} {:<10} {:>14} {:>7} {:>7} {:>12}",
                "engine and guest", "load", "ns/record", "M/s", "B/frame", "pages moved"
            );
        }
        for row in engine::measure(kind, least, &loads, &effort) {
            println!("{row}");
            engines.push(row);
        }
    }
    for row in &engines {
        if let (Some(times), Some(beside)) = (row.times_least, &row.beside) {
            let (guest, load) = (&row.guest, row.load);
            println!("{guest}, {load}: {times:.2} times what a record costs in {beside}");
        }
    }
    if let Some(file) = std::env::var_os("TIER_BENCH_JSON") {
        let json = json!({"heaps": table, "engines": engines});
        let json = serde_json::to_string_pretty(&json).expect("figures");
        std::fs::write(&file, json + "\n")
            .expect("TIER_BENCH_JSON names a file that can be written");
    }
}
