//! The trace format: what is written is read again, and what was changed on the way is noticed.

use std::time::Duration;

use proptest::{collection::vec, prelude::*};
use tier_core::{
    sample::{AccessKind, DropReason, SampleAccount, SourceKind},
    time::Time,
};
use tier_replay::{
    format::{
        BatchEnd, Block, Decoder, Encoder, End, Event, FOOTER_BYTES, Found, HEAD_BYTES, Header,
        MAX_CONTENT, MAX_EVENTS, MAX_MARKS, MAX_RECORDS, Mark, Origin, PREAMBLE_BYTES, TraceError,
        TraceRange, find_end, read_end,
    },
    machine::Access,
};

/// An access, or what stands between two.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Access(Access),
    Event(Event),
    /// The block is ended here.
    Flush,
}

fn header() -> Header {
    Header {
        origin: Origin::Source(SourceKind::Ibs),
        name: "vm1".to_owned(),
        started: 1_763_000_000,
        period: 4093,
        tests: 0,
        ranges: vec![
            TraceRange {
                gpa: 1 << 20,
                len: 255 << 20,
                page_size: 4096,
            },
            TraceRange {
                gpa: 1 << 32,
                len: 1 << 30,
                page_size: 2 << 20,
            },
        ],
    }
}

fn single(at: u64, address: u64) -> Access {
    Access {
        at: Time(at),
        address,
        len: 1,
        weight: 1,
        kind: AccessKind::Load,
    }
}

fn encoded(header: &Header, items: &[Item]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(header, &mut out).unwrap();
    for item in items {
        match item.clone() {
            Item::Access(access) => encoder.access(&access, &mut out).unwrap(),
            Item::Event(Event::Batch(batch)) => encoder.batch(batch, &mut out).unwrap(),
            Item::Event(Event::Mark(mark)) => encoder.mark(mark.at, &mark.text, &mut out).unwrap(),
            Item::Event(Event::Plugged(ranges)) => {
                encoder.memory(&ranges, &mut out).unwrap();
            }
            Item::Flush => encoder.flush(&mut out).unwrap(),
        }
    }
    encoder.finish(&mut out).unwrap();
    out
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    header: Option<Header>,
    items: Vec<Item>,
    end: Option<End>,
    /// Blocks of data, and the most bytes that were wanted at a time.
    blocks: u64,
    wanted: usize,
}

/// Reads all of `bytes`, and what was read until an error.
fn decoded(bytes: &[u8]) -> (Read, Result<(), TraceError>) {
    let mut read = Read::default();
    let done = decode(bytes, &mut read);
    (read, done)
}

fn decode(mut rest: &[u8], read: &mut Read) -> Result<(), TraceError> {
    let (mut decoder, mut block) = (Decoder::new(), Block::default());
    while decoder.wants() > 0 {
        let wanted = decoder.wants();
        read.wanted = read.wanted.max(wanted);
        let Some((bytes, behind)) = rest.split_at_checked(wanted) else {
            return Err(decoder.cut(rest.len()));
        };
        rest = behind;
        match decoder.take(bytes, &mut block)? {
            Found::More | Found::Done => {}
            Found::Header(header) => read.header = Some(header),
            Found::End(end) => read.end = Some(end),
            Found::Block => {
                read.blocks += 1;
                let mut from = 0;
                for (at, event) in &block.events {
                    let accesses = block.accesses[from..*at].iter();
                    read.items.extend(accesses.copied().map(Item::Access));
                    read.items.push(Item::Event(event.clone()));
                    from = *at;
                }
                let accesses = block.accesses[from..].iter();
                read.items.extend(accesses.copied().map(Item::Access));
            }
        }
    }
    match rest {
        [] => Ok(()),
        _ => Err(TraceError::Foreign),
    }
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0x1f_ff00_0000..0x1f_ff00_1000_u64,
        4 => (0..512_u64).prop_map(|page| page << 12),
        1 => any::<u64>(),
        1 => Just(0),
    ]
}

