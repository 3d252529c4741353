//! The first process of the emulated host: file systems, modules, the scenario, power off.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::mount::MountFlags;
use rustix::system::{RebootCommand, finit_module, reboot};

use tier_sys::perf::event::{Event, EventSpec, Target};
use tier_sys::perf::tracepoint::Tracepoint;
use tier_sys::sysroot::SysRoot;

use super::{PACE, Reporter, measure, steps};
use crate::event::{self, HostFacts};
use crate::image::{HOST_MODULES, HOST_VSOCK_MODULES};
use crate::patience::Pace;
use crate::scenario::{GuestAgent, Scenario};

/// Does everything, then powers the emulated host off.
pub fn main() {
    if let Err(error) = prepare_and_run() {
        // Without a port there is only the console.
        eprintln!("lab-init: {error:#}");
    }
    let _ = reboot(RebootCommand::PowerOff);
}

fn prepare_and_run() -> anyhow::Result<()> {
    mount("devtmpfs", "/dev")?;
    mount("proc", "/proc")?;
    mount("sysfs", "/sys")?;
    let boot_s = uptime_s()?;
    PACE.get_or_init(|| Pace::of_boot(boot_s));
    let reporter = Reporter::new(open_port()?);
    if let Err(error) =
        prepare(&reporter, boot_s).and_then(|scenario| steps::run_all(&scenario, &reporter))
    {
        reporter.tell(&event::Event::Failed {
            error: format!("{error:#}"),
        });
    }
    Ok(())
}

fn prepare(reporter: &Reporter, boot_s: f64) -> anyhow::Result<Scenario> {
    mount("tracefs", "/sys/kernel/tracing")?;
    // Only `thp` asks for it, and says so where the kernel has none.
    let _ = mount("debugfs", "/sys/kernel/debug");
    for folder in ["/tmp", "/run"] {
        mount("tmpfs", folder)?;
    }
    mount("cgroup2", "/sys/fs/cgroup")?;
    fs::create_dir_all("/dev/shm")?;
    mount("tmpfs", "/dev/shm")?;
    fs::create_dir_all(super::RUN_FOLDER)?;
    for module in HOST_MODULES {
        load_module(module)?;
    }
    if !Path::new("/dev/kvm").exists() {
        bail!("the emulated host has no /dev/kvm: its CPU offers no virtualisation");
    }
    if let Err(error) = hold_patched_code() {
        eprintln!("lab-init: {error:#}");
    }
    let scenario: Scenario = serde_json::from_slice(&fs::read("/lab/scenario.json")?)
        .context("reading /lab/scenario.json")?;
    if scenario.has_guest_agent(Some(GuestAgent::Vsock)) {
        for module in HOST_VSOCK_MODULES {
            load_module(module)?;
        }
    }
    reporter.tell(&event::Event::Booted(facts(boot_s)?));
    Ok(scenario)
}

/// Has the kernel patch its code for the agent's perf event now, while there is no guest, and leave
/// it so: patching beside a guest is what the emulator may crash at (see [`crate::emulator`]). The
/// event watches only this thread, which DAMON does not run in.
fn hold_patched_code() -> anyhow::Result<()> {
    let root = SysRoot::real();
    let tracepoint = Tracepoint::read(&root, "damon", "damon_aggregated")?;
    let spec = EventSpec::tracepoint(&tracepoint.name, tracepoint.id, 1);
    let event = Event::open(&root, &spec, Target::Thread(std::process::id()))?;
    // For as long as the emulated host runs.
    std::mem::forget(event);
    Ok(())
}

/// Seconds since the emulated host's kernel began.
fn uptime_s() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/uptime")?;
    let seconds = text
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok());
    seconds.context("/proc/uptime tells no seconds")
}

fn mount(kind: &str, path: &str) -> anyhow::Result<()> {
    let none: Option<&std::ffi::CStr> = None;
    rustix::mount::mount(kind, path, kind, MountFlags::empty(), none)
        .with_context(|| format!("mounting {kind} at {path}"))
}

/// The port appears when the virtio driver has bound its device.
fn open_port() -> anyhow::Result<File> {
    for _ in 0..100 {
        if let Ok(port) = OpenOptions::new().write(true).open("/dev/vport0p1") {
            return Ok(port);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("no event port /dev/vport0p1")
}

fn load_module(name: &str) -> anyhow::Result<()> {
    let path = format!("/lab/modules/{name}.ko");
    let Ok(file) = File::open(&path) else {
        return Ok(()); // built in
    };
    finit_module(&file, c"", 0).with_context(|| format!("loading {path}"))
}

fn facts(boot_s: f64) -> anyhow::Result<HostFacts> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let qemu = Command::new(super::guest::QEMU)
        .arg("--version")
        .output()
        .context("starting the inner QEMU")?;
    if !qemu.status.success() {
        bail!(
            "the inner QEMU does not start: {}",
            String::from_utf8_lossy(&qemu.stderr).trim()
        );
    }
    let mut memory_tiers = BTreeMap::new();
    for entry in fs::read_dir("/sys/devices/virtual/memory_tiering")
        .into_iter()
        .flatten()
    {
        let path = entry?.path();
        if let Ok(nodes) = fs::read_to_string(path.join("nodelist")) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            memory_tiers.insert(name.into_owned(), nodes.trim().to_owned());
        }
    }
    Ok(HostFacts {
        kernel: kernel.trim().to_owned(),
        inner_qemu: String::from_utf8_lossy(&qemu.stdout)
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned(),
        nodes: measure::nodes(),
        memory_tiers,
        boot_s,
    })
}
