//! Which frames are folded into a larger page: a transparent huge page, or a smaller folio of several
//! frames.

use std::ops::Range;

use super::FOLD;

const WORDS: usize = FOLD as usize / 64;
/// Which frames of a 2 MiB are not the first of their page.
type Tails = [u64; WORDS];

/// Pages in blocks of 2 MiB, in rising order of address. A page lies in one block.
///
/// A block that is one page has a bit: a guest of 1 TiB has half a million of them, 64 KiB, which stay
/// in a core's caches, and a sample asks one. Where a block has smaller pages, it has a bit for each of
/// its frames besides: 64 bytes. Hosts without such pages have no such table.
#[derive(Clone, Debug, Default)]
pub(super) struct Folded {
    whole: Vec<u64>,
    blocks: u32,
    count: usize,
    /// For each block 1 + its place in `tails`, or 0; empty as long as no block has smaller pages.
    slots: Vec<u32>,
    tails: Vec<Tails>,
    free: Vec<u32>,
}

impl Folded {
    /// Room for `blocks` blocks in all; nothing is folded in new blocks.
    pub(super) fn grow(&mut self, blocks: u32) {
        self.blocks = blocks;
        self.whole.resize(blocks.div_ceil(64) as usize, 0);
    }

    /// How many pages are folded.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// Where in its block the page begins that a frame belongs to.
    #[inline]
    pub(super) fn head(&self, block: u32, frame: u32) -> u32 {
        if self.is_whole(block) {
            return 0;
        }
        match self.tails(block) {
            Some(tails) => head_in(tails, frame),
            None => frame,
        }
    }

    /// The page that a frame belongs to, as places in its block; `None` if it is not folded.
    #[inline]
    pub(super) fn page(&self, block: u32, frame: u32) -> Option<Range<u32>> {
        if self.is_whole(block) {
            return Some(0..FOLD);
        }
        let tails = self.tails(block)?;
        let head = head_in(tails, frame);
        let end = end_in(tails, head);
        (end - head > 1).then_some(head..end)
    }

    /// Makes frames of a block, none of which is folded, one page.
    pub(super) fn fold(&mut self, block: u32, frames: Range<u32>) {
        if frames.len() < 2 || frames.end > FOLD || block >= self.blocks {
            return;
        }
        if frames.len() == FOLD as usize {
            if let Some(word) = self.whole.get_mut((block / 64) as usize) {
                *word |= 1 << (block % 64);
                self.count += 1;
            }
            return;
        }
        let tails = self.tails_mut(block);
        for frame in frames.start + 1..frames.end {
            tails[(frame / 64) as usize] |= 1 << (frame % 64);
        }
        self.count += 1;
    }

    /// Makes the frames of a folded page pages of their own.
    pub(super) fn unfold(&mut self, block: u32, page: Range<u32>) {
        if self.page(block, page.start).as_ref() != Some(&page) {
            return;
        }
        self.count -= 1;
        if self.is_whole(block) {
            self.whole[(block / 64) as usize] &= !(1 << (block % 64));
            return;
        }
        let tails = self.tails_mut(block);
        for frame in page.start + 1..page.end {
            tails[(frame / 64) as usize] &= !(1 << (frame % 64));
        }
        if *tails == [0; WORDS] {
            self.free.push(self.slots[block as usize] - 1);
            self.slots[block as usize] = 0;
        }
    }

    /// The folded pages of blocks, in rising order: each with its block, as places in it.
    pub(super) fn pages(&self, blocks: Range<u32>) -> impl Iterator<Item = (u32, Range<u32>)> + '_ {
        self.folded_blocks(blocks).flat_map(move |block| {
            let mut at = 0;
            std::iter::from_fn(move || {
                if at >= FOLD {
                    return None;
                }
                let page = match self.is_whole(block) {
                    true => 0..FOLD,
                    false => next_in(self.tails(block)?, at)?,
                };
                at = page.end;
                Some((block, page))
            })
        })
    }

    /// The blocks of a range that have folded pages, in rising order.
    fn folded_blocks(&self, blocks: Range<u32>) -> impl Iterator<Item = u32> + '_ {
        let end = blocks.end.min(self.blocks);
        let mut next = blocks.start;
        std::iter::from_fn(move || {
            while next < end {
                if !self.slots.is_empty() {
                    let block = next;
                    next += 1;
                    if self.is_whole(block) || self.tails(block).is_some() {
                        return Some(block);
                    }
                    continue;
                }
                let left = self.whole.get((next / 64) as usize)? >> (next % 64);
                if left != 0 {
                    let block = next + left.trailing_zeros();
                    next = block + 1;
                    return (block < end).then_some(block);
                }
                next = (next / 64 + 1) * 64;
            }
            None
        })
    }

    #[inline]
    fn is_whole(&self, block: u32) -> bool {
        let word = self.whole.get((block / 64) as usize);
        word.is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    #[inline]
    fn tails(&self, block: u32) -> Option<&Tails> {
        let slot = self.slots.get(block as usize)?.checked_sub(1)?;
        self.tails.get(slot as usize)
    }

    fn tails_mut(&mut self, block: u32) -> &mut Tails {
        if self.slots.is_empty() {
            self.slots = vec![0; self.blocks as usize];
        }
        let slot = match self.slots[block as usize].checked_sub(1) {
            Some(slot) => slot,
            None => {
                let slot = self.free.pop().unwrap_or_else(|| {
                    self.tails.push([0; WORDS]);
                    self.tails.len() as u32 - 1
                });
                self.slots[block as usize] = slot + 1;
                slot
            }
        };
        &mut self.tails[slot as usize]
    }
}

