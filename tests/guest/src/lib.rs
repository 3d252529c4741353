//! What the guests of the lab do: a workload with a known hot set, and the proof that no byte of it was lost.
//!
//! ```text
//! command line ─► Work ─► Updates: which word is accessed next ─┐
//! console, plan ─► Order ───────────────────────────────────────┤
//!                                                               ▼
//!                         live(): touch, update, obey, compare ─► Line, told on the console
//! ```
//!
//! Two programs run it: `bare-guest`, which is a guest without an operating system, and the first process of a
//! Linux guest. Each of them is a [`Machine`]. The crate needs neither a heap nor an operating system.

#![cfg_attr(not(any(test, feature = "serde")), no_std)]

mod access;
mod console;
mod hot;
mod life;
mod line;
mod order;
mod random;
mod work;
mod zipf;

pub use access::{Comparison, Updates, checksum};
pub use console::Console;
pub use hot::HotSet;
pub use life::{Machine, Trouble, live};
pub use line::{Line, PREFIX};
pub use order::{Order, Plan, Planned};
pub use work::{NotUnderstood, Work};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// 64-bit words of a page.
pub const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// Pages of a mebibyte.
pub const PAGES_PER_MIB: usize = (1 << 20) / PAGE_BYTES;
