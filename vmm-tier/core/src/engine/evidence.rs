//! Evidence: what the sources saw of the guest's accesses, and what follows for a page's heat.
//!
//! ```text
//!  batch ─► sources (account, scale) ─► intake ─► heaps (heat of each page)
//!                                         ├─────► access_stats (all pages together)
//!                                         ├─────► half_life    (how fast counts are forgotten)
//!                                         ├─────► change       (whether they turned to slow pages)
//!                                         ├─────► bias         (how differently the tiers are seen)
//!                                         ├─────► skew         (which frames make a huge page hot)
//!                                         └─────► demand       (how much DRAM would serve them)
//!            heat of a sample of pages, each second ─► expected_heat (what a count says of a page)
//! ```

pub(crate) mod access_stats;
pub(crate) mod bias;
mod change;
pub(crate) mod demand;
pub(crate) mod expected_heat;
pub(crate) mod grids;
pub(crate) mod half_life;
mod intake;
pub(crate) mod skew;
pub(crate) mod sources;

use std::time::Duration;

use self::{
    access_stats::AccessStats,
    bias::{Bias, TierBias},
    change::{ChangeDetector, Looks},
    demand::DemandMeter,
    expected_heat::ExpectedHeat,
    grids::Grids,
    half_life::HalfLife,
    intake::{Intake, Terms, Watchers},
    skew::Skew,
    sources::SourceAccounts,
};
use super::guest_pages::{Candidate, GuestPages};
use crate::{
    addr,
    dual_heap::Placement,
    sample::{DropReason, SampleBatch, SourceKind},
    settings::{EngineSettings, Tier},
    time::Time,
};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Evidence {
    pub(super) sources: SourceAccounts,
    pub(super) stats: AccessStats,
    pub(super) bias: Bias,
    pub(super) skew: Skew,
    pub(super) demand: DemandMeter,
    expected_heat: ExpectedHeat,
    half_life: HalfLife,
    change: ChangeDetector,
    pub(super) grids: Grids,
    /// Time for which the believed source has watched with a settled pace.
    observed: Duration,
    /// Whether the last batch told hot from warm.
    settled: bool,
    /// Whether the guest is watched less closely.
    pub(super) at_rest: bool,
}

impl Evidence {
    pub(super) fn new(half_life: Duration, now: Time) -> Self {
        Self {
            sources: SourceAccounts::default(),
            stats: AccessStats::new(half_life, now),
            bias: Bias::default(),
            skew: Skew::default(),
            demand: DemandMeter::default(),
            expected_heat: ExpectedHeat::default(),
            half_life: HalfLife::new(half_life),
            change: ChangeDetector::default(),
            grids: Grids::default(),
            observed: Duration::ZERO,
            settled: false,
            at_rest: false,
        }
    }

    /// Whether the source can tell hot pages from warm pages.
    pub(super) const fn is_settled(&self) -> bool {
        self.settled
    }

    /// Whether a source watched long enough for moves. Each count of a source that counts accesses says
    /// something, and is weighed by its expected heat; a source that tests pages must first find its
    /// regions and its pace.
    pub(super) fn is_warm(&self, settings: &EngineSettings) -> bool {
        let warm_up = match self.stats.counts_accesses() {
            true => settings.warm_up / 4,
            false => settings.warm_up,
        };
        self.observed >= warm_up
    }

    /// The half-life in force.
    pub(super) const fn half_life(&self) -> Duration {
        self.half_life.in_force()
    }

    /// An operator sets the half-life; every page keeps its count.
    pub(super) fn set_half_life(&mut self, now: Time, half_life: Duration, pages: &mut GuestPages) {
        self.half_life = HalfLife::new(half_life);
        pages.heap.set_half_life(half_life, now);
        self.stats.set_half_life(half_life, now);
    }

    /// The pages have other numbers from now on.
    pub(super) fn forget_pages(&mut self) {
        self.expected_heat.clear();
        self.bias.forget_pages();
        self.skew.clear();
        self.demand.forget_pages();
        self.half_life.forget_pages();
        self.change.forget();
        self.grids.forget();
    }

    /// Accounts for a batch that is not used.
    pub(super) fn refuse(&mut self, batch: &SampleBatch, reason: DropReason) {
        let account = self.sources.account(batch.source);
        account.add(&batch.account);
        account.drop_records(reason, batch.samples.len() as u64);
    }