fn kind() -> impl Strategy<Value = AccessKind> {
    prop_oneof![
        Just(AccessKind::Any),
        Just(AccessKind::Load),
        Just(AccessKind::Store)
    ]
}

fn account() -> impl Strategy<Value = SampleAccount> {
    (0..9_u64, 0..9_u64, 0..1000_u64).prop_map(|(lost, dropped, malformed)| {
        let mut account = SampleAccount {
            lost,
            ..SampleAccount::default()
        };
        account.drop_records(DropReason::OutOfSequence, dropped);
        account.drop_records(DropReason::Malformed, malformed);
        account
    })
}

fn batch(end: u64) -> impl Strategy<Value = Event> {
    (
        any::<u64>(),
        any::<u32>(),
        1..u64::MAX,
        any::<bool>(),
        account(),
    )
        .prop_map(move |(span, tests, period, settled, account)| {
            Event::Batch(BatchEnd {
                source: SourceKind::Guest,
                end: Time(end),
                span: Duration::from_nanos(span),
                tests,
                period,
                settled,
                account,
            })
        })
}

/// Steps of time with what happens after each.
fn items() -> impl Strategy<Value = Vec<Item>> {
    let step = prop_oneof![8 => Just(1000), 2 => Just(0), 3 => 0..1_000_000_u64];
    let region = (address(), 1..1_u64 << 30, any::<u32>());
    let access = prop_oneof![
        6 => address().prop_map(|address| (address, 1, 1)),
        2 => region,
        // Beside the one before, as regions stand.
        2 => Just((u64::MAX, 8192, 3)),
    ];
    let item = prop_oneof![
        40 => (access, kind()).prop_map(|((address, len, weight), kind)| Item::Access(Access {
            at: Time(0), address, len, weight, kind,
        })),
        1 => batch(5).prop_map(Item::Event),
        1 => "[ -~]{0,120}".prop_map(|text| Item::Event(Event::Mark(Mark { at: Time(9), text }))),
        1 => Just(Item::Flush),
    ];
    vec((step, item), 0..400).prop_map(|items| {
        let (mut at, mut behind) = (7, 0_u64);
        let mut all = Vec::new();
        for (step, mut item) in items {
            at += step;
            if let Item::Access(access) = &mut item {
                access.at = Time(at);
                if access.address == u64::MAX {
                    access.address = behind;
                }
                let most = u64::MAX - access.len;
                access.address = access.address.min(most);
                behind = access.address + access.len;
            }
            all.push(item);
        }
        all
    })
}

fn without_flushes(items: &[Item]) -> Vec<Item> {
    let kept = items.iter().filter(|item| **item != Item::Flush);
    kept.cloned().collect()
}

proptest! {
    #[test]
    fn trace_when_written_reads_back_the_same(items in items()) {
        let bytes = encoded(&header(), &items);
        let (read, done) = decoded(&bytes);
        prop_assert_eq!(done, Ok(()));
        prop_assert_eq!(read.header, Some(header()));
        prop_assert_eq!(&read.items, &without_flushes(&items));
        let end = read.end.unwrap();
        let accesses = items.iter().filter(|item| matches!(item, Item::Access(_))).count();
        prop_assert_eq!(end.accesses, accesses as u64);
        prop_assert_eq!(end.blocks, read.blocks);
        let (behind, footer) = bytes.split_last_chunk().unwrap();
        let length = find_end(footer).unwrap();
        prop_assert_eq!(read_end(&behind[behind.len() - length..]), Ok(end));
    }

    #[test]
    fn trace_when_cut_anywhere_says_so_and_tells_nothing_wrong(items in items(), cut in any::<prop::sample::Index>()) {
        let bytes = encoded(&header(), &items);
        let cut = cut.index(bytes.len());
        let (read, done) = decoded(&bytes[..cut]);
        let expected = match cut {
            0 => TraceError::Empty,
            _ => TraceError::Truncated { offset: cut as u64 },
        };
        prop_assert_eq!(done, Err(expected));
        prop_assert!(without_flushes(&items).starts_with(&read.items));
    }

    #[test]
    fn trace_when_a_byte_is_another_says_so_and_tells_nothing_wrong(
        items in items(),
        place in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
    ) {
        let mut bytes = encoded(&header(), &items);
        let place = place.index(bytes.len());
        bytes[place] ^= flip;
        let (read, done) = decoded(&bytes);
        prop_assert!(done.is_err(), "byte {} of {}", place, bytes.len());
        prop_assert!(without_flushes(&items).starts_with(&read.items));
        if let Err(TraceError::Corrupt { offset, .. }) = done {
            prop_assert!(offset <= place as u64, "{} is told for {}", offset, place);
        }
    }
}

