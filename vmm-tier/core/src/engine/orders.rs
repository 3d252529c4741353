//! What the operator orders.

pub(super) mod drain;
pub(super) mod policy;
