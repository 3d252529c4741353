//! Error replies: class and description.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::words;

words! {
    /// QMP's error classes (`qapi/error.json`).
    ErrorClass {
        /// Everything that has no class of its own.
        GenericError = "GenericError",
        /// The command doesn't exist, or not before negotiation.
        CommandNotFound = "CommandNotFound",
        /// The device is there, its guest driver is not (balloon).
        DeviceNotActive = "DeviceNotActive",
        /// The named device doesn't exist.
        DeviceNotFound = "DeviceNotFound",
        /// The host's KVM lacks something.
        KvmMissingCap = "KVMMissingCap",
    }
}

/// The `error` member of a reply. On the server side a handler returns it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QmpError {
    /// The class; programs branch on it.
    pub class: ErrorClass,
    /// The text for people; it may change between versions.
    pub desc: String,
}

impl QmpError {
    /// An error of class `GenericError`.
    #[must_use]
    pub fn generic(desc: impl Into<String>) -> Self {
        Self {
            class: ErrorClass::GenericError,
            desc: desc.into(),
        }
    }

    /// The error for a command that doesn't exist, in QEMU's words.
    #[must_use]
    pub fn command_not_found(name: &str) -> Self {
        Self {
            class: ErrorClass::CommandNotFound,
            desc: format!("The command {name} has not been found"),
        }
    }
}

impl fmt::Display for QmpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class, self.desc)
    }
}

impl std::error::Error for QmpError {}
