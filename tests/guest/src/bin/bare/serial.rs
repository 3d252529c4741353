//! The first serial port (16550A), by polling.

use core::arch::asm;
use core::fmt::{self, Write};

use lab_guest::Line;

use super::machine::{Exit, exit, tsc};

const DATA: u16 = 0x3f8;
const FIFO_CONTROL: u16 = DATA + 2;
const LINE_STATUS: u16 = DATA + 5;
/// Line status: a byte has come.
const RECEIVED: u8 = 1;
/// Line status: what was written last is on its way.
const SENT: u8 = 1 << 5;
/// Bytes that the port takes at once when it has sent all before.
const FIFO: usize = 16;
/// A port that takes nothing for so many looks and ticks is read by nobody. A tick is a fraction of
/// a nanosecond.
const PATIENCE_LOOKS: u64 = 20_000;
const PATIENCE_TICKS: u64 = 30_000_000_000;

/// Tells a line.
pub(crate) fn tell(line: Line<'_>) {
    // The port has no error that it could tell.
    let _ = writeln!(Port { room: 0 }, "{line}");
}

/// Switches the port's buffers on, and ends the line that a reset cut off.
pub(crate) fn open() {
    write(FIFO_CONTROL, 1);
    // The port has no error that it could tell.
    let _ = Port { room: 0 }.write_str("\n");
}

/// A byte that has come.
pub(crate) fn typed() -> Option<u8> {
    (read(LINE_STATUS) & RECEIVED != 0).then(|| read(DATA))
}

struct Port {
    /// Bytes that can be written before the port must be asked again. Asking leaves the guest.
    room: usize,
}

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.room == 0 {
                await_sent();
                self.room = FIFO;
            }
            write(DATA, byte);
            self.room -= 1;
        }
        Ok(())
    }
}

/// Waits until the port takes bytes; ends the guest if nobody reads it.
fn await_sent() {
    let (began, mut looks) = (tsc(), 0);
    while read(LINE_STATUS) & SENT == 0 {
        looks += 1;
        if looks > PATIENCE_LOOKS && tsc().wrapping_sub(began) > PATIENCE_TICKS {
            exit(Exit::NotRead);
        }
        core::hint::spin_loop();
    }
}

fn read(port: u16) -> u8 {
    let value: u8;
    // SAFETY: reading a register of the serial port changes nothing but the port's own state; no
    // memory is touched.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags));
    }
    value
}

fn write(port: u16, value: u8) {
    // SAFETY: writing to a register of the serial port changes nothing but the port's own state; no
    // memory is touched.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
}
