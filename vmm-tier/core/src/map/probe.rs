//! Finds the guest's RAM ranges by asking "where is this guest-physical address?".
//!
//! QEMU has no harmless command that lists the ranges (`info mtree -f` keeps unplugged memory pinned
//! until QEMU exits), but it translates single addresses (`gpa2hva`). So every address where RAM can
//! begin on a PC is probed: 1 MiB, 4 GiB, 1 TiB (where RAM goes when it would cover the addresses that
//! AMD reserves for HyperTransport), each memory device, and the end of every range found. From a hit
//! the range's end is found: where the memory device that begins there ends; else by doubling, at most
//! to the end of the block, and where that fails by bisecting. The test is "same region and same
//! distance between host and guest address".
//!
//! QEMU splits a backend into consecutive pieces, so a hole *within* a range of constant distance does
//! not occur above 1 MiB, except between the plugged parts of a virtio-mem device with dynamic memslots,
//! which is looked through slot by slot.
//!
//! A PCI BAR can hold RAM too (ivshmem, a passed-through device) and begin where the guest's RAM ends. So
//! outside memory devices only blocks that belong to no device are taken.

mod slots;

use std::collections::VecDeque;

use crate::addr::{BASE_PAGE, Gpa, HUGE_PAGE, Hva};

use super::{
    BlockIndex, GuestMemoryMap, LOWEST_GPA, MAX_RANGES, MapError, MapRange, RamBlock,
    blocks::{BlockRow, Located, MemoryDevice, Vma, locate},
};

/// The most probes one discovery makes. A guest with 256 DIMMs needs about 520, but one with as many
/// devices that have holes needs more; layouts without memory devices need less than 100.
pub const MAX_PROBES: u32 = 16384;
/// The most RAM blocks or memory devices that are looked at.
const MAX_BLOCKS: usize = 4096;
/// The most mappings: the kernel's default limit for a process (`vm.max_map_count`), and room.
const MAX_VMAS: usize = 1 << 18;

/// What stands at a guest-physical address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// RAM or ROM of the region, mapped in QEMU.
    Mapped {
        /// The address in QEMU.
        hva: Hva,
        /// The name of QEMU's memory region.
        region_name: String,
    },
    /// Nothing.
    Unmapped,
    /// A device.
    NotRam,
}

/// Asks QEMU about single guest-physical addresses.
pub trait GpaProbe {
    /// Why QEMU could not be asked.
    type Error;

    /// What stands at `gpa`.
    ///
    /// # Errors
    /// If QEMU could not be asked; "nothing is there" is an answer, not an error.
    fn gpa_to_hva(&mut self, gpa: Gpa) -> Result<Probe, Self::Error>;
}

/// What is known before probing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// QEMU's RAM blocks.
    pub blocks: Vec<BlockRow>,
    /// Devices that add RAM.
    pub devices: Vec<MemoryDevice>,
    /// QEMU's mappings, sorted; needed only if `blocks` lack addresses.
    pub vmas: Vec<Vma>,
}

/// A map that was found.
#[derive(Clone, Debug)]
pub struct Discovery {
    /// The map. Its blocks have no [`RamBlock::backing`] and QEMU's page size: the caller, who can ask
    /// the kernel, completes them.
    pub map: GuestMemoryMap,
    /// The number of addresses asked for.
    pub probes: u32,
    /// Blocks that can hold guest RAM but are not, or only partly, in the map: name and bytes. A backend
    /// that is not plugged is one; so is RAM under a window that firmware closed.
    pub unmapped: Vec<(String, u64)>,
}

/// Why no map was found.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError<E> {
    /// QEMU could not be asked.
    #[error("can't translate guest-physical {gpa:#x}")]
    Probe {
        /// The address.
        gpa: u64,
        /// Why.
        source: E,
    },
    /// An address lies in no RAM block known: the layout changed since the blocks were listed.
    #[error(
        "guest-physical {gpa:#x} lies at {hva} in region '{region}', which is in no listed RAM block"
    )]
    UnknownMemory {
        /// The guest-physical address.
        gpa: u64,
        /// Where QEMU says it is.
        hva: Hva,
        /// The region's name.
        region: String,
    },
    /// QEMU's answers never end.
    #[error("gave up after {MAX_PROBES} address translations: the answers contradict each other")]
    TooManyProbes,
    /// QEMU reports more than any guest has.
    #[error("{what}: {count} are more than a guest can have")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// There is no RAM above 1 MiB.
    #[error("no guest RAM was found above 1 MiB")]
    NoRam,
    /// The answers do not make a map.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Finds the map of a guest, in at most [`MAX_PROBES`] probes.
