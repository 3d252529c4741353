//! Pins: ranges of guest memory that stay on one tier, whatever their heat.
//!
//! A pin names guest-physical addresses. Which pages those are changes: with the map, and with huge
//! pages that the kernel makes and splits. [`Pins`] keeps the *pieces* (runs of page ids) that every pin
//! stands for now, and how many bytes of them lie where. A page that lies only partly in a pin belongs
//! to it whole; a page that two pins share belongs to the lower one.

pub(super) mod pin;

use std::{collections::BTreeMap, ops::Range, time::Duration};

use self::pin::{Pin, PinStatus, PinsSnapshot, WhenFull};
use crate::{
    addr::Hva,
    dual_heap::{PageId, Placement},
    map::GuestMemoryMap,
    pages::PageIndex,
    settings::Tier,
    time::Time,
};

/// Ids that one search for misplaced pages looks at: some 100 µs.
const LOOK_AT_MOST: u32 = 1 << 15;
/// How long a search rests when none of the misplaced pages could be taken.
const REST: Duration = Duration::from_secs(1);

/// A run of ids that belong to a pin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) ids: Range<u32>,
    /// Where the pin begins: its name.
    pub(super) pin: u64,
}

/// A pin and the bytes of its present pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) pin: Pin,
    pub(super) placed_bytes: u64,
    pub(super) elsewhere_bytes: u64,
}

/// The pins whose pages are moved in the same way. Each looks for its pages by itself, so that pages
/// that wait for room keep none from moving that need none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To the slow tier.
    Down,
    /// To the fast tier, making room.
    UpAtAnyPrice,
    /// To the fast tier, while there is room.
    UpAsFits,
}

/// Where the search for misplaced pages of a [`Way`] goes on.
#[derive(Clone, Copy, Debug, Default)]
struct Search {
    cursor: u32,
    /// Ids looked at since a page was found.
    fruitless: u64,
    /// Set when none of them could be taken.
    rest_until: Time,
}

/// All pins; see the [module](self).
#[derive(Debug, Default)]
pub(super) struct Pins {
    entries: BTreeMap<u64, Entry>,
    /// In rising order, disjoint.
    pieces: Vec<Piece>,
    searches: [Search; 3],
}

impl Way {
    const fn of(pin: &Pin) -> Self {
        match (pin.tier, pin.when_full) {
            (Tier::Slow, _) => Self::Down,
            (Tier::Fast, WhenFull::Demote) => Self::UpAtAnyPrice,
            (Tier::Fast, WhenFull::Refuse | WhenFull::Fill) => Self::UpAsFits,
        }
    }
}

impl Entry {
    fn replace(&mut self, bytes: u64, old: Placement, new: Placement) {
        let on_tier = |placement| match (self.pin.tier, placement) {
            (_, Placement::Untracked) => None,
            (Tier::Fast, Placement::Fast) | (Tier::Slow, Placement::Slow) => Some(true),
            _ => Some(false),
        };
        let (old, new) = (on_tier(old), on_tier(new));
        for (is_there, gains) in [(old, false), (new, true)] {
            let count = match is_there {
                Some(true) => &mut self.placed_bytes,
                Some(false) => &mut self.elsewhere_bytes,
                None => continue,
            };
            *count = match gains {
                true => *count + bytes,
                false => *count - bytes,
            };
        }
    }

    pub(super) fn status(&self) -> PinStatus {
        let Pin {
            start,
            bytes,
            tier,
            when_full,
        } = self.pin;
        PinStatus {
            start,
            bytes,
            tier,
            when_full,
            placed_bytes: self.placed_bytes,
            elsewhere_bytes: self.elsewhere_bytes,
        }
    }
}

impl Pins {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// In rising order of address.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The pin that a page belongs to.
    pub(super) fn of(&self, id: PageId) -> Option<&Entry> {
        let after = self.pieces.partition_point(|piece| piece.ids.start <= id.0);
        let piece = self.pieces.get(after.checked_sub(1)?)?;
        (id.0 < piece.ids.end).then(|| self.entries.get(&piece.pin))?
    }

    /// The first pin that has a part of the guest-physical `start .. end`.
    pub(super) fn overlapping(&self, start: u64, end: u64) -> Option<&Pin> {
        let before = self.entries.range(..end).next_back();
        // Pins do not overlap each other, so only the last of those that begin before the end can reach
        // into the range from below; the first is wanted.
        let inside = self.entries.range(start..end).next();
        let below = self.entries.range(..start).next_back();
        below
            .into_iter()
            .chain(inside)
            .chain(before)
            .map(|(_, entry)| &entry.pin)
            .find(|pin| pin.overlaps(start, end))
    }

