//! The machine and its life cycle.

use serde::{Deserialize, Serialize};

use super::{Command, Empty, plain_commands};
use crate::text::words;

plain_commands! {
    /// Whether the guest runs.
    QueryStatus = "query-status" -> StatusInfo;
    /// QEMU's version.
    QueryVersion = "query-version" -> VersionInfo;
    /// The virtual CPUs and their host threads.
    QueryCpusFast = "query-cpus-fast" -> Vec<CpuInfo>;
    /// Whether KVM is in use.
    QueryKvm = "query-kvm" -> KvmInfo;
    /// The name given by `-name`.
    QueryName = "query-name" -> NameInfo;
    /// What the machine can do now.
    QueryCurrentMachine = "query-current-machine" -> CurrentMachine;
    /// How the migration stands, outgoing or incoming.
    QueryMigrate = "query-migrate" -> MigrationInfo;
    /// Stops the virtual CPUs.
    Stop = "stop" -> Empty;
    /// Lets the virtual CPUs run again.
    Cont = "cont" -> Empty;
}

words! {
    /// State of the machine (`RunState` in `qapi/run-state.json`).
    RunState {
        /// Stopped by a debugger.
        Debug = "debug",
        /// Waiting for an incoming migration.
        Inmigrate = "inmigrate",
        /// Something inside QEMU failed; the guest can't go on.
        InternalError = "internal-error",
        /// Stopped by a disk error.
        IoError = "io-error",
        /// Stopped by `stop`.
        Paused = "paused",
        /// Stopped after an outgoing migration.
        Postmigrate = "postmigrate",
        /// Started with `-S` and not begun.
        Prelaunch = "prelaunch",
        /// Stopped while an outgoing migration ends.
        FinishMigrate = "finish-migrate",
        /// Stopped while a snapshot is restored.
        RestoreVm = "restore-vm",
        /// The guest runs.
        Running = "running",
        /// Stopped while a snapshot is saved.
        SaveVm = "save-vm",
        /// Shut down under `-no-shutdown`.
        Shutdown = "shutdown",
        /// Asleep.
        Suspended = "suspended",
        /// Stopped by a watchdog.
        Watchdog = "watchdog",
        /// The guest panicked.
        GuestPanicked = "guest-panicked",
        /// In a COLO checkpoint.
        Colo = "colo",
    }
}

words! {
    /// State of a migration (`MigrationStatus` in `qapi/migration.json`).
    MigrationStatus {
        /// None was ever begun.
        None = "none",
        /// Being set up.
        Setup = "setup",
        /// Being cancelled.
        Cancelling = "cancelling",
        /// Cancelled.
        Cancelled = "cancelled",
        /// Memory is being sent.
        Active = "active",
        /// The guest runs at the destination, memory follows.
        PostcopyActive = "postcopy-active",
        /// Post-copy lost its connection.
        PostcopyPaused = "postcopy-paused",
        /// Post-copy recovers.
        PostcopyRecover = "postcopy-recover",
        /// Done.
        Completed = "completed",
        /// Failed; the guest goes on here.
        Failed = "failed",
        /// In a COLO checkpoint.
        Colo = "colo",
        /// Waiting before the switch-over.
        PreSwitchover = "pre-switchover",
        /// Device state is being sent.
        Device = "device",
        /// Waiting for network devices to be unplugged.
        WaitUnplug = "wait-unplug",
    }
}

/// Whether the guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StatusInfo {
    /// Whether the virtual CPUs run.
    pub running: bool,
    /// The state.
    pub status: RunState,
}

/// QEMU's version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// The three numbers.
    pub qemu: VersionTriple,
    /// What the packager added; empty upstream.
    #[serde(default)]
    pub package: String,
}

/// The three numbers of a version; ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VersionTriple {
    /// The first number.
    pub major: u64,
    /// The second.
    pub minor: u64,
    /// The third.
    pub micro: u64,
}

/// A virtual CPU.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuInfo {
    /// QEMU's number of the CPU.
    pub cpu_index: i64,
    /// The host thread (tid) that runs it.
    pub thread_id: i64,
    /// Its QOM path.
    pub qom_path: String,
    /// The architecture: `x86_64`.
    pub target: String,
}

/// Whether KVM is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct KvmInfo {
    /// The guest runs on KVM.
    pub enabled: bool,
    /// This QEMU was built with KVM.
    pub present: bool,
}

/// The guest's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct NameInfo {
    /// What `-name` said.
    #[serde(default)]
    pub name: Option<String>,
}

/// What the machine can do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CurrentMachine {
    /// The machine can wake from sleep.
    pub wakeup_suspend_support: bool,
}

/// How a migration stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// The state; absent when none was ever begun.
    #[serde(default)]
    pub status: Option<MigrationStatus>,
    /// Why it failed.
    #[serde(default)]
    pub error_desc: Option<String>,
}

/// A line for the human monitor. Prefer [`Client::hmp`](crate::client::Client::hmp).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HumanMonitorCommand {
    /// The line.
    pub command_line: String,
    /// The virtual CPU whose view is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_index: Option<i64>,
}

impl Command for HumanMonitorCommand {
    const NAME: &'static str = "human-monitor-command";
    type Return = String;
}
