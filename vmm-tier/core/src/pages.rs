//! The page index: HVA ↔ [`PageId`], whatever the page sizes.
//!
//! The guest's unique HVA ranges stand one after the other in *tracked space*; each frame has a
//! number there. The frame is the range's kernel page size (4 KiB, or a hugetlb size). A transparent
//! huge page inside a 4 KiB range is *folded*: its head frame stands for all 512, the tails are never
//! tracked.

use std::{collections::BTreeSet, ops::Range};

use crate::{
    addr::{BASE_PAGE, HUGE_PAGE, Hva},
    dual_heap::PageId,
    moves::Page,
};

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

/// A run of pages that an address range covers, and how much of each page it covers.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The pages; each stands for itself (no tails).
    pub ids: Range<u32>,
    /// The covered share of each page, in (0, 1].
    pub share: f32,
}

#[derive(Clone, Copy, Debug)]
struct Placed {
    span: Span,
    first: u32,
    frames: u32,
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
    folded: BTreeSet<u32>,
}

impl PageIndex {
    /// Builds the index over spans in rising order of address.
    ///
    /// # Errors
    /// If spans overlap, are not whole pages, or have too many frames.
    pub fn new(spans: impl IntoIterator<Item = Span>) -> Result<Self, PageIndexError> {
        let mut index = Self::default();
        let mut end = 0_u64;
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
            index.spans.push(Placed {
                span,
                first,
                frames,
            });
        }
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
        let placed = self.span_of(id.0)?;
        let hva = Hva(placed.span.hva.0 + u64::from(id.0 - placed.first) * placed.span.frame_bytes);
        let bytes = if self.folded.contains(&id.0) {
            HUGE_PAGE
        } else {
            placed.span.frame_bytes
        };
        Some(Page { hva, bytes })
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
        self.folded.contains(&id.0)
    }

    /// The number of folded huge pages.
    #[must_use]
    pub fn folded(&self) -> usize {
        self.folded.len()
    }

    /// Whether the 2 MiB at `hva` can be folded: aligned, wholly inside a 4 KiB range, not folded yet.
    #[must_use]
    pub fn can_fold(&self, hva: Hva) -> bool {
        self.span_at(hva).is_some_and(|placed| {
            hva.0.is_multiple_of(HUGE_PAGE)
                && placed.span.frame_bytes == BASE_PAGE
                && hva.0 + HUGE_PAGE <= placed.span.hva.0 + placed.span.bytes
                && !self.folded.contains(&placed.frame_at(hva))
        })
    }

    /// Declares the 2 MiB at `hva` one page. Returns the frames that it now covers, or `None` if it
    /// [can't be folded](Self::can_fold).
    pub fn fold(&mut self, hva: Hva) -> Option<Range<u32>> {
        if !self.can_fold(hva) {
            return None;
        }
        let head = self.span_at(hva)?.frame_at(hva);
        self.folded.insert(head);
        Some(head..head + FOLD)
    }

    /// Undoes [`Self::fold`]. Returns the frames that are single pages again, or `None` if no folded
    /// page begins at `hva`.
    pub fn unfold(&mut self, hva: Hva) -> Option<Range<u32>> {
        let head = self.span_at(hva)?.frame_at(hva);
        self.folded.remove(&head).then(|| head..head + FOLD)
    }

    /// The addresses of folded pages that begin in `hva .. hva + len`.
    #[must_use]
    pub fn folded_in(&self, hva: Hva, len: u64) -> Vec<Hva> {
        let end = hva.0.saturating_add(len);
        self.pieces(hva, len)
            .flat_map(|(placed, frames)| {
                self.folded
                    .range(frames)
                    .map(move |&head| placed.address_of(head))
            })
            .filter(|head| *head >= hva && head.0 < end)
            .collect()
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

    /// Runs of a 4 KiB span: stretches between folded pages, and the folded pages one by one.
    fn base_runs(&self, placed: &Placed, frames: Range<u32>, each: &mut impl FnMut(Run)) {
        let mut at = frames.start;
        // A folded page that begins before the range may reach into it.
        let first = self.head_of(placed, at);
        for &head in self.folded.range(first..frames.end) {
            if head > at {
                each(Run {
                    ids: at..head,
                    share: 1.0,
                });
            }
            let covered = (head + FOLD).min(frames.end) - at.max(head);
            each(Run {
                ids: head..head + 1,
                share: covered as f32 / FOLD as f32,
            });
            at = head + FOLD;
        }
        if at < frames.end {
            each(Run {
                ids: at..frames.end,
                share: 1.0,
            });
        }
    }

    fn head_of(&self, placed: &Placed, frame: u32) -> u32 {
        if placed.span.frame_bytes != BASE_PAGE {
            return frame;
        }
        match self.folded.range(..=frame).next_back() {
            Some(&head) if frame - head < FOLD => head,
            _ => frame,
        }
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
        let frame = (hva.0 - self.span.hva.0) / self.span.frame_bytes;
        self.first + u32::try_from(frame).unwrap_or(u32::MAX - self.first)
    }

    fn address_of(&self, frame: u32) -> Hva {
        Hva(self.span.hva.0 + u64::from(frame - self.first) * self.span.frame_bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn index() -> PageIndex {
        PageIndex::new([
            Span {
                hva: Hva(16 * MIB),
                bytes: 8 * MIB,
                frame_bytes: BASE_PAGE,
            },
            Span {
                hva: Hva(32 * MIB),
                bytes: 8 * MIB,
                frame_bytes: HUGE_PAGE,
            },
        ])
        .unwrap()
    }

    fn runs(index: &PageIndex, hva: u64, len: u64) -> Vec<(Range<u32>, f32)> {
        let mut all = Vec::new();
        index.for_runs(Hva(hva), len, |run| all.push((run.ids, run.share)));
        all
    }

    #[test]
    fn page_when_looked_up_by_address_has_that_address() {
        let mut index = index();
        index.fold(Hva(18 * MIB)).unwrap();
        for hva in [16 * MIB, 17 * MIB + 4096, 18 * MIB, 32 * MIB, 36 * MIB] {
            let id = index.id_at(Hva(hva)).unwrap();
            assert_eq!(index.page(id).unwrap().hva, Hva(hva));
        }
        assert_eq!(index.id_at(Hva(24 * MIB)), None);
        assert_eq!(index.id_at(Hva(15 * MIB)), None);
        assert_eq!(index.frames(), 2048 + 4);
    }

    #[test]
    fn tail_when_its_huge_page_is_folded_resolves_to_the_head() {
        let mut index = index();
        assert_eq!(index.fold(Hva(18 * MIB)), Some(512..1024));
        assert_eq!(index.fold(Hva(18 * MIB)), None, "folded already");
        assert_eq!(index.fold(Hva(18 * MIB + 4096)), None, "unaligned");
        assert_eq!(index.fold(Hva(32 * MIB)), None, "hugetlb");
        assert_eq!(index.id_at(Hva(19 * MIB)), Some(PageId(512)));
        assert_eq!(index.page(PageId(512)).unwrap().bytes, HUGE_PAGE);
        assert_eq!(index.folded_in(Hva(16 * MIB), 8 * MIB), vec![Hva(18 * MIB)]);
        assert_eq!(index.unfold(Hva(18 * MIB)), Some(512..1024));
        assert_eq!(index.id_at(Hva(19 * MIB)), Some(PageId(768)));
    }

    #[test]
    fn runs_when_a_range_crosses_folded_pages_cover_it_once() {
        let mut index = index();
        index.fold(Hva(18 * MIB)).unwrap();
        assert_eq!(
            runs(&index, 17 * MIB, 4 * MIB),
            vec![(256..512, 1.0), (512..513, 1.0), (1024..1280, 1.0)]
        );
        assert_eq!(runs(&index, 19 * MIB, MIB), vec![(512..513, 0.5)]);
        assert_eq!(runs(&index, 16 * MIB + 100, 1), vec![(0..1, 1.0)]);
    }

    #[test]
    fn touched_when_a_folded_page_reaches_into_the_range_names_its_head() {
        let mut index = index();
        let touched = |index: &PageIndex, hva, len| index.touched(Hva(hva), len);
        assert_eq!(touched(&index, 19 * MIB, MIB), vec![768..1024]);
        index.fold(Hva(18 * MIB)).unwrap();
        assert_eq!(touched(&index, 19 * MIB, MIB), vec![512..513, 768..1024]);
        assert_eq!(
            touched(&index, 23 * MIB, 10 * MIB),
            vec![1792..2048, 2048..2049]
        );
        assert_eq!(touched(&index, 25 * MIB, MIB), vec![]);
    }

    #[test]
    fn runs_when_hugetlb_pages_are_partly_covered_tell_the_share() {
        let index = index();
        assert_eq!(
            runs(&index, 33 * MIB, 4 * MIB),
            vec![(2048..2049, 0.5), (2049..2050, 1.0), (2050..2051, 0.5)]
        );
        assert_eq!(runs(&index, 33 * MIB, MIB / 2), vec![(2048..2049, 0.25)]);
        assert_eq!(
            runs(&index, 33 * MIB, 2 * MIB),
            vec![(2048..2049, 0.5), (2049..2050, 0.5)]
        );
        let outside = index.for_runs(Hva(u64::MAX - 10), 100, |_| panic!("outside"));
        assert_eq!(outside, 0);
        assert_eq!(index.for_runs(Hva(0), u64::MAX / 2, |_| ()), 16 * MIB);
    }

    #[test]
    fn index_when_spans_are_wrong_is_refused() {
        let span = |hva, bytes, frame_bytes| Span {
            hva: Hva(hva),
            bytes,
            frame_bytes,
        };
        let empty = PageIndex::new([span(4096, 0, 4096), span(8192, 4096, 4096)]).unwrap();
        assert_eq!(empty.for_runs(Hva(0), 1 << 20, |_| ()), 4096);
        assert!(PageIndex::new([span(4096, 4096, 3000)]).is_err());
        assert!(PageIndex::new([span(4096, HUGE_PAGE, HUGE_PAGE)]).is_err());
        assert!(PageIndex::new([span(8192, 8192, 4096), span(12288, 4096, 4096)]).is_err());
        assert!(PageIndex::new([span(0, 1 << 46, 4096)]).is_err());
    }
}
