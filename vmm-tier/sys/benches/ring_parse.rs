//! Records a second of drain and parse, beside a memcpy of the same bytes in the same run.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use perf_event_open_sys::bindings as abi;
use tier_sys::perf::{
    record::{Record, RecordFormat},
    ring::{PlainRing, Ring, RingMemory},
};

/// A DAMON sample: TID, TIME and a raw record of 48 bytes with 4 bytes of padding.
fn damon_record() -> Vec<u8> {
    let raw = [0u8; 52];
    let size = u16::try_from(8 + 8 + 8 + 4 + raw.len()).unwrap();
    let mut record = Vec::new();
    record.extend_from_slice(&abi::PERF_RECORD_SAMPLE.to_ne_bytes());
    record.extend_from_slice(&0u16.to_ne_bytes());
    record.extend_from_slice(&size.to_ne_bytes());
    record.extend_from_slice(&[1; 8]);
    record.extend_from_slice(&[2; 8]);
    record.extend_from_slice(&52u32.to_ne_bytes());
    record.extend_from_slice(&raw);
    record
}

fn ring_parse(c: &mut Criterion) {
    // 1 MiB: larger than a core's second-level cache, as the ring of a busy source is.
    const CAPACITY: usize = 1 << 20;
    let record = damon_record();
    let count = CAPACITY / record.len();
    let bytes = record.repeat(count);
    let fields = abi::PERF_SAMPLE_TID | abi::PERF_SAMPLE_TIME | abi::PERF_SAMPLE_RAW;
    let format = RecordFormat::new(u64::from(fields), true).unwrap();
    let mut ring = Ring::new(PlainRing::new(CAPACITY, 0), format);
    assert!(ring.memory().push(&bytes));
    let head = ring.memory().head();

    let mut group = c.benchmark_group("ring_parse");
    group.throughput(Throughput::Elements(count as u64));
    group.bench_function("drain_and_parse", |b| {
        b.iter(|| {
            ring.memory().set_tail(0);
            let mut sum = 0u64;
            let drained = ring.drain(|record| {
                if let Record::Sample(sample) = record {
                    let raw = sample.raw().and_then(|raw| raw.first_chunk::<8>());
                    sum = sum.wrapping_add(raw.map_or(0, |raw| u64::from_ne_bytes(*raw)));
                }
            });
            assert_eq!(
                (drained.records, ring.memory().tail()),
                (count as u64, head)
            );
            black_box(sum)
        });
    });
    let mut copy = vec![0u8; bytes.len()];
    group.bench_function("memcpy_of_the_same_bytes", |b| {
        b.iter(|| {
            copy.copy_from_slice(black_box(&bytes));
            black_box(copy.last().copied())
        });
    });
    group.finish();
}

criterion_group!(benches, ring_parse);
criterion_main!(benches);
