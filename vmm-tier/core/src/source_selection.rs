//! The selection: which source is believed, which others work beside it, and what is wrong with the rest.
//!
//! Every candidate is tried by what it delivers. At the start all of them work; the first that sees the
//! guest is believed at once, and after a trial the best is. The others then rest, but for those that
//! cost nothing while nobody listens, and are tried again now and then, or at once when the one that is
//! believed falls silent, delivers only what can't be used, or ends.
//!
//! A replay can't tell what this is worth, as it has one source. The lab's scenario `ladder` adds a
//! better source, and kills the believed source.
//!
//! ```text
//!   Resting ──work──► Opening ──up──► OnTrial ──(a whole trial)──► Good
//!      ▲                 │ down           │ nothing usable for 5 s
//!      └── a better one  ▼                ▼
//!                      Down            Silent, Broken ──(later)──► tried again
//! ```

mod candidate;
mod health;

use std::{collections::BTreeMap, time::Duration};

use self::candidate::Candidate;
pub use self::{
    candidate::{TRIAL, quality},
    health::{Health, HealthWord, likely_cause},
};
use crate::{
    engine::SourceStats,
    sample::{Sight, SourceKind},
    time::Time,
};

/// After this time without a usable record a source is silent or broken, at the least.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// When sources that rest, or had failed, are tried again.
pub const ANEW: Duration = Duration::from_secs(300);
/// How much better another source must be to take over: less is noise, and each change makes heats less
/// sure for a while.
const BETTER: f64 = 1.25;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Open the source, or close it.
    Work(SourceKind, bool),
    /// This source is believed from now on; `None`: none sees the guest.
    Believe {
        /// The source.
        source: Option<SourceKind>,
        /// The one before.
        before: Option<SourceKind>,
        /// Why.
        why: String,
    },
    /// A source does better or worse than before.
    Tell(SourceKind, Health),
}

/// A candidate as people see it.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceStatus {
    /// The source.
    pub kind: SourceKind,
    /// How it does.
    pub health: Health,
    /// Which accesses it sees; `null` before it was opened.
    pub sight: Option<Sight>,
    /// What it is, for people; empty before it was opened.
    pub label: String,
    /// Whether it is believed.
    pub believed: bool,
    /// 0 to 1, of the last trial; `null` before.
    pub quality: Option<f64>,
    /// Usable records a second in the last trial.
    pub accepted_per_s: f64,
}

/// See the [module](self). Pure: told what happens, asked what to do.
#[derive(Debug)]
pub struct SourceSelection {
    candidates: BTreeMap<SourceKind, Candidate>,
    believed: Option<SourceKind>,
    /// When a source was believed, or tried again, last.
    settled_at: Time,
    guest_runs: bool,
    quiet: bool,
    /// After how long without a usable record a source is blamed: at work, and at rest.
    patience: (Duration, Duration),
}

impl SourceSelection {
    /// A selection of these candidates, all of which begin to work. None of them reports less often than
    /// every `slowest`, or every `at_rest` while [the guest is at rest](Self::set_quiet).
    #[must_use]
    pub fn new(
        kinds: impl IntoIterator<Item = SourceKind>,
        slowest: Duration,
        at_rest: Duration,
        now: Time,
    ) -> Self {
        let patience = PATIENCE.max(slowest * 3);
        let candidate = |kind| (kind, Candidate::new(now));
        Self {
            candidates: kinds.into_iter().map(candidate).collect(),
            believed: None,
            settled_at: now,
            guest_runs: true,
            quiet: false,
            patience: (patience, patience + at_rest),
        }
    }

    /// The source that is believed.
    #[must_use]
    pub const fn believed(&self) -> Option<SourceKind> {
        self.believed
    }

    /// All candidates.
    pub fn statuses(&self) -> impl Iterator<Item = SourceStatus> {
        self.candidates
            .iter()
            .map(|(&kind, candidate)| SourceStatus {
                kind,
                health: candidate.health.clone(),
                sight: candidate.sight,
                label: candidate.label.clone(),
                believed: self.believed == Some(kind),
                quality: candidate.quality,
                accepted_per_s: candidate.accepted_per_s,
            })
    }

    /// While the guest's CPUs are stopped, or have nothing to do, no source can deliver, and none is blamed.
    pub fn set_guest_runs(&mut self, now: Time, runs: bool) {
        if runs && !self.guest_runs {
            self.forgive(now);
        }
        self.guest_runs = runs;
    }

    /// While the guest is at rest sources may look at it in turns.
    pub fn set_quiet(&mut self, now: Time, quiet: bool) {
        self.forgive(now);
        self.quiet = quiet;
    }

    fn forgive(&mut self, now: Time) {
        for candidate in self.candidates.values_mut() {
            candidate.usable_at = now;
            candidate.begin_window(now);
        }
    }

    /// A source was opened.
    pub fn up(&mut self, now: Time, kind: SourceKind, sight: Sight, label: String) -> Vec<Step> {
        let Some(candidate) = self.candidates.get_mut(&kind) else {
            return Vec::new();
        };
        candidate.sight = Some(sight);
        candidate.label = label;
        candidate.usable_at = now;
        candidate.begin_window(now);
        let mut steps = candidate.set(now, kind, Health::OnTrial);
        steps.extend(self.choose(now));
        steps
    }

