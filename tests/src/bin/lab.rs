//! `lab SCENARIO`: carries a scenario out in the emulated two-tier host.

use std::fs::OpenOptions;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::Context;
use clap::Parser;
use lab::host::{self, Options, STOP};
use lab::scenario::Scenario;
use lab::show::Screen;
use lab::soak::{HEAD, Row};
use vmm_sys_util::signal::register_signal_handler;

/// Carries a scenario out in the emulated two-tier host: two memory nodes, KVM, a guest.
///
/// What a person reads goes to stderr, the result as one JSON object to stdout (unless that is
/// a terminal) or to a file. The exit code is 0 only if every check passed.
#[derive(Debug, Parser)]
#[command(name = "lab", version)]
struct Arguments {
    /// Name of a scenario in tests/scenarios; without it the scenarios are listed.
    scenario: Option<String>,
    /// Write the result to this file instead of stdout.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Folder for the console log, the programs' log and the result [default: target/lab/SCENARIO].
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// Show the hot set's share each second, on stdout; the result goes to its file only.
    #[arg(long)]
    live: bool,
    /// Carry the scenario out so many times; passes only if all do.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Add what all runs came to as a row to this Markdown table.
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
    /// How often the scenario is begun at most: again only after a fault of the emulator, which a
    /// line tells.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    tries: u8,
}

extern "C" fn stop(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    STOP.store(true, Ordering::Relaxed);
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        register_signal_handler(signal, stop).context("installing a signal handler")?;
    }
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let Some(name) = &arguments.scenario else {
        for name in Scenario::names(&scenarios) {
            let scenario = Scenario::load(&scenarios, &name)?;
            println!("{name:16} {}", scenario.title);
        }
        return Ok(true);
    };
    let scenario = Scenario::load(&scenarios, name)?;
    let executable = std::env::current_exe().context("finding the programs just built")?;
    let programs = executable.parent().context("no folder of programs")?;
    let target = programs.parent().unwrap_or(programs);
    let folder = arguments
        .log_dir
        .clone()
        .unwrap_or_else(|| target.join("lab").join(name));
    let mut screen = if arguments.live {
        Screen::live()
    } else {
        Screen::stderr()
    };
    let options = Options {
        scenario,
        folder,
        programs: programs.to_owned(),
        tries: arguments.tries.into(),
    };
    screen.line(&format!("{name}: {}", options.scenario.title));
    let mut results = Vec::new();
    for number in 1..=arguments.runs {
        let result = host::run(&options, &mut screen)?;
        screen.result(&result);
        screen.line(&format!("logs and result: {}", options.folder.display()));
        if let Some(path) = &arguments.json {
            host::write_json(&result, path)?;
        } else if !arguments.live && !std::io::stdout().is_terminal() {
            let mut out = std::io::stdout().lock();
            serde_json::to_writer(&mut out, &result)?;
            out.write_all(b"\n")?;
        }
        if !result.pass && arguments.runs > 1 {
            // The next run writes over them.
            host::keep(&options.folder, &format!("failed-{number}"))?;
        }
        results.push(result);
    }
    if let Some(path) = &arguments.table {
        let row = Row::of(name, &results);
        append(path, &row).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(results.iter().all(|result| result.pass))
}

/// Adds a row to a table, with the head if the table is new.
fn append(path: &Path, row: &Row) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    if file.metadata()?.len() == 0 {
        writeln!(file, "{HEAD}")?;
    }
    writeln!(file, "{row}")
}
