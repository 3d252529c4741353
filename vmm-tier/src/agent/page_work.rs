//! Work on the guest's pages: look-ups and moves.

pub(super) mod scans;
pub(super) mod worker;
