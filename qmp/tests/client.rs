//! The client against servers that follow a script.

use std::{
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use crossbeam::channel::RecvTimeoutError;
use qmp::{
    Client, ErrorClass, EventKind,
    client::{Closed, ConnectError, ExecuteError, Options},
    commands::{QueryMemdev, QueryStatus, RunState, Stop},
};
use serde_json::{Value, json};

use crate::support::{PATIENCE, Raw, socket, wait_until};

const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2, \"minor\": 0, \
                        \"major\": 10}, \"package\": \"\"}, \"capabilities\": [\"oob\"]}}\r\n";
const STAMP: &str = "\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}";
/// Short enough for a test that waits for it.
const SHORT: Duration = Duration::from_millis(50);

fn options() -> Options {
    Options {
        connect_timeout: PATIENCE,
        greeting_timeout: PATIENCE,
        command_timeout: PATIENCE,
        ..Options::default()
    }
}

/// Serves one client by `script` and hands back what the script returns.
fn serve<T: Send + 'static>(
    path: &Path,
    script: impl FnOnce(Raw) -> T + Send + 'static,
) -> JoinHandle<T> {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || script(Raw::new(listener.accept().unwrap().0)))
}

/// Greets and negotiates as QEMU does.
fn greet(raw: &mut Raw) {
    raw.send(GREETING);
    let request = raw.message();
    assert_eq!(request["execute"], "qmp_capabilities");
    raw.send(json!({"return": {}, "id": request["id"]}).to_string() + "\r\n");
}

fn reply(raw: &mut Raw, request: &Value, value: &Value) {
    raw.send(json!({"return": value, "id": request["id"]}).to_string() + "\r\n");
}

fn status() -> Value {
    json!({"running": true, "status": "running", "new-in-11.0": 1})
}

fn failure(path: &Path, options: &Options) -> (ConnectError, String) {
    let error = Client::connect(path, options)
        .map(drop)
        .expect_err("connecting must fail");
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    (error, text)
}

#[test]
fn reply_is_typed_when_the_server_follows_the_rules() {
    let (_folder, path) = socket();
    let server = serve(&path, |mut raw| {
        greet(&mut raw);
        let request = raw.message();
        reply(&mut raw, &request, &status());
        request
    });

    let (client, _events) = Client::connect(&path, &options()).unwrap();
    let answer = client.execute(&QueryStatus).unwrap();

    assert_eq!((answer.running, answer.status), (true, RunState::Running));
    assert_eq!(client.version().qemu.major, 10);
    assert_eq!(client.peer().pid, std::process::id());
    let request = server.join().unwrap();
    assert_eq!(request["execute"], "query-status");
    assert!(request.get("arguments").is_none(), "{request}");
}

#[test]
fn each_caller_gets_its_reply_when_replies_come_out_of_order() {
    let (_folder, path) = socket();
    let server = serve(&path, |mut raw| {
        greet(&mut raw);
        let (first, second) = (raw.message(), raw.message());
        reply(&mut raw, &second, &json!("second"));
        reply(&mut raw, &first, &json!("first"));
    });
    let (client, _events) = Client::connect(&path, &options()).unwrap();

    let first = client.send("a", None).unwrap();
    let second = client.send("b", Some(json!({"x": 1}))).unwrap();

    assert_eq!(first.wait(PATIENCE).unwrap(), json!("first"));
    assert_eq!(second.wait(PATIENCE).unwrap(), json!("second"));
    server.join().unwrap();
}

#[test]
fn event_is_there_when_it_came_before_the_reply() {
    let (_folder, path) = socket();
    let server = serve(&path, |mut raw| {
        greet(&mut raw);
        let request = raw.message();
        raw.send(format!("{{\"event\": \"STOP\", {STAMP}}}\r\n"));
        reply(&mut raw, &request, &json!({}));
    });
    let (client, events) = Client::connect(&path, &options()).unwrap();

    client.execute(&Stop).unwrap();

    let event = events.try_recv().unwrap();
    assert_eq!(
        (event.kind(), event.timestamp.microseconds),
        (EventKind::Stop, 2)
    );
    server.join().unwrap();
}

