//! Reading a process's page table into the inverse map: pages that were moved, and all of them round and
//! round.

use tier_core::addr::{BASE_PAGE, Hva};

use super::{Area, InverseError, InverseMap, table::Span};
use crate::pagemap::{Categories, PageEntry, PageRange, Pagemap, PagemapError};

/// Base pages that are read at a time where pages are small: one huge page's.
pub(super) const CHUNK: u64 = 512;
/// Base pages that [`InverseMap::roll`] reads between two looks at its budget.
pub(super) const WINDOW: u64 = 8 * CHUNK;
/// What the map asks of a process's page table.
pub trait PageTable {
    /// The runs of present pages in `start .. start + len`, each with whether it is huge or zero. `None`:
    /// the kernel can't say.
    ///
    /// # Errors
    /// [`PagemapError`].
    fn present(&self, start: Hva, len: u64) -> Result<Option<Vec<PageRange>>, PagemapError>;

    /// The entries of the base pages from `start` on, one for each place in `entries`.
    ///
    /// # Errors
    /// [`PagemapError`].
    fn read(&self, start: Hva, entries: &mut [PageEntry]) -> Result<(), PagemapError>;
}

impl PageTable for Pagemap {
    fn present(&self, start: Hva, len: u64) -> Result<Option<Vec<PageRange>>, PagemapError> {
        self.present_ranges(start, len)
    }

    fn read(&self, start: Hva, entries: &mut [PageEntry]) -> Result<(), PagemapError> {
        self.entries(start, entries)
    }
}

/// What reading pages again brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reread {
    /// Entries read.
    pub read: u64,
    /// Base pages that were found at another frame than before, appeared or went away.
    pub changed: u64,
    /// Whether [`InverseMap::roll`] came to the end and begins again.
    pub pass_done: bool,
}

impl Reread {
    /// Adds what another reading brought.
    pub fn add(&mut self, other: Self) {
        self.read += other.read;
        self.changed += other.changed;
        self.pass_done |= other.pass_done;
    }
}

impl InverseMap {
    /// Reads these pages (address and bytes) again: they were moved just now.
    ///
    /// # Errors
    /// [`InverseError`].
    pub fn refresh(
        &mut self,
        table: &impl PageTable,
        moved: &[(Hva, u64)],
    ) -> Result<Reread, InverseError> {
        let mut sorted: Vec<(u64, u64)> = moved
            .iter()
            .map(|&(start, len)| (start.0 / BASE_PAGE, end_page(start, len)))
            .collect();
        sorted.sort_unstable();
        let mut done = Reread::default();
        let mut runs = sorted.into_iter().peekable();
        while let Some((start, mut end)) = runs.next() {
            while let Some((_, more)) = runs.next_if(|&(next, _)| next <= end) {
                end = end.max(more);
            }
            for index in 0..self.areas.len() {
                let area = self.areas[index];
                let from = area.hva / BASE_PAGE;
                let (first, last) = (start.max(from), end.min(from + area.pages));
                if first < last {
                    let numbers = (area.first + (first - from), area.first + (last - from));
                    done.add(self.read_small(table, area, numbers)?);
                }
            }
        }
        Ok(done)
    }

