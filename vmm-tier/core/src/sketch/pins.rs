//! Pinned pages: they go on gathering heat, and are never offered.
//!
//! They may be a good part of the guest, so they take no entry of the side table: their ranges say which they
//! are, and their places where they lie.

use std::ops::Range;

use super::{SketchHeat, places::Place};
use crate::{
    dual_heap::states::States,
    dual_heap::{PageId, Placement},
};

impl SketchHeat {
    /// Declares which ids are pinned: those of `ranges`, which are in rising order and disjoint, and no
    /// others. A page in flight, in cooldown or excluded stays so, and is pinned after that.
    pub fn set_pinned(&mut self, ranges: Vec<Range<u32>>) {
        if self.pinned.replace(ranges).is_empty() {
            return;
        }
        // Pages may be offered now that no set has. To look at all of them once is cheaper than to propose each.
        self.hottest.doubt();
        self.coldest.doubt();
        self.stats.pages.pinned = self.count_pinned();
    }

    /// Takes a pinned page into flight; see [`SketchHeat::take`]. Returns where it lies, or `None` if it
    /// is not pinned or may not be taken.
    pub fn take_pinned(&mut self, id: PageId) -> Option<Placement> {
        States::take_pinned(self, id.0)
    }

    /// The first of `ids` that is pinned, lies there and may be taken.
    #[must_use]
    pub fn first_pinned(&self, ids: Range<u32>, placement: Placement) -> Option<PageId> {
        let place = match placement {
            Placement::Untracked => return None,
            Placement::Fast => Place::Fast,
            Placement::Slow => Place::Slow,
        };
        self.pinned
            .among(ids)
            .find_map(|ids| self.places.next(place, ids.start, ids.end))
            .map(PageId)
    }

    /// Pinned pages that do not stand aside.
    pub(super) fn count_pinned(&self) -> u32 {
        self.count_pinned_at(Place::Fast) + self.count_pinned_at(Place::Slow)
    }

    /// The number of pages that may be taken there.
    pub(super) fn count_offered(&self, place: Place) -> u32 {
        self.places.count(place, 0..self.places.len()) - self.count_pinned_at(place)
    }

    fn count_pinned_at(&self, place: Place) -> u32 {
        self.pinned
            .among(0..self.places.len())
            .map(|ids| self.places.count(place, ids))
            .sum()
    }
}
