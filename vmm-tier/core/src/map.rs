//! The guest memory map: which guest-physical addresses are RAM, and where QEMU maps them.
//!
//! A map is a value: it is made by [`discover`] (or from parts, checked), never changed, and replaced
//! by a newer one when the guest's layout changes. [`GuestMemoryMap::generation`] tells maps apart, so
//! that observations made under an old map can be recognised.
//!
//! Addresses below 1 MiB are never in a map: firmware rewrites that window at run time, and it is too
//! small to matter.

mod blocks;
mod check;
mod probe;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::addr::{Gpa, Hva};

pub use self::{
    blocks::{BlockRow, MemoryDevice, Vma},
    check::MapError,
    probe::{DiscoverError, Discovery, GpaProbe, Inputs, MAX_PROBES, Probe, discover},
};

/// Where guest-physical RAM worth tiering begins.
pub const LOWEST_GPA: u64 = 1 << 20;
/// The most ranges a map may have: QEMU allows 256 DIMM slots and 128 NUMA nodes, each in few pieces.
pub const MAX_RANGES: usize = 1024;

/// The place of a RAM block in [`GuestMemoryMap::blocks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockIndex(pub u32);

/// What backs a RAM block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backing {
    /// Private anonymous memory.
    Anonymous,
    /// Memory shared through a memfd or a file on tmpfs.
    Shmem,
    /// Pages of a hugetlb pool, private or shared.
    Hugetlb,
    /// A file on another file system.
    File,
}

impl Backing {
    /// What people call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Shmem => "shared",
            Self::Hugetlb => "hugetlb",
            Self::File => "file",
        }
    }
}

/// A piece of memory that QEMU mapped for the guest ("RAM block" in QEMU's words).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamBlock {
    /// QEMU's name of the block. May be empty, and may change while the block is in use: identify
    /// blocks by address.
    pub name: String,
    /// The address of the block's first byte in QEMU.
    pub hva: Hva,
    /// Bytes in use: less than `total` for a block that can be resized.
    pub used: u64,
    /// Bytes reserved.
    pub total: u64,
    /// The size of the pages that the kernel maps the block with, in bytes. 4096 also for memory
    /// that may hold transparent huge pages.
    pub page_size: u64,
    /// What backs the block, where known.
    pub backing: Option<Backing>,
}

/// A run of guest-physical addresses that is contiguous in QEMU too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRange {
    /// The first guest-physical address.
    pub gpa: Gpa,
    /// The length in bytes.
    pub len: u64,
    /// The RAM block.
    pub block: BlockIndex,
    /// Where the range begins in the block, in bytes.
    pub offset: u64,
    /// The address of the first byte in QEMU: the block's address plus `offset`.
    pub hva: Hva,
}

impl MapRange {
    /// The guest-physical address after the last.
    #[must_use]
    pub fn gpa_end(&self) -> u64 {
        // Checked when the map was made.
        self.gpa.0 + self.len
    }
}

/// A run of pages in QEMU that hold guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HvaRange {
    /// The first byte, a multiple of `page_size`.
    pub start: Hva,
    /// The length in bytes, a multiple of `page_size`.
    pub len: u64,
    /// The size of the kernel's pages in this run, in bytes.
    pub page_size: u64,
    /// The RAM block.
    pub block: BlockIndex,
}

/// A piece of the HVA → GPA index: disjoint, sorted by `start`.
#[derive(Clone, Copy, Debug)]
struct Segment {
    start: u64,
    end: u64,
    range: usize,
}

/// The guest's RAM: ranges sorted by guest-physical address, without overlap, over RAM blocks.
#[derive(Clone, Debug)]
pub struct GuestMemoryMap {
    generation: u64,
    blocks: Vec<RamBlock>,
    ranges: Vec<MapRange>,
    by_hva: Vec<Segment>,
}

impl GuestMemoryMap {
    /// Makes a map from its parts; the ranges may come in any order.
    ///
    /// # Errors
    /// If the parts contradict each other: see [`MapError`].
    pub fn new(
        generation: u64,
        blocks: Vec<RamBlock>,
        mut ranges: Vec<MapRange>,
    ) -> Result<Self, MapError> {
        check::blocks(&blocks)?;
        if ranges.len() > MAX_RANGES {
            return Err(MapError::TooManyRanges {
                count: ranges.len(),
            });
        }
        ranges.sort_by_key(|range| range.gpa.0);
        for range in &ranges {
            check::range(range, &blocks)?;
        }
        if let Some(pair) = ranges
            .windows(2)
            .find(|pair| pair[0].gpa_end() > pair[1].gpa.0)
        {
            return Err(MapError::RangesOverlap { gpa: pair[1].gpa.0 });
        }
        let by_hva = index_by_hva(&ranges);
        Ok(Self {
            generation,
            blocks,
            ranges,
            by_hva,
        })
    }

    /// The number of this map among the maps of the guest: it grows when the layout changes.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The RAM blocks.
    #[must_use]
    pub fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    /// The ranges, sorted by guest-physical address.
    #[must_use]
    pub fn ranges(&self) -> &[MapRange] {
        &self.ranges
    }

