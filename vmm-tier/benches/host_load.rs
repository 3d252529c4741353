//! What the host daemon costs: CPU time of its process as a share of one core, and its memory, with many
//! agents that report once a second.
//!
//! The daemon is the release build. Each agent is a connection; its QEMU is a process that sleeps. A report
//! has a demand curve of 64 points, the most there may be. The last column is what `vmm-tier top` costs that shows
//! them on a terminal of 120 by 40 at one frame a second.

#[path = "../tests/played/host.rs"]
mod host;
#[path = "../tests/played/program.rs"]
mod program;
#[path = "../tests/played/tmux.rs"]
mod tmux;

use std::{
    env,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use host::{Daemon, HostAgent, Sleeper};
use tier_sys::{process, sysroot::SysRoot};
use tmux::Tmux;

const AGENTS: [usize; 3] = [20, 200, 1000];
const WARM_UP: Duration = Duration::from_secs(8);
const MEASURED: Duration = Duration::from_secs(15);

fn main() {
    let mut filters = env::args().skip(1).filter(|word| !word.starts_with('-'));
    if !filters.all(|filter| "host-load".contains(&filter)) {
        return;
    }
    process::raise_open_files();
    println!(
        "{:>8} {:>10} {:>14} {:>10} {:>9} {:>14}",
        "agents", "reports/s", "of one core", "memory", "threads", "top"
    );
    for agents in AGENTS {
        measure(agents);
    }
}

fn measure(count: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut daemon = Daemon::start_with(folder.path(), "[pool]\nbytes = '64G'\nnodes = '0'\n");
    let qemus: Vec<Sleeper> = (0..count).map(|_| Sleeper::start(folder.path())).collect();
    let (stop, reports) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let socket = daemon.socket.clone();
    let agents: Vec<_> = qemus
        .iter()
        .enumerate()
        .map(|(at, qemu)| {
            let mut agent = HostAgent::connect(&socket, &format!("vm{at}"), qemu.pid());
            agent.register().expect("a registration");
            let (stop, reports) = (Arc::clone(&stop), Arc::clone(&reports));
            thread::spawn(move || {
                // Each at its own time of the second.
                thread::sleep(Duration::from_secs(1) * u32::try_from(at).unwrap_or(0) / 1000);
                while !stop.load(Ordering::Relaxed) {
                    let report = agent.report();
                    if agent.say(report).is_ok() {
                        reports.fetch_add(1, Ordering::Relaxed);
                    }
                    thread::sleep(Duration::from_millis(990));
                }
            })
        })
        .collect();
    thread::sleep(WARM_UP);
    let pid = daemon.pid();
    let root = SysRoot::real();
    let cpu = || {
        process::stat(&root, pid)
            .expect("a running daemon")
            .cpu_time
    };
    let (before, begin, cpu_before) = (reports.load(Ordering::Relaxed), Instant::now(), cpu());
    thread::sleep(MEASURED);
    let (used, elapsed) = (cpu() - cpu_before, begin.elapsed().as_secs_f64());
    let taken = reports.load(Ordering::Relaxed) - before;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = |key: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(key));
        value
            .and_then(|value| value.split_ascii_whitespace().next()?.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    let reporting = daemon.ask("query-host", None)["vms"]
        .as_array()
        .map_or(0, |vms| {
            vms.iter().filter(|vm| vm["state"] == "reporting").count()
        });
    assert_eq!(reporting, count, "all agents are served");
    println!(
        "{count:>8} {:>10.0} {:>12.2} % {:>6.1} MiB {:>9} {:>14}",
        taken as f64 / elapsed,
        used.as_secs_f64() / elapsed * 100.0,
        line("VmRSS:") / 1024.0,
        line("Threads:"),
        top(folder.path(), &socket)
    );
    stop.store(true, Ordering::Relaxed);
    for agent in agents {
        let _ = agent.join();
    }
}

/// CPU time of `vmm-tier top` as a share of one core, with all agents in its table.
fn top(folder: &Path, socket: &Path) -> String {
    let program = env::var("VMM_TIER_PROGRAM").unwrap_or(env!("CARGO_BIN_EXE_vmm-tier").to_owned());
    let command = format!("exec {program} top {}", socket.display());
    let Some(tmux) = Tmux::start(folder, (120, 40), &command) else {
        return "SKIPPED".to_owned();
    };
    tmux.wait_for_text("live");
    let cpu = || {
        process::stat(&SysRoot::real(), tmux.pid())
            .expect("a running top")
            .cpu_time
    };
    let (before, begin) = (cpu(), Instant::now());
    thread::sleep(MEASURED);
    let share = (cpu() - before).as_secs_f64() / begin.elapsed().as_secs_f64();
    assert!(tmux.screen().contains("live"), "{}", tmux.screen());
    format!("{:.2} %", share * 100.0)
}
