//! Exceptions, which end the guest with a line, and the one interrupt: the timer that ends a halt.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::fmt;

use lab_guest::Line;

use super::machine::{Exit, exit};
use super::serial;

const VECTORS: usize = 256;
const EXCEPTIONS: usize = 32;
/// The code segment of `boot.rs`.
const CODE_SEGMENT: u16 = 8;
const TIMER_VECTOR: u32 = 0x20;

// Registers of the local APIC in x2APIC mode (AMD64 manual, volume 2, 16.11).
const APIC_BASE: u32 = 0x1b;
const APIC_SPURIOUS: u32 = 0x80f;
const APIC_TIMER: u32 = 0x832;
const APIC_TIMER_COUNT: u32 = 0x838;
const APIC_TIMER_DIVIDE: u32 = 0x83e;
/// KVM's APIC timer counts nanoseconds (`APIC_BUS_CYCLE_NS`, arch/x86/kvm/lapic.h) when it divides
/// by 1.
const TICKS_A_MICROSECOND: u64 = 1000;
const DIVIDE_BY_1: u64 = 0xb;

/// A gate of the interrupt descriptor table.
#[repr(C)]
#[derive(Clone, Copy)]
struct Gate {
    offset_low: u16,
    segment: u16,
    flags: u16,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

#[repr(C, align(16))]
struct Table(UnsafeCell<[Gate; VECTORS]>);

// SAFETY: there is one CPU, and only `install` writes to the table, before any trap can happen.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new(
    [Gate {
        offset_low: 0,
        segment: 0,
        flags: 0,
        offset_middle: 0,
        offset_high: 0,
        reserved: 0,
    }; VECTORS],
));

#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

// Each exception gets 16 bytes: a number, below it an error code, which the CPU pushes for some
// only. The timer's handler may be entered once more at any time, for the emulator delivers an
// interrupt twice now and then: it keeps all registers, and telling the APIC twice does no harm.
global_asm!(
    ".pushsection .text.traps, \"ax\"",
    ".balign 16",
    "exception_stubs:",
    ".set vector, 0",
    ".rept 32",
    ".balign 16",
    ".if !((0x60227d00 >> vector) & 1)",
    "push 0",
    ".endif",
    "push vector",
    "jmp exception",
    ".set vector, vector + 1",
    ".endr",
    ".balign 16",
    "exception:",
    "mov rdi, [rsp]",
    "mov rsi, [rsp + 8]",
    "mov rdx, [rsp + 16]",
    "mov rcx, cr2",
    "and rsp, -16",
    "call bare_exception",
    "ud2",
    ".balign 16",
    "timer_stub:",
    "push rax",
    "push rcx",
    "push rdx",
    "xor eax, eax",
    "xor edx, edx",
    "mov ecx, 0x80b",
    "wrmsr",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "iretq",
    ".popsection",
);

unsafe extern "C" {
    static exception_stubs: u8;
    static timer_stub: u8;
}

/// Fills the table of interrupts and sets up the timer's, which stays off until [`halt`].
pub(crate) fn install() {
    let exceptions = &raw const exception_stubs as u64;
    let timer = &raw const timer_stub as u64;
    // SAFETY: one CPU, and no trap handler reads the table while it is written: interrupts are off.
    let table = unsafe { &mut *TABLE.0.get() };
    for (vector, gate) in table.iter_mut().enumerate() {
        let handler = if vector < EXCEPTIONS {
            exceptions + 16 * vector as u64
        } else {
            timer
        };
        *gate = Gate {
            offset_low: handler as u16,
            segment: CODE_SEGMENT,
            // Present, an interrupt gate: interrupts stay off in the handler.
            flags: 0x8e00,
            offset_middle: (handler >> 16) as u16,
            offset_high: (handler >> 32) as u32,
            reserved: 0,
        };
    }
    load(&TablePointer {
        limit: (size_of::<[Gate; VECTORS]>() - 1) as u16,
        base: TABLE.0.get() as u64,
    });
    if has_x2apic() {
        // Bits 10 and 11: x2APIC, enabled.
        write_msr(APIC_BASE, read_msr(APIC_BASE) | 3 << 10);
        // Bit 8: enabled; spurious interrupts come as vector 255.
        write_msr(APIC_SPURIOUS, 0x1ff);
        write_msr(APIC_TIMER_DIVIDE, DIVIDE_BY_1);
        write_msr(APIC_TIMER, TIMER_VECTOR.into());
    }
}

/// Halts the CPU for so long, or spins for a moment where it has no timer.
pub(crate) fn halt(micros: u64) {
    if !has_x2apic() {
        core::hint::spin_loop();
        return;
    }
    let ticks = micros
        .saturating_mul(TICKS_A_MICROSECOND)
        .min(u32::MAX.into());
    write_msr(APIC_TIMER_COUNT, ticks);
    // SAFETY: the table of interrupts is loaded and its handlers keep all registers; the first
    // instruction leaves the red zone of the interrupted function alone; interrupts are off again
    // afterwards. `sti` lets the `hlt` begin before an interrupt comes, so none is missed.
    unsafe { asm!("sub rsp, 128", "sti", "hlt", "cli", "add rsp, 128") }
}

/// Resets the machine: an exception without a table to handle it is the way that needs no device.
pub(crate) fn reset() -> ! {
    load(&TablePointer { limit: 0, base: 0 });
    loop {
        // SAFETY: the exception finds no handler and nor does that fault: the CPU shuts down, QEMU
        // resets or ends.
        unsafe { asm!("ud2") }
    }
}

#[unsafe(no_mangle)]
extern "C" fn bare_exception(vector: u64, code: u64, at: u64, address: u64) -> ! {
    struct Exception(u64, u64, u64, u64);
    impl fmt::Display for Exception {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Self(vector, code, at, address) = self;
            write!(
                f,
                "exception {vector}, code {code:#x}, at {at:#x}, CR2 {address:#x}"
            )
        }
    }
    let error = &Exception(vector, code, at, address);
    serial::tell(Line::Error { error });
    exit(Exit::Told)
}

fn has_x2apic() -> bool {
    // SAFETY: every 64-bit CPU has the instruction and this leaf. Newer compilers know that it is
    // safe.
    #[allow(unused_unsafe)]
    let leaf = unsafe { core::arch::x86_64::__cpuid(1) };
    leaf.ecx & 1 << 21 != 0
}

fn load(pointer: &TablePointer) {
    // SAFETY: the pointer is read once; the table that it names stays for ever, or is empty on the
    // way to a reset.
    unsafe { asm!("lidt [{}]", in(reg) pointer, options(readonly, nostack, preserves_flags)) }
}

fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: only registers that every CPU with an x2APIC has are read; reading has no effect.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

fn write_msr(register: u32, value: u64) {
    // SAFETY: only registers of the local APIC are written, with values that its manual allows; no
    // memory is touched.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags));
    }
}
