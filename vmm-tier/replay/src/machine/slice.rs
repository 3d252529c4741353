//! A slice of time: which pages were used how often, and what sampling delivered of it.

use tier_core::{sample::AccessKind, time::Time};

/// A page that was used in a slice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Touch {
    /// The page.
    pub page: u32,
    /// Accesses to it, stores included.
    pub accesses: u32,
    /// Stores to it.
    pub stores: u32,
}

/// A record that a source delivered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// When.
    pub at: Time,
    /// The page.
    pub page: u32,
    /// What it counts: 1 for a sampled access; the positive tests of a source that tests pages.
    pub weight: f32,
    /// The kind of access.
    pub kind: AccessKind,
    /// A uniform random number that goes with the record: a source that sees accesses to DRAM `b` times
    /// as well as others loses a record of a slow page if this is at least 65536 / b. It decides alike
    /// in all simulations.
    pub luck: u16,
}

/// What happened in a stretch of time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slice {
    /// When it began.
    pub start: Time,
    /// When it ended.
    pub end: Time,
    /// The pages used, each once, by rising number.
    pub touched: Vec<Touch>,
    /// The samples, by rising time.
    pub samples: Vec<Sample>,
    /// Samples that were lost on the way (a full ring).
    pub lost: u64,
    /// Accesses outside the guest's memory: counted, and of no effect.
    pub outside: u64,
    /// Accesses that one sample stands for.
    pub period: u64,
    /// How often each page was tested, for a source that tests pages; 0 for one that samples accesses.
    pub tests: u32,
}

#[cfg(test)]
impl Slice {
    /// The second that begins `at_s` seconds after the start, with pages and how often each was used.
    pub(crate) fn second(at_s: u64, touched: &[(u32, u32)]) -> Self {
        let touch = |&(page, accesses): &(u32, u32)| Touch {
            page,
            accesses,
            stores: 0,
        };
        Self {
            start: Time(at_s * 1_000_000_000),
            end: Time((at_s + 1) * 1_000_000_000),
            touched: touched.iter().map(touch).collect(),
            ..Self::default()
        }
    }
}
