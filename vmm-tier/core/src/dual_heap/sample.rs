//! How samples reach pages.

use std::ops::Range;

use prefetch_index::prefetch_index;

use super::{
    DualHeap, PageId, Placement,
    front::Entry,
    pages::NOWHERE,
    word::{Slot, key_of, with_key},
};
use crate::{heat::key_or_zero, time::Time};

/// Samples whose cache misses overlap: a few times those that a core can have outstanding.
const BLOCK: usize = 64;

/// The pages that a run of samples reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Pages of the fast tier.
    pub fast: u32,
    /// Pages of the slow tier.
    pub slow: u32,
}

impl Touched {
    /// Pages of both tiers.
    #[must_use]
    pub const fn pages(self) -> u32 {
        self.fast + self.slow
    }

    fn count(&mut self, placement: Placement) {
        match placement {
            Placement::Untracked => {}
            Placement::Fast => self.fast += 1,
            Placement::Slow => self.slow += 1,
        }
    }
}

impl DualHeap {
    /// Adds `weight` events seen at `now` to a page. Weights that are not above 0 change nothing.
    /// Returns whether the page is tracked.
    pub fn sample(&mut self, now: Time, id: PageId, weight: f32) -> bool {
        let gain = self.gain(now, weight);
        self.add(id.0, gain) != Placement::Untracked
    }

    /// Adds `weight` events to each page, in one go; returns how many of them are in each tier.
    pub fn sample_batch(&mut self, now: Time, ids: &[PageId], weight: f32) -> Touched {
        let gain = self.gain(now, weight);
        let mut touched = Touched::default();
        if gain == 0.0 {
            ids.iter().for_each(|id| touched.count(self.placement(*id)));
            return touched;
        }
        // A sample is a cache miss of the page's word. Those of a block are asked for while the block
        // before it is worked on, so that they overlap each other and the work.
        let mut blocks = ids.chunks(BLOCK).peekable();
        let mut ahead = blocks
            .peek()
            .map_or([NOWHERE; BLOCK], |first| self.read_ahead(first));
        while let Some(block) = blocks.next() {
            let indices = ahead;
            if let Some(next) = blocks.peek() {
                ahead = self.read_ahead(next);
            }
            self.sample_block(block, &indices, gain, &mut touched);
        }
        touched
    }

    /// Asks for the words of a block's pages; returns where they are.
    #[inline]
    fn read_ahead(&self, block: &[PageId]) -> [usize; BLOCK] {
        let mut indices = [NOWHERE; BLOCK];
        for (index, id) in indices.iter_mut().zip(block) {
            *index = self.pages.index(id.0);
            prefetch_index(self.pages.words(), *index);
        }
        indices
    }

    /// Adds to the pages of a block, whose words are at `indices`: samples move no words.
    fn sample_block(
        &mut self,
        block: &[PageId],
        indices: &[usize; BLOCK],
        gain: f32,
        touched: &mut Touched,
    ) {
        let mark = self.slow.mark();
        let words = self.pages.words_mut();
        // Partitions the block without branches: a branch here would be unpredictable.
        let (mut keyed, mut other) = (Positions::default(), Positions::default());
        for (position, &index) in indices[..block.len()].iter().enumerate() {
            let is_keyed = key_of(words[index]).is_some();
            keyed.push_if(is_keyed, position);
            other.push_if(!is_keyed, position);
        }
        let (mut risen, mut above) = (Positions::default(), Positions::default());
        let mut slow = 0;
        for position in keyed.iter() {
            let word = &mut words[indices[position]];
            let old = *word;
            if let Some(key) = key_of(old) {
                *word = with_key(old, (key + gain).min(f32::MAX));
            }
            slow += old >> 31;
            risen.push_if(*word > mark && old <= mark, position);
            above.push_if(old > mark, position);
        }
        for (positions, was_above) in [(risen, false), (above, true)] {
            for position in positions.iter() {
                let id = block[position].0;
                if let Slot::Slow(key) = self.pages.get(id) {
                    self.slow.offer(Entry { key, id }, was_above);
                }
            }
        }
        self.slow.make_room(&self.pages);
        touched.slow += slow;
        touched.fast += keyed.len as u32 - slow;
        for position in other.iter() {
            touched.count(self.add(block[position].0, gain));
        }
    }

