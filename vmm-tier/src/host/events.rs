//! What the daemon tells its clients: events, and lines of the log.

use qmp::Event;
use serde::Serialize;
use serde_json::Value;

use super::report::HostDrain;

tier_core::words! {
    /// What became of a VM.
    pub(super) enum VmChange {
        /// Its agent has registered it.
        Registered = "registered",
        /// Its agent was refused: it has no share.
        Refused = "refused",
        /// Its agent is silent: it keeps its share until the lease ends.
        Quiet = "quiet",
        /// Its lease has ended: it is charged with what it holds.
        Expired = "expired",
        /// Its agent is back.
        Back = "back",
        /// Its QEMU has ended.
        Gone = "gone",
    }
}

tier_core::report! {
    /// What became of a VM.
    #[derive(Clone, Debug, PartialEq)]
    pub(super) struct VmEvent = "HostVmEvent" {
        /// Its name.
        pub(super) name: String,
        /// The process of its QEMU.
        pub(super) pid: u32,
        /// What became of it.
        pub(super) change: VmChange,
        /// Why its agent was refused; absent if it was not.
        pub(super) reason: Option<String>,
    }
}

tier_core::report! {
    /// Much DRAM has changed hands.
    #[derive(Clone, Debug, PartialEq)]
    pub(super) struct SharesEvent = "HostSharesEvent" {
        /// Bytes by which shares grew since the last such event.
        pub(super) redealt_bytes: u64,
        /// DRAM that is dealt.
        pub(super) pool_bytes: u64,
        /// DRAM of it that is nobody's share.
        pub(super) free_bytes: u64,
    }
}

tier_core::report! {
    /// A VM has had less than it uses of its guarantee for too long, or has it again.
    #[derive(Clone, Debug, PartialEq)]
    pub(super) struct DeficitEvent = "HostDeficitEvent" {
        /// The VM.
        pub(super) name: String,
        /// What is guaranteed to it.
        pub(super) guarantee_bytes: u64,
        /// What it uses of that and has not.
        pub(super) deficit_bytes: u64,
        /// Whether it has its guarantee again.
        pub(super) ended: bool,
    }
}

/// Something that clients and the log are told.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Notice {
    Vm(VmEvent),
    Shares(SharesEvent),
    Deficit(DeficitEvent),
    Drain(HostDrain),
}

impl Notice {
    /// The event.
    pub(super) fn event(&self) -> Event {
        match self {
            Self::Vm(data) => Event::now("HOST_VM", json(data)),
            Self::Shares(data) => Event::now("HOST_SHARES", json(data)),
            Self::Deficit(data) => Event::now("HOST_DEFICIT", json(data)),
            Self::Drain(data) => Event::now("HOST_DRAIN", json(data)),
        }
    }

    /// Writes it to the log.
    pub(super) fn log(&self) {
        match self {
            Self::Vm(VmEvent {
                name,
                pid,
                change,
                reason,
            }) => match (change, reason) {
                (VmChange::Refused, Some(reason)) => {
                    tracing::warn!(vm = name, pid, "the VM has no share: {reason}");
                }
                _ => tracing::info!(vm = name, pid, "{change}"),
            },
            Self::Shares(shares) => tracing::debug!(?shares, "shares were re-dealt"),
            Self::Deficit(DeficitEvent {
                name,
                guarantee_bytes,
                deficit_bytes,
                ended,
            }) => match ended {
                true => tracing::info!(vm = name, "the VM has its guarantee again"),
                false => tracing::warn!(
                    vm = name,
                    guarantee_bytes,
                    deficit_bytes,
                    "the VM has less than it uses of its guarantee"
                ),
            },
            Self::Drain(drain) => tracing::debug!(?drain, "drain"),
        }
    }
}

/// Members that are not there are left out.
fn json(data: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(data).unwrap_or_default();
    if let Value::Object(members) = &mut value {
        members.retain(|_, member| !member.is_null());
    }
    value
}
