//! `perf_event_open`: events, the ring they write into, and the records in it.

pub mod collect;
pub mod event;
pub mod ibs;
pub mod pebs;
pub mod record;
pub mod refusal;
pub mod ring;
pub mod ring_file;
pub mod threads;
pub mod tracepoint;
