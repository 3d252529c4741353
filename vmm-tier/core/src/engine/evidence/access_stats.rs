//! Sums over all observed accesses: how they fell on the tiers, and what a page's count says of its
//! rate.

use std::time::Duration;

use crate::{
    addr,
    engine::significance,
    heat::Decay,
    sample::{DropReason, SampleBatch},
    settings::Tier,
    time::Time,
};

/// Accesses a look of a page that `count` of `looks` looks found used, however often it was.
///
/// For accesses that come at random (Poisson) with λ a look, a share p = 1 − e^(−λ) of n looks finds one,
/// hence λ = −ln(1 − p). With p estimated as count / (n + 1), a page found used at every look has
/// λ = ln(n + 1): it was used at least so often that none of n looks missed it.
pub(super) fn accesses_a_look(count: f64, looks: f64) -> f64 {
    let share = count.min(looks) / (looks + 1.0);
    -(-share).ln_1p()
}

/// Accesses that a record of a batch stands for, where its source counts accesses: those of the period,
/// and those of the records that are missing.
pub(super) fn accesses_a_record(batch: &SampleBatch) -> f64 {
    let arrived = batch.samples.len().max(1) as f64;
    batch.period.max(1) as f64 * (1.0 + missing_records(batch) as f64 / arrived)
}

/// Records of the guest's accesses that are known to be missing from a batch.
fn missing_records(batch: &SampleBatch) -> u64 {
    let dropped = |reason| batch.account.dropped.get(&reason).copied().unwrap_or(0);
    batch.account.lost + dropped(DropReason::QueueFull) + dropped(DropReason::RateLimited)
}

/// How observed accesses fell on the tiers, decayed, and how much of the guest was observed.
#[derive(Debug)]
pub(crate) struct AccessStats {
    decay: Decay,
    fast: f64,
    slow: f64,
    /// Of sources beside the one that is believed.
    others: f64,
    /// Looks at each page: the count that a page would have that was found accessed each time.
    looks: f64,
    /// Seconds observed, decayed like counts: a count over it is a rate.
    seconds: f64,
    coverage: f64,
    /// Accesses that a record stands for, as its source says.
    period: f64,
    /// Records that came, and records that are known to be missing.
    arrived: f64,
    missing: f64,
}

impl AccessStats {
    pub(crate) fn new(half_life: Duration, now: Time) -> Self {
        Self {
            decay: Decay::new(half_life, now),
            fast: 0.0,
            slow: 0.0,
            others: 0.0,
            looks: 0.0,
            seconds: 0.0,
            coverage: 0.0,
            period: 1.0,
            arrived: 0.0,
            missing: 0.0,
        }
    }

    /// Counts are in the unit of another source from now on.
    pub(crate) fn scale(&mut self, factor: f64) {
        self.fast *= factor;
        self.slow *= factor;
        self.others *= factor;
        self.looks = 0.0;
    }

    /// Keeps this share of all that was counted, and of the time in which it was.
    pub(crate) fn forget(&mut self, kept: f64) {
        self.fast *= kept;
        self.slow *= kept;
        self.others *= kept;
        self.looks *= kept;
        self.seconds *= kept;
        self.arrived *= kept;
        self.missing *= kept;
    }

    /// Adds accesses that fell on a tier at `at`; those that only warm pages fall on none.
    pub(crate) fn add(&mut self, at: Time, tier: Option<Tier>, accesses: f64) {
        let boosted = accesses * self.decay.boost(at);
        match tier {
            Some(Tier::Fast) => self.fast += boosted,
            Some(Tier::Slow) => self.slow += boosted,
            None => self.others += boosted,
        }
    }

    /// Takes note of a batch: how long it watched, how often it looked at each page (not at all where it
    /// counts accesses), and the share of the guest that it spoke for.
    pub(crate) fn observe(
        &mut self,
        batch: &SampleBatch,
        looks: Option<f64>,
        at: Time,
        share: f64,
    ) {
        let boost = self.decay.boost(at);
        self.looks += looks.unwrap_or(0.0) * boost;
        self.seconds += batch.span.as_secs_f64() * boost;
        self.period = batch.period.max(1) as f64;
        self.arrived += batch.samples.len() as f64 * boost;
        self.missing += missing_records(batch) as f64 * boost;
        // The last few batches count: a source that stops watching must be noticed soon.
        self.coverage += (share.clamp(0.0, 1.0) - self.coverage) / 2.0;
    }

    /// Accesses that a count stands for: those of the source's period, and those of the records that are
    /// missing, which would have counted too. The counts stay what they are, so less is certain.
    fn accesses_a_count(&self) -> f64 {
        match self.arrived > 0.0 {
            true => self.period * (1.0 + self.missing / self.arrived),
            false => self.period,
        }
    }