    /// Feeds a batch, made under the map in force, to the heaps. Every record is accounted for.
    pub(super) fn take(
        &mut self,
        now: Time,
        batch: &SampleBatch,
        half_life: Duration,
        pages: &mut GuestPages,
    ) {
        let source = batch.source;
        self.sources.account(source).add(&batch.account);
        // Late batches count at their own time; a batch from the future can't.
        let at = batch.end.min(now);
        let scale = self.sources.scale(batch, half_life);
        if let Some(factor) = scale.heats {
            pages.heap.scale(now, factor);
            self.stats.scale(factor);
            self.demand.forget();
        }
        let is_believed = self.sources.main == Some(source);
        let looks = (is_believed && batch.tests > 0).then(|| batch.looks());
        let terms = Terms {
            at,
            scale: scale.counts as f32,
            is_believed,
            looks,
        };
        // A source that tests pages reads what is written alike for all memory: it has no bias.
        let may_be_biased = terms.is_believed && batch.tests == 0;
        if may_be_biased {
            self.bias.begin(batch);
        }
        if is_believed {
            let each = access_stats::accesses_a_record(batch);
            let samples = batch.samples.len();
            self.demand.begin(&terms, batch.span, samples, each);
        }
        let watchers = Watchers {
            half_life: &mut self.half_life,
            bias: &mut self.bias,
            skew: &mut self.skew,
            demand: &mut self.demand,
        };
        let intake = Intake::new(terms, pages, &self.grids, watchers).feed(&batch.samples);
        let records = batch.samples.len() as u64;
        let account = self.sources.account(source);
        account.accept(intake.accepted);
        account.drop_records(DropReason::NotGuestRam, records - intake.accepted);
        for hva in intake.unplaced {
            pages.scanner.ask_urgently(hva);
        }
        let total: u64 = pages.index.spans().map(|span| span.bytes).sum();
        let share = match batch.tests {
            // Any access may be sampled, wherever it falls.
            0 if intake.accepted > 0 => 1.0,
            _ => intake.covered as f64 / total.max(1) as f64,
        };
        self.sources.judge(batch, now, share);
        for (tier, counts) in [(Tier::Fast, intake.fast), (Tier::Slow, intake.slow)] {
            let tier = terms.is_believed.then_some(tier);
            self.stats.add(at, tier, counts);
        }
        self.stats.tick(now);
        if !terms.is_believed {
            return;
        }
        if may_be_biased {
            for page in self.bias.end(batch.end) {
                let state = pages.heap.state(page);
                if state.placement == Placement::Slow && state.cooldown_until.is_some() {
                    pages.heap.settle(page, Placement::Slow, None);
                }
            }
        }
        self.stats.observe(batch, looks, at, share);
        if batch.tests > 0 {
            let looks = Looks {
                pages: pages.heap.len(Placement::Fast) + pages.heap.len(Placement::Slow),
                every: batch.span / batch.tests,
            };
            let is_change = self.change.observe(intake.fast_use, intake.slow_use, looks);
            if is_change || self.change.outdates_counts() {
                self.doubt(now, pages);
            }
        }
        self.settled = batch.settled;
        if batch.settled {
            self.observed = self.observed.saturating_add(batch.span);
        }
    }

    /// Takes what the believed source found page by page beside its batches. Every record is accounted for.
    pub(super) fn take_grid(&mut self, now: Time, batch: &SampleBatch, pages: &mut GuestPages) {
        let account = self.sources.account(batch.source);
        account.add(&batch.account);
        account.accept(batch.samples.len() as u64);
        let is_believed = self.sources.main == Some(batch.source);
        let is_changed = is_believed
            && self
                .grids
                .learn(now, batch, self.at_rest, &self.stats, pages);
        if is_changed && self.at_rest {
            self.change.notice();
        }
    }

    /// The guest does something else, or is looked at much more closely: all that was counted before
    /// weighs as a single look.
    fn doubt(&mut self, now: Time, pages: &mut GuestPages) {
        self.keep(self.stats.share_of_one_look(now), now, pages);
    }

    /// Keeps this share of all that was counted.
    fn keep(&mut self, share: f64, now: Time, pages: &mut GuestPages) {
        pages.heap.scale(now, share);
        self.stats.forget(share);
        self.demand.outdate();
    }

    /// Pages were moved.
    pub(super) const fn moved(&mut self) {
        self.change.moved();
    }

    /// How often the guest's accesses turned to slow pages.
    pub(super) const fn changes(&self) -> u64 {
        self.change.noticed()
    }

