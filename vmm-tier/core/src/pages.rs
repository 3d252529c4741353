//! The page index: HVA ↔ [`PageId`], whatever the page sizes.
//!
//! The guest's unique HVA ranges stand one after the other in *tracked space*; each frame has a
//! number there. The frame is the range's kernel page size (4 KiB, or a hugetlb size). A transparent
//! huge page inside a 4 KiB range is *folded*: its head frame stands for all 512, the tails are never
//! tracked.

mod folded;
mod runs;

use std::ops::Range;

use crate::{
    addr::{BASE_PAGE, HUGE_PAGE, Hva},
    dual_heap::PageId,
    moves::Page,
};

pub use runs::Run;

use folded::Folded;

/// Frames in a transparent huge page.
pub const FOLD: u32 = (HUGE_PAGE / BASE_PAGE) as u32;

/// One contiguous range of host addresses with one kernel page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub hva: Hva,
    /// Length in bytes, a multiple of `frame_bytes`.
    pub bytes: u64,
    /// Kernel page size of the mapping, a power of two.
    pub frame_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Placed {
    span: Span,
    first: u32,
    frames: u32,
    /// log2 of the frame's size.
    frame_shift: u32,
    /// For a range of 4 KiB frames, the [bit](Folded) of the 2 MiB in which it begins.
    first_bit: u32,
    /// Frames of those 2 MiB before the range.
    ahead: u32,
}

/// Why an index can't be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageIndexError {
    /// A span's page size is no power of two of at least 4 KiB, or does not divide its bounds.
    #[error("span at {hva} ({bytes} bytes) does not consist of whole pages of {frame_bytes} bytes")]
    Unaligned {
        /// The span's first byte.
        hva: Hva,
        /// Its length.
        bytes: u64,
        /// Its page size.
        frame_bytes: u64,
    },
    /// Spans overlap or are not in rising order.
    #[error("span at {0} overlaps the one before it")]
    Overlap(Hva),
    /// More frames than the heaps can number (2^30).
    #[error("the guest has more pages than can be tracked: 4 TiB of 4 KiB pages")]
    TooMany,
}

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct PageIndex {
    spans: Vec<Placed>,
    frames: u32,
    folded: Folded,
}

impl PageIndex {
    /// Builds the index over spans in rising order of address.
    ///
    /// # Errors
    /// If spans overlap, are not whole pages, or have too many frames.
    pub fn new(spans: impl IntoIterator<Item = Span>) -> Result<Self, PageIndexError> {
        let mut index = Self::default();
        let (mut end, mut bits) = (0_u64, 0);
        for span in spans {
            let Span {
                hva,
                bytes,
                frame_bytes,
            } = span;
            let whole = frame_bytes.is_power_of_two()
                && frame_bytes >= BASE_PAGE
                && hva.0.is_multiple_of(frame_bytes)
                && bytes.is_multiple_of(frame_bytes);
            if !whole {
                return Err(PageIndexError::Unaligned {
                    hva,
                    bytes,
                    frame_bytes,
                });
            }
            if hva.0 < end {
                return Err(PageIndexError::Overlap(hva));
            }
            if bytes == 0 {
                continue;
            }
            end = hva
                .0
                .checked_add(bytes)
                .ok_or(PageIndexError::Overlap(hva))?;
            let frames = u32::try_from(bytes / frame_bytes).map_err(|_| PageIndexError::TooMany)?;
            let first = index.frames;
            index.frames = first.checked_add(frames).ok_or(PageIndexError::TooMany)?;
            let placed = Placed {
                span,
                first,
                frames,
                frame_shift: frame_bytes.trailing_zeros(),
                first_bit: bits,
                ahead: (hva.0 / BASE_PAGE) as u32 % FOLD,
            };
            bits = placed.bit_of(placed.first + frames - 1) + 1;
            index.spans.push(placed);
        }
        index.folded.grow(bits);
        Ok(index)
    }

    /// The number of frames in tracked space.
    #[must_use]
    pub const fn frames(&self) -> u32 {
        self.frames
    }

