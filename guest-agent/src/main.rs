//! The in-guest companion of vmm-tier.
//!
//! `guest-agent run` observes which of the guest's pages are used and sends guest-physical addresses to
//! vmm-tier on the host; `guest-agent report` says what the host can't see of this guest. It changes
//! nothing in the guest, needs no library at run time, and may be killed at any time.

mod agent;
mod args;
mod link;
mod log;
mod report;
mod session;
mod source;

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::Context;
use tier_sys::{process, sysroot::SysRoot};

use crate::args::{Command, USAGE};

fn main() -> ExitCode {
    let command = match Command::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(error) => {
            log::log(format_args!("{error}; see guest-agent --help"));
            return ExitCode::from(2);
        }
    };
    match carry_out(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::log(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn carry_out(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Help => print(USAGE)?,
        Command::Version => print(concat!("guest-agent ", env!("CARGO_PKG_VERSION")))?,
        Command::Report => print(&report::report(Path::new("/"))?)?,
        Command::Run(settings) => {
            let terminate = Arc::new(AtomicBool::new(false));
            for signal in process::ending_signals(&SysRoot::at(Path::new("/"))) {
                signal_hook::flag::register(signal, Arc::clone(&terminate))
                    .context("signals can't be taken")?;
            }
            agent::run(&settings, &terminate)?;
        }
    }
    Ok(())
}

/// Writes to the standard output; a reader that has seen enough is no error.
fn print(text: &str) -> io::Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
