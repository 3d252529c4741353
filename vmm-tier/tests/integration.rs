//! The integration tests of this crate, in one program: a program for each file takes longer to build.
//! Each test file is named here.

#[path = "../core/tests/exposition/mod.rs"]
mod exposition;
#[path = "played/guest.rs"]
mod guest;
#[path = "played/host.rs"]
mod host;
mod live;
mod played;
#[path = "played/recorder.rs"]
mod recorder;
#[path = "played/ring.rs"]
mod ring;

mod agent;
mod commands;
mod doctor;
mod explain;
mod guest_agent;
mod guest_life;
mod host_daemon;
mod host_http;
mod host_link;
mod ibs_ring;
mod large_traces;
mod live_guest;
mod live_map;
mod live_sources;
mod log;
mod metrics;
mod page;
mod proxy;
mod record;
mod replay;
mod schema;
mod slow_qemu;
mod trace;