    /// The spans, in rising order of address.
    pub fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        self.spans.iter().map(|placed| placed.span)
    }

    /// The page that `id` stands for.
    #[must_use]
    pub fn page(&self, id: PageId) -> Option<Page> {
        Some(self.framed(id)?.0)
    }

    /// The page that `id` stands for, and the bytes of the frames that its span is made of: a page that
    /// the kernel folds has small frames, a page of a hugetlb pool has that pool's.
    #[must_use]
    pub fn framed(&self, id: PageId) -> Option<(Page, u64)> {
        let placed = self.span_of(id.0)?;
        let hva = Hva(placed.span.hva.0 + u64::from(id.0 - placed.first) * placed.span.frame_bytes);
        let bytes = if self.is_head(placed, id.0) {
            HUGE_PAGE
        } else {
            placed.span.frame_bytes
        };
        Some((Page { hva, bytes }, placed.span.frame_bytes))
    }

    /// The page that holds `hva`.
    #[must_use]
    pub fn id_at(&self, hva: Hva) -> Option<PageId> {
        let placed = self.span_at(hva)?;
        let frame = placed.frame_at(hva);
        Some(PageId(self.head_of(placed, frame)))
    }

    /// The page that the frame of this number belongs to: its own, or the huge page that it is folded into.
    #[must_use]
    pub fn page_of_frame(&self, frame: u32) -> Option<PageId> {
        let placed = self.span_of(frame)?;
        Some(PageId(self.head_of(placed, frame)))
    }

    /// Whether `id` is the head of a folded huge page.
    #[must_use]
    pub fn is_folded(&self, id: PageId) -> bool {
        self.span_of(id.0)
            .is_some_and(|placed| self.is_head(placed, id.0))
    }

    /// The number of folded huge pages.
    #[must_use]
    pub const fn folded(&self) -> usize {
        self.folded.count()
    }

    /// Whether the 2 MiB at `hva` can be folded: aligned, wholly inside a 4 KiB range, not folded yet.
    #[must_use]
    pub fn can_fold(&self, hva: Hva) -> bool {
        self.span_at(hva).is_some_and(|placed| {
            hva.0.is_multiple_of(HUGE_PAGE)
                && placed.span.frame_bytes == BASE_PAGE
                && hva.0 + HUGE_PAGE <= placed.span.hva.0 + placed.span.bytes
                && !self.folded.contains(placed.bit_of(placed.frame_at(hva)))
        })
    }

    /// Declares the 2 MiB at `hva` one page. Returns the frames that it now covers, or `None` if it
    /// [can't be folded](Self::can_fold).
    pub fn fold(&mut self, hva: Hva) -> Option<Range<u32>> {
        if !self.can_fold(hva) {
            return None;
        }
        let placed = self.span_at(hva)?;
        let head = placed.frame_at(hva);
        let bit = placed.bit_of(head);
        self.folded.set(bit, true);
        Some(head..head + FOLD)
    }

    /// Undoes [`Self::fold`]. Returns the frames that are single pages again, or `None` if no folded
    /// page begins at `hva`.
    pub fn unfold(&mut self, hva: Hva) -> Option<Range<u32>> {
        let placed = self.span_at(hva)?;
        let head = placed.frame_at(hva);
        if !self.is_head(placed, head) {
            return None;
        }
        let bit = placed.bit_of(head);
        self.folded.set(bit, false);
        Some(head..head + FOLD)
    }

    /// The addresses of folded pages that begin in `hva .. hva + len`.
    #[must_use]
    pub fn folded_in(&self, hva: Hva, len: u64) -> Vec<Hva> {
        let end = hva.0.saturating_add(len);
        self.pieces(hva, len)
            .flat_map(|(placed, frames)| {
                self.heads(placed, frames)
                    .map(move |head| placed.address_of(head))
            })
            .filter(|head| *head >= hva && head.0 < end)
            .collect()
    }

    /// The ids, in rising order and disjoint, among which are all pages that `hva .. hva + len` touches,
    /// whole or in part, as things are folded now. Tails of folded pages may be among them.
    #[must_use]
    pub fn touched(&self, hva: Hva, len: u64) -> Vec<Range<u32>> {
        let mut ranges: Vec<Range<u32>> = Vec::new();
        for (placed, frames) in self.pieces(hva, len) {
            let head = self.head_of(placed, frames.start);
            if head < frames.start {
                ranges.push(head..head + 1);
            }
            ranges.push(frames);
        }
        ranges
    }

    fn head_of(&self, placed: &Placed, frame: u32) -> u32 {
        if placed.span.frame_bytes != BASE_PAGE {
            return frame;
        }
        let bit = placed.bit_of(frame);
        match self.folded.contains(bit) {
            true => placed.head_of_bit(bit),
            false => frame,
        }
    }

    /// Whether a frame is the head of a folded page.
    fn is_head(&self, placed: &Placed, frame: u32) -> bool {
        placed.span.frame_bytes == BASE_PAGE && {
            let bit = placed.bit_of(frame);
            self.folded.contains(bit) && placed.head_of_bit(bit) == frame
        }
    }

    /// The heads of folded pages among frames of a span.
    fn heads(&self, placed: &Placed, frames: Range<u32>) -> impl Iterator<Item = u32> {
        let base = placed.span.frame_bytes == BASE_PAGE && !frames.is_empty();
        let bits = match base {
            true => placed.bit_of(frames.start)..placed.bit_of(frames.end - 1) + 1,
            false => 0..0,
        };
        let heads = self.folded.range(bits).map(|bit| placed.head_of_bit(bit));
        heads.filter(move |head| frames.contains(head))
    }

    fn span_of(&self, frame: u32) -> Option<&Placed> {
        let i = self
            .spans
            .partition_point(|placed| placed.first <= frame)
            .checked_sub(1)?;
        self.spans
            .get(i)
            .filter(|placed| frame - placed.first < placed.frames)
    }

    fn span_at(&self, hva: Hva) -> Option<&Placed> {
        let i = self
            .spans
            .partition_point(|placed| placed.span.hva <= hva)
            .checked_sub(1)?;
        self.spans
            .get(i)
            .filter(|placed| hva.0 - placed.span.hva.0 < placed.span.bytes)
    }

    /// The spans that `hva .. hva + len` touches, each with the frames touched.
    fn pieces(&self, hva: Hva, len: u64) -> impl Iterator<Item = (&Placed, Range<u32>)> {
        let end = hva.0.saturating_add(len);
        let from = self
            .spans
            .partition_point(move |p| p.span.hva.0 + p.span.bytes <= hva.0);
        self.spans[from..]
            .iter()
            .take_while(move |p| p.span.hva.0 < end)
            .map(move |placed| {
                let start = hva.max(placed.span.hva);
                let last = Hva((end - 1).min(placed.span.hva.0 + placed.span.bytes - 1));
                (placed, placed.frame_at(start)..placed.frame_at(last) + 1)
            })
    }
}

impl Placed {
    /// The number of the frame that holds `hva`, which lies in this span.
    fn frame_at(&self, hva: Hva) -> u32 {
        let frame = (hva.0 - self.span.hva.0) >> self.frame_shift;
        self.first + u32::try_from(frame).unwrap_or(u32::MAX - self.first)
    }

    /// The bit of the 2 MiB that a frame lies in; spans of larger frames have one that is never set.
    fn bit_of(&self, frame: u32) -> u32 {
        match self.span.frame_bytes {
            BASE_PAGE => self.first_bit + (frame - self.first + self.ahead) / FOLD,
            _ => self.first_bit,
        }
    }

    /// The first frame of the 2 MiB of a bit that is set: all of them lie in the span.
    fn head_of_bit(&self, bit: u32) -> u32 {
        self.first + (bit - self.first_bit) * FOLD - self.ahead
    }

    fn address_of(&self, frame: u32) -> Hva {
        Hva(self.span.hva.0 + u64::from(frame - self.first) * self.span.frame_bytes)
    }
}

#[cfg(test)]
mod tests;
