//! `bare-guest`: a guest without an operating system. QEMU starts it as a kernel (`-kernel`), by
//! PVH.
//!
//! An operating system in a guest interrupts it 250 times a second, and in an emulated host each
//! interrupt costs exits, an injection and page walks in software. This program has the machine for
//! itself: it is entered in 32-bit mode, maps the first 4 GiB with pages of 2 MiB, each address to
//! itself, and runs the workload that its command line describes on the memory behind its own
//! image. It polls the serial port, takes the time from the TSC, whose rate `tsc_khz=` on the
//! command line tells, and takes no interrupt except to halt while it is idle.
//!
//! The places of its pages are its own choice, so what it tells of its hot set is exact.

#![no_std]
#![no_main]

mod boot;
mod machine;
mod memory_functions;
mod serial;
mod start_info;
mod traps;

use core::fmt::Display;
use core::panic::PanicInfo;

use lab_guest::{Line, Machine, Work};

use self::machine::{Bare, Exit, exit};
use self::start_info::StartInfo;

/// Where Rust code begins, with the address of what QEMU tells of the machine.
#[unsafe(no_mangle)]
extern "C" fn bare_main(start_info: u32) -> ! {
    traps::install();
    let info = StartInfo::at(start_info);
    let line = info.command_line();
    let mut bare = Bare::new(&info, line);
    match Work::from_command_line(line) {
        Err(error) => fail(&mut bare, &error),
        Ok(work) => {
            let memory = bare.take_memory();
            match lab_guest::live(&mut bare, &work, memory) {
                Ok(()) => exit(Exit::Done),
                Err(trouble) => fail(&mut bare, &trouble),
            }
        }
    }
}

fn fail(bare: &mut Bare, error: &dyn Display) -> ! {
    bare.tell(Line::Error { error });
    exit(Exit::Told)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    serial::tell(Line::Error { error: info });
    exit(Exit::Told)
}
