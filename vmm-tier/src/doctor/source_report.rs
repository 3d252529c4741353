//! A row of the table of sources: whether a source works, what it sees, and what would help.

use serde::Serialize;
use tier_core::sample::{Sight, SourceKind};

/// Whether a source can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Works {
    /// It was tried and delivers.
    Yes,
    /// It can be opened, but delivered nothing when it was tried, or could not be tried.
    Perhaps,
    /// It can't be used as things are.
    No,
}

/// One source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct SourceReport {
    pub(super) source: SourceKind,
    pub(super) works: Works,
    /// Which accesses of the guest it would see.
    pub(super) sees: Sight,
    /// How precise its addresses are.
    pub(super) precision: &'static str,
    /// What was found when it was tried.
    pub(super) found: String,
    /// What would make it work or work better.
    pub(super) enable: Vec<String>,
}

impl SourceReport {
    /// Whether samples of the guest's own accesses come from it.
    pub(super) fn serves(&self) -> bool {
        self.works == Works::Yes && self.sees == Sight::Guest
    }
}

/// How a sight is called in the table.
pub(super) const fn sight(sight: Sight) -> &'static str {
    match sight {
        Sight::Guest => "guest",
        Sight::HostMode => "host mode only",
    }
}
