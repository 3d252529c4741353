//! Reads what the doctor needs to know. Decides nothing; a part that can't be read says why.

use std::{ffi::CString, fmt::Display, path::Path};

use kvm_bindings::{CpuId, KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm};
use qmp::{
    Client,
    commands::{MigrationInfo, QueryKvm, QueryMigrate, QueryStatus},
};
use tier_core::{
    addr::NodeSet,
    constraints::{Constraints, PoolBounds},
    holds::Holds,
};
use tier_sys::{
    constraints,
    damon::users::DamonUsers,
    folios::{self, Folios},
    holds,
    hugetlb::{self, HugePool},
    knobs::{self, Knobs},
    maps, numa_maps,
    process::{self, Capabilities},
    sysroot::{SysRoot, read_switch},
    topology::Topology,
};

use super::wiring::Wiring;
use crate::{
    discover::{Discovered, discover},
    log::with_causes,
    pool_drift,
};

/// `IA32_PERF_CAPABILITIES`, which says what of PEBS there is.
const MSR_PERF_CAPABILITIES: u32 = 0x345;

/// What a host is like.
#[derive(Clone, Debug)]
pub(super) struct HostFacts {
    pub(super) topology: Result<Topology, String>,
    /// Nodes on which the doctor itself may have memory, if known.
    pub(super) allowed: Option<NodeSet>,
    pub(super) capabilities: Capabilities,
    pub(super) knobs: Result<Knobs, String>,
    pub(super) pools: Result<Vec<HugePool>, String>,
    /// By how much agents let pools drift: what, and the commands that take it back; or why it is not
    /// known.
    pub(super) drifts: Vec<Result<(String, Vec<String>), String>>,
    pub(super) damon: DamonUsers,
    /// Whether the host makes pages of several frames that are mapped frame by frame; then, whether they
    /// can be told apart, or why not.
    pub(super) folios: Option<Result<(), String>>,
    pub(super) has_tracefs: bool,
    /// Whether DAMON's event is there; tells nothing without tracefs.
    pub(super) has_damon_event: bool,
    pub(super) kvm: Result<KvmFacts, String>,
}

/// What KVM can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KvmFacts {
    pub(super) api_version: i32,
    /// The host may move a page under a running guest.
    pub(super) sync_mmu: bool,
    /// The module, `kvm_intel` or `kvm_amd`, and whether nested paging (EPT, NPT) is on.
    pub(super) paging: Option<(&'static str, bool)>,
    /// Whether guests get a PMU (`kvm.enable_pmu`).
    pub(super) guest_pmu: Option<bool>,
    /// The version of architectural performance monitoring that guests see (CPUID leaf 0xA, Intel only);
    /// 0 for none. Guest PEBS needs 4 or later.
    pub(super) guest_pmu_version: u32,
    /// What KVM answers to `KVM_CAP_PMU_CAPABILITY`: the switches of a guest's PMU, 0 for no PMU.
    pub(super) pmu_capability: i32,
    /// `IA32_PERF_CAPABILITIES` as guests may see it; `None` if KVM hands none on.
    pub(super) perf_capabilities: Option<u64>,
}

fn text<T, E: Display>(result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

impl HostFacts {
    /// Reads them; agents keep account in `run_dir`.
    pub(super) fn read(root: &SysRoot, run_dir: &Path) -> Self {
        let pools = text(hugetlb::read(root));
        Self {
            topology: text(Topology::read(root)),
            allowed: knobs::own_allowed_nodes(root).ok(),
            capabilities: process::effective_capabilities(),
            knobs: text(Knobs::read(root)),
            drifts: pool_drift::all(run_dir, root, pools.as_deref().unwrap_or_default())
                .into_iter()
                .map(|drift| drift.map_err(|error| with_causes(&error)))
                .collect(),
            pools,
            damon: DamonUsers::read(root),
            folios: folios::may_exist(root).then(|| text(Folios::open(root).map(drop))),
            has_tracefs: root.tracing("events").is_dir(),
            has_damon_event: root.tracing("events/damon/damon_aggregated/id").exists(),
            kvm: KvmFacts::read(root),
        }
    }
}

impl KvmFacts {
    fn read(root: &SysRoot) -> Result<Self, String> {
        let path = root.dev("kvm");
        let name = text(CString::new(path.as_os_str().as_encoded_bytes()))?;
        let kvm = Kvm::new_with_path(&name).map_err(|errno| {
            format!(
                "{}: {}",
                path.display(),
                std::io::Error::from_raw_os_error(errno.errno())
            )
        })?;
        let paging = [("kvm_intel", "ept"), ("kvm_amd", "npt")];
        Ok(Self {
            api_version: kvm.get_api_version(),
            sync_mmu: kvm.check_extension(Cap::SyncMmu),
            paging: paging.into_iter().find_map(|(module, parameter)| {
                Some((
                    module,
                    read_switch(&root.sys(format!("module/{module}/parameters/{parameter}")))?,
                ))
            }),
            guest_pmu: read_switch(&root.sys("module/kvm/parameters/enable_pmu")),
            guest_pmu_version: guest_pmu_version(&kvm),
            pmu_capability: kvm.check_extension_raw(u64::from(KVM_CAP_PMU_CAPABILITY)),
            perf_capabilities: perf_capabilities(&kvm),
        })
    }
}

impl KvmFacts {
    /// Whether guests have no PMU at all.
    pub(super) fn gives_no_pmu(&self) -> bool {
        // Kernels whose module has no such parameter still answer for the capability, or give no PMU.
        !self.guest_pmu.unwrap_or(self.pmu_capability > 0)
    }

    /// Whether guests run on AMD's virtualisation.
    pub(super) fn is_amd(&self) -> bool {
        self.paging.is_some_and(|(module, _)| module == "kvm_amd")
    }
}

fn guest_pmu_version(kvm: &Kvm) -> u32 {
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let leaf = cpuid
        .iter()
        .flat_map(CpuId::as_slice)
        .find(|entry| entry.function == 0xa);
    leaf.map_or(0, |leaf| leaf.eax & 0xff)
}

fn perf_capabilities(kvm: &Kvm) -> Option<u64> {
    let entry = kvm_msr_entry {
        index: MSR_PERF_CAPABILITIES,
        ..kvm_msr_entry::default()
    };
    let mut msrs = Msrs::from_entries(&[entry]).ok()?;
    // It gives the number of MSRs that it knows.
    match kvm.get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice().first().map(|entry| entry.data),
        _ => None,
    }
}

