//! Records a second of drain and parse, beside a memcpy of the same bytes in the same run.
//!
//! The share of memcpy's speed is printed at the end, from rounds that alternate: on a machine with other
//! work both are slowed alike.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use perf_event_open_sys::bindings as abi;
use tier_sys::perf::{
    ibs,
    record::{Record, RecordFormat},
    ring::{PlainRing, Ring, RingMemory},
};

/// As large as a core's second-level cache: the ring of a busy source.
const CAPACITY: usize = 1 << 20;
/// Rounds for the share.
const ROUNDS: usize = 400;

/// A sample: these words, then raw data with its size.
fn record(words: usize, raw: &[u8]) -> Vec<u8> {
    let size = u16::try_from(8 + 8 * words + 4 + raw.len()).unwrap();
    let mut record = Vec::new();
    record.extend_from_slice(&abi::PERF_RECORD_SAMPLE.to_ne_bytes());
    record.extend_from_slice(&0u16.to_ne_bytes());
    record.extend_from_slice(&size.to_ne_bytes());
    record.resize(8 + 8 * words, 1);
    record.extend_from_slice(&u32::try_from(raw.len()).unwrap().to_ne_bytes());
    record.extend_from_slice(raw);
    record
}

/// A DAMON sample of 80 bytes: TID, TIME and a raw record of 48 bytes with 4 bytes of padding.
fn damon_record() -> (Vec<u8>, RecordFormat) {
    let fields = abi::PERF_SAMPLE_TID | abi::PERF_SAMPLE_TIME | abi::PERF_SAMPLE_RAW;
    let format = RecordFormat::new(u64::from(fields), true).unwrap();
    (record(2, &[0; 52]), format)
}

/// An `ibs_op` sample of 104 bytes: a load with a valid physical address.
fn ibs_record() -> (Vec<u8>, RecordFormat) {
    let mut raw = [0; 60];
    raw[36..44].copy_from_slice(&(1u64 | 1 << 18).to_ne_bytes());
    raw[52..60].copy_from_slice(&0x1234_5678u64.to_ne_bytes());
    let format = RecordFormat::new(ibs::SAMPLE_FIELDS, true).unwrap();
    (record(4, &raw), format)
}

/// A ring full of copies of a record, and how many they are.
fn full((record, format): (Vec<u8>, RecordFormat)) -> (Ring<PlainRing>, Vec<u8>, u64) {
    let count = CAPACITY / record.len();
    let bytes = record.repeat(count);
    let ring = Ring::new(PlainRing::new(CAPACITY, 0), format);
    assert!(ring.memory().push(&bytes));
    (ring, bytes, count as u64)
}

/// Reads the whole ring: the sum of the first words of the raw data.
fn drain(ring: &mut Ring<PlainRing>, count: u64) -> u64 {
    ring.memory().set_tail(0);
    let mut sum = 0u64;
    let drained = ring.drain(|record| {
        if let Record::Sample(sample) = record {
            let raw = sample.raw().and_then(|raw| raw.first_chunk::<8>());
            sum = sum.wrapping_add(raw.map_or(0, |raw| u64::from_ne_bytes(*raw)));
        }
    });
    let head = ring.memory().head();
    assert_eq!((drained.records, ring.memory().tail()), (count, head));
    sum
}

/// Reads the whole ring: the sum of the addresses that were accessed.
fn drain_ibs(ring: &mut Ring<PlainRing>, count: u64) -> u64 {
    ring.memory().set_tail(0);
    let mut sum = 0u64;
    let drained = ring.drain(|record| {
        if let Record::Sample(sample) = record {
            let op = sample.raw().and_then(ibs::decode);
            let accessed = op.and_then(|op| op.accessed());
            sum = sum.wrapping_add(accessed.map_or(0, |(physical, _)| physical));
        }
    });
    assert_eq!((drained.records, sum), (count, count * 0x1234_5678));
    sum
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

/// The median of the rounds' shares.
fn share(mut round: impl FnMut() -> (Duration, Duration)) -> f64 {
    let share = |(memcpy, drain): (Duration, Duration)| memcpy.as_secs_f64() / drain.as_secs_f64();
    let mut shares: Vec<f64> = (0..ROUNDS).map(|_| share(round())).collect();
    shares.sort_by(f64::total_cmp);
    shares[ROUNDS / 2]
}

fn ring_parse(c: &mut Criterion) {
    let (mut ring, bytes, count) = full(damon_record());
    let (mut ibs_ring, ibs_bytes, ibs_count) = full(ibs_record());
    let mut copy = vec![0u8; CAPACITY];

    let mut group = c.benchmark_group("ring_parse");
    group.throughput(Throughput::Elements(count));
    group.bench_function("drain_and_parse", |b| {
        b.iter(|| black_box(drain(&mut ring, count)));
    });
    group.bench_function("memcpy_of_the_same_bytes", |b| {
        b.iter(|| {
            copy[..bytes.len()].copy_from_slice(black_box(&bytes));
            black_box(copy.last().copied())
        });
    });
    group.throughput(Throughput::Elements(ibs_count));
    group.bench_function("drain_and_decode_ibs", |b| {
        b.iter(|| black_box(drain_ibs(&mut ibs_ring, ibs_count)));
    });
    group.finish();

    let mut memcpy = |bytes: &[u8]| {
        timed(|| {
            copy[..bytes.len()].copy_from_slice(black_box(bytes));
            black_box(copy.last().copied());
        })
    };
    let parsed = share(|| {
        let memcpy = memcpy(&bytes);
        let drained = timed(|| {
            black_box(drain(&mut ring, count));
        });
        (memcpy, drained)
    });
    let decoded = share(|| {
        let memcpy = memcpy(&ibs_bytes);
        let drained = timed(|| {
            black_box(drain_ibs(&mut ibs_ring, ibs_count));
        });
        (memcpy, drained)
    });
    eprintln!(
        "of memcpy's speed: drain and parse {:.0} %, with decoding of ibs_op {:.0} %",
        parsed * 100.0,
        decoded * 100.0
    );
}

criterion_group!(benches, ring_parse);
criterion_main!(benches);
