//! The guest's pages: where each lies, how hot it is, and which tier it is pinned to.
//!
//! ```text
//!  map ──► index ──► heap (placement and heat of each page) ──► bytes by tier and page size
//!            ▲         ▲                                   └──► bytes of each pin
//!      huge pages    placements, both from the kernel's answers to the scanner
//! ```

pub(crate) mod pieces;
pub(crate) mod placed_bytes;
pub(crate) mod scan;

use std::{ops::Range, sync::Arc, time::Duration};

use self::{
    pieces::Pieces,
    placed_bytes::PlacedBytes,
    scan::{Leftovers, ScanReport, Scanner},
};
use super::evidence::skew::{Skew, Spread};
use super::pins::{
    Entry, Pins, Way, hva_pieces,
    pin::{MAX_PINS, Pin, PinError, PinReport},
    placement_of,
};
use crate::{
    addr::{self, BASE_PAGE, Gpa, HUGE_PAGE, Hva, NodeId},
    dual_heap::{DualHeap, PageId, Placement, TooManyPages},
    map::GuestMemoryMap,
    moves::Page,
    pages::{FOLD, PageIndex, PageIndexError, Span},
    rebind::Rebinding,
    tiers::Tiers,
    time::Time,
};

/// Why a map can't be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetMapError {
    /// Its pages can't be numbered.
    #[error(transparent)]
    Pages(#[from] PageIndexError),
    /// The heaps can't number its pages.
    #[error(transparent)]
    TooMany(#[from] TooManyPages),
}

/// A page that may be moved, and its count of observed accesses (decayed, of each 4 KiB frame).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) id: PageId,
    pub(crate) page: Page,
    /// Bytes of the frames that the page takes: it fits where such frames are free.
    pub(crate) frame_bytes: u64,
    pub(crate) count: f64,
}

impl Candidate {
    /// Accesses observed at all of the page (decayed).
    pub(crate) fn accesses(&self) -> f64 {
        self.count * addr::frames(self.page.bytes)
    }
}

/// Hears that a page that was not under way lies elsewhere than before.
pub(crate) type OnPlace<'a> = &'a mut dyn FnMut(PageId);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct GuestPages {
    pub(super) map: Option<Arc<GuestMemoryMap>>,
    pub(super) index: PageIndex,
    pub(super) heap: DualHeap,
    pub(super) scanner: Scanner,
    /// Of the guest's shared memory, if they are asked for.
    pub(super) pieces: Option<Pieces>,
    bytes: PlacedBytes,
    pins: Pins,
}

impl GuestPages {
    pub(super) fn new(half_life: Duration) -> Self {
        Self {
            map: None,
            index: PageIndex::default(),
            heap: DualHeap::empty(half_life),
            scanner: Scanner::default(),
            pieces: None,
            bytes: PlacedBytes::default(),
            pins: Pins::default(),
        }
    }

    /// The same, with the guest's shared memory in pieces.
    pub(super) fn in_pieces(half_life: Duration) -> Self {
        Self {
            pieces: Some(Pieces::default()),
            ..Self::new(half_life)
        }
    }

    pub(super) const fn bytes(&self) -> &PlacedBytes {
        &self.bytes
    }

    pub(super) const fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Which memory is bound to a tier; `is_on`: whether it is asked for.
    pub(super) fn rebinding(&self, is_on: bool) -> Rebinding {
        let none = Pieces::default();
        let pieces = self.pieces.as_ref().unwrap_or(&none);
        pieces.report(self.map.as_deref(), is_on)
    }

    /// The page of an id that a heap gave, with its count.
    pub(super) fn candidate(&self, (id, count): (PageId, f64)) -> Option<Candidate> {
        let (page, frame_bytes) = self.index.framed(id)?;
        Some(Candidate {
            id,
            page,
            frame_bytes,
            count,
        })
    }

    /// Whether the guest has frames of several sizes.
    pub(super) fn are_mixed(&self) -> bool {
        let mut sizes = self.index.spans().map(|span| span.frame_bytes);
        let first = sizes.next();
        sizes.any(|size| Some(size) != first)
    }

