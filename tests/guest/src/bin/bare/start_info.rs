//! What QEMU tells a PVH guest: the command line and the map of its memory.

use core::ffi::CStr;
use core::ptr;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// Memory that may be used, `XEN_HVM_MEMMAP_TYPE_RAM`.
const RAM: u32 = 1;
/// Longer command lines are cut.
const LONGEST_LINE: usize = 4096;
/// A machine has fewer pieces of memory.
const MOST_PIECES: usize = 64;

/// `struct hvm_start_info`, version 1 (xen/include/public/arch-x86/hvm/start_info.h).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_pieces: u32,
    reserved: u32,
}

/// `struct hvm_memmap_table_entry`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Piece {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

impl StartInfo {
    /// Reads what stands at this physical address.
    pub(crate) fn at(address: u32) -> Self {
        // SAFETY: QEMU hands over the address of a start info below 1 MiB, where nothing of this
        // program stands; all memory below 4 GiB is mapped to itself. An unaligned read demands no
        // alignment, and any bytes are a value.
        unsafe { ptr::read_unaligned(ptr::with_exposed_provenance::<Self>(address as usize)) }
    }

    /// The command line; empty if there is none, or it is no text.
    pub(crate) fn command_line(&self) -> &'static str {
        if self.magic != MAGIC || self.command_line == 0 {
            return "";
        }
        // SAFETY: the bytes stand in memory that is mapped to itself, belong to the firmware's area
        // below 1 MiB and are written by nobody once the guest runs; any byte is a value, and the
        // length stays far below that of memory.
        let bytes = unsafe {
            core::slice::from_raw_parts(
                ptr::with_exposed_provenance::<u8>(self.command_line as usize),
                LONGEST_LINE,
            )
        };
        let text = CStr::from_bytes_until_nul(bytes).unwrap_or_default();
        text.to_str().unwrap_or_default()
    }

    /// The end of the memory that begins at or below this address and holds it; the address itself
    /// if none does.
    pub(crate) fn memory_end(&self, address: u64) -> u64 {
        if self.magic != MAGIC || self.version == 0 {
            return address;
        }
        let pieces = (self.memory_pieces as usize).min(MOST_PIECES);
        let first = ptr::with_exposed_provenance::<Piece>(self.memory_map as usize);
        (0..pieces)
            .map(|n| {
                // SAFETY: QEMU says that so many entries stand there, in memory that is mapped to
                // itself; an unaligned read demands no alignment, and any bytes are a value.
                unsafe { ptr::read_unaligned(first.wrapping_add(n)) }
            })
            .find(|piece| {
                piece.kind == RAM
                    && piece.address <= address
                    && address - piece.address < piece.size
            })
            .map_or(address, |piece| piece.address + piece.size)
    }
}
