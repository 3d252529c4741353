//! What can be seen of the store: counts, states, and whether all invariants hold.

use std::{cmp::Reverse, collections::BTreeMap};

use serde::Serialize;

use super::{
    Best, DecayingSketch, SketchHeat, SketchStats, Why,
    places::{Place, Places},
};
use crate::{
    dual_heap::{PageId, PageState, Placement},
    time::Time,
};

/// Counts of pages and of work done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SketchHeatStats {
    /// Pages in the fast tier.
    pub fast: u32,
    /// Pages in the slow tier.
    pub slow: u32,
    /// Pages whose move is under way.
    pub in_flight: u32,
    /// Pages in cooldown.
    pub cooling: u32,
    /// Pages excluded.
    pub excluded: u32,
    /// Times a set of candidates was refilled from all pages.
    pub refills: u64,
    /// Times a set of candidates was full and kept its better half.
    pub compactions: u64,
    /// The sketch's own.
    pub sketch: SketchStats,
}

impl SketchHeatStats {
    pub(super) fn at(&mut self, placement: Placement) -> &mut u32 {
        if placement == Placement::Fast {
            &mut self.fast
        } else {
            &mut self.slow
        }
    }

    pub(super) fn of(&mut self, why: Why) -> &mut u32 {
        match why {
            Why::Flight => &mut self.in_flight,
            Why::Cooling(_) => &mut self.cooling,
            Why::Excluded => &mut self.excluded,
        }
    }
}

impl SketchHeat {
    /// The decayed count of a page at `now`; 0 if it is not tracked, or the sketch has none.
    #[must_use]
    pub fn count(&self, id: PageId, now: Time) -> f64 {
        self.sketch.count(id.0, now)
    }

    /// What is known of a page. Pages are never pinned here.
    #[must_use]
    pub fn state(&self, id: PageId) -> PageState {
        let why = self.aside.get(&id.0).map(|&(_, why)| why);
        PageState {
            placement: self.placement(id.0),
            sampled: self.sketch.key(id.0) > 0.0,
            in_flight: why == Some(Why::Flight),
            cooldown_until: match why {
                Some(Why::Cooling(end)) => Some(end),
                _ => None,
            },
            excluded: why == Some(Why::Excluded),
            pinned: false,
        }
    }

    /// The number of pages that lie there, whatever their state.
    #[must_use]
    pub fn len(&self, placement: Placement) -> u32 {
        let SketchHeatStats { fast, slow, .. } = self.stats;
        match placement {
            Placement::Untracked => self.places.len() - fast - slow,
            Placement::Fast => fast,
            Placement::Slow => slow,
        }
    }

    /// Whether no page is tracked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.stats.fast + self.stats.slow == 0
    }

    /// All tracked pages in rising order, with their placement and decayed count at `now`.
    pub fn iter(&self, now: Time) -> impl Iterator<Item = (PageId, Placement, f64)> + '_ {
        let unboost = (-self.decay().age(now)).exp2();
        self.places.iter().map(move |(id, _)| {
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
            + self.ends.capacity() * size_of::<(Time, u32)>()
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
        let count = |wanted| {
            let pages = self.places.iter();
            pages
                .filter(|&(id, _)| self.placement(id) == wanted)
                .count() as u32
        };
        let (fast, slow) = (count(Placement::Fast), count(Placement::Slow));
        if (fast, slow) != (self.stats.fast, self.stats.slow) {
            return Err(format!(
                "pages are miscounted: {:?}, found {fast} fast, {slow} slow",
                self.stats
            ));
        }
        Ok(())
    }

    /// Every page that stands aside has an entry, and every entry a page.
    fn check_aside(&self) -> Result<(), String> {
        let ends: std::collections::HashSet<_> =
            self.ends.iter().map(|Reverse(end)| *end).collect();
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
        let bits = |places: &Places| {
            let pages = places.iter();
            pages.filter(|&(_, place)| place == Place::Aside).count()
        };
        let whys = |wanted: fn(Why) -> bool| {
            let held = self.aside.values();
            held.filter(|&&(_, why)| wanted(why)).count() as u32
        };
        let stats = self.stats;
        if bits(&self.places) != self.aside.len()
            || whys(|why| why == Why::Flight) != stats.in_flight
            || whys(|why| matches!(why, Why::Cooling(_))) != stats.cooling
            || whys(|why| why == Why::Excluded) != stats.excluded
        {
            return Err(format!("pages that stand aside are miscounted: {stats:?}"));
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
            if place == wanted && rank > set.bar() && entry < rank {
                return Err(format!(
                    "page {id} of rank {rank} should stand among the candidates, bar {}, entry {entry}",
                    set.bar()
                ));
            }
        }
        Ok(())
    }
}
