//! What is found in rings: samples, and a count of everything else that stood there.

use tier_core::sample::{DropReason, SampleAccount};

use super::record::{Record, Sample};

/// No ring loses more records between two others; a ring file may claim anything.
const MOST_LOST: u64 = 1 << 32;

/// What one [`Ring::drain`](super::ring::Ring::drain) met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Bytes taken out of the ring.
    pub bytes: u64,
    /// Records handed on.
    pub records: u64,
    /// Records that were too short for their fields, or the rest of a piece whose next record could
    /// not be found.
    pub malformed: u64,
    /// Times the head was further ahead than the ring is long; everything up to it was skipped.
    pub overruns: u64,
}

impl Drained {
    /// Adds what another drain met.
    pub fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.records += other.records;
        self.malformed += other.malformed;
        self.overruns += other.overruns;
    }
}

/// What one collection found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Samples that were handed on.
    pub samples: u64,
    /// Records for which the ring had no room.
    pub lost: u64,
    /// Times that the kernel throttled an event.
    pub throttled: u64,
    /// Records that could not be read, and times that the ring was overrun.
    pub malformed: u64,
}

impl Collected {
    /// Collects by `drain`, which hands each record to the function that it is given.
    #[inline]
    pub(super) fn by(drain: impl FnOnce(&mut Self) -> Drained) -> Self {
        let mut collected = Self::default();
        let drained = drain(&mut collected);
        collected.malformed = drained.malformed + drained.overruns;
        collected
    }

    /// The sample in a record. Any other record is counted.
    #[inline]
    pub(super) fn sample<'a>(&mut self, record: Record<'a>) -> Option<Sample<'a>> {
        match record {
            Record::Sample(sample) => {
                self.samples += 1;
                return Some(sample);
            }
            Record::Lost { lost, .. } | Record::LostSamples { lost, .. } => {
                self.lost = self.lost.saturating_add(lost.min(MOST_LOST));
            }
            Record::Throttle { .. } => self.throttled += 1,
            // What the kernel says of the event is no record of an access.
            Record::Unthrottle { .. } | Record::Exit { .. } | Record::Other { .. } => {}
        }
        None
    }

    /// Counts in `account` what was lost, throttled and malformed. Samples are counted by who takes
    /// them.
    pub fn add_to(&self, account: &mut SampleAccount) {
        account.lost = account.lost.saturating_add(self.lost);
        account.throttled += self.throttled;
        if self.malformed > 0 {
            account.drop_records(DropReason::Malformed, self.malformed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::{
        record::RecordFormat,
        ring::{PlainRing, Ring},
    };

    /// Fields and records of `include/uapi/linux/perf_event.h`.
    const ADDR: u64 = 1 << 3;
    const LOST: u64 = 2;
    const THROTTLE: u64 = 5;
    const UNTHROTTLE: u64 = 6;
    const SAMPLE: u64 = 9;

    /// A record of this type with this body.
    fn record(kind: u64, body: &[u64]) -> Vec<u8> {
        let size = 8 + 8 * body.len() as u64;
        let words = std::iter::once(kind | size << 48).chain(body.iter().copied());
        words.flat_map(u64::to_ne_bytes).collect()
    }

    #[test]
    fn collect_when_records_are_of_all_kinds_hands_on_samples_and_counts_the_rest() {
        let memory = PlainRing::new(4096, 0);
        for bytes in [
            record(SAMPLE, &[0x1000]),
            record(LOST, &[0, 7]),
            record(SAMPLE, &[]),
            record(THROTTLE, &[1, 2, 3]),
            record(LOST, &[0, u64::MAX]),
            record(UNTHROTTLE, &[1, 2, 3]),
            record(SAMPLE, &[0x2000]),
        ] {
            assert!(memory.push(&bytes));
        }
        let mut ring = Ring::new(memory, RecordFormat::new(ADDR, false).unwrap());

        let mut found = Vec::new();
        let collected = ring.collect(|sample| found.extend(sample.addr()));

        assert_eq!(found, [0x1000, 0x2000]);
        let expected = Collected {
            samples: 2,
            lost: 7 + MOST_LOST,
            throttled: 1,
            malformed: 1,
        };
        assert_eq!(collected, expected);
        let mut account = SampleAccount::default();
        collected.add_to(&mut account);
        assert_eq!((account.lost, account.throttled), (expected.lost, 1));
        assert_eq!(account.dropped[&DropReason::Malformed], 1);
        assert_eq!(ring.collect(|_| ()), Collected::default());
    }
}
