//! The bias between tiers: how much more often the source reports an access to the fast tier than one to the slow tier.
//!
//! Hardware that samples accesses does not see all memory alike: earlier systems found their samples more than five
//! times as dense in DRAM. A hot page of the slow tier then looks colder than a lukewarm one in DRAM, and stays where it is.
//!
//! # The experiment
//! Promotions are a randomised trial. Of the slow pages that are about to be promoted some, drawn by lot, are *held
//! back* for two seconds at most, and as many of the others, drawn by the same lot, are watched for as long after they
//! have moved. Both were chosen for the same reason, at the same time, so whatever else happens to the one group happens to
//! the other: pages that were chosen because they had luck (the winner's curse), a guest that changes its pace or its
//! pattern, records that are lost. All that differs is the tier, hence
//!
//! ```text
//!            records of the moved pages / what was expected of them      Yₘ / Eₘ
//! fast : slow = ───────────────────────────────────────────────────── = ─────────
//!            records of the held pages  / what was expected of them      Yₕ / Eₕ
//! ```
//!
//! What is expected of a page is its rate as the engine estimates it at the draw, times the time watched. It need not be
//! right, as it is estimated alike for both: it makes pages of different heat comparable (the ratio estimator of
//! sampling theory: Cochran, "Sampling techniques", 1977, chapter 6). For Poisson counts it is the maximum of the
//! likelihood.
//!
//! # How certain it is
//! With R = Y / E of a group of n pages, the variance of R is estimated from the pages themselves,
//! Σ (yᵢ − R eᵢ)² · n / (n − 1) / E²: that holds whatever the spread of the rates. It is taken as no less than that
//! of Poisson counts, R² / Y. The logarithm of the ratio then has the variance Σ Var R / R² over both groups. Evidence loses
//! half of its weight in [`HALF_LIFE`].
//!
//! # Where it errs
//! - It speaks of pages that are hot enough to be promoted. A source whose bias depends on how hot a page is, or that
//!   sees stores otherwise than loads, has one number here.
//! - Pages whose move fails leave the trial, as do those that the kernel moves. Were these the hottest of the moved (a
//!   page in use is busy more often), the bias would be underestimated, by the share of failures at most.
//! - The first records after a move belong to a batch that began before it, and are not counted. If a page is used less
//!   in its first moments on a node (its TLB entries are gone), that is within two seconds.
//!
//! # What is done about it
//! Where the ratio differs from 1 by [`SURE`] deviations, each tier's pages are judged by how well the tier is seen. Counts
//! stay as they are: a count says how many records there are, and so how certain it is, and in a tier's heap all are
//! alike. What differs is what a count means: the share of the records that were made is part of the likelihood, where a
//! page's heat is estimated from its count and those of all pages (`engine/census.rs`), where two pages are
//! compared (`engine/judge.rs`), and in rates and the hit ratio. When a page changes its tier its count is
//! brought to what would have been seen of it there. The experiment sees records as they came, and no count.
//!
//! A source that tests pages reads page tables, which are written alike for all memory: nothing is measured or
//! corrected there.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, DefaultHasher},
    time::Duration,
};

use serde::Serialize;

use crate::{
    dual_heap::{PageId, Placement},
    random::{Random, spread},
    sample::{SampleBatch, SourceKind},
    time::Time,
};

