//! What an agent in the guest could do, as far as it can be said from outside. Pure.

use tier_core::sample::{Sight, SourceKind};

use super::{
    facts::{GuestFacts, KvmFacts},
    source_report::{SourceReport, Works},
    wiring::Wiring,
};

/// A bit of the MSR `IA32_PERF_CAPABILITIES` (SDM volume 3, "PEBS"): records carry addresses.
const PEBS_BASELINE: u64 = 1 << 14;
/// What makes QEMU hand on all of the host's PMU.
const WHOLE_PMU: &str = "-cpu host,pmu=on,migratable=off";

/// What was found, and what would help.
#[derive(Default)]
struct Notes {
    found: Vec<String>,
    enable: Vec<String>,
}

impl Notes {
    fn found(&mut self, what: impl Into<String>) {
        self.found.push(what.into());
    }

    fn enable(&mut self, what: impl Into<String>) {
        self.enable.push(what.into());
    }
}

/// The row of the guest agent.
pub(super) fn agent(
    kvm: Option<&KvmFacts>,
    guest: Option<&GuestFacts>,
    is_kvm: bool,
) -> SourceReport {
    let mut notes = Notes::default();
    let works = match guest {
        Some(guest) => reach(&guest.wiring, &mut notes),
        None => {
            notes.found("needs nothing of the host but a way to the guest: ask with --qmp SOCKET");
            Works::Perhaps
        }
    };
    inside(kvm, guest.map(|guest| &guest.wiring), is_kvm, &mut notes);
    SourceReport {
        source: SourceKind::Guest,
        works,
        sees: Sight::Guest,
        precision: "exact with PEBS or IBS in the guest, else regions",
        found: notes.found.join("; "),
        enable: notes.enable,
    }
}

/// How an agent could be reached.
fn reach(wiring: &Wiring, notes: &mut Notes) -> Works {
    for (name, path) in &wiring.serial {
        let name = name.as_deref().unwrap_or("without a name");
        let path = path.as_deref().unwrap_or("not a unix socket");
        notes.found(format!("virtio-serial port {name} ({path})"));
    }
    if let Some(cid) = wiring.vsock_cid {
        notes.found(format!("vsock with CID {cid}"));
    }
    let is_wired = !wiring.serial.is_empty() || wiring.vsock_cid.is_some();
    if !is_wired {
        notes.found("the guest has neither a virtio-serial port nor vsock");
        notes.enable(
            "-chardev socket,id=tier,path=PATH,server=on,wait=off -device virtio-serial-pci -device \
             virtserialport,chardev=tier,name=vmm-tier, or -device vhost-vsock-pci,guest-cid=CID",
        );
    }
    notes.enable(
        "start guest-agent in the guest and name its socket: --source guest=PATH or \
         guest=vsock:CID:PORT",
    );
    match is_wired {
        true => Works::Perhaps,
        false => Works::No,
    }
}

/// What it could sample with.
fn inside(kvm: Option<&KvmFacts>, wiring: Option<&Wiring>, is_kvm: bool, notes: &mut Notes) {
    let pmu = wiring.map(|wiring| (wiring.cpu_pmu, wiring.cpu_migratable));
    match kvm {
        _ if !is_kvm => {
            notes.found("an emulated CPU samples nothing: the agent uses DAMON or page faults");
        }
        None => {}
        Some(kvm) if kvm.gives_no_pmu() => {
            notes.found("KVM gives guests no PMU, so an agent samples with DAMON or by page faults");
            if !kvm.is_amd() {
                notes.enable("kvm.enable_pmu=1 on the kernel's command line, or modprobe kvm enable_pmu=1");
            }
        }
        Some(kvm) if kvm.is_amd() => {
            notes.found("KVM hands no IBS on to AMD guests as a rule: an agent samples with DAMON or by page faults");
        }
        Some(_) if matches!(pmu, Some((Some(false), _))) => {
            notes.found("the guest's CPUs have no PMU");
            notes.enable(WHOLE_PMU);
        }
        Some(_) if matches!(pmu, Some((_, Some(true)))) => {
            notes.found("the guest's CPUs have a PMU, but without PEBS (migratable=on)");
            notes.enable(WHOLE_PMU);
        }
        Some(KvmFacts {
            perf_capabilities: Some(capabilities),
            ..
        }) => notes.found(match capabilities & PEBS_BASELINE != 0 {
            true => "KVM hands PEBS on with addresses",
            false => {
                "KVM hands no PEBS with addresses on (PERF_CAP_PEBS_BASELINE is masked), so an agent \
                 samples with DAMON or by page faults"
            }
        }),
        Some(_) => {}
    }
}
