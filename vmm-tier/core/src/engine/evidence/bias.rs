//! The bias between tiers: how much more often the source reports an access to the fast tier than an
//! access to the slow tier.
//!
//! Hardware that samples accesses does not see all memory alike: earlier systems found samples over five
//! times as dense in DRAM. A hot page of the slow tier then looks colder than a lukewarm page in DRAM,
//! and stays where it is.
//!
//! # The experiment
//! Promotions are a randomised trial. A random sample of the pages due for promotion is *held back* for
//! up to 2 s. An equal sample is promoted and watched for as long after the move. Both groups were
//! chosen for the same reason at the same time. Luck (the winner's curse), changes of the guest's pace
//! or pattern, and lost records therefore affect both alike. Only the tier differs, hence
//!
//! ```text
//!            records of the moved pages / what was expected of them      Yₘ / Eₘ
//! fast : slow = ───────────────────────────────────────────────────── = ─────────
//!            records of the held pages  / what was expected of them      Yₕ / Eₕ
//! ```
//!
//! A page's expected records are its rate, as the engine estimates it at the draw, times the time
//! watched. The estimate need not be right, as it is made alike for both groups: it makes pages of
//! different heat comparable (the ratio estimator of sampling theory: Cochran, "Sampling techniques",
//! 1977, chapter 6). For Poisson counts it is the maximum of the likelihood. [`estimate`] says how
//! certain the ratio is.
//!
//! # Where it errs
//! - It measures pages that are hot enough to be promoted. A source whose bias depends on a page's heat,
//!   or that sees stores and loads differently, gets one number.
//! - Pages whose move fails leave the trial, as do pages that the kernel moves. If these are the hottest
//!   of the moved pages (a page in use is busy more often), the bias is underestimated, by the share of
//!   failures at most.
//! - The first records after a move belong to a batch that began before it, and are not counted. If a
//!   page is used less in its first moments on a node (its TLB entries are gone), that is within 2 s.
//!
//! # What is done about it
//! The bias is shown, and counts are not corrected for it: a count of few records that is multiplied is
//! as uncertain as before, and pages near the border would go to and fro.
//!
//! A source that tests pages reads page tables, which are written alike for all memory: nothing is
//! measured there.
//!
//! Worth nothing for placement: it is there to be shown. It costs 0.1 points of hits on generated
//! accesses, 0.25 at most, and none on the recorded programs (docs/results/policies.md).

mod estimate;
mod watched;

use std::time::Duration;

use crate::{
    dual_heap::PageId,
    random::Random,
    sample::{SampleBatch, SourceKind},
    time::Time,
};

use estimate::Estimate;
use watched::{Watch, Watched};

/// How long a page is held back or watched at most: longer than batches are late, and short enough to
/// cost few hits.
pub(crate) const WATCH: Duration = Duration::from_secs(2);
/// A page that is held back is free when its time is over, or this much later if no batch came to end
/// the time. Were it free before its last batch has ended, the hottest pages would leave the trial by
/// being promoted.
pub(crate) const GRACE: Duration = Duration::from_secs(2);
/// A page is held back or watched until this many records of it are expected: what it has shown by then
/// is as certain as what was expected of it.
const ENOUGH_OF_ONE: f64 = 2.0;
/// One promotion in this many is held back, and as many are watched.
const ONE_IN: u64 = 8;
/// The bytes held back at a time are at most this part of the bytes in the fast tier, so the experiment
/// costs fewer hits than that.
const HELD_ONE_IN: u64 = 64;
/// A page that is expected to have more than this share of all accesses takes no part: it is worth too
/// much to be held back, and would weigh too much if it were watched.
pub(crate) const MOST_SHARE: f64 = 1e-3;
/// Pages under watch, at most.
const MOST_WATCHED: usize = 1024;
/// A page whose move has not ended after this time leaves the trial.
const MOST_WAIT: Duration = Duration::from_secs(10);

crate::report! {
    /// How much more often the source reports an access to the fast tier than an access to the slow
    /// tier, learned from a random sample of pages: some are promoted at once, some two seconds later.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct TierBias = "TierBias" {
        /// Records of the fast tier for each record of the slow tier, for as many accesses; absent while
        /// the ratio is not known.
        #[metric(gauge = "bias_fast_to_slow_ratio")]
        pub fast_to_slow: Option<f64>,
        /// The standard deviation of the ratio's logarithm: 0.1 is a tenth.
        #[metric(gauge = "bias_deviation")]
        pub deviation: Option<f64>,
        /// Pages that the ratio was learned from, decayed.
        #[metric(gauge = "bias_learned_pages")]
        pub pages: u64,
        /// Pages whose promotion waits now, to learn the ratio.
        #[metric(gauge = "bias_held_pages")]
        pub held: u64,
        /// Whether the ratio differs from 1 by 4 deviations; counts are not corrected for it.
        #[metric(gauge = "bias_significant")]
        pub significant: bool,
    }
}

/// What becomes of a page that is about to be promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lot {
    /// It is promoted.
    Go,
    /// It is promoted, and watched then.
    GoWatched,
    /// It stays for [`WATCH`] at most, and is watched meanwhile.
    Stay,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Bias {
    /// The source that has this bias.
    source: Option<SourceKind>,
    watched: Watched,
    estimate: Estimate,
    random: Random,
}