/// How long a page is held back or watched at most: longer than batches are late, shorter than it matters.
pub(super) const WATCH: Duration = Duration::from_secs(2);
/// What is held back is free when its time is over, or, if no batch came to tell that, this much later. Were it free
/// before its last batch has ended, the hottest would leave the trial by being promoted.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// A page of which so many records are expected sooner is held back or watched no longer: what it has shown by then is
/// as certain as what was expected of it.
const ENOUGH_OF_ONE: f64 = 2.0;
/// Held back and watched are one in so many promotions each.
const ONE_IN: u64 = 8;
/// What is held back at a time, of the bytes in the fast tier, is at most one part in so many: hits that are lost to the
/// experiment while it goes on are fewer than that.
const HELD_ONE_IN: u64 = 64;
/// A page that is expected to have more than this share of all accesses is worth too much to be held back, and would
/// weigh too much if it were watched.
pub(super) const MOST_SHARE: f64 = 1e-3;
/// Pages under watch, at most.
const MOST_WATCHED: usize = 1024;
/// A page whose move has not ended after this time leaves the trial.
const MOST_WAIT: Duration = Duration::from_secs(10);
/// Evidence of so long ago weighs half: what hardware sees changes with what the guest does.
const HALF_LIFE: Duration = Duration::from_secs(600);
/// Fewer pages or records of a group say nothing.
const LEAST_PAGES: f64 = 8.0;
const LEAST_SEEN: f64 = 10.0;
/// Once the ratio is known this well no page is held back.
const ENOUGH: f64 = 0.1;
/// By how many deviations the ratio must differ from 1 before counts are judged by it. It is looked at again and again: of
/// 240 guests without a bias one came to be 3 deviations off in two minutes, none 4.
const SURE: f64 = 4.0;
/// They no longer are below this.
const STILL_SURE: f64 = 2.0;
/// A bias of less than a fifth changes no exchange (see `engine/judge.rs`).
const LEAST_BIAS: f64 = 1.2;
/// No more is believed.
const MOST_BIAS: f64 = 64.0;

/// How differently the source sees the tiers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TierBias {
    /// Records of an access to the fast tier for each of one to the slow tier; `null` while that is not known.
    pub fast_to_slow: Option<f64>,
    /// The standard deviation of its logarithm: 0.1 is a tenth.
    pub deviation: Option<f64>,
    /// Pages that this was learned from, held back and moved, decayed.
    pub pages: u64,
    /// Pages that are held back now.
    pub held: u64,
    /// Whether counts are judged by it.
    pub corrected: bool,
}

/// The share of the records that would have been made if a tier were seen as well as the one that is seen best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shares {
    pub(super) fast: f64,
    pub(super) slow: f64,
}

impl Shares {
    /// Both tiers are seen alike.
    pub(super) const ALIKE: Self = Self {
        fast: 1.0,
        slow: 1.0,
    };

    /// That of the records of a page there.
    #[inline]
    pub(super) const fn of(self, placement: Placement) -> f64 {
        match placement {
            Placement::Fast => self.fast,
            Placement::Slow | Placement::Untracked => self.slow,
        }
    }
}

/// What becomes of a page that is about to be promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lot {
    /// It is promoted.
    Go,
    /// It is promoted, and watched then.
    GoWatched,
    /// It stays for [`WATCH`] at most, and is watched meanwhile.
    Stay,
}

/// A page of the trial.
#[derive(Clone, Copy, Debug)]
struct Watch {
    /// Whether it is held back.
    stays: bool,
    bytes: u64,
    /// Records expected a second.
    per_s: f64,
    /// For how long it is watched.
    time: Duration,
    drawn: Time,
    /// Since when it is where it is to be watched; a moved page at first is not.
    there: Option<Time>,
    /// When the first batch began that is all of that time.
    began: Option<Time>,
    seen: f64,
}

/// Pages of one group, as sums.
#[derive(Clone, Copy, Debug, Default)]
struct Evidence {
    pages: f64,
    seen: f64,
    expected: f64,
    seen_seen: f64,
    seen_expected: f64,
    expected_expected: f64,
}

impl Evidence {
    fn add(&mut self, seen: f64, expected: f64) {
        self.pages += 1.0;
        self.seen += seen;
        self.expected += expected;
        self.seen_seen += seen * seen;
        self.seen_expected += seen * expected;
        self.expected_expected += expected * expected;
    }

    fn fade(&mut self, kept: f64) {
        for sum in [
            &mut self.pages,
            &mut self.seen,
            &mut self.expected,
            &mut self.seen_seen,
            &mut self.seen_expected,
            &mut self.expected_expected,
        ] {
            *sum *= kept;
        }
    }

