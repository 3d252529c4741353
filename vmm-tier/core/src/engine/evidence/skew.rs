//! Where in a huge page the accesses fall: which frames the last accesses to it hit.
//!
//! The heat of a huge page is that of all its frames together: 512 warm frames and one hot frame look
//! alike. A source that samples accesses knows the frame of each. The sketch keeps the last samples of
//! the huge pages that are sampled most, in 304 KiB whatever the guest's size; each page has one place,
//! which the page that is sampled most among those of that place keeps (the majority vote of Boyer and
//! Moore). It moves no page: the explanation shows it, and a page that is split hands its heat to the
//! frames that were hit.

use crate::{dual_heap::PageId, pages::FOLD};

/// Pages that are kept, as a power of two.
const PLACES_LOG: u32 = 11;
/// Samples after which a page's frames are noted anew. The last such window is kept besides.
const WINDOW: u16 = 128;
/// Samples below which nothing is said of skew.
const LEAST_SAMPLES: u32 = 64;
/// How often each frame that was hit must have been hit on average for the page to be skewed. Of 128
/// samples of a page that is hot all over, 113 hit different frames.
const LEAST_HITS: u32 = 4;
/// What a page may be ahead of the others of its place.
const MOST_LEAD: u16 = 32;

/// The frames of a huge page, a bit each.
pub(crate) type FrameSet = [u64; FOLD as usize / 64];

/// Where the last accesses to a huge page fell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spread {
    /// How many accesses.
    pub(crate) samples: u32,
    /// The frames that they hit.
    pub(crate) frames: FrameSet,
}

impl Spread {
    /// How many frames were hit.
    pub(crate) fn hit(&self) -> u32 {
        self.frames.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether a frame was hit.
    pub(crate) const fn has(&self, frame: u32) -> bool {
        self.frames[(frame / 64) as usize] >> (frame % 64) & 1 == 1
    }

    /// Whether few frames make the page hot, and enough is known to say so.
    pub(crate) fn is_skewed(&self) -> bool {
        is_skewed(self.samples, self.hit())
    }
}

/// Whether so many accesses to so few frames say that few frames make a page hot.
pub(crate) const fn is_skewed(samples: u32, hit: u32) -> bool {
    samples >= LEAST_SAMPLES && hit * LEAST_HITS <= samples
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    samples: u16,
    frames: FrameSet,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// 1 + the number of its page, or 0.
    page: u32,
    lead: u16,
    now: Window,
    last: Window,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Skew {
    /// Empty before the first sample of a huge page.
    places: Vec<Place>,
}

impl Skew {
    /// An access to a frame of a huge page was sampled.
    #[inline]
    pub(crate) fn see(&mut self, page: PageId, frame: u32) {
        if self.places.is_empty() {
            self.places = vec![Place::default(); 1 << PLACES_LOG];
        }
        let place = &mut self.places[place_of(page)];
        if place.page != page.0 + 1 {
            if place.lead > 0 {
                place.lead -= 1;
                return;
            }
            *place = Place {
                page: page.0 + 1,
                ..Place::default()
            };
        }
        place.lead = (place.lead + 1).min(MOST_LEAD);
        if place.now.samples == WINDOW {
            place.last = std::mem::take(&mut place.now);
        }
        place.now.samples += 1;
        place.now.frames[(frame / 64) as usize % place.now.frames.len()] |= 1 << (frame % 64);
    }

    /// Where the last accesses to a huge page fell; `None` if none is remembered.
    pub(crate) fn of(&self, page: PageId) -> Option<Spread> {
        let place = self.places.get(place_of(page))?;
        (place.page == page.0 + 1).then(|| place.spread())
    }

    /// How many of the pages that are kept are skewed.
    pub(crate) fn skewed(&self) -> u64 {
        let known = self.places.iter().filter(|place| place.page > 0);
        known.filter(|place| place.spread().is_skewed()).count() as u64
    }

    /// The memory that it takes.
    pub(crate) const fn memory_bytes(&self) -> usize {
        self.places.len() * size_of::<Place>()
    }

    /// The pages have other numbers from now on, or their frames other contents.
    pub(crate) fn clear(&mut self) {
        self.places = Vec::new();
    }
}

impl Place {
    fn spread(&self) -> Spread {
        let mut frames = self.now.frames;
        for (word, last) in frames.iter_mut().zip(self.last.frames) {
            *word |= last;
        }
        Spread {
            samples: u32::from(self.now.samples) + u32::from(self.last.samples),
            frames,
        }
    }
}

/// Numbers of huge pages lie 512 apart: Fibonacci hashing spreads them (Knuth, TAOCP 6.4).
const fn place_of(page: PageId) -> usize {
    (page.0.wrapping_mul(0x9e37_79b1) >> (32 - PLACES_LOG)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn see(skew: &mut Skew, page: PageId, frames: u32, samples: u32) {
        let mut random = Random::new(u64::from(frames));
        for _ in 0..samples {
            let frame = (random.below(u64::from(frames))) as u32;
            skew.see(page, frame * (FOLD / frames));
        }
    }

    #[test]
    fn page_when_few_frames_are_hit_is_skewed_and_when_all_are_is_not() {
        let mut skew = Skew::default();
        for (page, frames, is_skewed) in [(0, 1, true), (512, 8, true), (1024, 512, false)] {
            let page = PageId(page);
            see(&mut skew, page, frames, 200);
            let spread = skew.of(page).unwrap();
            assert_eq!(spread.samples, 200);
            assert!(spread.hit() <= frames, "{spread:?}");
            assert_eq!(spread.is_skewed(), is_skewed, "{frames}: {spread:?}");
        }
        assert_eq!(skew.skewed(), 2);
    }

    #[test]
    fn page_when_little_was_seen_is_not_called_skewed() {
        let mut skew = Skew::default();
        see(&mut skew, PageId(0), 1, LEAST_SAMPLES - 1);
        assert!(!skew.of(PageId(0)).unwrap().is_skewed());
        see(&mut skew, PageId(0), 1, 1);
        assert!(skew.of(PageId(0)).unwrap().is_skewed());
        assert_eq!(skew.of(PageId(512)), None);
    }

    #[test]
    fn page_when_its_hot_frames_change_forgets_the_old_ones() {
        let mut skew = Skew::default();
        let page = PageId(512);
        (0..300).for_each(|_| skew.see(page, 7));
        (0..2 * u32::from(WINDOW)).for_each(|_| skew.see(page, 500));
        let spread = skew.of(page).unwrap();
        assert!(spread.has(500) && !spread.has(7) && spread.hit() == 1);
    }

    #[test]
    fn places_when_pages_share_one_go_to_the_page_that_is_sampled_most() {
        let mut skew = Skew::default();
        let hot = PageId(0);
        let shares = |&page: &u32| page > 0 && place_of(PageId(page)) == place_of(hot);
        let other = PageId((0..u32::MAX).step_by(512).find(shares).unwrap());
        see(&mut skew, other, 512, 100);
        for at in 0..300 {
            skew.see(hot, 3);
            if at % 3 == 0 {
                skew.see(other, 4);
            }
        }
        assert_eq!(skew.of(other), None);
        assert!(skew.of(hot).unwrap().is_skewed());
        assert_eq!(skew.memory_bytes(), 304 << 10);
    }
}
