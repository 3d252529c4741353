//! Pinned pages: they stand aside, go on gathering heat, and are never offered.

use std::ops::Range;

use super::{
    DualHeap, PageId, Placement,
    aside::{Held, Why},
    word::Slot,
};

impl DualHeap {
    /// Declares which ids are pinned: those of `ranges`, which are in rising order and disjoint, and no
    /// others. A page in flight, in cooldown or excluded stays so, and is pinned after that.
    pub fn set_pinned(&mut self, ranges: Vec<Range<u32>>) {
        let old = std::mem::replace(&mut self.pinned, ranges);
        let changed: Vec<Range<u32>> = without(&old, &self.pinned)
            .into_iter()
            .chain(without(&self.pinned, &old))
            .collect();
        for ids in changed {
            let ids: Vec<u32> = self.pages.iter_in(ids).map(|(id, _)| id).collect();
            for id in ids {
                self.put_anew(id);
            }
        }
    }

    /// Takes a pinned page into flight; see [`DualHeap::take`]. Returns where it lies, or `None` if it
    /// is not pinned or may not be taken.
    pub fn take_pinned(&mut self, id: PageId) -> Option<Placement> {
        let Slot::Aside(index) = self.pages.get(id.0) else {
            return None;
        };
        let Held {
            placement,
            why,
            key,
            ..
        } = *self.aside.get(index)?;
        if why != Why::Pinned {
            return None;
        }
        self.detach(id.0)?;
        self.set_aside(Held {
            id: id.0,
            key,
            placement,
            why: Why::Flight,
        });
        Some(placement)
    }

    /// The first of `ids` that is pinned, lies there and may be taken.
    #[must_use]
    pub fn first_pinned(&self, ids: Range<u32>, placement: Placement) -> Option<PageId> {
        let is_wanted = |slot| match slot {
            Slot::Aside(index) => self
                .aside
                .get(index)
                .is_some_and(|held| held.why == Why::Pinned && held.placement == placement),
            _ => false,
        };
        let mut pages = self.pages.iter_in(ids);
        pages
            .find(|&(_, slot)| is_wanted(slot))
            .map(|(id, _)| PageId(id))
    }

    pub(super) fn is_pinned(&self, id: u32) -> bool {
        // Nearly always there are none.
        if self.pinned.is_empty() {
            return false;
        }
        let after = self.pinned.partition_point(|ids| ids.start <= id);
        after > 0 && id < self.pinned[after - 1].end
    }

    pub(super) fn check_pinned(&self, id: u32, slot: Slot) -> Result<(), String> {
        let stands_so = match slot {
            Slot::Aside(index) => self.aside.get(index).map(|held| held.why == Why::Pinned),
            _ => None,
        };
        match (self.is_pinned(id), stands_so) {
            (true, None) => Err(format!("page {id} is pinned, but in a heap")),
            (false, Some(true)) => Err(format!("page {id} stands aside as pinned, but is not")),
            _ => Ok(()),
        }
    }

    /// Puts a page where its pin, or its lack of one, wants it.
    fn put_anew(&mut self, id: u32) {
        let placement = self.placement(id);
        let held = match self.pages.get(id) {
            Slot::Aside(index) => self.aside.get(index).map(|held| held.why),
            _ => None,
        };
        if matches!(held, None | Some(Why::Pinned))
            && let Some(detached) = self.detach(id)
        {
            self.attach(id, placement, detached.key);
        }
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
}
