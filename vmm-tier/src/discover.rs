//! From a QMP connection to the guest's memory map: QEMU says where its RAM is, the kernel says with
//! which pages.
//!
//! The layout can change while it is being asked for (a DIMM plug emits no event), so blocks and devices
//! are read again afterwards, and if they differ everything starts over. Never asks `info mtree -f`: it
//! would pin unplugged memory until QEMU exits.
//!
//! The kernel tells page sizes in `smaps`, which walks the page tables of the whole process under its
//! mmap lock. So `smaps` is read for mappings that were not seen before ([`KnownMappings`]); whether
//! there are any is read from `maps`, which walks nothing.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    time::{Duration, Instant},
};

use qmp::{
    Client,
    client::ExecuteError,
    commands::{self, Command, HumanMonitorCommand, QomGet, QueryMemoryDevices, QueryRamblock},
    hmp::{self, Gpa2Hva, ParseGpa2HvaError, ParseRamBlocksError},
};
use tier_core::{
    addr::{Gpa, Hva},
    map::{
        self, Backing, BlockRow, DiscoverError as ProbingError, GpaProbe, GuestMemoryMap, Inputs,
        MapError, MemoryDevice, Probe, RamBlock, Vma,
    },
};
use tier_sys::{
    constraints::Device,
    maps::{self, Mapping},
    process,
    smaps::{self, MappingMemory},
    sysroot::{SysRoot, SysRootError},
};

/// How often a layout may change under the discovery before it gives up.
const MAX_ATTEMPTS: u32 = 5;

/// What the kernel said of the mappings of one QEMU process that hold its RAM blocks. A mapping of the
/// same address, file, offset and permissions has the same page size.
#[derive(Debug, Default)]
pub(crate) struct KnownMappings(Vec<MappingMemory>);

/// What earlier discoveries learnt of one QEMU process.
#[derive(Debug, Default)]
pub(crate) struct Known {
    mappings: KnownMappings,
    layout: Option<KnownLayout>,
}

impl Known {
    /// The sizes of the hugetlb pages that were seen, each with the filesystems that hold them.
    pub(crate) fn pools(&self) -> Vec<(u64, Vec<Device>)> {
        self.mappings.pools()
    }

    /// The next discovery asks QEMU where everything lies, also if its lists are the same.
    pub(crate) fn doubt_layout(&mut self) {
        self.layout = None;
    }
}

/// What QEMU's lists said, and where everything lay then.
#[derive(Debug)]
struct KnownLayout {
    lists: Layout,
    /// Without the kernel's view.
    map: GuestMemoryMap,
    unmapped: Vec<(String, u64)>,
}

/// A guest's memory map and how it was found.
#[derive(Clone, Debug)]
pub(crate) struct Discovered {
    /// The QEMU process.
    pub(crate) pid: u32,
    /// The map, of generation 1.
    pub(crate) map: GuestMemoryMap,
    /// Addresses that QEMU translated in the last attempt; 0 if the known layout was trusted.
    pub(crate) probes: u32,
    /// Attempts; more than one if the layout changed meanwhile.
    pub(crate) attempts: u32,
    /// How long it took.
    pub(crate) elapsed: Duration,
    /// Backends that are not, or only partly, in the map (not plugged, or closed by the firmware):
    /// name and bytes.
    pub(crate) unmapped: Vec<(String, u64)>,
    /// The sizes of its hugetlb pages, each with the filesystems that hold them.
    pub(crate) pools: Vec<(u64, Vec<Device>)>,
}

