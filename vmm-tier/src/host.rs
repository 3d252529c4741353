//! The host daemon: divides the host's DRAM among the VMs whose agents report to it.

pub(crate) mod http;
pub(crate) mod protocol;
pub(crate) mod published;
pub(crate) mod recorder;
pub(crate) mod report;
mod settings;
