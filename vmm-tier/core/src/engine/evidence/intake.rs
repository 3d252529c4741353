//! Taking in what the sources saw.
//!
//! A source that samples accesses delivers millions of them, each on one page: those of the same weight reach the
//! heaps together, so that their cache misses overlap. Ranges of pages come one by one.

use crate::engine::{VmEngine, VmState};
use crate::{
    addr::{BASE_PAGE, Hva},
    dual_heap::{PageId, Placement, Touched},
    pages::Run,
    sample::{AccessSample, DropReason, SampleAddress, SampleBatch},
    settings::Tier,
    time::Time,
};

/// Placements looked up out of turn because of one batch of samples, at most.
const URGENT_PER_BATCH: usize = 16;

/// Weights that are told apart in a batch: a source that samples accesses has one for each size of pages.
const MOST_WEIGHTS: usize = 8;

/// What is common to the samples of a batch.
#[derive(Clone, Copy)]
struct Terms {
    /// When they count.
    at: Time,
    /// By what their counts are multiplied.
    scale: f32,
    /// Whether their source is the one that is believed.
    is_believed: bool,
}

/// What became of the samples of a batch.
#[derive(Default)]
struct Intake {
    /// Single pages, by what each is to have.
    singles: Vec<(f32, Vec<PageId>)>,
    /// Samples that fell on the guest.
    accepted: u64,
    /// Bytes of the guest that they spoke for.
    covered: u64,
    /// Counts of the tiers' pages.
    fast: f64,
    slow: f64,
    /// Pages whose placement is not known.
    unplaced: Vec<Hva>,
}

impl Intake {
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

    fn count(&mut self, touched: Touched, weight: f32) {
        self.fast += f64::from(touched.fast) * f64::from(weight);
        self.slow += f64::from(touched.slow) * f64::from(weight);
    }
}

impl VmEngine {
    /// Feeds a batch to the heaps. Every record is accounted for.
    pub(crate) fn take_samples(&mut self, now: Time, batch: &SampleBatch) {
        let source = batch.source;
        self.sources.account(source).add(&batch.account);
        let records = batch.samples.len() as u64;
        let generation = self.map.as_ref().map(|map| map.generation());
        if generation != Some(batch.map_generation) {
            let account = self.sources.account(source);
            account.drop_records(DropReason::StaleMap, records);
            return;
        }
        if matches!(self.state(), VmState::Paused | VmState::GuestStopped) {
            let account = self.sources.account(source);
            account.drop_records(DropReason::Paused, records);
            return;
        }
        // Late batches count at their own time; one from the future can't be.
        let at = batch.end.min(now);
        let scale = self.sources.scale(batch, self.settings.half_life);
        if let Some(factor) = scale.heats {
            self.heap.scale(now, factor);
            self.tally.scale(factor);
        }
        let terms = Terms {
            at,
            scale: scale.counts as f32,
            is_believed: self.sources.main == Some(source),
        };
        // A source that tests pages reads what is written alike for all memory: it has no bias.
        let may_be_biased = terms.is_believed && batch.tests == 0;
        if may_be_biased {
            self.bias.begin(batch);
        }
        let intake = self.feed(&batch.samples, terms);
        let account = self.sources.account(source);
        account.accept(intake.accepted);
        account.drop_records(DropReason::NotGuestRam, records - intake.accepted);
        for hva in intake.unplaced {
            self.scanner.ask_urgently(hva);
        }
        let total: u64 = self.index.spans().map(|span| span.bytes).sum();
        let share = match batch.tests {
            // Any access may be the one in so many that is sampled, wherever it falls.
            0 if intake.accepted > 0 => 1.0,
            _ => intake.covered as f64 / total.max(1) as f64,
        };
        self.sources.judge(batch, now, share);
        for (tier, counts) in [(Tier::Fast, intake.fast), (Tier::Slow, intake.slow)] {
            let tier = terms.is_believed.then_some(tier);
            self.tally.add(at, tier, counts);
        }
        self.tally.tick(now);
        if !terms.is_believed {
            return;
        }
        if may_be_biased {
            for page in self.bias.end(batch.end) {
                let state = self.heap.state(page);
                if state.placement == Placement::Slow && state.cooldown_until.is_some() {
                    self.heap.settle(page, Placement::Slow, None);
                }
            }
            self.tally.set_shares(self.bias.shares());
        }
        self.tally.observe(batch, at, share);
        self.settled = batch.settled;
        if batch.settled {
            self.observed = self.observed.saturating_add(batch.span);
        }
    }

