//! The server against clients that keep the rules, and clients that don't.

use std::{
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use qmp::{
    Client, Event, QmpError, Server,
    client::Options as ClientOptions,
    commands::QueryCommands,
    server::{BindError, CommandSpec, Connection, Handler, MemberSpec, Options, TypeSpec},
};
use serde_json::{Map, Value, json};

use crate::support::{Raw, socket, wait_until};

const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "echo",
        doc: "Gives its argument back.",
        args: &[MemberSpec::needed(
            "text",
            TypeSpec::String,
            "what to give back",
        )],
        returns: TypeSpec::String,
        ..CommandSpec::PLAIN
    },
    CommandSpec {
        name: "void",
        doc: "Does nothing.",
        ..CommandSpec::PLAIN
    },
    CommandSpec {
        name: "fail",
        doc: "Fails.",
        ..CommandSpec::PLAIN
    },
    CommandSpec {
        name: "big",
        doc: "Returns 64 KiB.",
        returns: TypeSpec::String,
        ..CommandSpec::PLAIN
    },
    CommandSpec {
        name: "panic",
        doc: "Has a mistake in it.",
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
            "echo" => Ok(arguments.remove("text").unwrap_or_default()),
            "void" => Ok(Value::Null),
            "big" => Ok(Value::String("x".repeat(64 << 10))),
            "panic" => panic!("the mistake"),
            _ => Err(QmpError::generic("it failed")),
        }
    }
}

fn bind(path: &Path) -> Server {
    Server::bind(path, Arc::new(Echo), Options::default()).unwrap()
}

/// A negotiated client.
fn negotiated(path: &Path) -> Raw {
    let mut raw = Raw::connect(path);
    assert!(raw.message()["QMP"]["version"]["qemu"]["major"].is_u64());
    assert_eq!(
        raw.ask("{'execute':'qmp_capabilities'}"),
        json!({"return": {}})
    );
    raw
}

fn error(class: &str, desc: &str) -> Value {
    json!({"error": {"class": class, "desc": desc}})
}

#[test]
fn commands_are_refused_when_nothing_was_negotiated() {
    let (_folder, path) = socket();
    let _server = bind(&path);
    let mut raw = Raw::connect(&path);
    raw.message();

    let not_yet = error(
        "CommandNotFound",
        "Expecting capabilities negotiation with 'qmp_capabilities'",
    );
    assert_eq!(raw.ask("{'execute':'void'}"), not_yet);
    assert_eq!(raw.ask("{'execute':'no-such'}"), not_yet);
    assert_eq!(
        raw.ask("{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}"),
        error("GenericError", "Capability oob not available")
    );
    assert_eq!(
        raw.ask("{'execute':'qmp_capabilities','arguments':{'enable':['x']}}"),
        error(
            "GenericError",
            "Parameter 'enable[0]' does not accept value 'x'"
        )
    );
    assert_eq!(
        raw.ask("{'execute':'qmp_capabilities','arguments':{'enable':[]},'id':1}"),
        json!({"return": {}, "id": 1})
    );
    assert_eq!(
        raw.ask("{'execute':'qmp_capabilities','arguments':{}}"),
        error(
            "CommandNotFound",
            "Capabilities negotiation is already complete, command ignored"
        )
    );
}

#[test]
fn error_is_qemus_own_and_the_connection_goes_on_when_a_request_is_wrong() {
    let (_folder, path) = socket();
    let _server = bind(&path);
    let mut raw = negotiated(&path);

    for (request, class, desc) in [
        ("[1]", "GenericError", "QMP input must be a JSON object"),
        ("{}", "GenericError", "QMP input lacks member 'execute'"),
        (
            "{'execute':1}",
            "GenericError",
            "QMP input member 'execute' must be a string",
        ),
        (
            "{'execute':'void','arguments':1}",
            "GenericError",
            "QMP input member 'arguments' must be an object",
        ),
        (
            "{'execute':'void','x':1}",
            "GenericError",
            "QMP input member 'x' is unexpected",
        ),
        (
            "{'exec-oob':'void'}",
            "GenericError",
            "QMP input member 'exec-oob' is unexpected",
        ),
        (
            "{'execute':'nope'}",
            "CommandNotFound",
            "The command nope has not been found",
        ),
        (
            "{'execute':'echo'}",
            "GenericError",
            "Parameter 'text' is missing",
        ),
        (
            "{'execute':'echo','arguments':{'text':1}}",
            "GenericError",
            "Invalid parameter type for 'text', expected: string",
        ),
        (
            "{'execute':'void','arguments':{'y':1}}",
            "GenericError",
            "Parameter 'y' is unexpected",
        ),
        ("{'execute':'fail'}", "GenericError", "it failed"),
        (
            "{'execute' 1}",
            "GenericError",
            "JSON parse error, missing : in object pair",
        ),
        (
            "\u{7f}\n",
            "GenericError",
            "JSON parse error, stray '\\x7f'",
        ),
    ] {
        assert_eq!(raw.ask(request), error(class, desc), "{request}");
        assert_eq!(
            raw.ask("{'execute':'void'}"),
            json!({"return": {}}),
            "after {request}"
        );
    }
}

