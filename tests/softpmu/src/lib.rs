//! The lab's software PMU, without the emulator that feeds it.
//!
//! An emulator's plugin (`plugin/`) tells it of every memory access of the emulated CPUs. Of those that a
//! small cache would not answer it counts all, a counter for each 4 KiB page and CPU, and writes one access
//! in N as a record of `ibs_op` into a ring, byte for byte as the kernel would. Ring and counters are one file in shared memory,
//! which the emulated host sees as a PCI device's BAR; [`layout`] says what lies where.
//!
//! ```text
//! emulator ─ every access ─► Pmu ─┬─ 1 in N ─► ring ◄── the agent, as if it were perf's mapping
//!                                 └─ all ────► counters ◄── the lab: what the agent should have found
//! ```

pub mod layout;
pub mod pmu;
pub mod record;
pub mod shared;

pub use layout::Layout;
pub use pmu::{Access, Pmu};
pub use shared::Shared;