///
/// # Errors
/// If QEMU can't be asked, or its answers do not make a map: see [`DiscoverError`]. As the guest's layout
/// can change meanwhile, callers read `inputs` again afterwards and start over if they differ.
pub fn discover<P: GpaProbe>(
    inputs: &Inputs,
    generation: u64,
    probe: &mut P,
) -> Result<Discovery, DiscoverError<P::Error>> {
    for (what, count, most) in [
        ("RAM blocks", inputs.blocks.len(), MAX_BLOCKS),
        ("memory devices", inputs.devices.len(), MAX_BLOCKS),
        ("mappings", inputs.vmas.len(), MAX_VMAS),
    ] {
        if count > most {
            return Err(DiscoverError::TooMany { what, count });
        }
    }
    let mut search = Search::new(inputs, probe);
    search.run()?;
    let Search {
        probes,
        located,
        ranges,
        unmapped,
        ..
    } = search;
    if ranges.is_empty() {
        return Err(DiscoverError::NoRam);
    }
    let blocks = located
        .iter()
        .map(|&(row, start)| ram_block(&inputs.blocks[row], start))
        .collect();
    let map = GuestMemoryMap::new(generation, blocks, ranges)?;
    let unmapped = inputs
        .blocks
        .iter()
        .zip(unmapped)
        .filter(|&(_, bytes)| bytes > 0);
    let unmapped = unmapped
        .map(|(row, bytes)| (row.name.clone(), bytes))
        .collect();
    Ok(Discovery {
        map,
        probes,
        unmapped,
    })
}

fn ram_block(row: &BlockRow, start: u64) -> RamBlock {
    RamBlock {
        name: row.name.clone(),
        hva: Hva(start),
        used: row.used,
        total: row.total,
        page_size: row.page_size,
        backing: None,
    }
}

struct Search<'a, P> {
    inputs: &'a Inputs,
    probe: &'a mut P,
    probes: u32,
    /// Blocks found so far, as row and start; the position is the block's index in the map.
    located: Vec<(usize, u64)>,
    ranges: Vec<MapRange>,
    /// Bytes of each block that may be guest RAM and were not found yet.
    unmapped: Vec<u64>,
}

impl<'a, P: GpaProbe> Search<'a, P> {
    fn new(inputs: &'a Inputs, probe: &'a mut P) -> Self {
        let unmapped = inputs
            .blocks
            .iter()
            .map(|row| if row.is_candidate() { row.used } else { 0 });
        Self {
            inputs,
            probe,
            probes: 0,
            located: Vec::new(),
            ranges: Vec::new(),
            unmapped: unmapped.collect(),
        }
    }

    fn run(&mut self) -> Result<(), DiscoverError<P::Error>> {
        let devices = self.inputs.devices.iter().map(|device| device.gpa);
        let mut candidates: VecDeque<u64> = [LOWEST_GPA]
            .into_iter()
            .chain(devices)
            .chain([4 << 30, 1 << 40])
            .collect();
        while let Some(gpa) = candidates.pop_front() {
            if gpa < LOWEST_GPA || self.range_of(gpa).is_some() {
                continue;
            }
            if self.is_complete() {
                break;
            }
            if let Some(end) = self.try_range(gpa)? {
                candidates.push_front(end);
            }
        }
        let inputs = self.inputs;
        for device in inputs.devices.iter().filter(|device| device.has_holes) {
            self.scan(*device)?;
        }
        Ok(())
    }

    /// Whether all that can be guest RAM was found.
    fn is_complete(&self) -> bool {
        self.unmapped.iter().all(|&bytes| bytes == 0)
    }

    /// The range found that holds `gpa`.
    fn range_of(&self, gpa: u64) -> Option<&MapRange> {
        let mut ranges = self.ranges.iter();
        ranges.find(|range| (range.gpa.0..range.gpa_end()).contains(&gpa))
    }

    /// The memory device that covers `gpa`.
    fn device_of(&self, gpa: u64) -> Option<&MemoryDevice> {
        let covers = |device: &&MemoryDevice| gpa >= device.gpa && gpa - device.gpa < device.len;
        self.inputs.devices.iter().find(covers)
    }

