//! A candidate: what is known of it, and what its last trial found.

use std::time::Duration;

use super::{
    Step,
    health::{Health, likely_cause},
};
use crate::{
    engine::SourceStats,
    sample::{DropReason, SampleAccount, Sight, SourceKind},
    time::Time,
};

/// For how long a source is tried before it is compared with others.
pub const TRIAL: Duration = Duration::from_secs(6);
/// Usable records a second at which a source is half as good as one with any number of them.
const HALF_GOOD_RATE: f64 = 50.0;
/// What counts of tests are worth beside counts of accesses: they can't tell hot from very hot.
const TESTS_WORTH: f64 = 0.7;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) health: Health,
    pub(super) sight: Option<Sight>,
    pub(super) label: String,
    /// When the state began.
    pub(super) since: Time,
    /// When a usable record came last.
    pub(super) usable_at: Time,
    /// The account when `window` began.
    pub(super) begin: SampleAccount,
    pub(super) window: Time,
    /// The account at the last look.
    pub(super) last: SampleAccount,
    pub(super) quality: Option<f64>,
    pub(super) accepted_per_s: f64,
}

impl Candidate {
    pub(super) fn new(now: Time) -> Self {
        Self {
            health: Health::Opening,
            sight: None,
            label: String::new(),
            since: now,
            usable_at: now,
            begin: SampleAccount::default(),
            window: now,
            last: SampleAccount::default(),
            quality: None,
            accepted_per_s: 0.0,
        }
    }

    pub(super) fn set(&mut self, now: Time, kind: SourceKind, health: Health) -> Vec<Step> {
        if self.health == health {
            return Vec::new();
        }
        self.health = health.clone();
        self.since = now;
        vec![Step::Tell(kind, health)]
    }

    pub(super) fn begin_window(&mut self, now: Time) {
        self.begin = self.last.clone();
        self.window = now;
    }

    pub(super) fn look(&mut self, now: Time, stats: &SourceStats) {
        // Accounts never go back; what a paused agent drops was usable.
        let usable = |account: &SampleAccount| {
            let paused = account.dropped.get(&DropReason::Paused);
            account.accepted + paused.copied().unwrap_or(0)
        };
        if usable(&stats.account) > usable(&self.last) {
            self.usable_at = now;
        }
        self.last = stats.account.clone();
        let span = now.since(self.window);
        if span < TRIAL {
            return;
        }
        let accepted = usable(&stats.account).saturating_sub(usable(&self.begin));
        self.accepted_per_s = accepted as f64 / span.as_secs_f64();
        self.quality = (accepted > 0).then(|| quality(stats, self.accepted_per_s));
        self.begin_window(now);
    }

    /// What is wrong with a source of which nothing could be used for a while.
    pub(super) fn trouble(&self) -> Health {
        let new = |reason: &DropReason| {
            let before = self.begin.dropped.get(reason).copied().unwrap_or(0);
            self.last.dropped.get(reason).copied().unwrap_or(0) - before
        };
        let arrived = self.last.samples - self.begin.samples;
        let most = self.last.dropped.keys().max_by_key(|reason| new(reason));
        match most {
            Some(&reason) if arrived > 0 && new(&reason) > 0 => Health::Broken {
                reason: format!(
                    "{arrived} records came and none could be used: {}",
                    likely_cause(reason)
                ),
            },
            _ if self.last.lost > self.begin.lost => Health::Broken {
                reason: "the kernel's ring overflows, and nothing is left in it".to_owned(),
            },
            _ => Health::Silent {
                reason: format!(
                    "nothing comes of it, though the guest's CPUs are busy ({})",
                    self.label
                ),
            },
        }
    }
}

/// How good a source is: 0 to 1, the product of how exact it is, how much of the guest it speaks for, how
/// many records it brings, and how fresh they are. A source of which this is not known yet has 0.
#[must_use]
pub fn quality(stats: &SourceStats, accepted_per_s: f64) -> f64 {
    let many = accepted_per_s / (accepted_per_s + HALF_GOOD_RATE);
    let fresh = 1.0 / (1.0 + stats.staleness.unwrap_or_default().as_secs_f64());
    let worth = if stats.tests_pages { TESTS_WORTH } else { 1.0 };
    let (precision, coverage) = (stats.precision, stats.coverage);
    precision.unwrap_or(0.0) * coverage.unwrap_or(0.0) * many * fresh * worth
}
