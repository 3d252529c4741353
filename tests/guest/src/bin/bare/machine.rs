//! The bare machine as a guest's: its clock, its memory, its end.

use core::arch::asm;
use core::convert::Infallible;
use core::ptr;

use lab_guest::{HotSet, Line, Machine, PAGE_BYTES};

use super::{serial, start_info::StartInfo, traps};

/// The working set begins at a huge page, so that huge pages of the host hold no other memory.
const ALIGNMENT: u64 = 2 << 20;
/// Memory above is not mapped.
const MAPPED: u64 = 4 << 30;
/// Where QEMU has the device that ends it (`isa-debug-exit`).
const EXIT_PORT: u16 = 0xf4;
/// Taken where the command line tells no rate, kHz.
const USUAL_TSC_KHZ: u64 = 2_500_000;

/// How a guest ends. QEMU's exit status is twice the number, and one.
#[derive(Clone, Copy)]
pub(crate) enum Exit {
    /// The workload has ended.
    Done = 16,
    /// It could not go on, and said why.
    Told = 17,
    /// Nobody reads what it says.
    NotRead = 18,
}

/// Ends QEMU, or resets the machine where that device is missing.
pub(crate) fn exit(with: Exit) -> ! {
    // SAFETY: the port belongs to a device that ends QEMU, or to none; no memory is touched.
    unsafe {
        asm!("out dx, eax", in("dx") EXIT_PORT, in("eax") with as u32, options(nomem, nostack));
    }
    traps::reset()
}

/// The time stamp counter.
pub(crate) fn tsc() -> u64 {
    // SAFETY: every 64-bit CPU has the instruction, and nobody took it from this privilege level.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// A machine without an operating system.
pub(crate) struct Bare {
    tsc_khz: u64,
    /// The memory behind this program's image.
    base: u64,
    end: u64,
}

impl Bare {
    /// The machine that QEMU describes; the command line tells the TSC's rate.
    pub(crate) fn new(info: &StartInfo, command_line: &str) -> Self {
        unsafe extern "C" {
            static image_end: u8;
        }
        let base = (&raw const image_end as u64).next_multiple_of(ALIGNMENT);
        let told = command_line
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix("tsc_khz=")?.parse().ok());
        serial::open();
        Self {
            tsc_khz: told.filter(|khz| *khz > 0).unwrap_or(USUAL_TSC_KHZ),
            base,
            end: info.memory_end(base).min(MAPPED),
        }
    }

    /// The memory for the working set, once: later it is empty.
    pub(crate) fn take_memory(&mut self) -> &'static mut [u64] {
        let bytes = self.end.saturating_sub(self.base) as usize;
        self.end = self.base;
        // SAFETY: from `base`, behind the image with its stack and tables, to `end` QEMU says that
        // there is memory, and no more than 4 GiB, which are mapped to themselves; it is aligned to
        // 2 MiB; nothing else of this program lies there; the method hands it out once. Any bytes
        // are words.
        unsafe {
            core::slice::from_raw_parts_mut(
                ptr::with_exposed_provenance_mut::<u64>(self.base as usize),
                bytes / PAGE_BYTES * PAGE_BYTES / 8,
            )
        }
    }
}

impl Machine for Bare {
    type Error = Infallible;

    fn micros(&mut self) -> u64 {
        // 2^64 / 1000 ticks last for weeks.
        tsc().wrapping_mul(1000) / self.tsc_khz
    }

    fn tell(&mut self, line: Line<'_>) {
        serial::tell(line);
    }

    fn typed(&mut self) -> Option<u8> {
        serial::typed()
    }

    fn halt(&mut self, micros: u64) {
        traps::halt(micros);
    }

    fn tell_hot(&mut self, _: &[u64], hot: HotSet) -> Result<(), Self::Error> {
        serial::tell(Line::Hot {
            base: self.base,
            hot,
        });
        Ok(())
    }
}
