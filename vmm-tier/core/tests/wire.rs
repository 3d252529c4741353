//! The protocol between the agents: whatever is written reads back, wherever the stream is cut; whatever
//! the bytes are, decoding ends, holds little, and finds the next frame.
//!
//! Short by default; `WIRE_FUZZ_CASES=1000000 cargo test -p tier-core --test integration wire::` is a night's run.

use proptest::prelude::*;
use tier_core::{
    addr::Gpa,
    sample::AccessKind,
    wire::{
        Access, Batch, BatchBuilder, Credit, Decoded, Decoder, Drops, Frame, Hello, InGuest,
        MAX_FRAME, MAX_OBSERVATIONS, MAX_PAYLOAD, Message, Observed, Region, Status, Wish,
    },
};

/// Cases of each test.
fn config(few: u32) -> ProptestConfig {
    let asked = std::env::var("WIRE_FUZZ_CASES").ok();
    let cases = asked.and_then(|cases| cases.parse().ok()).unwrap_or(few);
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn drops() -> impl Strategy<Value = Drops> {
    any::<(u64, u64, u64, u64)>().prop_map(|(no_address, no_credit, lost, throttled)| Drops {
        no_address,
        no_credit,
        lost,
        throttled,
    })
}

fn in_guest() -> impl Strategy<Value = InGuest> {
    prop::sample::select(InGuest::ALL.to_vec())
}

fn access() -> impl Strategy<Value = Access> {
    let kinds = vec![AccessKind::Any, AccessKind::Load, AccessKind::Store];
    let kind = prop::sample::select(kinds);
    (0..1_u64 << 40, kind).prop_map(|(frame, kind)| Access {
        gpa: Gpa(frame << 12),
        kind,
    })
}

fn observed() -> impl Strategy<Value = Observed> {
    let accesses = (1..u64::MAX, prop::collection::vec(access(), 0..60))
        .prop_map(|(period, samples)| Observed::Accesses { period, samples });
    let steps = prop::collection::vec((0..1_u64 << 30, 1..1_u64 << 30, 0..=20_u32), 0..60);
    let regions = steps.prop_map(|steps| {
        let mut at = 0;
        let regions = steps.into_iter().map(|(gap, frames, used)| {
            let start = at + gap;
            at = start + frames;
            Region {
                start: Gpa(start << 12),
                len: frames << 12,
                used,
            }
        });
        Observed::Regions {
            tests: 20,
            regions: regions.collect(),
        }
    });
    prop_oneof![accesses, regions]
}

fn message() -> impl Strategy<Value = Message> {
    let hello = (
        "[ -~]{0,40}",
        "[ -~]{0,120}",
        prop::collection::vec(0..63_u32, 0..8),
        any::<u64>(),
        in_guest(),
        prop::sample::subsequence(InGuest::ALL.to_vec(), 0..=InGuest::ALL.len()),
    )
        .prop_map(|(agent, kernel, shifts, memory_bytes, source, can)| {
            Message::Hello(Hello {
                agent,
                kernel,
                page_sizes: shifts.into_iter().map(|shift| 1 << shift).collect(),
                memory_bytes,
                source,
                can,
            })
        });
    let batch = (any::<(u64, u64)>(), drops(), observed()).prop_map(
        |((clock_ns, span_ns), drops, observed)| {
            Message::Batch(Batch {
                clock_ns,
                span_ns,
                drops,
                observed,
            })
        },
    );
    let status = (in_guest(), any::<(u64, u64)>(), drops(), "[ -~]{0,120}").prop_map(
        |(source, (taken, cpu_ns), drops, trouble)| {
            Message::Status(Status {
                source,
                taken,
                drops,
                cpu_ns,
                trouble,
            })
        },
    );
    let credit = any::<(u64, u64)>().prop_map(|(sequence, bytes)| Credit { sequence, bytes });
    let wish = any::<(u32, u32, u32, u32)>().prop_map(
        |(accesses_per_s, sampling_us, aggregation_us, max_regions)| Wish {
            accesses_per_s,
            sampling_us,
            aggregation_us,
            max_regions,
        },
    );
    prop_oneof![
        2 => hello,
        6 => batch,
        2 => status,
        1 => Just(Message::Ask),
        1 => (credit.clone(), wish.clone()).prop_map(|(credit, wish)| Message::Welcome(credit, wish)),
        1 => credit.prop_map(Message::Credit),
        1 => wish.prop_map(Message::Wish),
        1 => Just(Message::Stop),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    (any::<(u64, u64)>(), message()).prop_map(|((session, sequence), message)| Frame {
        session,
        sequence,
        message,
    })
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes).unwrap();
    bytes
}

/// What stands in a stream that comes in pieces of these lengths, over and over.
fn decoded(stream: &[u8], pieces: &[usize]) -> (Vec<Decoded>, Decoder) {
    let mut decoder = Decoder::new();
    let mut found = Vec::new();
    let (mut rest, mut lengths) = (stream, pieces.iter().cycle());
    while !rest.is_empty() {
        let length = lengths
            .next()
            .copied()
            .unwrap_or(rest.len())
            .clamp(1, rest.len());
        let (piece, behind) = rest.split_at(length);
        decoder.push(piece, |what| found.push(what));
        assert!(decoder.pending() <= MAX_FRAME);
        rest = behind;
    }
    (found, decoder)
}

fn frames(found: &[Decoded]) -> Vec<&Frame> {
    let mut frames = Vec::new();
    for what in found {
        if let Decoded::Frame(frame, _) = what {
            frames.push(frame);
        }
    }
    frames
}

/// Bytes that lead into the decoder: any, pieces of frames, and frames with a byte changed.
fn hostile_piece() -> impl Strategy<Value = Vec<u8>> {
    let cut = (frame(), any::<prop::sample::Index>()).prop_map(|(frame, at)| {
        let bytes = encoded(&frame);
        bytes[..at.index(bytes.len())].to_vec()
    });
    let changed =
        (frame(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(frame, at, value)| {
            let mut bytes = encoded(&frame);
            let at = at.index(bytes.len());
            bytes[at] = value;
            bytes
        });
    // A payload of any bytes under right checksums: what a guest may send at will.
    let forged = (
        any::<u8>(),
        prop::collection::vec(any::<u8>(), 0..80),
        any::<(u64, u64)>(),
    )
        .prop_map(|(kind, payload, (session, sequence))| forge(kind, session, sequence, &payload));
    prop_oneof![
        2 => prop::collection::vec(any::<u8>(), 0..60),
        2 => cut,
        2 => changed,
        4 => forged,
        1 => Just(b"vmT\xC3".repeat(20)),
        1 => frame().prop_map(|frame| encoded(&frame)),
    ]
}

/// CRC-32 bit by bit, to check the crate's against the standard's definition.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), step)
    })
}

