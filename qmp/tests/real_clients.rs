//! The clients that people use: qemu.qmp, its library and its `qmp-shell`, against a server of ours.
//!
//! `scripts/setup` unpacks qemu.qmp into the cache folder. Without it, or without Python, the tests say
//! `SKIPPED:` and why.

mod support;

use std::{
    env,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use qmp::{
    Event, QmpError, Server,
    server::{CommandSpec, Handler, MemberSpec, Options, TypeSpec},
};
use serde_json::{Map, Value, json};
use support::socket;

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
    let cache = env::var_os("VMM_TIER_CACHE")
        .map(PathBuf::from)
        .or_else(|| {
            let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let home = || Some(Path::new(&env::var_os("HOME")?).join(".cache"));
            Some(base.or_else(home)?.join("vmm-tier"))
        });
    let clients = cache?.join("clients");
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

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    text.into_owned()
}

#[test]
fn qemu_qmp_when_it_drives_a_server_gets_returns_errors_and_events() {
    let Some(mut python) = python() else { return };
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
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/clients/session.py");

    let output = python
        .arg(script)
        .arg(&path)
        .arg(json!(["tier-echo", {"bytes": u64::MAX}]).to_string())
        .arg(json!(["tier-fail", null]).to_string())
        .arg(json!(["no-such", null]).to_string())
        .arg(json!(["tier-echo", {"bytes": -1}]).to_string())
        .arg(json!(["query-commands", null]).to_string())
        .arg(json!(["query-qmp-schema", null]).to_string())
        .arg(json!(["wait", "TIER_TICK"]).to_string())
        .output();
    heard.store(true, Ordering::Relaxed);
    ticking.join().unwrap();

    let answers: Vec<Value> = said(&output.unwrap())
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
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
    let Some(mut python) = python() else { return };
    let (folder, path) = socket();
    let _server = Server::bind(&path, Arc::new(Echo), Options::default()).unwrap();
    let mut shell = python
        .args(["-m", "qemu.qmp.qmp_shell", "-p"])
        .arg(&path)
        .env("HOME", folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();

    let mut keyboard = shell.stdin.take().unwrap();
    keyboard
        .write_all(b"tier-echo bytes=4096\ntier-fail\n")
        .unwrap();
    drop(keyboard);
    let text = said(&shell.wait_with_output().unwrap());

    assert!(text.contains("\"return\": 4096"), "{text}");
    assert!(text.contains("it failed"), "{text}");
}
