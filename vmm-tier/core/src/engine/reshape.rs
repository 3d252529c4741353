//! Splitting skewed huge pages, and making huge pages of evenly hot ranges. Both only where the operator
//! asks for them.
//!
//! ```text
//!  plan: a skewed huge page would be promoted ─► split    ─► look-up: its hot frames are promoted
//!  report: small pages were promoted ─► evenly hot, all there ─► collapse ─► look-up: one page
//! ```
//!
//! One request is under way at a time, and the requests are [`LEAST_APART`] apart. A shape that the host
//! can't give is not asked for again.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::guest_pages::GuestPages;
use crate::{
    addr::{HUGE_PAGE, Hva},
    dual_heap::Placement,
    moves::Page,
    settings::EngineSettings,
    time::Time,
};

/// Twenty requests a second at most: each costs the kernel some 100 µs, and the guest the TLB entries of
/// 2 MiB.
const LEAST_APART: Duration = Duration::from_millis(50);
/// Requests of each kind that wait at most; more are dropped.
const MOST_WAITING: usize = 64;

crate::words! {
    /// What a range of 2 MiB is to become.
    pub enum Shape {
        /// Pages of 4 KiB.
        Split = "split",
        /// One huge page.
        Collapse = "collapse",
    }
}

crate::words! {
    /// What became of a split or a collapse.
    pub enum ReshapeOutcome {
        /// The kernel did it, and the size was found so afterwards.
        Done = "done",
        /// The kernel left it as it was: a page of it was in use just then.
        Busy = "busy",
        /// A page of the range was absent, or lay on another node: the kernel was not asked.
        Absent = "absent",
        /// The node had no free huge page.
        NoMemory = "no-memory",
        /// The mapping may have no huge pages, or the kernel is too old.
        NotEligible = "not-eligible",
        /// The host does not allow it: no debugfs, a locked-down kernel, or a missing permission. It is
        /// not tried again.
        Unavailable = "unavailable",
        /// The process is gone.
        Gone = "gone",
    }
}

/// A range of 2 MiB that is to be split or collapsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReshapeRequest {
    /// Names the request in its report.
    pub id: u64,
    /// What it is to become.
    pub shape: Shape,
    /// The range.
    pub page: Page,
}

/// What became of a [`ReshapeRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReshapeReport {
    /// The request.
    pub request: ReshapeRequest,
    /// What became of it.
    pub outcome: ReshapeOutcome,
}

/// Counts by outcome.
pub(crate) type ReshapeCounts = BTreeMap<ReshapeOutcome, u64>;

/// One shape's requests.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Hva>,
    counts: ReshapeCounts,
    is_unavailable: bool,
}

