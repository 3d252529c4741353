//! A table from base pages to base pages, in three levels as page tables have them.
//!
//! Keys and values are numbers of base pages (4 KiB) below [`LIMIT`]. An entry has four bytes and stands for
//! one base page, or, a level or two higher, for 512 or 512 · 512 of them that are mapped in one piece:
//! a huge page is one entry. Nodes are made when they are needed and used again when they are empty.

use rustix::mm::{Advice, madvise};

/// Keys and values are less than this: 16 TiB of base pages.
pub(super) const LIMIT: u64 = u32::MAX as u64;

/// Entries of a node.
const FAN: u32 = 512;
/// Bytes of a node.
pub(super) const NODE_BYTES: usize = FAN as usize * 4;
/// Marks an entry of an upper level that maps its pages in one piece and leads to no node.
const WHOLE: u32 = 1 << 31;

/// How many base pages one entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Span {
    /// One: 4 KiB.
    Base,
    /// 512: 2 MiB.
    Huge,
    /// 512 · 512: 1 GiB.
    Giant,
}

impl Span {
    pub(super) const fn shift(self) -> u32 {
        match self {
            Self::Base => 0,
            Self::Huge => 9,
            Self::Giant => 18,
        }
    }

    pub(super) const fn pages(self) -> u32 {
        1 << self.shift()
    }
}

/// One entry: `pages` of the span from `key` on are those from `value` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) key: u32,
    pub(super) value: u32,
    pub(super) span: Span,
}

/// An entry of an upper level.
#[derive(Clone, Copy)]
enum Upper {
    Empty,
    /// The value, in units of the entry's span.
    Whole(u32),
    Node(usize),
}

impl Upper {
    #[inline]
    const fn of(entry: u32) -> Self {
        match entry {
            0 => Self::Empty,
            entry if entry & WHOLE != 0 => Self::Whole(entry & !WHOLE),
            entry => Self::Node(entry as usize - 1),
        }
    }
}

const fn whole(value: u32, span: Span) -> u32 {
    WHOLE | value >> span.shift()
}

/// The table.
#[derive(Debug)]
pub(super) struct Table {
    /// One entry for each 2¹⁸ pages.
    top: Box<[u32; 1 << 14]>,
    nodes: Vec<[u32; FAN as usize]>,
    /// Entries in use, of each node.
    used: Vec<u16>,
    free: Vec<u32>,
}

impl Table {
    /// An empty table with room for this many nodes. Room that is not used takes no memory.
    pub(super) fn with_room(nodes: usize) -> Self {
        let mut table = Self {
            top: Box::new([0; 1 << 14]),
            nodes: Vec::new(),
            used: Vec::new(),
            free: Vec::new(),
        };
        table.reserve(nodes);
        table
    }

    fn reserve(&mut self, nodes: usize) {
        self.nodes.reserve_exact(nodes);
        advise_huge_pages(&mut self.nodes);
    }

    /// Nodes in use.
    pub(super) fn nodes(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Base pages that are mapped.
    pub(super) fn mapped(&self) -> u64 {
        let below = |middle: usize| {
            let pages = self.nodes[middle]
                .iter()
                .map(|&entry| match Upper::of(entry) {
                    Upper::Empty => 0,
                    Upper::Whole(_) => u64::from(Span::Huge.pages()),
                    Upper::Node(leaf) => u64::from(self.used[leaf]),
                });
            pages.sum::<u64>()
        };
        let pages = self.top.iter().map(|&entry| match Upper::of(entry) {
            Upper::Empty => 0,
            Upper::Whole(_) => u64::from(Span::Giant.pages()),
            Upper::Node(middle) => below(middle),
        });
        pages.sum()
    }

    /// Bytes that the table holds.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.top)
            + self.nodes.len() * NODE_BYTES
            + self.used.capacity() * 2
            + self.free.capacity() * 4
    }

    /// The value of a key.
    #[inline]
    pub(super) fn get(&self, key: u32) -> Option<u32> {
        let (giant, huge, base) = places(key);
        let middle = match Upper::of(self.top[giant]) {
            Upper::Empty => return None,
            Upper::Whole(value) => {
                return Some(value << 18 | key & (Span::Giant.pages() - 1));
            }
            Upper::Node(node) => node,
        };
        match Upper::of(self.nodes[middle][huge]) {
            Upper::Empty => None,
            Upper::Whole(value) => Some(value << 9 | key & (FAN - 1)),
            Upper::Node(leaf) => self.nodes[leaf][base].checked_sub(1),
        }
    }

    /// The entry that holds a key.
    pub(super) fn piece(&self, key: u32) -> Option<Piece> {
        let (giant, huge, base) = places(key);
        let piece = |value: u32, span: Span| Piece {
            key: key & !(span.pages() - 1),
            value: value << span.shift(),
            span,
        };
        let middle = match Upper::of(self.top[giant]) {
            Upper::Empty => return None,
            Upper::Whole(value) => return Some(piece(value, Span::Giant)),
            Upper::Node(node) => node,
        };
        match Upper::of(self.nodes[middle][huge]) {
            Upper::Empty => None,
            Upper::Whole(value) => Some(piece(value, Span::Huge)),
            Upper::Node(leaf) => self.nodes[leaf][base]
                .checked_sub(1)
                .map(|value| piece(value, Span::Base)),
        }
    }