    /// Bytes of the frames where a pinned range begins.
    pub(super) fn frame_bytes_of(&self, pin: &Pin) -> u64 {
        let map = self.map.as_deref();
        let first = map.and_then(|map| hva_pieces(map, pin.start.0, pin.end()).next());
        let id = first.and_then(|(hva, _)| self.index.id_at(hva));
        let framed = id.and_then(|id| self.index.framed(id));
        framed.map_or(BASE_PAGE, |(_, frame_bytes)| frame_bytes)
    }

    /// The hottest slow page that may be promoted; it stays in its heap.
    pub(super) fn hottest_slow(&mut self, now: Time) -> Option<Candidate> {
        let hottest = self.heap.hottest_slow(now)?;
        self.candidate(hottest)
    }

    /// The coldest fast page that may be demoted; it stays in its heap.
    pub(super) fn coldest_fast(&mut self, now: Time) -> Option<Candidate> {
        let coldest = self.heap.coldest_fast(now)?;
        self.candidate(coldest)
    }

    /// Takes the coldest fast page out of its heap: it is in flight until it is settled.
    pub(super) fn take_coldest_fast(&mut self, now: Time) -> Option<Candidate> {
        let coldest = self.heap.take_coldest_fast(now)?;
        self.candidate(coldest)
    }

    /// Takes a pinned page that is on the wrong tier.
    pub(super) fn take_misplaced(&mut self, now: Time, way: Way) -> Option<Candidate> {
        let from = match way {
            Way::Down => Placement::Fast,
            Way::UpAtAnyPrice | Way::UpAsFits => Placement::Slow,
        };
        let heap = &self.heap;
        let id = self
            .pins
            .next_misplaced(now, way, |ids| heap.first_pinned(ids, from))?;
        let count = self.heap.count(id, now);
        self.heap.take_pinned(id)?;
        self.candidate((id, count))
    }

    /// Puts a page that was taken back where it was, at once or after a rest.
    pub(super) fn put_back(&mut self, page: Candidate, placement: Placement, until: Option<Time>) {
        self.heap.settle(page.id, placement, until);
    }

    /// The move of a page ended: it lies on `new` now, and rests until `available_at`.
    pub(super) fn settle(
        &mut self,
        (id, page): (PageId, Page),
        new: Placement,
        available_at: Option<Time>,
    ) {
        let old = self.heap.placement(id);
        self.count_place(id, page, old, new);
        self.heap.settle(id, new, available_at);
    }

    /// Takes the kernel's word on where a chunk's pages lie.
    pub(super) fn take_scan(
        &mut self,
        now: Time,
        report: &ScanReport,
        tiers: &Tiers,
        cpu_share: f64,
        skew: &Skew,
        on_place: OnPlace<'_>,
    ) {
        let mut seen = Leftovers::default();
        let could_look = !report.pages.is_empty();
        for (page, node) in &report.pages {
            match node {
                None => seen.absent_bytes += page.bytes,
                Some(_) if placement_on(tiers, *node) == Placement::Untracked => {
                    seen.elsewhere_bytes += page.bytes;
                }
                Some(_) => {}
            }
        }
        if !self.scanner.finish(report, seen, now, cpu_share) || !could_look {
            return;
        }
        self.refold(now, report, skew, on_place);
        let mut elsewhere = 0;
        for &(page, node) in &report.pages {
            let Some(id) = self.index.id_at(page.hva) else {
                continue;
            };
            // A page under way is settled by its report, which comes later than this answer.
            if self.heap.is_in_flight(id) {
                continue;
            }
            let placement = placement_on(tiers, node);
            let tiers = [self.heap.placement(id), placement];
            elsewhere += usize::from(tiers == [Placement::Fast, Placement::Slow]);
            elsewhere += usize::from(tiers == [Placement::Slow, Placement::Fast]);
            self.place(id, placement, on_place);
        }
        self.scanner.found(elsewhere, report.pages.len());
    }