    /// Adds `weight` events seen at `now` to every tracked page of the run; returns how many there
    /// are in each tier.
    pub fn sample_run(&mut self, now: Time, ids: Range<u32>, weight: f32) -> Touched {
        let gain = self.gain(now, weight);
        let end = ids.end.min(self.pages.len());
        let mut touched = Touched::default();
        let mut first = ids.start;
        let mut others = Vec::new();
        while first < end {
            let mark = self.slow.mark();
            let (words, next) = self.pages.run_mut(first, end);
            for (id, word) in (first..).zip(words) {
                let old = *word;
                if let Some(key) = key_of(old) {
                    let key = (key + gain).min(f32::MAX);
                    *word = with_key(old, key);
                    touched.slow += old >> 31;
                    touched.fast += 1 - (old >> 31);
                    if *word > mark {
                        self.slow.offer(Entry { key, id }, old > mark);
                    }
                } else if old != Slot::Untracked.word() {
                    others.push(id);
                }
            }
            self.slow.make_room(&self.pages);
            for id in others.drain(..) {
                touched.count(self.add(id, gain));
            }
            first = next;
        }
        touched
    }

    /// Sets a page's decayed count at `now` (a huge page was split or collapsed and its heat goes
    /// to others). Returns whether the page is tracked.
    pub fn set_count(&mut self, id: PageId, count: f64, now: Time) -> bool {
        self.advance(now);
        let key = if count > 0.0 {
            key_or_zero(self.decay.key(count, now))
        } else {
            0.0
        };
        if let Slot::Aside(index) = self.pages.get(id.0) {
            if let Some(held) = self.side_table.get_mut(index) {
                held.key = key;
            }
            return true;
        }
        let placement = self.placement(id);
        if self.detach(id.0).is_none() {
            return false;
        }
        self.attach(id.0, placement, key);
        true
    }

    /// What a sample adds to a key: never negative, never below the least key, finite.
    fn gain(&mut self, now: Time, weight: f32) -> f32 {
        if self.boost.0 != now {
            self.advance(now);
            self.boost = (now, self.decay.boost(now));
        }
        // `weight > 0` is false for NaN.
        if weight > 0.0 {
            key_or_zero(f64::from(weight) * self.boost.1)
        } else {
            0.0
        }
    }

    /// Adds to a page's key; returns where the page lies.
    #[inline]
    fn add(&mut self, id: u32, gain: f32) -> Placement {
        let slot = self.pages.get(id);
        if slot == Slot::Untracked || gain == 0.0 {
            return self.placement(PageId(id));
        }
        match slot {
            Slot::Untracked => Placement::Untracked,
            Slot::Fast(key) => {
                let key = (key + gain).min(f32::MAX);
                self.pages.update(id, Slot::Fast(key));
                Placement::Fast
            }
            Slot::Slow(old) => {
                let was_above = slot.word() > self.slow.mark();
                let key = (old + gain).min(f32::MAX);
                self.pages.update(id, Slot::Slow(key));
                self.slow.offer(Entry { key, id }, was_above);
                self.slow.make_room(&self.pages);
                Placement::Slow
            }
            Slot::Front(index) => {
                self.slow.grow(index, gain, &mut self.pages);
                Placement::Slow
            }
            Slot::FastNever => {
                self.give_key(id, Placement::Fast, gain);
                Placement::Fast
            }
            Slot::SlowNever => {
                self.give_key(id, Placement::Slow, gain);
                Placement::Slow
            }
            Slot::Aside(index) => {
                self.side_table
                    .get_mut(index)
                    .map_or(Placement::Untracked, |held| {
                        held.key = (held.key + gain).min(f32::MAX);
                        held.placement
                    })
            }
        }
    }
}

/// Positions in a block, in rising order.
struct Positions {
    all: [u8; BLOCK],
    len: usize,
}

impl Default for Positions {
    fn default() -> Self {
        Self {
            all: [0; BLOCK],
            len: 0,
        }
    }
}

impl Positions {
    /// At most once for each position. Without a branch on `wanted`.
    #[inline]
    fn push_if(&mut self, wanted: bool, position: usize) {
        self.all[self.len % BLOCK] = position as u8;
        self.len += usize::from(wanted);
    }

    #[inline]
    fn iter(&self) -> impl Iterator<Item = usize> {
        self.all[..self.len]
            .iter()
            .map(|&position| usize::from(position))
    }
}
