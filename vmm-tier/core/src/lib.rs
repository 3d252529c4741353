//! The pure part of vmm-tier: no input or output, no clock, no threads, no `unsafe`.
//!
//! Time comes in as an argument ([`time::Time`]), the kernel's answers come in as events, and what is
//! to be done goes out as values. Everything here can therefore be tested, fuzzed and replayed.
#![forbid(unsafe_code)]

pub mod addr;
pub mod arbiter;
pub mod constraints;
pub mod damon_grid;
pub mod damon_pace;
pub mod dual_heap;
pub mod engine;
pub mod heat;
pub mod holds;
pub mod latency;
pub mod map;
pub mod moves;
pub mod nearness;
pub mod pages;
pub mod pathology;
pub mod pools;
pub mod quota;
pub mod random;
pub mod rebind;
pub mod report;
pub mod sample;
pub mod sampling_period;
pub mod settings;
pub mod source_selection;
pub mod text;
pub mod tiers;
pub mod time;
pub mod wire;
