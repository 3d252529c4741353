//! `vmm-tier run` beside a process that plays QEMU. No guest is needed and nothing is moved: both tiers
//! are node 0, in a dry run.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use qmp::{
    Client, QmpError, client,
    server::{ArgSpec, ArgType, CommandSpec, Handler, Options, Server},
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// Set for the process that plays QEMU: where it serves its monitor.
const PLAY: &str = "VMM_TIER_TEST_PLAYS_QEMU_AT";
/// No test waits for long; this only ends one that would wait for ever.
const FOR_EVER: Duration = Duration::from_secs(60);

const COMMAND_LINE: &[ArgSpec] = &[ArgSpec {
    name: "command-line",
    kind: ArgType::String,
    optional: false,
    doc: "",
}];

const fn command(name: &'static str, args: &'static [ArgSpec]) -> CommandSpec {
    CommandSpec {
        name,
        doc: "",
        args,
        returns: "",
    }
}

const COMMANDS: &[CommandSpec] = &[
    command("query-status", &[]),
    command("query-name", &[]),
    command("x-query-ramblock", &[]),
    command("query-memory-devices", &[]),
    command("human-monitor-command", COMMAND_LINE),
];

/// A QEMU whose guest has 32 MiB, which are this process's own.
struct Qemu {
    ram: Vec<u8>,
    hangs: AtomicBool,
}

impl Qemu {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            ram: vec![1_u8; 40 << 20],
            hangs: AtomicBool::new(false),
        })
    }

    fn base(&self) -> u64 {
        (self.ram.as_ptr() as u64).next_multiple_of(2 * MIB)
    }

    fn serve(self: &Arc<Self>, path: &Path) -> Server {
        let handler = Arc::clone(self);
        Server::bind(path, handler, Options::default()).unwrap()
    }
}

impl Handler for Qemu {
    fn commands(&self) -> &[CommandSpec] {
        COMMANDS
    }

    fn handle(&self, name: &str, arguments: Map<String, Value>) -> Result<Value, QmpError> {
        while self.hangs.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(10));
        }
        let (base, len) = (self.base(), 32 * MIB);
        Ok(match name {
            "query-status" => json!({"status": "running", "running": true}),
            "query-name" => json!({"name": "played"}),
            "query-memory-devices" => json!([]),
            "x-query-ramblock" => {
                let head = "Block Name    PSize  Offset  Used  Total  HVA  RO";
                let text = format!("{head}\npc.ram  4 KiB  0x0 {len:#x} {len:#x} {base:#x} rw\n");
                json!({"human-readable-text": text})
            }
            _ => {
                let line = arguments["command-line"].as_str().unwrap_or_default();
                let gpa = line.strip_prefix("gpa2hva 0x").unwrap_or("0");
                let gpa = u64::from_str_radix(gpa, 16).unwrap_or(u64::MAX);
                match gpa < len {
                    true => json!(format!(
                        "Host virtual address for {gpa:#x} (pc.ram) is {:#x}\n",
                        base + gpa
                    )),
                    false => json!(format!("No memory is mapped at address {gpa:#x}\n")),
                }
            }
        })
    }
}

/// A running `vmm-tier run`; killed if a test fails.
struct Agent {
    child: Child,
    folder: TempDir,
}

impl Agent {
    /// Starts beside the QEMU that serves `qmp` in `folder`.
    fn start(folder: TempDir) -> Self {
        let config = folder.path().join("config.toml");
        let text = format!("run-dir = '{}'\n", folder.path().join("run").display());
        std::fs::write(&config, text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
            .args(["run", "--dry-run", "--fast", "0", "--slow", "0"])
            .arg("--qmp")
            .arg(folder.path().join("qmp"))
            .arg("--control")
            .arg(folder.path().join("control"))
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    fn control(&self) -> PathBuf {
        self.folder.path().join("control")
    }

    /// One command to the control socket, as soon as it is served.
    fn ask(&mut self, name: &str, arguments: Option<Value>) -> Value {
        let control = self.control();
        let (client, _events) =
            self.wait_for(|| Client::connect(&control, &client::Options::default()).ok());
        client.execute_raw(name, arguments).unwrap()
    }

    /// Asks until the answer is as wanted.
    fn ask_until(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let control = self.control();
        let (client, _events) =
            self.wait_for(|| Client::connect(&control, &client::Options::default()).ok());
        self.wait_for(|| {
            let reply = client.execute_raw("query-tier", None).unwrap();
            wanted(&reply).then_some(reply)
        })
    }

    fn wait_for<T>(&mut self, mut look: impl FnMut() -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the agent ended ({status}): {}", self.log());
            }
            assert!(started.elapsed() < FOR_EVER, "it never came");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < FOR_EVER, "the agent does not end");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&mut self) -> String {
        let mut log = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut log).unwrap();
        }
        log
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Fails for one that has ended, as it should.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn query_tier_when_asked_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);

    let reply = agent.ask_until(|reply| {
        let bytes = reply["tiers"][0]["bytes"].as_u64().unwrap();
        let is_settled = reply["source"]["down"].is_string() || reply["source"]["samples"] != 0;
        bytes == 31 * MIB && is_settled
    });

    assert_eq!(reply["name"], "played");
    if reply["source"]["down"].is_string() {
        assert_eq!(reply["state"], "blind", "{reply}");
    }
    for key in ["kind", "samples", "accepted", "dropped"] {
        assert!(!reply["source"][key].is_null(), "source.{key} in {reply}");
    }
    for (rank, tier) in reply["tiers"].as_array().unwrap().iter().enumerate() {
        assert_eq!(tier["rank"], rank);
        assert_eq!(tier["nodes"], json!([0]));
        assert!(tier["limit-bytes"].is_null());
    }
    for key in ["promoted-bytes", "demoted-bytes", "failed", "page-sizes"] {
        assert!(!reply[key].is_null(), "{key} in {reply}");
    }
    assert!(reply.as_object().unwrap().contains_key("hit-ratio"));
    let sizes = reply["page-sizes"].as_object().unwrap().values();
    assert_eq!(
        sizes.map(|bytes| bytes.as_u64().unwrap()).sum::<u64>(),
        31 * MIB
    );
}

