//! What a sample and an exchange cost, beside other structures in the same run: a `HashMap` with two
//! `BTreeSet`s, the crates `priority-queue` and `keyed_priority_queue`, and a histogram with a cooling pass.
//! All are given the same samples; ratios are printed at the end. Figures are CPU time. What larger guests
//! cost is shown by the bench `scale`.

mod loads;
mod rivals;

use std::{cell::RefCell, hint::black_box, time::Duration};

use criterion::{Bencher, BenchmarkId, Criterion, Throughput};
use loads::{LOADS, cpu_time};
use rivals::{Histogram, KeyedQueues, PriorityQueues, Rival, Trees};
use tier_core::{
    dual_heap::{DualHeap, PageId, Placement},
    heat::Decay,
    time::Time,
};

const HALF_LIFE: Duration = Duration::from_secs(10);
const PAGES: u32 = 1 << 20;
/// Samples in a batch; a batch shares one time.
const BATCH: usize = 4096;
const STEP: Duration = Duration::from_millis(10);
const SAMPLES: usize = 1 << 22;

/// The dual heaps as one structure among others.
struct Dual {
    heap: DualHeap,
    now: Time,
}

impl Dual {
    fn new(is_fast: &[bool]) -> Self {
        let mut heap = DualHeap::new(is_fast.len() as u32, HALF_LIFE).expect("few pages");
        for (id, &fast) in (0..).zip(is_fast) {
            let placement = if fast {
                Placement::Fast
            } else {
                Placement::Slow
            };
            heap.place(PageId(id), placement);
        }
        Self { heap, now: Time(0) }
    }

    fn sample(&mut self, ids: &[PageId]) {
        self.now = self.now + STEP;
        black_box(self.heap.sample_batch(self.now, ids, 1.0));
        black_box(self.heap.hottest_slow(self.now));
    }

    fn exchange(&mut self) {
        let (promoted, _) = self.heap.take_hottest_slow(self.now).expect("a slow page");
        let (demoted, _) = self.heap.take_coldest_fast(self.now).expect("a fast page");
        self.heap.settle(promoted, Placement::Fast, None);
        self.heap.settle(demoted, Placement::Slow, None);
    }
}

/// Fast to slow is 1:4, page by page in turn.
fn tiers() -> Vec<bool> {
    (0..PAGES).map(|id| id.is_multiple_of(5)).collect()
}

type Make = fn() -> Box<dyn Rival>;

const RIVALS: [(&str, Make); 4] = [
    ("btree", || Box::new(Trees::new(tiers()))),
    ("priority-queue", || Box::new(PriorityQueues::new(tiers()))),
    ("keyed-priority-queue", || {
        Box::new(KeyedQueues::new(tiers()))
    }),
    ("histogram", || Box::new(Histogram::new(&tiers()))),
];

/// A structure, and the time of its last batch.
struct Warm(Box<dyn Rival>, Time);

impl Warm {
    /// Given as many samples as the dual heaps had; it takes the slowest some seconds.
    fn new(make: Make, ids: &[u32]) -> Self {
        let mut warm = Self(make(), Time(0));
        ids.chunks(BATCH).for_each(|batch| warm.sample(batch));
        warm
    }

    fn sample(&mut self, ids: &[u32]) {
        self.1 = self.1 + STEP;
        let boost = Decay::new(HALF_LIFE, Time(0)).boost(self.1);
        self.0.sample(boost, ids);
    }
}

