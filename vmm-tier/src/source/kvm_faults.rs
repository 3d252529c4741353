//! KVM's fault tracepoint as a source: which page the guest touched while it was not mapped in EPT/NPT.
//!
//! `kvm:kvm_page_fault` is hit when a nested page table has no entry for an access, which is when a page
//! is touched for the first time, or again after its entry was taken away (moved, reclaimed, aged by
//! some kernels). It says nothing of what the guest does with a page that is mapped.
//!
//! The address is guest-physical only under nested paging; with shadow paging it is guest-virtual. While
//! the guest itself runs guests, faults of theirs carry addresses of theirs, which can't be told apart.

use std::sync::Arc;

use tier_core::{
    addr::Gpa,
    map::GuestMemoryMap,
    sample::{AccessKind, AccessSample, DropReason, SampleAddress, Sight, SourceKind},
};
use tier_sys::{
    perf::{
        event::EventSpec,
        record::Sample,
        tracepoint::{Field, Tracepoint, TracepointError},
    },
    sysroot::{SysRoot, read_optional},
};

use super::{
    Setup, Source,
    vcpus::{Decode, VcpuSource},
};

/// Pages of each ring: a guest that touches fresh memory faults some 100,000 times a second, and a
/// record has some 80 bytes.
const RING_PAGES: usize = 64;

/// Bit 1 of the error code is a write, both in an EPT violation's exit qualification (VMX) and in a
/// nested page fault's error code (SVM).
const WRITE: u64 = 1 << 1;
/// SVM only: the fault came while the CPU walked the guest's own page tables, and is always called a
/// write (`PFERR_GUEST_PAGE_MASK`).
const TABLE_WALK: u64 = 1 << 33;

/// The fields of `kvm:kvm_page_fault`. Their offsets differ from kernel to kernel.
#[derive(Debug)]
struct KvmFaults {
    address: Field,
    /// Kernels that don't have it don't tell reads from writes.
    error_code: Option<Field>,
}

impl KvmFaults {
    fn of(tracepoint: &Tracepoint) -> Result<Self, TracepointError> {
        Ok(Self {
            address: tracepoint.field("fault_address")?,
            error_code: tracepoint.field("error_code").ok(),
        })
    }
}

impl Decode for KvmFaults {
    fn kind(&self) -> SourceKind {
        SourceKind::KvmFaults
    }

    fn sight(&self) -> Sight {
        Sight::FirstTouch
    }

    fn label(&self) -> String {
        "KVM's page faults (kvm:kvm_page_fault, every one): sees only the first touch of a page after \
         it was mapped, with its exact guest-physical address"
            .to_owned()
    }

    fn decode(&self, _: usize, sample: &Sample<'_>) -> Result<AccessSample, DropReason> {
        let raw = sample.raw().ok_or(DropReason::Malformed)?;
        let address = self.address.read(raw).ok_or(DropReason::Malformed)?;
        let code = match &self.error_code {
            Some(field) => field.read(raw).ok_or(DropReason::Malformed)?,
            None => TABLE_WALK,
        };
        let kind = match code {
            code if code & TABLE_WALK != 0 => AccessKind::Any,
            code if code & WRITE != 0 => AccessKind::Store,
            _ => AccessKind::Load,
        };
        Ok(AccessSample {
            address: SampleAddress::Guest(Gpa(address)),
            len: 1,
            weight: 1.0,
            kind,
        })
    }
}

/// Whether KVM uses nested paging (EPT, NPT); `None` if no module of KVM's is there to say.
pub(crate) fn nested_paging(root: &SysRoot) -> Option<bool> {
    let on = |path: &str| {
        let value = read_optional(&root.sys(path)).ok()??;
        Some(matches!(value.as_str(), "Y" | "1"))
    };
    let answers = [
        on("module/kvm_intel/parameters/ept"),
        on("module/kvm_amd/parameters/npt"),
    ];
    answers.into_iter().flatten().reduce(|a, b| a || b)
}

/// The event on every fault of a thread; why there is none, in words, if so.
pub(crate) fn event(root: &SysRoot) -> Result<EventSpec, String> {
    let tracepoint =
        Tracepoint::read(root, "kvm", "kvm_page_fault").map_err(|error| error.to_string())?;
    KvmFaults::of(&tracepoint).map_err(|error| error.to_string())?;
    match nested_paging(root) {
        Some(true) => Ok(EventSpec::tracepoint(
            &tracepoint.name,
            tracepoint.id,
            RING_PAGES,
        )),
        Some(false) => Err(
            "KVM uses shadow paging, so its faults carry guest-virtual addresses: load kvm_intel with \
             ept=1 or kvm_amd with npt=1"
                .to_owned(),
        ),
        None => Err(
            "neither kvm_intel nor kvm_amd is loaded, and no other KVM is known to use nested paging: \
             its faults may carry guest-virtual addresses"
                .to_owned(),
        ),
    }
}

/// Opens the tracepoint on the guest's vCPU threads.
///
/// # Errors
/// If the guest is none of KVM's, the addresses would be of no use, or the kernel refuses; the text says
/// what to do.
pub(crate) fn open(setup: &Setup, map: &Arc<GuestMemoryMap>) -> anyhow::Result<Box<dyn Source>> {
    anyhow::ensure!(
        setup.is_kvm,
        "the guest is emulated (TCG): KVM has no faults of it; host-faults has"
    );
    let spec = event(&setup.root).map_err(anyhow::Error::msg)?;
    let tracepoint = Tracepoint::read(&setup.root, "kvm", "kvm_page_fault")?;
    let decode = KvmFaults::of(&tracepoint)?;
    let source = VcpuSource::open(setup, map, decode, vec![spec.into()], 1)?;
    Ok(Box::new(source))
}

#[cfg(test)]
mod tests;
