//! The record parser and the ring consumer against well-formed, broken and arbitrary bytes.
//!
//! Short by default; `TIER_FUZZ_CASES=1000000 cargo test -p tier-sys --test integration records::` is a night's run.

use perf_event_open_sys::bindings as abi;
use proptest::prelude::*;
use tier_sys::perf::{
    collect::Drained,
    record::{Record, RecordError, RecordFormat, Records, Weight, parse},
    ring::{PlainRing, Ring, RingMemory},
};

/// Cases of each property.
fn config() -> ProptestConfig {
    let asked = std::env::var("TIER_FUZZ_CASES").ok();
    ProptestConfig {
        cases: asked.and_then(|cases| cases.parse().ok()).unwrap_or(2000),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// A record of this type with this body, padded to eight bytes.
fn record(kind: u32, misc: u16, body: &[u8]) -> Vec<u8> {
    let size = (8 + body.len()).next_multiple_of(8);
    let mut bytes = kind.to_ne_bytes().to_vec();
    bytes.extend(misc.to_ne_bytes());
    bytes.extend(u16::try_from(size).unwrap().to_ne_bytes());
    bytes.extend(body);
    bytes.resize(size, 0);
    bytes
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn format(fields: u32) -> RecordFormat {
    RecordFormat::new(u64::from(fields), true).unwrap()
}

const TRACEPOINT: u32 = abi::PERF_SAMPLE_TID | abi::PERF_SAMPLE_TIME | abi::PERF_SAMPLE_RAW;

/// A tracepoint sample whose raw record is `n` repeated.
fn tracepoint_sample(n: u64, raw_words: usize) -> Vec<u8> {
    let mut body = words(&[pair(1, 2), n]);
    // Four bytes of size and the raw bytes end on eight together.
    let raw = 4 + raw_words * 8;
    body.extend(u32::try_from(raw).unwrap().to_ne_bytes());
    body.extend(std::iter::repeat_n(n.to_ne_bytes(), raw_words).flatten());
    body.extend([0; 4]);
    record(abi::PERF_RECORD_SAMPLE, 0, &body)
}

#[test]
fn sample_when_all_fields_are_asked_for_reads_them_in_the_kernels_order() {
    let fields = abi::PERF_SAMPLE_IDENTIFIER
        | abi::PERF_SAMPLE_IP
        | abi::PERF_SAMPLE_TID
        | abi::PERF_SAMPLE_TIME
        | abi::PERF_SAMPLE_ADDR
        | abi::PERF_SAMPLE_ID
        | abi::PERF_SAMPLE_STREAM_ID
        | abi::PERF_SAMPLE_CPU
        | abi::PERF_SAMPLE_PERIOD
        | abi::PERF_SAMPLE_RAW
        | abi::PERF_SAMPLE_WEIGHT_STRUCT
        | abi::PERF_SAMPLE_DATA_SRC
        | abi::PERF_SAMPLE_TRANSACTION
        | abi::PERF_SAMPLE_PHYS_ADDR
        | abi::PERF_SAMPLE_CGROUP
        | abi::PERF_SAMPLE_DATA_PAGE_SIZE
        | abi::PERF_SAMPLE_CODE_PAGE_SIZE;
    let mut body = words(&[1, 2, pair(3, 4), 5, 6, 7, 8, pair(9, 0), 10]);
    body.extend(12u32.to_ne_bytes());
    body.extend([0xab; 12]);
    body.extend(words(&[
        pair(11, 12 | 13 << 16),
        14,
        15,
        16,
        17,
        4096,
        2 << 20,
    ]));
    let bytes = record(abi::PERF_RECORD_SAMPLE, 2, &body);

    let format = format(fields);
    let (found, size) = parse(&bytes, &format).unwrap();

    assert_eq!(size, bytes.len());
    let Record::Sample(sample) = found else {
        panic!("{found:?}")
    };
    assert_eq!(sample.misc, 2);
    assert_eq!(
        (sample.pid(), sample.tid(), sample.cpu()),
        (Some(3), Some(4), Some(9))
    );
    assert_eq!(sample.raw(), Some([0xab; 12].as_slice()));
    assert_eq!(
        sample.weight(),
        Some(Weight {
            var1: 11,
            var2: 12,
            var3: 13
        })
    );
    let others = [
        (sample.identifier(), 1),
        (sample.ip(), 2),
        (sample.time(), 5),
        (sample.addr(), 6),
        (sample.id(), 7),
        (sample.stream_id(), 8),
        (sample.period(), 10),
        (sample.data_src(), 14),
        (sample.transaction(), 15),
        (sample.phys_addr(), 16),
        (sample.cgroup(), 17),
        (sample.data_page_size(), 4096),
        (sample.code_page_size(), 2 << 20),
    ];
    for (found, expected) in others {
        assert_eq!(found, Some(expected));
    }
}

#[test]
fn sample_when_fields_were_not_asked_for_has_none_of_them() {
    let bytes = tracepoint_sample(5, 1);
    let format = format(TRACEPOINT);

    let Ok((Record::Sample(sample), _)) = parse(&bytes, &format) else {
        panic!("no sample")
    };

    assert_eq!((sample.time(), sample.tid()), (Some(5), Some(2)));
    assert_eq!(
        (
            sample.addr(),
            sample.cpu(),
            sample.phys_addr(),
            sample.weight()
        ),
        (None, None, None, None)
    );
}

#[test]
fn notices_when_parsed_carry_their_numbers_and_trailer() {
    let format = format(abi::PERF_SAMPLE_TID | abi::PERF_SAMPLE_TIME | abi::PERF_SAMPLE_CPU);
    let trailer = [pair(21, 22), 23, pair(24, 0)];
    let with_trailer = |kind, body: &[u64]| record(kind, 0, &words(&[body, &trailer].concat()));
    let lost = with_trailer(abi::PERF_RECORD_LOST, &[1, 500]);
    let samples = with_trailer(abi::PERF_RECORD_LOST_SAMPLES, &[7]);
    let exit = with_trailer(abi::PERF_RECORD_EXIT, &[pair(31, 30), pair(33, 32), 99]);
    let throttle = with_trailer(abi::PERF_RECORD_THROTTLE, &[50, 51, 52]);
    let unthrottle = with_trailer(abi::PERF_RECORD_UNTHROTTLE, &[60, 61, 62]);
    let bytes = [lost, samples, exit, throttle, unthrottle].concat();

    let found: Vec<_> = Records::new(&bytes, &format).map(Result::unwrap).collect();

    assert!(
        matches!(found[0], Record::Lost { id: 1, lost: 500, sample_id }
        if sample_id.tid == Some(22) && sample_id.time == Some(23) && sample_id.cpu == Some(24))
    );
    assert!(matches!(found[1], Record::LostSamples { lost: 7, .. }));
    assert!(matches!(
        found[2],
        Record::Exit {
            pid: 31,
            tid: 33,
            time: 99,
            ..
        }
    ));
    assert!(matches!(
        found[3],
        Record::Throttle {
            time: 50,
            id: 51,
            ..
        }
    ));
    assert!(matches!(
        found[4],
        Record::Unthrottle {
            time: 60,
            id: 61,
            ..
        }
    ));
    assert_eq!(found.len(), 5);
}

#[test]
fn records_when_one_is_too_short_or_unknown_go_on_behind_it() {
    let bytes = [
        record(abi::PERF_RECORD_SAMPLE, 0, &[1; 8]),
        record(4711, 0, &[1; 16]),
        tracepoint_sample(9, 2),
    ]
    .concat();

    let format = format(TRACEPOINT);
    let found: Vec<_> = Records::new(&bytes, &format).collect();

    assert_eq!(
        found[0],
        Err(RecordError::Short {
            kind: abi::PERF_RECORD_SAMPLE
        })
    );
    assert_eq!(found[1], Ok(Record::Other { kind: 4711 }));
    assert!(matches!(
        found[2],
        Ok(Record::Sample(sample)) if sample.time() == Some(9)
    ));
}

#[test]
fn records_when_a_size_is_wrong_end_with_an_error() {
    let format = format(0);
    for size in [0u16, 4, 7, 12, 24, 0xffff] {
        let mut bytes = record(abi::PERF_RECORD_LOST, 0, &[0; 8]);
        bytes[6..8].copy_from_slice(&size.to_ne_bytes());
        let found: Vec<_> = Records::new(&bytes, &format).collect();
        let error = RecordError::Size {
            size: usize::from(size),
            rest: 16,
        };
        assert_eq!(found, [Err(error)], "size {size}");
    }
    assert_eq!(parse(&[1, 2, 3], &format), Err(RecordError::NoHeader(3)));
}

#[test]
fn raw_when_it_claims_more_than_the_record_has_is_an_error() {
    let mut bytes = tracepoint_sample(1, 2);
    bytes[24..28].copy_from_slice(&u32::MAX.to_ne_bytes());
    let error = RecordError::Short {
        kind: abi::PERF_RECORD_SAMPLE,
    };
    assert_eq!(parse(&bytes, &format(TRACEPOINT)), Err(error));
}

#[test]
fn format_when_a_field_has_no_fixed_layout_is_refused() {
    for field in [
        abi::PERF_SAMPLE_READ,
        abi::PERF_SAMPLE_CALLCHAIN,
        abi::PERF_SAMPLE_AUX,
    ] {
        assert!(RecordFormat::new(u64::from(field), true).is_err());
    }
}

fn times(ring: &mut Ring<PlainRing>) -> (Vec<u64>, Drained) {
    let mut found = Vec::new();
    let drained = ring.drain(|record| match record {
        Record::Sample(sample) => {
            let n = sample.time().unwrap();
            let raw = sample.raw().unwrap();
            assert!(
                raw[..raw.len() / 8 * 8]
                    .chunks_exact(8)
                    .all(|chunk| chunk == n.to_ne_bytes())
            );
            found.push(n);
        }
        other => panic!("{other:?}"),
    });
    (found, drained)
}

#[test]
fn drain_when_a_record_wraps_reads_it_whole() {
    let sample = tracepoint_sample(5, 3);
    for start in (0..256).step_by(8) {
        let mut ring = Ring::new(PlainRing::new(256, start), format(TRACEPOINT));
        assert!(ring.memory().push(&sample));
        assert_eq!(times(&mut ring).0, [5], "start {start}");
    }
}

#[test]
fn drain_when_head_and_tail_pass_the_end_of_u64_goes_on() {
    let mut ring = Ring::new(PlainRing::new(256, u64::MAX - 63), format(TRACEPOINT));
    for n in 0..20 {
        assert!(ring.memory().push(&tracepoint_sample(n, 2)));
        assert_eq!(times(&mut ring).0, [n]);
    }
    assert!(ring.memory().head() < 4096);
}

#[test]
fn drain_when_head_is_beyond_the_ring_skips_to_it_and_says_so() {
    let mut ring = Ring::new(PlainRing::new(256, 0), format(TRACEPOINT));
    for head in [257, u64::MAX] {
        ring.memory().set_head(head);
        let (found, drained) = times(&mut ring);
        assert_eq!(
            (found.len(), drained.overruns, ring.memory().tail()),
            (0, 1, head)
        );
    }
    assert_eq!(ring.drain(|_| {}), Drained::default());
}

/// A piece of what a ring may hold: a whole sample, another record, one whose size is wrong, garbage.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let sizes = prop_oneof![8 => 1usize..8, 1 => 1usize..4000];
    prop_oneof![
        16 => (any::<u64>(), sizes).prop_map(|(n, words)| tracepoint_sample(n, words)),
        2 => (0u32..16, prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(kind, body)| record(kind, 0, &body)),
        1 => (any::<u16>(), 1usize..8).prop_map(|(size, words)| {
            let mut bytes = tracepoint_sample(1, words);
            bytes[6..8].copy_from_slice(&size.to_ne_bytes());
            bytes
        }),
        1 => prop::collection::vec(any::<u8>(), 0..64),
    ]
}

/// Times of the samples and kinds of the other records, in order.
fn shown(record: &Record<'_>) -> (Option<u64>, Option<usize>, String) {
    match record {
        Record::Sample(sample) => (sample.time(), sample.raw().map(<[u8]>::len), String::new()),
        other => (None, None, format!("{other:?}")),
    }
}

proptest! {
    #![proptest_config(config())]

    /// Model: the plain iterator over the same bytes in one piece. The ring reads in steps of 16 KiB and
    /// wraps; neither shows.
    #[test]
    fn drain_when_bytes_are_read_in_steps_finds_what_the_iterator_finds(
        pieces in prop::collection::vec(piece(), 1..60),
        start in any::<u64>(),
    ) {
        let mut bytes = pieces.concat();
        bytes.truncate(1 << 18);
        let mut ring = Ring::new(PlainRing::new(1 << 18, start), format(TRACEPOINT));
        prop_assert!(ring.memory().push(&bytes));
        let mut found = Vec::new();
        let drained = ring.drain(|record| found.push(shown(&record)));

        let format = format(TRACEPOINT);
        let expected: Vec<_> = Records::new(&bytes, &format).collect();
        let malformed = expected.iter().filter(|record| record.is_err()).count();
        let expected: Vec<_> = expected.iter().flatten().map(shown).collect();
        prop_assert_eq!(&found, &expected);
        prop_assert_eq!((drained.records, drained.malformed), (expected.len() as u64, malformed as u64));
        prop_assert_eq!(drained.bytes, bytes.len() as u64);
        prop_assert_eq!(ring.memory().tail(), ring.memory().head());
    }

    #[test]
    fn records_when_bytes_are_arbitrary_end_and_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        fields in any::<u32>(),
        all: bool,
    ) {
        if let Ok(format) = RecordFormat::new(u64::from(fields), all) {
            prop_assert!(Records::new(&bytes, &format).count() <= bytes.len() / 8 + 1);
        }
    }

    /// Arbitrary bodies behind headers that are right, so that the fields are reached.
    #[test]
    fn records_when_headers_are_right_and_bodies_arbitrary_yield_one_result_each(
        bodies in prop::collection::vec((0u32..24, prop::collection::vec(any::<u8>(), 0..120)), 1..40),
        bits in prop::collection::vec(any::<bool>(), 18),
        all: bool,
    ) {
        // The fields that the parser knows, each asked for or not.
        let known: Vec<u64> = (0..25).map(|bit| 1 << bit).filter(|&f| RecordFormat::new(f, all).is_ok()).collect();
        prop_assert_eq!(known.len(), bits.len());
        let fields = known.iter().zip(&bits).filter(|(_, on)| **on).map(|(field, _)| field).sum();
        let bytes: Vec<u8> = bodies.iter().flat_map(|(kind, body)| record(*kind, 0, body)).collect();
        let found = Records::new(&bytes, &RecordFormat::new(fields, all).unwrap()).count();
        prop_assert_eq!(found, bodies.len());
    }

    /// Model: a queue. Whatever fits is read once, whole and in order.
    #[test]
    fn drain_when_records_of_all_sizes_come_and_go_loses_and_repeats_nothing(
        steps in prop::collection::vec(prop::option::of(1usize..40), 1..200),
        start in any::<u64>(),
    ) {
        // The kernel's head is always a multiple of eight.
        let mut ring = Ring::new(PlainRing::new(1024, start & !7), format(TRACEPOINT));
        let (mut next, mut read) = (0, 0);
        for step in steps {
            match step {
                Some(raw_words) if ring.memory().push(&tracepoint_sample(next, raw_words)) => next += 1,
                _ => {
                    let (found, drained) = times(&mut ring);
                    prop_assert_eq!(&found, &(read..next).collect::<Vec<_>>());
                    prop_assert_eq!((drained.records, drained.malformed), (next - read, 0));
                    prop_assert_eq!(ring.memory().tail(), ring.memory().head());
                    read = next;
                }
            }
        }
    }

    #[test]
    fn drain_when_the_ring_holds_garbage_ends_and_gives_the_space_back(
        garbage in prop::collection::vec(any::<u8>(), 1..1024),
        start in any::<u64>(),
    ) {
        let mut ring = Ring::new(PlainRing::new(1024, start), format(TRACEPOINT));
        prop_assert!(ring.memory().push(&garbage));
        let drained = ring.drain(|_| {});
        prop_assert_eq!(drained.bytes, garbage.len() as u64);
        prop_assert_eq!(ring.memory().tail(), ring.memory().head());
    }
}
