//! Demand: how many accesses a second DRAM would serve, by how much of it the guest has.
//!
//! Pages are sorted into classes by their decayed counts, which is the order in which they would be kept
//! in DRAM. Two things are measured of each class:
//!
//! - its bytes, by rounds over all pages ([`Tally`]);
//! - the accesses that fell on its pages lately. The count that a page had *before* an access says the
//!   class, so a page that is sampled by chance does not pass for a hot one.
//!
//! Decayed counts alone would not do. A page with ten accesses a second that falls idle counts as used,
//! with less than an access a minute being unused, for another nine half-lives. Here what a class had in
//! the last seconds counts, however high its counts still are. And memory that is accessed once a minute
//! has no count to speak of most of the time, but as a class it has its accesses.
//!
//! For a few seconds after a change pages change their classes quickly, and demand is uncertain by what
//! lies in the classes between.

use std::{collections::VecDeque, time::Duration};

use super::Terms;
use crate::{
    addr::{self, BASE_PAGE},
    arbiter::DemandCurve,
    dual_heap::{DualHeap, PageId, Placement},
    pages::PageIndex,
    random,
    time::Time,
};

/// Below this count a page was accessed once more than seven half-lives ago, or never: class 0.
const ONCE_LONG_AGO: f32 = 1.0 / 128.0;
/// Up to this count a page was accessed about once: class 1, whenever that was. A scan comes to each page
/// once, and next to the pages that it left longest ago.
const ABOUT_ONCE: f32 = 2.0;
/// Two classes a doubling from there on, up to a count of 2²⁰.
const CLASSES: usize = 40;
/// Bits of a count that don't tell its class.
const SHIFT: u32 = f32::MANTISSA_DIGITS - 2;

/// Accesses count for that long. A guest at rest is watched for once a second at least.
const WINDOW: Duration = Duration::from_secs(5);
/// The last report of a source that tests pages counts for that long: a guest at rest may be watched for in
/// turns.
const STALE: Duration = Duration::from_secs(30);
/// Reports are put together until they span so much.
const SLOT: Duration = Duration::from_millis(400);

/// Of a source that counts accesses, the coldest pages with the rest are not said to be used. A record
/// stands for thousands of accesses. So the records that chance brings to cold memory would be more than
/// an access a minute for each of its pages. A source that tests pages finds each look's use alike, and a
/// hundredth of what it finds can be most of the memory that is used.
const COUNTED: f64 = 0.99;

/// Single records of a batch that are looked at, at most: each may be a cache miss.
const MOST_SINGLES: usize = 1024;
/// Pages of a range of pages that are looked at.
const PICKS: u32 = 2;

/// Pages that a tally looks at in a second, at most: 8 GiB of 4 KiB pages. Each takes about a
/// nanosecond.
const TALLIED_PER_S: f64 = (2 << 20) as f64;
/// At rest it looks at that many times less.
const AT_REST: f64 = 8.0;
/// Rounds of the tally begin no closer than this.
const ROUND: Duration = Duration::from_secs(1);
/// Pages of a chunk, which are looked at together.
const CHUNK: u32 = 512;

/// The class of pages, by the leading bits of their decayed count.
const CLASS_OF: [u8; 512] = {
    let (once, long_ago) = (
        ABOUT_ONCE.to_bits() >> SHIFT,
        ONCE_LONG_AGO.to_bits() >> SHIFT,
    );
    let mut classes = [0; 512];
    let mut bits = long_ago as usize;
    while bits < classes.len() {
        let above = bits.saturating_sub(once as usize);
        classes[bits] = match bits < once as usize {
            true => 1,
            false if above + 2 < CLASSES => (above + 2) as u8,
            false => CLASSES as u8 - 1,
        };
        bits += 1;
    }
    classes
};

/// The class of pages with this decayed count, which is not negative.
#[inline]
fn class_of(count: f32) -> usize {
    usize::from(CLASS_OF[(count.to_bits() >> SHIFT) as usize % CLASS_OF.len()])
}

/// Accesses that were seen in a time.
#[derive(Clone, Debug)]
struct Slot {
    end: Time,
    span: Duration,
    /// By the class that pages had before.
    accesses: [f64; CLASSES],
}