    pub(super) fn insert(&mut self, pin: Pin) {
        let entry = Entry {
            pin,
            placed_bytes: 0,
            elsewhere_bytes: 0,
        };
        self.entries.insert(pin.start.0, entry);
    }

    /// Removes the pins that begin in `start .. end`.
    pub(super) fn remove(&mut self, start: u64, end: u64) -> Vec<Entry> {
        let removed: Vec<Entry> = self.entries.range(start..end).map(|(_, e)| *e).collect();
        for entry in &removed {
            self.entries.remove(&entry.pin.start.0);
        }
        removed
    }

    /// Finds the pages that the pins stand for now; counts are left unchanged. Returns the pages' ids.
    pub(super) fn resolve(&mut self, map: &GuestMemoryMap, index: &PageIndex) -> Vec<Range<u32>> {
        let mut pieces = Vec::new();
        for entry in self.entries.values() {
            for (hva, len) in hva_pieces(map, entry.pin.start.0, entry.pin.end()) {
                pieces.extend(index.touched(hva, len).into_iter().map(|ids| Piece {
                    ids,
                    pin: entry.pin.start.0,
                }));
            }
        }
        pieces.sort_by_key(|piece| (piece.ids.start, piece.pin));
        let mut end = 0;
        pieces.retain_mut(|piece| {
            piece.ids.start = piece.ids.start.max(end);
            end = end.max(piece.ids.end);
            !piece.ids.is_empty()
        });
        self.pieces = pieces;
        self.pieces.iter().map(|piece| piece.ids.clone()).collect()
    }

    /// Sets all counts to 0, to be counted by [`Self::replace`].
    pub(super) fn forget_counts(&mut self) {
        for entry in self.entries.values_mut() {
            (entry.placed_bytes, entry.elsewhere_bytes) = (0, 0);
        }
        self.searches = Default::default();
    }

    /// A page of `bytes` bytes went from one placement to another.
    pub(super) fn replace(&mut self, id: PageId, bytes: u64, old: Placement, new: Placement) {
        if self.pieces.is_empty() || old == new {
            return;
        }
        let Some(start) = self.of(id).map(|entry| entry.pin.start.0) else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(&start) {
            entry.replace(bytes, old, new);
            let way = Way::of(&entry.pin);
            self.searches[way as usize].rest_until = Time(0);
        }
    }

    /// Bytes that pages of this way have still to go.
    pub(super) fn misplaced_bytes(&self, way: Way) -> u64 {
        let entries = self
            .entries
            .values()
            .filter(|entry| Way::of(&entry.pin) == way);
        entries.map(|entry| entry.elsewhere_bytes).sum()
    }

    /// Bytes that pins have still to move to a tier.
    pub(super) fn claimed_bytes(&self, tier: Tier) -> u64 {
        let ways: &[Way] = match tier {
            Tier::Fast => &[Way::UpAtAnyPrice, Way::UpAsFits],
            Tier::Slow => &[Way::Down],
        };
        ways.iter().map(|&way| self.misplaced_bytes(way)).sum()
    }

    /// Bytes on the fast tier that pins keep there.
    pub(super) fn fast_bytes(&self) -> u64 {
        let fast = self.entries().filter(|entry| entry.pin.tier == Tier::Fast);
        fast.map(|entry| entry.placed_bytes).sum()
    }

    /// The next misplaced page of this way; the search goes on where the last ended. `first` finds the
    /// first of some ids whose page is on the wrong tier and may be taken.
    pub(super) fn next_misplaced(
        &mut self,
        now: Time,
        way: Way,
        first: impl Fn(Range<u32>) -> Option<PageId>,
    ) -> Option<PageId> {
        let mut search = self.searches[way as usize];
        if self.misplaced_bytes(way) == 0 || now < search.rest_until {
            return None;
        }
        let all: u64 = self.pieces.iter().map(|p| p.ids.len() as u64).sum();
        let mut left = LOOK_AT_MOST;
        let mut found = None;
        while left > 0 && found.is_none() {
            if search.fruitless > all {
                (search.fruitless, search.rest_until) = (0, now + REST);
                break;
            }
            let Some(piece) = self.piece_after(way, search.cursor) else {
                // Round the end, which counts as a look: there may be no piece at all.
                search.cursor = 0;
                search.fruitless += 1;
                left -= 1;
                continue;
            };
            let start = piece.ids.start.max(search.cursor);
            let ids = start..piece.ids.end.min(start.saturating_add(left));
            let looked = ids.end - ids.start;
            left -= looked;
            found = first(ids.clone());
            match found {
                Some(id) => (search.cursor, search.fruitless) = (id.0, 0),
                None => {
                    search.cursor = ids.end;
                    search.fruitless += u64::from(looked);
                }
            }
        }
        self.searches[way as usize] = search;
        found
    }

