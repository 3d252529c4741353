//! `vmm-tier explain`: a page's place in sentences, or the kernel's counters beside an agent's with
//! known pathologies by name.

mod host;
mod page;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{ArgGroup, Args};
use qmp::Client;
use tier_core::addr::Gpa;
use tier_sys::sysroot::SysRoot;

use crate::{config::RUN_DIR, host as host_daemon, log::complain, map_cmd::print};

/// How long an agent may take to answer: it answers between two events.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest interval over which counters are compared.
const LONGEST_S: u64 = 3600;

/// Arguments of `explain`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").args(["address", "host"]).required(true)))]
#[command(group(ArgGroup::new("agent").args(["qmp", "control"])))]
pub(crate) struct ExplainArgs {
    /// A guest-physical address, such as 0x40000000: why its page lies where it lies
    #[arg(value_parser = gpa, requires = "agent")]
    address: Option<Gpa>,
    /// A QMP socket of the guest's QEMU; the agent beside it is asked, where an agent runs
    #[arg(long, value_name = "SOCKET")]
    qmp: Option<PathBuf>,
    /// The agent's control socket
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// Show the kernel's counters over an interval, beside the agent's if a socket is named, and name
    /// known pathologies
    #[arg(long)]
    host: bool,
    /// How many seconds the interval lasts
    #[arg(long, value_name = "N", default_value_t = 10, conflicts_with = "address",
          value_parser = clap::value_parser!(u64).range(1..=LONGEST_S))]
    seconds: u64,
    /// Print JSON
    #[arg(long, conflicts_with = "address")]
    json: bool,
}

fn gpa(text: &str) -> Result<Gpa, String> {
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    number
        .map(Gpa)
        .map_err(|_| "no address: write it as 0x40000000 or 1073741824".to_owned())
}

/// Explains a page or the host.
///
/// # Errors
/// If neither an agent nor QEMU can be asked, or the answer can't be printed.
pub(crate) fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let root = SysRoot::real();
    let text = match args.address {
        Some(address) => {
            let found =
                page::explain(args.qmp.as_deref(), args.control.as_deref(), address, &root)?;
            found.join("\n") + "\n"
        }
        None => {
            let agent = match (&args.qmp, &args.control) {
                (_, Some(control)) => Some(connect(control)?),
                (Some(qmp), None) => agent_beside(qmp, Path::new(RUN_DIR))?,
                (None, None) => None,
            };
            if let (Some(qmp), None) = (&args.qmp, &agent) {
                complain(format_args!(
                    "no agent in {RUN_DIR} serves the QEMU of {}: the kernel's counters stand alone; name the agent's \
                     control socket with --control",
                    qmp.display()
                ));
            }
            let time = Duration::from_secs(args.seconds);
            let qemu = args
                .qmp
                .as_deref()
                .map(|qmp| qmp::client::peer_of(qmp, PATIENCE));
            let pid = qemu.transpose()?.map(|peer| peer.pid);
            let report = host::look(&root, agent.as_ref(), pid, time)?;
            match args.json {
                true => serde_json::to_string_pretty(&report)? + "\n",
                false => report.to_text(),
            }
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The agent that was asked for: behind its control socket, or beside the QEMU that serves `qmp`. An
/// agent's proxy of that QEMU's monitor will do, too.
///
/// # Errors
/// If it can't be reached.
pub(crate) fn agent(qmp: Option<&Path>, control: Option<&Path>) -> anyhow::Result<Client> {
    if let Some(control) = control {
        return connect(control);
    }
    let qmp = qmp.context("name a socket with --qmp or --control")?;
    if let Some(agent) = agent_beside(qmp, Path::new(RUN_DIR))? {
        return Ok(agent);
    }
    connect(qmp).with_context(|| {
        format!("no agent in {RUN_DIR} serves this guest; name the agent's control socket with --control")
    })
}

fn connect(socket: &Path) -> anyhow::Result<Client> {
    let options = qmp::client::Options {
        connect_timeout: PATIENCE,
        greeting_timeout: PATIENCE,
        ..qmp::client::Options::default()
    };
    Ok(Client::connect(socket, &options)?.0)
}

/// The agent beside the QEMU that serves `qmp`, by the control sockets in the agents' folder; `None` if
/// none of them serves that QEMU. QEMU itself is not asked: the agent holds its monitor.
fn agent_beside(qmp: &Path, run_dir: &Path) -> anyhow::Result<Option<Client>> {
    let pid = qmp::client::peer_of(qmp, PATIENCE)?.pid;
    for socket in sockets_in(run_dir) {
        // Sockets of dead agents, and of other programs, may lie there.
        let Ok(client) = connect(&socket) else {
            continue;
        };
        let state = client.execute_raw("query-tier", None);
        if state.is_ok_and(|state| state["pid"] == pid) {
            return Ok(Some(client));
        }
    }
    Ok(None)
}

/// The sockets of a run directory that may be agents', by name: all but the host daemon's.
fn sockets_in(run_dir: &Path) -> Vec<PathBuf> {
    let sockets = std::fs::read_dir(run_dir).into_iter().flatten();
    let sockets = sockets.filter_map(|entry| Some(entry.ok()?.path()));
    let is_socket = |path: &PathBuf| {
        path.extension().is_some_and(|it| it == "sock")
            && path.file_name().is_some_and(|it| it != host_daemon::SOCKET)
    };
    let mut sockets: Vec<PathBuf> = sockets.filter(is_socket).collect();
    sockets.sort();
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_when_the_host_daemon_has_one_there_are_those_of_agents() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "vm2.sock",
            "host.sock",
            "host.json",
            "vm1.sock",
            "host.lock",
        ] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let found = sockets_in(folder.path());
        let expected = ["vm1.sock", "vm2.sock"].map(|name| folder.path().join(name));
        assert_eq!(found, expected);
        assert_eq!(sockets_in(&folder.path().join("none")), [] as [PathBuf; 0]);
    }

    #[test]
    fn address_when_written_in_either_way_is_read() {
        assert_eq!(gpa("0x40000000"), Ok(Gpa(1 << 30)));
        assert_eq!(gpa("1073741824"), Ok(Gpa(1 << 30)));
        for wrong in ["", "0x", "-1", "1G", "0x1_0", "99999999999999999999"] {
            assert!(gpa(wrong).is_err(), "{wrong}");
        }
    }
}
