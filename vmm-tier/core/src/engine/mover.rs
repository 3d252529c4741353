//! Moving pages.

pub(super) mod costs;
pub(super) mod in_flight;
pub(super) mod plan;
pub(super) mod throttle;