    /// The first piece of this way that ends after `id`.
    fn piece_after(&self, way: Way, id: u32) -> Option<&Piece> {
        let from = self.pieces.partition_point(|piece| piece.ids.end <= id);
        self.pieces[from..].iter().find(|piece| {
            self.entries
                .get(&piece.pin)
                .is_some_and(|entry| Way::of(&entry.pin) == way)
        })
    }

    pub(super) fn statuses(&self) -> Vec<PinStatus> {
        self.entries.values().map(Entry::status).collect()
    }

    pub(super) fn snapshot(&self) -> PinsSnapshot {
        let mut all = PinsSnapshot {
            count: self.entries.len() as u64,
            ..PinsSnapshot::default()
        };
        for entry in self.entries.values() {
            match entry.pin.tier {
                Tier::Fast => all.fast_bytes += entry.pin.bytes,
                Tier::Slow => all.slow_bytes += entry.pin.bytes,
            }
            all.placed_bytes += entry.placed_bytes;
            all.elsewhere_bytes += entry.elsewhere_bytes;
        }
        all
    }
}

pub(super) const fn placement_of(tier: Tier) -> Placement {
    match tier {
        Tier::Fast => Placement::Fast,
        Tier::Slow => Placement::Slow,
    }
}

/// Where QEMU maps the RAM in the guest-physical `start .. end`.
pub(super) fn hva_pieces(
    map: &GuestMemoryMap,
    start: u64,
    end: u64,
) -> impl Iterator<Item = (Hva, u64)> {
    map.pieces(start, end).map(|piece| (piece.hva, piece.len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{BASE_PAGE, Gpa};

    fn pins(all: &[(u64, Tier, WhenFull)]) -> Pins {
        let mut pins = Pins::default();
        for &(start, tier, when_full) in all {
            pins.insert(Pin {
                start: Gpa(start),
                bytes: 4 * BASE_PAGE,
                tier,
                when_full,
            });
            let first = u32::try_from(start / BASE_PAGE).unwrap();
            pins.pieces.push(Piece {
                ids: first..first + 4,
                pin: start,
            });
        }
        pins
    }

    #[test]
    fn bytes_when_pages_come_and_move_are_those_of_their_pin() {
        let mut pins = pins(&[(0, Tier::Fast, WhenFull::Fill)]);
        pins.replace(PageId(1), BASE_PAGE, Placement::Untracked, Placement::Slow);
        pins.replace(PageId(2), BASE_PAGE, Placement::Untracked, Placement::Fast);
        pins.replace(PageId(9), BASE_PAGE, Placement::Untracked, Placement::Slow);
        assert_eq!(pins.misplaced_bytes(Way::UpAsFits), BASE_PAGE);
        assert_eq!(pins.claimed_bytes(Tier::Fast), BASE_PAGE);
        assert_eq!(pins.claimed_bytes(Tier::Slow), 0);
        assert_eq!(pins.fast_bytes(), BASE_PAGE);
        pins.replace(PageId(1), BASE_PAGE, Placement::Slow, Placement::Fast);
        assert_eq!(
            (pins.claimed_bytes(Tier::Fast), pins.fast_bytes()),
            (0, 2 * BASE_PAGE)
        );
    }

    #[test]
    fn search_when_no_misplaced_page_can_be_taken_rests_until_one_moves() {
        let mut pins = pins(&[
            (0, Tier::Slow, WhenFull::Fill),
            (8 * BASE_PAGE, Tier::Slow, WhenFull::Fill),
        ]);
        pins.replace(PageId(9), BASE_PAGE, Placement::Untracked, Placement::Fast);
        let find = |pins: &mut Pins, now| {
            pins.next_misplaced(now, Way::Down, |ids| ids.contains(&9).then_some(PageId(9)))
        };
        assert_eq!(find(&mut pins, Time(0)), Some(PageId(9)));
        assert_eq!(pins.next_misplaced(Time(0), Way::Down, |_| None), None);
        assert_eq!(find(&mut pins, Time(1)), None, "it rests");
        assert_eq!(find(&mut pins, Time(0) + REST), Some(PageId(9)));
        assert_eq!(
            pins.next_misplaced(Time(0) + REST, Way::Down, |_| None),
            None
        );
        pins.replace(PageId(10), BASE_PAGE, Placement::Untracked, Placement::Fast);
        assert_eq!(
            find(&mut pins, Time(0) + REST),
            Some(PageId(9)),
            "a page came"
        );
        assert_eq!(find(&mut pins, Time(0) + REST).map(|id| id.0), Some(9));
        assert_eq!(pins.next_misplaced(Time(0), Way::UpAsFits, |_| None), None);
    }
}
