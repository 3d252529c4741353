//! The state of a VM's tiering in one word.

use super::{
    evidence::Evidence,
    guest_pages::GuestPages,
    orders::{Conditions, Orders},
};

crate::words! {
    /// What the engine is doing, in one word.
    pub enum VmState {
        /// The placement of the guest's pages is being looked up, or the source warms up.
        Starting = "starting",
        /// Tiering.
        Running = "running",
        /// Paused by the operator.
        Paused = "paused",
        /// The guest's CPUs are stopped; so is tiering.
        GuestStopped = "guest-stopped",
        /// No source delivers. Nothing is moved.
        Blind = "blind",
        /// QEMU's monitor can't be reached. Nothing is moved.
        Detached = "detached",
    }
}

impl VmState {
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