#[test]
fn id_comes_back_when_it_is_any_json_value() {
    let (_folder, path) = socket();
    let _server = bind(&path);
    let mut raw = negotiated(&path);

    for id in [
        json!(u64::MAX),
        json!("__qmp#00001"),
        json!(null),
        json!({"a": [1.5, "é"]}),
    ] {
        let reply = raw.ask(json!({"execute": "void", "id": id}).to_string());
        assert_eq!(reply, json!({"return": {}, "id": id}));
        let reply = raw.ask(json!({"execute": 1, "id": id}).to_string());
        assert_eq!(reply["id"], id);
    }
    // A parse error can't know the id.
    assert_eq!(raw.ask("{'execute':'void','id':1,,}").get("id"), None);
}

#[test]
fn replies_come_in_order_when_everything_is_sent_at_once_without_line_endings() {
    let (_folder, path) = socket();
    let _server = bind(&path);
    let mut raw = Raw::connect(&path);
    let mut requests = "{'execute':'qmp_capabilities'}".to_owned();
    for id in 0..500 {
        requests += &format!("{{'execute':'echo','arguments':{{'text':'t{id}'}},'id':{id}}}");
    }

    raw.send(requests);
    raw.stream.shutdown(std::net::Shutdown::Write).unwrap();

    assert!(raw.message().get("QMP").is_some());
    assert_eq!(raw.message(), json!({"return": {}}));
    for id in 0..500 {
        assert_eq!(raw.message(), json!({"return": format!("t{id}"), "id": id}));
    }
    // All replies were out before the server closed.
    assert_eq!(raw.next(), None);
}

#[test]
fn reply_comes_when_the_request_is_sent_byte_by_byte() {
    let (_folder, path) = socket();
    let _server = bind(&path);
    let mut raw = negotiated(&path);

    for byte in "{'execute':'echo','arguments':{'text':'a'}}".bytes() {
        raw.send([byte]);
    }

    assert_eq!(raw.message(), json!({"return": "a"}));
}

#[test]
fn output_is_one_ascii_line_ended_by_crlf() {
    use std::io::Read;

    let (_folder, path) = socket();
    let _server = bind(&path);
    let mut raw = negotiated(&path);

    raw.send("{'execute':'echo','arguments':{'text':'é\\n'}}");
    raw.stream.shutdown(std::net::Shutdown::Write).unwrap();

    let mut bytes = Vec::new();
    raw.stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"{\"return\":\"\\u00e9\\n\"}\r\n");
}

#[test]
fn neighbours_are_answered_when_one_message_is_beyond_the_limits() {
    let (_folder, path) = socket();
    let _server = bind(&path);
    let mut raw = negotiated(&path);
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let long = format!("{{'execute':'{}'}}", "x".repeat(2 << 20));

    for (request, text) in [(deep, "nesting depth"), (long, "token size")] {
        let reply = raw.ask(format!("{request}{{'execute':'void'}}"));

        let desc = reply["error"]["desc"].as_str().unwrap();
        assert!(desc.contains(text), "{desc}");
        assert_eq!(raw.message(), json!({"return": {}}));
    }
}

#[test]
fn commands_are_listed_when_asked_for() {
    let (_folder, path) = socket();
    let _server = bind(&path);

    let (client, _events) = Client::connect(&path, &ClientOptions::default()).unwrap();
    let commands = client.execute(&QueryCommands).unwrap();
    let version = client.execute(&qmp::commands::QueryVersion).unwrap();

    let names: Vec<_> = commands
        .iter()
        .map(|command| command.name.as_str())
        .collect();
    assert_eq!(names[..2], ["echo", "void"]);
    for own in ["qmp_capabilities", "query-commands", "query-version"] {
        assert!(names.contains(&own), "{own}");
    }
    assert_eq!(&version, client.version());
}

