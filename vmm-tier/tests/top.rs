//! `vmm-tier top` as a process: on a terminal with keys, and into a pipe.

use std::{
    io::Read as _,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    host::{Daemon, HostAgent, MIB, Sleeper, command, ended},
    played::{Agent, Qemu},
    tmux::Tmux,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_vmm-tier");

/// Agents that report until this is dropped.
struct Reporting {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
    _qemus: Vec<Sleeper>,
}

impl Reporting {
    fn start(folder: &Path, socket: &Path, names: &[&str]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let qemus: Vec<Sleeper> = names.iter().map(|_| Sleeper::start(folder)).collect();
        let report = |(name, qemu): (&&str, &Sleeper)| {
            let (socket, name, pid) = (socket.to_owned(), (*name).to_owned(), qemu.pid());
            let stop = Arc::clone(&stop);
            let mut agent = HostAgent::connect(&socket, &name, pid);
            agent.register().unwrap();
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let report = agent.report();
                    // The daemon may be gone.
                    let _ = agent.say(report);
                    thread::sleep(Duration::from_millis(500));
                }
            })
        };
        let threads = names.iter().zip(&qemus).map(report).collect();
        Self {
            stop,
            threads,
            _qemus: qemus,
        }
    }
}

impl Drop for Reporting {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A recording of some seconds of three VMs.
fn recording(folder: &Path, seconds: u64) -> std::path::PathBuf {
    let path = folder.join("hour");
    let mut text = "{\"vmm-tier-host-recording\": 1}\n".to_owned();
    for at in 0..seconds {
        let vm = |number: u64| {
            json!({"name": format!("vm{number}"), "state": "reporting", "fast-bytes": (number + at) * MIB,
                   "share-bytes": 20 * MIB, "entitled-bytes": 20 * MIB, "hit-ratio": 0.5})
        };
        let host = json!({"at-ms": 1_796_091_245_000 + at * 1000, "mode": "weighted", "pool-bytes": 60 * MIB,
                          "fairness": {"jain": 0.9}, "vms": [vm(1), vm(2), vm(3)]});
        text += &format!("{host}\n");
    }
    std::fs::write(&path, text).unwrap();
    path
}

fn top(arguments: &[&str], columns: &str) -> Output {
    let mut program = Command::new(PROGRAM);
    program.arg("top").args(arguments).env("COLUMNS", columns);
    program.output().unwrap()
}

#[test]
fn top_when_keys_are_typed_shows_views_and_survives_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path(), "");
    let names = ["vm-a", "vm-b"];
    let reporting = Reporting::start(folder.path(), &daemon.socket, &names);
    let socket = daemon.socket.display().to_string();
    let run = format!("NO_COLOR=1 {PROGRAM} top {socket}; echo left with $?; exec sleep 60");
    let Some(tmux) = Tmux::start(folder.path(), (80, 24), &run) else {
        return;
    };

    tmux.wait_for("both VMs", |screen| {
        names.iter().all(|name| screen.contains(name))
    });
    let screen = tmux.wait_for_text("live");
    assert!(
        screen.contains("weighted") && screen.contains("fairness"),
        "{screen}"
    );
    tmux.keys(&["/", "-", "b", "Enter"]);
    tmux.wait_for("the filter", |screen| {
        !screen.contains("vm-a") && screen.contains("vm-b")
    });
    tmux.keys(&["v"]);
    tmux.wait_for_text("ALL FIGURES");
    // A key that follows Escape at once is another key.
    tmux.keys(&["Escape"]);
    tmux.wait_for_text("Enter VM");
    tmux.keys(&["?"]);
    tmux.wait_for_text("KEYS");
    tmux.keys(&["Escape"]);
    tmux.wait_for_text("filter: -b");

    drop(reporting);
    daemon.kill();
    let screen = tmux.wait_for_text("last seen");
    assert!(screen.contains("vm-b"), "what was known stays: {screen}");
    let daemon = Daemon::start(folder.path(), "");
    tmux.wait_for_text("live");
    tmux.keys(&["q"]);
    let screen = tmux.wait_for_text("left with 0");
    assert!(
        !screen.contains("fairness"),
        "the screen is as before: {screen}"
    );
    drop(daemon);
}

