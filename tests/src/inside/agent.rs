//! The agent under test: its process, what it prints, and what it answers on its control socket.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::measure::cpu_seconds;
use super::monitor::Monitor;
use super::{AGENT, Limits, RUN_FOLDER, Reporter, guest, locked, scaled};
use crate::event::{AgentEnd, AgentSample};
use crate::patience::{Moved, Patience};

/// Lines of its output that stand in the result; all stand in the log.
const LAST_LINES: usize = 20;
/// An agent is ready in a second; it starts kernel threads and reads files, and prints what it
/// does.
const LIMITS: Limits = Limits {
    still: Duration::from_secs(30),
    silent_cpu: Duration::from_secs(30),
};

/// The control socket of the agent beside a guest.
#[must_use]
pub fn control_socket(guest_name: &str) -> PathBuf {
    guest::folder(guest_name).join("control.sock")
}

/// The host daemon, where the name of an agent's guest would stand.
pub const HOST: &str = "host";

/// The socket of the host daemon.
#[must_use]
pub fn host_socket() -> PathBuf {
    Path::new(RUN_FOLDER).join("host.sock")
}

/// A running agent, or the host daemon.
#[derive(Debug)]
pub struct Running {
    guest: String,
    socket: PathBuf,
    child: Child,
    lines: Arc<Mutex<VecDeque<String>>>,
    /// Bytes that it has printed.
    said: Arc<AtomicU64>,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts `vmm-tier run` beside a guest and waits until its control socket answers.
    ///
    /// # Errors
    /// When it can't be started. An agent that ends at once is handed back: how it ended is
    /// a finding.
    pub fn start(guest_name: &str, args: &[String], reporter: &Reporter) -> anyhow::Result<Self> {
        let control = control_socket(guest_name);
        let mut command = Command::new(AGENT);
        command
            .arg("run")
            .arg("--qmp")
            .arg(guest::agent_monitor(guest_name))
            .args(["--fast", "0", "--slow", "1", "--control"])
            .arg(&control)
            .args(args);
        Self::spawn(
            command,
            guest_name,
            control,
            &format!("agent:{guest_name}"),
            reporter,
        )
    }

    /// Starts `vmm-tier host` with this configuration, or that of the last start, and waits until its
    /// socket answers.
    ///
    /// # Errors
    /// As for an agent.
    pub fn start_host(config: &str, reporter: &Reporter) -> anyhow::Result<Self> {
        let file = Path::new(RUN_FOLDER).join("host.toml");
        if !config.is_empty() {
            fs::write(&file, config)?;
        }
        let socket = host_socket();
        let mut command = Command::new(AGENT);
        command
            .arg("host")
            .arg("--socket")
            .arg(&socket)
            .arg("--config")
            .arg(file);
        Self::spawn(command, HOST, socket, HOST, reporter)
    }

    fn spawn(
        mut command: Command,
        guest: &str,
        socket: PathBuf,
        source: &str,
        reporter: &Reporter,
    ) -> anyhow::Result<Self> {
        let mut child = command
            // For the log: the pace of sampling, what QEMU says.
            .env("VMM_TIER_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {AGENT}"))?;
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let said = Arc::new(AtomicU64::new(0));
        let mut readers = Vec::new();
        if let Some(out) = child.stdout.take() {
            readers.push(gather(out, source, reporter, &lines, &said));
        }
        if let Some(err) = child.stderr.take() {
            readers.push(gather(err, source, reporter, &lines, &said));
        }
        Ok(Self {
            guest: guest.to_owned(),
            socket,
            child,
            lines,
            said,
            readers,
        })
    }

    /// Waits until the control socket answers; false when the agent ended before.
    ///
    /// # Errors
    /// When the agent stands still, or works long without a word.
    pub fn await_ready(&mut self) -> anyhow::Result<bool> {
        let mut patience = Patience::new(LIMITS.scaled(), self.moved(), Instant::now());
        loop {
            if self.child.try_wait()?.is_some() {
                return Ok(false);
            }
            if Monitor::connect(&self.socket, Duration::from_secs(2)).is_ok() {
                return Ok(true);
            }
            if let Some(why) = patience.look(self.moved(), Instant::now()) {
                bail!(
                    "the socket {} does not answer; its program {why}",
                    self.socket.display()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn moved(&self) -> Moved {
        Moved {
            bytes: self.said.load(Ordering::Relaxed),
            cpu_s: cpu_seconds(self.child.id()).unwrap_or(0.0),
        }
    }

    /// The agent's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It fails only for an agent that has ended: the wait that follows tells.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for the agent's end.
    ///
    /// # Errors
    /// When it goes on for longer than `within` on the reference machine; it is killed then.
    pub fn await_end(mut self, within: Duration, reporter: &Reporter) -> anyhow::Result<AgentEnd> {
        let within = scaled(within);
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if start.elapsed() >= within {
                bail!("the agent did not end within {} s", within.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        Ok(AgentEnd {
            t: reporter.t(),
            guest: self.guest.clone(),
            code: status.code(),
            signal: status.signal(),
            last_lines: locked(&self.lines).drain(..).collect(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn gather(
    from: impl Read + Send + 'static,
    source: &str,
    reporter: &Reporter,
    lines: &Arc<Mutex<VecDeque<String>>>,
    said: &Arc<AtomicU64>,
) -> JoinHandle<()> {
    let (source, reporter, lines) = (source.to_owned(), reporter.clone(), Arc::clone(lines));
    let said = Arc::clone(said);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            said.fetch_add(line.len() as u64 + 1, Ordering::Relaxed);
            // Debug lines are for the log: they would push out what a person is told.
            if !line.contains(" DEBUG ") {
                let mut lines = locked(&lines);
                if lines.len() == LAST_LINES {
                    lines.pop_front();
                }
                lines.push_back(line.clone());
            }
            reporter.log(&source, line);
        }
    })
}

/// What the sampler asks of an agent each second.
#[derive(Debug)]
pub struct Watch {
    pid: u32,
    control: PathBuf,
    monitor: Option<Monitor>,
}

impl Watch {
    /// Watches the agent beside a guest.
    #[must_use]
    pub fn new(pid: u32, guest_name: &str) -> Self {
        Self {
            pid,
            control: control_socket(guest_name),
            monitor: None,
        }
    }

    /// CPU time and, if the agent answers in time, its counters.
    pub fn sample(&mut self) -> Option<AgentSample> {
        let mut sample = AgentSample {
            cpu_s: cpu_seconds(self.pid)?,
            ..AgentSample::default()
        };
        if self.monitor.is_none() {
            self.monitor = Monitor::connect(&self.control, Duration::from_millis(500)).ok();
        }
        let reply = self
            .monitor
            .as_mut()
            .map(|monitor| monitor.execute("query-tier", Value::Null));
        match reply {
            Some(Ok(reply)) => {
                sample.promoted_bytes = reply["promoted-bytes"].as_u64();
                sample.demoted_bytes = reply["demoted-bytes"].as_u64();
                sample.state = reply["state"].as_str().map(str::to_owned);
                sample.hit_ratio = reply["hit-ratio"].as_f64();
                sample.half_life_s = reply["half-life-s"].as_f64();
            }
            Some(Err(_)) => self.monitor = None,
            None => {}
        }
        Some(sample)
    }
}