    /// Accesses a second for a page of `bytes` bytes with this decayed count.
    ///
    /// A source that counts accesses counts them for each 4 KiB, so a page has those of all its frames,
    /// each standing for as many accesses as the source's period says.
    ///
    /// A source that tests pages finds a page as a whole used or not, whatever its size:
    /// [`accesses_a_look`].
    pub(crate) fn rate(&self, count: f64, bytes: u64, now: Time) -> f64 {
        self.rates(now)(count, bytes)
    }

    /// [`Self::rate`] for many pages at the same time.
    pub(crate) fn rates(&self, now: Time) -> impl Fn(f64, u64) -> f64 {
        let unboost = self.decay.boost(now);
        let (looks, seconds) = (self.looks / unboost, self.seconds / unboost);
        let period = self.accesses_a_count();
        move |count, bytes| {
            if seconds <= 0.0 {
                return 0.0;
            }
            if looks <= 0.0 {
                return count * period * addr::frames(bytes) / seconds;
            }
            accesses_a_look(count, looks) * looks / seconds
        }
    }

    /// Counts a second of a page with this decayed count.
    pub(crate) fn counts_a_s(&self, count: f64, now: Time) -> f64 {
        let seconds = self.seconds / self.decay.boost(now);
        if seconds > 0.0 { count / seconds } else { 0.0 }
    }

    /// How many standard deviations one page's decayed count lies above another's, for a source that
    /// tests pages.
    pub(crate) fn share_significance(&self, hot: f64, cold: f64, now: Time) -> f64 {
        significance::of_shares(hot, cold, self.looks / self.decay.boost(now))
    }

    /// The share of all that was counted that weighs as a single look, for a source that tests pages. At
    /// most 1.
    pub(crate) fn share_of_one_look(&self, now: Time) -> f64 {
        // Where nothing was counted there is nothing to forget.
        (self.decay.boost(now) / self.looks).min(1.0)
    }

    /// Looks at each page, decayed: the count of a page that was found used each time.
    pub(crate) fn looks_at(&self, now: Time) -> f64 {
        self.looks / self.decay.boost(now)
    }

    /// Plain counts behind one decayed count of a source that counts accesses.
    pub(crate) fn plain_counts(&self, now: Time) -> f64 {
        let seconds = self.seconds / self.decay.boost(now);
        significance::plain_counts(seconds, self.decay.half_life().as_secs_f64())
    }

    /// Decayed counts on all pages together.
    pub(crate) fn counts(&self, now: Time) -> f64 {
        (self.fast + self.slow + self.others) / self.decay.boost(now)
    }

    /// Whether the source counts accesses rather than testing pages.
    pub(crate) fn counts_accesses(&self) -> bool {
        self.looks <= 0.0
    }

    pub(crate) const fn coverage(&self) -> f64 {
        self.coverage
    }

    /// Changes the half-life from `now` on; all counts stay as they are.
    pub(crate) fn set_half_life(&mut self, half_life: Duration, now: Time) {
        self.tick(now);
        self.decay.set_half_life(half_life, now);
    }

    /// Moves the landmark when it is due.
    pub(crate) fn tick(&mut self, now: Time) {
        if let Some(halves) = self.decay.shift(now) {
            self.forget((-(halves as f64)).exp2());
        }
    }

    /// Share of accesses that went to the fast tier.
    pub(crate) fn hit_ratio(&self) -> Option<f64> {
        let all = self.fast + self.slow;
        (all > 0.0).then(|| self.fast / all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        addr::{BASE_PAGE, Gpa},
        sample::{AccessKind, AccessSample, SampleAccount, SampleAddress, SourceKind},
    };

    #[test]
    fn rate_when_records_are_lost_counts_their_accesses_too() {
        let rate_with = |lost: u64, full: u64| {
            let mut account = SampleAccount {
                lost,
                ..SampleAccount::default()
            };
            account.drop_records(DropReason::QueueFull, full);
            // A record that says nothing of the guest is none that is missing.
            account.drop_records(DropReason::WrongMode, 1000);
            let sample = AccessSample {
                address: SampleAddress::Guest(Gpa(0)),
                len: 1,
                weight: 1.0,
                kind: AccessKind::Load,
            };
            let batch = SampleBatch {
                source: SourceKind::Ibs,
                end: Time(1_000_000_000),
                span: Duration::from_secs(1),
                tests: 0,
                period: 100,
                settled: true,
                map_generation: 1,
                samples: vec![sample; 50],
                account,
            };
            let mut stats = AccessStats::new(Duration::from_secs(10), Time(0));
            stats.observe(&batch, None, batch.end, 1.0);
            stats.rate(10.0, BASE_PAGE, batch.end)
        };
        assert!((rate_with(0, 0) - 1000.0).abs() < 1e-6);
        assert!((rate_with(25, 0) - 1500.0).abs() < 1e-6);
        assert!((rate_with(25, 25) - 2000.0).abs() < 1e-6);
    }
}
