//! Which ids are pinned.

use std::ops::Range;

/// Ranges of ids in rising order and disjoint.
#[derive(Debug, Default)]
pub(super) struct PinnedIds(Vec<Range<u32>>);

impl PinnedIds {
    /// Takes `ranges`, in rising order and disjoint, for all that are pinned. Returns the ids that were not
    /// before, or are not any more.
    pub(super) fn replace(&mut self, ranges: Vec<Range<u32>>) -> Vec<Range<u32>> {
        let old = std::mem::replace(&mut self.0, ranges);
        let gone = without(&old, &self.0);
        gone.into_iter().chain(without(&self.0, &old)).collect()
    }

    /// Whether none are; nearly always so.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this id is pinned.
    #[inline]
    pub(super) fn contains(&self, id: u32) -> bool {
        !self.is_empty() && self.end_of(id).is_some()
    }

    /// The end of the range that an id is in, if it is in one.
    pub(super) fn end_of(&self, id: u32) -> Option<u32> {
        let after = self.0.partition_point(|ids| ids.start <= id);
        let ids = self.0.get(after.checked_sub(1)?)?;
        (id < ids.end).then_some(ids.end)
    }
}

/// What of `these` is not in `those`. Both are in rising order and disjoint; so is the result.
fn without(these: &[Range<u32>], those: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut left = Vec::new();
    for range in these {
        let mut start = range.start;
        let from = those.partition_point(|other| other.end <= range.start);
        for other in &those[from..] {
            if other.start >= range.end {
                break;
            }
            if start < other.start {
                left.push(start..other.start);
            }
            start = start.max(other.end);
        }
        if start < range.end {
            left.push(start..range.end);
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_when_ranges_cross_is_what_is_left() {
        let left = without(&[0..10, 20..30, 40..50], &[5..25, 26..27, 45..60]);
        assert_eq!(left, vec![0..5, 25..26, 27..30, 40..45]);
        assert_eq!(without(&[3..4, 5..6], &[]), vec![3..4, 5..6]);
        assert_eq!(without(&[3..4, 5..6], &[0..4, 5..9]), vec![]);
    }

    #[test]
    fn ids_when_asked_for_in_part_are_cut() {
        let mut pinned = PinnedIds::default();
        assert_eq!(pinned.replace(vec![2..5, 8..10]), vec![2..5, 8..10]);
        assert_eq!(
            [1, 2, 4, 5].map(|id| pinned.contains(id)),
            [false, true, true, false]
        );
        assert_eq!(pinned.end_of(9), Some(10));
        assert_eq!(
            pinned.replace(vec![4..6, 6..8]),
            vec![2..4, 8..10, 5..6, 6..8]
        );
    }
}
