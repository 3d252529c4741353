//! Client and server with each other: out-of-band commands, file descriptors, callbacks, and
//! connecting again.

use std::{
    io::{Read, Write, pipe},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, Weak, mpsc},
    thread,
    time::Duration,
};

use crossbeam::channel::{Receiver, Sender, bounded};
use qmp::{
    Client, Event, MAX_FDS, QmpError, Server,
    client::{self, ExecuteError, Observer, Reconnecting, Request, Resync},
    server::{self, CommandSpec, Handler},
};
use serde_json::{Map, Value, json};

use crate::support::{self, PATIENCE, Raw, send_fds, socket};

const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "wait",
        doc: "Waits for the test.",
        ..CommandSpec::PLAIN
    },
    CommandSpec {
        name: "poke",
        doc: "Does nothing.",
        oob: true,
        ..CommandSpec::PLAIN
    },
    CommandSpec {
        name: "take",
        doc: "Writes into the file descriptors that it gets.",
        fds: true,
        ..CommandSpec::PLAIN
    },
];

struct Waiting {
    begun: Sender<()>,
    go_on: Receiver<()>,
}

impl Handler for Waiting {
    fn commands(&self) -> &[CommandSpec] {
        COMMANDS
    }

    fn handle(&self, name: &str, _: Map<String, Value>) -> Result<Value, QmpError> {
        if name == "wait" {
            self.begun.send(()).unwrap();
            self.go_on.recv_timeout(PATIENCE).unwrap();
        }
        Ok(json!(name))
    }

    fn handle_with_fds(
        &self,
        _: &str,
        _: Map<String, Value>,
        fds: Vec<OwnedFd>,
    ) -> Result<Value, QmpError> {
        let count = fds.len();
        for fd in fds {
            std::fs::File::from(fd).write_all(b"x").unwrap();
        }
        Ok(json!(count))
    }
}

/// A server, and the test's ends of its command that waits.
fn bind(path: &Path) -> (Server, Receiver<()>, Sender<()>) {
    let (begun, has_begun) = bounded(8);
    let (goes_on, go_on) = bounded(8);
    let options = server::Options {
        oob: true,
        ..server::Options::default()
    };
    let handler = Arc::new(Waiting { begun, go_on });
    (
        Server::bind(path, handler, options).unwrap(),
        has_begun,
        goes_on,
    )
}

fn connect(path: &Path, oob: bool) -> Client {
    let options = client::Options {
        oob,
        command_timeout: PATIENCE,
        ..client::Options::default()
    };
    Client::connect(path, &options).unwrap().0
}

#[test]
fn out_of_band_command_overtakes_the_one_under_way() {
    let (_folder, path) = socket();
    let (_server, has_begun, goes_on) = bind(&path);
    let client = connect(&path, true);

    let slow = client.send("wait", None).unwrap();
    has_begun.recv_timeout(PATIENCE).unwrap();
    let poke = Request::new("poke").out_of_band();
    let poked = client.send_request(&poke).unwrap().wait(PATIENCE).unwrap();
    let refused = client.send_request(&Request::new("wait").out_of_band());
    let refused = refused.unwrap().wait(PATIENCE).unwrap_err();
    goes_on.send(()).unwrap();

    assert_eq!(poked, json!("poke"));
    let refusal = refused.refusal().unwrap();
    assert_eq!(refusal.desc, "The command wait does not support OOB");
    assert_eq!(slow.wait(PATIENCE).unwrap(), json!("wait"));
}

#[test]
fn out_of_band_command_is_refused_when_it_was_not_negotiated() {
    let (_folder, path) = socket();
    let (_server, ..) = bind(&path);
    let client = connect(&path, false);

    let error = client.send_request(&Request::new("poke").out_of_band());

    let error = error.unwrap_err();
    assert!(matches!(error, ExecuteError::Unsendable { .. }), "{error}");
    let mut raw = Raw::connect(&path);
    assert_eq!(raw.message()["QMP"]["capabilities"], json!(["oob"]));
    raw.ask("{'execute':'qmp_capabilities'}");
    for (request, text) in [
        (
            "{'exec-oob':'poke'}",
            "QMP input member 'exec-oob' is unexpected",
        ),
        (
            "{'exec-oob':1}",
            "QMP input member 'exec-oob' is unexpected",
        ),
    ] {
        assert_eq!(raw.ask(request)["error"]["desc"], text);
    }
}

#[test]
fn error_is_qemus_own_when_an_out_of_band_request_is_wrong() {
    let (_folder, path) = socket();
    let (_server, ..) = bind(&path);
    let mut raw = Raw::connect(&path);
    raw.message();
    raw.ask("{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}");

    for (request, text) in [
        (
            "{'exec-oob':1}",
            "QMP input member 'exec-oob' must be a string",
        ),
        (
            "{'exec-oob':'poke','execute':'poke'}",
            "QMP input member 'execute' clashes with 'exec-oob'",
        ),
        ("{'exec-oob':'nope'}", "The command nope has not been found"),
        ("{'x':1}", "QMP input member 'x' is unexpected"),
        ("{}", "QMP input lacks member 'execute'"),
    ] {
        assert_eq!(raw.ask(request)["error"]["desc"], text, "{request}");
    }
    assert_eq!(
        raw.ask("{'exec-oob':'poke','id':1}"),
        json!({"return": "poke", "id": 1})
    );
}

