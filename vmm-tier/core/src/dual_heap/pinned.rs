//! Pinned pages: they stand aside, go on gathering heat, and are never offered.

use std::ops::Range;

use super::{
    DualHeap, PageId, Placement,
    states::{States, Why},
    word::Slot,
};

impl DualHeap {
    /// Declares which ids are pinned: those of `ranges`, which are in rising order and disjoint, and no
    /// others. A page in flight, in cooldown or excluded stays so, and is pinned after that.
    pub fn set_pinned(&mut self, ranges: Vec<Range<u32>>) {
        let changed = self.pinned.replace(ranges);
        for ids in changed {
            let ids: Vec<u32> = self.pages.iter_in(ids).map(|(id, _)| id).collect();
            for id in ids {
                if matches!(self.why(id), None | Some(Why::Pinned)) {
                    self.put_back(id);
                }
            }
        }
    }

    /// Takes a pinned page into flight; see [`DualHeap::take`]. Returns where it lies, or `None` if it
    /// is not pinned or may not be taken.
    pub fn take_pinned(&mut self, id: PageId) -> Option<Placement> {
        States::take_pinned(self, id.0)
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

    pub(super) fn check_pinned(&self, id: u32, slot: Slot) -> Result<(), String> {
        let stands_so = match slot {
            Slot::Aside(index) => self.aside.get(index).map(|held| held.why == Why::Pinned),
            _ => None,
        };
        match (self.pinned.contains(id), stands_so) {
            (true, None) => Err(format!("page {id} is pinned, but in a heap")),
            (false, Some(true)) => Err(format!("page {id} stands aside as pinned, but is not")),
            _ => Ok(()),
        }
    }
}
