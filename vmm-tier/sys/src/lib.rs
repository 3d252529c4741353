//! The kernel interfaces of vmm-tier, one a file. All `unsafe` of the project stands here.
//!
//! Readers are rooted anywhere ([`sysroot::SysRoot`]), so that tests run over a folder tree; parsers
//! are pure functions over text or bytes and hold against hostile input. Nothing here decides
//! anything about tiers: that is `tier-core`'s.

pub mod alloc;
mod cgroup;
pub mod constraints;
pub mod damon;
pub mod file_lock;
pub mod folios;
pub mod holds;
pub mod hugetlb;
pub mod inverse;
pub mod knobs;
pub mod maps;
pub mod mempolicy;
pub mod numa_maps;
pub mod open_files;
pub mod pagemap;
pub mod pages;
pub mod perf;
pub mod process;
pub mod psi;
pub mod smaps;
pub mod sysroot;
pub mod thp;
pub mod thp_events;
pub mod topology;
pub mod vmstat;
pub mod wait;
pub mod zoneinfo;
