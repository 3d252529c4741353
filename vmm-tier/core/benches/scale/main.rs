//! How the dual heaps and the engine over them scale: what a sample costs, what memory a page takes and how long
//! building takes, for guests of 4 GiB to 1 TiB.
//!
//! Every page is tracked and has been sampled, a fifth of them on the fast tier. Samples come 4096 at a
//! time, 10 ms apart; after each batch four pairs of tops change their tiers, 400 a second. Figures are CPU time, medians of many short
//! runs; `±` is half of the range between their quartiles. `array` is what the same samples cost, in the same batches,
//! where all that is done is to add to one word a page: what the machine's memory takes.
//!
//! `TIER_BENCH_JSON=FILE` keeps the figures. Arguments that don't begin with `-` filter the rows by name.
//! Without `--bench` (as `cargo test` runs it) only small guests are tried.

mod engine;
#[path = "../loads/mod.rs"]
mod loads;

use std::{fmt, hint::black_box, time::Duration};

use engine::{Kind, Machine};
use loads::{LOADS, Random, cpu_time};
use prefetch_index::prefetch_index;
use serde::Serialize;
use serde_json::json;
use tier_core::{
    dual_heap::{DualHeap, PageId, Placement},
    heat_store::StoreChoice,
    time::Time,
};

/// That of the program.
#[global_allocator]
static ALLOCATOR: tier_sys::alloc::HugePages = tier_sys::alloc::HugePages;

const HALF_LIFE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(10);
const BATCH: usize = 4096;
/// Exchanges after each batch: 1.6 MiB a second each way, what a guest whose pattern changes slowly is moved.
const EXCHANGES: usize = 4;
/// Frames of a folded huge page.
const FOLD: u32 = 512;

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
    runs: 41,
    run: 64 * BATCH,
};
const SHORT: Effort = Effort {
    guests: &[12, 16],
    samples: 64 << 10,
    runs: 3,
    run: 4 * BATCH,
};

/// A row of the table.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Row {
    guest: String,
    load: &'static str,
    /// Pages that are tracked, of whatever size.
    pages: u32,
    ns_per_sample: f64,
    /// Half of the range between the quartiles.
    ns_spread: f64,
    million_samples_per_s: f64,
    /// The same samples, added to an array of words.
    array_ns_per_sample: f64,
    bytes_per_page: f64,
    build_s: f64,
    /// What a landmark move costs: every 64 half-lives, all keys are scaled.
    landmark_move_ms: f64,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<24} {:<10} {:>10} {:>7.1} ± {:<4.1} {:>7.1} {:>8.1} {:>7.2} {:>8.3} {:>9.1}",
            self.guest,
            self.load,
            self.pages,
            self.ns_per_sample,
            self.ns_spread,
            self.million_samples_per_s,
            self.array_ns_per_sample,
            self.bytes_per_page,
            self.build_s,
            self.landmark_move_ms
        )
    }
}

/// A guest: its frames, and how its pages come to be tracked.
struct Guest {
    name: String,
    frames: u32,
    place: fn(&mut DualHeap),
    /// The page that a sampled frame belongs to.
    page_of: fn(u32, u32) -> PageId,
}

impl Guest {
    /// All of it in 4 KiB pages.
    fn of_base_pages(shift: u32) -> Self {
        Self {
            name: format!("{} in 4 KiB pages", size(1 << shift)),
            frames: 1 << shift,
            place: |heap| {
                let frames = heap.capacity();
                heap.place_run(0..frames / 5, Placement::Fast);
                heap.place_run(frames / 5..frames, Placement::Slow);
            },
            page_of: |_, frame| PageId(frame),
        }
    }

    /// The first half in huge pages, a quarter in 4 KiB pages, a quarter untouched.
    fn of_mixed_pages(shift: u32) -> Self {
        Self {
            name: format!("{} in mixed pages", size(1 << shift)),
            frames: 1 << shift,
            place: |heap| {
                let frames = heap.capacity();
                for head in (0..frames / 2).step_by(FOLD as usize) {
                    heap.place(PageId(head), tier_of(head / FOLD));
                }
                let (middle, end) = (frames / 2, frames / 4 * 3);
                heap.place_run(middle..middle + frames / 20, Placement::Fast);
                heap.place_run(middle + frames / 20..end, Placement::Slow);
            },
            page_of: |frames, frame| {
                if frame < frames / 2 {
                    PageId(frame / FOLD * FOLD)
                } else {
                    PageId(frame)
                }
            },
        }
    }

