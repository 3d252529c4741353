//! QEMU as the agent sees it: its monitor, and what is asked there.

pub(super) mod asker;
pub(super) mod discovery_pace;