    /// The block that a range of this map lies in.
    ///
    /// # Panics
    /// If the index is not of this map.
    #[must_use]
    pub fn block(&self, index: BlockIndex) -> &RamBlock {
        &self.blocks[index.0 as usize]
    }

    /// Where QEMU maps a guest-physical address, and the range it lies in.
    #[must_use]
    pub fn gpa_to_hva(&self, gpa: Gpa) -> Option<(Hva, &MapRange)> {
        let after = self.ranges.partition_point(|range| range.gpa.0 <= gpa.0);
        let range = &self.ranges[after.checked_sub(1)?];
        let offset = gpa.0 - range.gpa.0;
        (offset < range.len).then(|| (Hva(range.hva.0 + offset), range))
    }

    /// The guest-physical address of a byte in QEMU, and the range it lies in. Where the guest sees
    /// the byte at several addresses, the lowest.
    #[must_use]
    pub fn hva_to_gpa(&self, hva: Hva) -> Option<(Gpa, &MapRange)> {
        let after = self
            .by_hva
            .partition_point(|segment| segment.start <= hva.0);
        let segment = self.by_hva[after.checked_sub(1)?];
        let range = &self.ranges[segment.range];
        (hva.0 < segment.end).then(|| (Gpa(range.gpa.0 + (hva.0 - range.hva.0)), range))
    }

    /// The RAM in the guest-physical `start .. end`, in pieces that each lie in one range, by rising
    /// address.
    pub fn pieces(&self, start: u64, end: u64) -> impl Iterator<Item = MapRange> {
        let end = end.max(start);
        let first = self
            .ranges
            .partition_point(|range| range.gpa_end() <= start);
        self.ranges[first..]
            .iter()
            .take_while(move |range| range.gpa.0 < end)
            .map(move |range| {
                let from = range.gpa.0.max(start);
                let skipped = from - range.gpa.0;
                MapRange {
                    gpa: Gpa(from),
                    len: range.gpa_end().min(end) - from,
                    block: range.block,
                    offset: range.offset + skipped,
                    hva: Hva(range.hva.0 + skipped),
                }
            })
            .filter(|piece| piece.len > 0)
    }

    /// The pages of QEMU that hold guest RAM, sorted by address: each page once, even if the guest
    /// sees it at several addresses, and rounded outward to whole pages of the block (a 2 MiB page
    /// that begins below the guest's first MiB is included whole).
    #[must_use]
    pub fn unique_hva_ranges(&self) -> Vec<HvaRange> {
        let mut out: Vec<HvaRange> = Vec::new();
        for segment in &self.by_hva {
            let index = self.ranges[segment.range].block;
            let page_size = self.block(index).page_size;
            let start = segment.start & !(page_size - 1);
            let end = segment.end.next_multiple_of(page_size);
            match out.last_mut() {
                Some(last) if last.block == index && start <= last.start.0 + last.len => {
                    last.len = last.len.max(end - last.start.0);
                }
                _ => out.push(HvaRange {
                    start: Hva(start),
                    len: end - start,
                    page_size,
                    block: index,
                }),
            }
        }
        out
    }

    /// Guest-physical bytes in the map.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.len).sum()
    }

    /// Whether both maps put the same guest-physical addresses at the same place in QEMU with the
    /// same pages. Generation and names are not compared: QEMU renames blocks in use.
    #[must_use]
    pub fn same_layout(&self, other: &Self) -> bool {
        let place = |map: &Self, range: &MapRange| {
            (
                range.gpa,
                range.len,
                range.hva,
                map.block(range.block).page_size,
            )
        };
        self.ranges.len() == other.ranges.len()
            && self
                .ranges
                .iter()
                .zip(&other.ranges)
                .all(|(a, b)| place(self, a) == place(other, b))
    }

    /// The map that follows this one: `newer` with this map's generation if the layout is the same,
    /// and with the next generation if it changed.
    #[must_use]
    pub fn succeeded_by(&self, newer: Self) -> Self {
        let changed = !self.same_layout(&newer);
        Self {
            generation: self.generation + u64::from(changed),
            ..newer
        }
    }

    /// Whether the parts fit together; holds for every map that [`Self::new`] made.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        Self::new(self.generation, self.blocks.clone(), self.ranges.clone()).is_ok()
    }
}

/// Cuts the ranges, in their order, into disjoint segments: where two overlap in QEMU, the first has it.
fn index_by_hva(ranges: &[MapRange]) -> Vec<Segment> {
    let mut index: Vec<Segment> = Vec::new();
    for (number, range) in ranges.iter().enumerate() {
        let (mut start, end) = (range.hva.0, range.hva.0 + range.len);
        let mut fresh = Vec::new();
        for taken in index
            .iter()
            .filter(|taken| taken.start < end && range.hva.0 < taken.end)
        {
            if start < taken.start {
                fresh.push(Segment {
                    start,
                    end: taken.start,
                    range: number,
                });
            }
            start = start.max(taken.end);
        }
        if start < end {
            fresh.push(Segment {
                start,
                end,
                range: number,
            });
        }
        index.extend(fresh);
        index.sort_by_key(|segment| segment.start);
    }
    index
}
