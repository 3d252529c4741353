//! Bytes of the guest by tier and by page size: a running sum.

use std::collections::BTreeMap;

use crate::{dual_heap::Placement, settings::Tier};

/// Bytes of the guest by tier and by page size.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PlacedBytes {
    fast: u64,
    slow: u64,
    pub(crate) by_page_size: BTreeMap<u64, u64>,
}

impl PlacedBytes {
    pub(crate) const fn of(&self, tier: Tier) -> u64 {
        match tier {
            Tier::Fast => self.fast,
            Tier::Slow => self.slow,
        }
    }

    /// A page of `bytes` bytes went from one placement to another.
    pub(crate) fn replace(&mut self, bytes: u64, old: Placement, new: Placement) {
        if old == new {
            return;
        }
        match old {
            Placement::Fast => self.fast -= bytes,
            Placement::Slow => self.slow -= bytes,
            Placement::Untracked => *self.by_page_size.entry(bytes).or_default() += bytes,
        }
        match new {
            Placement::Fast => self.fast += bytes,
            Placement::Slow => self.slow += bytes,
            Placement::Untracked => {
                let left = self.by_page_size.entry(bytes).or_default();
                *left -= bytes;
                if *left == 0 {
                    self.by_page_size.remove(&bytes);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{BASE_PAGE, HUGE_PAGE};

    #[test]
    fn bytes_when_pages_come_move_and_go_are_those_of_the_pages_that_are_there() {
        let mut bytes = PlacedBytes::default();
        bytes.replace(HUGE_PAGE, Placement::Untracked, Placement::Slow);
        bytes.replace(BASE_PAGE, Placement::Untracked, Placement::Fast);
        bytes.replace(HUGE_PAGE, Placement::Slow, Placement::Fast);
        assert_eq!(bytes.of(Tier::Fast), HUGE_PAGE + BASE_PAGE);
        assert_eq!(bytes.of(Tier::Slow), 0);
        bytes.replace(BASE_PAGE, Placement::Fast, Placement::Untracked);
        bytes.replace(HUGE_PAGE, Placement::Fast, Placement::Fast);
        assert_eq!(
            bytes.by_page_size,
            BTreeMap::from([(HUGE_PAGE, HUGE_PAGE)]),
            "a size without pages is not listed"
        );
    }
}
