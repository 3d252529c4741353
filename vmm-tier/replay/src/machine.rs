//! The machine of a replay: a guest whose accesses go by again, and a host whose pages policies move.
//!
//! ```text
//! trace, generator ─► Access ─► Slicer ─► Slice ─┬─► Profile (first pass) ─► the oracle's plan
//!                                                └─► simulation (second pass): Host + Policy + Score,
//!                                                    one for each policy and size of DRAM
//! ```
//!
//! Every access counts for the score; a policy sees one in each period, as sampling hardware would
//! deliver it. All simulations get the same slices, so they differ only by what their policies decide.

pub mod guest;
pub mod host;
pub mod profile;
pub mod sampler;
pub mod slice;
pub mod slicer;

pub use self::{
    guest::Guest,
    host::{Conditions, Costs, Failures, Host, Ledger},
    profile::Profile,
    sampler::{Sampler, SamplerSettings},
    slice::{Sample, Slice, Touch},
    slicer::{Sampling, Slicer, SlicerAccount, SlicerError, SlicerSettings},
};
use tier_core::{sample::AccessKind, time::Time};

/// One observation of a trace: `weight` accesses to each page of `address .. address + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// When, on the trace's own clock. Never before the access that came before it.
    pub at: Time,
    /// The first byte: guest-physical, or any flat address for imported traces.
    pub address: u64,
    /// Bytes it speaks for: 1 for a single access, a region's length for region sources.
    pub len: u64,
    /// Accesses to each page: 1 for a single access.
    pub weight: u32,
    /// Read or write, where known.
    pub kind: AccessKind,
}

/// Something that yields accesses in order of time: a trace being read, a generator.
pub trait Accesses {
    /// Why no more can be had.
    type Error;

    /// Appends the next accesses, some 10 000 at most. Returns whether there may be more: `false` is the
    /// end.
    ///
    /// # Errors
    /// If the rest can't be read.
    fn fill(&mut self, out: &mut Vec<Access>) -> Result<bool, Self::Error>;
}
