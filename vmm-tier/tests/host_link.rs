//! `vmm-tier run --host` beside a process that plays QEMU, and a host daemon that is played too.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use qmp::{
    QmpError,
    server::{CommandSpec, Handler, MemberSpec, Options, Server, TypeSpec},
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tier_sys::{process, sysroot::SysRoot};

use crate::played::{Agent, FOR_EVER, MIB, Qemu};

const fn member(name: &'static str, kind: TypeSpec, optional: bool) -> MemberSpec {
    MemberSpec {
        name,
        kind,
        optional,
        doc: "",
    }
}

const fn command(name: &'static str, args: &'static [MemberSpec]) -> CommandSpec {
    CommandSpec {
        name,
        doc: "",
        args,
        ..CommandSpec::PLAIN
    }
}

const PAIRS: TypeSpec = TypeSpec::Array(&TypeSpec::Array(&TypeSpec::Number));

const COMMANDS: &[CommandSpec] = &[
    command(
        "host-register",
        &[
            member("name", TypeSpec::String, false),
            member("pid", TypeSpec::Uint, false),
            member("pid-start", TypeSpec::Uint, false),
            member("memory-bytes", TypeSpec::Uint, false),
            member("page-bytes", TypeSpec::Uint, false),
            member("limit-bytes", TypeSpec::Uint, true),
            member("share-bytes", TypeSpec::Uint, true),
            member("control", TypeSpec::String, true),
        ],
    ),
    command(
        "host-report",
        &[
            member("number", TypeSpec::Uint, false),
            member("made-ns", TypeSpec::Uint, false),
            member("curve", PAIRS, false),
            member("ram", PAIRS, false),
            member("fast-bytes", TypeSpec::Uint, false),
            member("present-bytes", TypeSpec::Uint, false),
            member("limit-bytes", TypeSpec::Uint, true),
            member("limit-in-force-bytes", TypeSpec::Uint, true),
            member("state", TypeSpec::String, false),
            member("source", TypeSpec::String, true),
            member("waits-for", TypeSpec::String, true),
            member("hit-ratio", TypeSpec::Number, true),
            member("promoted-bytes", TypeSpec::Uint, false),
            member("demoted-bytes", TypeSpec::Uint, false),
        ],
    ),
];

/// A daemon that grants what it is told to, and keeps what it hears.
struct Daemon {
    share_bytes: AtomicU64,
    registered: Mutex<Vec<Value>>,
    reported: Mutex<Vec<Value>>,
}

impl Daemon {
    fn granting(share_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            share_bytes: AtomicU64::new(share_bytes),
            registered: Mutex::default(),
            reported: Mutex::default(),
        })
    }

    fn serve(self: &Arc<Self>, path: &Path) -> Server {
        let handler = Arc::clone(self);
        Server::bind(path, handler, Options::default()).unwrap()
    }

    fn grant(&self, share_bytes: u64) {
        self.share_bytes.store(share_bytes, Ordering::Relaxed);
    }
}

impl Handler for Daemon {
    fn commands(&self) -> &[CommandSpec] {
        COMMANDS
    }

    fn handle(&self, name: &str, arguments: Map<String, Value>) -> Result<Value, QmpError> {
        let heard = match name {
            "host-register" => &self.registered,
            _ => &self.reported,
        };
        heard.lock().unwrap().push(Value::Object(arguments));
        Ok(json!({
            "share-bytes": self.share_bytes.load(Ordering::Relaxed),
            "lease-ms": 3000,
            "report-ms": 500,
            "move-bytes-per-s": 8 * MIB,
        }))
    }
}

fn start(folder: TempDir) -> (Agent, PathBuf) {
    let socket = folder.path().join("host.sock");
    let more = format!("host = '{}'\n", socket.display());
    (Agent::start_in(Arc::new(folder), &more), socket)
}