/// Why there is no map.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiscoverError {
    /// QEMU did not answer a command.
    #[error(transparent)]
    Qmp(#[from] ExecuteError),
    /// QEMU answered, but not everything within the time that a discovery may take.
    #[error(
        "QEMU's monitor did not answer all questions about the memory map within {} s: it is slow, \
         hangs or is stopped", limit.as_secs()
    )]
    TooSlow {
        /// The time that the discovery was given.
        limit: Duration,
        /// The command that was not answered.
        source: ExecuteError,
    },
    /// QEMU's list of RAM blocks can't be read.
    #[error("QEMU's list of RAM blocks can't be understood")]
    RamBlocks(#[from] ParseRamBlocksError),
    /// QEMU's translation of an address can't be read.
    #[error("QEMU's translation of an address can't be understood")]
    Gpa2Hva(#[from] ParseGpa2HvaError),
    /// The answers do not make a map.
    #[error("QEMU's answers do not make a memory map: {0}")]
    Layout(String),
    /// The layout changed at every attempt.
    #[error(
        "the guest's memory layout changed {MAX_ATTEMPTS} times while it was read: try again when \
         plugging is over"
    )]
    Unsteady,
    /// The kernel's view of QEMU can't be read.
    #[error(
        "the memory of process {pid} can't be looked at: run as root, or with CAP_SYS_PTRACE and \
         CAP_PERFMON"
    )]
    NoPermission {
        /// The process.
        pid: u32,
        /// The file.
        source: SysRootError,
    },
    /// QEMU has ended.
    #[error("the QEMU process {pid} has ended")]
    Gone {
        /// The process.
        pid: u32,
    },
    /// Another trouble with reading `/proc`.
    #[error(transparent)]
    Proc(SysRootError),
    /// The process behind the socket is not the one that has the RAM.
    #[error(
        "process {pid} ({comm}) serves the QMP socket but does not map the guest's RAM at {hva}: \
         give QEMU a -qmp socket that it opens itself (not one handed over by a manager)"
    )]
    WrongProcess {
        /// The process.
        pid: u32,
        /// Its name.
        comm: String,
        /// Where QEMU says the RAM is.
        hva: Hva,
    },
    /// QEMU and the kernel disagree about a block's pages.
    #[error(
        "RAM block '{block}' at {hva}: QEMU says its pages have {qemu} bytes, the kernel {kernel}"
    )]
    PageSize {
        /// The block.
        block: String,
        /// Its address.
        hva: Hva,
        /// QEMU's page size.
        qemu: u64,
        /// The kernel's page size.
        kernel: u64,
    },
}

impl From<MapError> for DiscoverError {
    fn from(error: MapError) -> Self {
        Self::Layout(error.to_string())
    }
}

/// Finds the memory map of the guest behind `client`, waiting for each command as long as the client
/// does.
///
/// # Errors
/// See [`DiscoverError`].
pub(crate) fn discover(client: &Client, root: &SysRoot) -> Result<Discovered, DiscoverError> {
    let monitor = Monitor {
        client,
        deadline: None,
    };
    find(&monitor, root, &mut Known::default())
}

/// Finds the map, waiting for QEMU no longer than `limit` in all. `known` is what earlier calls learnt
/// of the same process: where QEMU's lists are the same, everything lies where it lay.
///
/// # Errors
/// See [`DiscoverError`].
pub(crate) fn discover_within(
    limit: Duration,
    client: &Client,
    root: &SysRoot,
    known: &mut Known,
) -> Result<Discovered, DiscoverError> {
    let deadline = Instant::now() + limit;
    let monitor = Monitor {
        client,
        deadline: Some(deadline),
    };
    find(&monitor, root, known).map_err(|error| match error {
        DiscoverError::Qmp(source @ ExecuteError::TimedOut { .. })
            if Instant::now() >= deadline =>
        {
            DiscoverError::TooSlow { limit, source }
        }
        other => other,
    })
}

fn find(
    monitor: &Monitor<'_>,
    root: &SysRoot,
    known: &mut Known,
) -> Result<Discovered, DiscoverError> {
    let begin = Instant::now();
    let pid = monitor.client.peer().pid;
    let mut layout = Layout::read(monitor)?;
    let Known {
        mappings,
        layout: known,
    } = known;
    if let Some(known) = known.as_ref().filter(|known| known.lists == layout) {
        return Ok(Discovered {
            pid,
            map: with_kernel_view(&known.map, root, pid, mappings)?,
            probes: 0,
            attempts: 1,
            elapsed: begin.elapsed(),
            unmapped: known.unmapped.clone(),
            pools: mappings.pools(),
        });
    }
    for attempts in 1..=MAX_ATTEMPTS {
        let inputs = layout.inputs(root, pid)?;
        let found = map::discover(&inputs, 1, &mut Translator(monitor));
        // A translation that fits no block is what a change between two questions looks like.
        let again = Layout::read(monitor)?;
        if again != layout {
            tracing::debug!(pid, attempts, "the memory layout changed while it was read");
            layout = again;
            continue;
        }
        let found = found.map_err(of_probing)?;
        let map = with_kernel_view(&found.map, root, pid, mappings)?;
        *known = Some(KnownLayout {
            lists: layout,
            map: found.map,
            unmapped: found.unmapped.clone(),
        });
        return Ok(Discovered {
            pid,
            map,
            probes: found.probes,
            attempts,
            elapsed: begin.elapsed(),
            unmapped: found.unmapped,
            pools: mappings.pools(),
        });
    }
    Err(DiscoverError::Unsteady)
}

/// QEMU's monitor, and how long it may take for all commands together.
struct Monitor<'a> {
    client: &'a Client,
    deadline: Option<Instant>,
}

