//! What can be seen of the store: counts, states, and whether all invariants hold.

use std::{collections::BTreeMap, ops::Range};

use serde::Serialize;

use super::{Best, DecayingSketch, SketchHeat, SketchStats, places::Place};
use crate::{
    dual_heap::states::{StateCounts, States, Why},
    dual_heap::{PageId, PageState, Placement},
    time::Time,
};

/// Counts of pages and of work done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SketchHeatStats {
    /// All pages, by their state.
    #[serde(flatten)]
    pub pages: StateCounts,
    /// Times a set of candidates was refilled from all pages.
    pub refills: u64,
    /// Times a set of candidates was full and kept its better half.
    pub compactions: u64,
    /// The sketch's own.
    pub sketch: SketchStats,
}

impl SketchHeat {
    /// The decayed count of a page at `now`; 0 if it is not tracked, or the sketch has none.
    #[must_use]
    pub fn count(&self, id: PageId, now: Time) -> f64 {
        self.sketch.count(id.0, now)
    }

    /// What is known of a page. One that was sampled and forgotten is as one that never was.
    #[must_use]
    pub fn state(&self, id: PageId) -> PageState {
        let sampled = self.sketch.key(id.0) > 0.0;
        States::state(self, id.0, sampled, self.pinned.contains(id.0))
    }

    /// The number of pages of the same tier that are known to be hotter than this one; `None` if it is not
    /// tracked. An estimate, as counts are, and less than it is where hotter pages were forgotten. Looks at
    /// every count.
    #[must_use]
    pub fn rank(&self, id: PageId) -> Option<u32> {
        let placement = self.placement(id.0);
        let hotter = self.sketch.above(self.sketch.key(id.0));
        (placement != Placement::Untracked).then(|| {
            let hotter = hotter.filter(|&(id, _)| self.placement(id) == placement);
            hotter.count() as u32
        })
    }

    /// How many pages of the same tier would be taken before this one, and how many may be taken at all.
    /// On the slow tier the hotter ones go first, on the fast tier the colder ones. `None` if it may not
    /// be taken itself, or has no count on the slow tier. An estimate, as counts are: pages that were
    /// forgotten stand with those never sampled. Looks at every count.
    #[must_use]
    pub fn standing(&self, id: PageId) -> Option<(u32, u32)> {
        let place = self.places.get(id.0);
        let key = self.sketch.key(id.0);
        if self.why(id.0).is_some() {
            return None;
        }
        let rivals = self.offered(place).map(|(_, key)| key);
        match place {
            Place::Slow if key > 0.0 => {
                let (mut before, mut all) = (0, 0);
                for rival in rivals {
                    all += 1;
                    before += u32::from(rival > key);
                }
                Some((before, all))
            }
            Place::Fast => {
                let all = self.count_offered(place);
                let not_before = rivals.filter(|&rival| rival >= key).count() as u32;
                Some((if key > 0.0 { all - not_before } else { 0 }, all))
            }
            _ => None,
        }
    }

    /// What [`SketchHeat::hottest_slow`] would say, without bringing the set of candidates up to date. Looks
    /// at every count.
    #[must_use]
    pub fn look_at_hottest_slow(&self, now: Time) -> Option<(PageId, f64)> {
        let hottest = self.offered(Place::Slow).max_by(|a, b| a.1.total_cmp(&b.1));
        let (id, key) = hottest?;
        Some((PageId(id), self.decay().value(key, now)))
    }

    /// What [`SketchHeat::coldest_fast`] would say, or another page as cold, without bringing the set of
    /// candidates up to date. Looks at every count.
    #[must_use]
    pub fn look_at_coldest_fast(&self, now: Time) -> Option<(PageId, f64)> {
        let (mut known, mut coldest) = (0, None);
        for (id, key) in self.offered(Place::Fast) {
            known += 1;
            if coldest.is_none_or(|(_, least)| key < least) {
                coldest = Some((id, key));
            }
        }
        if known < self.count_offered(Place::Fast) {
            // Some have no count, and no more have one than there are slots: one is found soon.
            let mut next = 0;
            while let Some(id) = self.next_offered_fast(next) {
                if self.sketch.key(id) == 0.0 {
                    return Some((PageId(id), 0.0));
                }
                next = id + 1;
            }
        }
        let (id, key) = coldest?;
        Some((PageId(id), self.decay().value(key, now)))
    }

