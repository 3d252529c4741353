//! The in-guest companion of vmm-tier.
//!
//! `guest-agent run` observes which of the guest's pages are used and sends guest-physical addresses to
//! vmm-tier on the host; `guest-agent report` says what the host can't see of this guest. It changes
//! nothing in the guest, needs no library at run time, and may be killed at any time.

mod agent;
mod args;
mod link;
mod report;
mod session;
mod source;

use std::{
    path::Path,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::Context;

use crate::args::{Command, USAGE};

fn main() -> ExitCode {
    let command = match Command::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("guest-agent: {error}; see guest-agent --help");
            return ExitCode::from(2);
        }
    };
    match carry_out(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Help => println!("{USAGE}"),
        Command::Version => println!("guest-agent {}", env!("CARGO_PKG_VERSION")),
        Command::Report => println!("{}", report::report(Path::new("/"))?),
        Command::Run(settings) => {
            let terminate = Arc::new(AtomicBool::new(false));
            for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
                signal_hook::flag::register(signal, Arc::clone(&terminate))
                    .context("signals can't be taken")?;
            }
            agent::run(&settings, &terminate)?;
        }
    }
    Ok(())
}
