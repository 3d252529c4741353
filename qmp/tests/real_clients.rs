//! The clients that people use: qemu.qmp, its library and its `qmp-shell`, against a server of ours, and
//! against a live QEMU through the proxy.
//!
//! `scripts/setup` unpacks qemu.qmp into the cache folder. Without it, or without Python, the tests say
//! `SKIPPED:` and why.

use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use qmp::{
    Client, Event, Proxy, QmpError, Server, client, proxy,
    server::{CommandSpec, Handler, MemberSpec, Options, TypeSpec},
};
use serde_json::{Map, Value, json};

use crate::support::{
    live::{Live, unpacked},
    socket, wait_until,
};

const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "tier-echo",
        doc: "Gives its argument back.",
        args: &[MemberSpec::needed("bytes", TypeSpec::Uint, "any number")],
        returns: TypeSpec::Uint,
        ..CommandSpec::PLAIN
    },
    CommandSpec {
        name: "tier-fail",
        doc: "Fails.",
        ..CommandSpec::PLAIN
    },
];

struct Echo;

impl Handler for Echo {
    fn commands(&self) -> &[CommandSpec] {
        COMMANDS
    }

    fn handle(&self, name: &str, mut arguments: Map<String, Value>) -> Result<Value, QmpError> {
        match name {
            "tier-echo" => Ok(arguments.remove("bytes").unwrap_or_default()),
            _ => Err(QmpError::generic("it failed")),
        }
    }
}

