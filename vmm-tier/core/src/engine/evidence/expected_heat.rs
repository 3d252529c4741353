//! The census: how heats are spread over the guest's pages, learned from a few of them each second.
//!
//! For a source that counts accesses. What a single page's count is worth follows from it
//! ([`Population`]); pages of different sizes are different populations.

mod population;

use std::{collections::BTreeMap, time::Duration};

use self::population::Population;

use crate::engine::{VmEngine, evidence::bias::Shares, mover::plan::Candidate};
use crate::{
    addr,
    dual_heap::{PageId, Placement},
    random,
    time::Time,
};

/// How often pages are looked at. Heats change within half-lives, which are some seconds.
const EVERY: Duration = Duration::from_secs(1);
/// And whenever the counts of all pages together have changed by this factor: at the begin, and when the guest works
/// harder or rests. What earlier looks found then says nothing of what a count means now.
const CHANGED: f64 = 1.2;
/// Pages looked at each time: at 100 ns each (a cache miss or two) 0.02 % of a CPU. Five such samples
/// count together, so a heat that one page in 10 000 has is seen.
const PAGES: u32 = 2048;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Census {
    by_page_bytes: BTreeMap<u64, Population>,
    next_at: Time,
    /// Plain counts of all pages together at the last look.
    counts: f64,
    /// Pages looked at so far.
    looked: u64,
}

impl Census {
    /// The counts that a page of this size and with this many plain counts, the given share of all, is expected to have
    /// where all are seen.
    fn expected(&self, page_bytes: u64, counts: f64, share: f64) -> f64 {
        self.by_page_bytes
            .get(&page_bytes)
            .filter(|population| population.is_known())
            .map_or(counts / share, |population| {
                population.expected(counts, share)
            })
    }

    /// Forgets everything: the pages are others now.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl VmEngine {
    /// Looks at some pages if that is due.
    pub(crate) fn take_census(&mut self, now: Time) {
        if !self.tally.counts_accesses() {
            return;
        }
        let plain = self.tally.plain_counts(now);
        let counts = plain * self.tally.counts(now);
        let (low, high) = (self.census.counts / CHANGED, self.census.counts * CHANGED);
        let changed = counts > high || counts < low;
        if now < self.census.next_at && !changed {
            return;
        }
        self.census.next_at = now + EVERY;
        self.census.counts = counts;
        if changed {
            for population in self.census.by_page_bytes.values_mut() {
                population.forget_counts();
            }
        }
        let shares = self.bias.shares();
        let mut by_page_bytes: BTreeMap<u64, Vec<(f64, f64)>> = BTreeMap::new();
        let frames = self.index.frames();
        for _ in 0..PAGES.min(frames) {
            self.census.looked += 1;
            let frame = random::scaled(random::spread(self.census.looked as u32), frames);
            let Some(id) = self.index.page_of_frame(frame) else {
                continue;
            };
            let placement = self.heap.placement(id);
            if placement == Placement::Untracked {
                continue;
            }
            if let Some(page) = self.index.page(id) {
                let counts = plain * self.heap.count(id, now) * addr::frames(page.bytes);
                let counted = (counts, shares.of(placement));
                by_page_bytes.entry(page.bytes).or_default().push(counted);
            }
        }
        for (bytes, counts) in by_page_bytes {
            let held = self.bytes.by_page_size.get(&bytes).copied().unwrap_or(0);
            let population = self.census.by_page_bytes.entry(bytes).or_default();
            population.learn(counts, held / bytes);
        }
    }

    /// The decayed count that a page is expected to have on average, given its own and those of others, in a tier of
    /// which all is seen.
    pub(crate) fn expected_count(&self, page: &Candidate, now: Time) -> f64 {
        let scale = self.tally.plain_counts(now) * addr::frames(page.page.bytes);
        let share = self.share_seen(page.id);
        self.census
            .expected(page.page.bytes, page.count * scale, share)
            / scale
    }

    /// The share of a page's records that is seen where it lies, beside the tier that is seen best.
    pub(crate) fn share_seen(&self, page: PageId) -> f64 {
        match self.bias.shares() {
            Shares::ALIKE => 1.0,
            shares => shares.of(self.heap.placement(page)),
        }
    }
}