    /// Folds and unfolds pages as the kernel has them now. Heat goes with the memory.
    fn refold(&mut self, now: Time, report: &ScanReport, skew: &Skew, on_place: OnPlace<'_>) {
        let span = report.request.span;
        for folded in self.index.folded_in(span.hva, span.bytes) {
            let head = folded.hva;
            let Some(id) = self.index.id_at(head) else {
                continue;
            };
            let found = report.folios.binary_search_by_key(&head, |page| page.hva);
            let is_same = found.is_ok_and(|at| report.folios[at] == folded);
            if is_same || self.heap.is_in_flight(id) {
                continue;
            }
            let (count, placement) = (self.heap.count(id, now), self.heap.placement(id));
            self.place(id, Placement::Untracked, on_place);
            // Where its accesses are known to fall, its heat is that of the frames that were hit.
            let spread = (folded.bytes == HUGE_PAGE).then(|| skew.of(id)).flatten();
            let spread = spread.filter(Spread::is_skewed);
            let frames = self.index.unfold(head);
            self.refolded(folded);
            for frame in frames.into_iter().flatten() {
                let count = match &spread {
                    Some(spread) if spread.has(frame - id.0) => {
                        count * f64::from(FOLD) / f64::from(spread.hit())
                    }
                    Some(_) => 0.0,
                    None => count,
                };
                self.place(PageId(frame), placement, on_place);
                self.heap.set_count(PageId(frame), count, now);
            }
        }
        for &folio in &report.folios {
            let Some(id) = self.index.id_at(folio.hva) else {
                continue;
            };
            if self.index.page(id) == Some(folio) {
                continue;
            }
            let frames = (0..folio.bytes)
                .step_by(BASE_PAGE as usize)
                .filter_map(|at| self.index.id_at(Hva(folio.hva.0 + at)));
            let frames: Vec<PageId> = frames.collect();
            if frames.iter().any(|&frame| self.heap.is_in_flight(frame)) {
                // As long as its frames are taken for pages, each move of one moves them all.
                self.scanner.ask_urgently(folio.hva);
                continue;
            }
            // A huge page that reaches over the border of the tracked memory stays in frames.
            if !self.index.can_fold(folio) {
                continue;
            }
            let counts: f64 = frames
                .iter()
                .map(|&frame| self.heap.count(frame, now))
                .sum();
            let placement = self.heap.placement(id);
            for &frame in &frames {
                self.place(frame, Placement::Untracked, on_place);
            }
            self.index.fold(folio);
            self.refolded(folio);
            self.place(id, placement, on_place);
            self.heap
                .set_count(id, counts / frames.len().max(1) as f64, now);
        }
    }

    /// Places a page that is not under way.
    fn place(&mut self, id: PageId, new: Placement, on_place: OnPlace<'_>) {
        let Some(page) = self.index.page(id) else {
            return;
        };
        let old = self.heap.placement(id);
        if old != new {
            on_place(id);
        }
        self.heap.place(id, new);
        self.count_place(id, page, old, new);
    }

    fn count_place(&mut self, id: PageId, page: Page, old: Placement, new: Placement) {
        self.bytes.replace(page.bytes, old, new);
        self.pins.replace(id, page.bytes, old, new);
        if let Some(pieces) = &mut self.pieces {
            pieces.replace(page, old, new);
        }
    }

    /// Takes the guest's memory map, new or changed. Returns whether the layout is another: then all
    /// placements are looked up again. Heat and placement of pages that stay are kept.
    pub(super) fn set_map(
        &mut self,
        now: Time,
        map: Arc<GuestMemoryMap>,
        half_life: Duration,
    ) -> Result<bool, SetMapError> {
        if self.map.as_ref().is_some_and(|old| old.same_layout(&map)) {
            self.map = Some(map);
            return Ok(false);
        }
        let ranges = map.unique_hva_ranges();
        let spans: Vec<Span> = ranges
            .iter()
            .map(|r| Span {
                hva: r.start,
                bytes: r.len,
                frame_bytes: r.page_size,
            })
            .collect();
        let index = PageIndex::new(spans.iter().copied())?;
        let heap = DualHeap::new(index.frames(), half_life)?;
        self.pieces = self.pieces.take().map(|old| old.succeeded_by(&map));
        self.carry_over(now, index, heap);
        self.scanner.reset(spans, now);
        self.map = Some(map);
        self.apply_pins(now);
        Ok(true)
    }

