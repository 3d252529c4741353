//! Pinning and unpinning.

use std::ops::Range;

use crate::engine::{
    VmEngine,
    pins::{
        Way, hva_pieces,
        pin::{MAX_PINS, Pin, PinError, PinReport, PinStatus, WhenFull},
    },
};
use crate::{
    addr::{BASE_PAGE, Gpa, HUGE_PAGE, Hva},
    dual_heap::{PageId, Placement},
    moves::Page,
    pages::FOLD,
    settings::Tier,
    time::Time,
};

impl VmEngine {
    /// Pins a range to a tier: its pages are not moved for their heat any more, and those on the other
    /// tier are moved to this one before any page that is not pinned, within rate and headroom. Pages
    /// that become present later follow when they are seen. Pins outlive a change of the map.
    ///
    /// Whether the tier has room is a matter of now: with [`WhenFull::Refuse`] and
    /// [`WhenFull::Demote`] the whole range must fit, absent pages too, but nothing is set aside for it.
    ///
    /// # Errors
    /// See [`PinError`]; nothing has changed then.
    pub fn pin(&mut self, now: Time, pin: Pin) -> Result<PinReport, PinError> {
        self.check_place(&pin)?;
        self.check_room(now, &pin)?;
        self.pins.insert(pin);
        self.apply_pins(now);
        let made = self.pins.entries().find(|entry| entry.pin == pin);
        Ok(PinReport {
            pins: 1,
            bytes: pin.bytes,
            placed_bytes: made.map_or(0, |entry| entry.placed_bytes),
            elsewhere_bytes: made.map_or(0, |entry| entry.elsewhere_bytes),
        })
    }

    /// Sets pins that were set before, as if they had never gone: whether there is room was asked then, and
    /// what is in its place must not leave because the rest lacks room now. Says for each why not.
    pub fn pin_again(&mut self, now: Time, pins: &[Pin]) -> Vec<Result<(), PinError>> {
        let results: Vec<_> = pins
            .iter()
            .map(|&pin| {
                self.check_place(&pin)?;
                self.pins.insert(pin);
                Ok(())
            })
            .collect();
        // Once for all: each time looks at every pinned page.
        if results.iter().any(Result::is_ok) {
            self.apply_pins(now);
        }
        results
    }

    /// Removes all pins.
    pub fn unpin_all(&mut self, now: Time) -> PinReport {
        self.remove_pins(now, 0, u64::MAX)
    }

    /// Removes the pins that lie wholly in the range. Their pages stay where they are and take part in
    /// the exchange again.
    ///
    /// # Errors
    /// If the range would cut a pin, has none, or is not whole pages; nothing has changed then.
    pub fn unpin(&mut self, now: Time, start: Gpa, bytes: u64) -> Result<PinReport, PinError> {
        let end = range_end(start, bytes)?;
        let cut = [start.0, end - 1].into_iter().find_map(|at| {
            let pin = self.pins.overlapping(at, at + 1)?;
            (pin.start.0 < start.0 || pin.end() > end).then_some(pin)
        });
        if let Some(pin) = cut {
            return Err(PinError::Cut {
                start: pin.start.0,
                bytes: pin.bytes,
            });
        }
        let report = self.remove_pins(now, start.0, end);
        if report.pins == 0 {
            return Err(PinError::NoPin {
                start: start.0,
                bytes,
            });
        }
        Ok(report)
    }

    /// Removes the pins that begin in `start .. end`.
    fn remove_pins(&mut self, now: Time, start: u64, end: u64) -> PinReport {
        let mut report = PinReport::default();
        for entry in self.pins.remove(start, end) {
            report.pins += 1;
            report.bytes += entry.pin.bytes;
            report.placed_bytes += entry.placed_bytes;
            report.elsewhere_bytes += entry.elsewhere_bytes;
        }
        if report.pins > 0 {
            self.apply_pins(now);
        }
        report
    }

    /// All pins in rising order of address.
    #[must_use]
    pub fn pins(&self) -> Vec<PinStatus> {
        self.pins.statuses()
    }

    /// Whether the range is guest RAM that no pin has.
    fn check_place(&self, pin: &Pin) -> Result<(), PinError> {
        let end = range_end(pin.start, pin.bytes)?;
        let map = self.map.as_ref().ok_or(PinError::NoMap)?;
        let mut at = pin.start.0;
        while at < end {
            let (_, range) = map.gpa_to_hva(Gpa(at)).ok_or(PinError::NotRam(at))?;
            at = range.gpa_end();
        }
        let in_the_way = |other: &Pin| PinError::Overlaps {
            start: other.start.0,
            bytes: other.bytes,
        };
        if let Some(other) = self.pins.overlapping(pin.start.0, end) {
            return Err(in_the_way(other));
        }
        // The guest may see the same memory at another address.
        for (hva, len) in hva_pieces(map, pin.start.0, end) {
            let other = self.pins.entries().find(|other| {
                hva_pieces(map, other.pin.start.0, other.pin.end())
                    .any(|(at, bytes)| at.0 < hva.0 + len && hva.0 < at.0 + bytes)
            });
            if let Some(other) = other {
                return Err(in_the_way(&other.pin));
            }
        }
        if self.pins.len() >= MAX_PINS {
            return Err(PinError::TooMany);
        }
        Ok(())
    }

