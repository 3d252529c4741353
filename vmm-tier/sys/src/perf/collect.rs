//! Samples out of rings, and a count of everything else that stood there.

use tier_core::sample::{DropReason, SampleAccount};

use super::{
    record::{Record, Sample},
    ring::Drained,
};

/// No ring loses more records between two others; a ring file may claim anything.
const MOST_LOST: u64 = 1 << 32;

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

    /// Counts in `account` what was lost, throttled and malformed. Samples are counted by who takes them.
    pub fn add_to(&self, account: &mut SampleAccount) {
        account.lost = account.lost.saturating_add(self.lost);
        account.throttled += self.throttled;
        if self.malformed > 0 {
            account.drop_records(DropReason::Malformed, self.malformed);
        }
    }
}
