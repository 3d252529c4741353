//! How samples reach pages.

use std::ops::Range;

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
}

impl DualHeap {
    /// Adds `weight` events seen at `now` to a page. Weights that are not above 0 change nothing.
    /// Returns whether the page is tracked.
    pub fn sample(&mut self, now: Time, id: PageId, weight: f32) -> bool {
        let gain = self.gain(now, weight);
        self.add(id.0, gain)
    }

    /// Adds `weight` events to each page, in one go; returns how many of them are tracked.
    pub fn sample_batch(&mut self, now: Time, ids: &[PageId], weight: f32) -> usize {
        let gain = self.gain(now, weight);
        if gain == 0.0 {
            let is_tracked = |id: &&PageId| self.pages.get(id.0) != Slot::Untracked;
            return ids.iter().filter(is_tracked).count();
        }
        ids.chunks(BLOCK)
            .map(|block| self.sample_block(block, gain))
            .sum()
    }

    /// A sample is a cache miss or two, of the chunk's place and of the word. Each is asked for in a
    /// loop of its own, so that the misses of all samples of a block overlap.
    fn sample_block(&mut self, block: &[PageId], gain: f32) -> usize {
        let mut indices = [NOWHERE; BLOCK];
        let indices = &mut indices[..block.len()];
        for (index, id) in indices.iter_mut().zip(block) {
            *index = self.pages.index(id.0);
        }
        let mark = self.slow.mark();
        let words = self.pages.words_mut();
        std::hint::black_box(indices.iter().fold(0, |all, &index| all ^ words[index]));

        // Which of a block's samples fall on pages whose key is elsewhere, and which carry a slow page
        // above the mark, is told without a branch, which samples would take at random.
        let (mut keyed, mut other) = (Positions::default(), Positions::default());
        for (position, &index) in indices.iter().enumerate() {
            let is_keyed = key_of(words[index]).is_some();
            keyed.push_if(is_keyed, position);
            other.push_if(!is_keyed, position);
        }
        let (mut above, mut risen) = (Positions::default(), Positions::default());
        for position in keyed.iter() {
            let word = &mut words[indices[position]];
            let old = *word;
            if let Some(key) = key_of(old) {
                *word = with_key(old, (key + gain).min(f32::MAX));
            }
            above.push_if(*word > mark, position);
            risen.push_if(*word > mark && old <= mark, position);
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
        let others = other
            .iter()
            .filter(|&position| self.add(block[position].0, gain));
        keyed.len + others.count()
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
                match self.placement(id) {
                    Placement::Fast => touched.fast += 1,
                    _ => touched.slow += 1,
                }
                self.add(id, gain);
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
            if let Some(held) = self.aside.get_mut(index) {
                held.key = key;
            }
            return true;
        }
        let placement = self.placement(id.0);
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

    #[inline]
    fn add(&mut self, id: u32, gain: f32) -> bool {
        let slot = self.pages.get(id);
        if slot == Slot::Untracked || gain == 0.0 {
            return slot != Slot::Untracked;
        }
        match slot {
            Slot::Untracked => {}
            Slot::Fast(key) => {
                let key = (key + gain).min(f32::MAX);
                self.pages.update(id, Slot::Fast(key));
            }
            Slot::Slow(old) => {
                let was_above = slot.word() > self.slow.mark();
                let key = (old + gain).min(f32::MAX);
                self.pages.update(id, Slot::Slow(key));
                self.slow.offer(Entry { key, id }, was_above);
                self.slow.make_room(&self.pages);
            }
            Slot::Front(index) => self.slow.grow(index, gain, &mut self.pages),
            Slot::FastNever => self.give_key(id, Placement::Fast, gain),
            Slot::SlowNever => self.give_key(id, Placement::Slow, gain),
            Slot::Aside(index) => {
                if let Some(held) = self.aside.get_mut(index) {
                    held.key = (held.key + gain).min(f32::MAX);
                }
            }
        }
        true
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