    /// Brings samples to the heaps.
    fn feed(&mut self, samples: &[AccessSample], terms: Terms) -> Intake {
        let mut intake = Intake::default();
        for sample in samples {
            let hva = match sample.address {
                SampleAddress::Host(hva) => hva,
                SampleAddress::Guest(gpa) => {
                    match self.map.as_ref().and_then(|map| map.gpa_to_hva(gpa)) {
                        Some((hva, _)) => hva,
                        None => continue,
                    }
                }
            };
            let weight = sample.weight * terms.scale;
            let counts = weight > 0.0 && weight.is_finite();
            let covered = match self.index.page_of_access(hva, sample.len) {
                Some((page, share)) if !counts || intake.push(page, weight * share) => {
                    if counts && terms.is_believed {
                        self.forgetting.see(page, weight);
                        self.bias.see(page, weight);
                    }
                    BASE_PAGE
                }
                _ => self.feed_range((hva, sample.len), weight, terms, &mut intake),
            };
            intake.covered += covered;
            intake.accepted += u64::from(covered > 0);
        }
        for (weight, pages) in std::mem::take(&mut intake.singles) {
            let touched = self.heap.sample_batch(terms.at, &pages, weight);
            intake.count(touched, weight);
            if touched.pages() < pages.len() as u32 {
                self.find_unplaced(pages.into_iter(), &mut intake.unplaced);
            }
        }
        intake
    }

    /// Brings a sample of a range of pages to the heaps. Returns the bytes of the guest that it speaks for.
    fn feed_range(
        &mut self,
        (hva, len): (Hva, u64),
        weight: f32,
        terms: Terms,
        intake: &mut Intake,
    ) -> u64 {
        let mut runs = Vec::new();
        let covered = self.index.for_runs(hva, len, |run| runs.push(run));
        if !(weight > 0.0 && weight.is_finite()) {
            return covered;
        }
        for Run { ids, share } in runs {
            // A source that samples accesses names one page at a time.
            if terms.is_believed && ids.len() == 1 {
                self.forgetting.see(PageId(ids.start), weight);
                self.bias.see(PageId(ids.start), weight);
            }
            let touched = self.heap.sample_run(terms.at, ids.clone(), weight * share);
            intake.count(touched, weight * share);
            let is_whole = touched.pages() == ids.end - ids.start;
            if !is_whole && intake.unplaced.len() < URGENT_PER_BATCH {
                // One of a run is enough: the kernel is asked for all that is around it.
                let first = ids.map(PageId).find(|&id| self.is_unplaced(id));
                self.find_unplaced(first.into_iter(), &mut intake.unplaced);
            }
        }
        covered
    }

    fn is_unplaced(&self, id: PageId) -> bool {
        self.heap.placement(id) == Placement::Untracked
    }

    /// Adds the addresses of those pages whose placement is not known, as long as few are.
    fn find_unplaced(&self, pages: impl Iterator<Item = PageId>, unplaced: &mut Vec<Hva>) {
        let room = URGENT_PER_BATCH.saturating_sub(unplaced.len());
        let found = pages.filter(|&id| self.is_unplaced(id));
        let addresses = found.filter_map(|id| self.index.page(id).map(|page| page.hva));
        unplaced.extend(addresses.take(room));
    }
}