/// Nanoseconds an iteration, as criterion asked for them, by what was done and by whom.
#[derive(Default)]
struct Figures(RefCell<Vec<(String, &'static str, Vec<f64>)>>);

impl Figures {
    /// Runs a routine, its CPU time measured.
    fn iter(&self, b: &mut Bencher<'_>, what: &str, who: &'static str, mut routine: impl FnMut()) {
        b.iter_custom(|iterations| {
            let start = cpu_time();
            (0..iterations).for_each(|_| routine());
            let time = cpu_time() - start;
            let figure = time.as_secs_f64() * 1e9 / iterations as f64;
            let mut all = self.0.borrow_mut();
            match all.iter_mut().find(|row| row.0 == what && row.1 == who) {
                Some(row) => row.2.push(figure),
                None => all.push((what.to_owned(), who, vec![figure])),
            }
            time
        });
    }

    /// Prints how many times as much as the dual heaps each of the others takes, by medians.
    fn print_ratios(self) {
        let mut own = 0.0;
        for (what, who, mut figures) in self.0.into_inner() {
            figures.sort_by(f64::total_cmp);
            let median = figures[figures.len() / 2];
            if who == "dual-heap" {
                own = median;
            } else if own > 0.0 {
                println!(
                    "ratio {what}: {who} takes {:.2} times as long",
                    median / own
                );
            }
        }
    }
}

fn sample(c: &mut Criterion, figures: &Figures) {
    let mut group = c.benchmark_group("sample");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (load, draw) in LOADS {
        let pages: Vec<PageId> = draw(PAGES, SAMPLES);
        let ids: Vec<u32> = pages.iter().map(|page| page.0).collect();
        let what = format!("sample/{load}");
        let mut dual = Dual::new(&tiers());
        pages.chunks(BATCH).for_each(|batch| dual.sample(batch));
        let mut batches = pages.chunks(BATCH).cycle();
        group.bench_function(BenchmarkId::new("dual-heap", load), |b| {
            figures.iter(b, &what, "dual-heap", || {
                dual.sample(batches.next().unwrap_or_default());
            });
        });
        for (name, make) in RIVALS {
            let mut warm = None;
            let mut batches = ids.chunks(BATCH).cycle();
            group.bench_function(BenchmarkId::new(name, load), |b| {
                let rival = warm.get_or_insert_with(|| Warm::new(make, &ids));
                figures.iter(b, &what, name, || {
                    rival.sample(batches.next().unwrap_or_default());
                });
            });
        }
    }
    group.finish();
}

fn sample_run(c: &mut Criterion, figures: &Figures) {
    let mut group = c.benchmark_group("sample-run");
    for len in [64u32, 4096, 1 << 18] {
        group.throughput(Throughput::Elements(u64::from(len)));
        let mut heap = Dual::new(&tiers()).heap;
        let (mut now, mut first) = (Time(0), 0);
        for run in 0..PAGES / len {
            heap.sample_run(now, run * len..(run + 1) * len, 1.0);
        }
        group.bench_function(BenchmarkId::new("dual-heap", len), |b| {
            figures.iter(b, "sample-run", "dual-heap", || {
                now = now + STEP;
                first = (first + 37 * len) % PAGES;
                black_box(heap.sample_run(now, first..first + len, 3.0));
            });
        });
    }
    group.finish();
}

fn exchange(c: &mut Criterion, figures: &Figures) {
    let pages = loads::zipf(PAGES, SAMPLES);
    let ids: Vec<u32> = pages.iter().map(|page| page.0).collect();
    let mut group = c.benchmark_group("exchange");
    let mut dual = Dual::new(&tiers());
    pages.chunks(BATCH).for_each(|batch| dual.sample(batch));
    group.bench_function("dual-heap", |b| {
        figures.iter(b, "exchange", "dual-heap", || dual.exchange());
    });
    // A histogram has no tops.
    for (name, make) in RIVALS.into_iter().filter(|(name, _)| *name != "histogram") {
        let mut warm = None;
        group.bench_function(name, |b| {
            let rival = warm.get_or_insert_with(|| Warm::new(make, &ids));
            figures.iter(b, "exchange", name, || rival.0.exchange());
        });
    }
    group.finish();
}

fn main() {
    let mut c = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let figures = Figures::default();
    sample(&mut c, &figures);
    sample_run(&mut c, &figures);
    exchange(&mut c, &figures);
    figures.print_ratios();
    c.final_summary();
}
