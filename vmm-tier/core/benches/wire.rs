//! The guest protocol: frames a second, encoded and decoded, checksums included.
//!
//! At 10 000 samples a second each side may take 1 % of a core in all: 1000 ns a sample.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tier_core::{
    addr::Gpa,
    sample::AccessKind,
    wire::{Access, BatchBuilder, Decoded, Decoder, Drops, Frame, Message, Region},
};

/// A frame of accesses as the agent sends it: sorted, over 4 GiB.
fn accesses() -> Frame {
    let mut builder = BatchBuilder::accesses(4093);
    let mut state = 88_172_645_463_325_252_u64;
    let mut frames: Vec<u64> = (0..4096)
        .map(|_| {
            // Xorshift: any spread will do.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % (1 << 20)
        })
        .collect();
    frames.sort_unstable();
    for frame in frames {
        builder.push_access(Access {
            gpa: Gpa(frame << 12),
            kind: AccessKind::Load,
        });
    }
    frame(builder)
}

/// A report of DAMON: 2000 regions.
fn regions() -> Frame {
    let mut builder = BatchBuilder::regions(20);
    for i in 0..2000 {
        builder.push_region(Region {
            start: Gpa((1 << 20) + i * (2 << 20)),
            len: 2 << 20,
            used: (i % 21) as u32,
        });
    }
    frame(builder)
}

fn frame(builder: BatchBuilder) -> Frame {
    Frame {
        session: 1,
        sequence: 1,
        message: Message::Batch(builder.finish(1 << 40, 400_000_000, Drops::default())),
    }
}

fn wire(criterion: &mut Criterion) {
    for (name, frame, records) in [("accesses", accesses(), 4096), ("regions", regions(), 2000)] {
        let mut bytes = Vec::new();
        frame
            .encode(&mut bytes)
            .expect("the frame is within bounds");
        eprintln!("{name}: {} bytes for {records} records", bytes.len());
        let mut group = criterion.benchmark_group(format!("wire/{name}"));
        group.throughput(Throughput::Elements(records));
        group.bench_function("encode", |bencher| {
            let mut out = Vec::new();
            bencher.iter(|| {
                out.clear();
                frame.encode(&mut out).expect("the frame is within bounds");
                out.len()
            });
        });
        group.bench_function("decode", |bencher| {
            let mut decoder = Decoder::new();
            bencher.iter(|| {
                let mut frames = 0;
                decoder.push(&bytes, |found| {
                    frames += u32::from(matches!(found, Decoded::Frame(..)));
                });
                assert_eq!(frames, 1);
            });
        });
        group.finish();
    }
}

criterion_group!(benches, wire);
criterion_main!(benches);