    fn build(&self) -> DualHeap {
        let mut heap = DualHeap::new(self.frames, HALF_LIFE).expect("a guest that can be indexed");
        (self.place)(&mut heap);
        heap
    }
}

fn tier_of(number: u32) -> Placement {
    if number.is_multiple_of(5) {
        Placement::Fast
    } else {
        Placement::Slow
    }
}

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

/// Both tops are taken and change their tiers.
fn exchange(heap: &mut DualHeap, now: Time) {
    let hot = heap.take_hottest_slow(now);
    let cold = heap.take_coldest_fast(now);
    for (taken, tier) in [(hot, Placement::Fast), (cold, Placement::Slow)] {
        if let Some((id, _)) = taken {
            heap.settle(id, tier, None);
        }
    }
}

fn measure(guest: &Guest, loads: &[loads::Load], effort: &Effort) -> Vec<Row> {
    let builds = if guest.frames > 1 << 26 { 1 } else { 3 };
    let built = (0..builds).map(|_| seconds(|| drop(black_box(guest.build()))));
    let build_s = quartiles(built.collect())[1];
    let mut heap = guest.build();
    let mut now = Time(0);
    heap.sample_run(now, 0..guest.frames, 1.0);
    let pages = heap.len(Placement::Fast) + heap.len(Placement::Slow);
    // Not zeros, which the kernel would all back with one page.
    let mut words = vec![1_u32; guest.frames as usize];
    let mut rows = Vec::new();
    for &(load, draw) in loads {
        let ids: Vec<PageId> = draw(guest.frames, effort.samples)
            .into_iter()
            .map(|PageId(frame)| (guest.page_of)(guest.frames, frame))
            .collect();
        let mut batches = ids.chunks(BATCH).cycle();
        let mut samples = |heap: &mut DualHeap, count: usize| {
            for batch in batches.by_ref().take(count / BATCH) {
                now = now + STEP;
                black_box(heap.sample_batch(now, batch, 1.0));
                for _ in 0..EXCHANGES {
                    exchange(heap, now);
                }
            }
        };
        samples(&mut heap, effort.samples / 2);
        let runs = (0..effort.runs)
            .map(|_| seconds(|| samples(&mut heap, effort.run)) * 1e9 / effort.run as f64);
        let [low, median, high] = quartiles(runs.collect());
        let mut adds = ids.chunks(effort.run).cycle();
        let runs = (0..effort.runs).map(|_| {
            let ids = adds.next().unwrap_or_default();
            seconds(|| add_to_words(&mut words, ids)) * 1e9 / ids.len() as f64
        });
        let array_ns_per_sample = quartiles(runs.collect())[1];
        rows.push(Row {
            guest: guest.name.clone(),
            load,
            pages,
            ns_per_sample: median,
            ns_spread: (high - low) / 2.0,
            million_samples_per_s: 1e3 / median,
            array_ns_per_sample,
            bytes_per_page: heap.memory_bytes() as f64 / f64::from(pages),
            build_s,
            landmark_move_ms: 0.0,
        });
    }
    let later = now + 70 * HALF_LIFE;
    let moved = seconds(|| assert_eq!(heap.tick(later), 0)) * 1e3;
    rows.iter_mut().for_each(|row| row.landmark_move_ms = moved);
    rows
}

/// The least that counting samples can be: each page has a word, and a sample adds to it.
fn add_to_words(words: &mut [u32], ids: &[PageId]) {
    let mut blocks = ids.chunks(64).peekable();
    while let Some(block) = blocks.next() {
        for id in blocks.peek().into_iter().copied().flatten() {
            prefetch_index(&words, id.0 as usize);
        }
        for id in block {
            let word = &mut words[id.0 as usize];
            *word = word.wrapping_add(2);
        }
    }
    black_box(words);
}

/// A row of the table of engines.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct EngineRow {
    guest: String,
    load: &'static str,
    ns_per_record: f64,
    ns_spread: f64,
    million_records_per_s: f64,
    moved_pages: u64,
    /// A 4 KiB frame.
    bytes_per_frame: f64,
}

