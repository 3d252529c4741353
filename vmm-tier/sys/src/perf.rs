//! `perf_event_open`: events, the ring they write into, and the records in it.

pub mod event;
pub mod ibs;
pub mod record;
pub mod ring;
pub mod ring_file;
pub mod tracepoint;