    /// The pages with a count that may be taken there, and their keys.
    fn offered(&self, place: Place) -> impl Iterator<Item = (u32, f32)> + '_ {
        let pages = self.sketch.iter();
        pages.filter(move |&(id, _)| self.places.get(id) == place && !self.pinned.contains(id))
    }

    /// The number of pages that lie there, whatever their state.
    #[must_use]
    pub fn len(&self, placement: Placement) -> u32 {
        self.stats.pages.len(placement, self.places.len())
    }

    /// Whether no page is tracked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stats.pages.fast + self.stats.pages.slow == 0
    }

    /// All tracked pages in rising order, with their placement and decayed count at `now`.
    pub fn iter(&self, now: Time) -> impl Iterator<Item = (PageId, Placement, f64)> + '_ {
        self.iter_in(0..self.places.len(), now)
    }

    /// The tracked pages among `ids` in rising order, with their placement and decayed count at `now`.
    pub fn iter_in(
        &self,
        ids: Range<u32>,
        now: Time,
    ) -> impl Iterator<Item = (PageId, Placement, f64)> + '_ {
        let unboost = (-self.decay().age(now)).exp2();
        self.places.iter_in(ids).map(move |(id, _)| {
            let count = f64::from(self.sketch.key(id)) * unboost;
            (PageId(id), self.placement(id), count)
        })
    }

    /// The sketch: all counts there are, without a look at pages that have none.
    #[must_use]
    pub fn sketch(&self) -> &DecayingSketch {
        &self.sketch
    }

    /// Counts of pages and of work done. Cheap.
    #[must_use]
    pub fn stats(&self) -> SketchHeatStats {
        SketchHeatStats {
            sketch: self.sketch.stats(),
            ..self.stats
        }
    }

    /// Bytes of memory held, apart from the allocator's own: two bits a page, what was granted for
    /// heat, and about 40 for each page that stands aside.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        /// A node of a B-tree holds up to eleven entries and six or more on average.
        const ASIDE_BYTES: usize = 40;
        self.places.memory_bytes()
            + self.sketch.memory_bytes()
            + self.hottest.memory_bytes()
            + self.coldest.memory_bytes()
            + self.aside.len() * ASIDE_BYTES
            + self.cooldowns.memory_bytes()
    }

    /// Whether every invariant holds. Looks at every page.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.check().is_ok()
    }

    /// Says which invariant is broken, if one is. Looks at every page.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn check(&self) -> Result<(), String> {
        self.sketch.check()?;
        self.check_aside()?;
        self.check_candidates(Placement::Slow)?;
        self.check_candidates(Placement::Fast)?;
        if let Some((id, _)) = self
            .sketch
            .iter()
            .find(|&(id, _)| self.places.get(id) == Place::Untracked)
        {
            return Err(format!("page {id} has a count, but is not tracked"));
        }
        let found = self.count_states(self.places.iter().map(|(id, _)| id));
        if found != self.stats.pages {
            return Err(format!(
                "pages are miscounted: {:?}, found {found:?}",
                self.stats.pages
            ));
        }
        Ok(())
    }

    /// Every page that stands aside has an entry, and every entry a page.
    fn check_aside(&self) -> Result<(), String> {
        let ends = self.cooldowns.all();
        for (&id, &(placement, why)) in &self.aside {
            if self.places.get(id) != Place::Aside || placement == Placement::Untracked {
                return Err(format!(
                    "page {id} stands aside, but its bits do not say so"
                ));
            }
            if let Why::Cooling(end) = why
                && !ends.contains(&(end, id))
            {
                return Err(format!("nothing ends the cooldown of page {id}"));
            }
        }
        let bits = self.places.count(Place::Aside, 0..self.places.len());
        if bits as usize != self.aside.len() {
            return Err(format!(
                "{bits} pages stand aside, but {} have an entry",
                self.aside.len()
            ));
        }
        Ok(())
    }

    /// Every page whose rank is above the bar has an entry of at least its rank.
    fn check_candidates(&self, tier: Placement) -> Result<(), String> {
        let (set, best, wanted) = match tier {
            Placement::Fast => (&self.coldest, Best::Coldest, Place::Fast),
            _ => (&self.hottest, Best::Hottest, Place::Slow),
        };
        set.check()?;
        let mut entries = BTreeMap::new();
        for entry in set.iter() {
            let rank: &mut u32 = entries.entry(entry.id()).or_default();
            *rank = entry.rank().max(*rank);
        }
        for (id, place) in self.places.iter() {
            let rank = best.rank(self.sketch.key(id));
            let entry = entries.get(&id).copied().unwrap_or(0);
            let offered = place == wanted && !self.pinned.contains(id);
            if offered && rank > set.bar() && entry < rank {
                return Err(format!(
                    "page {id} of rank {rank} should stand among the candidates, bar {}, entry {entry}",
                    set.bar()
                ));
            }
        }
        Ok(())
    }
}
