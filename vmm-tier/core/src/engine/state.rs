//! The state of a VM's tiering in one word.

use serde::Serialize;

use super::{
    evidence::Evidence,
    guest_pages::GuestPages,
    orders::{Conditions, Orders},
};

/// What the engine is doing, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// The placement of the guest's pages is being looked up, or the source warms up.
    Starting,
    /// Tiering.
    Running,
    /// Paused by the operator.
    Paused,
    /// The guest's CPUs are stopped; so is tiering.
    GuestStopped,
    /// No source delivers. Nothing is moved.
    Blind,
    /// QEMU's monitor can't be reached. Nothing is moved.
    Detached,
}

impl VmState {
    /// The word that clients see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::GuestStopped => "guest-stopped",
            Self::Blind => "blind",
            Self::Detached => "detached",
        }
    }

    pub(super) fn of(orders: &Orders, pages: &GuestPages, evidence: &Evidence) -> Self {
        let Conditions {
            operator_paused,
            guest_stopped,
            attached,
        } = orders.conditions;
        if !attached {
            Self::Detached
        } else if operator_paused {
            Self::Paused
        } else if guest_stopped {
            Self::GuestStopped
        } else if !pages.scanner.has_seen_all() {
            Self::Starting
        } else if evidence.sources.main.is_none() {
            Self::Blind
        } else if !evidence.is_warm(&orders.settings) {
            Self::Starting
        } else {
            Self::Running
        }
    }
}
