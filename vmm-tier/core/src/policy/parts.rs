//! Small parts that several policies share: a timer and random numbers.

use std::time::Duration;

use super::Seen;
use crate::{replay::Host, settings::Tier, time::Time};

/// Failures in a row after which a policy takes the tiers' link to be saturated and goes on in its next step.
pub(super) const ENOUGH_FAILURES: u32 = 8;

/// Something that is done once in a period.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    period: Duration,
    next: Option<Time>,
}

impl Timer {
    /// Due for the first time one period after the first slice began.
    pub(super) const fn new(period: Duration) -> Self {
        Self { period, next: None }
    }

    /// Whether it is due at the end of this slice; once for a slice, however long that is.
    pub(super) fn is_due(&mut self, seen: &Seen<'_>) -> bool {
        let next = self.next.unwrap_or(seen.start + self.period);
        let due = next <= seen.end;
        self.next = Some(if due {
            (next + self.period).max(seen.end)
        } else {
            next
        });
        due
    }
}

/// Random numbers that follow from a seed: splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
#[derive(Clone, Copy, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    pub(super) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The least of so many numbers in [0, 1], at least one.
    pub(super) fn first_of(&mut self, numbers: u32) -> f64 {
        1.0 - self.share().powf(1.0 / f64::from(numbers))
    }

    /// In 0 .. `count`, which is not 0.
    pub(super) fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.next()) * count as u128) >> 64) as usize
    }
}

/// All pages with their tiers, in the order in which they were first touched.
pub(super) fn placed(host: &Host) -> impl Iterator<Item = (u32, Tier)> + '_ {
    let pages = host.guest().first_touch();
    pages.map(|page| (page, host.tier(page)))
}

/// The largest page of the guest, in bytes.
pub(super) fn largest_page(host: &Host) -> u64 {
    let sizes = host.guest().ranges().map(|range| range.page_bytes);
    sizes.max().unwrap_or(0)
}
