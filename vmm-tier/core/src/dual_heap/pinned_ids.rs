//! The ids that are pinned.

use std::ops::Range;

/// Ranges of ids, in rising order and disjoint.
#[derive(Debug, Default)]
pub(super) struct PinnedIds(Vec<Range<u32>>);

impl PinnedIds {
    /// Pins the ids of `ranges`, in rising order and disjoint, and no others. Returns the ids whose pin
    /// came or went.
    pub(super) fn replace(&mut self, ranges: Vec<Range<u32>>) -> Vec<Range<u32>> {
        let old = std::mem::replace(&mut self.0, ranges);
        let gone = without(&old, &self.0);
        gone.into_iter().chain(without(&self.0, &old)).collect()
    }

    /// Whether no id is pinned, as in nearly all guests.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this id is pinned.
    #[inline]
    pub(super) fn contains(&self, id: u32) -> bool {
        if self.is_empty() {
            return false;
        }
        let after = self.0.partition_point(|ids| ids.start <= id);
        after > 0 && id < self.0[after - 1].end
    }
}

/// The ids of `these` that are not in `those`. All ranges are in rising order and disjoint.
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
    fn ids_when_replaced_tell_which_came_and_went() {
        let mut pinned = PinnedIds::default();
        assert_eq!(pinned.replace(vec![2..5, 8..10]), vec![2..5, 8..10]);
        assert_eq!(
            [1, 2, 4, 5].map(|id| pinned.contains(id)),
            [false, true, true, false]
        );
        assert_eq!(
            pinned.replace(vec![4..6, 6..8]),
            vec![2..4, 8..10, 5..6, 6..8]
        );
    }
}
