//! Single accesses, sampled by the same perf events on every CPU of the guest.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::Context;
use tier_core::{
    addr::{Gpa, NodeSet},
    sample::AccessKind,
    wire::{Access, BatchBuilder, Drops, Wish},
};
use tier_sys::{
    perf::{
        event::{Event, Target},
        record::Sample,
        threads::ThreadEvent,
    },
    process,
    sysroot::{SysRoot, read_value},
};

use super::{
    InGuestSource, Setup, Taken,
    frames::{Frames, Place},
};

/// Pages of each CPU's ring: 128 KiB hold some 2000 records, several times what comes between two polls.
pub(super) const RING_PAGES: usize = 32;
/// Samples in a batch: the host counts on frames of this size when it gives credit.
const A_BATCH: usize = 4096;
/// Time between two looks at how often samples come.
const ADJUST_EVERY: Duration = Duration::from_millis(500);
/// Samples a second at most, whatever is wished.
const MOST_A_SECOND: u32 = 20_000;

/// What a record says of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Its guest-physical address.
    Physical(u64, AccessKind),
    /// Its address in a process.
    Virtual(u32, u64, AccessKind),
    /// It was no access to memory, or one of our own.
    Nothing,
    /// It carries no address.
    NoAddress,
}

/// What is opened on each CPU, and how its records are read.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) events: Vec<ThreadEvent>,
    pub(super) read: fn(&Sample<'_>) -> Seen,
    /// The shortest and the longest period.
    pub(super) periods: (u64, u64),
    /// What the PMU makes of a period.
    pub(super) valid: fn(u64) -> u64,
    pub(super) period: u64,
}

/// See the [module](self).
pub(super) struct CpuEvents {
    events: Vec<Event>,
    plan: Plan,
    frames: Frames,
    /// What is to be looked up, kept for its room.
    places: Vec<Place>,
    drops: Drops,
    wished: u32,
    period: u64,
    last: u64,
    /// When the rate was last looked at, and samples since.
    adjusted: (Instant, u64),
    done: VecDeque<Taken>,
}

/// The CPUs that are online.
pub(super) fn online(root: &SysRoot) -> anyhow::Result<Vec<u32>> {
    // Written like a list of nodes.
    let path = root.sys("devices/system/cpu/online");
    let set: NodeSet = read_value(&path).context("which CPUs are online can't be read")?;
    Ok(set.iter().map(|cpu| u32::from(cpu.0)).collect())
}

impl CpuEvents {
    pub(super) fn open(setup: &Setup, plan: Plan, wish: &Wish) -> anyhow::Result<Self> {
        let mut events = Vec::new();
        for cpu in online(&setup.root)? {
            for event in &plan.events {
                events.push(event.open(&setup.root, Target::Cpu(cpu))?);
            }
        }
        for event in &events {
            event.enable()?;
        }
        let period = plan.period;
        Ok(Self {
            events,
            plan,
            frames: Frames::new(&setup.root),
            places: Vec::new(),
            drops: Drops::default(),
            wished: wish.accesses_per_s.min(MOST_A_SECOND),
            period,
            last: process::now().0,
            adjusted: (Instant::now(), 0),
            done: VecDeque::new(),
        })
    }

    /// What has come, and how many records that was.
    fn drain(&mut self) -> (Vec<Access>, u64) {
        let (plan, drops) = (&self.plan, &mut self.drops);
        let (mut accesses, mut records) = (Vec::new(), 0);
        let places = &mut self.places;
        places.clear();
        for event in &mut self.events {
            let collected = event.collect(|sample| match (plan.read)(&sample) {
                Seen::Nothing => {}
                Seen::NoAddress => drops.no_address += 1,
                Seen::Physical(address, kind) => accesses.push(Access {
                    gpa: Gpa(address),
                    kind,
                }),
                Seen::Virtual(pid, address, kind) => places.push(Place { pid, address, kind }),
            });
            records += collected.samples;
            drops.lost =
                (drops.lost.saturating_add(collected.lost)).saturating_add(collected.malformed);
            drops.throttled += collected.throttled;
        }
        self.frames.each(places, |place, gpa| match gpa {
            Some(gpa) => accesses.push(Access {
                gpa,
                kind: place.kind,
            }),
            None => drops.no_address += 1,
        });
        // Neighbours take fewer bytes on the wire, and within a batch order means nothing.
        accesses.sort_unstable_by_key(|access| access.gpa.0);
        (accesses, records)
    }

    /// Brings the rate of samples to what is wished for.
    fn adjust(&mut self, samples: u64) -> anyhow::Result<()> {
        let (since, before) = self.adjusted;
        let (elapsed, all) = (since.elapsed(), before + samples);
        if elapsed < ADJUST_EVERY {
            self.adjusted.1 = all;
            return Ok(());
        }
        self.adjusted = (Instant::now(), 0);
        let rate = all as f64 / elapsed.as_secs_f64();
        let next = next_period(self.period, rate, f64::from(self.wished), self.plan.periods);
        let next = (self.plan.valid)(next);
        if next != self.period {
            for event in &mut self.events {
                event.set_period(next)?;
            }
            self.period = next;
        }
        Ok(())
    }
}

/// The period that brings `rate` samples a second to `wished`, in steps of at most four times; small
/// differences stay.
fn next_period(period: u64, rate: f64, wished: f64, (least, most): (u64, u64)) -> u64 {
    let factor = (rate / wished.max(1.0)).clamp(0.25, 4.0);
    if (0.8..1.25).contains(&factor) {
        return period;
    }
    ((period as f64 * factor) as u64).clamp(least, most)
}

impl InGuestSource for CpuEvents {
    fn poll(&mut self, timeout: Duration) -> anyhow::Result<Vec<Taken>> {
        // Rings of many CPUs: what comes meanwhile fits in them.
        std::thread::sleep(timeout);
        let (accesses, records) = self.drain();
        let now = process::now().0;
        let span = now.saturating_sub(std::mem::replace(&mut self.last, now));
        let period = self.period;
        for part in accesses.chunks(A_BATCH) {
            let mut observed = BatchBuilder::accesses(period);
            let pushed = part
                .iter()
                .filter(|&&own| observed.push_access(own))
                .count();
            self.drops.no_address += (part.len() - pushed) as u64;
            self.done.push_back(Taken {
                observed,
                clock_ns: now,
                span_ns: span,
            });
        }
        // What is left out costs as much as what is sent.
        self.adjust(records)?;
        Ok(self.done.drain(..).collect())
    }

    fn set_wish(&mut self, wish: &Wish) -> anyhow::Result<()> {
        self.wished = wish.accesses_per_s.min(MOST_A_SECOND);
        Ok(())
    }

    fn drops(&self) -> Drops {
        self.drops
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        // Closing the events removes them.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_period_when_samples_come_too_often_grows_in_bounded_steps() {
        let bounds = (100, 100_000);
        assert_eq!(next_period(1000, 20_000.0, 10_000.0, bounds), 2000);
        assert_eq!(next_period(1000, 1e9, 10_000.0, bounds), 4000);
        assert_eq!(next_period(1000, 0.0, 10_000.0, bounds), 250);
        assert_eq!(next_period(1000, 10_500.0, 10_000.0, bounds), 1000);
        assert_eq!(next_period(120, 0.0, 10_000.0, bounds), 100);
        assert_eq!(next_period(90_000, 1e9, 0.0, bounds), 100_000);
    }
}
