//! Many simulations over the same slices, in step, on all CPUs.
//!
//! Accesses are read and cut into slices once, whatever the number of simulations; while a batch of
//! slices is simulated, the next one is made. Each simulation sees its slices in order and on one thread
//! at a time, so the outcome does not depend on the number of threads.

use std::{num::NonZero, thread, time::Duration};

use crossbeam::queue::SegQueue;
use rustix::time::{ClockId, clock_gettime};

use crate::{machine::Slice, simulation::Simulation};

/// Runs the simulations over all batches that `next` brings, until it brings an empty one.
///
/// # Errors
/// If `next` fails.
pub(super) fn run<E>(
    simulations: &mut [Simulation],
    mut next: impl FnMut() -> Result<Vec<Slice>, E>,
) -> Result<(), E> {
    let helpers = thread::available_parallelism().map_or(1, NonZero::get) - 1;
    let helpers = helpers.min(simulations.len());
    let mut batch = next()?;
    while !batch.is_empty() {
        let waiting: SegQueue<&mut Simulation> = SegQueue::new();
        for simulation in &mut *simulations {
            waiting.push(simulation);
        }
        let following = thread::scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(|| work(&waiting, &batch));
            }
            let following = next();
            work(&waiting, &batch);
            following
        });
        batch = following?;
    }
    Ok(())
}

/// CPU time of the calling thread so far.
fn thread_cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Takes one simulation after the other through the slices.
fn work(waiting: &SegQueue<&mut Simulation>, slices: &[Slice]) {
    while let Some(simulation) = waiting.pop() {
        for slice in slices {
            simulation.step(slice, &mut thread_cpu_time);
        }
    }
}
