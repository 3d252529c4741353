//! Events: what QEMU tells unasked.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Wall-clock time of an event on the sender's host. Both parts are −1 when it had no clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 UTC.
    pub seconds: i64,
    /// Microseconds within the second.
    pub microseconds: i64,
}

impl Timestamp {
    /// The host's wall clock now.
    #[must_use]
    pub fn now() -> Self {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => Self {
                seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
                microseconds: i64::from(since.subsec_micros()),
            },
            Err(_) => Self {
                seconds: -1,
                microseconds: -1,
            },
        }
    }
}

/// An event as it stands on the wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The name, upper case: `STOP`.
    #[serde(rename = "event")]
    pub name: String,
    /// The event's data, an object; `Null` when it has none.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
    /// When it happened.
    pub timestamp: Timestamp,
}

impl Event {
    /// An event that happens now.
    #[must_use]
    pub fn now(name: impl Into<String>, data: Value) -> Self {
        Self {
            name: name.into(),
            data,
            timestamp: Timestamp::now(),
        }
    }

    /// The typed view. Members that are missing or of another type become empty or zero: an event
    /// is never lost for its data, and whoever acts on it asks QEMU again anyway.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        let text = |key: &str| self.data[key].as_str().map(str::to_owned);
        let number = |key: &str| self.data[key].as_u64().unwrap_or(0);
        match self.name.as_str() {
            "STOP" => EventKind::Stop,
            "RESUME" => EventKind::Resume,
            "RESET" => EventKind::Reset {
                guest: self.data["guest"].as_bool().unwrap_or(false),
            },
            "SHUTDOWN" => EventKind::Shutdown {
                guest: self.data["guest"].as_bool().unwrap_or(false),
                reason: text("reason").unwrap_or_default(),
            },
            "POWERDOWN" => EventKind::Powerdown,
            "SUSPEND" => EventKind::Suspend,
            "WAKEUP" => EventKind::Wakeup,
            "DEVICE_DELETED" => EventKind::DeviceDeleted {
                device: text("device"),
                path: text("path").unwrap_or_default(),
            },
            "MEM_UNPLUG_ERROR" => EventKind::MemUnplugError {
                device: text("device").unwrap_or_default(),
                message: text("msg").unwrap_or_default(),
            },
            "DEVICE_UNPLUG_GUEST_ERROR" => EventKind::DeviceUnplugGuestError {
                device: text("device"),
                path: text("path").unwrap_or_default(),
            },
            "BALLOON_CHANGE" => EventKind::BalloonChange {
                actual: number("actual"),
            },
            "MEMORY_DEVICE_SIZE_CHANGE" => EventKind::MemoryDeviceSizeChange {
                id: text("id"),
                size: number("size"),
                qom_path: text("qom-path").unwrap_or_default(),
            },
            "MIGRATION" => EventKind::Migration {
                status: text("status").unwrap_or_default(),
            },
            name => EventKind::Other(name.to_owned()),
        }
    }
}

/// The events that a guest's memory and life cycle hang on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// The virtual CPUs stopped.
    Stop,
    /// The virtual CPUs run again.
    Resume,
    /// The machine was reset. virtio-mem devices are empty after it.
    Reset {
        /// The guest asked for it.
        guest: bool,
    },
    /// The machine shut down; QEMU exits unless started with `-no-shutdown`.
    Shutdown {
        /// The guest asked for it.
        guest: bool,
        /// `ShutdownCause`: `host-qmp-quit`, `guest-shutdown` …
        reason: String,
    },
    /// The guest was asked to power down.
    Powerdown,
    /// The guest went to sleep.
    Suspend,
    /// The guest woke.
    Wakeup,
    /// A device is gone. Its memory backend still stands until `object-del`.
    DeviceDeleted {
        /// The device's id, if it had one.
        device: Option<String>,
        /// Its QOM path.
        path: String,
    },
    /// A memory device could not be unplugged.
    MemUnplugError {
        /// The device's id.
        device: String,
        /// Why.
        message: String,
    },
    /// The guest refused to give a device up.
    DeviceUnplugGuestError {
        /// The device's id, if it has one.
        device: Option<String>,
        /// Its QOM path.
        path: String,
    },
    /// The balloon has another size; at most one event a second, the last wins.
    BalloonChange {
        /// Bytes that the guest has now.
        actual: u64,
    },
    /// A virtio-mem device has another size; at most one event a second, the last wins.
    MemoryDeviceSizeChange {
        /// The device's id, if it has one.
        id: Option<String>,
        /// Bytes plugged now.
        size: u64,
        /// The device's QOM path.
        qom_path: String,
    },
    /// The migration has another status. QEMU sends it only with the migration capability
    /// `events`; else poll `query-migrate`.
    Migration {
        /// `MigrationStatus`: `setup`, `active`, `completed` …
        status: String,
    },
    /// Any other event.
    Other(String),
}
