//! vmm-tier: memory tiering for hosts of KVM/QEMU guests.

mod agent;
mod config;
mod ctl;
mod discover;
mod doctor;
mod explain;
#[cfg(test)]
mod generated_page;
mod heatmap;
mod host;
mod log;
mod map_cmd;
mod metrics;
#[cfg(feature = "screens")]
mod output_file;
mod pair_journal;
mod policy_journal;
mod pool_drift;
mod record;
mod record_file;
mod reply;
#[cfg(feature = "screens")]
mod report_cmd;
mod report_schema;
mod signals;
mod source;
#[cfg(feature = "screens")]
mod top;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, error::ErrorKind};
use tier_replay::{
    comparison::{self, ReplayArgs},
    what_if::{self, WhatIfArgs},
};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::{
    config::{Config, RunArgs, Settings},
    explain::ExplainArgs,
    heatmap::HeatmapArgs,
    host::HostArgs,
    metrics::MetricsArgs,
    record::RecordArgs,
};

#[global_allocator]
static ALLOCATOR: tier_sys::alloc::HugePages = tier_sys::alloc::HugePages;

/// Memory tiering for hosts of KVM/QEMU guests.
#[derive(Debug, Parser)]
#[command(name = "vmm-tier", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Command {
    /// Tier one QEMU guest: run beside it until it ends
    Run(Box<RunArgs>),
    /// Divide the host's DRAM among the VMs whose agents report here (run --host)
    Host(Box<HostArgs>),
    /// Send one QMP command to an agent's control socket and print the reply
    #[command(
        after_help = "Exit status: 0 on a return, 1 on an error reply or if the agent can't be reached."
    )]
    Ctl {
        /// The agent's control socket
        socket: PathBuf,
        /// The command, such as query-tier
        command: String,
        /// Its arguments, a JSON object
        arguments: Option<String>,
    },
    /// Show the host's DRAM and its VMs in the terminal, live or from a recording
    #[cfg(feature = "screens")]
    #[command(
        after_help = "Exit status: 0 if there was something to show. NO_COLOR=1 switches colours off; ? shows the keys."
    )]
    Top(Box<top::TopArgs>),
    /// Print the figures of running agents as Prometheus reads them
    #[command(
        after_help = "Exit status: 0 if every agent has answered; the figures of those that have are printed in any case."
    )]
    Metrics(MetricsArgs),
    /// Show the guest's memory: guest-physical ranges, RAM blocks, page size and bytes on each node
    Map {
        /// A QMP socket of the guest's QEMU that no other client uses
        #[arg(long, value_name = "SOCKET")]
        qmp: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Explain why a page of a guest lies where it lies, or what this host's kernel does to pages
    #[command(
        after_help = "Exit status: 0 if it could be explained; what is found does not change it."
    )]
    Explain(ExplainArgs),
    /// Draw where a guest's memory is hot, and on which tier it lies
    Heatmap(HeatmapArgs),
    /// Record a guest's accesses as a trace, or convert another program's trace
    #[command(
        after_help = "The file is called OUTPUT.part until it is complete. No page of the guest is moved."
    )]
    Record(Box<RecordArgs>),
    /// Make a page of a recording: heat over time and space, demand for DRAM, and what policies make of
    /// it
    #[cfg(feature = "screens")]
    #[command(
        after_help = "The page needs no other file. Time and memory are those of replay with as many policies and sizes."
    )]
    Report(Box<report_cmd::ReportArgs>),
    /// Replay a recorded guest with tiering policies, and compare them with an oracle that knows the
    /// future
    #[command(
        after_help = "Exit status: 0 if everything was replayed. The same input gives the same figures, except CPU time."
    )]
    Replay(Box<ReplayArgs>),
    /// Let recorded guests share a host's DRAM: which fit, which suffer, and how many would fit
    #[command(
        after_help = "Exit status: 0 if there is an answer, whichever guests fit. The same input gives the same figures."
    )]
    WhatIf(Box<WhatIfArgs>),
    /// Check what works on this host, what would interfere with tiering, and what to do
    #[command(after_help = "Exit status: 0 only if tiering can run here.")]
    Doctor {
        /// Look at the guest behind this QMP socket too
        #[arg(long, value_name = "SOCKET")]
        qmp: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Put right what agents left that were killed: hugetlb pools in the middle of a move, NUMA policies, kdamonds
        #[arg(long, conflicts_with_all = ["qmp", "json"])]
        repair: bool,
        /// Where agents keep account of what must be put right
        #[arg(long, value_name = "DIR", default_value = config::RUN_DIR, requires = "repair")]
        run_dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // A wrong value is reported in one line, as every other error is.
        Err(error) if error.kind() == ErrorKind::ValueValidation => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            let line = line.strip_prefix("error: ").unwrap_or(line);
            log::complain(format_args!("{line}; see --help"));
            return ExitCode::from(2);
        }
        Err(error) => error.exit(),
    };
    let filter = match cli.command {
        // A line would stand in the middle of the screen.
        #[cfg(feature = "screens")]
        Command::Top(_) => Targets::new(),
        _ => log_filter(std::env::var("VMM_TIER_LOG").ok().as_deref()),
    };
    let lines = fmt::layer()
        .with_writer(log::stderr())
        .with_ansi(false)
        .with_target(false);
    tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .init();
    if let Err(error) = tier_sys::open_files::raise_limit() {
        tracing::debug!("the limit of open files stays: {error}");
    }
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) => {
            log::complain(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// What `VMM_TIER_LOG` lets through: a level, or levels of modules as in `warn,vmm_tier::agent=debug`;
/// `info` without it, or if it can't be understood.
fn log_filter(wanted: Option<&str>) -> Targets {
    let wanted = wanted.unwrap_or_default().split(',').map(str::trim);
    let wanted: Vec<&str> = wanted.filter(|directive| !directive.is_empty()).collect();
    match wanted.join(",").parse() {
        Ok(filter) if !wanted.is_empty() => filter,
        _ => Targets::new().with_default(LevelFilter::INFO),
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run(*args),
        Command::Host(args) => host::run(*args),
        Command::Ctl {
            socket,
            command,
            arguments,
        } => ctl::run(&socket, &command, arguments.as_deref()),
        #[cfg(feature = "screens")]
        Command::Top(args) => top::run(*args),
        Command::Metrics(args) => metrics::run(&args),
        Command::Map { qmp, json } => map_cmd::run(&qmp, json),
        Command::Explain(args) => explain::run(&args),
        Command::Heatmap(args) => heatmap::run(&args),
        Command::Record(args) => record::run(*args),
        #[cfg(feature = "screens")]
        Command::Report(args) => report_cmd::run(&args),
        Command::Replay(args) => {
            map_cmd::print(&comparison::compare(&args)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::WhatIf(args) => {
            map_cmd::print(&what_if::run(&args)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor {
            repair: true,
            run_dir,
            ..
        } => doctor::repair::run(&run_dir),
        Command::Doctor { qmp, json, .. } => doctor::run(qmp.as_deref(), json),
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

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn log_filter_when_levels_are_named_lets_them_through() {
        let lets_through = |wanted, module, level| log_filter(wanted).would_enable(module, &level);
        for nothing in [None, Some(""), Some(" , "), Some("vmm_tier=loud")] {
            assert!(
                lets_through(nothing, "vmm_tier", Level::INFO),
                "{nothing:?}"
            );
            assert!(!lets_through(nothing, "qmp", Level::DEBUG), "{nothing:?}");
        }
        for all in ["debug", "DEBUG", " debug,"] {
            assert!(lets_through(Some(all), "qmp", Level::DEBUG), "{all}");
            assert!(!lets_through(Some(all), "qmp", Level::TRACE), "{all}");
        }
        let some = Some("warn, vmm_tier::agent=debug");
        assert!(lets_through(some, "vmm_tier::agent::control", Level::DEBUG));
        assert!(!lets_through(some, "vmm_tier::source", Level::INFO));
        assert!(lets_through(some, "vmm_tier::source", Level::WARN));
        assert!(!lets_through(Some("off"), "vmm_tier", Level::ERROR));
    }
}
