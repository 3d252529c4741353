//! Look-ups a second in the inverse page map of a guest of 64 GiB in small pages, beside a `HashMap` from
//! frame to page with the same content in the same run.

use std::{collections::HashMap, hint::black_box};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tier_core::{
    addr::{BASE_PAGE, Hva},
    map::{BlockIndex, HvaRange},
};
use tier_sys::{
    inverse::{InverseMap, PageTable},
    pagemap::{PageEntry, PageRange, PagemapError},
};

/// 16 Mi pages of 4 KiB.
const PAGES: u64 = 1 << 24;
const BASE: u64 = 0x7f00_0000_0000;
/// Look-ups of one iteration.
const LOOKUPS: usize = 1024;

/// Every page is at a frame of its own, and neighbours are far apart: multiplying by an odd number
/// permutes the numbers below a power of two.
fn frame(page: u64) -> u64 {
    (1 << 20) + (page.wrapping_mul(0x9e37_79b1) & (PAGES - 1))
}

struct Scattered;

impl PageTable for Scattered {
    fn present(&self, _: Hva, _: u64) -> Result<Option<Vec<PageRange>>, PagemapError> {
        Ok(None)
    }

    fn read(&self, start: Hva, entries: &mut [PageEntry]) -> Result<(), PagemapError> {
        for (page, entry) in ((start.0 - BASE) / BASE_PAGE..).zip(entries) {
            *entry = PageEntry::present_at(frame(page));
        }
        Ok(())
    }
}

/// Addresses in the frames of `pages` pages that are spread over the guest, in an order without pattern.
fn addresses(pages: u64, count: usize) -> Vec<u64> {
    let mut state = 0x853c_49e6_748f_ea9bu64;
    let next = || {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let page = state % pages * (PAGES / pages);
        frame(page) * BASE_PAGE + state % BASE_PAGE
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn inverse(c: &mut Criterion) {
    let range = HvaRange {
        start: Hva(BASE),
        len: PAGES * BASE_PAGE,
        page_size: BASE_PAGE,
        block: BlockIndex(0),
    };
    let mut map = InverseMap::new(&[range]).unwrap();
    map.roll(&Scattered, || true).unwrap();
    assert_eq!(map.bound_bytes(), range.len);
    eprintln!(
        "the map takes {} MiB, {:.1} bytes a page",
        map.memory_bytes() >> 20,
        map.memory_bytes() as f64 / PAGES as f64
    );
    let hash: HashMap<u64, u64> = (0..PAGES)
        .map(|page| (frame(page), BASE + page * BASE_PAGE))
        .collect();

    let mut group = c.benchmark_group("inverse");
    group.throughput(Throughput::Elements(LOOKUPS as u64));
    for (name, pages) in [("random", PAGES), ("hot", 4096)] {
        let asked = addresses(pages, 1 << 20);
        let mut windows = asked.chunks_exact(LOOKUPS).cycle();
        group.bench_function(format!("map_{name}"), |b| {
            b.iter(|| {
                let window = windows.next().unwrap_or_default();
                let found = window.iter().filter_map(|&physical| map.locate(physical));
                let sum = found.fold(0u64, |sum, hva| sum.wrapping_add(hva.0));
                black_box(sum)
            });
        });
        // One at a time: each look-up waits for the one before.
        group.bench_function(format!("map_{name}_one_at_a_time"), |b| {
            b.iter(|| {
                let window = windows.next().unwrap_or_default();
                let follow = |sum: u64, &physical: &u64| {
                    // No address of a process has its topmost bit set.
                    let hva = map.locate(physical ^ (sum >> 63));
                    hva.map_or(0, |hva| hva.0)
                };
                black_box(window.iter().fold(0, follow))
            });
        });
        group.bench_function(format!("hash_map_{name}"), |b| {
            b.iter(|| {
                let window = windows.next().unwrap_or_default();
                let found = window.iter().filter_map(|&physical| {
                    let page = hash.get(&(physical / BASE_PAGE))?;
                    Some(page + physical % BASE_PAGE)
                });
                black_box(found.fold(0u64, u64::wrapping_add))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, inverse);
criterion_main!(benches);
