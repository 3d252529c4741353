//! Who has a slot: what DAMON's files say, and what an agent of vmm-tier writes down.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::process::Identity;

/// A slot and who has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SlotUse {
    /// The slot's number.
    pub slot: u32,
    /// The kernel thread, if it is on.
    pub thread: Option<u32>,
    /// `paddr`, `vaddr`, `fvaddr`; `None` if nothing is set up in it.
    pub operations: Option<String>,
    /// The processes that are watched, with their names.
    pub targets: Vec<String>,
    /// What its schemes do: `migrate_hot`, `pageout`, `stat` …
    pub actions: Vec<String>,
    /// Our own record, if an agent of vmm-tier has it.
    pub record: Option<SlotRecord>,
}

impl SlotUse {
    /// Whether nobody has it.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.thread.is_none() && self.operations.is_none() && self.record.is_none()
    }
}

impl fmt::Display for SlotUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "slot {}: {}",
            self.slot,
            self.operations.as_deref().unwrap_or("empty")
        )?;
        match self.thread {
            Some(thread) => write!(f, ", on as thread {thread}")?,
            None => f.write_str(", off")?,
        }
        if !self.targets.is_empty() {
            write!(f, ", watching {}", self.targets.join(" "))?;
        }
        if !self.actions.is_empty() {
            write!(f, ", schemes {}", self.actions.join(" "))?;
        }
        match &self.record {
            Some(record) => write!(f, ", of the vmm-tier agent {}", record.owner_pid),
            None if self.operations.is_some() => f.write_str(", not vmm-tier's"),
            None => Ok(()),
        }
    }
}

/// What is written down of a slot that an agent has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SlotRecord {
    /// The slot's number.
    pub slot: u32,
    /// The kdamond's kernel thread; `None` until it is on.
    pub thread: Option<u32>,
    /// The process that it watches.
    pub target_pid: u32,
    /// The agent.
    pub owner_pid: u32,
    /// When the agent began, in clock ticks since boot: tells it from a later process of its number.
    pub owner_start: u64,
    /// The boot in which all this holds.
    pub boot_id: String,
}

impl SlotRecord {
    pub(super) fn owner(&self) -> Identity {
        Identity {
            pid: self.owner_pid,
            start: self.owner_start,
            boot_id: self.boot_id.clone(),
        }
    }
}
