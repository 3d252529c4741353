//! Small parts that several policies share: a timer, and pages where they are placed.

use std::time::Duration;

use tier_core::{settings::Tier, time::Time};

use super::{Seen, lists::Lists};
use crate::machine::Host;

/// Failures in a row after which a policy takes the tiers' link to be saturated and goes on in its next
/// step.
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

/// All pages with their tiers, in the order in which they were first touched.
pub(super) fn placed(host: &Host) -> impl Iterator<Item = (u32, Tier)> + '_ {
    let pages = host.guest().first_touch();
    pages.map(|page| (page, host.tier(page)))
}

/// So many lists, with all pages in them: those in DRAM in `fast`, the others in `slow`, the first
/// touched at the back.
pub(super) fn lists(host: &Host, lists: u8, fast: u8, slow: u8) -> Lists {
    let mut lists = Lists::new(host.shared_guest(), lists);
    for (page, tier) in placed(host) {
        let list = match tier {
            Tier::Fast => fast,
            Tier::Slow => slow,
        };
        lists.put_in_front(list, page);
    }
    lists
}

/// The largest page of the guest, in bytes.
pub(super) fn largest_page(host: &Host) -> u64 {
    let sizes = host.guest().ranges().map(|range| range.page_bytes);
    sizes.max().unwrap_or(0)
}
