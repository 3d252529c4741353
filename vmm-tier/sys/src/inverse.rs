//! The inverse page map: which page of QEMU a host-physical address belongs to.
//!
//! Built from `/proc/QEMU/pagemap` for the pages that hold guest RAM, with one entry for each backing page
//! (a huge page is one entry), and its mirror, page to frame, by which a page that is found at another
//! frame takes its old entry along. The two always say the same ([`InverseMap::is_valid`]): a frame is
//! never reported for a page that was read again and is elsewhere.
//!
//! Pages move. Those that we move are read again at once ([`InverseMap::refresh`]); those that the kernel
//! moves (khugepaged, compaction, NUMA balancing), or that the guest touches for the first time, are
//! found by reading round and round at a bounded cost ([`InverseMap::roll`], [`RereadBudget`]).

mod read;
mod reread_budget;
mod table;
#[cfg(test)]
mod tests;

use tier_core::{
    addr::{BASE_PAGE, Hva},
    map::HvaRange,
};

use self::{
    read::CHUNK,
    table::{LIMIT, NODE_BYTES, Piece, Span, Table},
};
use crate::pagemap::{PageEntry, PagemapError};

pub use self::{
    read::{PageTable, Reread},
    reread_budget::RereadBudget,
};

/// Bytes that the map may take: this many for each page of the guest, and a fixed part. The entries of a
/// guest whose frames lie close together take about eight; the rest is for frames that are scattered
/// over a larger host.
const BYTES_A_PAGE: u64 = 64;
const FIXED_BYTES: u64 = 16 << 20;
/// Nodes that room is made for at the start at most, in one piece: 2 GiB.
const MOST_ROOM: usize = 1 << 20;

/// The map can't be made or read.
#[derive(Debug, thiserror::Error)]
pub enum InverseError {
    /// More guest RAM than the map can number.
    #[error("{bytes} bytes of guest RAM are more than the inverse page map can hold (16 TiB)")]
    TooLarge {
        /// The guest's RAM.
        bytes: u64,
    },
    /// The kernel hides frame numbers.
    #[error(
        "the kernel hides the physical addresses of QEMU's pages (at {page}): run the agent as root or \
         with CAP_SYS_ADMIN"
    )]
    Hidden {
        /// The page that was read.
        page: Hva,
    },
    /// The page table can't be read.
    #[error(transparent)]
    Pagemap(#[from] PagemapError),
}

/// A run of QEMU's pages, and their numbers in the tables.
#[derive(Clone, Copy, Debug)]
struct Area {
    /// The number of the first page. It has the alignment of the address, up to 1 GiB.
    first: u64,
    pages: u64,
    hva: u64,
    page_size: u64,
}

impl Area {
    fn new(range: &HvaRange, first: u64) -> Self {
        Self {
            first,
            pages: range.len / BASE_PAGE,
            hva: range.start.0,
            page_size: range.page_size,
        }
    }

    fn end(&self) -> u64 {
        self.first.saturating_add(self.pages)
    }

    fn hva_of(&self, page: u64) -> Hva {
        Hva(self.hva + (page - self.first) * BASE_PAGE)
    }
}

/// Host-physical address to page of QEMU.
#[derive(Debug)]
pub struct InverseMap {
    /// Sorted by number.
    areas: Vec<Area>,
    /// The address of page 0, if pages are numbered by their address.
    base: Option<u64>,
    /// Frame to page.
    pages: Table,
    /// Page to frame.
    frames: Table,
    /// Most nodes that both tables may have.
    most_nodes: usize,
    /// Base pages in the map.
    bound: u64,
    left_out: u64,
    /// Where [`Self::roll`] goes on: a page number.
    cursor: u64,
    entries: Vec<PageEntry>,
}

impl InverseMap {
    /// An empty map for these pages (see [`tier_core::map::GuestMemoryMap::unique_hva_ranges`]), sorted by
    /// address and disjoint.
    ///
    /// # Errors
    /// [`InverseError::TooLarge`].
    pub fn new(ranges: &[HvaRange]) -> Result<Self, InverseError> {
        let too_large = || InverseError::TooLarge {
            bytes: ranges
                .iter()
                .fold(0, |sum, range| sum.saturating_add(range.len)),
        };
        let (base, areas) = match numbered_by_address(ranges) {
            Some((base, areas)) => (Some(base), areas),
            None => (None, numbered_in_turn(ranges).ok_or_else(too_large)?),
        };
        let all: u64 = areas.iter().map(|area| area.pages).sum();
        // As many nodes as a guest of small pages takes if its frames lie close together.
        let room = usize::try_from(all / CHUNK).map_or(MOST_ROOM, |room| room.min(MOST_ROOM));
        let bytes = all.saturating_mul(BYTES_A_PAGE).saturating_add(FIXED_BYTES);
        Ok(Self {
            base,
            areas,
            pages: Table::with_room(room + room / 4),
            frames: Table::with_room(room + room / 64 + 2),
            most_nodes: usize::try_from(bytes).unwrap_or(usize::MAX) / NODE_BYTES,
            bound: 0,
            left_out: 0,
            cursor: 0,
            entries: Vec::new(),
        })
    }

