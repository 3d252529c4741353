//! Lists of pages that run through one array: a page stands in at most one, and leaves it in constant
//! time.

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

/// Lists with a front and a back, named by small numbers. What is put in front of a list and taken from
/// its back goes first in, first out.
#[derive(Clone, Debug)]
pub(super) struct Lists {
    guest: Arc<Guest>,
    links: Vec<Link>,
    list_of: Vec<u8>,
    ends: Vec<Ends>,
}

impl Lists {
    /// So many empty lists (at most 255) for a guest's pages.
    #[must_use]
    pub(super) fn new(guest: Arc<Guest>, lists: u8) -> Self {
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
    pub(super) fn list_of(&self, page: u32) -> Option<u8> {
        self.list_of
            .get(page as usize)
            .copied()
            .filter(|&list| list != OUT)
    }

    /// The number of pages in a list.
    #[must_use]
    pub(super) fn len(&self, list: u8) -> u32 {
        self.ends[usize::from(list)].len
    }

    /// Bytes of the pages in a list.
    #[must_use]
    pub(super) fn bytes(&self, list: u8) -> u64 {
        self.ends[usize::from(list)].bytes
    }

    /// The page at the back of a list: the one that was put in first.
    #[must_use]
    pub(super) fn back(&self, list: u8) -> Option<u32> {
        let back = self.ends[usize::from(list)].back;
        (back != NONE).then_some(back)
    }

    /// Puts a page in front of a list, out of the one that it stands in. The guest must have the page.
    pub(super) fn put_in_front(&mut self, list: u8, page: u32) {
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
    pub(super) fn remove(&mut self, page: u32) {
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

    /// Bytes that the lists take.
    #[must_use]
    pub(super) fn memory_bytes(&self) -> usize {
        self.links.capacity() * size_of::<Link>() + self.list_of.capacity()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const PAGES: u32 = 12;
    const LISTS: u8 = 3;

    /// The pages of a list from the back on.
    fn from_back(lists: &Lists, list: u8) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(lists.back(list), |&page| {
            let newer = lists.links[page as usize].newer;
            (newer != NONE).then_some(newer)
        })
    }

    #[derive(Clone, Copy, Debug)]
    enum Op {
        ToFront(u8, u32),
        Remove(u32),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => (0..LISTS, 0..PAGES).prop_map(|(list, page)| Op::ToFront(list, page)),
            1 => (0..PAGES).prop_map(Op::Remove),
        ]
    }

    proptest! {
        #[test]
        fn lists_hold_what_a_model_holds_after_every_operation(ops in prop::collection::vec(op(), 0..200)) {
            let guest = Arc::new(Guest::uniform(0, PAGES, 4096));
            let mut lists = Lists::new(guest, LISTS);
            // Each from back to front.
            let mut model = vec![VecDeque::<u32>::new(); usize::from(LISTS)];
            for op in ops {
                let (Op::ToFront(_, page) | Op::Remove(page)) = op;
                for list in &mut model {
                    list.retain(|&other| other != page);
                }
                match op {
                    Op::ToFront(list, page) => {
                        lists.put_in_front(list, page);
                        model[usize::from(list)].push_back(page);
                    }
                    Op::Remove(page) => lists.remove(page),
                }
                for (list, expected) in (0..).zip(&model) {
                    prop_assert!(from_back(&lists, list).eq(expected.iter().copied()));
                    prop_assert_eq!(lists.back(list), expected.front().copied());
                    prop_assert_eq!(lists.len(list) as usize, expected.len());
                        prop_assert_eq!(lists.bytes(list), 4096 * expected.len() as u64);
                }
                for page in 0..=PAGES {
                    let expected = (0..).zip(&model).find(|(_, list)| list.contains(&page));
                    prop_assert_eq!(lists.list_of(page), expected.map(|(list, _)| list));
                }
            }
        }
    }
}
