//! What is known of the guest's accesses.

pub(super) mod access_stats;
pub(super) mod bias;
pub(super) mod expected_heat;
pub(super) mod half_life;
mod intake;
pub(super) mod sources;
