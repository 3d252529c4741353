//! The results of simulations, in the form of the report.

use std::collections::BTreeMap;

use tier_core::sample::{DropReason, SampleAccount};

use super::report::{Plateau, Run, Samples, Trace};
use crate::{
    policy::oracle::PlanKind,
    simulation::{self, Score},
};

/// Scores as people and programs read them.
///
/// `recorded` is set if every record of the trace is a sample: what was lost and dropped when it was
/// made. That counts too, for the recording's policy would have missed it as well.
pub(super) fn runs(
    trace: &Trace,
    scores: &[Score],
    recorded: Option<&SampleAccount>,
    timeline: bool,
) -> Vec<Run> {
    let paying = PlanKind::Paying.name();
    let run = |score: &Score| {
        let same_size = |other: &&Score| other.fast_bytes == score.fast_bytes;
        let oracle = scores
            .iter()
            .filter(same_size)
            .find(|other| other.policy == paying);
        let best = oracle.map_or(0.0, Score::hit_ratio);
        Run {
            trace: trace.trace.clone(),
            policy: score.policy.to_owned(),
            fast_bytes: score.fast_bytes,
            guest_bytes: trace.guest_bytes,
            accesses: score.accesses,
            hit_ratio: score.hit_ratio(),
            oracle_share: (best > 0.0).then(|| score.hit_ratio() / best),
            moved_bytes: score.ledger.copied_bytes(),
            least_bytes: oracle.map_or(0, |oracle| oracle.ledger.copied_bytes()),
            ping_pong: score.ledger.ping_pong_share(),
            slowdown: score.slowdown,
            plateaus: plateaus(score),
            samples: samples(score, recorded),
            ns_per_sample: (score.samples.arrived > 0).then(|| score.ns_per_sample()),
            failed: score.failed().clone(),
            faults: score.ledger.faults,
            memory_bytes: score.memory_bytes as u64,
            timeline: timeline.then(|| {
                let seconds = score.timeline.iter();
                let hits = seconds.map(|&(fast, all)| (all > 0).then(|| fast as f64 / all as f64));
                hits.collect()
            }),
        }
    };
    scores.iter().map(run).collect()
}

/// The first phase begins with the first access.
fn plateaus(score: &Score) -> Vec<Plateau> {
    let start = score.plateaus.first().map(|plateau| plateau.from);
    let plateau = |plateau: &simulation::Plateau| Plateau {
        from_s: plateau.from.since(start.unwrap_or_default()).as_secs_f64(),
        level: plateau.level,
        reached_after_s: plateau.reached_after.map(|time| time.as_secs_f64()),
    };
    score.plateaus.iter().map(plateau).collect()
}

fn samples(score: &Score, recorded: Option<&SampleAccount>) -> Samples {
    let tally = &score.samples;
    let mut samples = Samples {
        arrived: tally.arrived,
        accepted: tally.arrived,
        lost: tally.lost,
        dropped: BTreeMap::new(),
        unseen: tally.unseen,
    };
    let Some(recorded) = recorded else {
        return samples;
    };
    let mut drop = |reason: DropReason, n: u64| {
        if n > 0 {
            samples.arrived += n;
            *samples.dropped.entry(reason).or_default() += n;
        }
    };
    drop(DropReason::NotGuestRam, tally.outside);
    for (reason, &n) in &recorded.dropped {
        drop(*reason, n);
    }
    samples.lost += recorded.lost;
    samples
}
