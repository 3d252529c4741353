//! Policies: who decides which pages move, behind one trait, so that they can be compared.
//!
//! Each stands beside the others on the same simulated machine ([`Host`]) and is given the same
//! [`Seen`].
//! [`dual_heap`] is the engine itself; the others follow their papers and sources, with the constants named
//! there.

pub mod dual_heap;
pub mod engine_host;
pub mod hemem;
pub mod kernel;
mod lists;
pub mod lru;
pub mod memtis;
pub mod nomad;
pub mod oracle;
mod parts;
pub mod random;
pub mod sds;
pub mod static_placement;
pub mod tpp;

use std::time::Duration;

use tier_core::{settings::PolicyName, time::Time};

use crate::machine::{Host, Sample, Touch};

/// What a policy may see of a slice of time.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// When the slice began.
    pub start: Time,
    /// When it ended: now.
    pub end: Time,
    /// What the sampling source delivered.
    pub samples: &'a [Sample],
    /// Samples that are known to be lost.
    pub lost: u64,
    /// Accesses that one sample stands for.
    pub period: u64,
    /// How often each page was tested, for a source that tests pages; 0 for one that samples accesses.
    pub tests: u32,
    /// Every page used: what page tables tell a policy that reads them (accessed and dirty bits, hint
    /// faults). A policy that samples does not look here.
    pub touched: &'a [Touch],
}

/// Decides which pages move.
pub trait Policy {
    /// The word that users write and read.
    fn name(&self) -> &'static str;

    /// Takes what was seen and orders moves at the host. They take effect from the next slice on.
    fn step(&mut self, seen: &Seen<'_>, host: &mut Host);

    /// Bytes that it keeps about pages.
    fn memory_bytes(&self) -> usize;
}

/// What policies are told at the start, beside the machine.
#[derive(Clone, Debug)]
pub struct PolicySetup {
    /// Accesses that one sample stands for.
    pub period: u64,
    /// The half-life of heat, for policies that have one.
    pub half_life: Duration,
    /// What random decisions follow from.
    pub seed: u64,
    /// Bytes of the sketch of `sds`, 256 at least; `None`: as many as [`sds`] says.
    pub sketch_bytes: Option<usize>,
}

impl Default for PolicySetup {
    fn default() -> Self {
        Self {
            period: 4093,
            half_life: Duration::from_secs(10),
            seed: 1,
            sketch_bytes: None,
        }
    }
}

/// Makes a policy for a machine.
type Maker = fn(&Host, &PolicySetup) -> Box<dyn Policy + Send>;

/// All policies but the oracle (which needs the future), by name, in the order in which tables show
/// them.
pub const ALL: &[(&str, Maker)] = &[
    (PolicyName::DualHeap.name(), |h, s| {
        Box::new(dual_heap::DualHeaps::new(h, s))
    }),
    ("sds", |h, s| Box::new(sds::Sds::new(h, s))),
    ("memtis", |h, s| Box::new(memtis::Memtis::new(h, s))),
    ("hemem", |h, s| Box::new(hemem::HeMem::new(h, s))),
    ("tpp", |h, s| Box::new(tpp::Tpp::new(h, s))),
    ("nomad", |h, s| Box::new(nomad::Nomad::new(h, s))),
    ("lru", |h, s| Box::new(lru::Lru::new(h, s))),
    ("random", |h, s| Box::new(random::RandomExchange::new(h, s))),
    ("static", |h, s| {
        Box::new(static_placement::Static::new(h, s))
    }),
];

/// No policy has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no policy {name:?}: there are {}", names().collect::<Vec<_>>().join(", "))]
pub struct UnknownPolicy {
    /// The name.
    pub name: String,
}

/// The names of all policies but the oracle.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|(name, _)| *name)
}

/// Makes the policy of this name.
///
/// # Errors
/// If there is none.
pub fn make(
    name: &str,
    host: &Host,
    setup: &PolicySetup,
) -> Result<Box<dyn Policy + Send>, UnknownPolicy> {
    let found = ALL.iter().find(|(known, _)| *known == name);
    let (_, maker) = found.ok_or_else(|| UnknownPolicy {
        name: name.to_owned(),
    })?;
    Ok(maker(host, setup))
}
