//! Views: what the engine shows. They read the engine and change nothing.

pub(crate) mod demand;
pub(crate) mod explain;
pub(crate) mod heatmap;
pub(crate) mod last_moves;
pub mod sentences;
pub(crate) mod snapshot;
pub(crate) mod wait;

use self::explain::{ExplainError, Explanation};
use super::VmEngine;
use crate::{addr::Gpa, time::Time};

/// Explains the page at a guest-physical address.
pub(super) fn explain(engine: &VmEngine, now: Time, gpa: Gpa) -> Result<Explanation, ExplainError> {
    let (mut explanation, block) = explain::explain(engine, now, gpa)?;
    explanation.sentences = sentences::of(&explanation, block);
    Ok(explanation)
}
