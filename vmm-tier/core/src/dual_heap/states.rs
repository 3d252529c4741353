//! The state of a page: where it lies, why it may not be taken, and the rules by which that changes.
//!
//! ```text
//!   untracked ◄──► may be taken ──take──► in flight ──settle──► cooling down
//!                    ▲   ▲  │                 │                      │
//!          unpinned ─┘   │  └─exclude─► excluded ◄──exclude─┬────────┤
//!                        └──────placed elsewhere────────────┘  tick ─┘
//! ```

use std::ops::Range;

use super::{
    DualHeap, PageId, Placement,
    front::Entry,
    side_table::{Held, Why},
    word::Slot,
};
use crate::time::Time;

/// Numbers of pages by tier, and by the reason why they may not be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateCounts {
    /// Pages in the fast tier.
    pub fast: u32,
    /// Pages in the slow tier.
    pub slow: u32,
    /// Pages whose move is under way.
    pub in_flight: u32,
    /// Pages in cooldown.
    pub cooling: u32,
    /// Pages excluded.
    pub excluded: u32,
    /// Pinned pages that are neither in flight nor in cooldown nor excluded.
    pub pinned: u32,
}

impl StateCounts {
    /// Counts one page more.
    pub(super) fn add(&mut self, placement: Placement, why: Option<Why>) {
        *self.at(placement) += 1;
        if let Some(why) = why {
            *self.of(why) += 1;
        }
    }

    /// Counts one page less.
    pub(super) fn remove(&mut self, placement: Placement, why: Option<Why>) {
        *self.at(placement) -= 1;
        if let Some(why) = why {
            *self.of(why) -= 1;
        }
    }

    /// The number of pages with this placement, of `pages` in all.
    pub(super) fn len(&self, placement: Placement, pages: u32) -> u32 {
        match placement {
            Placement::Untracked => pages - self.fast - self.slow,
            Placement::Fast => self.fast,
            Placement::Slow => self.slow,
        }
    }

    /// The number of pages of a tier.
    pub(super) fn at(&mut self, placement: Placement) -> &mut u32 {
        if placement == Placement::Fast {
            &mut self.fast
        } else {
            &mut self.slow
        }
    }

    fn of(&mut self, why: Why) -> &mut u32 {
        match why {
            Why::Flight => &mut self.in_flight,
            Why::Cooling(_) => &mut self.cooling,
            Why::Excluded => &mut self.excluded,
            Why::Pinned => &mut self.pinned,
        }
    }
}

/// The key and the state of a page that was taken out of its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Detached {
    key: f32,
    why: Option<Why>,
}

impl DualHeap {
    // --- placement ---------------------------------------------------------------------------

    /// Takes the kernel's word for where a page lies.
    ///
    /// A page keeps its heat when it changes its tier. `Untracked` forgets the page, in whatever state
    /// it is. A page in flight or in cooldown stays so. An excluded page may be taken again if its
    /// placement differs from the placement it had. Returns the placement it had.
    pub fn place(&mut self, id: PageId, placement: Placement) -> Placement {
        let PageId(page) = id;
        if page >= self.pages.len() {
            return Placement::Untracked;
        }
        let old = self.placement(id);
        if old == placement {
            return old;
        }
        let detached = self.detach(page);
        let key = detached.map_or(0.0, |detached| detached.key);
        match (placement, detached.and_then(|detached| detached.why)) {
            (Placement::Untracked, _) => self.pages.trim(page),
            (_, Some(why @ (Why::Flight | Why::Cooling(_)))) => {
                self.set_aside(page, placement, key, why);
            }
            (_, Some(Why::Excluded | Why::Pinned) | None) => self.attach(page, placement, key),
        }
        old
    }

    /// Ends a flight with the kernel's word for where the page lies. With `available_at` the page
    /// may not be taken before that time. Heat is kept; `Untracked` forgets the page.
    ///
    /// Returns whether the page was in flight. If it was not, the kernel is believed all the same.
    pub fn settle(&mut self, id: PageId, placement: Placement, available_at: Option<Time>) -> bool {
        let PageId(page) = id;
        if page >= self.pages.len() {
            return false;
        }
        let detached = self.detach(page);
        let key = detached.map_or(0.0, |detached| detached.key);
        match (placement, available_at) {
            (Placement::Untracked, _) => self.pages.trim(page),
            (_, None) => self.attach(page, placement, key),
            (_, Some(end)) => self.set_aside(page, placement, key, Why::Cooling(end)),
        }
        detached.is_some_and(|detached| detached.why == Some(Why::Flight))
    }

    /// Keeps a page from being taken until its placement changes; ends its flight or cooldown. Returns
    /// whether the page is tracked.
    pub fn exclude(&mut self, id: PageId) -> bool {
        self.move_aside(id, Why::Excluded).is_some()
    }

    // --- flights and cooldowns ---------------------------------------------------------------

    /// Takes a page into flight: it is no longer offered but goes on gathering heat, until
    /// [`DualHeap::settle`]. Returns where it lies, or `None` if it may not be taken.
    pub fn take(&mut self, id: PageId) -> Option<Placement> {
        self.why(id.0)
            .is_none()
            .then(|| self.move_aside(id, Why::Flight))?
    }

