//! Page faults of the vCPU threads as a source: which page of QEMU's memory was touched while it was not
//! mapped.
//!
//! The kernel's software event `page-faults` comes from the CPU's fault handler, so it sees what *host*
//! code touches. The code of an emulated (TCG) guest is such code: each page's first touch is seen. A
//! KVM guest's faults are served by KVM, which gets the page without that handler
//! (`mm_account_fault` in `mm/memory.c` skips the event): of such a guest only QEMU's own touches are
//! seen.

use std::sync::Arc;

use tier_core::{
    addr::Hva,
    map::GuestMemoryMap,
    sample::{AccessKind, AccessSample, DropReason, SampleAddress, Sight, SourceKind},
};
use tier_sys::perf::{event::EventSpec, record::Sample};

use super::{
    Setup, Source,
    vcpus::{Decode, VcpuSource},
};

/// Pages of each ring: a record has 32 bytes.
const RING_PAGES: usize = 32;

#[derive(Debug)]
struct HostFaults {
    is_kvm: bool,
}

impl Decode for HostFaults {
    fn kind(&self) -> SourceKind {
        SourceKind::HostFaults
    }

    fn sight(&self) -> Sight {
        match self.is_kvm {
            true => Sight::HostMode,
            false => Sight::FirstTouch,
        }
    }

    fn label(&self) -> String {
        let sees = match self.is_kvm {
            true => "sees only the first touches of QEMU itself, none of the guest's",
            false => "sees only the first touch of a page after it was mapped",
        };
        format!("page faults of the vCPU threads (every one): {sees}, with its exact address")
    }

    fn decode(&self, _: usize, sample: &Sample<'_>) -> Result<AccessSample, DropReason> {
        let address = sample.addr().ok_or(DropReason::Malformed)?;
        if address == 0 {
            return Err(DropReason::NoAddress);
        }
        if super::vcpus::is_kernel_address(address) {
            return Err(DropReason::WrongMode);
        }
        Ok(AccessSample {
            address: SampleAddress::Host(Hva(address)),
            len: 1,
            weight: 1.0,
            kind: AccessKind::Any,
        })
    }
}

/// The event on every page fault of a thread.
pub(crate) fn event() -> EventSpec {
    EventSpec::page_faults(RING_PAGES)
}

/// Opens the event on the guest's vCPU threads.
///
/// # Errors
/// If the kernel refuses; the text says what to do.
pub(crate) fn open(setup: &Setup, map: &Arc<GuestMemoryMap>) -> anyhow::Result<Box<dyn Source>> {
    let decode = HostFaults {
        is_kvm: setup.is_kvm,
    };
    let source = VcpuSource::open(setup, map, decode, vec![event().into()], 1)?;
    Ok(Box::new(source))
}

#[cfg(test)]
mod tests;