    /// Gives the pages of a new index the placement and heat that the same memory had in the old one.
    /// The next round of look-ups corrects what changed.
    fn carry_over(&mut self, now: Time, mut index: PageIndex, mut heap: DualHeap) {
        let mut bytes = PlacedBytes::default();
        for (id, placement, count) in self.heap.iter(now) {
            let Some(page) = self.index.page(id) else {
                continue;
            };
            if self.index.is_folded(id) {
                index.fold(page);
            }
            let Some(new) = index
                .id_at(page.hva)
                .filter(|&new| index.page(new) == Some(page))
            else {
                continue;
            };
            heap.place(new, placement);
            if count > 0.0 {
                heap.set_count(new, count, now);
            }
            bytes.replace(page.bytes, Placement::Untracked, placement);
            if let Some(pieces) = &mut self.pieces {
                pieces.replace(page, Placement::Untracked, placement);
            }
        }
        (self.index, self.heap, self.bytes) = (index, heap, bytes);
    }

    /// Pins a range that [may be pinned](Self::check_range).
    pub(super) fn pin(&mut self, now: Time, pin: Pin) -> PinReport {
        self.pins.insert(pin);
        self.apply_pins(now);
        let made = self.pins.entries().find(|entry| entry.pin == pin);
        PinReport {
            pins: 1,
            bytes: pin.bytes,
            placed_bytes: made.map_or(0, |entry| entry.placed_bytes),
            elsewhere_bytes: made.map_or(0, |entry| entry.elsewhere_bytes),
        }
    }

    /// Pins ranges whether they fit or not. Returns those that can't be pinned, and why.
    pub(super) fn pin_again(&mut self, now: Time, pins: &[Pin]) -> Vec<(Pin, PinError)> {
        let mut refused = Vec::new();
        for &pin in pins {
            match self.check_range(&pin) {
                Ok(()) => self.pins.insert(pin),
                Err(error) => refused.push((pin, error)),
            }
        }
        // Once for all: each time looks at every pinned page.
        if refused.len() < pins.len() {
            self.apply_pins(now);
        }
        refused
    }

