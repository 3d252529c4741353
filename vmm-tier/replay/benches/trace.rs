//! The trace format: accesses encoded and decoded a second, beside the same accesses as CSV text, and
//! the bytes that one takes. A file of lackey's text may be named by `LACKEY=FILE`; else three walks are
//! made up.

use std::{fmt::Write as _, hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tier_core::{sample::AccessKind, time::Time};
use tier_replay::{
    format::{Block, Decoder, Encoder, Found, Header},
    machine::Access,
};

/// Most accesses that are measured with.
const MOST: usize = 4_000_000;

fn access(index: usize, address: u64, kind: AccessKind) -> Access {
    Access {
        at: Time(index as u64 * 1000),
        address,
        len: 1,
        weight: 1,
        kind,
    }
}

/// A stack, an array that is walked, and a table that is looked into at random.
fn made_up() -> Vec<Access> {
    let address = |i: usize| {
        let i = i as u64;
        match i % 4 {
            0 | 1 => 0x1f_ff00_0000 - (i * 5 % 61) * 8,
            2 => 0x4000_0000 + i * 2,
            _ => 0x5000_0000 + (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40),
        }
    };
    let kinds = [AccessKind::Load, AccessKind::Load, AccessKind::Store];
    (0..1_000_000)
        .map(|i| access(i, address(i), kinds[i % 3]))
        .collect()
}

fn lackey(path: &str) -> Vec<Access> {
    let text = std::fs::read(path).expect("LACKEY names a file that can be read");
    let lines = text.split(|&byte| byte == b'\n').filter_map(|line| {
        let kind = match line.get(..3)? {
            b" L " => AccessKind::Load,
            b" S " | b" M " => AccessKind::Store,
            _ => return None,
        };
        let (address, _) = std::str::from_utf8(&line[3..]).ok()?.split_once(',')?;
        Some((u64::from_str_radix(address, 16).ok()?, kind))
    });
    let accesses = lines.take(MOST).enumerate();
    accesses
        .map(|(i, (address, kind))| access(i, address, kind))
        .collect()
}

fn encode(accesses: &[Access], out: &mut Vec<u8>) {
    let mut encoder = Encoder::new(&Header::import("bench", "bench"), out).expect("a header");
    for access in accesses {
        encoder.access(access, out).expect("an access");
    }
    encoder.finish(out).expect("an end");
}

fn decode(mut rest: &[u8]) -> u64 {
    let (mut decoder, mut block) = (Decoder::new(), Block::default());
    let mut sum = 0_u64;
    while decoder.wants() > 0 {
        let (bytes, behind) = rest.split_at(decoder.wants());
        rest = behind;
        if decoder.take(bytes, &mut block).expect("a trace") == Found::Block {
            for access in &block.accesses {
                sum = sum.wrapping_add(access.address);
            }
        }
    }
    sum
}

fn csv(accesses: &[Access]) -> String {
    let mut text = String::new();
    for access in accesses {
        let kind = match access.kind {
            AccessKind::Load => "load",
            AccessKind::Store => "store",
            AccessKind::Any => "any",
        };
        writeln!(text, "{},{:#x},{kind}", access.at.0, access.address).expect("a string");
    }
    text
}

/// As simple as it can be; the program checks more.
fn read_csv(text: &str) -> u64 {
    let mut sum = 0_u64;
    for line in text.lines() {
        let mut fields = line.split(',');
        let at: u64 = fields.next().and_then(|at| at.parse().ok()).unwrap_or(0);
        let address = fields.next().and_then(|text| text.strip_prefix("0x"));
        let address = address.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        sum = sum.wrapping_add(address.unwrap_or(0)).wrapping_add(at & 1);
    }
    sum
}

fn trace(c: &mut Criterion) {
    let accesses = match std::env::var("LACKEY") {
        Ok(path) => lackey(&path),
        Err(_) => made_up(),
    };
    let mut bytes = Vec::new();
    encode(&accesses, &mut bytes);
    let text = csv(&accesses);
    let each = |bytes: usize| bytes as f64 / accesses.len() as f64;
    println!(
        "{} accesses: {:.2} bytes each, as CSV {:.2}",
        accesses.len(),
        each(bytes.len()),
        each(text.len())
    );
    let mut group = c.benchmark_group("trace");
    group.throughput(Throughput::Elements(accesses.len() as u64));
    group.sample_size(10);
    group.measurement_time(Duration::from_secs(3));
    group.bench_function("encode", |b| {
        b.iter_batched_ref(
            Vec::new,
            |out| encode(&accesses, out),
            BatchSize::LargeInput,
        );
    });
    group.bench_function("decode", |b| b.iter(|| decode(black_box(&bytes))));
    group.bench_function("csv-write", |b| b.iter(|| csv(black_box(&accesses))));
    group.bench_function("csv-read", |b| b.iter(|| read_csv(black_box(&text))));
    group.finish();
}

criterion_group!(benches, trace);
criterion_main!(benches);