impl Queue {
    /// Returns whether the range waits now.
    fn push(&mut self, block: Hva) -> bool {
        let waits = self.waiting.contains(&block);
        let has_room = !self.is_unavailable && self.waiting.len() < MOST_WAITING;
        if !waits && has_room {
            self.waiting.push_back(block);
        }
        waits || has_room
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Reshaper {
    splits: Queue,
    collapses: Queue,
    /// The last pages that the kernel did not split: they move whole.
    whole: VecDeque<Hva>,
    last_id: u64,
    under_way: Option<ReshapeRequest>,
    next_at: Time,
}

impl Reshaper {
    /// Whether a skewed huge page is to be split.
    pub(super) fn splits(&self, page: Page, settings: &EngineSettings) -> bool {
        let is_wanted = settings.split_huge && !settings.dry_run && !self.splits.is_unavailable;
        is_wanted && !self.whole.contains(&page.hva)
    }

    /// A skewed huge page would be promoted: has it split instead. Returns whether it will be.
    pub(super) fn split(&mut self, page: Page) -> bool {
        self.splits.push(page.hva)
    }

    /// Small pages were promoted: the huge pages that they lie in may be worth a collapse.
    pub(super) fn promoted(
        &mut self,
        pages: impl Iterator<Item = Page>,
        settings: &EngineSettings,
    ) {
        if !settings.collapse_huge || settings.dry_run {
            return;
        }
        for page in pages.filter(|page| page.bytes < HUGE_PAGE) {
            self.collapses.push(page.hva.align_down(HUGE_PAGE));
        }
    }

    /// The next request, if one is due. A range that has changed meanwhile is passed over.
    pub(super) fn next(&mut self, now: Time, pages: &GuestPages) -> Option<ReshapeRequest> {
        if self.under_way.is_some() || now < self.next_at {
            return None;
        }
        let page = |hva| Page {
            hva,
            bytes: HUGE_PAGE,
        };
        let splits = &mut self.splits.waiting;
        let split = next_that(splits, |hva| pages.is_slow_huge_page(page(hva)));
        let (shape, hva) = match split {
            Some(hva) => (Shape::Split, hva),
            None => {
                let collapses = &mut self.collapses.waiting;
                let hva = next_that(collapses, |hva| pages.is_evenly_hot(now, page(hva)))?;
                (Shape::Collapse, hva)
            }
        };
        self.last_id += 1;
        let request = ReshapeRequest {
            id: self.last_id,
            shape,
            page: page(hva),
        };
        self.under_way = Some(request);
        self.next_at = now + LEAST_APART;
        Some(request)
    }

    /// When the next request may go; `None` if none waits.
    pub(super) fn wakes_at(&self) -> Option<Time> {
        let waits = !self.splits.waiting.is_empty() || !self.collapses.waiting.is_empty();
        (waits && self.under_way.is_none()).then_some(self.next_at)
    }

    /// Takes note of a finished request. The sizes of its pages are to be looked up again.
    pub(super) fn finish(&mut self, report: &ReshapeReport, pages: &mut GuestPages) {
        if self
            .under_way
            .take_if(|own| *own == report.request)
            .is_none()
        {
            return;
        }
        let queue = match report.request.shape {
            Shape::Split => &mut self.splits,
            Shape::Collapse => &mut self.collapses,
        };
        *queue.counts.entry(report.outcome).or_default() += 1;
        match report.outcome {
            ReshapeOutcome::Done | ReshapeOutcome::Absent => {
                pages.scanner.ask_urgently(report.request.page.hva);
            }
            ReshapeOutcome::Unavailable => {
                queue.is_unavailable = true;
                queue.waiting.clear();
            }
            _ if report.request.shape == Shape::Split => {
                self.whole.push_back(report.request.page.hva);
                if self.whole.len() > MOST_WAITING {
                    self.whole.pop_front();
                }
            }
            _ => {}
        }
    }

    /// Splits so far, by outcome.
    pub(super) const fn split_counts(&self) -> &ReshapeCounts {
        &self.splits.counts
    }

    /// Collapses so far, by outcome.
    pub(super) const fn collapse_counts(&self) -> &ReshapeCounts {
        &self.collapses.counts
    }

    /// Forgets what waits and what is under way; ids stay unique.
    pub(super) fn forget_pages(&mut self) {
        self.under_way = None;
        self.splits.waiting.clear();
        self.collapses.waiting.clear();
        self.whole.clear();
    }
}

/// Takes ranges until one `is_worth` it.
fn next_that(waiting: &mut VecDeque<Hva>, is_worth: impl Fn(Hva) -> bool) -> Option<Hva> {
    while let Some(hva) = waiting.pop_front() {
        if is_worth(hva) {
            return Some(hva);
        }
    }
    None
}

impl GuestPages {
    /// Whether a huge page that the kernel can split lies on the slow tier, and nothing is under way for
    /// it.
    fn is_slow_huge_page(&self, page: Page) -> bool {
        self.index.id_at(page.hva).is_some_and(|id| {
            let is_whole = self.index.is_folded(id) && self.index.page(id) == Some(page);
            let is_slow = self.heap.placement(id) == Placement::Slow;
            is_whole && is_slow && !self.heap.is_in_flight(id)
        })
    }

    /// Whether 2 MiB consist of small pages that all lie on the fast tier, are all hot, and alike: seven
    /// of eight have a quarter of the mean or more. A page of which little was seen does not tell.
    fn is_evenly_hot(&self, now: Time, page: Page) -> bool {
        if !self.index.can_fold(page) {
            return false;
        }
        let ids = self.index.touched(page.hva, page.bytes);
        let [ids] = ids.as_slice() else {
            return false;
        };
        let mut counts = Vec::with_capacity(ids.len());
        for (id, placement, count) in self.heap.iter_in(ids.clone(), now) {
            if placement != Placement::Fast || self.heap.is_in_flight(id) {
                return false;
            }
            counts.push(count);
        }
        let mean = counts.iter().sum::<f64>() / counts.len().max(1) as f64;
        let hot = counts.iter().filter(|&&count| count * 4.0 >= mean).count();
        counts.len() == ids.len() && mean > 0.0 && hot * 8 >= counts.len() * 7
    }
}