    /// Takes a pinned page into flight; see [`DualHeap::take`]. Returns where it lies, or `None` if it
    /// is not pinned or may not be taken.
    pub fn take_pinned(&mut self, id: PageId) -> Option<Placement> {
        (self.why(id.0) == Some(Why::Pinned)).then(|| self.move_aside(id, Why::Flight))?
    }

    /// Ends the cooldowns that are over at `now` and moves the landmark if that is due. Returns the
    /// number of pages that may be taken again.
    pub fn tick(&mut self, now: Time) -> u32 {
        let mut released = 0;
        while let Some(id) = self.side_table.next_ended(now, &self.pages) {
            self.put_back(id);
            released += 1;
        }
        self.advance(now);
        released
    }

    // --- pins --------------------------------------------------------------------------------

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

    /// The first of `ids` that is pinned, lies there and may be taken.
    #[must_use]
    pub fn first_pinned(&self, ids: Range<u32>, placement: Placement) -> Option<PageId> {
        let is_wanted = |slot| match slot {
            Slot::Aside(index) => self
                .side_table
                .get(index)
                .is_some_and(|held| held.why == Why::Pinned && held.placement == placement),
            _ => false,
        };
        let mut pages = self.pages.iter_in(ids);
        pages
            .find(|&(_, slot)| is_wanted(slot))
            .map(|(id, _)| PageId(id))
    }

    /// Whether a page stands aside as pinned exactly if its id is pinned.
    pub(super) fn check_pinned(&self, id: u32, slot: Slot) -> Result<(), String> {
        let stands_so = match slot {
            Slot::Aside(index) => self
                .side_table
                .get(index)
                .map(|held| held.why == Why::Pinned),
            _ => None,
        };
        match (self.pinned.contains(id), stands_so) {
            (true, None) => Err(format!("page {id} is pinned, but in a heap")),
            (false, Some(true)) => Err(format!("page {id} stands aside as pinned, but is not")),
            _ => Ok(()),
        }
    }

    // --- parts -------------------------------------------------------------------------------

    /// Why a page may not be taken; `None` if it may, or is untracked.
    pub(super) fn why(&self, id: u32) -> Option<Why> {
        match self.pages.get(id) {
            Slot::Aside(index) => self.side_table.get(index).map(|held| held.why),
            _ => None,
        }
    }

    /// Takes a page out of its place; it is untracked until it is attached or set aside.
    pub(super) fn detach(&mut self, id: u32) -> Option<Detached> {
        let slot = self.pages.get(id);
        let placement = self.placement(PageId(id));
        let (key, why) = match slot {
            Slot::Untracked => return None,
            // An entry in the fast tier's front stays behind; see there.
            Slot::FastNever | Slot::SlowNever => (0.0, None),
            Slot::Fast(key) | Slot::Slow(key) => (key, None),
            Slot::Front(index) => (self.slow.remove(index, &mut self.pages).key, None),
            Slot::Aside(index) => {
                let held = self.side_table.remove(index)?;
                (held.key, Some(held.why))
            }
        };
        self.pages.set(id, Slot::Untracked);
        match slot {
            Slot::Slow(key) => self.slow.left(Entry { key, id }, &mut self.pages),
            Slot::Front(_) => self.slow.left(Entry { key: 0.0, id }, &mut self.pages),
            _ => {}
        }
        self.stats.pages.remove(placement, why);
        Some(Detached { key, why })
    }

    /// Puts an untracked page into its tier's heap, or aside if it is pinned.
    pub(super) fn attach(&mut self, id: u32, placement: Placement, key: f32) {
        if self.pinned.contains(id) {
            self.set_aside(id, placement, key, Why::Pinned);
            return;
        }
        self.stats.pages.add(placement, None);
        match (placement, key > 0.0) {
            (_, true) => self.give_key(id, placement, key),
            (Placement::Fast, false) => self.pages.set(id, Slot::FastNever),
            (_, false) => self.pages.set(id, Slot::SlowNever),
        }
    }

    /// Puts an untracked page aside.
    fn set_aside(&mut self, id: u32, placement: Placement, key: f32, why: Why) {
        self.stats.pages.add(placement, Some(why));
        let index = self.side_table.insert(Held {
            id,
            key,
            placement,
            why,
        });
        self.pages.set(id, Slot::Aside(index));
    }

    /// Puts a page where its pin, or its lack of a pin, wants it.
    fn put_back(&mut self, id: u32) {
        let placement = self.placement(PageId(id));
        if let Some(detached) = self.detach(id) {
            self.attach(id, placement, detached.key);
        }
    }

    /// Puts a page aside; returns where it lies, `None` if it is not tracked.
    fn move_aside(&mut self, id: PageId, why: Why) -> Option<Placement> {
        let placement = self.placement(id);
        let detached = self.detach(id.0)?;
        self.set_aside(id.0, placement, detached.key, why);
        Some(placement)
    }
}