#[test]
fn orders_when_given_over_the_control_socket_are_obeyed() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);

    assert_eq!(agent.ask("tier-pause", None)["state"], "paused");
    assert_ne!(agent.ask("tier-resume", None)["state"], "paused");
    let limited = agent.ask("tier-set-limit", Some(json!({"bytes": 4096})));
    assert_eq!(limited["tiers"][0]["limit-bytes"], 4096);
    let unlimited = agent.ask("tier-set-limit", None);
    assert!(unlimited["tiers"][0]["limit-bytes"].is_null());
}

#[test]
fn agent_when_told_to_end_does_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask("query-tier", None);

    agent.terminate();

    assert_eq!(agent.ended().code(), Some(0), "{}", agent.log());
    assert!(!agent.control().exists());
    let left = std::fs::read_dir(agent.folder.path().join("run"));
    let left: Vec<_> = left
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    let records = left
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "json"));
    assert_eq!(records.count(), 0, "{left:?}");
}

#[test]
fn agent_when_the_monitor_is_lost_says_so_and_takes_it_up_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let qemu = Qemu::new();
    let server = qemu.serve(&path);
    let mut agent = Agent::start(folder);
    agent.ask_until(|reply| reply["state"] != "detached");

    drop(server);
    agent.ask_until(|reply| reply["state"] == "detached");
    let _server = qemu.serve(&path);
    agent.ask_until(|reply| reply["state"] != "detached");

    agent.terminate();
    assert_eq!(agent.ended().code(), Some(0), "{}", agent.log());
}

#[test]
fn agent_when_the_monitor_hangs_from_the_start_ends_with_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    qemu.hangs.store(true, Ordering::Relaxed);
    let server = qemu.serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);

    let status = agent.ended();

    qemu.hangs.store(false, Ordering::Relaxed);
    drop(server);
    assert_eq!(status.code(), Some(1));
    let log = agent.log();
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.starts_with("vmm-tier:"))
        .collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(!agent.control().exists());
}

#[test]
fn agent_when_told_to_end_while_the_monitor_hangs_at_the_start_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    qemu.hangs.store(true, Ordering::Relaxed);
    let server = qemu.serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.wait_for(|| (server.stats().clients > 0).then_some(()));

    agent.terminate();
    qemu.hangs.store(false, Ordering::Relaxed);

    assert_eq!(agent.ended().code(), Some(0), "{}", agent.log());
    assert!(!agent.control().exists());
}

#[test]
fn agent_when_the_monitor_hangs_in_mid_run_still_answers_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let server = qemu.serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask("query-tier", None);

    qemu.hangs.store(true, Ordering::Relaxed);
    // The layout may have changed: the agent asks the monitor.
    let event = json!({
        "event": "RESET",
        "data": {"guest": true, "reason": "guest-reset"},
        "timestamp": {"seconds": 1, "microseconds": 0}
    });
    server.broadcast(&serde_json::from_value(event).unwrap());
    agent.ask("query-tier", None);
    agent.terminate();
    let status = agent.ended();

    qemu.hangs.store(false, Ordering::Relaxed);
    assert_eq!(status.code(), Some(0), "{}", agent.log());
}

#[test]
fn agent_when_the_guest_stops_and_runs_again_follows() {
    let folder = tempfile::tempdir().unwrap();
    let server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask("query-tier", None);

    for (event, is_stopped) in [("STOP", true), ("RESUME", false)] {
        let event = json!({"event": event, "timestamp": {"seconds": 1, "microseconds": 0}});
        server.broadcast(&serde_json::from_value(event).unwrap());
        agent.ask_until(|reply| (reply["state"] == "guest-stopped") == is_stopped);
    }
}

#[test]
fn agent_when_its_guest_is_killed_ends_with_success() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let mut played = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "played_qemu_when_asked_has_the_memory_it_tells_of",
        ])
        .env(PLAY, &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !path.exists() && started.elapsed() < FOR_EVER {
        thread::sleep(Duration::from_millis(10));
    }
    let mut agent = Agent::start(folder);
    agent.ask("query-tier", None);

    played.kill().unwrap();
    played.wait().unwrap();

    assert_eq!(agent.ended().code(), Some(0));
    assert!(!agent.control().exists());
    assert!(agent.log().contains("the guest has ended"));
}

/// What the other tests rest on. With [`PLAY`] set this process serves until it is killed.
#[test]
fn played_qemu_when_asked_has_the_memory_it_tells_of() {
    let qemu = Qemu::new();
    if let Some(path) = std::env::var_os(PLAY) {
        let _server = qemu.serve(Path::new(&path));
        thread::sleep(FOR_EVER);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let _server = qemu.serve(&path);
    let (client, _events) = Client::connect(&path, &client::Options::default()).unwrap();
    let end = qemu.ram.as_ptr() as u64 + qemu.ram.len() as u64;
    assert!(qemu.base() + 32 * MIB <= end);
    let text = client.hmp("gpa2hva 0x100000").unwrap();
    assert!(
        text.contains(&format!("{:#x}", qemu.base() + MIB)),
        "{text}"
    );
}
