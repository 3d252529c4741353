//! `static`: every page stays where first touch has put it. What a host without tiering does.

use super::{Policy, PolicySetup, Seen};
use crate::machine::Host;

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct Static;

impl Static {
    /// Nothing is needed.
    #[must_use]
    pub const fn new(_host: &Host, _setup: &PolicySetup) -> Self {
        Self
    }
}

impl Policy for Static {
    fn name(&self) -> &'static str {
        "static"
    }

    fn step(&mut self, _seen: &Seen<'_>, _host: &mut Host) {}

    fn memory_bytes(&self) -> usize {
        0
    }
}