#[test]
fn terminal_when_a_signal_ends_top_is_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let file = recording(folder.path(), 60);
    let file = file.display();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        // The shell stays, so the terminal's state can be asked for.
        let run =
            format!("{PROGRAM} top --replay {file}; echo left with $?; stty -a; exec sleep 60");
        let Some(tmux) = Tmux::start(folder.path(), (80, 24), &run) else {
            return;
        };
        tmux.wait_for_text("vm3");
        let pid = Pid::from_raw(tmux.child().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
        let screen = tmux.wait_for_text("echoctl");
        assert!(screen.contains("left with 0"), "{signal:?}: {screen}");
        assert!(
            screen.contains(" icanon") && screen.contains(" echo "),
            "{screen}"
        );
        assert!(!screen.contains("vm3"), "{screen}");
    }
}

#[test]
fn recording_when_played_obeys_the_keys() {
    let folder = tempfile::tempdir().unwrap();
    let file = recording(folder.path(), 600);
    let run = format!("{PROGRAM} top --replay {}", file.display());
    let Some(tmux) = Tmux::start(folder.path(), (100, 30), &run) else {
        return;
    };
    tmux.wait_for_text("of 09:59");
    tmux.keys(&["Space"]);
    tmux.wait_for_text("paused 1×");
    tmux.keys(&["0", "]", "]", "Right", "."]);
    let screen = tmux.wait_for_text("02:11 of 09:59");
    // vm1 holds a MiB more each second.
    assert!(screen.contains("132 MiB"), "{screen}");
    tmux.keys(&["+", "+", "Space"]);
    tmux.wait_for_text("play 5×");
    tmux.wait_for("time passes", |screen| !screen.contains("02:11 of"));
}

#[test]
fn daemon_when_told_to_record_writes_what_top_shows() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hour");
    let host = || {
        let pool = "[pool]\nbytes = '64M'\nnodes = '0'\n";
        let mut host = command(folder.path(), "host", pool);
        host.arg("--record").arg(&file);
        host
    };
    let mut child = host().stderr(Stdio::null()).spawn().unwrap();
    let path = file.display().to_string();
    let told = loop {
        let output = top(&["--replay", &path, "--json"], "80");
        if output.status.success() {
            break serde_json::from_slice::<Value>(&output.stdout).unwrap();
        }
        thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(
        (&told["pool-bytes"], &told["at-ms"]),
        (&json!(64 * MIB), &Value::Null)
    );
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    let (is_ok, said) = ended(host());
    assert!(
        !is_ok && said.contains("exists: name another file"),
        "{said}"
    );
}

#[test]
fn figures_when_printed_once_fit_and_a_pipe_that_closes_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = recording(folder.path(), 60).display().to_string();
    let table = top(&["--replay", &path, "--once", "--at", "30s"], "40");
    let text = String::from_utf8(table.stdout).unwrap();
    assert!(table.status.success() && text.contains("vm3"), "{text}");
    assert!(
        text.lines().all(|line| line.chars().count() <= 40),
        "{text}"
    );
    assert!(text.contains("31 MiB"), "vm1 after 30 s: {text}");
    let csv = top(&["--replay", &path, "--csv", "--sort", "fast-bytes"], "40");
    let text = String::from_utf8(csv.stdout).unwrap();
    assert!(text.lines().nth(1).unwrap().starts_with("vm3,"), "{text}");

    let mut program = Command::new(PROGRAM);
    program.args(["top", "--replay", &path, "--json"]);
    let piped = program.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    assert_eq!(said, "");

    let refused = |arguments: &[&str]| {
        let output = top(arguments, "80");
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&["--replay", &path]).contains("the output is no terminal: use --once"));
    assert!(refused(&["/nowhere/host.sock", "--once"]).contains("/nowhere/host.sock"));
    assert!(refused(&["--replay", "/dev/zero", "--once"]).contains("is no regular file"));
    let both = refused(&["--once", "--json"]);
    assert!(both.contains("cannot be used with"), "{both}");
}

#[test]
fn agent_when_asked_without_a_daemon_tells_its_vm() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask("query-tier", None);
    let control = agent.control().display().to_string();
    let text = String::from_utf8(top(&[&control, "--once"], "80").stdout).unwrap();
    for part in ["VM  ", "TIERS", "SOURCES", "ALL FIGURES", "uptime-s"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let csv = String::from_utf8(top(&[&control, "--csv"], "80").stdout).unwrap();
    assert_eq!(csv.lines().count(), 2, "{csv}");

    let run = format!("{PROGRAM} top {control}");
    let place = tempfile::tempdir().unwrap();
    let Some(tmux) = Tmux::start(place.path(), (80, 24), &run) else {
        return;
    };
    tmux.wait_for_text("TIERS");
    tmux.keys(&["h"]);
    let screen = tmux.wait_for_text("of RAM");
    assert!(
        screen.contains("HEAT") && screen.contains("a block"),
        "{screen}"
    );
}