/// A frame with this payload and right checksums.
fn forge(kind: u8, session: u64, sequence: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"vmT\xC3\x01".to_vec();
    bytes.push(kind);
    bytes.extend((payload.len() as u16).to_le_bytes());
    bytes.extend(session.to_le_bytes());
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(crc32(payload).to_le_bytes());
    bytes.extend(crc32(&bytes).to_le_bytes());
    bytes.extend(payload);
    bytes
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn frames_when_the_stream_is_cut_anywhere_read_back_the_same(
        sent in prop::collection::vec(frame(), 1..6),
        pieces in prop::collection::vec(1..200_usize, 1..20),
    ) {
        let stream: Vec<u8> = sent.iter().flat_map(encoded).collect();
        let (found, decoder) = decoded(&stream, &pieces);
        prop_assert_eq!(frames(&found), sent.iter().collect::<Vec<_>>());
        prop_assert_eq!(found.len(), sent.len());
        prop_assert_eq!(decoder.pending(), 0);
    }

    #[test]
    fn decoder_when_fed_anything_ends_and_finds_the_next_frame(
        pieces in prop::collection::vec(hostile_piece(), 0..8),
        lengths in prop::collection::vec(1..300_usize, 1..8),
        last in frame(),
    ) {
        let mut stream = pieces.concat();
        // Said twice: what is cut before it may by chance end as it begins, and so take its first bytes.
        stream.extend(encoded(&last));
        stream.extend(encoded(&last));
        let (mut found, mut decoder) = decoded(&stream, &lengths);
        // A cut frame may wait for bytes that the last frame seems to be: it is given up in time.
        while frames(&found).last() != Some(&&last) {
            prop_assert!(decoder.pending() > 0, "the last frame was not found");
            decoder.give_up(|what| found.push(what));
        }
    }

    #[test]
    fn frame_when_a_byte_was_changed_is_not_taken_for_the_one_sent(
        sent in frame(),
        at in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
    ) {
        let mut bytes = encoded(&sent);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let (found, _) = decoded(&bytes, &[]);
        prop_assert!(frames(&found).is_empty(), "{found:?}");
    }

    #[test]
    fn batch_when_any_payload_reads_as_one_keeps_its_bounds(
        payload in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let (found, _) = decoded(&forge(2, 1, 1, &payload), &[]);
        prop_assert_eq!(found.len(), 1);
        let [Decoded::Frame(Frame { message: Message::Batch(batch), .. }, _)] = &found[..] else {
            return Ok(());
        };
        prop_assert!(batch.observed.len() <= MAX_OBSERVATIONS);
        if let Observed::Regions { tests, regions } = &batch.observed {
            prop_assert!(regions.iter().all(|region| region.used <= *tests && region.len > 0));
            let apart = regions.windows(2).all(|pair| pair[0].start.0 + pair[0].len <= pair[1].start.0);
            prop_assert!(apart);
        }
    }
}