    /// Where QEMU maps this host-physical address; `None` if it is none of the guest's pages, as far as is
    /// known.
    #[must_use]
    #[inline]
    pub fn locate(&self, physical: u64) -> Option<Hva> {
        let frame = u32::try_from(physical / BASE_PAGE).ok()?;
        let page = u64::from(self.pages.get(frame)?);
        let hva = match self.base {
            Some(base) => base + page * BASE_PAGE,
            None => self.area_of(page)?.hva_of(page).0,
        };
        Some(Hva(hva + physical % BASE_PAGE))
    }

    /// The area that holds a page number.
    fn area_of(&self, page: u64) -> Option<&Area> {
        let after = self.areas.partition_point(|area| area.first <= page);
        let area = self.areas.get(after.checked_sub(1)?)?;
        (page < area.end()).then_some(area)
    }

    /// Guest RAM in the map, in bytes.
    #[must_use]
    pub fn bound_bytes(&self) -> u64 {
        self.bound * BASE_PAGE
    }

    /// Base pages that were found and have no entry, because the map is as large as it may be or their
    /// physical address is 16 TiB or more. Counted each time they are read.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Bytes that the map itself takes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.pages.bytes() + self.frames.bytes()
    }

    /// Whether both tables say the same of every page. Takes as long as reading all of them.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let mut bound = 0;
        let mut same = true;
        for area in &self.areas {
            let mut page = area.first;
            while page < area.end() {
                let Some(piece) = self.frames.piece(page as u32) else {
                    page += 1;
                    continue;
                };
                let mirror = Piece {
                    key: piece.value,
                    value: piece.key,
                    span: piece.span,
                };
                same &= self.pages.piece(piece.value) == Some(mirror);
                bound += u64::from(piece.span.pages());
                page = u64::from(piece.key) + u64::from(piece.span.pages());
            }
        }
        same && bound == self.bound && self.pages.mapped() == bound
    }

    /// Notes that the pages of a span lie at these frames. Returns how many are new there.
    fn bind(&mut self, page: u64, frame: u64, span: Span) -> u64 {
        let pages = span.pages();
        let (Ok(key), Some(value)) = (u32::try_from(page), within_limit(frame, pages)) else {
            self.left_out += u64::from(pages);
            return self.forget(page, page + u64::from(pages));
        };
        if let Some(known) = self.frames.piece(key)
            && known.span >= span
            && known.value + (key - known.key) == value
        {
            return 0;
        }
        // The pages were elsewhere, and others were here.
        self.forget(page, page + u64::from(pages));
        let (frames, bound) = (&mut self.frames, &mut self.bound);
        self.pages.take(value, value + pages, |old| {
            *bound -= u64::from(old.span.pages());
            frames.take(old.value, old.value + old.span.pages(), |_| {});
        });
        if self.pages.nodes() + self.frames.nodes() >= self.most_nodes {
            self.left_out += u64::from(pages);
            return u64::from(pages);
        }
        self.frames.set(Piece { key, value, span });
        self.pages.set(Piece {
            key: value,
            value: key,
            span,
        });
        self.bound += u64::from(pages);
        u64::from(pages)
    }

    /// Notes that these pages are not there. Returns how many were.
    fn forget(&mut self, start: u64, end: u64) -> u64 {
        let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(end)) else {
            return 0;
        };
        let pages = &mut self.pages;
        let mut gone = 0;
        self.frames.take(start, end, |old| {
            gone += u64::from(old.span.pages());
            pages.take(old.value, old.value + old.span.pages(), |_| {});
        });
        self.bound -= gone;
        gone
    }
}

/// Numbers pages by their address, from the first one's on. `None` if they lie too far apart for that.
fn numbered_by_address(ranges: &[HvaRange]) -> Option<(u64, Vec<Area>)> {
    let giant = u64::from(Span::Giant.pages()) * BASE_PAGE;
    let base = ranges.iter().map(|range| range.start.0).min()? / giant * giant;
    let areas = ranges.iter().map(|range| {
        let area = Area::new(range, (range.start.0 - base) / BASE_PAGE);
        (area.end() < LIMIT).then_some(area)
    });
    let mut areas: Vec<Area> = areas.collect::<Option<_>>()?;
    areas.sort_by_key(|area| area.first);
    Some((base, areas))
}

/// Numbers the pages of one range behind those of the other, with a gap so that each keeps the alignment of
/// its address. `None` if they are too many.
fn numbered_in_turn(ranges: &[HvaRange]) -> Option<Vec<Area>> {
    let giant = u64::from(Span::Giant.pages());
    let mut next = 0u64;
    let areas = ranges.iter().map(|range| {
        let first = next.next_multiple_of(giant) + range.start.0 / BASE_PAGE % giant;
        let area = Area::new(range, first);
        next = area.end();
        (next < LIMIT).then_some(area)
    });
    areas.collect()
}

/// A frame whose whole span can be numbered.
fn within_limit(frame: u64, pages: u32) -> Option<u32> {
    let end = frame.checked_add(u64::from(pages))?;
    u32::try_from(frame).ok().filter(|_| end <= LIMIT)
}