impl Default for Bias {
    fn default() -> Self {
        Self {
            source: None,
            watched: Watched::default(),
            estimate: Estimate::default(),
            random: Random::new(1),
        }
    }
}

impl Bias {
    /// A batch of the source that is believed begins.
    pub(crate) fn begin(&mut self, batch: &SampleBatch) {
        let source = batch.source;
        if self.source != Some(source) {
            // Another source has another bias.
            *self = Self {
                source: Some(source),
                ..Self::default()
            };
        }
        let span = u64::try_from(batch.span.as_nanos()).unwrap_or(u64::MAX);
        let start = Time(batch.end.0.saturating_sub(span));
        for watch in self.watched.values_mut() {
            if watch.began.is_none() && watch.there.is_some_and(|there| there <= start) {
                watch.began = Some(start);
            }
        }
    }

    /// Takes note of records of a page, as they came.
    #[inline]
    pub(crate) fn see(&mut self, page: PageId, counts: f32) {
        if let Some(watch) = self.watched.get_mut(page)
            && watch.began.is_some()
        {
            watch.seen += f64::from(counts);
        }
    }

    /// The batch ends: takes in what pages whose time is over have shown. Returns those of them that
    /// were held back.
    pub(crate) fn end(&mut self, now: Time) -> Vec<PageId> {
        let mut free = Vec::new();
        if self.watched.is_empty() {
            return free;
        }
        self.estimate.fade(now);
        let is_over = |watch: &Watch| match watch.began {
            Some(began) => now.since(began) >= watch.time,
            None => now.since(watch.drawn) >= MOST_WAIT,
        };
        let over = self.watched.iter().filter(|(_, watch)| is_over(watch));
        let over: Vec<PageId> = over.map(|(page, _)| page).collect();
        if over.is_empty() {
            return free;
        }
        for page in over {
            let Some(watch) = self.watched.remove(page) else {
                continue;
            };
            if watch.stays {
                free.push(page);
            }
            if let Some(began) = watch.began {
                let expected = watch.per_s * now.since(began).as_secs_f64();
                self.estimate.add(watch.stays, watch.seen, expected);
            }
        }
        self.watched.refilter();
        self.estimate.decide();
        free
    }

    /// Draws the lot of a page of `page_bytes` bytes that is about to be promoted, while `fast_bytes`
    /// bytes are in the fast tier. [`Self::watch`] must follow if it takes part.
    pub(crate) fn draw(&mut self, page_bytes: u64, fast_bytes: u64) -> Lot {
        let has_room = self.watched.len() < MOST_WATCHED
            && self.watched.held_bytes() + page_bytes <= fast_bytes / HELD_ONE_IN;
        if self.estimate.is_enough() || !has_room {
            return Lot::Go;
        }
        match self.random.below(ONE_IN) {
            0 => Lot::Stay,
            1 => Lot::GoWatched,
            _ => Lot::Go,
        }
    }

    /// Watches a page from now on, or from when it has [moved](Self::settled), of which so many records
    /// a second are expected. Returns for how long.
    pub(crate) fn watch(
        &mut self,
        now: Time,
        page: PageId,
        page_bytes: u64,
        lot: Lot,
        per_s: f64,
    ) -> Duration {
        self.forget(page);
        let stays = lot == Lot::Stay;
        let time = Duration::try_from_secs_f64(ENOUGH_OF_ONE / per_s).unwrap_or(WATCH);
        let time = time.min(WATCH);
        let watch = Watch {
            stays,
            time,
            bytes: page_bytes,
            per_s,
            drawn: now,
            there: stays.then_some(now),
            began: None,
            seen: 0.0,
        };
        self.watched.insert(page, watch);
        time
    }

    /// A move of a page ended, with success on the fast tier or otherwise.
    pub(crate) fn settled(&mut self, now: Time, page: PageId, was_promoted: bool) {
        match self.watched.get_mut(page) {
            Some(watch) if was_promoted && watch.there.is_none() => watch.there = Some(now),
            Some(_) => self.forget(page),
            None => {}
        }
    }

    /// The page leaves the trial: it is elsewhere now, or no page.
    pub(crate) fn forget(&mut self, page: PageId) {
        self.watched.remove(page);
    }

    /// All pages leave the trial: they have other numbers now.
    pub(crate) fn forget_pages(&mut self) {
        self.watched.clear();
    }

    /// Whether the page is held back.
    pub(crate) fn holds(&self, page: PageId) -> bool {
        self.watched.get(page).is_some_and(|watch| watch.stays)
    }

    /// What is known.
    pub(crate) fn report(&self) -> TierBias {
        let known = self.estimate.known();
        TierBias {
            fast_to_slow: known.map(|(ratio, _)| ratio),
            deviation: known.map(|(_, deviation)| deviation),
            pages: self.estimate.pages().round() as u64,
            held: self.watched.held(),
            significant: self.estimate.is_significant,
        }
    }
}

#[cfg(test)]
mod tests;
