//! What became of work on pages.

use std::time::Duration;

use tier_core::{
    engine::{ReshapeReport, ScanReport},
    moves::{MoveBatch, MoveReport, Outcome, PageResult},
    rebind::RebindReport,
};

/// What became of a job.
#[derive(Debug)]
pub(in crate::agent) enum Done {
    Scanned(ScanReport),
    /// The kernel did not say where pages lie, and why. The report is empty.
    NotScanned(ScanReport, String),
    Moved(MoveReport),
    /// What became of a split or a collapse, and why the host can't do it, if it can't.
    Reshaped(ReshapeReport, Option<String>),
    /// The kernel refused the whole call, or pages may not go beyond a pool, for a reason that an
    /// operator must mend. Where it is a pool, pages may have moved.
    Refused(MoveReport, String),
    /// What became of the demotions and of the promotions of a pair.
    Paired(MoveReport, MoveReport),
    /// The same of a pair that was refused in whole or in part, or that could not be undone, and why.
    /// Pages may have moved.
    PairRefused(MoveReport, MoveReport, String),
    /// What became of bindings, and why some failed, if any did.
    Rebound(RebindReport, Option<String>),
}

/// What became of a batch, and why it was refused in whole or in part, if it was.
pub(super) struct Carried {
    pub(super) report: MoveReport,
    pub(super) refusal: Option<String>,
}

impl From<Carried> for Done {
    fn from(carried: Carried) -> Self {
        match carried.refusal {
            None => Self::Moved(carried.report),
            Some(reason) => Self::Refused(carried.report, reason),
        }
    }
}

/// A report of which nothing moved, for this reason.
pub(super) fn unmoved(batch: &MoveBatch, outcome: Outcome) -> MoveReport {
    let unmoved = |&page| PageResult {
        page,
        outcome,
        node: None,
    };
    MoveReport {
        id: batch.id,
        direction: batch.direction,
        target: batch.target,
        results: batch.pages.iter().map(unmoved).collect(),
        cpu_time: Duration::ZERO,
    }
}
