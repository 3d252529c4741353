//! `layouts`: checks the memory map on live QEMU, every layout on every version in the lab's cache.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Context, ensure};
use clap::Parser;
use lab::host::STOP;
use lab::image::Cache;
use lab::layouts::{Options, Version, all, run, short};
use vmm_sys_util::signal::register_signal_handler;

/// Checks the map of guest memory on live QEMU: every layout, on every version in the lab's cache.
///
/// Needs root: guest memory is read from /proc/PID/mem, and pools of huge pages are filled (and
/// emptied again). The exit code is 0 only if every map is right.
#[derive(Debug, Parser)]
#[command(name = "layouts", version)]
struct Arguments {
    /// Only layouts whose name contains this.
    layout: Option<String>,
    /// Only the few layouts of the test suite.
    #[arg(long)]
    short: bool,
    /// Only this QEMU version (the start of it).
    #[arg(long, value_name = "VERSION")]
    qemu: Option<String>,
    /// Addresses inside and outside the map, in each layout.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    addresses: usize,
    /// How often the map is made in each layout; the time told is the median.
    #[arg(long, value_name = "N", default_value_t = 5)]
    maps: usize,
    /// Where the random addresses begin; the same seed gives the same addresses.
    #[arg(long, default_value_t = 20_261_121)]
    seed: u64,
    /// Write the result as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the result as a page of documentation to this file.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Show the layouts and QEMU's arguments, and start nothing.
    #[arg(long)]
    list: bool,
}

extern "C" fn stop(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    STOP.store(true, Ordering::Relaxed);
}

fn main() -> ExitCode {
    match check(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("layouts: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn check(arguments: &Arguments) -> anyhow::Result<bool> {
    let mut layouts = if arguments.short { short() } else { all() };
    if let Some(part) = &arguments.layout {
        layouts.retain(|layout| layout.name.contains(part.as_str()));
        ensure!(
            !layouts.is_empty(),
            "no layout is named like '{part}'; --list shows them"
        );
    }
    if arguments.list {
        for layout in &layouts {
            println!("{:44} {}", layout.name, layout.arguments);
        }
        return Ok(true);
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        register_signal_handler(signal, stop).context("installing a signal handler")?;
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "guest memory and huge pages need root: run scripts/layouts as root"
    );
    let mut versions = Version::of(&Cache::open()?)?;
    if let Some(wanted) = &arguments.qemu {
        versions.retain(|version| version.name.starts_with(wanted.as_str()));
        ensure!(
            !versions.is_empty(),
            "no QEMU {wanted} in the lab's cache; run scripts/setup"
        );
    }
    let executable = std::env::current_exe().context("finding the programs just built")?;
    let options = Options {
        program: executable.with_file_name("vmm-tier"),
        addresses: arguments.addresses,
        maps: arguments.maps,
        seed: arguments.seed,
        stop: &STOP,
    };
    ensure!(
        options.program.is_file(),
        "no {}: run scripts/layouts, which builds it",
        options.program.display()
    );
    let report = run(&options, &versions, &layouts, &mut |line| {
        eprintln!("{line}");
    })?;
    print!("{}", report.text());
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = &arguments.markdown {
        std::fs::write(path, report.markdown())
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(report.is_good())
}
