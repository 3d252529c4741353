//! Intel's PEBS events, as this kernel and CPU have them.
//!
//! The encodings are read from `/sys/bus/event_source/devices/cpu*/events` and put together by the PMU's
//! own `format` files. Where a kernel names no event, the generations that are known have the codes of
//! Intel's event lists (SDM volume 3, perfmon JSON). Everything here is a pure function of a folder tree.
//!
//! On the host PEBS sees what the *host* does on a vCPU thread: QEMU's own accesses, which for an
//! emulated (TCG) guest are the guest's. The kernel takes PEBS counters off while KVM runs a guest
//! (`intel_guest_get_msrs` in `arch/x86/events/intel/core.c`), so nothing ever comes from there.

mod encoding;

use std::{fmt, path::PathBuf};

use perf_event_open_sys::bindings as abi;

use self::encoding::{Encoding, Formats};
use super::{
    event::{EventSpec, Rate},
    threads::ThreadEvent,
};
use crate::sysroot::{SysRoot, SysRootError, read_optional, read_value, read_value_optional};

/// The PMUs of cores: of all, or of each kind on a hybrid part.
const PMUS: [&str; 4] = ["cpu", "cpu_core", "cpu_atom", "cpu_lowpower"];
/// Loads of at least this many cycles are sampled: more than a hit in the L3 takes (about 60), less than
/// any memory needs (190 cycles are 64 ns at 3 GHz).
pub const LATENCY_CYCLES: u16 = 190;

/// What PEBS can sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Loads that took long.
    Loads,
    /// Loads that missed the last cache.
    L3Misses,
    /// Stores.
    Stores,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loads => "slow loads",
            Self::L3Misses => "loads that miss the L3",
            Self::Stores => "stores",
        })
    }
}

/// How an event is to sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PebsSettings {
    /// Events for each sample.
    pub period: u64,
    /// The least latency of [`Access::Loads`], in cycles.
    pub latency_cycles: u16,
    /// Whether samples carry the physical address too (`PERF_SAMPLE_PHYS_ADDR`; on the host that of
    /// QEMU's page, which takes the kernel a walk of the page tables).
    pub physical: bool,
    /// Pages of each ring, a power of two.
    pub data_pages: usize,
}

/// PEBS can't be used here.
#[derive(Debug, thiserror::Error)]
pub enum PebsError {
    /// The kernel shows no PMU of the CPU's cores.
    #[error(
        "there is no PMU at {}: a virtual machine without one (-cpu host,pmu=on gives it one), or a \
         kernel without its driver",
        path.display()
    )]
    NoPmu {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The CPU is none of Intel's.
    #[error("this CPU is of {vendor}: PEBS is Intel's (AMD has IBS)")]
    OtherVendor {
        /// What `/proc/cpuinfo` calls the vendor.
        vendor: String,
    },
    /// The PMU can't sample precisely.
    #[error(
        "the PMU {pmu} can't sample addresses (caps/max_precise is 0): a virtual machine to which PEBS \
         is not handed on, or PEBS is switched off"
    )]
    NotPrecise {
        /// The PMU.
        pmu: String,
    },
    /// Neither the kernel nor this table knows an event for memory accesses.
    #[error(
        "no event for memory accesses is known of the PMU {pmu} (generation {generation}): a newer \
         kernel may name it in events/mem-loads"
    )]
    NoEvents {
        /// The PMU.
        pmu: String,
        /// `caps/pmu_name`.
        generation: String,
    },
    /// A file of sysfs.
    #[error(transparent)]
    Files(#[from] SysRootError),
}

/// A PMU with PEBS and its memory events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PebsPmu {
    /// `cpu`, or `cpu_core`, `cpu_atom`, `cpu_lowpower` on a hybrid part.
    pub name: String,
    /// `perf_event_attr.type`.
    pub kind: u32,
    /// The highest `precise_ip`, at least 1.
    pub max_precise: u8,
    /// What the kernel calls the generation, such as `icelake` or `sapphire_rapids`; empty where it
    /// does not say.
    pub generation: String,
    loads: Option<Encoding>,
    /// To be opened in front of `loads` (Sapphire Rapids, Alder Lake and their kin).
    loads_aux: Option<Encoding>,
    l3_misses: Option<Encoding>,
    stores: Option<Encoding>,
}

