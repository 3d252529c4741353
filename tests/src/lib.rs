//! The lab: a two-tier host in an emulator, its guests and workloads, and what is measured there.
//!
//! Three programs share this library. `lab` runs on the developer's machine: it packs an
//! initramfs, starts the emulator and turns what it hears into one result. `lab-init` is the
//! first process of the emulated host: it starts guests and agents as the scenario says and
//! measures. `linux-guest` is the first process of a guest with an operating system; guests
//! without one, and the workload of both, are the crate `lab-guest`.

pub mod account;
pub mod changes;
pub mod checks;
pub mod cpio;
pub mod emulator;
pub mod event;
pub mod fault;
pub mod hits;
pub mod host;
pub mod image;
pub mod inside;
pub mod layouts;
pub mod moves;
pub mod pagemap;
pub mod patience;
pub mod result;
pub mod scenario;
pub mod shares;
pub mod show;
pub mod soak;
pub mod stats;
pub mod summary;
pub mod sys;
