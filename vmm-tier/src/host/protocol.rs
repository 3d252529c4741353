//! What agents and the host daemon say to each other: two QMP commands on the daemon's socket.
//!
//! An agent connects, says `host-register`, and then `host-report` once a second on the same
//! connection; each reply holds its VM's share. The connection is the agent's identity: a report on a
//! connection that registered no VM is refused. A share is a lease. An agent that hears nothing for
//! [`Lease::lease_ms`] after its last reply falls back to its operator's limit; the daemon charges a VM
//! whose agent is quiet with its share until then, and with what the kernel says that its QEMU holds
//! afterwards.
//!
//! Bytes are DRAM unless a name says otherwise. Times are of the host's monotonic clock.

use serde::{Deserialize, Serialize};
use tier_core::arbiter::MAX_POINTS;

/// How often an agent reports.
pub(crate) const REPORT_EVERY_MS: u64 = 1000;
/// How long a share holds after the last reply.
pub(crate) const LEASE_MS: u64 = 10_000;
/// The most points of a demand curve.
pub(crate) const MOST_POINTS: usize = MAX_POINTS;
/// The most ranges of a guest's RAM.
pub(crate) const MOST_RANGES: usize = 64;

/// The arguments of `host-register`: which VM the agent serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Register {
    /// The VM's name.
    pub(crate) name: String,
    /// The process of its QEMU, as the agent's kernel names it.
    pub(crate) pid: u32,
    /// When that process started, in clock ticks after the boot (`starttime` of /proc/PID/stat).
    pub(crate) pid_start: u64,
    /// The guest's memory, in bytes.
    pub(crate) memory_bytes: u64,
    /// The size of the pages that most of it is made of, in bytes.
    pub(crate) page_bytes: u64,
    /// The operator's limit of the fast tier, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit_bytes: Option<u64>,
    /// The share that is in force, if a daemon granted one that has not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) share_bytes: Option<u64>,
    /// The agent's control socket, if it serves one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) control: Option<String>,
}

/// The arguments of `host-report`: what the agent measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Report {
    /// More than in the agent's last report on this connection; the first has 1.
    pub(crate) number: u64,
    /// When it was made, in nanoseconds of CLOCK_MONOTONIC.
    pub(crate) made_ns: u64,
    /// Demand: bytes of DRAM, and the accesses a second that they would serve, at most
    /// [`MOST_POINTS`].
    pub(crate) curve: Vec<(u64, f64)>,
    /// Where the guest's RAM lies in QEMU: first address and bytes of each range, by rising address, at
    /// most [`MOST_RANGES`]. What the kernel says of other memory of QEMU is not the guest's.
    pub(crate) ram: Vec<(u64, u64)>,
    /// Bytes of the guest on the fast tier, by the agent's account.
    pub(crate) fast_bytes: u64,
    /// Bytes of the guest in memory, of both tiers.
    pub(crate) present_bytes: u64,
    /// The operator's limit of the fast tier, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit_bytes: Option<u64>,
    /// The limit in force: the lesser of the operator's and the share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit_in_force_bytes: Option<u64>,
    /// The agent's state, as `query-tier` calls it.
    pub(crate) state: String,
    /// The source that is believed, as `query-tier` calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<String>,
    /// What its moves wait for, as `query-tier` calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) waits_for: Option<String>,
    /// The share of sampled accesses that DRAM served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hit_ratio: Option<f64>,
    /// Bytes promoted since the agent's start.
    pub(crate) promoted_bytes: u64,
    /// Bytes demoted since the agent's start.
    pub(crate) demoted_bytes: u64,
}

/// The reply to both: a lease on a share.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Lease {
    /// The DRAM that the VM may have, or `None` until the daemon has dealt with the VM in it.
    pub(crate) share_bytes: Option<u64>,
    /// How long that holds.
    pub(crate) lease_ms: u64,
    /// When the next report is due, after this reply.
    pub(crate) report_ms: u64,
    /// The most bytes that the agent may move a second, of the host's budget.
    pub(crate) move_bytes_per_s: u64,
}
