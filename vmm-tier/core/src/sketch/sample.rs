//! How samples reach the sketch, and what they change for the sets of candidates.

use std::ops::Range;

use super::{
    SketchHeat,
    decaying::{Added, Homes},
    places::Place,
};
use crate::{
    dual_heap::states::States,
    dual_heap::{PageId, Placement, Touched},
    time::Time,
};

/// About as many samples as a core has outstanding misses of its first cache.
const BLOCK: usize = 16;

impl SketchHeat {
    /// Adds `weight` events seen at `now` to a page. Weights that are not above 0 change nothing.
    /// Returns whether the page is tracked.
    pub fn sample(&mut self, now: Time, id: PageId, weight: f32) -> bool {
        let gain = self.gain(now, weight);
        self.add(id.0, self.sketch.homes(id.0), gain) != Placement::Untracked
    }

    /// Adds `weight` events to each page, in one go; returns how many of them are in each tier.
    pub fn sample_batch(&mut self, now: Time, ids: &[PageId], weight: f32) -> Touched {
        let gain = self.gain(now, weight);
        let mut touched = Touched::default();
        let mut block = [0; BLOCK];
        for ids in ids.chunks(BLOCK) {
            for (number, id) in block.iter_mut().zip(ids) {
                *number = id.0;
            }
            self.sample_block(&block[..ids.len()], gain, &mut touched);
        }
        touched
    }

    /// Adds `weight` events seen at `now` to every tracked page of the run; returns how many there
    /// are in each tier.
    ///
    /// Each page takes a slot or fights for one: a run costs as much as so many samples. Long runs of
    /// pages that are alike are what a sketch is worst at.
    pub fn sample_run(&mut self, now: Time, ids: Range<u32>, weight: f32) -> Touched {
        let gain = self.gain(now, weight);
        let mut touched = Touched::default();
        if ids.end.wrapping_sub(ids.start) == 1 {
            // What a source that samples accesses delivers.
            let homes = self.sketch.homes(ids.start);
            touched.count(self.add(ids.start, homes, gain));
            return touched;
        }
        let end = ids.end.min(self.places.len());
        let mut at = ids.start;
        let mut block = [0; BLOCK];
        loop {
            let mut len = 0;
            while len < BLOCK
                && let Some(id) = self.places.next_tracked(at, end)
            {
                block[len] = id;
                len += 1;
                at = id + 1;
            }
            if len == 0 {
                return touched;
            }
            self.sample_block(&block[..len], gain, &mut touched);
        }
    }

    /// Sets a page's decayed count at `now` (a huge page was split or collapsed and its heat goes
    /// to others). It takes the place of the least count that stands where it may, if that is less; if not,
    /// it is forgotten. Returns whether the page is tracked.
    pub fn set_count(&mut self, id: PageId, count: f64, now: Time) -> bool {
        self.advance(now);
        let place = self.places.get(id.0);
        if place == Place::Untracked {
            return false;
        }
        let added = self.sketch.set_count(id.0, count, now);
        if place == Place::Fast {
            // It may be colder than it was.
            self.propose(id.0, Placement::Fast, added.key);
        }
        self.take_note(id.0, place, added);
        true
    }

    /// What an event of this weight adds to a key, with the landmark where `now` wants it.
    fn gain(&mut self, now: Time, weight: f32) -> f32 {
        self.advance(now);
        self.sketch.gain(now, weight)
    }

    fn sample_block(&mut self, ids: &[u32], gain: f32, touched: &mut Touched) {
        // Read ahead for a block, the misses of different pages overlap.
        let mut homes = [Homes::default(); BLOCK];
        let mut ahead = 0;
        for (homes, &id) in homes.iter_mut().zip(ids) {
            *homes = self.sketch.homes(id);
            ahead ^= self.sketch.read_ahead(*homes);
        }
        std::hint::black_box(ahead);
        for (&id, homes) in ids.iter().zip(homes) {
            touched.count(self.add(id, homes, gain));
        }
    }

    /// Returns where the page lies.
    #[inline]
    fn add(&mut self, id: u32, homes: Homes, gain: f32) -> Placement {
        let place = self.places.get(id);
        if place == Place::Untracked {
            return Placement::Untracked;
        }
        if gain > 0.0 {
            let added = self.sketch.grow(homes, gain);
            self.take_note(id, place, added);
        }
        match place {
            Place::Fast => Placement::Fast,
            Place::Slow => Placement::Slow,
            Place::Untracked | Place::Aside => self.placement(id),
        }
    }

    /// Offers a page that became hotter, and the one that became colder for it, to their sets.
    #[inline]
    fn take_note(&mut self, id: u32, place: Place, added: Added) {
        if place == Place::Slow && added.key > 0.0 {
            self.propose(id, Placement::Slow, added.key);
        }
        if let Some((victim, left)) = added.weakened
            && self.places.get(victim) == Place::Fast
        {
            self.propose(victim, Placement::Fast, left);
        }
    }
}
