//! A process that plays QEMU, and `vmm-tier run` beside it. No guest is needed and nothing is moved: both
//! tiers are node 0, in a dry run.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::{
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use qmp::{
    QmpError,
    server::{CommandSpec, Handler, MemberSpec, Options, Server, TypeSpec},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::program::{self, Program};
pub use crate::program::{FOR_EVER, MIB};

const COMMAND_LINE: &[MemberSpec] = &[MemberSpec {
    name: "command-line",
    kind: TypeSpec::String,
    optional: false,
    doc: "",
}];

const fn command(name: &'static str, args: &'static [MemberSpec]) -> CommandSpec {
    CommandSpec {
        name,
        doc: "",
        args,
        ..CommandSpec::PLAIN
    }
}

const COMMANDS: &[CommandSpec] = &[
    command("query-status", &[]),
    command("query-name", &[]),
    command("query-migrate", &[]),
    command("x-query-ramblock", &[]),
    command("query-memory-devices", &[]),
    command("human-monitor-command", COMMAND_LINE),
];

/// A QEMU whose guest has 32 MiB, which are this process's own.
pub struct Qemu {
    pub ram: Vec<u8>,
    pub hangs: AtomicBool,
    /// How long each command takes.
    pub delay: Mutex<Duration>,
    /// Commands that came, and those of them that were answered.
    pub asked: AtomicU64,
    pub answered: AtomicU64,
    /// What `query-status` tells.
    pub status: Mutex<&'static str>,
    /// What `query-migrate` tells.
    pub migration: Mutex<Option<&'static str>>,
    /// A DIMM of 4 MiB at 4 GiB is plugged.
    pub has_dimm: AtomicBool,
    /// DIMMs behind it: first address here, and length.
    pub more_dimms: Vec<(u64, u64)>,
}

impl Qemu {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::with_dimms(Vec::new()))
    }

    /// A QEMU whose guest has more memory: first address here, and length.
    pub fn with_dimms(more_dimms: Vec<(u64, u64)>) -> Self {
        Self {
            ram: vec![1_u8; 40 << 20],
            hangs: AtomicBool::new(false),
            delay: Mutex::new(Duration::ZERO),
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            status: Mutex::new("running"),
            migration: Mutex::new(None),
            has_dimm: AtomicBool::new(false),
            more_dimms,
        }
    }

    pub fn base(&self) -> u64 {
        (self.ram.as_ptr() as u64).next_multiple_of(2 * MIB)
    }

    /// First address in the guest, first address here, length and name of each block.
    fn blocks(&self) -> Vec<(u64, u64, u64, String)> {
        let base = self.base();
        let mut blocks = vec![(0, base, 32 * MIB, "pc.ram".to_owned())];
        let first = (base + 32 * MIB, 4 * MIB);
        let has_dimm = self.has_dimm.load(Ordering::Relaxed);
        let dimms = has_dimm.then_some(&first).into_iter();
        let mut gpa = 4096 * MIB;
        for (n, &(hva, len)) in dimms.chain(&self.more_dimms).enumerate() {
            blocks.push((gpa, hva, len, format!("dimm{n}")));
            gpa += len.next_multiple_of(1024 * MIB);
        }
        blocks
    }

    /// Answers at once from the end of the guard's life on. A server that is dropped waits for its
    /// commands.
    pub fn released(self: &Arc<Self>) -> Released {
        Released(Arc::clone(self))
    }

    pub fn serve(self: &Arc<Self>, path: &Path) -> Server {
        let handler = Arc::clone(self);
        Server::bind(path, handler, Options::default()).unwrap()
    }
}

/// See [`Qemu::released`].
pub struct Released(Arc<Qemu>);

impl Drop for Released {
    fn drop(&mut self) {
        self.0.hangs.store(false, Ordering::Relaxed);
        *self.0.delay.lock().unwrap() = Duration::ZERO;
    }
}

impl Handler for Qemu {
    fn commands(&self) -> &[CommandSpec] {
        COMMANDS
    }

    fn handle(&self, name: &str, arguments: Map<String, Value>) -> Result<Value, QmpError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let begin = Instant::now();
        while self.hangs.load(Ordering::Relaxed) || begin.elapsed() < *self.delay.lock().unwrap() {
            thread::sleep(Duration::from_millis(10));
        }
        self.answered.fetch_add(1, Ordering::Relaxed);
        Ok(self.answer(name, &arguments))
    }
}

