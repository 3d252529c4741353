//! What bounded memory costs: heat in a sketch against exact decayed counts of the same samples, and
//! what a sample takes beside the dual heaps and the published sketch in the same run.
//!
//! One table, and JSON into `$VMM_TIER_BENCH_JSON/sketch.json` if that names a folder. Samples are as
//! sparse as they are in a guest: 10 000 a second for a million pages. At the end of a minute, six
//! half-lives, each store names its k hottest pages, for k = a sixteenth and a quarter of the guest:
//!
//! - *recall*: the share of the k truly most sampled pages among them;
//! - *heat*: the exact counts of the pages named over those of the best k;
//! - *rate*: the accesses that the pages named will draw over those that the exact counts' best k will.
//!   What the samples themselves do not tell is not held against the sketch;
//! - *error*: of the counts of the k most sampled pages, relative, k at 1:16.

use std::{fmt::Write as _, hint::black_box, time::Duration, time::Instant};

use serde_json::{Value, json};
use tier_core::{
    dual_heap::{DualHeap, PageId, Placement},
    heat::Decay,
    sketch::SketchHeat,
    time::Time,
};

mod load;
mod published;

use load::Load;
use published::HeavyKeeper;

const PAGES: u32 = 1 << 20;
const HALF_LIFE: Duration = Duration::from_secs(10);
const SECONDS: u64 = 60;
const SAMPLES_PER_S: u64 = 10_000;
/// A batch is what a ring delivers at a time.
const BATCH: Duration = Duration::from_millis(10);
const SEED: u64 = 1;
/// DRAM to memory is 1 to this.
const RATIOS: [u32; 2] = [16, 4];
const SIZES: [usize; 5] = [64 << 10, 256 << 10, 512 << 10, 1 << 20, 4 << 20];
/// Runs for the time of a sample, of which the best counts.
const TIMED_RUNS: usize = 3;

fn batches(ids: &[PageId]) -> impl Iterator<Item = (Time, &[PageId])> {
    let size = (SAMPLES_PER_S as f64 * BATCH.as_secs_f64()) as usize;
    (1..).map(|i| Time(0) + BATCH * i).zip(ids.chunks(size))
}

/// Exact decayed counts at the end.
fn exact(ids: &[PageId]) -> Vec<f64> {
    let decay = Decay::new(HALF_LIFE, Time(0));
    let mut counts = vec![0.0; PAGES as usize];
    for (now, batch) in batches(ids) {
        let boost = decay.boost(now);
        batch.iter().for_each(|id| counts[id.0 as usize] += boost);
    }
    let end = decay.boost(Time(SECONDS * 1_000_000_000));
    counts.iter_mut().for_each(|count| *count /= end);
    counts
}

/// The `k` pages of the greatest counts above 0.
fn hottest(counts: &[f64], k: u32) -> Vec<u32> {
    let mut pages: Vec<u32> = (0..PAGES).filter(|&p| counts[p as usize] > 0.0).collect();
    pages.sort_by(|&a, &b| counts[b as usize].total_cmp(&counts[a as usize]));
    pages.truncate(k as usize);
    pages
}

struct Quality {
    recall: f64,
    heat: f64,
    rate: f64,
    /// Mean and 99th percentile.
    error: (f64, f64),
}

fn quality(estimates: &[f64], exact: &[f64], rates: &[f64], k: u32) -> Quality {
    let truth = hottest(exact, k);
    let named = hottest(estimates, k);
    let sum = |pages: &[u32], of: &[f64]| pages.iter().map(|&p| of[p as usize]).sum::<f64>();
    let mut among = vec![false; PAGES as usize];
    named.iter().for_each(|&page| among[page as usize] = true);
    let found = truth.iter().filter(|&&page| among[page as usize]).count();
    let mut errors: Vec<f64> = truth
        .iter()
        .map(|&page| page as usize)
        .map(|page| (estimates[page] - exact[page]).abs() / exact[page])
        .collect();
    errors.sort_by(f64::total_cmp);
    Quality {
        recall: found as f64 / truth.len() as f64,
        heat: sum(&named, exact) / sum(&truth, exact),
        rate: sum(&named, rates) / sum(&truth, rates),
        error: (
            errors.iter().sum::<f64>() / errors.len() as f64,
            errors[errors.len() * 99 / 100],
        ),
    }
}

/// One store that is measured.
struct Row {
    store: String,
    bytes: usize,
    ns: f64,
    estimates: Vec<f64>,
}

/// Fast to slow is 1:16, page by page in turn.
fn placement_of(id: u32) -> Placement {
    if id.is_multiple_of(16) {
        Placement::Fast
    } else {
        Placement::Slow
    }
}

