//! The sizes of the guest's pages, as the kernel has them now.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use tier_core::{
    addr::{HUGE_PAGE, Hva},
    moves::Page,
    pages::Span,
};
use tier_sys::{
    folios::{self, Folios},
    pagemap::{PageRange, Pagemap},
    sysroot::SysRoot,
};

use crate::log::with_causes;

/// How often the host's knobs for folios are read again: some fifty small files.
const KNOBS_EVERY: Duration = Duration::from_secs(30);

/// See the [module](self).
pub(super) struct PageSizes {
    root: SysRoot,
    /// Without it (another user's process) larger pages go unnoticed; moving will tell why.
    pagemap: Option<Pagemap>,
    folios: Option<Folios>,
    may_have_folios: bool,
    /// A look-up has found a larger page. Before that, moves don't ask for the sizes of their pages: a
    /// guest on a memfd, whose pages stay small, would pay up to 0.9 µs for each page that it moves.
    has_larger: bool,
    look_at: Option<Instant>,
    /// Where the guest's memory begins or ends inside 2 MiB. A huge page there is tracked frame by
    /// frame.
    cut: BTreeSet<Hva>,
}

/// The most places of [`PageSizes::cut`]: two for each RAM block, of guests that are plugged and
/// unplugged.
const MOST_CUTS: usize = 4096;

impl PageSizes {
    pub(super) fn open(root: &SysRoot, pid: u32) -> Self {
        Self {
            root: root.clone(),
            pagemap: Pagemap::open(root, pid).ok(),
            folios: Folios::open(root).ok(),
            may_have_folios: false,
            has_larger: false,
            look_at: None,
            cut: BTreeSet::new(),
        }
    }

    /// The pages of a span that are larger than its frames, in rising order. Each lies in one 2 MiB.
    pub(super) fn larger(&mut self, span: Span) -> Result<Vec<Page>, String> {
        if span.frame_bytes >= HUGE_PAGE {
            return Ok(Vec::new());
        }
        self.look_at_knobs();
        self.note_cuts(span);
        let Some(pagemap) = &self.pagemap else {
            return Ok(Vec::new());
        };
        let huge = pagemap.huge_ranges(span.hva, span.bytes);
        let huge = huge.map_err(|error| with_causes(&error))?;
        let mut larger = huge.map_or_else(Vec::new, |ranges| huge_pages(&ranges));
        self.has_larger |= !larger.is_empty();
        let Some(folios) = self.folios.as_ref().filter(|_| self.may_have_folios) else {
            return Ok(larger);
        };
        let end = span.hva.0 + span.bytes;
        let mut gaps = Vec::new();
        let mut at = span.hva.0;
        for page in &larger {
            gaps.push((at, page.hva.0));
            at = page.hva.0 + page.bytes;
        }
        gaps.push((at, end));
        for (from, to) in gaps.into_iter().filter(|(from, to)| from < to) {
            // Frames of a device have no flags: then its pages count as single.
            let found = folios.find(pagemap, Hva(from), to - from);
            larger.extend(found.unwrap_or_default());
        }
        self.has_larger |= !larger.is_empty();
        larger.sort_unstable_by_key(|page| page.hva);
        Ok(larger)
    }

    /// Whether each page is no longer what it is taken for: the kernel has collapsed it into a huge
    /// page, or split it. Such a page would take others along, or leave a part behind.
    ///
    /// A huge page is mapped by one entry, so one question for each 2 MiB tells: under a microsecond,
    /// where moving a page takes several. None is until a look-up has found the first larger page.
    pub(super) fn are_stale(&self, pages: &[Page]) -> Vec<bool> {
        if !self.has_larger {
            return vec![false; pages.len()];
        }
        let mut known: BTreeMap<Hva, Option<bool>> = BTreeMap::new();
        let is_huge = |hva: Hva| {
            let answer = self.pagemap.as_ref()?.is_huge(hva);
            answer.ok().flatten()
        };
        let is_stale = |page: &Page| {
            let block = page.hva.align_down(HUGE_PAGE);
            let is_huge = *known.entry(block).or_insert_with(|| is_huge(page.hva));
            match (is_huge, page.bytes == HUGE_PAGE) {
                _ if self.cut.contains(&block) => false,
                (Some(true), is_whole) => !is_whole,
                (Some(false), true) => !self.is_folio(*page),
                (Some(false), false) | (None, _) => false,
            }
        };
        pages.iter().map(is_stale).collect()
    }

    /// Whether the page is one folio now, however it is mapped.
    pub(super) fn is_one(&self, page: Page) -> bool {
        let map = self.pagemap.as_ref();
        let is_huge = map.and_then(|map| map.is_huge(page.hva).ok().flatten());
        is_huge == Some(true) || self.is_folio(page)
    }

