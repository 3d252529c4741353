//! A guest to play: its memory, its accesses in time, and when it changes.

use std::error::Error;

use tier_core::time::Time;
use tier_replay::machine::{Accesses, Guest};

/// See the [module](self).
pub(crate) struct Input {
    pub(crate) guest: Guest,
    pub(crate) accesses: Box<dyn Accesses<Error = Box<dyn Error>>>,
    /// When the guest's use of memory changes, rising.
    pub(crate) changes: Vec<Time>,
    /// DAMON's looks come late.
    pub(crate) is_late: bool,
}