    /// Maps the pages of a piece, of which none may be mapped. Key and value are multiples of the span.
    pub(super) fn set(&mut self, piece: Piece) {
        let Piece { key, value, span } = piece;
        debug_assert!((key | value) & (span.pages() - 1) == 0);
        let (giant, huge, base) = places(key);
        if span == Span::Giant {
            self.top[giant] = whole(value, span);
            return;
        }
        let middle = match Upper::of(self.top[giant]) {
            Upper::Node(node) => node,
            Upper::Empty | Upper::Whole(_) => {
                let node = self.make();
                self.top[giant] = node as u32 + 1;
                node
            }
        };
        if span == Span::Huge {
            self.put(middle, huge, whole(value, span));
            return;
        }
        let leaf = match Upper::of(self.nodes[middle][huge]) {
            Upper::Node(node) => node,
            Upper::Empty | Upper::Whole(_) => {
                let node = self.make();
                self.put(middle, huge, node as u32 + 1);
                node
            }
        };
        self.put(leaf, base, value + 1);
    }

    /// Forgets the pages from `start` to before `end` and tells which they were. A piece that reaches over
    /// the bounds is cut, and its rest is kept.
    pub(super) fn take(&mut self, start: u32, end: u32, mut taken: impl FnMut(Piece)) {
        let mut at = u64::from(start);
        while at < u64::from(end) {
            // Below `end`, so it fits.
            let key = at as u32;
            let (giant, ..) = places(key);
            let first = u64::from(key & !(Span::Giant.pages() - 1));
            let next = first + u64::from(Span::Giant.pages());
            match Upper::of(self.top[giant]) {
                Upper::Empty => {}
                Upper::Whole(value) if at == first && next <= u64::from(end) => {
                    self.top[giant] = 0;
                    taken(Piece {
                        key,
                        value: value << 18,
                        span: Span::Giant,
                    });
                }
                Upper::Whole(value) => {
                    let node = self.cut(|i| whole((value << 9 | i) << 9, Span::Huge));
                    self.top[giant] = node as u32 + 1;
                    continue;
                }
                Upper::Node(node) => {
                    let bounds = (at, next.min(u64::from(end)));
                    self.take_below(node, bounds, &mut taken);
                    if self.used[node] == 0 {
                        self.top[giant] = 0;
                        self.free.push(node as u32);
                    }
                }
            }
            at = next;
        }
    }

    /// The same within one node of the middle level.
    fn take_below(
        &mut self,
        middle: usize,
        (mut at, end): (u64, u64),
        taken: &mut impl FnMut(Piece),
    ) {
        while at < end {
            let key = at as u32;
            let (_, huge, base) = places(key);
            let first = u64::from(key & !(FAN - 1));
            let next = first + u64::from(FAN);
            match Upper::of(self.nodes[middle][huge]) {
                Upper::Empty => {}
                Upper::Whole(value) if at == first && next <= end => {
                    self.put(middle, huge, 0);
                    taken(Piece {
                        key,
                        value: value << 9,
                        span: Span::Huge,
                    });
                }
                Upper::Whole(value) => {
                    let node = self.cut(|i| (value << 9 | i) + 1);
                    self.put(middle, huge, node as u32 + 1);
                    continue;
                }
                Upper::Node(leaf) => {
                    let count = next.min(end) - at;
                    for place in base..base + count as usize {
                        if let Some(value) = self.nodes[leaf][place].checked_sub(1) {
                            self.put(leaf, place, 0);
                            taken(Piece {
                                key: first as u32 + place as u32,
                                value,
                                span: Span::Base,
                            });
                        }
                    }
                    if self.used[leaf] == 0 {
                        self.put(middle, huge, 0);
                        self.free.push(leaf as u32);
                    }
                }
            }
            at = next;
        }
    }

    /// An empty node.
    fn make(&mut self) -> usize {
        if let Some(node) = self.free.pop() {
            return node as usize;
        }
        if self.nodes.len() == self.nodes.capacity() {
            self.reserve(self.nodes.len() / 4 + 16);
        }
        self.nodes.push([0; FAN as usize]);
        self.used.push(0);
        self.nodes.len() - 1
    }

    /// A node full of entries, for a piece that is cut.
    fn cut(&mut self, entry: impl Fn(u32) -> u32) -> usize {
        let node = self.make();
        for (i, place) in (0..).zip(&mut self.nodes[node]) {
            *place = entry(i);
        }
        self.used[node] = FAN as u16;
        node
    }

    fn put(&mut self, node: usize, place: usize, entry: u32) {
        let old = std::mem::replace(&mut self.nodes[node][place], entry);
        self.used[node] += u16::from(entry != 0);
        self.used[node] -= u16::from(old != 0);
    }
}

/// Asks for huge pages under a large table: look-ups fall anywhere in it, and each would need an address
/// translation of its own.
fn advise_huge_pages(nodes: &mut Vec<[u32; FAN as usize]>) {
    const HUGE: usize = 2 << 20;
    let start = nodes.as_mut_ptr().addr();
    let end = start + nodes.capacity() * NODE_BYTES;
    let (first, last) = (start.next_multiple_of(HUGE), end / HUGE * HUGE);
    if first >= last {
        return;
    }
    let at = nodes.as_mut_ptr().wrapping_byte_add(first - start);
    // SAFETY: the bytes from `first` to `last` lie within the vector's own allocation, which is exclusively
    // borrowed, and begin and end on page bounds; this advice leaves the content of memory as it is.
    let advised = unsafe { madvise(at.cast(), last - first, Advice::LinuxHugepage) };
    // A kernel without huge pages refuses; the table is slower then.
    let _ = advised;
}

/// Where a key's entries stand in nodes of the three levels.
#[inline]
const fn places(key: u32) -> (usize, usize, usize) {
    (
        (key >> 18) as usize,
        (key >> 9) as usize & 511,
        key as usize & 511,
    )
}