    /// Records over what was expected, and the relative variance of that; `None` if there are too few.
    fn ratio(&self) -> Option<(f64, f64)> {
        if self.pages < LEAST_PAGES || self.seen < LEAST_SEEN || self.expected <= 0.0 {
            return None;
        }
        let ratio = self.seen / self.expected;
        let rest = self.seen_seen - 2.0 * ratio * self.seen_expected
            + ratio * ratio * self.expected_expected;
        let variance = rest * self.pages / (self.pages - 1.0);
        let relative = variance / (self.seen * self.seen);
        Some((ratio, relative.max(1.0 / self.seen)))
    }
}

/// Which pages may be watched: a bit for each of 4096 classes of pages, so that other samples cost next to nothing.
#[derive(Debug)]
struct Filter([u64; 64]);

impl Filter {
    const fn place(page: u32) -> (usize, u64) {
        let class = spread(page) >> 20;
        ((class >> 6) as usize, 1 << (class & 63))
    }

    const fn add(&mut self, page: u32) {
        let (word, bit) = Self::place(page);
        self.0[word] |= bit;
    }

    #[inline]
    const fn may_have(&self, page: u32) -> bool {
        let (word, bit) = Self::place(page);
        self.0[word] & bit != 0
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Bias {
    /// Whose bias it is.
    source: Option<SourceKind>,
    /// Hashed alike in each run: the same records bring the same estimate.
    watched: HashMap<u32, Watch, BuildHasherDefault<DefaultHasher>>,
    filter: Filter,
    held: u64,
    held_bytes: u64,
    stayed: Evidence,
    moved: Evidence,
    faded: Time,
    random: Random,
    /// The ratio that counts are judged by, if they are.
    corrected: Option<f64>,
}

impl Default for Bias {
    fn default() -> Self {
        Self {
            source: None,
            watched: HashMap::default(),
            filter: Filter([0; 64]),
            held: 0,
            held_bytes: 0,
            stayed: Evidence::default(),
            moved: Evidence::default(),
            faded: Time(0),
            random: Random::new(1),
            corrected: None,
        }
    }
}

impl Bias {
    /// A batch of the source that is believed begins.
    pub(super) fn begin(&mut self, batch: &SampleBatch) {
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
    pub(super) fn see(&mut self, page: PageId, counts: f32) {
        if self.filter.may_have(page.0)
            && let Some(watch) = self.watched.get_mut(&page.0)
            && watch.began.is_some()
        {
            watch.seen += f64::from(counts);
        }
    }

    /// The batch ends: takes in what pages whose time is over have shown. Returns those of them that were held back.
    pub(super) fn end(&mut self, now: Time) -> Vec<PageId> {
        let mut free = Vec::new();
        if self.watched.is_empty() {
            return free;
        }
        let kept = (-now.since(self.faded).as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        self.faded = now;
        self.stayed.fade(kept);
        self.moved.fade(kept);
        let over: Vec<(u32, bool)> = self
            .watched
            .iter()
            .filter_map(|(&page, watch)| match watch.began {
                Some(began) => (now.since(began) >= watch.time).then_some((page, true)),
                None => (now.since(watch.drawn) >= MOST_WAIT).then_some((page, false)),
            })
            .collect();
        if over.is_empty() {
            return free;
        }
        for (page, counts) in over {
            let Some(watch) = self.remove(page) else {
                continue;
            };
            if watch.stays {
                free.push(PageId(page));
            }
            let Some(began) = watch.began.filter(|_| counts) else {
                continue;
            };
            let expected = watch.per_s * now.since(began).as_secs_f64();
            let group = match watch.stays {
                true => &mut self.stayed,
                false => &mut self.moved,
            };
            group.add(watch.seen, expected);
        }
        self.filter = Filter([0; 64]);
        for &page in self.watched.keys() {
            self.filter.add(page);
        }
        self.decide();
        free
    }

    /// Draws the lot of a page of so many bytes that is about to be promoted, while `fast_bytes` bytes are in the fast
    /// tier. [`Self::watch`] must follow if it takes part.
    pub(super) fn draw(&mut self, page_bytes: u64, fast_bytes: u64) -> Lot {
        let is_enough = self
            .estimate()
            .is_some_and(|(_, deviation)| deviation <= ENOUGH);
        let has_room = self.watched.len() < MOST_WATCHED
            && self.held_bytes + page_bytes <= fast_bytes / HELD_ONE_IN;
        if is_enough || !has_room {
            return Lot::Go;
        }
        match self.random.below(ONE_IN) {
            0 => Lot::Stay,
            1 => Lot::GoWatched,
            _ => Lot::Go,
        }
    }

    /// Watches a page from now on, or from when it has [moved](Self::settled), of which so many records a second
    /// are expected. Returns for how long.
    pub(super) fn watch(
        &mut self,
        now: Time,
        page: PageId,
        page_bytes: u64,
        lot: Lot,
        per_s: f64,
    ) -> Duration {
        self.forget(page);
        let stays = lot == Lot::Stay;
        if stays {
            self.held += 1;
            self.held_bytes += page_bytes;
        }
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
        self.watched.insert(page.0, watch);
        self.filter.add(page.0);
        time
    }

    /// A move of a page ended, with success on the fast tier or otherwise.
    pub(super) fn settled(&mut self, now: Time, page: PageId, was_promoted: bool) {
        match self.watched.get_mut(&page.0) {
            Some(watch) if was_promoted && watch.there.is_none() => watch.there = Some(now),
            Some(_) => self.forget(page),
            None => {}
        }
    }

    /// The page leaves the trial: it is elsewhere now, or no page.
    pub(super) fn forget(&mut self, page: PageId) {
        if !self.watched.is_empty() {
            self.remove(page.0);
        }
    }

    /// All pages leave the trial: they are numbered anew.
    pub(super) fn forget_pages(&mut self) {
        self.watched.clear();
        self.filter = Filter([0; 64]);
        (self.held, self.held_bytes) = (0, 0);
    }

    /// Whether the page is held back.
    pub(super) fn holds(&self, page: PageId) -> bool {
        self.watched.get(&page.0).is_some_and(|watch| watch.stays)
    }

    /// What is seen of each tier, beside the other.
    pub(super) fn shares(&self) -> Shares {
        self.corrected.map_or(Shares::ALIKE, |ratio| Shares {
            fast: ratio.min(1.0),
            slow: ratio.recip().min(1.0),
        })
    }

    /// By what a page's count must be multiplied when it changes its tier; `None` if it stays as it is.
    pub(super) fn at_move(&self, old: Placement, new: Placement) -> Option<f64> {
        let ratio = self.corrected?;
        match (old, new) {
            (Placement::Slow, Placement::Fast) => Some(ratio),
            (Placement::Fast, Placement::Slow) => Some(ratio.recip()),
            _ => None,
        }
    }

    /// What is known.
    pub(super) fn report(&self) -> TierBias {
        let estimate = self.estimate();
        TierBias {
            fast_to_slow: estimate.map(|(ratio, _)| ratio),
            deviation: estimate.map(|(_, deviation)| deviation),
            pages: (self.stayed.pages + self.moved.pages).round() as u64,
            held: self.held,
            corrected: self.corrected.is_some(),
        }
    }

    /// Fast over slow, and the standard deviation of its logarithm.
    fn estimate(&self) -> Option<(f64, f64)> {
        let (moved, of_moved) = self.moved.ratio()?;
        let (stayed, of_stayed) = self.stayed.ratio()?;
        let ratio = (moved / stayed).clamp(1.0 / MOST_BIAS, MOST_BIAS);
        Some((ratio, (of_moved + of_stayed).sqrt()))
    }

    /// Decides whether counts are judged by the ratio.
    fn decide(&mut self) {
        let sure = match self.corrected {
            Some(_) => STILL_SURE,
            None => SURE,
        };
        let is_sure = |&(ratio, deviation): &(f64, f64)| {
            ratio.ln().abs() >= LEAST_BIAS.ln().max(sure * deviation)
        };
        self.corrected = self.estimate().filter(is_sure).map(|(ratio, _)| ratio);
    }

    fn remove(&mut self, page: u32) -> Option<Watch> {
        let watch = self.watched.remove(&page)?;
        if watch.stays {
            self.held -= 1;
            self.held_bytes -= watch.bytes;
        }
        // Its bit of the filter may be another's too. It costs a look, until the next ends.
        Some(watch)
    }
}

#[cfg(test)]
mod tests;