#[test]
fn oldest_events_are_dropped_and_counted_when_nobody_takes_them() {
    let (_folder, path) = socket();
    let server = serve(&path, |mut raw| {
        greet(&mut raw);
        for actual in 0..100 {
            raw.send(format!(
                "{{\"event\": \"BALLOON_CHANGE\", \"data\": {{\"actual\": {actual}}}, {STAMP}}}"
            ));
        }
        let request = raw.message();
        reply(&mut raw, &request, &status());
    });
    let few = Options {
        event_capacity: 10,
        ..options()
    };
    let (client, events) = Client::connect(&path, &few).unwrap();

    client.execute(&QueryStatus).unwrap();

    let kinds: Vec<_> = events.try_iter().map(|event| event.kind()).collect();
    let newest: Vec<_> = (90..100)
        .map(|actual| EventKind::BalloonChange { actual })
        .collect();
    assert_eq!(kinds, newest);
    assert_eq!(client.events_lost(), 90);
    server.join().unwrap();
}

#[test]
fn refusal_tells_class_and_text_when_the_command_fails() {
    let (_folder, path) = socket();
    let server = serve(&path, |mut raw| {
        greet(&mut raw);
        let request = raw.message();
        let error = json!({"class": "DeviceNotActive", "desc": "No balloon device"});
        raw.send(json!({"error": error, "id": request["id"]}).to_string());
    });
    let (client, _events) = Client::connect(&path, &options()).unwrap();

    let error = client.execute_raw("query-balloon", None).unwrap_err();

    assert_eq!(
        error.refusal().map(|error| &error.class),
        Some(&ErrorClass::DeviceNotActive)
    );
    let text = error.to_string();
    assert!(
        text.contains("query-balloon") && text.contains("No balloon device"),
        "{text}"
    );
    server.join().unwrap();
}

#[test]
fn late_reply_is_dropped_and_counted_when_its_command_timed_out() {
    let (_folder, path) = socket();
    let server = serve(&path, |mut raw| {
        greet(&mut raw);
        let (late, next) = (raw.message(), raw.message());
        reply(&mut raw, &late, &json!("late"));
        reply(&mut raw, &next, &status());
    });
    let (client, _events) = Client::connect(&path, &options()).unwrap();

    let error = client.send("slow", None).unwrap().wait(SHORT).unwrap_err();
    let answer = client.execute(&QueryStatus).unwrap();

    assert!(matches!(error, ExecuteError::TimedOut { ref command, .. } if command == "slow"));
    assert!(answer.running);
    assert_eq!(client.late_replies(), 1);
    server.join().unwrap();
}

#[test]
fn reply_is_whole_when_it_is_huge() {
    let (_folder, path) = socket();
    let text = "x".repeat(3 << 20);
    let sent = text.clone();
    let server = serve(&path, move |mut raw| {
        greet(&mut raw);
        let request = raw.message();
        reply(&mut raw, &request, &json!(sent));
    });
    let (client, _events) = Client::connect(&path, &options()).unwrap();

    let answer = client.hmp("info mtree").unwrap();

    assert!(answer == text, "{} bytes of {}", answer.len(), text.len());
    server.join().unwrap();
}

#[test]
fn reply_of_another_shape_is_an_error_that_names_the_command() {
    let (_folder, path) = socket();
    let server = serve(&path, |mut raw| {
        greet(&mut raw);
        let request = raw.message();
        reply(&mut raw, &request, &json!([{"size": "big"}]));
    });
    let (client, _events) = Client::connect(&path, &options()).unwrap();

    let error = client.execute(&QueryMemdev).unwrap_err();

    assert!(matches!(error, ExecuteError::UnexpectedReply { .. }));
    assert!(error.to_string().contains("query-memdev"), "{error}");
    server.join().unwrap();
}