#[test]
fn schema_describes_every_command_that_is_listed() {
    let (_folder, path) = socket();
    let _server = bind(&path);
    let mut raw = negotiated(&path);

    let commands = raw.ask("{'execute':'query-commands'}");
    let schema = raw.ask("{'execute':'query-qmp-schema'}");

    let schema = schema["return"].as_array().unwrap();
    let find = |name: &Value| schema.iter().find(|entry| entry["name"] == *name);
    for command in commands["return"].as_array().unwrap() {
        let entry = find(&command["name"]).unwrap();
        assert_eq!(entry["meta-type"], "command");
        for side in ["arg-type", "ret-type"] {
            assert!(find(&entry[side]).is_some(), "{side} of {entry}");
        }
    }
    let echo = find(&json!("echo.arguments")).unwrap();
    let text = json!([{"name": "text", "type": "str"}]);
    assert_eq!(echo["members"], text);
    let error = raw.ask("{'execute':'query-qmp-schema','arguments':{'x':1}}");
    assert_eq!(error["error"]["desc"], "Parameter 'x' is unexpected");
}

#[test]
fn event_reaches_negotiated_clients_and_no_others() {
    let (_folder, path) = socket();
    let server = bind(&path);
    let mut first = negotiated(&path);
    let mut second = negotiated(&path);
    let mut silent = Raw::connect(&path);
    silent.message();
    // The reply to a further command shows that the server noted the negotiation.
    for raw in [&mut first, &mut second] {
        raw.ask("{'execute':'void'}");
    }

    server.broadcast(&Event::now("TIER_STATE", json!({"state": "active"})));

    for raw in [&mut first, &mut second] {
        let event = raw.message();
        assert_eq!(event["event"], "TIER_STATE");
        assert_eq!(event["data"], json!({"state": "active"}));
        assert!(event["timestamp"]["seconds"].as_i64().unwrap() > 1_700_000_000);
    }
    assert_eq!(
        silent.ask("{'execute':'qmp_capabilities'}"),
        json!({"return": {}})
    );
}

#[test]
fn client_that_never_reads_is_disconnected_and_others_are_not_delayed() {
    let (_folder, path) = socket();
    let options = Options {
        queue_messages: 4,
        write_timeout: Duration::from_millis(50),
        ..Options::default()
    };
    let server = Server::bind(&path, Arc::new(Echo), options).unwrap();
    let mut lazy = negotiated(&path);
    let mut good = negotiated(&path);
    good.ask("{'execute':'void'}");

    // 64 KiB each: far more than the socket and the queue hold.
    lazy.send("{'execute':'big'}".repeat(100));
    wait_until("the lazy client to be disconnected", || {
        server.stats().too_slow == 1
    });

    assert_eq!(good.ask("{'execute':'void'}"), json!({"return": {}}));
    wait_until("its place to be free", || server.stats().clients == 1);
}

#[test]
fn client_that_takes_no_events_is_disconnected_and_others_get_them_all() {
    let (_folder, path) = socket();
    // The time-out is long: the full queue alone must do it.
    let options = Options {
        queue_messages: 64,
        ..Options::default()
    };
    let server = Server::bind(&path, Arc::new(Echo), options).unwrap();
    let mut lazy = negotiated(&path);
    let mut good = negotiated(&path);
    for raw in [&mut lazy, &mut good] {
        raw.ask("{'execute':'void'}");
    }

    let filler = "x".repeat(16 << 10);
    for number in 0..100 {
        server.broadcast(&Event::now(
            "TIER_X",
            json!({"number": number, "filler": filler}),
        ));
        assert_eq!(good.message()["data"]["number"], number);
    }

    wait_until("the lazy client to be disconnected", || {
        server.stats().too_slow == 1
    });
    assert_eq!(good.ask("{'execute':'void'}"), json!({"return": {}}));
}

#[test]
fn client_is_turned_away_when_there_are_too_many() {
    let (_folder, path) = socket();
    let options = Options {
        max_clients: 2,
        ..Options::default()
    };
    let server = Server::bind(&path, Arc::new(Echo), options).unwrap();
    let first = negotiated(&path);
    let _second = negotiated(&path);

    assert_eq!(Raw::connect(&path).next(), None);
    drop(first);
    wait_until("a place to be free", || server.stats().clients == 1);
    negotiated(&path);

    let stats = server.stats();
    assert_eq!((stats.accepted, stats.rejected, stats.too_slow), (3, 1, 0));
}

#[test]
fn other_clients_are_served_when_a_handler_panics() {
    let (_folder, path) = socket();
    let server = bind(&path);
    let mut unlucky = negotiated(&path);
    let mut good = negotiated(&path);

    unlucky.send("{'execute':'panic'}");

    assert_eq!(unlucky.next(), None);
    assert_eq!(good.ask("{'execute':'void'}"), json!({"return": {}}));
    wait_until("its place to be free", || server.stats().clients == 1);
}

