//! Intake: the samples of a batch, on their way to the heaps.
//!
//! A source that samples accesses delivers millions of them, each on one page. Samples of the same
//! weight reach the heaps together, so that their cache misses overlap. Ranges of pages come one by one.

use std::ops::Range;

use super::{
    access_stats::accesses_a_look,
    bias::Bias,
    demand::DemandMeter,
    grids::{Grids, Part},
    half_life::HalfLife,
    skew::Skew,
};
use crate::{
    addr::{BASE_PAGE, HUGE_PAGE, Hva},
    dual_heap::{PageId, Placement, Touched},
    engine::guest_pages::GuestPages,
    pages::Run,
    sample::{AccessSample, SampleAddress},
    time::Time,
};

/// Placements looked up out of turn because of one batch of samples, at most.
const URGENT_PER_BATCH: usize = 16;

/// Weights that are told apart in a batch: a source that samples accesses has one for each size of
/// pages.
const MOST_WEIGHTS: usize = 8;

/// The share of a huge page that a frame is.
const FRAME_OF_HUGE: f32 = BASE_PAGE as f32 / HUGE_PAGE as f32;

/// What the samples of a batch have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// When they count.
    pub(super) at: Time,
    /// The factor of their counts.
    pub(super) scale: f32,
    /// Whether their source is the believed source.
    pub(super) is_believed: bool,
    /// Looks at each page, for a believed source that tests pages.
    pub(super) looks: Option<f64>,
}

impl Terms {
    /// What a weight says of a page's use, in accesses a look, if there are looks. Pages that are found
    /// used at most looks differ little in their counts.
    pub(super) fn use_of(&self, weight: f32) -> Option<f64> {
        let count = f64::from(weight) / f64::from(self.scale);
        Some(accesses_a_look(count, self.looks?))
    }
}

/// What became of the samples of a batch.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Samples that fell on the guest.
    pub(super) accepted: u64,
    /// Bytes of the guest that they spoke for.
    pub(super) covered: u64,
    /// Counts of the fast tier's pages.
    pub(super) fast: f64,
    /// Counts of the slow tier's pages.
    pub(super) slow: f64,
    /// Use of the fast tier's pages, in accesses a look; 0 for a source that counts accesses.
    pub(super) fast_use: f64,
    /// The same of the slow tier's pages.
    pub(super) slow_use: f64,
    /// Addresses of pages whose placement is not known.
    pub(super) unplaced: Vec<Hva>,
}

impl Taken {
    fn count(&mut self, touched: Touched, weight: f32, terms: &Terms) {
        let (fast, slow) = (f64::from(touched.fast), f64::from(touched.slow));
        self.fast += fast * f64::from(weight);
        self.slow += slow * f64::from(weight);
        if let Some(each) = terms.use_of(weight) {
            self.fast_use += fast * each;
            self.slow_use += slow * each;
        }
    }
}

/// Who sees the records of single pages as they come.
#[derive(Debug)]
pub(super) struct Watchers<'a> {
    pub(super) half_life: &'a mut HalfLife,
    pub(super) bias: &'a mut Bias,
    pub(super) skew: &'a mut Skew,
    pub(super) demand: &'a mut DemandMeter,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Intake<'a> {
    terms: Terms,
    pages: &'a mut GuestPages,
    grids: &'a Grids,
    watchers: Watchers<'a>,
    /// Single pages, by the weight that each is to have.
    singles: Vec<(f32, Vec<PageId>)>,
    taken: Taken,
}

impl<'a> Intake<'a> {
    pub(super) fn new(
        terms: Terms,
        pages: &'a mut GuestPages,
        grids: &'a Grids,
        watchers: Watchers<'a>,
    ) -> Self {
        Self {
            terms,
            pages,
            grids,
            watchers,
            singles: Vec::new(),
            taken: Taken::default(),
        }
    }

    /// Brings the samples to the heaps.
    pub(super) fn feed(mut self, samples: &[AccessSample]) -> Taken {
        for sample in samples {
            let hva = match sample.address {
                SampleAddress::Host(hva) => hva,
                SampleAddress::Guest(gpa) => {
                    match self.pages.map.as_ref().and_then(|map| map.gpa_to_hva(gpa)) {
                        Some((hva, _)) => hva,
                        None => continue,
                    }
                }
            };
            let weight = sample.weight * self.terms.scale;
            let counts = weight > 0.0 && weight.is_finite();
            let covered = match self.pages.index.page_of_access(hva, sample.len) {
                Some((page, share)) if !counts || self.push(page, weight * share) => {
                    if counts {
                        self.see(page, weight);
                        self.see_demand(page, weight * share);
                        if share == FRAME_OF_HUGE {
                            self.see_frame(page, hva);
                        }
                    }
                    BASE_PAGE
                }
                _ => self.feed_range(hva, sample.len, weight),
            };
            self.taken.covered += covered;
            self.taken.accepted += u64::from(covered > 0);
        }
        for (weight, ids) in std::mem::take(&mut self.singles) {
            let touched = self.pages.heap.sample_batch(self.terms.at, &ids, weight);
            self.taken.count(touched, weight, &self.terms);
            if touched.pages() < ids.len() as u32 {
                self.find_unplaced(ids.into_iter());
            }
        }
        self.taken
    }