#[test]
fn waiting_call_ends_when_the_server_closes_in_the_middle_of_a_message() {
    let (_folder, path) = socket();
    let server = serve(&path, |mut raw| {
        greet(&mut raw);
        let request = raw.message();
        raw.send(format!(
            "{{\"return\": {{\"running\": true, \"id\": {}",
            request["id"]
        ));
    });
    let (client, events) = Client::connect(&path, &options()).unwrap();

    let error = client.execute(&QueryStatus).unwrap_err();

    let reason = Closed::Eof { mid_message: true };
    assert!(matches!(&error, ExecuteError::Closed { reason: found, .. } if *found == reason));
    assert_eq!(
        events.recv_timeout(PATIENCE),
        Err(RecvTimeoutError::Disconnected)
    );
    assert_eq!(client.closed(), Some(reason));
    // A later command fails at once, for the same reason.
    assert!(matches!(
        client.execute(&QueryStatus),
        Err(ExecuteError::Closed { .. })
    ));
    server.join().unwrap();
}

#[test]
fn channel_disconnects_when_the_server_leaves_with_unread_commands() {
    let (_folder, path) = socket();
    let (leave, wait) = mpsc::channel::<()>();
    let server = serve(&path, move |mut raw| {
        greet(&mut raw);
        wait.recv().unwrap();
    });
    let (client, events) = Client::connect(&path, &options()).unwrap();

    let in_flight = client.send("query-status", None).unwrap();
    leave.send(()).unwrap();

    // Linux tells ECONNRESET when bytes were left unread.
    assert_eq!(
        events.recv_timeout(PATIENCE),
        Err(RecvTimeoutError::Disconnected)
    );
    let error = in_flight.wait(PATIENCE).unwrap_err();
    assert!(
        matches!(
            error,
            ExecuteError::Closed {
                reason: Closed::Reset,
                ..
            }
        ),
        "{error}"
    );
    server.join().unwrap();
}

#[test]
fn connection_ends_when_the_server_sends_garbage() {
    let (_folder, path) = socket();
    let server = serve(&path, |mut raw| {
        greet(&mut raw);
        raw.send("Segmentation fault\n");
        raw.next()
    });
    let (client, events) = Client::connect(&path, &options()).unwrap();

    assert_eq!(
        events.recv_timeout(PATIENCE),
        Err(RecvTimeoutError::Disconnected)
    );

    wait_until("the reason", || client.closed().is_some());
    assert!(matches!(client.closed(), Some(Closed::Garbled(_))));
    assert_eq!(server.join().unwrap(), None);
}

#[test]
fn dropping_the_client_closes_the_connection_and_disconnects_the_channel() {
    let (_folder, path) = socket();
    let server = serve(&path, |mut raw| {
        greet(&mut raw);
        raw.next()
    });
    let (client, events) = Client::connect(&path, &options()).unwrap();

    drop(client);

    assert_eq!(server.join().unwrap(), None);
    assert_eq!(
        events.recv_timeout(PATIENCE),
        Err(RecvTimeoutError::Disconnected)
    );
}

#[test]
fn error_says_start_qemu_when_there_is_no_socket() {
    let (_folder, path) = socket();

    let (error, text) = failure(&path, &options());

    assert!(matches!(error, ConnectError::NoSuchFile { .. }));
    assert!(text.contains("-qmp unix:"), "{text}");
}

#[test]
fn error_says_stale_when_nobody_serves_the_socket() {
    let (_folder, path) = socket();
    drop(UnixListener::bind(&path).unwrap());

    let (error, text) = failure(&path, &options());

    assert!(matches!(error, ConnectError::NobodyServes { .. }));
    assert!(text.contains("left the socket behind"), "{text}");
}

#[test]
fn error_says_so_when_the_path_is_no_socket_or_too_long() {
    let (folder, path) = socket();
    std::fs::write(&path, "").unwrap();
    let long = folder.path().join("x".repeat(200));

    assert!(matches!(
        failure(&path, &options()).0,
        ConnectError::NotASocket { .. }
    ));
    assert!(matches!(
        failure(&long, &options()).0,
        ConnectError::PathTooLong { .. }
    ));
}

