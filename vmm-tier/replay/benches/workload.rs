//! What an access costs in each generator, and with the slicer and the sampler behind it: a table, in
//! one run.
//!
//! `cargo bench -p tier-replay --bench workload` for all; names of workloads behind `--` for some.

use std::{convert::Infallible, error::Error, hint::black_box, sync::Arc, time::Instant};

use tier_replay::{
    machine::{Accesses, Slice, Slicer, SlicerSettings},
    workload::{self, Scale},
};

/// Six slices at the standard scale: short, so that on a busy machine some rounds are not disturbed.
const ACCESSES: usize = 2_000_000;
const ROUNDS: usize = 40;

type Boxed = Box<dyn Accesses<Error = Infallible> + Send>;

/// Nanoseconds that something takes for an access.
fn timed(accesses: usize, run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_nanos() as f64 / accesses as f64
}

fn generate(mut accesses: Boxed) {
    let (mut out, mut seen) = (Vec::new(), 0);
    while seen < ACCESSES {
        out.clear();
        let Ok(_) = accesses.fill(&mut out);
        seen += black_box(&out).len();
    }
}

fn cut(mut slicer: Slicer<Boxed>) {
    let mut slice = Slice::default();
    while slicer.account().records < ACCESSES as u64 {
        let Ok(slice) = slicer.next_slice(&mut slice);
        black_box(slice);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    println!(
        "{:<16} {:>9} {:>11} {:>10}",
        "ns/access", "generator", "with slicer", "difference"
    );
    for name in workload::names() {
        if !wanted.is_empty() && !wanted.iter().any(|want| want == name) {
            continue;
        }
        let (mut alone, mut both) = (f64::INFINITY, f64::INFINITY);
        // In turns, so that both meet the machine in the same state.
        for _ in 0..ROUNDS {
            let first = workload::make(name, &Scale::default())?;
            let second = workload::make(name, &Scale::default())?;
            let slicer = Slicer::new(
                Arc::new(second.guest),
                second.accesses,
                &SlicerSettings::default(),
            )?;
            alone = alone.min(timed(ACCESSES, || generate(first.accesses)));
            both = both.min(timed(ACCESSES, || cut(slicer)));
        }
        println!(
            "{name:<16} {alone:>9.2} {both:>11.2} {:>10.2}",
            both - alone
        );
    }
    Ok(())
}