/// Bytes by class, counted in rounds over all pages, a part at a time.
#[derive(Clone, Debug)]
struct Tally {
    /// Of the last round that is complete.
    bytes: Option<[u64; CLASSES]>,
    /// Of this round so far.
    going: [u64; CLASSES],
    /// The next page of this round.
    next: u32,
    begun: Time,
    /// When the last part was counted.
    looked: Time,
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct DemandMeter {
    is_on: bool,
    slots: VecDeque<Slot>,
    tally: Tally,
    /// What a record of the batch stands for.
    factor: f64,
    /// One of so many single records is looked at.
    stride: usize,
    singles: usize,
    /// Numbers the looks, to spread them.
    picked: u32,
    /// Whether the source counts accesses: where it tells nothing, there are none.
    counts_accesses: bool,
}

impl Default for DemandMeter {
    fn default() -> Self {
        Self {
            is_on: false,
            slots: VecDeque::new(),
            tally: Tally {
                bytes: None,
                going: [0; CLASSES],
                next: 0,
                begun: Time(0),
                looked: Time(0),
            },
            factor: 1.0,
            stride: 1,
            singles: 0,
            picked: 0,
            counts_accesses: false,
        }
    }
}

impl DemandMeter {
    /// Measures from now on, or does nothing.
    pub(crate) fn set_on(&mut self, is_on: bool) {
        self.is_on = is_on;
        self.forget();
    }

    /// Forgets all accesses: the source or its unit is another.
    pub(crate) fn forget(&mut self) {
        self.slots.clear();
    }

    /// Forgets all but the newest accesses: the guest does something else, or counts weigh less.
    pub(crate) fn outdate(&mut self) {
        let old = self.slots.len().saturating_sub(1);
        self.slots.drain(..old);
    }

    /// The pages have other numbers from now on.
    pub(crate) fn forget_pages(&mut self) {
        self.forget();
        self.tally.bytes = None;
        self.tally.going = [0; CLASSES];
        self.tally.next = 0;
    }

    /// A batch of the believed source comes, of so many samples. `accesses_a_count` is what a record of
    /// a source that counts accesses stands for.
    pub(super) fn begin(
        &mut self,
        terms: &Terms,
        span: Duration,
        samples: usize,
        accesses_a_count: f64,
    ) {
        if !self.is_on {
            return;
        }
        self.counts_accesses = terms.looks.is_none();
        self.factor = terms.looks.unwrap_or(accesses_a_count);
        self.stride = samples.div_ceil(MOST_SINGLES).max(1);
        // What came after a long silence says when the silence ended, not before.
        let span = span.min(WINDOW);
        match self.slots.back_mut().filter(|slot| slot.span < SLOT) {
            Some(slot) => {
                slot.end = slot.end.max(terms.at);
                slot.span += span;
            }
            None => self.slots.push_back(Slot {
                end: terms.at,
                span,
                accesses: [0.0; CLASSES],
            }),
        }
        self.drop_old(terms.at);
    }

    /// Accesses of a look or of a count of each 4 KiB, times what that is.
    fn accesses(&self, terms: &Terms, weight: f32) -> f64 {
        let each = terms
            .use_of(weight)
            .unwrap_or(f64::from(weight) / f64::from(terms.scale));
        each * self.factor
    }

    /// A record of a single page, before the page's count grows.
    #[inline]
    pub(super) fn see(
        &mut self,
        terms: &Terms,
        (heap, index): (&DualHeap, &PageIndex),
        id: PageId,
        weight: f32,
    ) {
        if !self.is_on {
            return;
        }
        self.singles += 1;
        if self.singles >= self.stride {
            self.singles = 0;
            let accesses = self.accesses(terms, weight) * self.stride as f64;
            self.book(heap, index, id, terms.at, accesses);
        }
    }

    /// A record of `pages` pages with numbers that `id_at` tells, before their counts grow.
    pub(super) fn see_many(
        &mut self,
        terms: &Terms,
        (heap, index): (&DualHeap, &PageIndex),
        pages: u32,
        id_at: impl Fn(u32) -> PageId,
        weight: f32,
    ) {
        if !self.is_on || pages == 0 {
            return;
        }
        let picks = pages.min(PICKS);
        let each = self.accesses(terms, weight) * f64::from(pages) / f64::from(picks);
        for pick in 0..picks {
            // One of each equal part.
            let (from, to) = (part(pages, picks, pick), part(pages, picks, pick + 1));
            self.picked = self.picked.wrapping_add(1);
            let at = from + random::scaled(random::spread(self.picked), to - from);
            self.book(heap, index, id_at(at), terms.at, each);
        }
    }

    fn book(
        &mut self,
        heap: &DualHeap,
        index: &PageIndex,
        id: PageId,
        at: Time,
        accesses_a_frame: f64,
    ) {
        if heap.placement(id) == Placement::Untracked {
            return;
        }
        let bytes = index.page(id).map_or(BASE_PAGE, |page| page.bytes);
        let class = class_of(heap.count(id, at) as f32);
        if let Some(slot) = self.slots.back_mut() {
            slot.accesses[class] += accesses_a_frame * addr::frames(bytes);
        }
    }

    fn drop_old(&mut self, now: Time) {
        let keeps_last = !self.counts_accesses;
        while let Some(oldest) = self.slots.front() {
            let is_last = self.slots.len() == 1;
            let age = now.since(oldest.end);
            if age <= WINDOW || (is_last && keeps_last && age <= STALE) {
                break;
            }
            self.slots.pop_front();
        }
    }