#[test]
fn error_says_no_permission_when_the_socket_is_another_users() {
    let (_folder, path) = socket();
    let _listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    if rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: root may connect to every socket");
        return;
    }

    assert!(matches!(
        failure(&path, &options()).0,
        ConnectError::PermissionDenied { .. }
    ));
}

#[test]
fn error_says_another_client_holds_it_when_no_greeting_comes() {
    let (_folder, path) = socket();
    // Never accepted: as a second client of a QEMU monitor.
    let _listener = UnixListener::bind(&path).unwrap();
    let short = Options {
        greeting_timeout: SHORT,
        ..options()
    };

    let (error, text) = failure(&path, &short);

    assert!(matches!(error, ConnectError::NoGreeting { .. }));
    assert!(
        text.contains("another client") && text.contains("-qmp unix:"),
        "{text}"
    );
}

#[test]
fn error_shows_the_first_bytes_when_something_else_answers() {
    for banner in [
        "QEMU 10.0.2 monitor - type 'help' for more information\r\n(qemu) ",
        "hello\u{1b}[2J world\r\n",
        "220 mail ready\r\n",
        "{\"return\": {}}\r\n",
        "12345",
        "\u{0}\u{0}\u{0}",
    ] {
        let (_folder, path) = socket();
        let server = serve(&path, move |mut raw| {
            raw.send(format!("{banner}{}", "5".repeat(1000)));
            raw.next()
        });
        let short = Options {
            greeting_timeout: SHORT,
            ..options()
        };

        let (error, text) = failure(&path, &short);

        let ConnectError::NotQmp { first_bytes, .. } = error else {
            panic!("{banner}: {error}")
        };
        assert!(!first_bytes.is_empty() && first_bytes.len() < 200);
        assert!(!text.chars().any(char::is_control), "{text}");
        server.join().unwrap();
    }
}

#[test]
fn error_says_lost_when_the_server_closes_instead_of_greeting() {
    let (_folder, path) = socket();
    let server = serve(&path, drop);

    let (error, _) = failure(&path, &options());

    let reason = Closed::Eof { mid_message: false };
    assert!(matches!(&error, ConnectError::Lost { reason: found, .. } if *found == reason));
    server.join().unwrap();
}

#[test]
fn error_says_refused_when_negotiation_fails() {
    let (_folder, path) = socket();
    let server = serve(&path, |mut raw| {
        raw.send(GREETING);
        raw.message();
        raw.send("{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}, \"id\": 0}");
        raw.next()
    });

    let (error, text) = failure(&path, &options());

    assert!(matches!(error, ConnectError::NegotiationRefused { .. }));
    assert!(text.contains("CommandNotFound: no"), "{text}");
    server.join().unwrap();
}

#[test]
fn error_says_hangs_when_negotiation_gets_no_reply() {
    let (_folder, path) = socket();
    let server = serve(&path, |mut raw| {
        raw.send(GREETING);
        raw.message();
        raw.next()
    });
    let short = Options {
        command_timeout: SHORT,
        ..options()
    };

    let (error, _) = failure(&path, &short);

    assert!(matches!(error, ConnectError::NegotiationTimedOut { .. }));
    server.join().unwrap();
}

#[test]
fn connection_ends_when_the_server_takes_no_bytes() {
    let (_folder, path) = socket();
    let (end, wait) = mpsc::channel::<()>();
    let server = serve(&path, move |mut raw| {
        greet(&mut raw);
        raw.stream.flush().unwrap();
        wait.recv().unwrap();
    });
    let short = Options {
        command_timeout: SHORT,
        ..options()
    };
    let (client, _events) = Client::connect(&path, &short).unwrap();

    // More than a socket buffer holds.
    let error = client
        .execute_raw("x", Some(json!({"x": "y".repeat(4 << 20)})))
        .unwrap_err();

    assert!(
        matches!(
            error,
            ExecuteError::Closed {
                reason: Closed::Write { .. },
                ..
            }
        ),
        "{error}"
    );
    end.send(()).unwrap();
    server.join().unwrap();
}