#[test]
fn clients_see_the_end_and_the_file_is_gone_when_the_server_is_dropped() {
    let (_folder, path) = socket();
    let server = bind(&path);
    let events = server.events();
    let mut idle = negotiated(&path);
    let mut mid_message = negotiated(&path);
    mid_message.send("{'execute':");

    drop(server);

    assert_eq!(idle.next(), None);
    assert_eq!(mid_message.next(), None);
    assert!(!path.exists());
    // A sender that outlives its server is harmless.
    events.send(&Event::now("TIER_STATE", Value::Null));
}

#[test]
fn socket_is_for_its_owner_only() {
    let (_folder, path) = socket();
    let _server = bind(&path);

    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn stale_socket_is_replaced_and_a_served_one_is_refused() {
    let (_folder, path) = socket();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());

    let _server = bind(&path);
    let again = Server::bind(&path, Arc::new(Echo), Options::default());

    assert!(matches!(again, Err(BindError::InUse { .. })));
    negotiated(&path);
}

#[test]
fn one_server_wins_when_several_find_the_same_stale_socket() {
    let (_folder, path) = socket();
    drop(UnixListener::bind(&path).unwrap());

    let servers: Vec<_> = thread::scope(|scope| {
        let bind = || Server::bind(&path, Arc::new(Echo), Options::default());
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(bind)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });

    assert_eq!(servers.iter().filter(|server| server.is_ok()).count(), 1);
    negotiated(&path);
}

#[test]
fn error_says_what_and_where_when_the_path_is_unusable() {
    let (folder, path) = socket();
    std::fs::write(&path, "precious").unwrap();
    let long = folder.path().join("x".repeat(200));
    let nowhere = folder.path().join("no/such");
    let failure = |path: &Path| {
        let error = Server::bind(path, Arc::new(Echo), Options::default()).unwrap_err();
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        error
    };

    assert!(matches!(failure(&path), BindError::NotASocket { .. }));
    assert!(matches!(failure(&long), BindError::PathTooLong { .. }));
    assert!(matches!(failure(&nowhere), BindError::NoFolder { .. }));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn anothers_file_stays_when_it_took_the_servers_place() {
    let (_folder, path) = socket();
    let server = bind(&path);
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();

    drop(server);

    assert!(path.exists());
}

/// Tells each connection what the server knows of it, and remembers those that ended.
#[derive(Default)]
struct WhoAsks {
    ended: Mutex<Vec<u64>>,
}

impl Handler for WhoAsks {
    fn commands(&self) -> &[CommandSpec] {
        COMMANDS
    }

    fn handle(&self, _name: &str, _arguments: Map<String, Value>) -> Result<Value, QmpError> {
        Err(QmpError::generic("nobody asks"))
    }

    fn handle_for(
        &self,
        connection: &Connection,
        _name: &str,
        _arguments: Map<String, Value>,
    ) -> Result<Value, QmpError> {
        let uid = connection.peer.map(|peer| peer.uid);
        let pid = connection.peer.map(|peer| peer.pid);
        Ok(json!({"id": connection.id, "pid": pid, "uid": uid}))
    }

    fn disconnected(&self, connection: &Connection) {
        self.ended.lock().unwrap().push(connection.id);
    }

    /// Every second connection.
    fn gets_events(&self, connection: &Connection) -> bool {
        connection.id.is_multiple_of(2)
    }
}

#[test]
fn handler_when_it_asks_for_it_knows_who_calls_and_who_left() {
    let (_folder, path) = socket();
    let handler = Arc::new(WhoAsks::default());
    let server = Server::bind(&path, handler.clone(), Options::default()).unwrap();
    let (mut first, mut second) = (negotiated(&path), negotiated(&path));

    let (one, other) = (
        first.ask("{'execute':'void'}"),
        second.ask("{'execute':'void'}"),
    );

    let pid = std::process::id();
    assert_eq!(one["return"]["pid"], pid);
    assert_eq!(one["return"]["uid"], rustix::process::getuid().as_raw());
    assert_ne!(one["return"]["id"], other["return"]["id"]);
    assert_eq!(first.ask("{'execute':'void'}"), one, "it stays the same");

    server.broadcast(&Event::now("NEWS", json!({})));
    let hears = [&one, &other].map(|it| it["return"]["id"].as_u64().unwrap().is_multiple_of(2));
    for (raw, hears) in [(&mut first, hears[0]), (&mut second, hears[1])] {
        let next = raw.ask("{'execute':'void'}");
        assert_eq!(next["event"] == "NEWS", hears, "{next}");
    }

    drop(first);
    wait_until("the first to have ended", || {
        *handler.ended.lock().unwrap() == [one["return"]["id"].as_u64().unwrap()]
    });
    drop(second);
    drop(server);
    assert_eq!(handler.ended.lock().unwrap().len(), 2);
}
