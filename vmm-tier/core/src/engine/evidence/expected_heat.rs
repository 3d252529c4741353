//! The heat that a page's count makes expected, given how heats are spread over the guest's pages.
//!
//! For a source that counts accesses. The spread is learned from a few pages each second
//! ([`Population`]); pages of different sizes are different populations.
//!
//! Worth: 46 % of the bytes on generated accesses, 90 % on `pagerank` with DRAM for half of the guest,
//! and 0.1 points of hits. Nothing on the recorded programs (docs/results/policies.md).

mod population;

use std::{collections::BTreeMap, time::Duration};

use self::population::Population;
use super::access_stats::AccessStats;
use crate::{
    addr,
    dual_heap::{PageId, Placement},
    engine::guest_pages::GuestPages,
    random,
    time::Time,
};

/// How often pages are looked at. Heats change within half-lives, which are some seconds.
const EVERY: Duration = Duration::from_secs(1);
/// The same while the guest is at rest.
const AT_REST_EVERY: Duration = Duration::from_secs(8);
/// Pages are also looked at whenever the counts of all pages together have changed by this factor: at
/// the start, and when the guest works harder or rests. Earlier looks then say nothing of what a count
/// means now. Worth nothing on accesses at a steady rate. In a guest of 8192 equally hot pages whose
/// rate rises tenfold, 3 to 5 MB move without it, and nothing with it.
const CHANGED: f64 = 1.2;
/// Pages looked at each time, with a cache miss or two each: 0.02 % of a CPU. Five such samples
/// count together, so a heat that one page in 10 000 has is seen.
const PAGES: u32 = 2048;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct ExpectedHeat {
    by_page_bytes: BTreeMap<u64, Population>,
    next_at: Time,
    /// Plain counts of all pages together at the last look.
    counts: f64,
    /// Pages looked at since the start.
    looked: u64,
}

impl ExpectedHeat {
    /// The counts that a page of this size and with this many plain counts is expected to have on
    /// average.
    pub(super) fn of(&self, page_bytes: u64, counts: f64) -> f64 {
        self.by_page_bytes
            .get(&page_bytes)
            .filter(|population| population.is_known())
            .map_or(counts, |population| population.expected(counts))
    }

    /// Forgets everything: the pages are others now.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Looks at some pages if that is due.
    pub(super) fn learn(
        &mut self,
        now: Time,
        at_rest: bool,
        stats: &AccessStats,
        pages: &GuestPages,
    ) {
        let plain = stats.plain_counts(now);
        let counts = plain * stats.counts(now);
        let changed = counts > self.counts * CHANGED || counts < self.counts / CHANGED;
        if now < self.next_at && !changed {
            return;
        }
        self.next_at = now + if at_rest { AT_REST_EVERY } else { EVERY };
        self.counts = counts;
        if changed {
            for population in self.by_page_bytes.values_mut() {
                population.forget_counts();
            }
        }
        let mut by_page_bytes: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        let frames = pages.index.frames();
        let drawn = (0..PAGES.min(frames)).filter_map(|_| {
            self.looked += 1;
            let frame = random::scaled(random::spread(self.looked as u32), frames);
            let id = pages.index.page_of_frame(frame)?;
            pages.heap.prefetch(id);
            Some(id)
        });
        // All at once, so that their cache misses overlap.
        let drawn: Vec<PageId> = drawn.collect();
        for id in drawn {
            if pages.heap.placement(id) == Placement::Untracked {
                continue;
            }
            if let Some(page) = pages.index.page(id) {
                let counts = plain * pages.heap.count(id, now) * addr::frames(page.bytes);
                by_page_bytes.entry(page.bytes).or_default().push(counts);
            }
        }
        for (bytes, counts) in by_page_bytes {
            let by_size = &pages.bytes().by_page_size;
            let held = by_size.get(&bytes).copied().unwrap_or(0);
            let population = self.by_page_bytes.entry(bytes).or_default();
            population.learn(counts, held / bytes);
        }
    }

    /// Whether each population's weights are a distribution.
    pub(super) fn is_valid(&self) -> bool {
        self.by_page_bytes.values().all(Population::is_valid)
    }
}