impl Monitor<'_> {
    fn execute<C: Command>(&self, command: &C) -> Result<C::Return, ExecuteError> {
        let patience = self.client.command_timeout();
        let left = self.deadline.map_or(patience, |deadline| {
            patience.min(deadline.saturating_duration_since(Instant::now()))
        });
        if left.is_zero() {
            // A command that nobody waits for would only keep QEMU busy.
            return Err(ExecuteError::TimedOut {
                path: self.client.path().to_owned(),
                command: C::NAME.to_owned(),
                after: left,
            });
        }
        self.client.execute_within(command, left)
    }

    /// Gives a line to the human monitor.
    fn hmp(&self, line: String) -> Result<String, ExecuteError> {
        self.execute(&HumanMonitorCommand {
            command_line: line,
            cpu_index: None,
        })
    }
}

fn of_probing(error: ProbingError<DiscoverError>) -> DiscoverError {
    match error {
        ProbingError::Probe { source, .. } => source,
        other => DiscoverError::Layout(other.to_string()),
    }
}

/// What QEMU tells of its RAM: compared before and after probing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layout {
    blocks: Vec<hmp::RamBlock>,
    /// Not the plugged size of a virtio-mem device: that changes all the time and moves nothing.
    devices: Vec<MemoryDevice>,
}

impl Layout {
    fn read(monitor: &Monitor<'_>) -> Result<Self, DiscoverError> {
        let blocks = match monitor.execute(&QueryRamblock) {
            Ok(text) => text.ramblocks()?,
            // Before QEMU 6.2 only the human monitor lists the blocks.
            Err(ref error) if is_unknown_command(error) => {
                hmp::parse_ramblocks(&monitor.hmp("info ramblock".to_owned())?)?
            }
            Err(error) => return Err(error.into()),
        };
        let devices = match monitor.execute(&QueryMemoryDevices) {
            Ok(devices) => {
                let devices = devices.iter().map(|device| memory_device(monitor, device));
                devices
                    .filter_map(Result::transpose)
                    .collect::<Result<_, _>>()?
            }
            // Machines without memory devices may lack the command.
            Err(ref error) if is_unknown_command(error) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { blocks, devices })
    }

    fn inputs(&self, root: &SysRoot, pid: u32) -> Result<Inputs, DiscoverError> {
        let row = |block: &hmp::RamBlock| BlockRow {
            name: block.name.clone(),
            page_size: block.page_size,
            used: block.used,
            total: block.total,
            hva: block.hva.map(Hva),
            read_only: block.read_only.unwrap_or(false),
        };
        let vmas = if self.blocks.iter().all(|block| block.hva.is_some()) {
            Vec::new()
        } else {
            let mappings = maps::read(root, pid, |_| true).map_err(|error| of_proc(pid, error))?;
            mappings
                .iter()
                .map(|mapping| Vma {
                    start: mapping.start.0,
                    end: mapping.end.0,
                })
                .collect()
        };
        Ok(Inputs {
            blocks: self.blocks.iter().map(row).collect(),
            devices: self.devices.clone(),
            vmas,
        })
    }
}

/// A device that adds RAM; `None` for one without an address.
fn memory_device(
    monitor: &Monitor<'_>,
    device: &commands::MemoryDevice,
) -> Result<Option<MemoryDevice>, DiscoverError> {
    let Some((gpa, len)) = device.range() else {
        return Ok(None);
    };
    let has_holes = match device {
        commands::MemoryDevice::VirtioMem(device) => has_holes(monitor, device.id.as_deref())?,
        _ => false,
    };
    Ok(Some(MemoryDevice {
        gpa,
        len,
        has_holes,
    }))
}

