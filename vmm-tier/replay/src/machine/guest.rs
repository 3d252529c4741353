//! The pages of a replayed guest.

use tier_core::addr::{BASE_PAGE, HUGE_PAGE};

/// Pages that stand one after the other and have one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    address: u64,
    end: u64,
    first: u32,
    shift: u32,
}

/// A run of memory as a trace names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// The first byte, a multiple of the page size.
    pub address: u64,
    /// Bytes, a multiple of the page size.
    pub len: u64,
    /// Bytes of a page: a power of two from 4 KiB on.
    pub page_bytes: u64,
}

/// Why there is no guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// No page at all.
    #[error("the trace names no memory and accesses none: there is nothing to replay")]
    Empty,
    /// A range does not consist of whole pages.
    #[error("memory at {:#x} ({} bytes) does not consist of whole pages of {} bytes",
        .0.address, .0.len, .0.page_bytes)]
    Unaligned(MemoryRange),
    /// Ranges overlap or are not in rising order.
    #[error("memory at {0:#x} overlaps what comes before it")]
    Overlap(u64),
    /// More pages than can be numbered.
    #[error("the guest has more pages than can be replayed: 4 TiB of 4 KiB pages")]
    TooMany,
}

/// The guest's pages, numbered from 0 by rising address. A page is what moves as a whole: 4 KiB, or a
/// huge page.
#[derive(Clone, Debug)]
pub struct Guest {
    spans: Vec<Span>,
    pages: u32,
    bytes: u64,
    /// The pages in the order in which they were first touched; `None`: by address.
    touched: Option<Vec<u32>>,
}

impl Guest {
    /// A guest of `pages` pages of one size, from `first_address` on, first touched by rising address.
    /// The address is aligned down, the size brought to a power of two of at least 4 KiB.
    #[must_use]
    pub fn uniform(first_address: u64, pages: u32, page_bytes: u64) -> Self {
        let page_bytes = page_bytes.max(BASE_PAGE).next_power_of_two();
        let address = first_address / page_bytes * page_bytes;
        let bytes = u64::from(pages) * page_bytes;
        Self {
            spans: vec![Span {
                address,
                end: address + bytes,
                first: 0,
                shift: page_bytes.trailing_zeros(),
            }],
            pages,
            bytes,
            touched: None,
        }
    }

    /// The guest of a trace that names its memory, in rising order of address.
    ///
    /// # Errors
    /// If there is none, or ranges overlap, are not whole pages, or have more than 2^30 pages.
    pub fn from_ranges(ranges: &[MemoryRange]) -> Result<Self, GuestError> {
        let mut spans: Vec<Span> = Vec::with_capacity(ranges.len());
        let (mut pages, mut bytes) = (0_u64, 0_u64);
        for &range in ranges {
            let MemoryRange {
                address,
                len,
                page_bytes,
            } = range;
            let whole = page_bytes.is_power_of_two() && page_bytes >= BASE_PAGE;
            let end = address.checked_add(len);
            if !whole || !address.is_multiple_of(page_bytes) || !len.is_multiple_of(page_bytes) {
                return Err(GuestError::Unaligned(range));
            }
            let Some(end) = end else {
                return Err(GuestError::Overlap(address));
            };
            if spans.last().is_some_and(|last| address < last.end) {
                return Err(GuestError::Overlap(address));
            }
            let first = u32::try_from(pages).map_err(|_| GuestError::TooMany)?;
            pages += len / page_bytes;
            bytes = bytes.saturating_add(len);
            if len > 0 {
                spans.push(Span {
                    address,
                    end,
                    first,
                    shift: page_bytes.trailing_zeros(),
                });
            }
            if pages > 1 << 30 {
                return Err(GuestError::TooMany);
            }
        }
        if pages == 0 {
            return Err(GuestError::Empty);
        }
        Ok(Self {
            spans,
            pages: pages as u32,
            bytes,
            touched: None,
        })
    }

    /// The guest of a trace that does not name its memory: the pages that it touches, whose addresses
    /// come here in the order of their first touch. Addresses are those of pages of `page_bytes` bytes.
    ///
    /// # Errors
    /// If there are none, or more than 2^30.
    pub fn from_touched(addresses: &[u64], page_bytes: u64) -> Result<Self, GuestError> {
        let page_bytes = page_bytes.max(BASE_PAGE).next_power_of_two();
        let mut sorted: Vec<u64> = addresses.iter().map(|a| a / page_bytes).collect();
        sorted.sort_unstable();
        sorted.dedup();
        let mut ranges: Vec<MemoryRange> = Vec::new();
        for &number in &sorted {
            let address = number * page_bytes;
            match ranges.last_mut() {
                Some(last) if last.address + last.len == address => last.len += page_bytes,
                _ => ranges.push(MemoryRange {
                    address,
                    len: page_bytes,
                    page_bytes,
                }),
            }
        }
        let mut guest = Self::from_ranges(&ranges)?;
        let mut seen = vec![false; guest.pages as usize];
        let mut order = Vec::with_capacity(seen.len());
        for page in addresses.iter().filter_map(|&a| guest.page_at(a)) {
            if !std::mem::replace(&mut seen[page as usize], true) {
                order.push(page);
            }
        }
        guest.touched = Some(order);
        Ok(guest)
    }

    /// The number of pages.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    /// Bytes of all pages.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page_bytes(&self, page: u32) -> u64 {
        1 << self.span_of(page).shift
    }

    /// The address of a page's first byte.
    #[must_use]
    pub fn address(&self, page: u32) -> u64 {
        let span = self.span_of(page);
        span.address + (u64::from(page - span.first) << span.shift)
    }

    /// The page at an address; `None` outside the guest.
    #[inline]
    #[must_use]
    pub fn page_at(&self, address: u64) -> Option<u32> {
        let after = match self.spans.len() {
            1 => 1,
            _ => self.spans.partition_point(|span| span.address <= address),
        };
        let span = self.spans.get(after.checked_sub(1)?)?;
        (span.address..span.end)
            .contains(&address)
            .then(|| span.first + ((address - span.address) >> span.shift) as u32)
    }

    /// All pages in the order in which they were first touched: DRAM was filled in this order when the
    /// guest started, as the kernel does.
    pub fn first_touch(&self) -> impl Iterator<Item = u32> + '_ {
        let by_touch = self.touched.iter().flatten().copied();
        let all = if self.touched.is_none() {
            self.pages
        } else {
            0
        };
        by_touch.chain(0..all)
    }

    /// The runs of memory, by rising address.
    pub fn ranges(&self) -> impl Iterator<Item = MemoryRange> + '_ {
        self.spans.iter().map(|span| MemoryRange {
            address: span.address,
            len: span.end - span.address,
            page_bytes: 1 << span.shift,
        })
    }

    /// The same memory in pages of 2 MiB, as far as it holds such: what a guest on huge pages has. Ends
    /// that hold no whole huge page are widened to one.
    ///
    /// # Errors
    /// Never for a guest that exists; the signature is that of its parts.
    pub fn in_huge_pages(&self) -> Result<Self, GuestError> {
        let heads: Vec<u64> = self
            .first_touch()
            .map(|page| self.address(page) / HUGE_PAGE * HUGE_PAGE)
            .collect();
        Self::from_touched(&heads, HUGE_PAGE)
    }

    fn span_of(&self, page: u32) -> Span {
        let after = match self.spans.len() {
            1 => 1,
            _ => self.spans.partition_point(|span| span.first <= page),
        };
        self.spans[after.max(1) - 1]
    }
}
