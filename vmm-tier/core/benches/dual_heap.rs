//! What a sample and an exchange cost, beside a plain `HashMap` and two `BTreeSet`s in the same run.
//!
//! Keys of the plain store are forward-decayed too: the comparison is of structures, not of ageing.

use std::{
    collections::{BTreeSet, HashMap},
    hint::black_box,
    time::Duration,
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tier_core::{
    dual_heap::{DualHeap, PageId, Placement},
    heat::Decay,
    time::Time,
};

const HALF_LIFE: Duration = Duration::from_secs(10);
/// Samples in a batch; a batch shares one time.
const BATCH: usize = 4096;
const STEP: Duration = Duration::from_millis(10);

/// The plain way: a key for each page, and an ordered set for each tier.
struct Plain {
    pages: HashMap<u32, (u64, Placement)>,
    fast: BTreeSet<(u64, u32)>,
    slow: BTreeSet<(u64, u32)>,
    decay: Decay,
}

impl Plain {
    fn new(pages: u32) -> Self {
        let mut plain = Self {
            pages: HashMap::new(),
            fast: BTreeSet::new(),
            slow: BTreeSet::new(),
            decay: Decay::new(HALF_LIFE, Time(0)),
        };
        for id in 0..pages {
            plain.put(id, 0, placement_of(id));
        }
        plain
    }

    fn set(&mut self, placement: Placement) -> &mut BTreeSet<(u64, u32)> {
        if placement == Placement::Fast {
            &mut self.fast
        } else {
            &mut self.slow
        }
    }

    fn put(&mut self, id: u32, key: u64, placement: Placement) {
        self.pages.insert(id, (key, placement));
        self.set(placement).insert((key, id));
    }

    /// `boost` as for the dual heaps: computed once a batch. The bits of positive floats keep order.
    fn sample(&mut self, boost: f64, id: u32) {
        let (key, placement) = self.pages[&id];
        self.set(placement).remove(&(key, id));
        self.put(id, (f64::from_bits(key) + boost).to_bits(), placement);
    }

    fn exchange(&mut self) {
        let (hot, promoted) = self.slow.pop_last().unwrap();
        let (cold, demoted) = self.fast.pop_first().unwrap();
        self.put(promoted, hot, Placement::Fast);
        self.put(demoted, cold, Placement::Slow);
    }
}

/// Fast to slow is 1:4, page by page in turn.
fn placement_of(id: u32) -> Placement {
    if id.is_multiple_of(5) {
        Placement::Fast
    } else {
        Placement::Slow
    }
}

fn dual_heap(pages: u32) -> DualHeap {
    let mut heap = DualHeap::new(pages, HALF_LIFE).unwrap();
    for id in 0..pages {
        heap.place(PageId(id), placement_of(id));
    }
    heap
}

/// Uniform numbers in [0, 1): splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
struct Uniform(u64);

impl Uniform {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Zipf ranks with exponent 0.99, as YCSB draws them (Gray et al., SIGMOD 1994), spread over the pages.
fn zipf(pages: u32, samples: usize) -> Vec<PageId> {
    const THETA: f64 = 0.99;
    let zeta = |n: u32| (1..=n).map(|i| f64::from(i).powf(-THETA)).sum::<f64>();
    let n = f64::from(pages);
    let zeta_n = zeta(pages);
    let eta = (1.0 - (2.0 / n).powf(1.0 - THETA)) / (1.0 - zeta(2) / zeta_n);
    let mut uniform = Uniform(1);
    let mut draw = || {
        let u = uniform.next();
        let rank = match u * zeta_n {
            uz if uz < 1.0 => 0,
            uz if uz < 1.0 + 0.5f64.powf(THETA) => 1,
            _ => (n * (eta * u - eta + 1.0).powf(1.0 / (1.0 - THETA))) as u32,
        };
        // An odd multiplier permutes the ranks of a power of two of pages.
        PageId(rank.min(pages - 1).wrapping_mul(0x9e37_79b1) % pages)
    };
    std::iter::repeat_with(&mut draw).take(samples).collect()
}

fn uniform(pages: u32, samples: usize) -> Vec<PageId> {
    let mut uniform = Uniform(2);
    let draw = || PageId((uniform.next() * f64::from(pages)) as u32);
    std::iter::repeat_with(draw).take(samples).collect()
}

fn sample(c: &mut Criterion) {
    let mut group = c.benchmark_group("sample");
    group.throughput(Throughput::Elements(BATCH as u64));
    for shift in [20, 24] {
        let pages = 1 << shift;
        let loads = [
            ("zipf-0.99", zipf(pages, 1 << 22)),
            ("uniform", uniform(pages, 1 << 22)),
        ];
        for (load, ids) in &loads {
            let mut now = Time(0);
            let mut heap = dual_heap(pages);
            for batch in ids.chunks(BATCH) {
                now = now + STEP;
                heap.sample_batch(now, batch, 1.0);
            }
            println!(
                "{load}, {pages} pages: {:.2} bytes a page",
                heap.memory_bytes() as f64 / f64::from(pages)
            );
            let mut batches = ids.chunks(BATCH).cycle();
            group.bench_function(BenchmarkId::new(format!("dual-heap/{load}"), pages), |b| {
                b.iter(|| {
                    now = now + STEP;
                    heap.sample_batch(now, batches.next().unwrap(), 1.0)
                });
            });
            if shift > 20 {
                continue; // The plain store of 16 M pages takes more than a gigabyte.
            }
            let mut plain = Plain::new(pages);
            let mut now = Time(0);
            let mut batches = ids.chunks(BATCH).cycle();
            group.bench_function(BenchmarkId::new(format!("btree/{load}"), pages), |b| {
                b.iter(|| {
                    now = now + STEP;
                    let boost = plain.decay.boost(now);
                    for id in batches.next().unwrap() {
                        plain.sample(boost, id.0);
                    }
                });
            });
        }
    }
    group.finish();
}

fn sample_run(c: &mut Criterion) {
    let pages = 1 << 20;
    let mut group = c.benchmark_group("sample-run");
    for len in [64u32, 4096, 1 << 18] {
        group.throughput(Throughput::Elements(u64::from(len)));
        let mut heap = dual_heap(pages);
        let (mut now, mut first) = (Time(0), 0);
        for run in 0..pages / len {
            heap.sample_run(now, run * len..(run + 1) * len, 1.0);
        }
        group.bench_function(BenchmarkId::new("dual-heap", len), |b| {
            b.iter(|| {
                now = now + STEP;
                first = (first + 37 * len) % pages;
                heap.sample_run(now, first..first + len, 3.0)
            });
        });
    }
    group.finish();
}

fn exchange(c: &mut Criterion) {
    let pages = 1 << 20;
    let ids = zipf(pages, 1 << 22);
    let mut group = c.benchmark_group("exchange");
    let mut now = Time(0);
    let mut heap = dual_heap(pages);
    for batch in ids.chunks(BATCH) {
        now = now + STEP;
        heap.sample_batch(now, batch, 1.0);
    }
    let mut plain = Plain::new(pages);
    let mut plain_now = Time(0);
    for batch in ids.chunks(BATCH) {
        plain_now = plain_now + STEP;
        let boost = plain.decay.boost(plain_now);
        batch.iter().for_each(|id| plain.sample(boost, id.0));
    }
    group.bench_function("dual-heap", |b| {
        b.iter(|| {
            let (promoted, _) = heap.take_hottest_slow(now).unwrap();
            let (demoted, _) = heap.take_coldest_fast(now).unwrap();
            heap.settle(black_box(promoted), Placement::Fast, None);
            heap.settle(black_box(demoted), Placement::Slow, None)
        });
    });
    group.bench_function("btree", |b| b.iter(|| plain.exchange()));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = sample, sample_run, exchange
}
criterion_main!(benches);
