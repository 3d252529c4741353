//! The pages that an address range covers.

use std::ops::Range;

use super::{PageIndex, Placed};
use crate::{
    addr::{BASE_PAGE, Hva},
    dual_heap::PageId,
};

/// A run of pages that an address range covers, and how much of each page it covers.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The pages; each stands for itself (no tails).
    pub ids: Range<u32>,
    /// The covered share of each page, in (0, 1].
    pub share: f32,
}

impl PageIndex {
    /// The page that holds a single access of `len` bytes at `hva`, and the share of the page that its 4 KiB frame
    /// is: what [`Self::for_runs`] would say. `None` for what lies outside or in more frames than one.
    #[inline]
    #[must_use]
    pub fn page_of_access(&self, hva: Hva, len: u64) -> Option<(PageId, f32)> {
        if hva.0 % BASE_PAGE + len.max(1) > BASE_PAGE {
            return None;
        }
        let placed = self.span_at(hva)?;
        let frame = placed.frame_at(hva);
        if placed.span.frame_bytes != BASE_PAGE {
            let share = BASE_PAGE as f32 / placed.span.frame_bytes as f32;
            return Some((PageId(frame), share));
        }
        match self.folded_around(placed, frame) {
            Some(page) => {
                let frames = (page.end - page.start) as f32;
                Some((PageId(page.start), 1.0 / frames))
            }
            None => Some((PageId(frame), 1.0)),
        }
    }

    /// Calls `each` for the runs of pages that `hva .. hva + len` covers. The range is first widened
    /// to whole 4 KiB frames, so that a sampled address speaks for its frame. Addresses outside the
    /// spans are passed over. Returns the number of bytes that lay inside.
    pub fn for_runs(&self, hva: Hva, len: u64, mut each: impl FnMut(Run)) -> u64 {
        let start = hva.align_down(BASE_PAGE).0;
        let Some(end) = hva
            .0
            .checked_add(len.max(1))
            .and_then(|e| e.checked_next_multiple_of(BASE_PAGE))
        else {
            return 0;
        };
        let mut inside = 0;
        for (placed, frames) in self.pieces(Hva(start), end - start) {
            let from = start.max(placed.span.hva.0);
            let to = end.min(placed.span.hva.0 + placed.span.bytes);
            inside += to - from;
            if placed.span.frame_bytes == BASE_PAGE {
                self.base_runs(placed, frames, &mut each);
            } else {
                huge_runs(placed, frames, from, to, &mut each);
            }
        }
        inside
    }

    /// Runs of a 4 KiB span: stretches between folded pages, and the folded pages one by one.
    fn base_runs(&self, placed: &Placed, frames: Range<u32>, each: &mut impl FnMut(Run)) {
        let mut at = frames.start;
        // A folded page that begins before the range may reach into it.
        let first = self.head_of(placed, at);
        for page in self.pages_among(placed, first..frames.end) {
            let head = page.start;
            if head > at {
                each(Run {
                    ids: at..head,
                    share: 1.0,
                });
            }
            let covered = page.end.min(frames.end) - at.max(head);
            each(Run {
                ids: head..head + 1,
                share: covered as f32 / (page.end - head) as f32,
            });
            at = page.end;
        }
        if at < frames.end {
            each(Run {
                ids: at..frames.end,
                share: 1.0,
            });
        }
    }
}

/// Runs of a hugetlb span: whole pages together, a partly covered first and last page alone.
fn huge_runs(placed: &Placed, frames: Range<u32>, from: u64, to: u64, each: &mut impl FnMut(Run)) {
    let size = placed.span.frame_bytes;
    let whole = from.next_multiple_of(size)..(to & !(size - 1));
    if whole.start >= whole.end {
        for id in frames {
            let page = placed.address_of(id).0;
            let covered = to.min(page + size) - from.max(page);
            each(Run {
                ids: id..id + 1,
                share: covered as f32 / size as f32,
            });
        }
        return;
    }
    if from < whole.start {
        let share = (whole.start - from) as f32 / size as f32;
        each(Run {
            ids: frames.start..frames.start + 1,
            share,
        });
    }
    let inner = placed.frame_at(Hva(whole.start))..placed.frame_at(Hva(whole.end - 1)) + 1;
    each(Run {
        ids: inner,
        share: 1.0,
    });
    if whole.end < to {
        let share = (to - whole.end) as f32 / size as f32;
        each(Run {
            ids: frames.end - 1..frames.end,
            share,
        });
    }
}
