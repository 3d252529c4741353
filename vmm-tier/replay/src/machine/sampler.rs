//! The model of sampling hardware: one access in each period becomes a record, and some records are
//! lost.
//!
//! A counter runs down with each access; at zero the access is recorded and the counter is loaded
//! again, with the period plus or minus a random part (the jitter). Without jitter, a loop whose length
//! divides the period would show the same page again and again; AMD's IBS therefore randomises the low
//! bits of its counter. Records are lost one by one (a record without address, a throttled event) and
//! in runs (a ring that was full until its reader came): the latter as in Gilbert's model of a channel
//! with bursts (Bell System Technical Journal, 1960).

use tier_core::{random::Random, sample::AccessKind, time::Time};

use super::Sample;

/// What the sampling hardware is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerSettings {
    /// Accesses that one sample stands for, from 1 on. The default is Demeter's (SOSP 2025).
    pub period: u64,
    /// The counter is loaded with the period ± this share of it, uniformly: below 1, 0 for none.
    pub jitter: f64,
    /// Share of records that are lost, each for itself.
    pub loss: f64,
    /// Share of the records that are lost in runs.
    pub burst_loss: f64,
    /// Mean length of such a run, in records, from 1 on.
    pub burst_len: f64,
    /// What the random numbers follow from.
    pub seed: u64,
}

impl Default for SamplerSettings {
    fn default() -> Self {
        Self {
            period: 4093,
            jitter: 0.125,
            loss: 0.0,
            burst_loss: 0.0,
            // A perf ring of 128 KiB holds about 3000 records; what is lost until its reader comes is
            // less.
            burst_len: 500.0,
            seed: 1,
        }
    }
}

/// An access of so large a weight that it brings more than this many records is not counted down one by
/// one.
const MANY: u64 = 64;

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Sampler {
    settings: SamplerSettings,
    /// Most that is added to or taken from the period.
    spread: u64,
    /// Accesses until the next record, that one included.
    left: u64,
    random: Random,
    in_burst: bool,
    /// Probability that a record begins a run of losses.
    enter: f64,
    /// Probability that a record ends one.
    leave: f64,
    arrived: u64,
    lost: u64,
}

impl Sampler {
    /// Settings out of range count as the nearest that is in range.
    #[must_use]
    pub fn new(settings: &SamplerSettings) -> Self {
        let mut settings = *settings;
        settings.period = settings.period.clamp(1, 1 << 48);
        settings.jitter = share(settings.jitter);
        settings.loss = share(settings.loss);
        settings.burst_loss = share(settings.burst_loss);
        settings.burst_len = if settings.burst_len >= 1.0 {
            settings.burst_len
        } else {
            1.0
        };
        let leave = 1.0 / settings.burst_len;
        // In the long run a share enter / (enter + leave) of records falls into runs.
        let enter = if settings.burst_loss < 1.0 {
            leave * settings.burst_loss / (1.0 - settings.burst_loss)
        } else {
            1.0
        };
        let mut sampler = Self {
            // At least one access lies between two records.
            spread: ((settings.period as f64 * settings.jitter) as u64).min(settings.period - 1),
            left: 0,
            random: Random::new(settings.seed),
            in_burst: settings.burst_loss >= 1.0,
            enter: enter.min(1.0),
            leave: if settings.burst_loss < 1.0 {
                leave
            } else {
                0.0
            },
            arrived: 0,
            lost: 0,
            settings,
        };
        // Where in its first period the counter stands is chance.
        sampler.left = 1 + sampler.random.below(sampler.settings.period);
        sampler
    }

    /// Accesses that one sample stands for.
    #[must_use]
    pub const fn period(&self) -> u64 {
        self.settings.period
    }

    /// Records that arrived so far.
    #[must_use]
    pub const fn arrived(&self) -> u64 {
        self.arrived
    }

    /// Records that were lost so far.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Sees `weight` accesses to a page. What is recorded of them comes as one sample, whose weight is
    /// the number of records that arrived.
    #[inline]
    pub fn see(
        &mut self,
        at: Time,
        page: u32,
        weight: u32,
        kind: AccessKind,
        out: &mut Vec<Sample>,
    ) {
        let weight = u64::from(weight);
        if weight < self.left {
            self.left -= weight;
        } else {
            out.extend(self.record(at, page, weight, kind));
        }
    }

    /// Accesses until the next record, that one included.
    #[inline]
    pub(super) const fn left(&self) -> u64 {
        self.left
    }

    /// So many accesses go by, fewer than are [`left`](Self::left).
    #[inline]
    pub(super) const fn pass(&mut self, accesses: u64) {
        self.left -= accesses;
    }

    /// What is recorded of at least as many accesses as are left; `None` if all of it is lost.
    #[cold]
    fn record(&mut self, at: Time, page: u32, mut weight: u64, kind: AccessKind) -> Option<Sample> {
        let mut arrived = 0;
        let many = weight / self.settings.period;
        if many > MANY {
            // So many are close to their mean; the counter stands afterwards as if nothing had been.
            weight %= self.settings.period;
            let kept = (1.0 - self.settings.loss) * (1.0 - self.settings.burst_loss);
            arrived = (many as f64 * kept).round() as u64;
            self.lost += many - arrived;
        }
        while weight >= self.left {
            weight -= self.left;
            self.left = self.next_period();
            if self.is_lost() {
                self.lost += 1;
            } else {
                arrived += 1;
            }
        }
        self.left -= weight;
        self.arrived += arrived;
        (arrived > 0).then(|| Sample {
            at,
            page,
            weight: arrived as f32,
            kind,
            luck: luck(&mut self.random),
        })
    }

    const fn next_period(&mut self) -> u64 {
        self.settings.period - self.spread + self.random.below(2 * self.spread + 1)
    }

    fn is_lost(&mut self) -> bool {
        if self.settings.burst_loss > 0.0 {
            let turn = if self.in_burst {
                self.leave
            } else {
                self.enter
            };
            self.in_burst ^= self.random.happens(turn);
        }
        self.in_burst || (self.settings.loss > 0.0 && self.random.happens(self.settings.loss))
    }
}

/// A random number that goes with a record; see [`Sample::luck`].
pub(super) const fn luck(random: &mut Random) -> u16 {
    (random.draw() >> 48) as u16
}

fn share(value: f64) -> f64 {
    if value.is_nan() {
        0.0
    } else {
        value.clamp(0.0, 1.0)
    }
}