    /// Finds the range that begins at `gpa`; returns its end.
    fn try_range(&mut self, gpa: u64) -> Result<Option<u64>, DiscoverError<P::Error>> {
        let Probe::Mapped { hva, region_name } = self.ask(gpa)? else {
            return Ok(None);
        };
        let (row, start) = match locate(
            &self.inputs.blocks,
            &self.inputs.vmas,
            &self.located,
            hva.0,
            &region_name,
        ) {
            Located::Block { row, start } => (row, start),
            Located::Excluded => return Ok(None),
            Located::Unknown => {
                return Err(DiscoverError::UnknownMemory {
                    gpa,
                    hva,
                    region: region_name,
                });
            }
        };
        if self.device_of(gpa).is_none() && self.inputs.blocks[row].is_of_device() {
            return Ok(None);
        }
        let error = |what| DiscoverError::Map(MapError::Range { gpa, what });
        if !gpa.is_multiple_of(BASE_PAGE) || !hva.0.is_multiple_of(BASE_PAGE) {
            return Err(error("it is not aligned to 4096"));
        }
        let offset = hva.0 - start;
        // The range ends where its block ends at the latest, or where the next known range begins.
        let next = self
            .ranges
            .iter()
            .map(|range| range.gpa.0)
            .filter(|&other| other > gpa)
            .min();
        let room = next.unwrap_or(!(BASE_PAGE - 1)) - gpa;
        let limit = self.inputs.blocks[row]
            .used
            .saturating_sub(offset)
            .min(room)
            & !(BASE_PAGE - 1);
        if limit == 0 {
            return Err(error("it lies past the used part of its block"));
        }
        let len = self.length(gpa, hva, &region_name, limit)?;
        if self.ranges.len() == MAX_RANGES {
            return Err(MapError::TooManyRanges {
                count: MAX_RANGES + 1,
            }
            .into());
        }
        // What stands just before, below 1 MiB, is RAM too, though not in the map.
        let low = if gpa == LOWEST_GPA {
            offset.min(LOWEST_GPA)
        } else {
            0
        };
        self.unmapped[row] = self.unmapped[row].saturating_sub(len + low);
        let block = match self.located.iter().position(|&(located, _)| located == row) {
            Some(index) => index,
            None => {
                self.located.push((row, start));
                self.located.len() - 1
            }
        };
        // MAX_BLOCKS is far below 2^32.
        let block = BlockIndex(u32::try_from(block).unwrap_or(u32::MAX));
        self.ranges.push(MapRange {
            gpa: Gpa(gpa),
            len,
            block,
            offset,
            hva,
        });
        Ok(Some(gpa + len))
    }

    /// The length of the range that begins at `gpa`, at most `limit` (not zero).
    fn length(
        &mut self,
        gpa: u64,
        hva: Hva,
        region: &str,
        limit: u64,
    ) -> Result<u64, DiscoverError<P::Error>> {
        let devices = &self.inputs.devices;
        let begins = devices.iter().find(|device| device.gpa == gpa);
        // A device may cover less than its block (nvdimm keeps labels at the end).
        let whole = begins.filter(|device| !device.has_holes && device.len > 0);
        let whole = whole.filter(|device| device.len.is_multiple_of(BASE_PAGE));
        if let Some(len) = whole.map(|device| device.len.min(limit))
            && self.continues(gpa, hva, region, len - BASE_PAGE)?
            && (len == limit || !self.continues(gpa, hva, region, len)?)
        {
            return Ok(len);
        }
        // The page before `inside` belongs to the range, the page before `outside` does not.
        let mut inside = BASE_PAGE;
        let holed = self.device_of(gpa).filter(|device| device.has_holes);
        let stride = holed.map(|device| slots::stride(device.len));
        let mut outside = stride.unwrap_or(HUGE_PAGE).min(limit);
        while self.continues(gpa, hva, region, outside - BASE_PAGE)? {
            if outside == limit {
                return Ok(limit);
            }
            inside = outside;
            outside = outside.saturating_add(stride.unwrap_or(outside)).min(limit);
        }
        while outside - inside > BASE_PAGE {
            let middle = inside + (((outside - inside) / 2) & !(BASE_PAGE - 1)).max(BASE_PAGE);
            if self.continues(gpa, hva, region, middle - BASE_PAGE)? {
                inside = middle;
            } else {
                outside = middle;
            }
        }
        Ok(inside)
    }

    /// Whether the page `offset` bytes into the range that begins at `gpa` belongs to it.
    fn continues(
        &mut self,
        gpa: u64,
        hva: Hva,
        region: &str,
        offset: u64,
    ) -> Result<bool, DiscoverError<P::Error>> {
        let answer = self.ask(gpa + offset)?;
        Ok(matches!(answer, Probe::Mapped { hva: there, region_name }
            if hva.checked_add(offset) == Some(there) && region_name == region))
    }

    fn ask(&mut self, gpa: u64) -> Result<Probe, DiscoverError<P::Error>> {
        if self.probes == MAX_PROBES {
            return Err(DiscoverError::TooManyProbes);
        }
        self.probes += 1;
        self.probe
            .gpa_to_hva(Gpa(gpa))
            .map_err(|source| DiscoverError::Probe { gpa, source })
    }
}
