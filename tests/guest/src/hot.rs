//! Which pages of the working set are hot.

use crate::PAGES_PER_MIB;

/// The hot pages of a working set. Page numbers count from the begin of the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotSet {
    /// The first hot page.
    pub first: usize,
    /// How many pages are hot.
    pub pages: usize,
    /// Distance from a hot page to the next, in pages: 1 is contiguous.
    pub stride: usize,
    /// Pages of the whole working set. A hot set that reaches the end goes on at the begin.
    pub of: usize,
}

impl HotSet {
    /// A hot set of `mib` mebibytes in a working set of `of_mib`, from `at_mib` on, or so that it
    /// ends at the end.
    ///
    /// `None` if it is empty or two of its places were the same page.
    #[must_use]
    pub fn new(mib: u64, stride: u64, at_mib: Option<u64>, of_mib: u64) -> Option<Self> {
        let in_pages = |mib: u64| usize::try_from(mib).ok()?.checked_mul(PAGES_PER_MIB);
        let (pages, of) = (in_pages(mib)?, in_pages(of_mib)?);
        let stride = usize::try_from(stride).ok()?;
        let reach = pages.checked_mul(stride)?;
        let first = match at_mib {
            Some(mib) => in_pages(mib)?,
            // What reaches round the end begins anywhere.
            None => of.saturating_sub(reach),
        };
        let distinct = reach <= of || common_divisor(stride, of) == 1;
        (pages > 0 && stride > 0 && pages <= of && first < of && distinct).then_some(Self {
            first,
            pages,
            stride,
            of,
        })
    }

    /// The `n`th page from the hottest on. From `pages` on they are no longer hot.
    #[must_use]
    #[inline]
    pub fn page(&self, n: usize) -> usize {
        let at = self.first + n * self.stride;
        if at < self.of { at } else { at % self.of }
    }

    /// All hot pages, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        (0..self.pages).map(|n| self.page(n))
    }
}

fn common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hot_set_when_no_place_is_given_ends_at_the_end() {
        let hot = HotSet::new(1, 1, None, 4).unwrap();

        assert_eq!(hot.page(hot.pages - 1), 4 * 256 - 1);
    }

    #[test]
    fn hot_set_when_pages_would_coincide_is_refused() {
        // 256 pages, each 8th of 1024: page 128 would be page 0 again.
        assert_eq!(HotSet::new(1, 8, None, 4), None);
        assert_eq!(HotSet::new(5, 1, None, 4), None);
        assert_eq!(HotSet::new(1, 1, Some(4), 4), None);
        assert_eq!(HotSet::new(0, 1, None, 4), None);
        assert!(HotSet::new(1, 7, None, 4).is_some());
    }

    proptest! {
        #[test]
        fn hot_set_when_accepted_has_distinct_pages_within_the_set(
            mib in 1..6_u64, stride in 1..3000_u64, at in proptest::option::of(0..6_u64), of in 1..6_u64,
        ) {
            if let Some(hot) = HotSet::new(mib, stride, at, of) {
                let pages: BTreeSet<_> = hot.iter().collect();

                prop_assert_eq!(pages.len(), hot.pages);
                prop_assert!(pages.iter().all(|page| *page < hot.of));
            }
        }
    }
}
