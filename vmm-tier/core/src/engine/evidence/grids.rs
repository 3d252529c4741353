//! How use is spread over the pages of ranges that were looked at page by page
//! ([`damon_grid`](crate::damon_grid)).
//!
//! A region's count speaks for each of its pages alike. Where a grid found its pages used differently, a
//! page has a *factor*: its count in the grid over the mean. The region's later counts are dealt out by
//! these factors, so a page's heat follows the region's in time, and the grid's in space. A factor is
//! shrunk toward 1 by the share of the counts' variance that chance explains (James and Stein).

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
};

use super::access_stats::AccessStats;
use crate::{
    addr::BASE_PAGE,
    damon_grid::scatter,
    dual_heap::PageId,
    engine::guest_pages::GuestPages,
    moves::Page,
    pages::FOLD,
    sample::{SampleAddress, SampleBatch},
    time::Time,
};

/// Standard deviations by which a grid contradicts what was known.
const CERTAIN: f64 = 4.0;
/// Steps of a factor: it is kept in a byte, up to 31.
const STEPS: f32 = 8.0;
/// Grids of the same place that factors are the mean of, at most: then a new one weighs as this many. A
/// single grid is noisy, and noise moves pages: beside steady Zipf popularity, means halve the bytes.
const MOST_LEARNED: u8 = 8;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Grids {
    /// By page number over [`FOLD`].
    blocks: HashMap<u32, Box<Block>>,
}

/// Pages that follow each other.
#[derive(Debug)]
struct Block {
    /// For each page 0, or 1 and its factor's steps.
    factors: [u8; FOLD as usize],
    /// Grids that the factors are the mean of.
    learned: u8,
}

impl Default for Block {
    fn default() -> Self {
        Self {
            factors: [0; FOLD as usize],
            learned: 0,
        }
    }
}

impl Grids {
    /// Takes what was found page by page. Pages of other sizes than 4 KiB differ by nothing that could be
    /// moved. Beside a guest at rest, looks are too few to learn from. Returns whether pages are used
    /// otherwise than was known.
    pub(super) fn learn(
        &mut self,
        now: Time,
        batch: &SampleBatch,
        is_at_rest: bool,
        stats: &AccessStats,
        pages: &mut GuestPages,
    ) -> bool {
        let (mut ids, mut counts) = (Vec::new(), Vec::new());
        for sample in &batch.samples {
            let SampleAddress::Host(hva) = sample.address else {
                continue;
            };
            if let Some((id, 1.0)) = pages.index.page_of_access(hva, sample.len) {
                ids.push(id);
                counts.push(f64::from(sample.weight));
            }
        }
        let is_changed = self.contradict(&ids, &counts);
        let scatter = scatter(&counts, batch.tests.into()).filter(|_| !is_at_rest);
        if is_changed || (scatter.is_none() && !is_at_rest) {
            self.forget_pages(&ids);
        }
        let Some(certain) = scatter else {
            return is_changed;
        };
        let n = ids.len() as f64;
        let mean = counts.iter().sum::<f64>() / n;
        let heat = ids.iter().map(|&id| pages.heap.count(id, now)).sum::<f64>() / n;
        let most = stats.looks_at(now);
        for (id, count) in ids.iter().zip(&counts) {
            let found = 1.0 + certain * (count / mean - 1.0);
            let block = self.blocks.entry(id.0 / FOLD).or_default();
            let factor = block.learn(id.0, found as f32);
            let count = (heat * f64::from(factor)).min(most);
            pages.heap.set_count(*id, count, now);
        }
        for number in numbers(&ids) {
            let block = self.blocks.entry(number).or_default();
            block.learned = (block.learned + 1).min(MOST_LEARNED);
        }
        is_changed
    }

    /// Forgets frames that are one page now: the factor of its first frame says nothing of the others.
    pub(crate) fn forget_folded(&mut self, folios: &[Page], pages: &GuestPages) {
        if self.blocks.is_empty() {
            return;
        }
        for folio in folios {
            let Some(head) = pages.index.id_at(folio.hva) else {
                continue;
            };
            if pages.index.page(head) == Some(*folio) {
                let frames = head.0..head.0 + (folio.bytes / BASE_PAGE) as u32;
                self.forget_pages(&frames.map(PageId).collect::<Vec<_>>());
            }
        }
    }

    fn forget_pages(&mut self, ids: &[PageId]) {
        for id in ids {
            if let Some(block) = self.blocks.get_mut(&(id.0 / FOLD)) {
                block.factors[(id.0 % FOLD) as usize] = 0;
                block.learned = 0;
            }
        }
        for number in numbers(ids) {
            let block = self.blocks.get(&number);
            if block.is_some_and(|block| block.factors.iter().all(|steps| *steps == 0)) {
                self.blocks.remove(&number);
            }
        }
    }

    /// Whether counts contradict the factors that are known of their pages: as an estimate of the counts
    /// they are worse than the mean, by [`CERTAIN`] standard deviations of the difference of the squared
    /// errors (counts taken as Poisson). Where the factors hold, the difference is as far below zero.
    fn contradict(&self, ids: &[PageId], counts: &[f64]) -> bool {
        let n = counts.len().max(1) as f64;
        let mean = counts.iter().sum::<f64>() / n;
        let factor = |id: &PageId| f64::from(self.factor(id.0).unwrap_or(1.0));
        // Of these pages: a grid may be a part of the one that was learned from.
        let usual = ids.iter().map(factor).sum::<f64>() / n;
        if usual <= 0.0 {
            return false;
        }
        let (mut difference, mut squares) = (0.0, 0.0);
        for (id, count) in ids.iter().zip(counts) {
            let factor = factor(id) / usual;
            difference += (count - factor * mean).powi(2) - (count - mean).powi(2);
            squares += (factor - 1.0).powi(2);
        }
        difference > CERTAIN * 2.0 * mean.powf(1.5) * squares.sqrt() && squares > 0.0
    }

