//! Records of `ibs_op` through the ring, the parser and the decoder: well-formed, broken and arbitrary.
//!
//! Short by default; `TIER_FUZZ_CASES=1000000 cargo test -p tier-sys --test integration ibs::` is a night's run.

use perf_event_open_sys::bindings as abi;
use proptest::prelude::*;
use tier_core::sample::AccessKind;
use tier_sys::perf::{
    ibs::{self, IbsOp, SAMPLE_FIELDS},
    record::{Record, RecordFormat},
    ring::{PlainRing, Ring},
};

/// Cases of each property.
fn config() -> ProptestConfig {
    let asked = std::env::var("TIER_FUZZ_CASES").ok();
    ProptestConfig {
        cases: asked.and_then(|cases| cases.parse().ok()).unwrap_or(3000),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// A record as the kernel writes it: TID, TIME, CPU, PERIOD, then the raw data with its size.
fn record(period: u64, raw: &[u8]) -> Vec<u8> {
    let mut bytes = abi::PERF_RECORD_SAMPLE.to_ne_bytes().to_vec();
    let size = (8 + 4 * 8 + 4 + raw.len()).next_multiple_of(8);
    bytes.extend(0u16.to_ne_bytes());
    bytes.extend(u16::try_from(size).unwrap().to_ne_bytes());
    for word in [u64::MAX, 1234, 1, period] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(u32::try_from(size - 44).unwrap().to_ne_bytes());
    bytes.extend(raw);
    bytes.resize(size, 0);
    bytes
}

fn raw(flags: u64, linear: u64, physical: u64) -> Vec<u8> {
    let mut bytes = 0x7ffu32.to_ne_bytes().to_vec();
    for register in [1 << 18, 0x40_1000, 0, 0, flags, linear, physical] {
        bytes.extend(u64::to_ne_bytes(register));
    }
    bytes
}

/// A sample's period and what its raw data says.
type Found = (Option<u64>, Option<IbsOp>);

/// What comes out of a ring, and how many records were malformed.
fn read(bytes: &[u8]) -> (Vec<Found>, u64) {
    let format = RecordFormat::new(SAMPLE_FIELDS, true).unwrap();
    let mut ring = Ring::new(PlainRing::new(1 << 18, 0), format);
    assert!(ring.memory().push(bytes));
    let mut found = Vec::new();
    let drained = ring.drain(|record| {
        if let Record::Sample(sample) = record {
            found.push((sample.period(), sample.raw().and_then(ibs::decode)));
        }
    });
    (found, drained.malformed)
}

#[test]
fn record_when_as_the_kernel_writes_it_has_104_bytes_and_is_read_back() {
    let bytes = record(
        0x1000,
        &raw(0b1 | 1 << 17 | 1 << 18, 0x7f12_3456_7890, 0x1_2345_6780),
    );
    assert_eq!(bytes.len(), 104);
    let op = IbsOp {
        access: Some(AccessKind::Load),
        linear: Some(0x7f12_3456_7890),
        physical: Some(0x1_2345_6780),
    };
    assert_eq!(read(&bytes), (vec![(Some(0x1000), Some(op))], 0));
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn decode_when_bytes_are_arbitrary_never_panics_and_never_makes_up_an_address(
        bytes in prop::collection::vec(any::<u8>(), 0..140),
    ) {
        let op = ibs::decode(&bytes);
        prop_assert_eq!(op.is_some(), bytes.len() >= 60);
        if let Some(op) = op {
            let flags = u64::from_ne_bytes(*bytes[36..].first_chunk().unwrap());
            prop_assert_eq!(op.physical.is_some(), flags >> 18 & 1 == 1);
            prop_assert_eq!(op.linear.is_some(), flags >> 17 & 1 == 1);
            prop_assert_eq!(op.access.is_some(), flags & 0b11 != 0);
            prop_assert!(op.physical.is_none_or(|physical| physical < 1 << 52));
            prop_assert_eq!(op.accessed().is_some(), flags >> 18 & 1 == 1 && flags & 0b11 != 0);
        }
    }

    /// Records with any registers and raw data of any length: one result each, in order.
    #[test]
    fn ring_when_records_have_any_registers_yields_one_result_each(
        ops in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), prop::option::of(0usize..80)), 1..100),
    ) {
        let raws: Vec<Vec<u8>> = ops
            .iter()
            .map(|&(flags, linear, physical, len)| {
                let mut raw = raw(flags, linear, physical);
                raw.resize(len.unwrap_or(raw.len()), 0xee);
                raw
            })
            .collect();
        let bytes: Vec<u8> = raws.iter().flat_map(|raw| record(16, raw)).collect();

        let (found, malformed) = read(&bytes);

        prop_assert_eq!((found.len(), malformed), (ops.len(), 0));
        for ((_, op), raw) in found.iter().zip(&raws) {
            // The kernel pads the raw data so that record and data end together.
            let padded = (44 + raw.len()).next_multiple_of(8) - 44;
            prop_assert_eq!(op.is_some(), padded >= 60);
            if raw.len() >= 60 {
                prop_assert_eq!(*op, ibs::decode(raw));
            }
        }
    }
}