/// The PMUs of this host that can sample addresses, at least one.
///
/// # Errors
/// [`PebsError`] says why there is none.
pub fn read(root: &SysRoot) -> Result<Vec<PebsPmu>, PebsError> {
    let devices = root.sys("bus/event_source/devices");
    let present: Vec<_> = PMUS
        .iter()
        .filter(|name| devices.join(name).join("type").exists())
        .collect();
    if present.is_empty() {
        return Err(PebsError::NoPmu { path: devices });
    }
    if let Some(vendor) = vendor(root)?.filter(|vendor| vendor != "GenuineIntel") {
        return Err(PebsError::OtherVendor { vendor });
    }
    let (mut found, mut why_not) = (Vec::new(), None);
    for name in present {
        match PebsPmu::read(root, name) {
            Ok(pmu) => found.push(pmu),
            // A file that can't be read is no property of the PMU.
            Err(error @ PebsError::Files(_)) => return Err(error),
            Err(error) => why_not = why_not.or(Some(error)),
        }
    }
    match why_not {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// The vendor of the CPU; `None` if `/proc/cpuinfo` does not say.
fn vendor(root: &SysRoot) -> Result<Option<String>, SysRootError> {
    // The file has some kilobytes a CPU; the vendor stands in its second line.
    use std::io::Read as _;
    let path = root.proc("cpuinfo");
    let mut head = Vec::new();
    match crate::sysroot::open(&path) {
        Ok(file) => file
            .take(512)
            .read_to_end(&mut head)
            .map_err(|source| SysRootError::Read { path, source })?,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&head);
    let line = text.lines().find(|line| line.starts_with("vendor_id"));
    let vendor = line.and_then(|line| line.split_once(':'));
    Ok(vendor.map(|(_, vendor)| vendor.trim().to_owned()))
}

impl PebsPmu {
    fn read(root: &SysRoot, name: &str) -> Result<Self, PebsError> {
        let folder = root.sys("bus/event_source/devices").join(name);
        let pmu = || name.to_owned();
        // Kernels before 4.14 say nothing of it; what they then refuse shows when the event is opened.
        let max_precise = read_value_optional(&folder.join("caps/max_precise"))?.unwrap_or(2);
        if max_precise == 0 {
            return Err(PebsError::NotPrecise { pmu: pmu() });
        }
        let generation = read_optional(&folder.join("caps/pmu_name"))?.unwrap_or_default();
        let formats = Formats::read(&folder.join("format"))?;
        let event = |file: &str| -> Result<Option<Encoding>, SysRootError> {
            let path = folder.join("events").join(file);
            let Some(text) = read_optional(&path)? else {
                return Ok(None);
            };
            let encoding = formats.encode(&text);
            encoding.map(Some).map_err(|error| error.in_file(&path))
        };
        let known = Known::of(&generation, name);
        let raw = |code: Option<u64>| code.map(Encoding::raw);
        let or_known = |read: Option<Encoding>, code| read.or(raw(code));
        let loads_aux = event("mem-loads-aux")?;
        let loads = event("mem-loads")?;
        // Known codes come whole or not at all: with the kernel's loads goes the kernel's aux event.
        let loads_aux = match &loads {
            Some(_) => loads_aux,
            None => or_known(loads_aux, known.loads_aux),
        };
        let pmu = Self {
            kind: read_value(&folder.join("type"))?,
            loads: or_known(loads, known.loads),
            loads_aux,
            l3_misses: raw(known.l3_misses),
            stores: or_known(event("mem-stores")?, known.stores),
            name: pmu(),
            max_precise,
            generation,
        };
        if pmu.accesses().next().is_none() {
            let Self {
                name: pmu,
                generation,
                ..
            } = pmu;
            return Err(PebsError::NoEvents { pmu, generation });
        }
        Ok(pmu)
    }

    fn encoding(&self, access: Access) -> Option<&Encoding> {
        match access {
            Access::Loads => self.loads.as_ref(),
            Access::L3Misses => self.l3_misses.as_ref(),
            Access::Stores => self.stores.as_ref(),
        }
    }

    /// What it can sample.
    pub fn accesses(&self) -> impl Iterator<Item = Access> {
        [Access::Loads, Access::L3Misses, Access::Stores]
            .into_iter()
            .filter(|&access| self.encoding(access).is_some())
    }

    /// The event that samples these accesses of user mode with their address, data source and thread,
    /// if the PMU has one; with the group's leader where the CPU needs it.
    #[must_use]
    pub fn event(&self, access: Access, settings: &PebsSettings) -> Option<ThreadEvent> {
        let mut encoding = *self.encoding(access)?;
        if access == Access::Loads {
            encoding.set_latency(settings.latency_cycles);
        }
        // No time: with a clock of our choice it would cost an interrupt for each record, where the
        // hardware else collects many (intel_pmu_large_pebs_flags).
        let mut sample_type =
            abi::PERF_SAMPLE_TID | abi::PERF_SAMPLE_ADDR | abi::PERF_SAMPLE_DATA_SRC;
        if settings.physical {
            sample_type |= abi::PERF_SAMPLE_PHYS_ADDR;
        }
        let spec = |name: &str, encoding: Encoding| EventSpec {
            kind: self.kind,
            config1: encoding.config1,
            config2: encoding.config2,
            rate: Rate::Period(settings.period),
            sample_type: u64::from(sample_type),
            // 2 asks for no skid. 3 asks for evenly spread samples too and has a least period of 128.
            precise_ip: self.max_precise.min(2),
            exclude_kernel: true,
            exclude_hv: true,
            // A guest's accesses don't come anyway, and where KVM hands the PMU on, an event that
            // counts guests is refused.
            exclude_guest: true,
            ..EventSpec::tracepoint(
                &format!("{}/{name}/", self.name),
                encoding.config,
                settings.data_pages,
            )
        };
        let (name, leader) = match access {
            Access::Loads => ("mem-loads", self.loads_aux),
            Access::L3Misses => ("l3-misses", None),
            Access::Stores => ("mem-stores", None),
        };
        Some(ThreadEvent {
            leader: leader.map(|aux| spec("mem-loads-aux", aux)),
            event: spec(name, encoding),
        })
    }
}

/// Codes of a generation (event + umask << 8), for what the kernel does not name.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    loads: Option<u64>,
    loads_aux: Option<u64>,
    l3_misses: Option<u64>,
    stores: Option<u64>,
}

impl Known {
    /// The codes of a generation by `caps/pmu_name`. Nothing is known of a name that is not listed: a
    /// wrong code counts something else without an error.
    fn of(generation: &str, pmu: &str) -> Self {
        // MEM_TRANS_RETIRED.LOAD_LATENCY, MEM_INST_RETIRED.ALL_STORES, MEM_LOAD_RETIRED.L3_MISS.
        let skylake = Self {
            loads: Some(0x01cd),
            loads_aux: None,
            l3_misses: Some(0x20d1),
            stores: Some(0x82d0),
        };
        match (generation, pmu) {
            ("haswell" | "broadwell" | "skylake" | "icelake", "cpu") => skylake,
            // MEM_TRANS_RETIRED.STORE_SAMPLE. The aux event does no harm where it is not needed: kernels
            // before 6.15 call Granite Rapids by its elder's name.
            ("sapphire_rapids", "cpu") => Self {
                loads_aux: Some(0x8203),
                stores: Some(0x02cd),
                ..skylake
            },
            ("granite_rapids", "cpu") => Self {
                stores: Some(0x02cd),
                ..skylake
            },
            // Hybrid parts: the large cores have the same event as a server's; the small ones have none
            // for misses of the L3. What both can sample the kernel has always named.
            (
                "alderlake_hybrid" | "meteorlake_hybrid" | "lunarlake_hybrid"
                | "arrowlake_h_hybrid",
                "cpu_core",
            ) => Self {
                l3_misses: Some(0x20d1),
                ..Self::default()
            },
            _ => Self::default(),
        }
    }
}

/// What a sample says of the access: `PERF_SAMPLE_DATA_SRC`, `union perf_mem_data_src`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataSource(pub u64);

impl DataSource {
    /// Whether it was a load.
    #[must_use]
    pub const fn is_load(self) -> bool {
        self.0 & abi::PERF_MEM_OP_LOAD as u64 != 0
    }

    /// Whether it was a store.
    #[must_use]
    pub const fn is_store(self) -> bool {
        self.0 & abi::PERF_MEM_OP_STORE as u64 != 0
    }
}

/// In what mode the CPU was when it took a sample: the low bits of a record's `misc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuMode {
    /// Host code in user mode: QEMU's, and with it an emulated guest's.
    User,
    /// The host's kernel or a hypervisor below it.
    Kernel,
    /// A guest's code: an address is one of the guest's own address spaces.
    Guest,
    /// The kernel did not say.
    Unknown,
}

impl CpuMode {
    /// Reads `perf_event_header.misc`.
    #[must_use]
    pub fn of(misc: u16) -> Self {
        match u32::from(misc) & abi::PERF_RECORD_MISC_CPUMODE_MASK {
            abi::PERF_RECORD_MISC_USER => Self::User,
            abi::PERF_RECORD_MISC_KERNEL | abi::PERF_RECORD_MISC_HYPERVISOR => Self::Kernel,
            abi::PERF_RECORD_MISC_GUEST_KERNEL | abi::PERF_RECORD_MISC_GUEST_USER => Self::Guest,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests;
