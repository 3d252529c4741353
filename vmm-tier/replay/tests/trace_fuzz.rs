//! Bytes that are no trace, or almost one, by the million: decoding always ends, within bounds and
//! without a panic. `TRACE_FUZZ_CASES` says how many.

use tier_core::{sample::AccessKind, time::Time};
use tier_replay::{
    format::{
        Block, Decoder, Encoder, HEAD_BYTES, Header, MAGIC, MAX_CONTENT, MAX_EVENTS, MAX_RECORDS,
        TraceRange, find_end, read_end,
    },
    machine::Access,
};

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

fn cases() -> u64 {
    std::env::var("TRACE_FUZZ_CASES").map_or(20_000, |cases| cases.parse().unwrap())
}

/// Reads as far as it goes; the bounds hold throughout.
fn read(bytes: &[u8]) -> usize {
    let (mut decoder, mut block) = (Decoder::new(), Block::default());
    let mut rest = bytes;
    while decoder.wants() > 0 {
        assert!(decoder.wants() <= MAX_CONTENT);
        let Some((taken, behind)) = rest.split_at_checked(decoder.wants()) else {
            assert!(!decoder.cut(rest.len()).to_string().is_empty());
            break;
        };
        rest = behind;
        if let Err(error) = decoder.take(taken, &mut block) {
            assert!(!error.to_string().is_empty());
            break;
        }
        assert!(block.accesses.len() <= MAX_RECORDS && block.events.len() <= MAX_EVENTS);
        let in_order = block.accesses.is_sorted_by_key(|access| access.at);
        assert!(in_order && decoder.offset() <= bytes.len() as u64);
    }
    bytes.len() - rest.len()
}

fn trace(random: &mut Random) -> Vec<u8> {
    let mut out = Vec::new();
    let range = |number: u64| TraceRange {
        gpa: number << 32,
        len: 1 << 30,
        page_size: 4096,
    };
    let header = Header {
        ranges: vec![range(0)],
        ..Header::import("csv", "fuzz")
    };
    let mut encoder = Encoder::new(&header, &mut out).unwrap();
    let mut at = 0;
    for _ in 0..random.below(60) {
        at += random.next() % 2000;
        let access = Access {
            at: Time(at),
            address: random.next() >> (8 + random.below(40)),
            len: 1 + random.next() % 3,
            weight: random.below(3) as u32,
            kind: AccessKind::Any,
        };
        encoder.access(&access, &mut out).unwrap();
        match random.below(20) {
            0 => encoder.flush(&mut out).unwrap(),
            1 => encoder.mark(Time(at), "mark", &mut out).unwrap(),
            2 => {
                let dimm = range(1 + random.next() % 3);
                encoder.memory(&[dimm], &mut out).unwrap();
            }
            _ => {}
        }
    }
    encoder.finish(&mut out).unwrap();
    out
}

/// Makes checksums fit again, so that what stands behind them is met.
fn mend(bytes: &mut [u8], start: usize) {
    let Some((head, rest)) = bytes
        .get_mut(start..)
        .and_then(|b| b.split_at_mut_checked(HEAD_BYTES))
    else {
        return;
    };
    let mut word = [0; 4];
    word.copy_from_slice(&head[24..28]);
    let stored = u32::from_le_bytes(word) as usize;
    if let Some(content) = rest.get(..stored) {
        head[28..32].copy_from_slice(&crc32fast::hash(content).to_le_bytes());
    }
    let check = crc32fast::hash(&head[..36]);
    head[36..].copy_from_slice(&check.to_le_bytes());
}

#[test]
fn decoder_when_fed_random_bytes_ends() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for _ in 0..cases() {
        let length = random.below(600);
        let mut bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        if random.below(2) == 0 && length >= 12 {
            bytes[..8].copy_from_slice(&MAGIC);
            bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
            mend(&mut bytes, 12);
        }
        read(&bytes);
        if let Some(last) = bytes.last_chunk() {
            assert_eq!(find_end(last), None);
        }
        // Nearly all are none; none may do harm.
        let _ = read_end(&bytes);
    }
}

#[test]
fn decoder_when_a_trace_was_changed_and_its_checksums_mended_ends() {
    let mut random = Random(0xD1B5_4A32_D192_ED03);
    let mut deep = 0;
    for _ in 0..cases() {
        let mut bytes = trace(&mut random);
        // Where the blocks begin, found by their lengths.
        let mut starts = vec![12];
        while let Some(head) = bytes
            .get(starts[starts.len() - 1]..)
            .and_then(|b| b.get(..HEAD_BYTES))
        {
            let mut word = [0; 4];
            word.copy_from_slice(&head[24..28]);
            let next = starts[starts.len() - 1] + HEAD_BYTES + u32::from_le_bytes(word) as usize;
            starts.push(next);
        }
        for _ in 0..1 + random.below(4) {
            let place = 12 + random.below(bytes.len() - 12);
            bytes[place] = random.next() as u8;
        }
        for &start in &starts {
            mend(&mut bytes, start);
        }
        deep += usize::from(read(&bytes) > starts[1]);
    }
    assert!(deep > 0, "no change was ever met behind the header");
}
