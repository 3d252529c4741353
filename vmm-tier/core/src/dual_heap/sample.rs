//! How samples reach pages.

use std::ops::Range;

use super::{DualHeap, PageId, Placement, pages::Slot, slow::Entry};
use crate::{heat::normal_or_zero, time::Time};

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
        /// About as many as a core has outstanding misses of its first cache.
        const BLOCK: usize = 16;
        let gain = self.gain(now, weight);
        let mut tracked = 0;
        for block in ids.chunks(BLOCK) {
            // A sample is a chain of cache misses: word, heap entry, parent. Read ahead for a block,
            // the misses of different pages overlap.
            let ahead = block.iter().map(|id| match self.pages.get(id.0) {
                Slot::Slow(index) => self.slow.read_ahead(index),
                _ => 0.0,
            });
            std::hint::black_box(ahead.sum::<f32>());
            tracked += block.iter().filter(|id| self.add(id.0, gain)).count();
        }
        tracked
    }

    /// Adds `weight` events seen at `now` to every tracked page of the run; returns how many there
    /// are in each tier.
    pub fn sample_run(&mut self, now: Time, ids: Range<u32>, weight: f32) -> Touched {
        let gain = self.gain(now, weight);
        let end = ids.end.min(self.pages.len());
        // Sifting page by page costs up to a walk to the root each; past some share of the heap
        // it is cheaper to restore the order once.
        let in_bulk = gain > 0.0 && ids.len() > self.slow.len() / 8 && ids.len() > 64;
        let (mut touched, mut grown) = (Touched::default(), false);
        let mut first = ids.start;
        let mut others = Vec::new();
        while first < end {
            let (words, next) = self.pages.run_mut(first, end);
            for (id, word) in (first..).zip(words) {
                match Slot::of(*word) {
                    Slot::Untracked => continue,
                    // The common case in the fast tier: nothing but this word changes.
                    Slot::Fast(key) => {
                        *word = Slot::Fast((key + gain).min(f32::MAX)).word();
                        touched.fast += 1;
                        continue;
                    }
                    Slot::FastNever => touched.fast += 1,
                    Slot::Slow(_) | Slot::SlowNever => touched.slow += 1,
                    Slot::Aside(index) => match self.aside.get(index).map(|held| held.placement) {
                        Some(Placement::Fast) => touched.fast += 1,
                        _ => touched.slow += 1,
                    },
                }
                others.push(id);
            }
            if gain > 0.0 {
                for id in others.drain(..) {
                    match self.pages.get(id) {
                        Slot::Slow(index) if in_bulk => {
                            self.slow.grow_unordered(index, gain);
                            grown = true;
                        }
                        Slot::SlowNever if in_bulk => {
                            self.slow
                                .push_unordered(Entry { key: gain, id }, &mut self.pages);
                            grown = true;
                        }
                        _ => {
                            self.add(id, gain);
                        }
                    }
                }
            }
            others.clear();
            first = next;
        }
        if grown {
            self.slow.rebuild(&mut self.pages);
        }
        touched
    }

    /// Sets a page's decayed count at `now` (a huge page was split or collapsed and its heat goes
    /// to others). Returns whether the page is tracked.
    pub fn set_count(&mut self, id: PageId, count: f64, now: Time) -> bool {
        self.advance(now);
        let key = if count > 0.0 {
            normal_or_zero(self.decay.key(count, now))
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

    /// What a sample adds to a key: never negative, never subnormal, finite.
    fn gain(&mut self, now: Time, weight: f32) -> f32 {
        if self.boost.0 != now {
            self.advance(now);
            self.boost = (now, self.decay.boost(now));
        }
        // `weight > 0` is false for NaN.
        if weight > 0.0 {
            normal_or_zero(f64::from(weight) * self.boost.1)
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
            Slot::Fast(key) => self
                .pages
                .update(id, Slot::Fast((key + gain).min(f32::MAX))),
            Slot::Slow(index) => self.slow.grow(index, gain, &mut self.pages),
            Slot::FastNever => self.push_fast(id, gain),
            Slot::SlowNever => self.slow.push(Entry { key: gain, id }, &mut self.pages),
            Slot::Aside(index) => {
                if let Some(held) = self.aside.get_mut(index) {
                    held.key = (held.key + gain).min(f32::MAX);
                }
            }
        }
        true
    }
}
