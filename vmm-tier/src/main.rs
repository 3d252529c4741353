//! vmm-tier: memory tiering for hosts of KVM/QEMU guests.

mod agent;
mod causes;
mod cli;
mod config;
mod ctl;
mod discover;
mod doctor;
mod duration;
mod host;
mod log;
mod map_cmd;
mod record;
mod replay;
mod size;
mod source;
mod table;
mod trace;

use std::process::ExitCode;

use clap::{Parser, error::ErrorKind};
use tracing_subscriber::EnvFilter;

use crate::{
    cli::{Cli, Command, RunArgs},
    config::{Config, Settings},
};

#[global_allocator]
static ALLOCATOR: tier_sys::alloc::HugePages = tier_sys::alloc::HugePages;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // A wrong value is told in one line, as every other error is.
        Err(error) if error.kind() == ErrorKind::ValueValidation => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            let line = line.strip_prefix("error: ").unwrap_or(line);
            log::complain(format_args!("{line}; see --help"));
            return ExitCode::from(2);
        }
        Err(error) => error.exit(),
    };
    let filter = EnvFilter::try_from_env("VMM_TIER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(log::stderr())
        .with_ansi(false)
        .with_target(false)
        .init();
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) => {
            log::complain(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run(*args),
        Command::Ctl {
            socket,
            command,
            arguments,
        } => ctl::run(&socket, &command, arguments.as_deref()),
        Command::Map { qmp, json } => map_cmd::run(&qmp, json),
        Command::Record(args) => record::run(*args),
        Command::Replay(args) => replay::run(&args),
        Command::Doctor { qmp, json } => doctor::run(qmp.as_deref(), json),
    }
}

fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let config = args
        .config
        .as_deref()
        .map(Config::read)
        .transpose()?
        .unwrap_or_default();
    agent::run(&Settings::new(args, config)?)
}