    /// Counts the next part of the pages, if that is due.
    pub(crate) fn tick(&mut self, now: Time, at_rest: bool, heap: &DualHeap, index: &PageIndex) {
        if !self.is_on {
            return;
        }
        self.drop_old(now);
        let tally = &mut self.tally;
        if tally.next == 0 {
            if tally.bytes.is_some() && now.since(tally.begun) < ROUND {
                return;
            }
            tally.begun = now;
            tally.going = [0; CLASSES];
        }
        let elapsed = now.since(tally.looked).min(ROUND).as_secs_f64();
        tally.looked = now;
        let mut left = match at_rest {
            true => elapsed * TALLIED_PER_S / AT_REST,
            false => elapsed * TALLIED_PER_S,
        };
        let end = heap.capacity();
        while tally.next < end && left > 0.0 {
            let ids = tally.next..tally.next.saturating_add(CHUNK).min(end);
            left -= f64::from(tally.count_chunk(now, ids.clone(), heap, index));
            tally.next = ids.end;
        }
        if tally.next >= end {
            tally.bytes = Some(tally.going);
            tally.next = 0;
        }
    }

    /// The demand curve; `None` before the first batch, or before the first round over all pages.
    pub(crate) fn curve(&self, now: Time) -> Option<DemandCurve> {
        let bytes = self.tally.bytes.as_ref()?;
        let live = |slot: &&Slot| {
            let limit = if self.counts_accesses { WINDOW } else { STALE };
            now.since(slot.end) <= limit
        };
        // A source that counts accesses tells nothing where there are none.
        if self.slots.is_empty() && !self.counts_accesses {
            return None;
        }
        let mut seconds = 0.0;
        let mut accesses = [0.0; CLASSES];
        for slot in self.slots.iter().filter(live) {
            seconds += slot.span.as_secs_f64();
            for (sum, of_slot) in accesses.iter_mut().zip(&slot.accesses) {
                *sum += of_slot;
            }
        }
        if seconds <= 0.0 {
            return self.counts_accesses.then(DemandCurve::default);
        }
        let mut hits = [0.0; CLASSES];
        for (class, accesses) in accesses.into_iter().enumerate() {
            // Pages may have left their class since.
            if let Some(home) = nearest(class, bytes) {
                hits[home] += accesses / seconds;
            }
        }
        let curve = DemandCurve::of_buckets(bytes.iter().copied().zip(hits));
        Some(match self.counts_accesses {
            true => curve.hottest(COUNTED),
            false => curve,
        })
    }

    /// Bytes of memory held.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
    }
}

impl Tally {
    /// Counts the pages of a chunk; returns how many words that took.
    fn count_chunk(
        &mut self,
        now: Time,
        ids: std::ops::Range<u32>,
        heap: &DualHeap,
        index: &PageIndex,
    ) -> u32 {
        let tracked = heap.tracked_in_chunk(ids.start);
        if tracked == 0 {
            return 1;
        }
        let frame_bytes = |id| index.framed(PageId(id)).map_or(0, |(_, bytes)| bytes);
        let first = frame_bytes(ids.start);
        // A folded page has frames that are not tracked.
        let is_alike = tracked == ids.end - ids.start && first == frame_bytes(ids.end - 1);
        let going = &mut self.going;
        if is_alike {
            heap.for_counts(ids.start, now, |_, count| going[class_of(count)] += first);
            return tracked;
        }
        heap.for_counts(ids.start, now, |id, count| {
            going[class_of(count)] += index.page(id).map_or(0, |page| page.bytes);
        });
        // Each page is looked up.
        tracked * 16
    }
}

/// The nearest class that has pages.
fn nearest(class: usize, bytes: &[u64; CLASSES]) -> Option<usize> {
    let filled = (0..CLASSES).filter(|&class| bytes[class] > 0);
    filled.min_by_key(|other| other.abs_diff(class))
}

/// Where one of `parts` equal parts of `pages` pages begins.
fn part(pages: u32, parts: u32, number: u32) -> u32 {
    (u64::from(pages) * u64::from(number) / u64::from(parts)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_when_counts_rise_rise_by_two_a_doubling() {
        let classes = [0.0, 0.007, 1.0 / 128.0, 1.0, 1.99, 2.0, 3.0, 4.0, 6.0, 8.0].map(class_of);
        assert_eq!(classes, [0, 0, 1, 1, 1, 2, 3, 4, 5, 6]);
        for count in [1e6, 1e30, f32::MAX, f32::INFINITY] {
            assert_eq!(class_of(count), CLASSES - 1);
        }
        let rising = (0..2000).map(|step| class_of(step as f32 * 0.7));
        assert!(rising.is_sorted());
    }
}