/// Whether a virtio-mem device has dynamic memslots.
fn has_holes(monitor: &Monitor<'_>, id: Option<&str>) -> Result<bool, DiscoverError> {
    // Without an id it can't be asked for; looking for holes that are not there costs a little time.
    let Some(id) = id else {
        return Ok(true);
    };
    let path = format!("/machine/peripheral/{id}");
    match monitor.execute(&QomGet::new(path, "dynamic-memslots")) {
        Ok(value) => Ok(value.as_bool().unwrap_or(true)),
        // Before QEMU 8.2 there is no such property.
        Err(error) if error.refusal().is_some() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_unknown_command(error: &ExecuteError) -> bool {
    error
        .refusal()
        .is_some_and(|refusal| refusal.class == qmp::ErrorClass::CommandNotFound)
}

fn of_proc(pid: u32, error: SysRootError) -> DiscoverError {
    if error.is_process_gone() {
        return DiscoverError::Gone { pid };
    }
    let denied = error.errno().map(std::io::Error::from_raw_os_error);
    if denied.is_some_and(|error| error.kind() == ErrorKind::PermissionDenied) {
        return DiscoverError::NoPermission { pid, source: error };
    }
    DiscoverError::Proc(error)
}

/// Translates addresses through the human monitor.
struct Translator<'a>(&'a Monitor<'a>);

impl GpaProbe for Translator<'_> {
    type Error = DiscoverError;

    fn gpa_to_hva(&mut self, gpa: Gpa) -> Result<Probe, DiscoverError> {
        let answer = self.0.hmp(format!("gpa2hva {:#x}", gpa.0))?;
        Ok(match hmp::parse_gpa2hva(&answer)? {
            Gpa2Hva::Mapped { hva, region } => Probe::Mapped {
                hva: Hva(hva),
                region_name: region,
            },
            Gpa2Hva::Unmapped => Probe::Unmapped,
            Gpa2Hva::NotRam => Probe::NotRam,
        })
    }
}

/// The same map with what the kernel knows of its blocks.
fn with_kernel_view(
    map: &GuestMemoryMap,
    root: &SysRoot,
    pid: u32,
    known: &mut KnownMappings,
) -> Result<GuestMemoryMap, DiscoverError> {
    let blocks = map.blocks();
    known
        .update(root, pid, |mapping| {
            blocks.iter().any(|block| mapping.contains(block.hva))
        })
        .map_err(|error| of_proc(pid, error))?;
    let seen = blocks
        .iter()
        .map(|block| match kernel_view(block, &known.0) {
            Err(Disagreement::NotMapped) => {
                let comm = process::stat(root, pid)
                    .map(|stat| stat.comm)
                    .unwrap_or_default();
                Err(DiscoverError::WrongProcess {
                    pid,
                    comm,
                    hva: block.hva,
                })
            }
            Err(Disagreement::PageSize(kernel)) => Err(DiscoverError::PageSize {
                block: block.name.clone(),
                hva: block.hva,
                qemu: block.page_size,
                kernel,
            }),
            Ok(backing) => Ok(RamBlock {
                backing: Some(backing),
                ..block.clone()
            }),
        });
    let blocks = seen.collect::<Result<_, _>>()?;
    Ok(GuestMemoryMap::new(
        map.generation(),
        blocks,
        map.ranges().to_vec(),
    )?)
}

impl KnownMappings {
    /// Forgets the mappings that are gone or changed, and learns of those that are `wanted` and new.
    fn update(
        &mut self,
        root: &SysRoot,
        pid: u32,
        wanted: impl Fn(&Mapping) -> bool,
    ) -> Result<(), SysRootError> {
        let now = maps::read(root, pid, &wanted)?;
        self.0.retain(|known| now.contains(&known.mapping));
        if now.iter().all(|mapping| self.has(mapping)) {
            return Ok(());
        }
        let is_new = |mapping: &Mapping| wanted(mapping) && !self.has(mapping);
        let new = smaps::read(root, pid, is_new)?;
        self.0.extend(new);
        Ok(())
    }

    fn pools(&self) -> Vec<(u64, Vec<Device>)> {
        let mut pools = BTreeMap::<u64, BTreeSet<Device>>::new();
        for known in self.0.iter().filter(|known| known.is_hugetlb) {
            let devices = pools.entry(known.kernel_page_size).or_default();
            devices.insert(known.mapping.device);
        }
        let pools = pools.into_iter();
        pools
            .map(|(page_size, devices)| (page_size, devices.into_iter().collect()))
            .collect()
    }

    fn has(&self, mapping: &Mapping) -> bool {
        self.0.iter().any(|known| known.mapping == *mapping)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Disagreement {
    NotMapped,
    PageSize(u64),
}

/// What backs a block, if the kernel agrees with QEMU about it.
fn kernel_view(block: &RamBlock, memory: &[MappingMemory]) -> Result<Backing, Disagreement> {
    let home = memory
        .iter()
        .find(|memory| memory.mapping.contains(block.hva));
    let home = home.ok_or(Disagreement::NotMapped)?;
    if home.kernel_page_size != block.page_size {
        return Err(Disagreement::PageSize(home.kernel_page_size));
    }
    let name = home.mapping.name.as_str();
    Ok(if home.is_hugetlb {
        Backing::Hugetlb
    } else if name.is_empty() || name.starts_with('[') {
        Backing::Anonymous
    } else if ["/memfd:", "/dev/shm/", "/dev/zero"]
        .iter()
        .any(|start| name.starts_with(start))
    {
        Backing::Shmem
    } else {
        Backing::File
    })
}
