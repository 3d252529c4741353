//! The daemon's page in a real Chromium, which `page/browser.mjs` drives by Playwright.

use std::{
    env,
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use qmp::{
    QmpError,
    server::{CommandSpec, Handler, MemberSpec, Options, Server, TypeSpec},
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::host::{HostAgent, MIB, Sleeper, command};

/// What is needed to drive a browser.
struct Tools {
    chromium: PathBuf,
    node: PathBuf,
    /// Where `playwright-core` and `axe-core` are.
    modules: PathBuf,
}

impl Tools {
    /// The tools, or what is missing.
    fn find() -> Result<Self, &'static str> {
        let in_path = |names: &[&str]| {
            let path = env::var_os("PATH").unwrap_or_default();
            let folders: Vec<PathBuf> = env::split_paths(&path).collect();
            let mut files = names
                .iter()
                .flat_map(|name| folders.iter().map(move |it| it.join(name)));
            files.find(|file| file.exists())
        };
        let cache = env::var_os("VMM_TIER_CACHE")
            .map(PathBuf::from)
            .or_else(|| {
                let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
                let base = base.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cache")));
                Some(base?.join("vmm-tier"))
            });
        let modules = cache.map(|cache| cache.join("browser/node_modules"));
        Ok(Self {
            chromium: in_path(&["chromium", "google-chrome"]).ok_or("no chromium")?,
            node: in_path(&["node", "nodejs"]).ok_or("no node")?,
            modules: modules
                .filter(|it| it.join("playwright-core").exists() && it.join("axe-core").exists())
                .ok_or("no playwright-core and axe-core")?,
        })
    }
}

/// A daemon that serves the page.
struct Daemon {
    process: Child,
    address: String,
}

impl Daemon {
    fn start(folder: &Path, pool: &str, http: &str) -> Self {
        let config = format!("[pool]\nbytes = '{pool}'\nnodes = '0'\n");
        let mut process = command(folder, "host", &config)
            .args(["--http", http])
            .env_remove("VMM_TIER_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("{said}")).unwrap();
            if let Some((_, rest)) = line.split_once("http://") {
                break rest.split('/').next().unwrap().to_owned();
            }
            said += &line;
        };
        // Whoever writes to a pipe that nobody reads ends.
        thread::spawn(move || lines.for_each(drop));
        Self { process, address }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An agent's control socket: what it answers has the form of docs/qmp.md.
struct Control;

const fn plain(name: &'static str, args: &'static [MemberSpec]) -> CommandSpec {
    CommandSpec {
        name,
        doc: "",
        args,
        ..CommandSpec::PLAIN
    }
}

const fn number(name: &'static str) -> MemberSpec {
    MemberSpec::needed(name, TypeSpec::Uint, "")
}

const COMMANDS: &[CommandSpec] = &[
    plain("query-tier", &[]),
    plain("query-tier-demand", &[]),
    plain("query-tier-moves", &[number("count")]),
    plain("query-tier-heatmap", &[number("rows"), number("columns")]),
    plain("tier-explain", &[number("address")]),
    plain("tier-pause", &[]),
];

impl Handler for Control {
    fn commands(&self) -> &[CommandSpec] {
        COMMANDS
    }

    fn handle(&self, name: &str, arguments: Map<String, Value>) -> Result<Value, QmpError> {
        Ok(match name {
            "query-tier-demand" => {
                let point = |at: i32| json!({"bytes": f64::from(at) * 2e6, "accesses-per-s": 1e6 * (1.0 - 0.9_f64.powi(at))});
                json!({"basis": "measured", "curve": (1..=64).map(point).collect::<Vec<_>>()})
            }
            "query-tier-moves" => {
                let one = |at: u64| {
                    json!({
                        "gpa": at * 4096, "direction": if at.is_multiple_of(2) { "promote" } else { "demote" },
                        "outcome": if at.is_multiple_of(9) { "pinned" } else { "moved" }, "node": at % 2, "seconds-ago": at as f64 * 1.5,
                    })
                };
                json!({"moves": (0..100).map(one).collect::<Vec<_>>()})
            }
            "query-tier-heatmap" => {
                let (rows, columns) = (32, 64);
                let cell = |at: u64| {
                    let heat = 400.0 * (-((at as f64 - 600.0) / 120.0).powi(2)).exp();
                    let share = match at {
                        1900.. => None,
                        500..700 => Some(1.0),
                        700..760 => Some(0.5),
                        _ => Some(0.0),
                    };
                    json!({"gpa": at * 131_072, "rate": heat + (at % 13) as f64 / 20.0, "fast-share": share})
                };
                let cells: Vec<Value> = (0..rows * columns).map(cell).collect();
                json!({"rows": rows, "columns": columns, "ram-bytes": 256 * MIB, "cells": cells})
            }
            "tier-explain" => json!({
                "gpa": arguments["address"], "would-move-if": "it is hotter",
                "sentences": ["The page lies on the fast tier.", "This is why it lies there: it is hot."],
            }),
            _ => json!({
                "name": "vm1", "uptime-s": 4000, "state": "running", "policy": "dual-heap", "half-life-s": 10.0,
                "waits-because": "The hottest slow page is not hotter than the coldest fast page with certainty.",
                "rate-bytes-per-s": 256 * MIB, "promoted-bytes": 90 * MIB, "demoted-bytes": 80 * MIB,
                "page-sizes": {"4096": 100 * MIB, "2097152": 100 * MIB}, "failed": {"pinned": 12, "busy": 3},
                "tiers": [
                    {"rank": 0, "nodes": [0], "bytes": 8 * MIB, "limit-bytes": 9 * MIB, "free-bytes": 900 * MIB},
                    {"rank": 1, "nodes": [1, 2], "bytes": 192 * MIB, "free-bytes": 4000 * MIB},
                ],
                "sources": [
                    {"kind": "damon", "health": "good", "believed": true, "quality": 0.83, "coverage": 1.0, "accepted-per-s": 20000.0},
                    {"kind": "ibs", "health": "down", "believed": false, "quality": null, "coverage": null, "accepted-per-s": 0.0},
                ],
                "pins": {"ranges": [{"start": 1 << 20, "bytes": 2 * MIB, "tier": "fast", "placed-bytes": 2 * MIB, "elsewhere-bytes": 0}]},
                "pools": [{"page-size": 2 * MIB, "nodes": [{"node": 0, "pages": 64, "free": 3, "surplus": 0}]}],
            }),
        })
    }
}

/// Agents that register, report, and come back when the daemon was gone. The first serves a control
/// socket.
struct Agents {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
    _qemus: Vec<Sleeper>,
    _control: Server,
}

impl Agents {
    fn start(folder: &Path, count: usize) -> Self {
        let control = folder.join("vm1.sock");
        let server = Server::bind(&control, Arc::new(Control), Options::default()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let qemus: Vec<Sleeper> = (0..count).map(|_| Sleeper::start(folder)).collect();
        let threads = (qemus.iter().zip(1..))
            .map(|(qemu, number)| {
                let (pid, socket) = (qemu.pid(), folder.join("host"));
                let (stop, name) = (stop.clone(), format!("vm{number}"));
                let control = (number == 1).then(|| control.clone());
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        serve(&socket, &name, pid, control.as_deref(), &stop);
                        thread::sleep(Duration::from_millis(300));
                    }
                })
            })
            .collect();
        Self {
            stop,
            threads,
            _qemus: qemus,
            _control: server,
        }
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// An agent, until the daemon is gone or `stop` says so.
fn serve(socket: &Path, name: &str, pid: u32, control: Option<&Path>, stop: &AtomicBool) {
    if !socket.exists() {
        return;
    }
    let connected = std::panic::catch_unwind(|| HostAgent::connect(socket, name, pid));
    let Ok(mut agent) = connected else { return };
    let mut told = agent.told();
    if let Some(control) = control {
        told["control"] = json!(control);
    }
    if agent
        .client
        .execute_raw("host-register", Some(told))
        .is_err()
    {
        return;
    }
    while !stop.load(Ordering::Relaxed) {
        let mut report = agent.report();
        report["waits-for"] = json!("gain");
        if agent.say(report).is_err() {
            return;
        }
        thread::sleep(Duration::from_millis(950));
    }
}

/// Has the browser work on a daemon with so many VMs.
fn browse(work: &str, vms: usize, pool: &str) {
    let tools = match Tools::find() {
        Ok(tools) => tools,
        Err(missing) => {
            println!("SKIPPED: {missing}: run scripts/setup");
            return;
        }
    };
    let folder = TempDir::new().unwrap();
    let mut daemon = Daemon::start(folder.path(), pool, "0");
    let address = daemon.address.clone();
    let _agents = Agents::start(folder.path(), vms);
    let token = std::fs::read_to_string(folder.path().join("run/http.token")).unwrap();
    let shots = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    std::fs::create_dir_all(&shots).unwrap();
    wait_for(&folder.path().join("host"), vms);
    let log = shots.join(format!("{work}.log"));
    let mut browser = Command::new(&tools.node)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/browser.mjs"))
        .env("MODULES", &tools.modules)
        .env("CHROMIUM", &tools.chromium)
        .env("ADDRESS", &address)
        .env("TOKEN", token.trim())
        .env("VMS", vms.to_string())
        .env("SHOTS", &shots)
        .env("WORK", work)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut tell = browser.stdin.take().unwrap();
    for line in BufReader::new(browser.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        match line.as_str() {
            "PLEASE kill" => {
                daemon.process.kill().unwrap();
                daemon.process.wait().unwrap();
            }
            "PLEASE start" => daemon = Daemon::start(folder.path(), pool, &address),
            said => {
                println!("{said}");
                continue;
            }
        }
        tell.write_all(b"done\n").unwrap();
    }
    let status = browser.wait().unwrap();
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(status.success(), "{said}");
}

/// Waits until all VMs report, and have shares.
fn wait_for(socket: &Path, vms: usize) {
    let options = qmp::client::Options::default();
    let (client, _events) = qmp::Client::connect(socket, &options).unwrap();
    for _ in 0..600 {
        let told = client.execute_raw("query-host", None).unwrap();
        let told = told["vms"].as_array().unwrap();
        let dealt = told.iter().filter(|vm| vm["share-bytes"].is_u64()).count();
        if dealt == vms {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("the VMs never had shares");
}

#[test]
fn page_when_used_shows_filters_orders_and_tells_of_a_dead_daemon() {
    browse("use", 12, "256M");
}

#[test]
#[ignore = "a measurement: two minutes"]
fn page_with_200_vms_costs_little() {
    browse("measure", 200, "8G");
}
