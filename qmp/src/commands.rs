//! Typed commands: what the memory map and the life cycle of a guest need.
//!
//! Members that a QEMU version adds are ignored; members that came late are `Option`; words that
//! this crate doesn't know become `Other`. Text that follows each command's link of thought is in
//! QEMU's own reference, `qapi/*.json`.

mod machine;
mod memory;
mod qom;

pub use machine::{
    Cont, CpuInfo, CurrentMachine, HumanMonitorCommand, KvmInfo, MigrationInfo, MigrationStatus,
    NameInfo, QueryCpusFast, QueryCurrentMachine, QueryKvm, QueryMigrate, QueryName, QueryStatus,
    QueryVersion, RunState, StatusInfo, Stop, VersionInfo, VersionTriple,
};
pub use memory::{
    BalloonInfo, DimmInfo, HumanReadableText, Memdev, MemoryDevice, MemorySizeSummary,
    QueryBalloon, QueryMemdev, QueryMemoryDevices, QueryMemorySizeSummary, QueryRamblock,
    VirtioMemInfo, VirtioPmemInfo,
};
pub use qom::{
    Capability, CommandInfo, ObjectProperty, QmpCapabilities, QomGet, QomList, QueryCommands,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A command of QMP: its arguments are the type's members, its reply is [`Return`](Self::Return).
///
/// The type serialises to an object (or to `null` for no arguments).
pub trait Command: Serialize {
    /// The name on the wire.
    const NAME: &'static str;
    /// What the command gives back.
    type Return: DeserializeOwned;
}

/// The reply of a command that gives nothing back: an object whose members don't matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Defines commands without arguments.
macro_rules! plain_commands {
    ($($(#[$meta:meta])* $name:ident = $wire:literal -> $return:ty;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ::serde::Serialize)]
        pub struct $name;

        impl $crate::commands::Command for $name {
            const NAME: &'static str = $wire;
            type Return = $return;
        }
    )*};
}

pub(crate) use plain_commands;