    /// Reads on from where the last call ended, in pieces of at least 16 MiB, for as long as `go_on` says so
    /// and at most once through all pages.
    ///
    /// # Errors
    /// [`InverseError`].
    pub fn roll(
        &mut self,
        table: &impl PageTable,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Reread, InverseError> {
        let mut done = Reread::default();
        loop {
            let Some(&area) = self.areas.iter().find(|area| self.cursor < area.end()) else {
                self.cursor = 0;
                done.pass_done = true;
                return Ok(done);
            };
            let start = self.cursor.max(area.first);
            let window = WINDOW.max(area.page_size / BASE_PAGE);
            let end = (start + 1).next_multiple_of(window).min(area.end());
            done.add(self.read_window(table, area, (start, end))?);
            self.cursor = end;
            if !go_on() {
                return Ok(done);
            }
        }
    }

    /// Reads a window of an area, leaving out what is not there.
    fn read_window(
        &mut self,
        table: &impl PageTable,
        area: Area,
        (start, end): (u64, u64),
    ) -> Result<Reread, InverseError> {
        let length = (end - start) * BASE_PAGE;
        let Some(runs) = table.present(area.hva_of(start), length)? else {
            return self.read_small(table, area, (start, end));
        };
        let mut done = Reread::default();
        let mut at = start;
        for run in runs {
            let number = |hva: Hva| {
                let page = hva.0.saturating_sub(area.hva) / BASE_PAGE + area.first;
                page.clamp(at, end)
            };
            let (from, to) = (number(run.start), number(run.end));
            done.changed += self.forget(at, from);
            if run.categories.has(Categories::ZERO) {
                // Many pages share the frame of zeros: an access to it tells nothing.
                done.changed += self.forget(from, to);
            } else if run.categories.has(Categories::HUGE) {
                done.add(self.read_huge(table, area, (from, to))?);
            } else {
                done.add(self.read_small(table, area, (from, to))?);
            }
            at = to;
        }
        done.changed += self.forget(at, end);
        Ok(done)
    }

    /// Reads pages that are mapped by huge entries: only the head of each.
    fn read_huge(
        &mut self,
        table: &impl PageTable,
        area: Area,
        (start, end): (u64, u64),
    ) -> Result<Reread, InverseError> {
        let is_giant = area.page_size >= u64::from(Span::Giant.pages()) * BASE_PAGE;
        let mut done = Reread::default();
        let mut at = start;
        while at < end {
            let fits = |span: Span| {
                let pages = u64::from(span.pages());
                at.is_multiple_of(pages) && at + pages <= end
            };
            let span = [Span::Giant, Span::Huge]
                .into_iter()
                .find(|&span| fits(span) && (is_giant || span == Span::Huge));
            let Some(span) = span else {
                let next = (at + 1).next_multiple_of(CHUNK).min(end);
                done.add(self.read_small(table, area, (at, next))?);
                at = next;
                continue;
            };
            let mut head = [PageEntry::default()];
            table.read(area.hva_of(at), &mut head)?;
            let next = at + u64::from(span.pages());
            match frame_of(head[0], area.hva_of(at))? {
                Some(frame) if frame.is_multiple_of(u64::from(span.pages())) => {
                    done.read += 1;
                    done.changed += self.bind(at, frame, span);
                }
                // Split meanwhile.
                _ => done.add(self.read_small(table, area, (at, next))?),
            }
            at = next;
        }
        Ok(done)
    }

    /// Reads every base page. Where 512 of them turn out to lie in one piece they get one entry.
    fn read_small(
        &mut self,
        table: &impl PageTable,
        area: Area,
        (start, end): (u64, u64),
    ) -> Result<Reread, InverseError> {
        let mut done = Reread::default();
        let mut entries = std::mem::take(&mut self.entries);
        let mut at = start;
        while at < end {
            let next = (at + 1).next_multiple_of(CHUNK).min(end);
            entries.clear();
            // At most 512, so it fits.
            entries.resize((next - at) as usize, PageEntry::default());
            table.read(area.hva_of(at), &mut entries)?;
            done.read += next - at;
            done.changed += self.bind_all(&area, at, &entries)?;
            at = next;
        }
        self.entries = entries;
        Ok(done)
    }

    /// Notes what the entries of the pages from `first` on say. Returns how many changed.
    fn bind_all(
        &mut self,
        area: &Area,
        first: u64,
        entries: &[PageEntry],
    ) -> Result<u64, InverseError> {
        let head = entries.first().and_then(|entry| entry.frame());
        if let Some(head) = head.filter(|head| head.is_multiple_of(CHUNK) && *head > 0) {
            let in_one_piece = entries.len() as u64 == CHUNK
                && (head..)
                    .zip(entries)
                    .all(|(frame, entry)| entry.frame() == Some(frame));
            if in_one_piece {
                return Ok(self.bind(first, head, Span::Huge));
            }
        }
        let mut changed = 0;
        for (page, &entry) in (first..).zip(entries) {
            changed += match frame_of(entry, area.hva_of(page))? {
                Some(frame) => self.bind(page, frame, Span::Base),
                None => self.forget(page, page + 1),
            };
        }
        Ok(changed)
    }
}

/// The page behind the last that a run touches.
fn end_page(start: Hva, len: u64) -> u64 {
    start.0.saturating_add(len).div_ceil(BASE_PAGE)
}

/// The frame of a present page. No page of a process lies at frame 0: that is what the kernel shows to
/// those who may not know.
fn frame_of(entry: PageEntry, page: Hva) -> Result<Option<u64>, InverseError> {
    match entry.frame() {
        Some(0) => Err(InverseError::Hidden { page }),
        frame => Ok(frame),
    }
}
