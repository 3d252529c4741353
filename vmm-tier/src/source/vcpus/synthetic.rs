//! Records as the kernel writes them, through a ring in plain memory, for tests of decoders.

use tier_core::sample::{AccessSample, DropReason};
use tier_sys::perf::{
    record::{RecordFormat, Sample},
    ring::{PlainRing, Ring},
};

use super::gathered::{Gathered, GatheredBatch};

/// Bits of `sample_type` and record types of `include/uapi/linux/perf_event.h`.
pub(in crate::source) const TID: u64 = 1 << 1;
pub(in crate::source) const ADDR: u64 = 1 << 3;
pub(in crate::source) const DATA_SRC: u64 = 1 << 15;
const LOST: u32 = 2;
const THROTTLE: u32 = 5;
const SAMPLE: u32 = 9;

/// A record with this body, padded to eight bytes.
fn record(kind: u32, misc: u16, body: &[u8]) -> Vec<u8> {
    let size = (8 + body.len()).next_multiple_of(8);
    let mut bytes = kind.to_ne_bytes().to_vec();
    bytes.extend(misc.to_ne_bytes());
    bytes.extend(u16::try_from(size).unwrap().to_ne_bytes());
    bytes.extend(body);
    bytes.resize(size, 0);
    bytes
}

/// A sample of these words.
pub(in crate::source) fn sample(misc: u16, words: &[u64]) -> Vec<u8> {
    let body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    record(SAMPLE, misc, &body)
}

/// The kernel lost `lost` records of an event with TID and TIME.
pub(in crate::source) fn lost(lost: u64) -> Vec<u8> {
    let body: Vec<u8> = [0, lost, 7, 8]
        .into_iter()
        .flat_map(u64::to_ne_bytes)
        .collect();
    record(LOST, 0, &body)
}

/// The kernel throttled an event with TID and TIME.
pub(in crate::source) fn throttle() -> Vec<u8> {
    let body: Vec<u8> = [1, 2, 3, 7, 8]
        .into_iter()
        .flat_map(u64::to_ne_bytes)
        .collect();
    record(THROTTLE, 0, &body)
}

/// What becomes of these records, which come through a ring whose head begins at `start`.
pub(in crate::source) fn batch_of(
    records: &[Vec<u8>],
    sample_type: u64,
    start: u64,
    decode: impl FnMut(&Sample<'_>) -> Result<AccessSample, DropReason>,
) -> GatheredBatch {
    let mut gathered = gathered(records, sample_type, start, decode);
    let batch = gathered.batch().unwrap_or_default();
    assert!(gathered.batch().is_none());
    batch
}

/// As [`batch_of`], before a batch is made.
pub(in crate::source) fn gathered(
    records: &[Vec<u8>],
    sample_type: u64,
    start: u64,
    mut decode: impl FnMut(&Sample<'_>) -> Result<AccessSample, DropReason>,
) -> Gathered {
    let bytes: usize = records.iter().map(Vec::len).sum();
    let memory = PlainRing::new(bytes.next_power_of_two().max(4096), start);
    for record in records {
        assert!(memory.push(record));
    }
    let mut ring = Ring::new(memory, RecordFormat::new(sample_type, true).unwrap());
    let mut gathered = Gathered::default();
    let collected = ring.collect(|sample| gathered.take(1, decode(&sample)));
    gathered.count(collected);
    gathered
}

/// Records of all kinds, some cut short, for property tests; with how many are samples (or were meant
/// to be).
pub(in crate::source) fn mixed(
    kinds: &[(u8, u64, u16)],
    sample: impl Fn(u64, u16) -> Vec<u8>,
) -> (Vec<Vec<u8>>, u64, u64, u64) {
    let (mut records, mut samples, mut gone, mut throttled) = (Vec::new(), 0, 0, 0);
    for &(kind, value, misc) in kinds {
        match kind % 8 {
            0 => {
                gone += value % 1000;
                records.push(lost(value % 1000));
            }
            1 => {
                throttled += 1;
                records.push(throttle());
            }
            2 => {
                // Too short for its fields: only a header and a word.
                samples += 1;
                records.push(record(SAMPLE, misc, &[0; 8]));
            }
            _ => {
                samples += 1;
                records.push(sample(value, misc));
            }
        }
    }
    (records, samples, gone, throttled)
}

/// Whether the batch's account and samples sum to what was put in.
pub(in crate::source) fn assert_sums(
    batch: &GatheredBatch,
    samples: u64,
    gone: u64,
    throttled: u64,
) {
    let account = &batch.account;
    assert!(account.is_valid(), "{account:?}");
    // The engine counts the samples in the batch.
    assert_eq!(account.accepted, 0);
    assert_eq!(account.samples + batch.samples.len() as u64, samples);
    assert_eq!((account.lost, account.throttled), (gone, throttled));
}
