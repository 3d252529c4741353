//! Which page is offered next: the best of a tier, found in its set of candidates or among all pages.

use super::{
    SketchHeat,
    candidates::{Best, Entry},
    places::{Place, Places},
};
use crate::{
    dual_heap::pinned_ids::PinnedIds,
    dual_heap::{PageId, Placement},
    time::Time,
};

impl SketchHeat {
    /// The best page of a tier that may be taken: hottest of the slow, coldest of the fast one.
    pub(super) fn best(&mut self, tier: Placement, now: Time) -> Option<(PageId, f64)> {
        loop {
            let (set, best, wanted) = match tier {
                Placement::Fast => (&mut self.coldest, Best::Coldest, Place::Fast),
                _ => (&mut self.hottest, Best::Hottest, Place::Slow),
            };
            let top = match set.top() {
                Some(top) if top.rank() >= set.bar() => top,
                // Nobody knows what is below the bar.
                _ if set.bar() > 0 => {
                    self.refill(tier);
                    continue;
                }
                _ => return None,
            };
            if self.places.get(top.id()) != wanted || self.pinned.contains(top.id()) {
                set.drop_top();
                continue;
            }
            let key = self.sketch.key(top.id());
            let rank = best.rank(key);
            if rank == top.rank() {
                return Some((PageId(top.id()), self.sketch.decay().value(key, now)));
            }
            set.mend_top(rank);
        }
    }

    /// Looks for a tier's best pages among all. Afterwards the top is right, or there is none.
    fn refill(&mut self, tier: Placement) {
        self.stats.refills += 1;
        let (sketch, places, pinned) = (&self.sketch, &self.places, &self.pinned);
        if tier == Placement::Slow {
            // Of millions of counts few are above the bar as it rises: whose the others are is not asked.
            self.hottest.refill_by(|offer| {
                let mut bar = 0;
                sketch.for_each_above(|id, key| {
                    if places.get(id) == Place::Slow && !pinned.contains(id) {
                        bar = offer(Entry::new(Best::Hottest.rank(key), id));
                    }
                    Best::Hottest.key(bar)
                });
            });
            return;
        }
        // Pages without a count are as good as any: half a set of them is enough for now. They are
        // found soon: no more pages have a count than the sketch has slots.
        let nothing = Best::Coldest.rank(0.0);
        let mut missing = self.coldest.capacity() / 2;
        let mut cursor = self.cursor;
        let start = cursor;
        let mut wrapped = false;
        let pages = std::iter::from_fn(|| {
            if missing == 0 {
                return None;
            }
            let mut next = next_offered_fast(places, pinned, cursor);
            if next.is_none() && !wrapped {
                wrapped = true;
                next = next_offered_fast(places, pinned, 0);
            }
            let id = next.filter(|&id| !wrapped || id < start)?;
            cursor = id + 1;
            let rank = Best::Coldest.rank(sketch.key(id));
            missing -= usize::from(rank == nothing);
            Some(Entry::new(rank, id))
        });
        self.coldest.refill(pages);
        self.cursor = cursor;
        if missing == 0 {
            self.coldest.raise_bar(nothing);
        }
    }

    /// The first fast page from `first` on that may be taken.
    pub(super) fn next_offered_fast(&self, first: u32) -> Option<u32> {
        next_offered_fast(&self.places, &self.pinned, first)
    }

    /// Offers a page that may be taken to its tier's set.
    pub(super) fn propose(&mut self, id: u32, tier: Placement, key: f32) {
        let (set, best, wanted) = match tier {
            Placement::Fast => (&mut self.coldest, Best::Coldest, Place::Fast),
            _ => (&mut self.hottest, Best::Hottest, Place::Slow),
        };
        let rank = best.rank(key);
        if !set.wants(rank) || self.pinned.contains(id) {
            return;
        }
        if set.is_full() {
            let (sketch, places, pinned) = (&self.sketch, &self.places, &self.pinned);
            set.compact(|id| {
                if places.get(id) == wanted && !pinned.contains(id) {
                    best.rank(sketch.key(id))
                } else {
                    0
                }
            });
            self.stats.compactions += 1;
            if !set.wants(rank) {
                return;
            }
        }
        set.push(Entry::new(rank, id));
    }
}

fn next_offered_fast(places: &Places, pinned: &PinnedIds, first: u32) -> Option<u32> {
    let mut next = first;
    loop {
        let id = places.next(Place::Fast, next, places.len())?;
        match pinned.end_of(id) {
            Some(end) => next = end,
            None => return Some(id),
        }
    }
}