impl fmt::Display for EngineRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<46} {:<10} {:>7.1} ± {:<4.1} {:>7.1} {:>7.2} {:>12}",
            self.guest,
            self.load,
            self.ns_per_record,
            self.ns_spread,
            self.million_records_per_s,
            self.bytes_per_frame,
            self.moved_pages
        )
    }
}

/// Records through a whole engine.
fn measure_engine(kind: Kind, loads: &[loads::Load], effort: &Effort) -> Vec<EngineRow> {
    let frames = 1 << kind.shift;
    let mut machine = Machine::new(kind);
    let mut rows = Vec::new();
    for &(load, draw) in loads {
        let records = Machine::records(&draw(frames, effort.samples / 2));
        machine.run(&records);
        let (accepted, moved) = (machine.accepted(), machine.moved_pages());
        let mut parts = records.chunks(effort.run).cycle();
        let runs = (0..effort.runs).map(|_| {
            let part = parts.next().unwrap_or_default();
            machine.run(part) * 1e9 / part.len() as f64
        });
        let [low, median, high] = quartiles(runs.collect());
        assert_eq!(
            machine.accepted() - accepted,
            (effort.runs * effort.run) as u64,
            "records were dropped"
        );
        rows.push(EngineRow {
            guest: kind.name(),
            load,
            ns_per_record: median,
            ns_spread: (high - low) / 2.0,
            million_records_per_s: 1e3 / median,
            moved_pages: machine.moved_pages() - moved,
            bytes_per_frame: machine.memory_bytes() as f64 / f64::from(frames),
        });
    }
    rows
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
    let guests = effort
        .guests
        .iter()
        .map(|&shift| Guest::of_base_pages(shift));
    let guests = guests.map(|guest| (guest, LOADS.to_vec()));
    let mixed: (Guest, Vec<loads::Load>) = (Guest::of_mixed_pages(last), vec![("uniform", mixed)]);
    for (guest, mut loads) in guests.chain([mixed]) {
        loads.retain(|(load, _)| is_wanted(&guest.name, load));
        if loads.is_empty() {
            continue;
        }
        if table.is_empty() {
            println!(
                "{:<24} {:<10} {:>10} {:>14} {:>7} {:>8} {:>7} {:>8} {:>9}",
                "guest",
                "load",
                "pages",
                "ns/sample",
                "M/s",
                "array ns",
                "B/page",
                "build s",
                "move ms"
            );
        }
        for row in measure(&guest, &loads, &effort) {
            println!("{row}");
            table.push(row);
        }
    }
    let least = |load| table.iter().find(|row: &&Row| row.load == load);
    for row in table.iter().filter(|row| !row.guest.contains("mixed")) {
        if let Some(least) = least(row.load).filter(|least| least.pages < row.pages) {
            println!(
                "{}, {}: {:.2} times what it costs in {}; an array {:.2} times",
                row.guest,
                row.load,
                row.ns_per_sample / least.ns_per_sample,
                least.guest,
                row.array_ns_per_sample / least.array_ns_per_sample
            );
        }
    }
    let exact = |&shift| Kind {
        shift,
        huge: false,
        store: StoreChoice::Exact,
    };
    let largest = exact(&last);
    let others = [
        Kind {
            huge: true,
            ..largest
        },
        Kind {
            store: StoreChoice::Sketch,
            ..largest
        },
    ];
    let mut engines = Vec::new();
    for kind in effort.guests.iter().map(exact).chain(others) {
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
        for row in measure_engine(kind, &loads, &effort) {
            println!("{row}");
            engines.push(row);
        }
    }
    for row in engines
        .iter()
        .filter(|row| row.guest.ends_with("4 KiB pages"))
    {
        let least = engines.iter().find(|least| least.load == row.load);
        if let Some(least) = least.filter(|least| least.guest != row.guest) {
            println!(
                "{}, {}: {:.2} times what a record costs in {}",
                row.guest,
                row.load,
                row.ns_per_record / least.ns_per_record,
                least.guest
            );
        }
    }
    if let Some(file) = std::env::var_os("TIER_BENCH_JSON") {
        let json = json!({"heaps": table, "engines": engines});
        let json = serde_json::to_string_pretty(&json).expect("figures");
        std::fs::write(&file, json + "\n")
            .expect("TIER_BENCH_JSON names a file that can be written");
    }
}