/// Feeds a new store each time; returns one of them and the least time of a sample.
fn timed<S>(
    ids: &[PageId],
    make: impl Fn() -> S,
    feed: impl Fn(&mut S, Time, &[PageId]),
) -> (S, f64) {
    let run = || {
        let mut store = make();
        let start = Instant::now();
        for (now, batch) in batches(ids) {
            feed(&mut store, now, batch);
        }
        let ns = start.elapsed().as_nanos() as f64 / ids.len() as f64;
        (store, ns)
    };
    let (store, mut best) = run();
    for _ in 1..TIMED_RUNS {
        best = best.min(black_box(run()).1);
    }
    (store, best)
}

fn dual_heap(ids: &[PageId], end: Time) -> Row {
    let make = || {
        let mut heap = DualHeap::new(PAGES, HALF_LIFE).unwrap();
        (0..PAGES).for_each(|id| {
            heap.place(PageId(id), placement_of(id));
        });
        heap
    };
    let (heap, ns) = timed(ids, make, |heap, now, batch| {
        heap.sample_batch(now, batch, 1.0);
    });
    Row {
        store: "dual-heap".to_owned(),
        bytes: heap.memory_bytes(),
        ns,
        estimates: (0..PAGES).map(|id| heap.count(PageId(id), end)).collect(),
    }
}

fn sketch(ids: &[PageId], end: Time, bytes: usize) -> Row {
    let make = || {
        let mut heat = SketchHeat::new(PAGES, bytes, HALF_LIFE, SEED).unwrap();
        (0..PAGES).for_each(|id| {
            heat.place(PageId(id), placement_of(id));
        });
        heat
    };
    let (heat, ns) = timed(ids, make, |heat, now, batch| {
        heat.sample_batch(now, batch, 1.0);
    });
    assert!(heat.is_valid());
    Row {
        store: format!("sketch {} KiB", bytes >> 10),
        bytes: heat.memory_bytes(),
        ns,
        estimates: (0..PAGES).map(|id| heat.count(PageId(id), end)).collect(),
    }
}

fn published(ids: &[PageId], bytes: usize) -> Row {
    let (keeper, ns) = timed(
        ids,
        || HeavyKeeper::new(bytes, HALF_LIFE, SEED),
        |keeper, now, batch| {
            keeper.cool(now);
            batch.iter().for_each(|id| keeper.add(id.0));
        },
    );
    Row {
        store: format!("published {} KiB", bytes >> 10),
        bytes: keeper.memory_bytes(),
        ns,
        estimates: (0..PAGES).map(|id| f64::from(keeper.count(id))).collect(),
    }
}

fn main() {
    // Cargo asks bench targets for their tests, too.
    if std::env::args().any(|arg| arg == "--list") {
        return;
    }
    let end = Time(SECONDS * 1_000_000_000);
    let mut report: Vec<Value> = Vec::new();
    println!(
        "{PAGES} pages, {SAMPLES_PER_S} samples/s for {SECONDS} s, half-life {} s; shares in %",
        HALF_LIFE.as_secs()
    );
    println!(
        "{:<9} {:<18} {:>7} {:>8} | {:>6} {:>6} {:>6} | {:>6} {:>6} {:>6} | {:>6} {:>6}",
        "load",
        "store",
        "B/page",
        "ns/smpl",
        "recall",
        "heat",
        "rate",
        "recall",
        "heat",
        "rate",
        "error",
        "99th"
    );
    for load in Load::ALL {
        let ids = load.samples(PAGES, SECONDS, SAMPLES_PER_S);
        let truth = exact(&ids);
        let rates = load.rates(PAGES, SECONDS);
        let mut rows = vec![dual_heap(&ids, end)];
        rows.extend(SIZES.map(|bytes| sketch(&ids, end, bytes)));
        rows.extend([256 << 10, 1 << 20].map(|bytes| published(&ids, bytes)));
        for row in rows {
            let of = RATIOS.map(|r| quality(&row.estimates, &truth, &rates, PAGES / r));
            let mut line = format!(
                "{:<9} {:<18} {:>7.2} {:>8.1}",
                load.name(),
                row.store,
                row.bytes as f64 / f64::from(PAGES),
                row.ns
            );
            for q in &of {
                let shares = [q.recall, q.heat, q.rate].map(|share| 100.0 * share);
                write!(
                    line,
                    " | {:>6.1} {:>6.1} {:>6.1}",
                    shares[0], shares[1], shares[2]
                )
                .unwrap();
            }
            let (mean, p99) = of[0].error;
            println!("{line} | {:>6.1} {:>6.1}", 100.0 * mean, 100.0 * p99);
            let at = |q: &Quality| json!({"recall": q.recall, "heat": q.heat, "rate": q.rate, "error": q.error.0, "error-99th": q.error.1});
            report.push(json!({
                "load": load.name(), "store": row.store, "pages": PAGES, "bytes": row.bytes,
                "ns-per-sample": row.ns, "1:16": at(&of[0]), "1:4": at(&of[1]),
            }));
        }
    }
    if let Some(folder) = std::env::var_os("VMM_TIER_BENCH_JSON") {
        let path = std::path::Path::new(&folder).join("sketch.json");
        let text = serde_json::to_string_pretty(&json!({ "sketch": report })).unwrap();
        std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}