/// What a guest is like.
#[derive(Clone, Debug)]
pub(super) struct GuestFacts {
    pub(super) version: String,
    pub(super) pid: u32,
    pub(super) comm: String,
    /// Whether the guest runs under KVM; `None` if QEMU would not say.
    pub(super) kvm: Option<bool>,
    /// QEMU's run state, such as `running`.
    pub(super) state: Option<String>,
    /// The state of a migration, if there ever was one.
    pub(super) migration: Option<String>,
    pub(super) map: Result<Discovered, String>,
    /// Nodes on which the process may have memory.
    pub(super) allowed: Result<NodeSet, String>,
    /// What bounds its use of hugetlb pools.
    pub(super) pools: Vec<PoolBounds>,
    /// Policies other than `default` of the guest's mappings, such as `bind:1`.
    pub(super) policies: Vec<String>,
    /// What keeps the guest's memory in place; `None` if the process can't be looked at.
    pub(super) holds: Option<Holds>,
    /// Whether the agent may look into and move the pages of this process.
    pub(super) can_move: Result<(), String>,
    /// What there is for an agent in the guest.
    pub(super) wiring: Wiring,
}

impl GuestFacts {
    pub(super) fn read(socket: &Path, root: &SysRoot) -> Result<Self, String> {
        let (client, _events) = text(Client::connect(socket, &qmp::client::Options::default()))?;
        let pid = client.peer().pid;
        let map = text(discover(&client, root));
        let triple = &client.version().qemu;
        let migration = client
            .execute(&QueryMigrate)
            .ok()
            .and_then(|MigrationInfo { status, .. }| status);
        let pages: Vec<_> = map
            .iter()
            .flat_map(|found| found.map.ranges())
            .map(|range| range.hva)
            .take(1)
            .collect();
        let guest_bytes = map.as_ref().map_or(0, |found| found.map.total_bytes());
        Ok(Self {
            version: format!("{}.{}.{}", triple.major, triple.minor, triple.micro),
            pid,
            comm: process::stat(root, pid)
                .map(|stat| stat.comm)
                .unwrap_or_default(),
            kvm: client.execute(&QueryKvm).ok().map(|kvm| kvm.enabled),
            state: client
                .execute(&QueryStatus)
                .ok()
                .map(|status| status.status.to_string()),
            migration: migration.map(|status| status.to_string()),
            allowed: text(knobs::allowed_nodes(root, pid)),
            pools: map.as_ref().map_or_else(
                |_| Vec::new(),
                |found| {
                    let Constraints { pools, .. } = constraints::read(root, pid, &found.pools);
                    pools
                },
            ),
            policies: policies(root, pid, map.as_ref().ok()),
            holds: holds::read(root, pid, guest_bytes).ok(),
            can_move: text(tier_sys::pages::query_nodes(pid, &pages)).map(drop),
            wiring: Wiring::read(&client),
            map,
        })
    }
}

/// The distinct policies of the mappings that hold the guest's blocks, without `default`.
fn policies(root: &SysRoot, pid: u32, found: Option<&Discovered>) -> Vec<String> {
    let blocks: Vec<_> = found
        .iter()
        .flat_map(|found| found.map.blocks())
        .map(|block| block.hva)
        .collect();
    let Ok(mappings) = maps::read(root, pid, |mapping| {
        blocks.iter().any(|&hva| mapping.contains(hva))
    }) else {
        return Vec::new();
    };
    let starts: Vec<_> = mappings.iter().map(|mapping| mapping.start).collect();
    let policies = numa_maps::read(root, pid, |start| starts.contains(&start)).unwrap_or_default();
    let mut policies: Vec<_> = policies
        .into_iter()
        .map(|nodes| nodes.policy)
        .filter(|policy| policy != "default")
        .collect();
    policies.sort();
    policies.dedup();
    policies
}