impl Qemu {
    fn answer(&self, name: &str, arguments: &Map<String, Value>) -> Value {
        let blocks = self.blocks();
        match name {
            "query-status" => {
                let status = *self.status.lock().unwrap();
                json!({"status": status, "running": status == "running"})
            }
            "query-migrate" => match *self.migration.lock().unwrap() {
                Some(status) => json!({"status": status}),
                None => json!({}),
            },
            "query-name" => json!({"name": "played"}),
            "query-memory-devices" => blocks[1..]
                .iter()
                .map(|(addr, _, size, id)| {
                    let memdev = format!("/objects/{id}");
                    json!({"type": "dimm", "data": {
                        "id": id, "addr": addr, "size": size, "slot": 0, "node": 0,
                        "memdev": memdev, "hotplugged": true, "hotpluggable": true,
                    }})
                })
                .collect(),
            "x-query-ramblock" => {
                let mut text = "Block Name    PSize  Offset  Used  Total  HVA  RO\n".to_owned();
                for (gpa, hva, len, id) in blocks {
                    text += &format!("{id}  4 KiB  {gpa:#x} {len:#x} {len:#x} {hva:#x} rw\n");
                }
                json!({"human-readable-text": text})
            }
            _ => {
                let line = arguments["command-line"].as_str().unwrap_or_default();
                let gpa = line.strip_prefix("gpa2hva 0x").unwrap_or("0");
                let gpa = u64::from_str_radix(gpa, 16).unwrap_or(u64::MAX);
                let block = blocks
                    .into_iter()
                    .find(|(start, _, len, _)| (*start..start + len).contains(&gpa));
                match block {
                    Some((start, hva, _, id)) => json!(format!(
                        "Host virtual address for {gpa:#x} ({id}) is {:#x}\n",
                        hva + (gpa - start)
                    )),
                    None => json!(format!("No memory is mapped at address {gpa:#x}\n")),
                }
            }
        }
    }
}

/// A running `vmm-tier run`.
pub struct Agent {
    program: Program,
    pub folder: Arc<TempDir>,
}

impl Agent {
    /// Starts beside the QEMU that serves `qmp` in `folder`.
    pub fn start(folder: TempDir) -> Self {
        Self::start_in(Arc::new(folder), "")
    }

    /// Starts with more in its configuration.
    pub fn start_in(folder: Arc<TempDir>, more: &str) -> Self {
        let qmp = folder.path().join("qmp");
        Self::start_beside(&qmp, folder, more)
    }

    /// Starts with its log written to `log`.
    pub fn start_with_log(folder: TempDir, log: impl Into<Stdio>) -> Self {
        let qmp = folder.path().join("qmp");
        let program = Command::new(program::path());
        Self::run(program, &qmp, Arc::new(folder), "", log.into())
    }

    /// Starts with SIGHUP ignored, as `nohup` does it.
    pub fn start_without_hup(folder: TempDir) -> Self {
        let qmp = folder.path().join("qmp");
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]);
        shell.arg(program::path());
        Self::run(shell, &qmp, Arc::new(folder), "", Stdio::piped())
    }

    /// Starts beside the QEMU that serves `qmp`, with its own files in `folder`.
    pub fn start_beside(qmp: &Path, folder: Arc<TempDir>, more: &str) -> Self {
        Self::run(
            Command::new(program::path()),
            qmp,
            folder,
            more,
            Stdio::piped(),
        )
    }

    fn run(mut command: Command, qmp: &Path, folder: Arc<TempDir>, more: &str, log: Stdio) -> Self {
        let config = folder.path().join("config.toml");
        let run_dir = folder.path().join("run");
        let text = format!("run-dir = '{}'\n{more}", run_dir.display());
        std::fs::write(&config, text).unwrap();
        let control = folder.path().join("control");
        let child = command
            .args(["run", "--dry-run", "--fast", "0", "--slow", "0"])
            .arg("--qmp")
            .arg(qmp)
            .arg("--control")
            .arg(&control)
            .arg("--config")
            .arg(&config)
            .stderr(log)
            .spawn()
            .unwrap();
        let program = Program {
            child,
            socket: control,
            query: "query-tier",
        };
        Self { program, folder }
    }

    pub fn control(&self) -> PathBuf {
        self.socket.clone()
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Nobody reads its log any more.
    pub fn leave_log(&mut self) {
        drop(self.child.stderr.take().unwrap());
    }

    pub fn ended(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < FOR_EVER, "the agent does not end");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Deref for Agent {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl DerefMut for Agent {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}

/// An event as QEMU sends it.
pub fn event(name: &str, data: Value) -> qmp::Event {
    qmp::Event::now(name, data)
}