    /// Puts a page with others of its weight. Returns whether there is room for this weight.
    fn push(&mut self, page: PageId, weight: f32) -> bool {
        if let Some((_, pages)) = self.singles.iter_mut().find(|(of, _)| *of == weight) {
            pages.push(page);
            return true;
        }
        let has_room = self.singles.len() < MOST_WEIGHTS;
        if has_room {
            self.singles.push((weight, vec![page]));
        }
        has_room
    }

    /// Records of a single page, as they came.
    #[inline]
    fn see(&mut self, page: PageId, weight: f32) {
        if self.terms.is_believed {
            self.watchers.half_life.see(page, weight);
            self.watchers.bias.see(page, weight);
        }
    }

    /// What a record of a single page says of demand, before the page's count grows.
    #[inline]
    fn see_demand(&mut self, page: PageId, weight: f32) {
        if self.terms.is_believed {
            let pages = (&self.pages.heap, &self.pages.index);
            let demand = &mut self.watchers.demand;
            demand.see(&self.terms, pages, page, weight);
        }
    }

    /// A record of a frame of a huge page, which begins on its own border.
    #[inline]
    fn see_frame(&mut self, page: PageId, hva: Hva) {
        if self.terms.is_believed && self.terms.looks.is_none() {
            let frame = hva.0 % HUGE_PAGE / BASE_PAGE;
            self.watchers.skew.see(page, frame as u32);
        }
    }

    /// Brings a sample of a range of pages to the heaps. Returns the bytes of the guest that it speaks
    /// for.
    fn feed_range(&mut self, hva: Hva, len: u64, weight: f32) -> u64 {
        let mut runs = Vec::new();
        let covered = self.pages.index.for_runs(hva, len, |run| runs.push(run));
        if !(weight > 0.0 && weight.is_finite()) {
            return covered;
        }
        for Run { ids, share } in runs {
            // A source that samples accesses names one page at a time.
            if ids.len() == 1 {
                self.see(PageId(ids.start), weight);
            }
            let is_whole = self.feed_run(ids.clone(), weight * share) == ids.end - ids.start;
            if !is_whole && self.taken.unplaced.len() < URGENT_PER_BATCH {
                // One page of a run is enough: the kernel is asked for all that is around it.
                let first = ids.map(PageId).find(|&id| self.is_unplaced(id));
                self.find_unplaced(first.into_iter());
            }
        }
        covered
    }

    /// Adds to the pages of a run what a range's count says of each. Returns how many lie on a tier.
    fn feed_run(&mut self, ids: Range<u32>, weight: f32) -> u32 {
        let (terms, taken, demand) = (&self.terms, &mut self.taken, &mut self.watchers.demand);
        let GuestPages { heap, index, .. } = &mut *self.pages;
        let mut pages = 0;
        let mut feed = |part: Part<'_>, weight| {
            if terms.is_believed {
                let (count, known) = (part.len(), (&*heap, &*index));
                demand.see_many(terms, known, count, |at| part.page(at), weight);
            }
            let touched = match part {
                Part::Run(ids) => heap.sample_run(terms.at, ids, weight),
                Part::Pages(ids) => heap.sample_batch(terms.at, ids, weight),
            };
            taken.count(touched, weight, terms);
            pages += touched.pages();
        };
        match terms.looks {
            None => feed(Part::Run(ids), weight),
            Some(looks) => {
                let most = looks as f32 * terms.scale;
                let missed = 1.0 - (weight / most).min(1.0);
                self.grids.parts(ids, |part, factor| {
                    let weight = match factor {
                        1.0 => weight,
                        factor => most * (1.0 - missed.powf(factor)),
                    };
                    feed(part, weight);
                });
            }
        }
        pages
    }

    fn is_unplaced(&self, id: PageId) -> bool {
        self.pages.heap.placement(id) == Placement::Untracked
    }

    /// Adds the addresses of those pages whose placement is not known, as long as few are.
    fn find_unplaced(&mut self, ids: impl Iterator<Item = PageId>) {
        let room = URGENT_PER_BATCH.saturating_sub(self.taken.unplaced.len());
        let found = ids.filter(|&id| self.is_unplaced(id));
        let pages = found.filter_map(|id| self.pages.index.page(id));
        let addresses: Vec<Hva> = pages.map(|page| page.hva).take(room).collect();
        self.taken.unplaced.extend(addresses);
    }
}
