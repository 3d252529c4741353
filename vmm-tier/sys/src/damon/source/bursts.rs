//! From single regions to one batch for each aggregation. Pure.
//!
//! At the end of an aggregation the kernel writes all regions of a target in a burst, by rising
//! address, each with the number of regions there are. Records may be lost from it. So a burst ends
//! when it is complete, when an address is not above the one before, or when time has passed.

use std::time::Duration;

use tier_core::{
    addr::Hva,
    sample::{AccessKind, AccessSample, SampleAccount, SampleAddress, SampleBatch, SourceKind},
    time::Time,
};

/// A region at the end of an aggregation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub(super) time: u64,
    pub(super) target: u64,
    /// Regions of the target in all.
    pub(super) regions: u64,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) accesses: u64,
}

#[derive(Debug)]
struct Burst {
    last: Region,
    samples: Vec<AccessSample>,
}

/// Collects regions into batches.
#[derive(Debug)]
pub(super) struct Bursts {
    aggregation: Duration,
    /// Sampling intervals in an aggregation.
    tests: u32,
    generation: u64,
    /// The generation of bursts that end after a time.
    next_generation: Option<(u64, Time)>,
    last_end: Option<Time>,
    open: Option<Burst>,
    done: Vec<SampleBatch>,
}

impl Bursts {
    pub(super) fn new(aggregation: Duration, tests: u32, generation: u64) -> Self {
        Self {
            aggregation,
            tests,
            generation,
            next_generation: None,
            last_end: None,
            open: None,
            done: Vec::new(),
        }
    }

    pub(super) fn set_aggregation(&mut self, aggregation: Duration, tests: u32) {
        self.aggregation = aggregation;
        self.tests = tests;
    }

    /// Bursts that end after `after` are of this generation.
    pub(super) fn set_generation(&mut self, generation: u64, after: Time) {
        self.next_generation = Some((generation, after));
    }

    pub(super) fn push(&mut self, region: Region) {
        let half = u64::try_from(self.aggregation.as_nanos() / 2).unwrap_or(u64::MAX);
        let goes_on = self.open.as_ref().is_some_and(|burst| {
            burst.last.regions == region.regions
                && burst.last.end <= region.start
                && region.time.saturating_sub(burst.last.time) < half
        });
        if !goes_on {
            self.close();
        }
        let burst = self.open.get_or_insert_with(|| Burst {
            last: region,
            samples: Vec::new(),
        });
        burst.last = region;
        burst.samples.push(AccessSample {
            address: SampleAddress::Host(Hva(region.start)),
            len: region.end - region.start,
            // A count of sampling intervals: far below the 2²⁴ that an f32 holds exactly.
            weight: region.accesses as f32,
            kind: AccessKind::Any,
        });
        if burst.samples.len() as u64 >= region.regions {
            self.close();
        }
    }

    /// Ends a burst to which nothing has been added for half an aggregation: its end was lost.
    pub(super) fn close_if_stale(&mut self, now: Time) {
        let stale = |burst: &Burst| now.since(Time(burst.last.time)) > self.aggregation / 2;
        if self.open.as_ref().is_some_and(stale) {
            self.close();
        }
    }

    /// Ends the burst that is being collected.
    pub(super) fn close(&mut self) {
        let Some(burst) = self.open.take() else {
            return;
        };
        let end = Time(burst.last.time);
        if let Some((generation, after)) = self.next_generation
            && end > after
        {
            self.generation = generation;
            self.next_generation = None;
        }
        // The kdamond may be late, and then it has looked for longer; but the time in which nothing
        // arrived at all (records lost, machine suspended) was not observed.
        let since = self.last_end.map(|last| end.since(last));
        let usual = self.aggregation / 2..=self.aggregation * 4;
        let span = since
            .filter(|since| usual.contains(since))
            .unwrap_or(self.aggregation);
        self.last_end = Some(end);
        self.done.push(SampleBatch {
            source: SourceKind::Damon,
            end,
            span,
            tests: self.tests,
            period: 1,
            settled: true,
            map_generation: self.generation,
            samples: burst.samples,
            account: SampleAccount::default(),
        });
    }

    pub(super) fn take(&mut self) -> Vec<SampleBatch> {
        std::mem::take(&mut self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn region(time: u64, regions: u64, page: u64, accesses: u64) -> Region {
        let start = page << 12;
        Region {
            time,
            target: 0,
            regions,
            start,
            end: start + 4096,
            accesses,
        }
    }

    fn bursts() -> Bursts {
        Bursts::new(Duration::from_millis(100), 20, 7)
    }

    fn weights(batch: &SampleBatch) -> Vec<f32> {
        batch.samples.iter().map(|sample| sample.weight).collect()
    }

    #[test]
    fn push_when_all_regions_have_come_closes_the_batch() {
        let mut bursts = bursts();
        for page in 0..3 {
            bursts.push(region(100 * MS + page, 3, page, page));
        }
        let batches = bursts.take();
        assert_eq!(batches.len(), 1);
        assert_eq!(weights(&batches[0]), [0.0, 1.0, 2.0]);
        assert_eq!(
            batches[0].samples[1].address,
            SampleAddress::Host(Hva(4096))
        );
        assert_eq!(
            (batches[0].map_generation, batches[0].span.as_millis()),
            (7, 100)
        );
    }

    #[test]
    fn push_when_the_end_of_a_burst_was_lost_closes_it_with_the_next() {
        let mut bursts = bursts();
        bursts.push(region(100 * MS, 3, 0, 1));
        bursts.push(region(100 * MS + 1, 3, 1, 1));
        // The third is lost; the next aggregation begins at a lower address.
        bursts.push(region(220 * MS, 2, 0, 5));
        bursts.push(region(220 * MS, 2, 1, 6));

        let batches = bursts.take();

        assert_eq!(
            batches.iter().map(weights).collect::<Vec<_>>(),
            [[1.0, 1.0], [5.0, 6.0]]
        );
        assert_eq!(batches[1].span, Duration::from_nanos(120 * MS - 1));
    }

    #[test]
    fn close_if_stale_when_burst_is_young_leaves_it_open() {
        let mut bursts = bursts();
        bursts.push(region(100 * MS, 2, 0, 1));
        bursts.close_if_stale(Time(140 * MS));
        assert!(bursts.take().is_empty());

        bursts.close_if_stale(Time(151 * MS));
        assert_eq!(bursts.take().len(), 1);
    }

    #[test]
    fn set_generation_when_a_burst_ended_before_keeps_the_old_one_for_it() {
        let mut bursts = bursts();
        bursts.set_generation(8, Time(150 * MS));
        bursts.push(region(100 * MS, 1, 0, 1));
        bursts.push(region(200 * MS, 1, 0, 1));
        let generations: Vec<u64> = bursts.take().iter().map(|b| b.map_generation).collect();
        assert_eq!(generations, [7, 8]);
    }

    #[test]
    fn span_when_the_machine_slept_is_one_aggregation() {
        let mut bursts = bursts();
        bursts.push(region(100 * MS, 1, 0, 1));
        bursts.push(region(90_000 * MS, 1, 0, 1));
        assert_eq!(bursts.take()[1].span, Duration::from_millis(100));
    }
}
