//! The host daemon: divides the host's DRAM among the VMs whose agents report to it.
//!
//! ```text
//!  agents ────► control ─► desk (reports) ──► daemon ─► dealer ─► arbiter
//!  operators ─►         ─► orders ──────────►
//!  /proc ─► watcher ────────────────────────►
//!                                               daemon ─► published ─► recorder, recording, http
//! ```
//!
//! One thread owns what the daemon knows, and decides once a second. It never waits for an agent, a client
//! or a file of `/proc`: reports are answered at the desk, and the watcher has a thread of its own.

mod control;
mod daemon;
mod dealer;
mod desk;
mod drain;
mod events;
mod http;
mod latency;
mod managed;
mod overrides;
mod player;
mod pools;
pub(crate) mod protocol;
mod published;
mod qemu;
mod recorder;
#[cfg_attr(
    not(feature = "screens"),
    allow(dead_code, reason = "screens read recordings")
)]
pub(crate) mod recording;
pub(crate) mod report;
mod settings;
mod strangers;
mod watcher;

use std::process::ExitCode;

use self::settings::HostSettings;
pub(crate) use self::settings::{HostArgs, SOCKET};
#[cfg(test)]
pub(crate) use self::{control::commands, http::tests::host as published_host};

/// `vmm-tier host`.
pub(crate) fn run(args: HostArgs) -> anyhow::Result<ExitCode> {
    let replay = args.replay.clone();
    let settings = HostSettings::of(args)?;
    match replay {
        Some(path) => player::run(&path, settings.http, settings.http_hosts),
        None => daemon::run(settings),
    }
}