/// Some 100,000 accesses of a program that walks three tables.
fn walk() -> Vec<Item> {
    (0..100_000_u64)
        .map(|i| {
            let address = match i % 3 {
                0 => 0x1000_0000 + i * 8,
                1 => 0x7fff_0000 - (i % 512) * 8,
                _ => (i * 0x9E37_79B9) % (1 << 26),
            };
            Item::Access(single(i * 1000, address))
        })
        .collect()
}

#[test]
fn trace_when_of_a_program_takes_few_bytes_and_small_pieces() {
    let items = walk();
    let bytes = encoded(&Header::import("lackey", "walk"), &items);
    // A third are random: 26 bits and a sign take 4 bytes. The others are steps of 8: about a byte.
    assert!(bytes.len() * 2 < items.len() * 5, "{}", bytes.len());
    let (read, done) = decoded(&bytes);
    assert_eq!((done, read.blocks), (Ok(()), 2));
    assert!(read.wanted <= MAX_CONTENT);
    assert_eq!(read.items, items);
}

#[test]
fn trace_when_nothing_was_recorded_has_a_header_and_an_end() {
    let bytes = encoded(&header(), &[]);
    let (read, done) = decoded(&bytes);
    assert_eq!((done, read.end), (Ok(()), Some(End::default())));
}

#[test]
fn trace_when_blocks_are_missing_or_repeated_is_refused() {
    let items: Vec<Item> = (0..30)
        .flat_map(|i| [Item::Access(single(i, i << 12)), Item::Flush])
        .collect();
    let bytes = encoded(&header(), &items);
    let starts = block_starts(&bytes);
    let (from, to) = (starts[5], starts[6]);
    let missing = [&bytes[..from], &bytes[to..]].concat();
    let repeated = [&bytes[..to], &bytes[from..]].concat();
    for (bytes, offset) in [(missing, from), (repeated, to)] {
        let (_, done) = decoded(&bytes);
        let what = "blocks are missing, repeated or of another file";
        let offset = offset as u64;
        assert_eq!(done, Err(TraceError::Corrupt { offset, what }));
    }
}

/// Where the blocks begin.
fn block_starts(bytes: &[u8]) -> Vec<usize> {
    let (mut decoder, mut block) = (Decoder::new(), Block::default());
    let mut starts = Vec::new();
    let mut at = 0;
    while decoder.wants() > 0 {
        if decoder.wants() == HEAD_BYTES {
            starts.push(at);
        }
        let next = at + decoder.wants();
        decoder.take(&bytes[at..next], &mut block).unwrap();
        at = next;
    }
    starts
}

/// The trace with another head of its block at `start`, with a checksum that fits.
fn with_head(bytes: &[u8], start: usize, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let head = &mut bytes[start..start + HEAD_BYTES];
    change(head);
    let check = crc32fast::hash(&head[..36]);
    head[36..].copy_from_slice(&check.to_le_bytes());
    bytes
}