    fn factor(&self, id: u32) -> Option<f32> {
        self.blocks.get(&(id / FOLD))?.factor(id)
    }

    /// The pages have other numbers.
    pub(super) fn forget(&mut self) {
        self.blocks.clear();
    }

    /// Bytes of the guest whose pages are known to be used differently.
    pub(crate) fn bytes(&self) -> u64 {
        self.blocks.len() as u64 * u64::from(FOLD) * BASE_PAGE
    }

    /// Bytes that they take.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.blocks.capacity() * size_of::<(u32, Box<Block>)>()
            + self.blocks.len() * size_of::<Block>()
    }

    /// Calls `each` for a run of pages in parts of one factor, 1 where nothing is known.
    pub(super) fn parts(&self, ids: Range<u32>, mut each: impl FnMut(Part<'_>, f32)) {
        if self.blocks.is_empty() {
            return each(Part::Run(ids), 1.0);
        }
        let mut at = ids.start;
        while at < ids.end {
            let end = (at / FOLD + 1).saturating_mul(FOLD).min(ids.end);
            match self.blocks.get(&(at / FOLD)) {
                None => each(Part::Run(at..end), 1.0),
                Some(block) => {
                    block.by_factor(at..end, |ids, factor| each(Part::Pages(ids), factor));
                }
            }
            at = end;
        }
    }
}

/// Pages that count alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// Pages that follow each other.
    Run(Range<u32>),
    /// Pages of a block, in rising order.
    Pages(&'a [PageId]),
}

impl Part<'_> {
    /// The number of pages.
    pub(super) fn len(&self) -> u32 {
        match self {
            Self::Run(ids) => ids.end - ids.start,
            Self::Pages(ids) => ids.len() as u32,
        }
    }

    /// The page at this place, which must be less than the number of pages.
    pub(super) fn page(&self, place: u32) -> PageId {
        match self {
            Self::Run(ids) => PageId(ids.start + place),
            Self::Pages(ids) => ids[place as usize],
        }
    }
}

/// The blocks of pages.
fn numbers(ids: &[PageId]) -> BTreeSet<u32> {
    ids.iter().map(|id| id.0 / FOLD).collect()
}

impl Block {
    /// Calls `each` for some pages of the block, by rising factor. What a factor makes of a count is
    /// worked out once for all pages of it: for each page it takes several times as long as a count.
    fn by_factor(&self, ids: Range<u32>, mut each: impl FnMut(&[PageId], f32)) {
        let first = (ids.start % FOLD) as usize;
        let factors = &self.factors[first..first + ids.len()];
        // A counting sort: where the pages of each factor begin, and then end.
        let mut ends = [0_usize; 257];
        for &steps in factors {
            ends[usize::from(steps) + 1] += 1;
        }
        for steps in 1..ends.len() {
            ends[steps] += ends[steps - 1];
        }
        let mut sorted = [PageId(0); FOLD as usize];
        for (id, &steps) in ids.zip(factors) {
            let end = &mut ends[usize::from(steps)];
            sorted[*end] = PageId(id);
            *end += 1;
        }
        let mut start = 0;
        for (steps, &end) in (0..=u8::MAX).zip(&ends) {
            if start < end {
                each(&sorted[start..end], factor_of(steps).unwrap_or(1.0));
            }
            start = end;
        }
    }

    fn factor(&self, id: u32) -> Option<f32> {
        factor_of(self.factors[(id % FOLD) as usize])
    }

    /// Takes a page's factor in a grid. Returns the mean.
    fn learn(&mut self, id: u32, found: f32) -> f32 {
        let factor = self.factor(id).map_or(found, |known| {
            known + (found - known) / f32::from(self.learned + 1)
        });
        let steps = (factor * STEPS).round().clamp(0.0, 254.0);
        self.factors[(id % FOLD) as usize] = steps as u8 + 1;
        factor
    }
}

/// The factor that a byte stands for; `None` where nothing is known.
fn factor_of(byte: u8) -> Option<f32> {
    Some(f32::from(byte.checked_sub(1)?) / STEPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_run_when_blocks_are_known_cover_it_once_by_factor() {
        let mut block = Block::default();
        for id in (FOLD + 4..2 * FOLD).step_by(4) {
            block.learn(id, 6.0);
        }
        block.learn(FOLD + 1, 0.0);
        let grids = Grids {
            blocks: [(1, Box::new(block))].into(),
        };
        let run = FOLD - 9..3 * FOLD;
        let mut found = Vec::new();
        grids.parts(run.clone(), |part, factor| match part {
            Part::Run(ids) => found.extend(ids.map(|id| (id, factor))),
            Part::Pages(ids) => {
                assert!(ids.is_sorted_by_key(|id| id.0) && !ids.is_empty());
                found.extend(ids.iter().map(|id| (id.0, factor)));
            }
        });
        found.sort_by_key(|(id, _)| *id);
        let expected = run.map(|id| (id, grids.factor(id).unwrap_or(1.0)));
        assert_eq!(found, expected.collect::<Vec<_>>());
        assert_eq!(grids.factor(FOLD + 8), Some(6.0));
    }
}
