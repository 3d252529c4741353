//! Moving pinned pages to their tier.

use std::time::Duration;

use crate::engine::{
    VmEngine,
    mover::plan::{Candidate, Draft},
    pins::Way,
};
use crate::{addr::HUGE_PAGE, dual_heap::Placement, time::Time};

/// Ids that one plan looks at for pinned pages on the wrong tier, at most: some 100 µs.
const LOOK_AT_MOST: u32 = 1 << 15;
/// How long the search rests when none of them could be taken.
const REST: Duration = Duration::from_secs(1);

impl VmEngine {
    /// Drafts moves of pinned pages to their tier. Returns whether one waits for room on the fast tier.
    pub(crate) fn draft_pins(&mut self, now: Time, budget: u64, draft: &mut Draft) -> bool {
        if self.pins.is_empty() {
            return false;
        }
        let mut slow_room = self.slow_room();
        while draft.bytes < budget {
            let Some(page) = self.take_misplaced(now, Way::Down) else {
                break;
            };
            if page.page.bytes > slow_room {
                self.put_back(page, Placement::Fast);
                break;
            }
            slow_room -= page.page.bytes;
            draft.add(|d| &mut d.demote, page);
        }
        let mut room = self.room();
        self.draft_up(now, budget, draft, &mut room, &mut slow_room)
    }

    fn draft_up(
        &mut self,
        now: Time,
        budget: u64,
        draft: &mut Draft,
        room: &mut i64,
        slow_room: &mut u64,
    ) -> bool {
        let mut waits = false;
        // What victims of this draft free is there when they are gone: for those promoted then.
        let mut freed = 0;
        for way in [Way::UpAtAnyPrice, Way::UpAsFits] {
            while draft.bytes < budget {
                let Some(page) = self.take_misplaced(now, way) else {
                    break;
                };
                let size = i64::try_from(page.page.bytes).unwrap_or(i64::MAX);
                if *room >= size {
                    *room -= size;
                    draft.add(|d| &mut d.promote, page);
                    continue;
                }
                if way == Way::UpAtAnyPrice && freed < size {
                    // Headroom that lacks is owed first.
                    let need = size.saturating_sub(freed).saturating_sub((*room).min(0));
                    for cold in self.take_coldest(now, need, *slow_room) {
                        *slow_room -= cold.page.bytes;
                        freed += i64::try_from(cold.page.bytes).unwrap_or(i64::MAX);
                        draft.add(|d| &mut d.demote, cold);
                    }
                    let owed = (-*room).clamp(0, freed);
                    *room += owed;
                    freed -= owed;
                }
                if freed >= size {
                    freed -= size;
                    draft.add(|d| &mut d.then_promote, page);
                } else {
                    self.put_back(page, Placement::Slow);
                    waits = true;
                    break;
                }
            }
        }
        waits
    }

    /// Takes the coldest fast pages until they hold `need` bytes, or a batch, or as much as the slow
    /// tier has room for.
    fn take_coldest(&mut self, now: Time, need: i64, slow_room: u64) -> Vec<Candidate> {
        let need = u64::try_from(need).unwrap_or(0);
        let need = need.min(self.settings.batch_bytes.max(HUGE_PAGE));
        let mut taken = Vec::new();
        let mut bytes = 0;
        while bytes < need {
            let Some(cold) = self.take_coldest_fast(now) else {
                break;
            };
            if bytes + cold.page.bytes > slow_room {
                self.put_back(cold, Placement::Fast);
                break;
            }
            bytes += cold.page.bytes;
            taken.push(cold);
        }
        taken
    }

    /// Takes a pinned page that is on the wrong tier, going on where the last search ended.
    pub(crate) fn take_misplaced(&mut self, now: Time, way: Way) -> Option<Candidate> {
        if self.pins.misplaced_bytes(way) == 0 || now < self.pins.search(way).rest_until {
            return None;
        }
        let from = match way {
            Way::Down => Placement::Fast,
            Way::UpAtAnyPrice | Way::UpAsFits => Placement::Slow,
        };
        let all: u64 = self.pins.pieces().iter().map(|p| p.ids.len() as u64).sum();
        let mut left = LOOK_AT_MOST;
        while left > 0 {
            let search = *self.pins.search(way);
            if search.fruitless > all {
                let search = self.pins.search(way);
                (search.fruitless, search.rest_until) = (0, now + REST);
                return None;
            }
            let Some(piece) = self.pins.piece_after(way, search.cursor) else {
                // Round the end, which counts as a look: there may be no piece at all.
                let search = self.pins.search(way);
                search.cursor = 0;
                search.fruitless += 1;
                left -= 1;
                continue;
            };
            let start = piece.ids.start.max(search.cursor);
            let ids = start..piece.ids.end.min(start.saturating_add(left));
            let looked = ids.end - ids.start;
            left -= looked;
            if let Some(id) = self.heap.first_pinned(ids.clone(), from) {
                let search = self.pins.search(way);
                (search.cursor, search.fruitless) = (id.0, 0);
                let count = self.heap.count(id, now);
                self.heap.take_pinned(id)?;
                return self.candidate(id, count);
            }
            let search = self.pins.search(way);
            search.cursor = ids.end;
            search.fruitless += u64::from(looked);
        }
        None
    }
}