    /// Takes the half-life that predicts best, and looks at some pages' counts, if either is due.
    pub(super) fn tick(&mut self, now: Time, pages: &mut GuestPages) {
        self.demand
            .tick(now, self.at_rest, &pages.heap, &pages.index);
        if !self.stats.counts_accesses() {
            return;
        }
        self.adapt_half_life(now, pages);
        self.expected_heat
            .learn(now, self.at_rest, &self.stats, pages);
    }

    fn adapt_half_life(&mut self, now: Time, pages: &mut GuestPages) {
        let old = self.half_life.in_force();
        let Some(half_life) = self.half_life.tick(now, self.at_rest) else {
            return;
        };
        // A shorter memory begins with what it would hold of a steady page, had it been in force before.
        // Else pages that were hot long ago would outweigh for many half-lives pages that are hot now. A
        // longer memory begins with what is known. Worth in hits: 0.4 points where the pattern changes, 1.0
        // with the smallest DRAM there; on the recorded programs it costs 0.4.
        let kept = half_life.div_duration_f64(old);
        if kept < 1.0 {
            self.keep(kept, now, pages);
        }
        pages.heap.set_half_life(half_life, now);
        self.stats.set_half_life(half_life, now);
    }

    /// The decayed count that a page is expected to have on average, given its own count and those of
    /// all pages.
    pub(super) fn expected_count(&self, page: &Candidate, now: Time) -> f64 {
        let scale = self.stats.plain_counts(now) * addr::frames(page.page.bytes);
        let counts = page.count * scale;
        self.expected_heat.of(page.page.bytes, counts) / scale
    }

    /// How differently the source sees the tiers; `None` for a source that tests pages, which sees them
    /// alike.
    pub(super) fn tier_bias(&self) -> Option<TierBias> {
        self.stats.counts_accesses().then(|| self.bias.report())
    }

    /// The source that is believed from now on.
    pub(super) fn believe(&mut self, source: Option<SourceKind>) {
        self.sources.main = source;
        self.change.forget();
        self.demand.forget();
    }

    /// Says which account is wrong, if any is.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut stats = self.sources.stats();
        match stats.find(|(_, stats)| !stats.account.is_valid()) {
            Some((kind, stats)) => Err(format!("samples of {kind} are miscounted: {stats:?}")),
            None if !self.expected_heat.is_valid() => {
                Err("the spread of heats is no distribution".to_owned())
            }
            None if !self.change.is_valid() => Err(format!(
                "a change of the guest can't be told from noise: {:?}",
                self.change
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        addr::Hva,
        sample::{AccessKind, AccessSample, SampleAccount, SampleAddress},
    };

    fn batch(tests: u32, settled: bool) -> SampleBatch {
        SampleBatch {
            source: SourceKind::Ibs,
            end: Time(0),
            span: Duration::from_millis(600),
            tests,
            period: 1,
            settled,
            map_generation: 1,
            samples: vec![AccessSample {
                address: SampleAddress::Host(Hva(0)),
                len: 1,
                weight: 1.0,
                kind: AccessKind::Load,
            }],
            account: SampleAccount::default(),
        }
    }

    #[test]
    fn batch_when_refused_or_outside_the_guest_is_accounted_for() {
        let half_life = Duration::from_secs(10);
        let mut pages = GuestPages::new(half_life);
        let mut evidence = Evidence::new(half_life, Time(0));
        evidence.refuse(&batch(0, true), DropReason::StaleMap);
        evidence.take(Time(0), &batch(0, true), half_life, &mut pages);
        let total = evidence.sources.total();
        assert_eq!((total.samples, total.accepted), (2, 0));
        assert_eq!(total.dropped[&DropReason::StaleMap], 1);
        assert_eq!(total.dropped[&DropReason::NotGuestRam], 1);
        assert_eq!(evidence.check(), Ok(()));
    }

    #[test]
    fn warm_up_when_accesses_are_counted_takes_a_quarter() {
        let settings = EngineSettings::default();
        assert_eq!(settings.warm_up, Duration::from_secs(2));
        let half_life = settings.half_life;
        for (tests, batches) in [(0, 1), (20, 4)] {
            let mut pages = GuestPages::new(half_life);
            let mut evidence = Evidence::new(half_life, Time(0));
            evidence.believe(Some(SourceKind::Ibs));
            evidence.take(Time(0), &batch(tests, false), half_life, &mut pages);
            assert!(!evidence.is_settled() && !evidence.is_warm(&settings));
            let mut taken = 0;
            while !evidence.is_warm(&settings) {
                evidence.take(Time(0), &batch(tests, true), half_life, &mut pages);
                taken += 1;
            }
            assert_eq!(taken, batches);
            assert!(evidence.is_settled());
        }
    }
}