#[test]
fn connection_ends_when_a_handler_panics_beside_the_reading_thread() {
    struct Panics;
    impl Handler for Panics {
        fn commands(&self) -> &[CommandSpec] {
            COMMANDS
        }

        fn handle(&self, _: &str, _: Map<String, Value>) -> Result<Value, QmpError> {
            panic!("the mistake")
        }
    }
    let (_folder, path) = socket();
    let options = server::Options {
        oob: true,
        ..server::Options::default()
    };
    let server = Server::bind(&path, Arc::new(Panics), options).unwrap();
    let client = connect(&path, true);

    let error = client.execute_raw("wait", None).unwrap_err();

    assert!(matches!(error, ExecuteError::Closed { .. }), "{error}");
    support::wait_until("its place to be free", || server.stats().clients == 0);
}

#[test]
fn handler_gets_the_file_descriptors_that_came_with_its_command() {
    let (_folder, path) = socket();
    let (_server, ..) = bind(&path);
    let client = connect(&path, false);
    let (mut reader, writer) = pipe().unwrap();

    let fds = [writer.as_fd(), writer.as_fd()];
    let take = Request::new("take").fds(&fds);
    let count = client.send_request(&take).unwrap().wait(PATIENCE).unwrap();
    let too_many = vec![writer.as_fd(); MAX_FDS + 1];
    let refused = client.send_request(&Request::new("take").fds(&too_many));
    let none = client.execute_raw("take", None).unwrap();

    assert_eq!((count, none), (json!(2), json!(0)));
    assert!(matches!(refused, Err(ExecuteError::Unsendable { .. })));
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "xx");
}

#[test]
fn connection_goes_on_when_more_file_descriptors_come_than_it_takes() {
    let (_folder, path) = socket();
    let (_server, ..) = bind(&path);
    let mut raw = Raw::connect(&path);
    raw.message();
    raw.ask("{'execute':'qmp_capabilities'}");
    let (mut reader, writer) = pipe().unwrap();

    for _ in 0..100 {
        send_fds(&raw.stream, b" ", &[writer.as_fd(); MAX_FDS]);
    }
    drop(writer);

    assert_eq!(raw.ask("{'execute':'take'}"), json!({"return": MAX_FDS}));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text.len(), MAX_FDS, "all others are closed");
}

#[test]
fn callbacks_and_observed_events_come_in_the_order_of_the_wire() {
    struct Log(Mutex<Vec<String>>);
    impl Observer for Log {
        fn event(&self, event: &Event) {
            self.0.lock().unwrap().push(event.name.clone());
        }

        fn closed(&self) {
            self.0.lock().unwrap().push("closed".to_owned());
        }
    }
    let (_folder, path) = socket();
    let (server, ..) = bind(&path);
    let client = connect(&path, false);
    let log = Arc::new(Log(Mutex::default()));
    let observer: Weak<Log> = Arc::downgrade(&log);
    client.observe(observer);
    let (done, is_done) = mpsc::channel();

    for round in 0..3 {
        server.broadcast(&Event::now(format!("E{round}"), Value::Null));
        let (log, done) = (Arc::clone(&log), done.clone());
        let take_down = move |reply: Result<Value, QmpError>| {
            log.0.lock().unwrap().push(reply.unwrap().to_string());
            done.send(()).unwrap();
        };
        client.submit(&Request::new("poke"), take_down).unwrap();
        is_done.recv_timeout(PATIENCE).unwrap();
    }
    drop(server);
    support::wait_until("the end", || log.0.lock().unwrap().len() == 7);

    let log = log.0.lock().unwrap();
    assert_eq!(log.concat(), "E0\"poke\"E1\"poke\"E2\"poke\"closed");
}

#[test]
fn callback_is_dropped_when_the_connection_is_lost() {
    let (_folder, path) = socket();
    let (server, has_begun, goes_on) = bind(&path);
    let client = connect(&path, false);
    let (called, calls) = mpsc::channel();

    let call = move |reply: Result<Value, QmpError>| called.send(reply).unwrap();
    client.submit(&Request::new("wait"), call).unwrap();
    has_begun.recv_timeout(PATIENCE).unwrap();
    drop(client);

    let lost = calls.recv_timeout(PATIENCE);
    assert_eq!(lost, Err(mpsc::RecvTimeoutError::Disconnected));
    goes_on.send(()).unwrap();
    drop(server);
}

#[test]
fn everything_is_to_be_asked_anew_when_the_server_comes_back() {
    let (_folder, path) = socket();
    let mut reconnecting = Reconnecting::new(&path, client::Options::default());
    assert!(reconnecting.poll().is_err());
    let until_connected = |reconnecting: &mut Reconnecting| -> Resync {
        loop {
            thread::sleep(reconnecting.due_in().min(Duration::from_millis(5)));
            if let Ok(Some(resync)) = reconnecting.poll() {
                return resync;
            }
        }
    };

    let (server, ..) = bind(&path);
    let first = until_connected(&mut reconnecting);
    drop(server);
    assert!(first.events.recv_timeout(PATIENCE).is_err());
    let (_server, ..) = bind(&path);
    let second = until_connected(&mut reconnecting);

    assert_eq!((first.generation, second.generation), (1, 2));
    // Both were served by this very process.
    assert!(!first.is_new_process && !second.is_new_process);
    assert_eq!(
        second.client.execute_raw("poke", None).unwrap(),
        json!("poke")
    );
}
