//! RAM blocks, memory devices and mappings as they are reported, and which block an address lies in.

use crate::addr::{BASE_PAGE, Hva};

/// One row of QEMU's list of RAM blocks (`x-query-ramblock`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRow {
    /// The block's name: may be empty, need not be unique.
    pub name: String,
    /// The page size QEMU gives, in bytes.
    pub page_size: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes reserved.
    pub total: u64,
    /// The address in QEMU; reported since QEMU 8.0.
    pub hva: Option<Hva>,
    /// Whether the guest can't write it; reported since QEMU 8.0.
    pub read_only: bool,
}

/// A device that adds guest RAM at an address of its own (`query-memory-devices`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryDevice {
    /// The first guest-physical address.
    pub gpa: u64,
    /// Bytes of guest-physical addresses that the device covers (for virtio-mem its whole region,
    /// not what is plugged).
    pub len: u64,
    /// Whether parts of it may be unmapped: virtio-mem with dynamic memslots.
    pub has_holes: bool,
}

/// A mapping of the QEMU process (`/proc/PID/maps`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vma {
    /// The first address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
}

/// The block that a probed address lies in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Located {
    /// The row, and where the block begins in QEMU.
    Block { row: usize, start: u64 },
    /// A block that is no guest RAM worth tiering: firmware, option ROM, video memory.
    Excluded,
    /// No block of the list fits.
    Unknown,
}

impl BlockRow {
    /// Whether the block can hold guest RAM at all.
    pub(super) fn is_candidate(&self) -> bool {
        !self.read_only && self.used > 0 && !is_excluded_name(&self.name)
    }

    /// Whether a device owns the block. QEMU puts the device's address before the name
    /// (`0000:00:04.0/shmem0`); the BARs of passed-through devices have no name at all. The machine's
    /// own RAM has a plain name, or a backend's path (`/objects/ram0`).
    pub(super) fn is_of_device(&self) -> bool {
        let name = self.name.strip_prefix("/objects/").unwrap_or(&self.name);
        name.is_empty() || name.contains('/')
    }
}

/// Firmware, ROM images and video memory, by the names QEMU gives them: `pc.bios`, `pc.rom`,
/// `/rom@etc/acpi/tables`, `0000:00:02.0/vga.vram`, `system.flash0`.
fn is_excluded_name(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name);
    name.starts_with("/rom@")
        || last.ends_with(".bios")
        || last.ends_with(".rom")
        || last.ends_with("vram")
        || last.starts_with("system.flash")
}

/// Whether a memory region's name and a block's name speak of the same block. The two lists differ in
/// how much of the path they show: `vmem0` and `0000:00:01.0/vmem0`, `ram0` and `/objects/ram0`.
fn same_name(region: &str, block: &str) -> bool {
    let tail_of = |long: &str, short: &str| {
        !short.is_empty()
            && long
                .strip_suffix(short)
                .is_some_and(|head| head.is_empty() || head.ends_with('/'))
    };
    tail_of(region, block) || tail_of(block, region)
}

/// Finds the block of `hva`, where a region named `region` is mapped. `known` are blocks located before,
/// by row; a row is never given to two places.
pub(super) fn locate(
    rows: &[BlockRow],
    vmas: &[Vma],
    known: &[(usize, u64)],
    hva: u64,
    region: &str,
) -> Located {
    let contains = |start: u64, row: &BlockRow| hva >= start && hva - start < row.total;
    let as_located = |row: usize, start: u64| match rows[row].is_candidate() {
        true => Located::Block { row, start },
        false => Located::Excluded,
    };
    if let Some((row, start)) = rows
        .iter()
        .enumerate()
        .filter_map(|(number, row)| Some((number, row.hva?.0)))
        .chain(known.iter().copied())
        .find(|&(number, start)| contains(start, &rows[number]))
    {
        return as_located(row, start);
    }
    if is_excluded_name(region) {
        return Located::Excluded;
    }
    // Without the HVA column a block begins where its mapping begins. The kernel may have split the
    // mapping since, so neighbours that touch count as one; a block's total must span it exactly.
    let free = || {
        rows.iter().enumerate().filter(|(number, row)| {
            row.hva.is_none()
                && row.is_candidate()
                && known.iter().all(|(taken, _)| taken != number)
        })
    };
    let named = free().filter(|(_, row)| same_name(region, &row.name));
    named
        .chain(free())
        .find_map(|(number, row)| Some((number, mapping_start(vmas, hva, row.total)?)))
        .map_or(Located::Unknown, |(row, start)| as_located(row, start))
}

/// The start of the mapping, or run of touching mappings, that holds `hva` and is `len` bytes long.
fn mapping_start(vmas: &[Vma], hva: u64, len: u64) -> Option<u64> {
    let home = vmas
        .iter()
        .position(|vma| (vma.start..vma.end).contains(&hva))?;
    let len = len.next_multiple_of(BASE_PAGE);
    let mut first = home;
    loop {
        let start = vmas[first].start;
        let wanted = start.checked_add(len)?;
        // The single mapping first, then with ever more neighbours below; upward as far as they touch.
        let mut last = first;
        while vmas[last].end < wanted
            && vmas
                .get(last + 1)
                .is_some_and(|next| next.start == vmas[last].end)
        {
            last += 1;
        }
        if vmas[last].end == wanted && wanted > hva {
            return Some(start);
        }
        first = first
            .checked_sub(1)
            .filter(|&below| vmas[below].end == start)?;
    }
}