#[test]
fn checksum_when_computed_bit_by_bit_is_the_same() {
    // The standard's check value for CRC-32.
    assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    let ask = Frame {
        session: 0,
        sequence: 0,
        message: Message::Ask,
    };
    assert_eq!(encoded(&ask), forge(16, 0, 0, &[]));
}

#[test]
fn decoder_when_the_version_is_unknown_says_which() {
    let mut bytes = forge(1, 1, 0, &[1, 2, 3]);
    bytes[4] = 9;
    let check = crc32(&bytes[..28]);
    bytes[28..32].copy_from_slice(&check.to_le_bytes());
    let (found, _) = decoded(&bytes, &[]);
    assert_eq!(found, [Decoded::Version { version: 9 }]);
}

#[test]
fn decoder_when_a_frame_was_cut_finds_the_next_after_giving_up() {
    let samples: Vec<Access> = (0..3000)
        .map(|frame| Access {
            gpa: Gpa(frame << 12),
            kind: AccessKind::Load,
        })
        .collect();
    let batch = Message::Batch(Batch {
        clock_ns: 1,
        span_ns: 1,
        drops: Drops::default(),
        observed: Observed::Accesses { period: 1, samples },
    });
    let whole = encoded(&Frame {
        session: 1,
        sequence: 5,
        message: batch,
    });
    let next = Frame {
        session: 2,
        sequence: 0,
        message: Message::Hello(Hello::default()),
    };
    let mut stream = whole[..100].to_vec();
    stream.extend(encoded(&next));
    let (mut found, mut decoder) = decoded(&stream, &[]);
    assert_eq!(found, []);
    decoder.give_up(|what| found.push(what));
    assert_eq!(frames(&found), [&next]);
}

#[test]
fn builder_when_full_makes_a_batch_that_fits_a_frame() {
    let mut builder = BatchBuilder::accesses(0);
    // Far apart, so that each takes as many bytes as it can.
    let far = |i: u64| Access {
        gpa: Gpa((i % 2) * ((1 << 52) - 4096) + 17),
        kind: AccessKind::Store,
    };
    let count = (0..u64::MAX)
        .take_while(|&i| builder.push_access(far(i)))
        .count();
    assert_eq!(builder.len(), count);
    assert!(count >= (MAX_PAYLOAD - 100) / 7, "{count}");
    let drops = Drops {
        no_address: u64::MAX,
        no_credit: u64::MAX,
        lost: u64::MAX,
        throttled: u64::MAX,
    };
    let batch = builder.finish(u64::MAX, u64::MAX, drops);
    assert!(matches!(
        batch.observed,
        Observed::Accesses { period: 1, .. }
    ));
    let frame = Frame {
        session: 1,
        sequence: 1,
        message: Message::Batch(batch),
    };
    let (found, _) = decoded(&encoded(&frame), &[]);
    assert_eq!(frames(&found), [&frame]);
}

#[test]
fn builder_when_regions_overlap_or_are_empty_refuses_them() {
    let mut builder = BatchBuilder::regions(20);
    let region = |page: u64, pages: u64, used| Region {
        start: Gpa(page << 12),
        len: pages << 12,
        used,
    };
    assert!(builder.push_region(region(10, 5, 30)));
    assert!(!builder.push_region(region(14, 5, 1)), "overlaps");
    assert!(!builder.push_region(region(20, 0, 1)), "empty");
    assert!(!builder.push_region(region(1 << 40, 1, 1)), "too far");
    assert!(!builder.push_access(Access {
        gpa: Gpa(0),
        kind: AccessKind::Any
    }));
    let batch = builder.finish(0, 0, Drops::default());
    let regions = vec![region(10, 5, 20)];
    assert_eq!(batch.observed, Observed::Regions { tests: 20, regions });
}

#[test]
fn encode_when_a_message_is_out_of_bounds_leaves_the_stream_as_it_was() {
    let mut stream = encoded(&Frame {
        session: 1,
        sequence: 1,
        message: Message::Stop,
    });
    let before = stream.clone();
    let long = Message::Hello(Hello {
        kernel: "x".repeat(500),
        ..Hello::default()
    });
    let frame = Frame {
        session: 1,
        sequence: 2,
        message: long,
    };
    assert!(frame.encode(&mut stream).is_err());
    assert_eq!(stream, before);
}
