//! Lists of pages that run through one array: a page stands in at most one, and leaves it in constant time.

use std::sync::Arc;

use crate::machine::Guest;

/// No page.
const NONE: u32 = u32::MAX;
/// In no list.
const OUT: u8 = u8::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    /// Towards the front.
    newer: u32,
    /// Towards the back.
    older: u32,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    front: u32,
    back: u32,
    len: u32,
    bytes: u64,
}

/// Lists with a front and a back, named by small numbers. What is put in front of a list and taken from its
/// back goes first in, first out.
#[derive(Clone, Debug)]
pub struct Lists {
    guest: Arc<Guest>,
    links: Vec<Link>,
    list_of: Vec<u8>,
    ends: Vec<Ends>,
}

impl Lists {
    /// So many empty lists (at most 255) for a guest's pages.
    #[must_use]
    pub fn new(guest: Arc<Guest>, lists: u8) -> Self {
        let pages = guest.pages() as usize;
        let apart = Link {
            newer: NONE,
            older: NONE,
        };
        let empty = Ends {
            front: NONE,
            back: NONE,
            len: 0,
            bytes: 0,
        };
        Self {
            guest,
            links: vec![apart; pages],
            list_of: vec![OUT; pages],
            ends: vec![empty; usize::from(lists)],
        }
    }

    /// The list that a page stands in.
    #[inline]
    #[must_use]
    pub fn list_of(&self, page: u32) -> Option<u8> {
        self.list_of
            .get(page as usize)
            .copied()
            .filter(|&list| list != OUT)
    }

    /// The number of pages in a list.
    #[must_use]
    pub fn len(&self, list: u8) -> u32 {
        self.ends[usize::from(list)].len
    }

    /// Whether a list has no page.
    #[must_use]
    pub fn is_empty(&self, list: u8) -> bool {
        self.len(list) == 0
    }

    /// Bytes of the pages in a list.
    #[must_use]
    pub fn bytes(&self, list: u8) -> u64 {
        self.ends[usize::from(list)].bytes
    }

    /// The page at the back of a list: the one that was put in first.
    #[must_use]
    pub fn back(&self, list: u8) -> Option<u32> {
        let back = self.ends[usize::from(list)].back;
        (back != NONE).then_some(back)
    }

    /// Puts a page in front of a list, out of the one that it stands in. The guest must have the page.
    pub fn to_front(&mut self, list: u8, page: u32) {
        self.remove(page);
        let ends = &mut self.ends[usize::from(list)];
        let next = std::mem::replace(&mut ends.front, page);
        ends.len += 1;
        ends.bytes += self.guest.page_bytes(page);
        if next == NONE {
            ends.back = page;
        } else {
            self.links[next as usize].newer = page;
        }
        self.links[page as usize] = Link {
            newer: NONE,
            older: next,
        };
        self.list_of[page as usize] = list;
    }

    /// Takes a page out of its list, if it stands in one.
    pub fn remove(&mut self, page: u32) {
        let Some(list) = self.list_of(page) else {
            return;
        };
        let Link { newer, older } = self.links[page as usize];
        let ends = &mut self.ends[usize::from(list)];
        ends.len -= 1;
        ends.bytes -= self.guest.page_bytes(page);
        match newer {
            NONE => ends.front = older,
            newer => self.links[newer as usize].older = older,
        }
        match older {
            NONE => ends.back = newer,
            older => self.links[older as usize].newer = newer,
        }
        self.list_of[page as usize] = OUT;
    }

    /// The pages of a list from the back on.
    pub fn from_back(&self, list: u8) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(self.back(list), |&page| {
            let newer = self.links[page as usize].newer;
            (newer != NONE).then_some(newer)
        })
    }

    /// Bytes that the lists take.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.links.capacity() * size_of::<Link>() + self.list_of.capacity()
    }
}
