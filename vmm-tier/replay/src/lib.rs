//! The what-if laboratory of vmm-tier: policies place the pages of a recorded or generated guest again.
//!
//! ```text
//! trace file ─► trace ─► format ─┐
//!                                ├─► machine: slices ─► simulation (policy, host, score) ─► comparison
//! workload ──────────────────────┘
//! ```
//!
//! The agent needs none of it, but for the format of traces where it records a guest or replays a
//! recording as its source.
#![forbid(unsafe_code)]

pub mod comparison;
pub mod format;
pub mod machine;
#[cfg(any(feature = "pictures", test))]
pub mod picture;
pub mod policy;
mod sharing;
pub mod simulation;
pub mod status_line;
pub mod trace;
pub mod what_if;
pub mod workload;