    /// Whether the tier can take what is not there yet, if the pin asks for that.
    fn check_room(&self, now: Time, pin: &Pin) -> Result<(), PinError> {
        if pin.when_full == WhenFull::Fill {
            return Ok(());
        }
        let mut placed_bytes = 0;
        let wanted = placement_of(pin.tier);
        for (hva, len) in self
            .map
            .iter()
            .flat_map(|map| hva_pieces(map, pin.start.0, pin.end()))
        {
            for (_, page, placement) in self.pages_in(now, hva, len) {
                placed_bytes += match placement == wanted {
                    true => overlap(page, hva, len),
                    false => 0,
                };
            }
        }
        let need_bytes = pin.bytes - placed_bytes.min(pin.bytes);
        let free = self.free_bytes(pin.tier);
        let fast = self.bytes.of(Tier::Fast);
        let room = match pin.tier {
            Tier::Slow => free,
            Tier::Fast => free.min(self.limit_beyond(fast)),
        };
        let mut room_bytes = room.saturating_sub(self.claimed_bytes(pin.tier));
        let may_demote = pin.tier == Tier::Fast && pin.when_full == WhenFull::Demote;
        if need_bytes > room_bytes && may_demote && self.slow_room() >= BASE_PAGE {
            // All that is not pinned may be demoted.
            let kept = self.pinned_fast_bytes() + placed_bytes;
            room_bytes = free
                .saturating_add(fast.saturating_sub(kept))
                .min(self.limit_beyond(kept))
                .saturating_sub(self.claimed_bytes(pin.tier));
        }
        if need_bytes > room_bytes {
            return Err(PinError::NoRoom {
                tier: pin.tier,
                need_bytes,
                room_bytes,
            });
        }
        Ok(())
    }

    /// Free bytes of a tier, beyond watermarks and headroom.
    fn free_bytes(&self, tier: Tier) -> u64 {
        let (nodes, margin) = match tier {
            Tier::Fast => (&self.tiers.fast, self.settings.headroom_bytes),
            Tier::Slow => (&self.tiers.slow, 0),
        };
        self.nodes_of(nodes)
            .map(|node| u64::try_from(node.room_bytes(margin)).unwrap_or(0))
            .fold(0, u64::saturating_add)
    }

    /// What pins have still to move to a tier.
    fn claimed_bytes(&self, tier: Tier) -> u64 {
        let ways: &[Way] = match tier {
            Tier::Fast => &[Way::UpAtAnyPrice, Way::UpAsFits],
            Tier::Slow => &[Way::Down],
        };
        ways.iter().map(|&way| self.pins.misplaced_bytes(way)).sum()
    }

    fn limit_beyond(&self, bytes: u64) -> u64 {
        let limit = self.settings.fast_limit_bytes;
        limit.map_or(u64::MAX, |limit| limit.saturating_sub(bytes))
    }

    /// Bytes on the fast tier that pins keep there.
    pub(crate) fn pinned_fast_bytes(&self) -> u64 {
        let fast = self.pins.entries().filter(|e| e.pin.tier == Tier::Fast);
        fast.map(|entry| entry.placed_bytes).sum()
    }

    /// Finds anew what the pins stand for, and counts their bytes.
    pub(crate) fn apply_pins(&mut self, now: Time) {
        self.pins.forget_counts();
        self.resolve_pins();
        let runs: Vec<Range<u32>> = self.pins.pieces().iter().map(|p| p.ids.clone()).collect();
        for run in runs {
            for (id, placement, _) in self.heap.iter_in(run, now) {
                if let Some(page) = self.index.page(id) {
                    self.pins
                        .replace(id, page.bytes, Placement::Untracked, placement);
                }
            }
        }
    }

    fn resolve_pins(&mut self) {
        let ranges = match &self.map {
            Some(map) => self.pins.resolve(map, &self.index),
            None => Vec::new(),
        };
        self.heap.set_pinned(ranges);
    }

    /// Takes note that the huge page at `head` was folded or unfolded, while its pages are untracked:
    /// what lies partly in a pin is pinned whole.
    pub(crate) fn refolded(&mut self, head: Hva) {
        if self.pins.is_empty() {
            return;
        }
        let pieces = self.index.touched(head, HUGE_PAGE);
        let Some(first) = pieces.first().map(|ids| ids.start) else {
            return;
        };
        let all = first..first + FOLD;
        let touching = |ids: &Range<u32>| ids.start < all.end && all.start < ids.end;
        let covers = |ids: &Range<u32>| ids.start <= all.start && all.end <= ids.end;
        let mut touched = self.pins.pieces().iter().map(|piece| &piece.ids);
        // Wholly in or wholly out: the ids mean the same as before.
        if touched.any(|ids| touching(ids) && !covers(ids)) {
            self.resolve_pins();
        }
    }

    /// The tracked pages that `hva .. hva + len` touches.
    pub(crate) fn pages_in(
        &self,
        now: Time,
        hva: Hva,
        len: u64,
    ) -> impl Iterator<Item = (PageId, Page, Placement)> + '_ {
        self.index
            .touched(hva, len)
            .into_iter()
            .flat_map(move |ids| self.heap.iter_in(ids, now))
            .filter_map(|(id, placement, _)| Some((id, self.index.page(id)?, placement)))
    }
}

pub(crate) const fn placement_of(tier: Tier) -> Placement {
    match tier {
        Tier::Fast => Placement::Fast,
        Tier::Slow => Placement::Slow,
    }
}

/// Bytes of a page that lie in `hva .. hva + len`.
fn overlap(page: Page, hva: Hva, len: u64) -> u64 {
    let end = (page.hva.0 + page.bytes).min(hva.0 + len);
    end.saturating_sub(page.hva.0.max(hva.0))
}

fn range_end(start: Gpa, bytes: u64) -> Result<u64, PinError> {
    let is_whole =
        bytes > 0 && start.0.is_multiple_of(BASE_PAGE) && bytes.is_multiple_of(BASE_PAGE);
    start
        .0
        .checked_add(bytes)
        .filter(|_| is_whole)
        .ok_or(PinError::Unaligned {
            start: start.0,
            bytes,
        })
}