#[test]
fn head_when_it_claims_too_much_is_refused_before_anything_is_read() {
    let bytes = encoded(&header(), &walk());
    let start = block_starts(&bytes)[1];
    for (at, value) in [
        (16, MAX_RECORDS as u32 + 1),
        (20, MAX_CONTENT as u32 + 1),
        (20, u32::MAX),
        (24, u32::MAX),
    ] {
        let forged = with_head(&bytes, start, |head| {
            head[at..at + 4].copy_from_slice(&value.to_le_bytes());
        });
        let (read, done) = decoded(&forged);
        let error = done.unwrap_err().to_string();
        assert!(error.contains("a block's head is out of bounds"), "{error}");
        assert!(error.contains(&format!("byte {start}")), "{error}");
        assert!(read.wanted < bytes.len());
    }
    // A longer content than there is, within bounds: LZ4 has no more to give.
    let forged = with_head(&bytes, start, |head| {
        head[20..24].copy_from_slice(&(MAX_CONTENT as u32).to_le_bytes());
    });
    let error = decoded(&forged).1.unwrap_err().to_string();
    assert!(error.contains("can't be unpacked"), "{error}");
}

#[test]
fn time_when_it_goes_back_is_refused_by_writer_and_reader() {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&header(), &mut out).unwrap();
    encoder.access(&single(50, 0), &mut out).unwrap();
    let refused = encoder.access(&single(49, 0), &mut out).unwrap_err();
    assert!(matches!(
        refused,
        TraceError::BackInTime {
            at: 49,
            before: 50,
            ..
        }
    ));
    encoder.flush(&mut out).unwrap();
    encoder.access(&single(60, 0), &mut out).unwrap();
    encoder.finish(&mut out).unwrap();
    let start = block_starts(&out)[2];
    let forged = with_head(&out, start, |head| {
        head[8..16].copy_from_slice(&40_u64.to_le_bytes());
    });
    let (read, done) = decoded(&forged);
    let expected = TraceError::BackInTime {
        offset: start as u64,
        at: 40,
        before: 50,
    };
    assert_eq!((done, read.blocks), (Err(expected), 1));
    assert!(
        expected
            .to_string()
            .contains(&format!("time goes back at byte {start}: 40 ns"))
    );
}

#[test]
fn access_when_it_is_none_is_not_written() {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&header(), &mut out).unwrap();
    for (address, len) in [(0, 0), (u64::MAX, 1), (1 << 63, 1 << 63)] {
        let access = Access {
            len,
            ..single(0, address)
        };
        let refused = encoder.access(&access, &mut out);
        assert_eq!(refused, Err(TraceError::OutOfBounds("an access's length")));
    }
    encoder.finish(&mut out).unwrap();
    assert_eq!(decoded(&out).0.end, Some(End::default()));
}

#[test]
fn ranges_when_they_overlap_or_are_none_are_not_written() {
    let range = |gpa, len, page_size| TraceRange {
        gpa,
        len,
        page_size,
    };
    for ranges in [
        vec![range(4096, 8192, 4096), range(8192, 4096, 4096)],
        vec![range(0, 0, 4096)],
        vec![range(0, 4096, 3000)],
        vec![range(u64::MAX, 4096, 4096)],
        vec![range(0, 1, 1 << 63); 2000],
    ] {
        let header = Header { ranges, ..header() };
        let refused = Encoder::new(&header, &mut Vec::new());
        assert!(matches!(refused, Err(TraceError::OutOfBounds(_))));
    }
}

