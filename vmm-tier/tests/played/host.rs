//! `vmm-tier host`, processes that are called as QEMU is, and agents that register and report.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::{
    ops::{Deref, DerefMut},
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use qmp::{Client, client};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tier_sys::{process, sysroot::SysRoot};

pub use crate::program::MIB;
use crate::program::{self, Program};

/// A running `vmm-tier host` whose pool is node 0.
pub struct Daemon(Program);

/// The command that starts a daemon with its files in `folder`, at a socket there or elsewhere.
pub fn command(folder: &Path, socket: impl AsRef<Path>, more: &str) -> Command {
    let config = folder.join("config.toml");
    let run_dir = folder.join("run");
    let text = format!("run-dir = '{}'\n{more}", run_dir.display());
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(program::path());
    command
        .arg("host")
        .arg("--socket")
        .arg(folder.join(socket))
        .arg("--config")
        .arg(config);
    command
}

impl Daemon {
    /// Starts with a pool of 64 MiB, and more in its configuration.
    pub fn start(folder: &Path, more: &str) -> Self {
        Self::start_with(
            folder,
            &format!("[pool]\nbytes = '64M'\nnodes = '0'\n{more}"),
        )
    }

    pub fn start_with(folder: &Path, config: &str) -> Self {
        let child = command(folder, "host", config)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut daemon = Self(Program {
            child,
            socket: folder.join("host"),
            query: "query-host",
        });
        daemon.client();
        daemon
    }

    /// Ends it as a manager of services does.
    pub fn terminate(mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }

    /// Ends it without a warning.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Deref for Daemon {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.0
    }
}

impl DerefMut for Daemon {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.0
    }
}

/// A daemon that ends of itself, and what it says.
pub fn ended(mut command: Command) -> (bool, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.success(), String::from_utf8(stderr).unwrap())
}

/// A process that is called as QEMU is, and sleeps.
pub struct Sleeper(Child);

impl Sleeper {
    pub fn start(folder: &Path) -> Self {
        let program = folder.join("qemu-system-x86_64");
        if !program.exists() {
            std::fs::copy("/bin/sleep", &program).unwrap();
        }
        Self(Command::new(program).arg("600").spawn().unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An agent: a connection to the daemon.
pub struct HostAgent {
    pub client: Client,
    pub name: String,
    pub pid: u32,
    pub number: u64,
}

impl HostAgent {
    pub fn connect(socket: &Path, name: &str, pid: u32) -> Self {
        let (client, _events) = Client::connect(socket, &client::Options::default()).unwrap();
        Self {
            client,
            name: name.to_owned(),
            pid,
            number: 0,
        }
    }

    /// What it registers with.
    pub fn told(&self) -> Value {
        let start = process::stat(&SysRoot::real(), self.pid)
            .unwrap()
            .start_ticks;
        json!({
            "name": self.name, "pid": self.pid, "pid-start": start,
            "memory-bytes": 256 * MIB, "page-bytes": 4096,
        })
    }

    pub fn register(&self) -> Result<Value, String> {
        let reply = self.client.execute_raw("host-register", Some(self.told()));
        reply.map_err(|error| error.to_string())
    }

    /// The next report: a curve of as many points as there may be.
    pub fn report(&mut self) -> Value {
        self.number += 1;
        let points = (1..=64_u64).map(|point| {
            let hits = 1e6 * (1.0 - 0.9_f64.powi(point as i32));
            json!([point * 2 * MIB, hits])
        });
        json!({
            "number": self.number, "made-ns": process::now().0,
            "curve": points.collect::<Vec<_>>(), "ram": [[1_u64 << 46, 256 * MIB]],
            "fast-bytes": 8 * MIB, "present-bytes": 200 * MIB, "state": "running",
            "source": "damon", "hit-ratio": 0.9, "promoted-bytes": 0, "demoted-bytes": 0,
        })
    }

    pub fn say(&self, report: Value) -> Result<Value, String> {
        let reply = self.client.execute_raw("host-report", Some(report));
        reply.map_err(|error| error.to_string())
    }
}