/// Python with qemu.qmp; `None`, said aloud, if it can't be had here.
fn python() -> Option<Command> {
    let clients = unpacked("clients").unwrap_or_default();
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", &clients);
    let works = Command::new("python3")
        .env("PYTHONPATH", &clients)
        .args(["-c", "import qemu.qmp"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !works {
        println!("SKIPPED: no python3 with qemu.qmp (scripts/setup brings it where pip works)");
    }
    works.then_some(command)
}

/// Has the library carry out commands on a socket: one answer each.
fn session(mut python: Command, path: &Path, commands: &[Value]) -> Vec<Value> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/clients/session.py");
    let commands = commands.iter().map(Value::to_string);
    let output = python.arg(script).arg(path).args(commands).output();
    said(&output.unwrap())
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Types lines into qmp-shell; what it says.
fn shell(python: Command, path: &Path, lines: &str) -> String {
    said(&type_into_shell(python, path, lines))
}

fn type_into_shell(mut python: Command, path: &Path, lines: &str) -> Output {
    let home = tempfile::tempdir().unwrap();
    let mut shell = python
        .args(["-m", "qemu.qmp.qmp_shell", "-p"])
        .arg(path)
        .env("HOME", home.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keyboard = shell.stdin.take().unwrap();
    keyboard.write_all(lines.as_bytes()).unwrap();
    drop(keyboard);
    shell.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    text.into_owned()
}

#[test]
fn qemu_qmp_when_it_drives_a_server_gets_returns_errors_and_events() {
    let Some(python) = python() else { return };
    let (_folder, path) = socket();
    let server = Server::bind(&path, Arc::new(Echo), Options::default()).unwrap();
    let events = server.events();
    let heard = Arc::new(AtomicBool::new(false));
    let ticking = thread::spawn({
        let heard = Arc::clone(&heard);
        move || {
            // Until the client is there to hear one.
            while !heard.load(Ordering::Relaxed) {
                events.send(&Event::now("TIER_TICK", Value::Null));
                thread::sleep(Duration::from_millis(50));
            }
        }
    });

    let answers = session(
        python,
        &path,
        &[
            json!(["tier-echo", {"bytes": u64::MAX}]),
            json!(["tier-fail", null]),
            json!(["no-such", null]),
            json!(["tier-echo", {"bytes": -1}]),
            json!(["query-commands", null]),
            json!(["query-qmp-schema", null]),
            json!(["wait", "TIER_TICK"]),
        ],
    );

    heard.store(true, Ordering::Relaxed);
    ticking.join().unwrap();
    assert_eq!(answers[0], json!({"return": u64::MAX}));
    assert_eq!(
        answers[1],
        json!({"error": {"class": "GenericError", "desc": "it failed"}})
    );
    assert_eq!(answers[2]["error"]["class"], "CommandNotFound");
    assert_eq!(
        answers[3]["error"]["desc"],
        "Parameter 'bytes' expects uint64"
    );
    let names = answers[4]["return"].as_array().unwrap();
    assert!(names.contains(&json!({"name": "tier-echo"})), "{names:?}");
    let schema = answers[5]["return"].as_array().unwrap();
    let command = |entity: &&Value| entity["name"] == "tier-echo";
    assert_eq!(schema.iter().find(command).unwrap()["meta-type"], "command");
    assert_eq!(answers[6]["event"], "TIER_TICK");
}

#[test]
fn qmp_shell_when_a_person_types_shows_the_replies() {
    let Some(python) = python() else { return };
    let (_folder, path) = socket();
    let _server = Server::bind(&path, Arc::new(Echo), Options::default()).unwrap();

    let text = shell(python, &path, "tier-echo bytes=4096\ntier-fail\n");

    assert!(text.contains("\"return\": 4096"), "{text}");
    assert!(text.contains("it failed"), "{text}");
}

#[test]
fn qemu_qmp_when_it_drives_a_live_qemu_through_the_proxy_sees_both() {
    let Some(python) = python() else { return };
    let (folder, path) = socket();
    let monitor = folder.path().join("qemu");
    let Some(_qemu) = Live::start(&[&monitor]) else {
        return;
    };
    let (client, _events) = Client::connect(&monitor, &client::Options::default()).unwrap();
    let client = Arc::new(client);
    let _proxy = Proxy::bind(&path, Arc::clone(&client), Arc::new(Echo), proxy::options()).unwrap();

    let answers = session(
        python,
        &path,
        &[
            json!(["query-version", null]),
            json!(["tier-echo", {"bytes": 1}]),
            json!(["device_add", {"driver": "no-such"}]),
            json!(["query-commands", null]),
            json!(["query-qmp-schema", null]),
            json!(["query-status", null]),
            json!(["stop", null]),
            json!(["cont", null]),
        ],
    );

    let version = &client.version().qemu;
    assert_eq!(answers[0]["return"]["qemu"]["major"], version.major);
    assert_eq!(answers[1], json!({"return": 1}));
    assert_eq!(answers[2]["error"]["class"], "GenericError");
    let has = |answer: &Value, name: &str| {
        let list = answer["return"].as_array().unwrap();
        list.iter().any(|entity| entity["name"] == name)
    };
    for list in [&answers[3], &answers[4]] {
        assert!(has(list, "tier-echo") && has(list, "query-memory-devices"));
    }
    assert_eq!(answers[5]["return"]["running"], true);
    assert_eq!(answers[7], json!({"return": {}}));
}

#[test]
fn qmp_shell_when_it_ends_qemu_through_the_proxy_is_told() {
    let Some(python) = python() else { return };
    let (folder, path) = socket();
    let monitor = folder.path().join("qemu");
    let Some(mut qemu) = Live::start(&[&monitor]) else {
        return;
    };
    let (client, _events) = Client::connect(&monitor, &client::Options::default()).unwrap();
    let _proxy = Proxy::bind(&path, Arc::new(client), Arc::new(Echo), proxy::options()).unwrap();

    let output = type_into_shell(python, &path, "query-status\ntier-echo bytes=7\nquit\n");

    // Its exit status says nothing: where QEMU is gone before the shell has closed, it ends with a
    // traceback, and does so too when nothing stands between them.
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\"running\": true"), "{text}");
    assert!(text.contains("\"return\": 7"), "{text}");
    assert!(qemu.0.wait().unwrap().success());
    wait_until("the proxy's socket to go", || !path.exists());
}