    /// Chunks of look-ups end on borders of 2 MiB, unless the guest's memory ends elsewhere.
    fn note_cuts(&mut self, span: Span) {
        let ends = [span.hva, Hva(span.hva.0 + span.bytes)];
        for end in ends.iter().filter(|end| !end.0.is_multiple_of(HUGE_PAGE)) {
            if self.cut.len() < MOST_CUTS {
                self.cut.insert(end.align_down(HUGE_PAGE));
            }
        }
    }

    /// Whether the page is one folio that is mapped frame by frame.
    fn is_folio(&self, page: Page) -> bool {
        let readers = self.folios.as_ref().zip(self.pagemap.as_ref());
        let found = readers.map(|(folios, map)| folios.find(map, page.hva, page.bytes));
        found.is_some_and(|found| found.is_ok_and(|found| found == [page]))
    }

    fn look_at_knobs(&mut self) {
        let now = Instant::now();
        if self.folios.is_some() && self.look_at.is_none_or(|at| now >= at) {
            self.may_have_folios = folios::may_exist(&self.root);
            self.look_at = Some(now + KNOBS_EVERY);
        }
    }
}

/// The huge pages that lie whole in runs of them.
fn huge_pages(ranges: &[PageRange]) -> Vec<Page> {
    let pages = |range: &PageRange| {
        let first = range.start.0.next_multiple_of(HUGE_PAGE);
        (first..range.end.0)
            .step_by(HUGE_PAGE as usize)
            .filter(|head| head + HUGE_PAGE <= range.end.0)
            .map(|head| Page {
                hva: Hva(head),
                bytes: HUGE_PAGE,
            })
            .collect::<Vec<_>>()
    };
    ranges.iter().flat_map(pages).collect()
}

/// The pages of a span: larger ones whole, everything else frame by frame.
pub(super) fn pages_of(span: Span, larger: &[Page]) -> Vec<Page> {
    let end = span.hva.0 + span.bytes;
    let mut pages = Vec::new();
    // One that reaches past the span is looked at frame by frame: its other part is not tracked.
    let mut larger = larger
        .iter()
        .copied()
        .filter(|page| page.hva.0 + page.bytes <= end)
        .peekable();
    let mut at = span.hva.0;
    while at < end {
        let frame = Page {
            hva: Hva(at),
            bytes: span.frame_bytes,
        };
        let page = larger.next_if(|page| page.hva.0 == at).unwrap_or(frame);
        at += page.bytes;
        pages.push(page);
    }
    pages
}

#[cfg(test)]
mod tests {
    use tier_core::addr::BASE_PAGE;

    use super::*;

    #[test]
    fn pages_of_a_span_when_some_are_larger_cover_it_once() {
        let span = Span {
            hva: Hva(HUGE_PAGE),
            bytes: 2 * HUGE_PAGE,
            frame_bytes: BASE_PAGE,
        };
        let folio = Page {
            hva: Hva(HUGE_PAGE + 16 * BASE_PAGE),
            bytes: 16 * BASE_PAGE,
        };
        let huge = Page {
            hva: Hva(2 * HUGE_PAGE),
            bytes: HUGE_PAGE,
        };
        let pages = pages_of(span, &[folio, huge]);
        assert_eq!(pages.len(), 512 - 15 + 1);
        assert_eq!(pages.iter().map(|page| page.bytes).sum::<u64>(), span.bytes);
        assert_eq!(pages[16], folio);
        assert_eq!(pages.last(), Some(&huge));
    }

    #[test]
    fn page_when_the_kernel_has_it_in_a_huge_page_is_stale_as_a_small_page() {
        // The agent's allocator asks for huge pages under large blocks.
        let memory = vec![1_u8; 16 << 20];
        let start = (memory.as_ptr() as u64).next_multiple_of(HUGE_PAGE);
        let mut sizes = PageSizes::open(&SysRoot::real(), std::process::id());
        // The tracked memory ends inside the last 2 MiB.
        let span = Span {
            hva: Hva(start),
            bytes: 3 * HUGE_PAGE + BASE_PAGE,
            frame_bytes: BASE_PAGE,
        };
        let huge = |number| Page {
            hva: Hva(start + number * HUGE_PAGE),
            bytes: HUGE_PAGE,
        };
        let frame = |number: u64, at| Page {
            hva: Hva(huge(number).hva.0 + at * BASE_PAGE),
            bytes: BASE_PAGE,
        };
        let pages = [huge(0), frame(0, 7), frame(1, 0), frame(3, 0)];
        assert_eq!(sizes.are_stale(&pages), [false; 4], "nothing was looked up");
        let larger = sizes.larger(span).unwrap();
        if !(0..3).all(|number| larger.contains(&huge(number))) {
            return eprintln!("SKIPPED: this host gives no transparent huge pages");
        }
        assert_eq!(sizes.are_stale(&pages), [false, true, true, false]);
        assert!(sizes.is_one(huge(1)));
        let elsewhere = Page {
            hva: Hva(64 * BASE_PAGE),
            bytes: BASE_PAGE,
        };
        assert_eq!(sizes.are_stale(&[elsewhere]), [false]);
        assert_eq!(memory[start as usize - memory.as_ptr() as usize], 1);
    }
}