    /// Removes the pins that lie wholly in the range.
    ///
    /// # Errors
    /// If the range would cut a pin, has none, or is not whole pages; nothing has changed then.
    pub(super) fn unpin(
        &mut self,
        now: Time,
        start: Gpa,
        bytes: u64,
    ) -> Result<PinReport, PinError> {
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
    pub(super) fn remove_pins(&mut self, now: Time, start: u64, end: u64) -> PinReport {
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

    /// Whether the range is guest RAM that no pin has.
    pub(super) fn check_range(&self, pin: &Pin) -> Result<(), PinError> {
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

    /// Bytes of the pin's range that lie on its tier already.
    pub(super) fn placed_bytes(&self, now: Time, pin: &Pin) -> u64 {
        let wanted = placement_of(pin.tier);
        let map = self.map.iter();
        let pieces = map.flat_map(|map| hva_pieces(map, pin.start.0, pin.end()));
        let placed = pieces.flat_map(|(hva, len)| {
            self.pages_in(now, hva, len)
                .filter(move |(_, placement)| *placement == wanted)
                .map(move |(page, _)| overlap(page, hva, len))
        });
        placed.sum::<u64>().min(pin.bytes)
    }

    /// The tracked pages that `hva .. hva + len` touches.
    fn pages_in(
        &self,
        now: Time,
        hva: Hva,
        len: u64,
    ) -> impl Iterator<Item = (Page, Placement)> + '_ {
        self.index
            .touched(hva, len)
            .into_iter()
            .flat_map(move |ids| self.heap.iter_in(ids, now))
            .filter_map(|(id, placement, _)| Some((self.index.page(id)?, placement)))
    }

    /// Finds the pages that the pins stand for now, and counts their bytes.
    fn apply_pins(&mut self, now: Time) {
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

    /// Takes note that a page was folded or unfolded, while its frames are untracked: a page that lies
    /// partly in a pin is pinned whole.
    fn refolded(&mut self, page: Page) {
        if self.pins.is_empty() {
            return;
        }
        let pieces = self.index.touched(page.hva, page.bytes);
        let Some(first) = pieces.first().map(|ids| ids.start) else {
            return;
        };
        let all = first..first + (page.bytes / BASE_PAGE) as u32;
        let touching = |ids: &Range<u32>| ids.start < all.end && all.start < ids.end;
        let covers = |ids: &Range<u32>| ids.start <= all.start && all.end <= ids.end;
        let mut touched = self.pins.pieces().iter().map(|piece| &piece.ids);
        // Wholly in or wholly out: the ids mean the same as before.
        if touched.any(|ids| touching(ids) && !covers(ids)) {
            self.resolve_pins();
        }
    }

    /// Says which invariant is broken, if any is. Looks at every page.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub(super) fn check(&self) -> Result<(), String> {
        self.heap.check()?;
        let mut bytes = PlacedBytes::default();
        let mut end = 0;
        // Time does not matter: only places are looked at.
        for (id, placement, _) in self.heap.iter(Time(0)) {
            let page = self.index.page(id).ok_or(format!("{id:?} is no page"))?;
            if page.hva.0 < end {
                return Err(format!("the page at {} overlaps another", page.hva));
            }
            end = page.hva.0 + page.bytes;
            bytes.replace(page.bytes, Placement::Untracked, placement);
        }
        if self.bytes != bytes {
            return Err(format!("bytes are {:?}, found {bytes:?}", self.bytes));
        }
        if let Some(pieces) = &self.pieces {
            let placed = self.heap.iter(Time(0));
            let placed = placed.filter_map(|(id, on, _)| Some((self.index.page(id)?, on)));
            pieces.check(placed)?;
        }
        self.check_pins()
    }

    /// Whether every page that touches a pin is pinned, no other is, and the bytes are right.
    fn check_pins(&self) -> Result<(), String> {
        let mut counted = Pins::default();
        for entry in self.pins.entries() {
            counted.insert(entry.pin);
        }
        if let Some(map) = &self.map {
            counted.resolve(map, &self.index);
        }
        for (id, placement, _) in self.heap.iter(Time(0)) {
            let page = self.index.page(id).ok_or(format!("{id:?} is no page"))?;
            let touches = |entry: &&Entry| {
                let map = self.map.as_deref();
                let (start, end) = (entry.pin.start.0, entry.pin.end());
                map.into_iter()
                    .flat_map(|map| hva_pieces(map, start, end))
                    .any(|(hva, len)| hva.0 < page.hva.0 + page.bytes && page.hva.0 < hva.0 + len)
            };
            let owner = self.pins.of(id).map(|entry| entry.pin);
            let touched = self.pins.entries().find(touches).map(|entry| entry.pin);
            if touched != owner {
                return Err(format!("{id:?} is held by {owner:?}, which is not its pin"));
            }
            if self.heap.state(id).pinned != owner.is_some() {
                return Err(format!("the heaps do not know whether {id:?} is pinned"));
            }
            counted.replace(id, page.bytes, Placement::Untracked, placement);
        }
        let mut pairs = self.pins.entries().zip(counted.entries());
        match pairs.find(|(entry, found)| entry != found) {
            Some((entry, found)) => Err(format!("pinned bytes are {entry:?}, found {found:?}")),
            None => Ok(()),
        }
    }
}

/// The placement of a page that the kernel found on this node.
pub(super) fn placement_on(tiers: &Tiers, node: Option<NodeId>) -> Placement {
    match node {
        Some(node) if tiers.fast.contains(node) => Placement::Fast,
        Some(node) if tiers.slow.contains(node) => Placement::Slow,
        _ => Placement::Untracked,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::WhenFull,
        map::{BlockIndex, MapRange, RamBlock},
        settings::{EngineSettings, Tier},
        tiers::tests::two_nodes,
    };

    const GPA: u64 = 1 << 20;
    const HVA: u64 = 0x7f00_0000_0000;

    fn map(generation: u64, frames: u64) -> Arc<GuestMemoryMap> {
        let len = frames * BASE_PAGE;
        let block = RamBlock {
            name: "ram0".to_owned(),
            hva: Hva(HVA),
            used: len,
            total: len,
            page_size: BASE_PAGE,
            backing: None,
        };
        let range = MapRange {
            gpa: Gpa(GPA),
            len,
            block: BlockIndex(0),
            offset: 0,
            hva: Hva(HVA),
        };
        Arc::new(GuestMemoryMap::new(generation, vec![block], vec![range]).unwrap())
    }

    fn set_map(pages: &mut GuestPages, map: Arc<GuestMemoryMap>) -> bool {
        let EngineSettings { half_life, .. } = EngineSettings::default();
        pages.set_map(Time(0), map, half_life).unwrap()
    }

    /// Looks up all pages: each lies on the node that `node_of` says. Returns the pages that moved.
    fn look(pages: &mut GuestPages, node_of: impl Fn(u64) -> Option<u16>) -> usize {
        let request = pages.scanner.next(Time(0)).unwrap();
        let frames = request.span.bytes / BASE_PAGE;
        let page = |n| Page {
            hva: Hva(HVA + n * BASE_PAGE),
            bytes: BASE_PAGE,
        };
        let report = ScanReport {
            request,
            folios: Vec::new(),
            pages: (0..frames)
                .map(|n| (page(n), node_of(n).map(NodeId)))
                .collect(),
            cpu_time: Duration::ZERO,
        };
        let mut moved = 0;
        let skew = Skew::default();
        pages.take_scan(Time(0), &report, &two_nodes(), 0.5, &skew, &mut |_| {
            moved += 1;
        });
        assert_eq!(pages.check(), Ok(()));
        moved
    }

    fn pages() -> GuestPages {
        let mut pages = GuestPages::new(Duration::from_secs(10));
        assert!(set_map(&mut pages, map(1, 64)));
        // 16 fast, 32 slow, 8 absent, 8 on a node of neither tier.
        let node = |n| match n {
            0..16 => Some(0),
            16..48 => Some(1),
            48..56 => None,
            _ => Some(2),
        };
        assert_eq!(look(&mut pages, node), 48);
        pages
    }

    #[test]
    fn pages_when_looked_up_are_counted_by_tier_and_left_over() {
        let pages = pages();
        assert_eq!(pages.bytes().of(Tier::Fast), 16 * BASE_PAGE);
        assert_eq!(pages.bytes().of(Tier::Slow), 32 * BASE_PAGE);
        let left = pages.scanner.last_round;
        assert_eq!(
            (left.absent_bytes, left.elsewhere_bytes),
            (8 * BASE_PAGE, 8 * BASE_PAGE)
        );
        assert!(pages.scanner.has_seen_all());
    }

    #[test]
    fn map_when_it_changes_keeps_placement_and_heat_of_pages_that_stay() {
        let mut pages = pages();
        let page = PageId(20);
        pages.heap.set_count(page, 5.0, Time(0));
        assert!(!set_map(&mut pages, map(1, 64)), "the same layout");
        assert!(set_map(&mut pages, map(2, 32)));
        assert_eq!(pages.check(), Ok(()));
        assert_eq!(pages.bytes().of(Tier::Slow), 16 * BASE_PAGE);
        assert_eq!(pages.heap.placement(page), Placement::Slow);
        assert!((pages.heap.count(page, Time(0)) - 5.0).abs() < 1e-6);
        assert!(!pages.scanner.has_seen_all(), "all is looked up again");
    }

    #[test]
    fn pinned_page_when_on_the_wrong_tier_is_taken_until_it_is_settled() {
        let mut pages = pages();
        let pin = Pin {
            start: Gpa(GPA + 40 * BASE_PAGE),
            bytes: 10 * BASE_PAGE,
            tier: Tier::Fast,
            when_full: WhenFull::Fill,
        };
        assert_eq!(pages.check_range(&pin), Ok(()));
        assert_eq!(pages.placed_bytes(Time(0), &pin), 0);
        let made = pages.pin(Time(0), pin);
        // Two of the ten are absent.
        assert_eq!(
            (made.placed_bytes, made.elsewhere_bytes),
            (0, 8 * BASE_PAGE)
        );
        let taken = pages.take_misplaced(Time(0), Way::UpAsFits).unwrap();
        assert_eq!(taken.id, PageId(40));
        assert!(pages.take_misplaced(Time(0), Way::Down).is_none());
        pages.settle((taken.id, taken.page), Placement::Fast, None);
        assert_eq!(pages.placed_bytes(Time(0), &pin), BASE_PAGE);
        assert_eq!(pages.pins().fast_bytes(), BASE_PAGE);
        assert_eq!(pages.check(), Ok(()));
        assert_eq!(pages.unpin(Time(0), pin.start, pin.bytes).unwrap().pins, 1);
        assert_eq!(pages.check(), Ok(()));
    }
}