    /// A source says something else of itself than when it was opened.
    pub fn relabel(&mut self, kind: SourceKind, label: String) {
        if let Some(candidate) = self.candidates.get_mut(&kind) {
            candidate.label = label;
        }
    }

    /// A source can't be opened, or ended.
    pub fn down(&mut self, now: Time, kind: SourceKind, reason: String) -> Vec<Step> {
        let Some(candidate) = self.candidates.get_mut(&kind) else {
            return Vec::new();
        };
        candidate.quality = None;
        let mut steps = candidate.set(now, kind, Health::Down { reason });
        steps.extend(self.choose(now));
        steps
    }

    /// Looks at what the sources have delivered so far. Call it about once a second.
    pub fn look<'a>(
        &mut self,
        now: Time,
        stats: impl Iterator<Item = (SourceKind, &'a SourceStats)>,
    ) -> Vec<Step> {
        let mut steps = Vec::new();
        for (kind, stats) in stats {
            if let Some(candidate) = self.candidates.get_mut(&kind) {
                candidate.look(now, stats);
            }
        }
        if !self.guest_runs {
            return steps;
        }
        let (at_work, at_rest) = self.patience;
        let patience = if self.quiet { at_rest } else { at_work };
        for (&kind, candidate) in &mut self.candidates {
            if candidate.health.delivers() && now.since(candidate.usable_at) >= patience {
                candidate.quality = None;
                let health = candidate.trouble();
                steps.extend(candidate.set(now, kind, health));
            } else if candidate.health == Health::OnTrial && candidate.quality.is_some() {
                steps.extend(candidate.set(now, kind, Health::Good));
            }
            let failed = matches!(
                candidate.health,
                Health::Silent { .. } | Health::Broken { .. }
            );
            if failed && candidate.usable_at > candidate.since {
                // It is open still, and something came after all.
                steps.extend(candidate.set(now, kind, Health::OnTrial));
            }
        }
        steps.extend(self.choose(now));
        steps
    }

    /// Believes the best, lets others rest, and tries them again.
    fn choose(&mut self, now: Time) -> Vec<Step> {
        let mut steps = Vec::new();
        let best = self.best();
        if best != self.believed {
            let why = self.why(best);
            steps.push(Step::Believe {
                source: best,
                before: self.believed,
                why,
            });
            self.believed = best;
            self.settled_at = now;
        }
        let is_sure = best
            .and_then(|kind| self.candidates.get(&kind))
            .is_some_and(|candidate| candidate.health == Health::Good);
        let tries_again = now.since(self.settled_at) >= ANEW;
        if tries_again {
            self.settled_at = now;
        }
        for (&kind, candidate) in &mut self.candidates {
            match candidate.health {
                // A guest's agent that nobody listens to would not be noticed when it comes.
                Health::Good if is_sure && best != Some(kind) && kind != SourceKind::Guest => {
                    candidate.health = Health::Resting;
                    candidate.since = now;
                    steps.push(Step::Work(kind, false));
                }
                Health::Resting if tries_again || !is_sure => {
                    candidate.health = Health::Opening;
                    candidate.since = now;
                    steps.push(Step::Work(kind, true));
                }
                _ => {}
            }
        }
        steps
    }

    /// The best source that sees the guest. The one believed stays unless another is clearly better.
    fn best(&self) -> Option<SourceKind> {
        let usable = |kind: &SourceKind| {
            self.candidates.get(kind).is_some_and(|candidate| {
                candidate.sight == Some(Sight::Guest) && candidate.health.delivers()
            })
        };
        let quality = |kind: &SourceKind| self.candidates[kind].quality;
        let held = self.believed.filter(|kind| usable(kind));
        let mut best = held;
        for kind in self.candidates.keys().filter(|kind| usable(kind)) {
            let wins = match (&best, quality(kind)) {
                (None, _) => true,
                (Some(best), Some(mine)) => match quality(best) {
                    // Whoever is still on trial is not judged yet.
                    None => held.is_none(),
                    Some(theirs) => mine > theirs * if held == Some(*best) { BETTER } else { 1.0 },
                },
                (Some(_), None) => false,
            };
            if wins {
                best = Some(*kind);
            }
        }
        best
    }

    fn why(&self, best: Option<SourceKind>) -> String {
        let health = |kind: SourceKind| self.candidates.get(&kind).map(|c| &c.health);
        let lost = self.believed.and_then(|kind| {
            let reason = health(kind)?.reason()?;
            Some(format!("{kind}: {reason}"))
        });
        match (best, self.believed, lost) {
            (None, _, Some(lost)) => lost,
            (None, _, None) => "no source sees the guest".to_owned(),
            (Some(_), _, Some(lost)) => lost,
            (Some(_), None, None) => "the first that delivers".to_owned(),
            (Some(new), Some(old), None) => {
                let quality = |kind| {
                    let candidate = self.candidates.get(&kind);
                    candidate.and_then(|c| c.quality).unwrap_or(0.0)
                };
                format!(
                    "quality {:.2}, that of {old} {:.2}",
                    quality(new),
                    quality(old)
                )
            }
        }
    }
}

#[cfg(test)]
mod tests;
