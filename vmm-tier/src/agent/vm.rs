//! The VM that an agent serves: QEMU's process, and what the VM is called.

use std::time::Duration;

use tier_sys::{process::ProcessHandle, sysroot::SysRoot};

/// See the [module](self).
pub(super) struct Vm {
    pub(super) name: String,
    pub(super) root: SysRoot,
    /// QEMU's process.
    pub(super) pid: u32,
    process: ProcessHandle,
}

impl Vm {
    pub(super) const fn new(name: String, root: SysRoot, pid: u32, process: ProcessHandle) -> Self {
        Self {
            name,
            root,
            pid,
            process,
        }
    }

    /// Whether QEMU's process has ended.
    pub(super) fn has_ended(&self) -> bool {
        // A descriptor that can't be polled says nothing about the guest.
        self.process.wait_for_exit(Duration::ZERO).unwrap_or(false)
    }
}