#[test]
fn file_when_it_is_no_trace_says_what_it_is_instead() {
    let bytes = encoded(&header(), &[]);
    let mut newer = bytes.clone();
    newer[8] = 2;
    let mut older = bytes.clone();
    older[8] = 0;
    let text = b"0,4096,load\n1,4096,store\n";
    for (bytes, part) in [
        (&text[..], "no trace of vmm-tier"),
        (&newer, "version 2 of the format (byte 8)"),
        (&older, "damaged at byte 8"),
        (
            &bytes[..PREAMBLE_BYTES],
            "ends at byte 12, before its end block",
        ),
        (&bytes[..bytes.len() - FOOTER_BYTES], "before its end block"),
        (b"", "has no bytes"),
    ] {
        let error = decoded(bytes).1.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn end_when_its_sums_are_others_is_refused() {
    let items: Vec<Item> = (0..3).map(|i| Item::Access(single(i, i << 12))).collect();
    let (ours, theirs) = (encoded(&header(), &items), encoded(&header(), &items[..2]));
    let (start, their_start) = (block_starts(&ours)[2], block_starts(&theirs)[2]);
    let mixed = [&ours[..start], &theirs[their_start..]].concat();
    let error = decoded(&mixed).1.unwrap_err().to_string();
    assert!(
        error.contains("the sums at its end are not those"),
        "{error}"
    );
}

#[test]
fn marks_when_there_are_too_many_stay_between_accesses_but_not_in_the_end() {
    let items: Vec<Item> = (0..=MAX_EVENTS as u64)
        .map(|i| {
            let text = format!("phase {i}");
            Item::Event(Event::Mark(Mark { at: Time(i), text }))
        })
        .collect();
    let (read, done) = decoded(&encoded(&header(), &items));
    assert_eq!((done, &read.items), (Ok(()), &items));
    let end = read.end.unwrap();
    assert_eq!((end.marks.len(), end.blocks), (MAX_MARKS, 2));
}

#[test]
fn text_when_long_or_strange_is_made_short_and_plain() {
    let header = Header {
        name: format!("\x1b[2J\u{e9}{}", "x".repeat(500)),
        ..header()
    };
    let (read, done) = decoded(&encoded(&header, &[]));
    assert_eq!(done, Ok(()));
    let name = read.header.unwrap().name;
    assert!(name.starts_with("?[2J?xxx") && name.len() == 120, "{name}");
}

#[test]
fn memory_when_it_comes_later_is_told_of_once_and_at_the_end() {
    const GIB: u64 = 1 << 30;
    let range = |gpa: u64, len: u64| TraceRange {
        gpa,
        len,
        page_size: 4096,
    };
    let known = header().ranges;
    let dimm = range(8 * GIB, GIB);
    // The memory there is now, twice the same.
    let now = Item::Event(Event::Plugged([&known[..], &[dimm]].concat()));
    let items = [
        Item::Access(single(1, 1 << 20)),
        now.clone(),
        Item::Access(single(2, 8 * GIB)),
        now,
        // The DIMM is gone, which is not told of, and a larger one is in its place.
        Item::Event(Event::Plugged(known)),
        Item::Event(Event::Plugged(vec![range(8 * GIB, 2 * GIB)])),
    ];
    let bytes = encoded(&header(), &items);
    let (read, done) = decoded(&bytes);
    assert_eq!(done, Ok(()));
    let rest = range(9 * GIB, GIB);
    assert_eq!(
        read.items,
        [
            items[0].clone(),
            Item::Event(Event::Plugged(vec![dimm])),
            items[2].clone(),
            Item::Event(Event::Plugged(vec![rest])),
        ]
    );
    assert_eq!(read.end.unwrap().plugged, [dimm, rest]);
}

#[test]
fn memory_when_none_is_known_or_it_is_no_memory_is_refused() {
    let dimm = TraceRange {
        gpa: 1 << 30,
        len: 1 << 20,
        page_size: 4096,
    };
    let empty = Header::import("csv", "x");
    let bytes = encoded(&empty, &[Item::Event(Event::Plugged(vec![dimm]))]);
    let (_, done) = decoded(&bytes);
    let error = done.unwrap_err().to_string();
    assert!(
        error.contains("memory comes to a guest of which none is known"),
        "{error}"
    );

    let mut out = Vec::new();
    let mut encoder = Encoder::new(&header(), &mut out).unwrap();
    let odd = TraceRange {
        page_size: 3000,
        ..dimm
    };
    let refused = encoder.memory(&[odd], &mut out).unwrap_err();
    assert_eq!(
        refused,
        TraceError::OutOfBounds("a range's length or page size")
    );
}