/// The last frame up to `frame` that is no tail. The first frame of a block never is one.
#[inline]
fn head_in(tails: &Tails, frame: u32) -> u32 {
    let mut at = frame;
    loop {
        let bit = at % 64;
        let ones = (tails[(at / 64) as usize] << (63 - bit)).leading_ones();
        if ones <= bit || at <= bit {
            return at - ones.min(at);
        }
        at -= bit + 1;
    }
}

/// The first frame behind `head` that is no tail.
fn end_in(tails: &Tails, head: u32) -> u32 {
    let mut at = head + 1;
    while at < FOLD {
        let bit = at % 64;
        let ones = (tails[(at / 64) as usize] >> bit).trailing_ones();
        at += ones;
        if ones < 64 - bit {
            break;
        }
    }
    at
}

/// The first folded page that begins at `from` or behind it. `from` is no tail.
fn next_in(tails: &Tails, from: u32) -> Option<Range<u32>> {
    let mut at = from;
    while at < FOLD {
        let left = tails[(at / 64) as usize] >> (at % 64);
        if left != 0 {
            let head = at + left.trailing_zeros() - 1;
            return Some(head..end_in(tails, head));
        }
        at = (at / 64 + 1) * 64;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blocks_when_folded_whole_are_found_in_order() {
        let mut folded = Folded::default();
        folded.grow(200);
        for block in [0, 63, 64, 130, 199] {
            folded.fold(block, 0..FOLD);
        }
        folded.unfold(130, 0..FOLD);
        assert_eq!(folded.count(), 4);
        let blocks = |range| {
            let pages = folded.pages(range);
            pages.map(|(block, _)| block).collect::<Vec<_>>()
        };
        assert_eq!(blocks(0..200), [0, 63, 64, 199]);
        assert_eq!(blocks(1..199), [63, 64]);
        assert!(blocks(65..70).is_empty());
        assert_eq!(blocks(150..10_000), [199]);
        assert_eq!(folded.page(10_000, 3), None);
        assert_eq!(
            folded.slots.len(),
            0,
            "no table where no block has smaller pages"
        );
    }

    proptest! {
        #[test]
        fn pages_when_folded_and_unfolded_at_random_are_those_of_a_plain_list(
            ops in prop::collection::vec((0..3_u32, 0..FOLD, 1..9_u32), 1..80),
        ) {
            let mut folded = Folded::default();
            folded.grow(3);
            let mut list: Vec<(u32, Range<u32>)> = Vec::new();
            for (block, at, log) in ops {
                let covers = list.iter().position(|(b, page)| *b == block && page.contains(&at));
                if let Some(found) = covers {
                    let (block, page) = list.remove(found);
                    folded.unfold(block, page);
                } else {
                    // Any length up to the end of the block, a power of two or not.
                    let page = at..(at + (1 << log) - log % 3).min(FOLD);
                    let page = if log == 8 { 0..FOLD } else { page };
                    let overlaps = |(b, p): &(u32, Range<u32>)| {
                        *b == block && p.start < page.end && page.start < p.end
                    };
                    if page.len() > 1 && !list.iter().any(overlaps) {
                        folded.fold(block, page.clone());
                        list.push((block, page));
                    }
                }
                list.sort_by_key(|(block, page)| (*block, page.start));
                prop_assert_eq!(folded.pages(0..3).collect::<Vec<_>>(), list.clone());
                prop_assert_eq!(folded.count(), list.len());
                for block in 0..3 {
                    for frame in 0..FOLD {
                        let page = list.iter().find(|(b, p)| *b == block && p.contains(&frame));
                        let page = page.map(|(_, page)| page.clone());
                        let head = page.as_ref().map_or(frame, |page| page.start);
                        prop_assert_eq!(folded.head(block, frame), head);
                        prop_assert_eq!(folded.page(block, frame), page);
                    }
                }
            }
        }
    }
}