#[test]
fn share_when_granted_bounds_the_guest_beside_the_operators_limit_and_ends_with_its_lease() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let (mut agent, socket) = start(folder);
    let reply = agent.ask_until(|reply| !reply["host"]["trouble"].is_null());
    assert_eq!(reply["host"]["state"], "unreached");
    let trouble = reply["host"]["trouble"].as_str().unwrap();
    assert!(trouble.contains("no host daemon serves"), "{trouble}");
    assert!(reply["tiers"][0]["limit-bytes"].is_null());
    assert!(reply["host"]["limit-owner"].is_null());

    let daemon = Daemon::granting(12 * MIB);
    let server = daemon.serve(&socket);
    let (_client, events) = agent.client();
    let reply = agent.ask_until(|reply| reply["tiers"][0]["limit-bytes"] == 12 * MIB);
    let host = &reply["host"];
    assert_eq!(host["state"], "registered");
    assert_eq!(host["limit-owner"], "host");
    assert_eq!(host["share-bytes"], 12 * MIB);
    assert_eq!(host["move-bytes-per-s"], 8 * MIB);
    assert_eq!(host["rate-in-force-bytes-per-s"], 8 * MIB);
    assert_eq!(reply["rate-bytes-per-s"], 256 * MIB, "the policy stays");
    // In a dry run nothing is moved: the guest asks for what it holds.
    assert_eq!(host["demand-basis"], "held");
    let limit = || loop {
        let event = events.recv_timeout(FOR_EVER).unwrap();
        // The state may change meanwhile.
        if event.name == "TIER_LIMIT" {
            return event.data;
        }
    };
    assert_eq!(limit(), json!({"new": 12 * MIB, "who": "host"}));

    // The lesser of both is in force.
    let reply = agent.ask("tier-set-limit", Some(json!({"bytes": 8 * MIB})));
    assert_eq!(reply["tiers"][0]["limit-bytes"], 8 * MIB);
    assert_eq!(reply["host"]["limit-owner"], "operator");
    let expected = json!({"old": 12 * MIB, "new": 8 * MIB, "who": "operator"});
    assert_eq!(limit(), expected);
    let reply = agent.ask("tier-set-limit", Some(json!({"bytes": 20 * MIB})));
    assert_eq!(reply["tiers"][0]["limit-bytes"], 12 * MIB);
    assert_eq!(reply["host"]["operator-limit-bytes"], 20 * MIB);
    let expected = json!({"old": 8 * MIB, "new": 12 * MIB, "who": "host"});
    assert_eq!(limit(), expected);
    daemon.grant(u64::MAX);
    agent.ask_until(|reply| reply["tiers"][0]["limit-bytes"] == 20 * MIB);
    daemon.grant(4 * MIB);
    agent.ask_until(|reply| reply["tiers"][0]["limit-bytes"] == 4 * MIB);

    // The daemon dies: the last share holds, then the operator's limit, which no share has touched.
    drop(server);
    let died = Instant::now();
    let reply = agent.ask_until(|reply| reply["host"]["state"] == "unreached");
    assert_eq!(reply["tiers"][0]["limit-bytes"], 4 * MIB);
    let reply = agent.ask_until(|reply| reply["tiers"][0]["limit-bytes"] != 4 * MIB);
    assert!(
        died.elapsed() > Duration::from_secs(2),
        "{:?}",
        died.elapsed()
    );
    assert_eq!(reply["tiers"][0]["limit-bytes"], 20 * MIB);
    assert_eq!(reply["host"]["limit-owner"], "operator");
    assert_eq!(reply["host"]["leases-ended"], 1);
    assert_eq!(reply["host"]["rate-in-force-bytes-per-s"], 256 * MIB);

    // A share is nothing that commands have set.
    agent.kill();
    let mut agent = Agent::start_in(Arc::clone(&agent.folder), "");
    let reply = agent.ask_until(|reply| !reply["restored"].is_null());
    assert_eq!(reply["tiers"][0]["limit-bytes"], 20 * MIB);
    assert!(reply["host"].is_null(), "no daemon was named");
}

#[test]
fn reports_when_a_daemon_takes_them_say_who_the_guest_is_and_what_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let daemon = Daemon::granting(16 * MIB);
    let _daemon = daemon.serve(&folder.path().join("host.sock"));
    let (mut agent, _) = start(folder);
    agent.ask_until(|reply| {
        reply["host"]["reports"].as_u64() >= Some(3) && reply["tiers"][0]["bytes"] == 31 * MIB
    });
    let known = daemon.reported.lock().unwrap().len();
    let report = agent.wait_for(|| daemon.reported.lock().unwrap().get(known).cloned());
    let registered = daemon.registered.lock().unwrap().clone();

    let pid = std::process::id();
    let stat = process::stat(&SysRoot::real(), pid).unwrap();
    assert_eq!(registered.len(), 1, "{registered:?}");
    assert_eq!(registered[0]["name"], "played");
    assert_eq!(registered[0]["pid"], pid);
    assert_eq!(registered[0]["pid-start"], stat.start_ticks);
    assert_eq!(registered[0]["page-bytes"], 4096);
    assert_eq!(report["fast-bytes"], 31 * MIB);
    assert_eq!(report["present-bytes"], 31 * MIB);
    assert_eq!(report["limit-in-force-bytes"], 16 * MIB);
    assert!(report["limit-bytes"].is_null());
    assert_eq!(report["curve"], json!([[31 * MIB, 31.0 * 256.0]]));
    // The guest sees no RAM in the first MiB of its block.
    let ram = json!([[qemu.base() + MIB, 31 * MIB]]);
    assert_eq!(report["ram"], ram);
    let states = ["starting", "running", "blind"];
    assert!(
        states.contains(&report["state"].as_str().unwrap()),
        "{report}"
    );
    let numbers = daemon.reported.lock().unwrap();
    let numbers = numbers.iter().map(|report| report["number"].as_u64());
    let numbers: Vec<Option<u64>> = numbers.collect();
    let expected: Vec<Option<u64>> = (1..=numbers.len() as u64).map(Some).collect();
    assert_eq!(numbers, expected);
}
