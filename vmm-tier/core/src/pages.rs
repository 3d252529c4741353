//! The page index: HVA ↔ [`PageId`], whatever the page sizes.
//!
//! The guest's unique HVA ranges stand one after the other in *tracked space*; each frame has a
//! number there. The frame is the range's kernel page size (4 KiB, or a hugetlb size). A larger folio
//! inside a 4 KiB range (a transparent huge page, or a folio of 16 KiB to 1 MiB) is *folded*: its first
//! frame stands for all of them, the tails are never tracked.

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
    /// For a range of 4 KiB frames, the [block](Folded) of 2 MiB in which it begins.
    first_block: u32,
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
        let (mut end, mut blocks) = (0_u64, 0);
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
                first_block: blocks,
                ahead: (hva.0 / BASE_PAGE) as u32 % FOLD,
            };
            blocks = placed.block_of(placed.first + frames - 1) + 1;
            index.spans.push(placed);
        }
        index.folded.grow(blocks);
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
        let bytes = match self.folded_at(placed, id.0) {
            Some(frames) => u64::from(frames.end - frames.start) * BASE_PAGE,
            None => placed.span.frame_bytes,
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

    /// The page that the frame of this number belongs to: its own, or the page that it is folded into.
    #[must_use]
    pub fn page_of_frame(&self, frame: u32) -> Option<PageId> {
        let placed = self.span_of(frame)?;
        Some(PageId(self.head_of(placed, frame)))
    }

    /// Whether `id` is the head of a folded page.
    #[must_use]
    pub fn is_folded(&self, id: PageId) -> bool {
        self.span_of(id.0)
            .is_some_and(|placed| self.folded_at(placed, id.0).is_some())
    }

    /// The number of folded pages.
    #[must_use]
    pub const fn folded(&self) -> usize {
        self.folded.count()
    }

    /// Whether the page can be folded: two or more whole frames in one 2 MiB, wholly inside a 4 KiB
    /// range, and none of them folded yet.
    #[must_use]
    pub fn can_fold(&self, page: Page) -> bool {
        let Page { hva, bytes } = page;
        let is_whole = hva.0.is_multiple_of(BASE_PAGE) && bytes.is_multiple_of(BASE_PAGE);
        let fits = is_whole && bytes > BASE_PAGE && hva.0 % HUGE_PAGE + bytes <= HUGE_PAGE;
        fits && self.span_at(hva).is_some_and(|placed| {
            let end = placed.span.hva.0 + placed.span.bytes;
            if placed.span.frame_bytes != BASE_PAGE || hva.0 + bytes > end {
                return false;
            }
            let first = placed.frame_at(hva);
            let frames = first..first + (bytes / BASE_PAGE) as u32;
            let is_covered = self.head_of(placed, first) != first;
            !is_covered && self.pages_among(placed, frames).next().is_none()
        })
    }

    /// Declares these frames one page. Returns the frames, or `None` if it
    /// [can't be folded](Self::can_fold).
    pub fn fold(&mut self, page: Page) -> Option<Range<u32>> {
        if !self.can_fold(page) {
            return None;
        }
        let placed = self.span_at(page.hva)?;
        let head = placed.frame_at(page.hva);
        let frames = head..head + (page.bytes / BASE_PAGE) as u32;
        let (block, place) = (placed.block_of(head), placed.place_of(head));
        let end = place + (frames.end - frames.start);
        self.folded.fold(block, place..end);
        Some(frames)
    }

    /// Undoes [`Self::fold`]. Returns the frames that are single pages again, or `None` if no folded
    /// page begins at `hva`.
    pub fn unfold(&mut self, hva: Hva) -> Option<Range<u32>> {
        let placed = self.span_at(hva)?;
        let head = placed.frame_at(hva);
        let frames = self.folded_at(placed, head)?;
        let (block, place) = (placed.block_of(head), placed.place_of(head));
        let end = place + (frames.end - frames.start);
        self.folded.unfold(block, place..end);
        Some(frames)
    }

    /// The folded pages that begin in `hva .. hva + len`.
    #[must_use]
    pub fn folded_in(&self, hva: Hva, len: u64) -> Vec<Page> {
        self.pieces(hva, len)
            .flat_map(|(placed, frames)| {
                self.pages_among(placed, frames).map(move |page| Page {
                    hva: placed.address_of(page.start),
                    bytes: u64::from(page.end - page.start) * BASE_PAGE,
                })
            })
            .filter(|page| page.hva >= hva)
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
        let place = placed.place_of(frame);
        let head = self.folded.head(placed.block_of(frame), place);
        frame - (place - head)
    }

    /// The frames of the folded page of which a frame is the head.
    fn folded_at(&self, placed: &Placed, frame: u32) -> Option<Range<u32>> {
        let page = self.folded_around(placed, frame)?;
        (page.start == frame).then_some(page)
    }

    /// The frames of the folded page that a frame belongs to.
    fn folded_around(&self, placed: &Placed, frame: u32) -> Option<Range<u32>> {
        if placed.span.frame_bytes != BASE_PAGE {
            return None;
        }
        let place = placed.place_of(frame);
        let page = self.folded.page(placed.block_of(frame), place)?;
        let head = frame - (place - page.start);
        Some(head..head + (page.end - page.start))
    }

    /// The folded pages that begin among frames of a span.
    fn pages_among(&self, placed: &Placed, frames: Range<u32>) -> impl Iterator<Item = Range<u32>> {
        let base = placed.span.frame_bytes == BASE_PAGE && !frames.is_empty();
        let blocks = match base {
            true => placed.block_of(frames.start)..placed.block_of(frames.end - 1) + 1,
            false => 0..0,
        };
        let pages = self.folded.pages(blocks).map(|(block, page)| {
            let head = placed.frame_in(block, page.start);
            head..head + (page.end - page.start)
        });
        pages.filter(move |page| frames.contains(&page.start))
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

    /// The block of 2 MiB that a frame lies in; spans of larger frames have one that is never folded.
    fn block_of(&self, frame: u32) -> u32 {
        match self.span.frame_bytes {
            BASE_PAGE => self.first_block + (frame - self.first + self.ahead) / FOLD,
            _ => self.first_block,
        }
    }

    /// Which frame of its block of 2 MiB a frame of 4 KiB is.
    fn place_of(&self, frame: u32) -> u32 {
        (frame - self.first + self.ahead) % FOLD
    }

    /// The frame at a place in a block, which lies in the span.
    fn frame_in(&self, block: u32, place: u32) -> u32 {
        self.first + (block - self.first_block) * FOLD + place - self.ahead
    }

    fn address_of(&self, frame: u32) -> Hva {
        Hva(self.span.hva.0 + u64::from(frame - self.first) * self.span.frame_bytes)
    }
}

#[cfg(test)]
mod tests;
