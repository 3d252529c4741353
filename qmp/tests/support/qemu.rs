//! A QEMU that follows a test's script, and a proxy before it.

use std::{os::unix::net::UnixListener, path::PathBuf, sync::Arc, thread};

use crossbeam::channel::Receiver;
use qmp::{
    Client, Event, Proxy, QmpError, client, proxy,
    server::{CommandSpec, EventSpec, Handler, MemberSpec, Options, TypeSpec},
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{PATIENCE, Raw};

/// QEMU's side of one monitor, negotiated with the proxy's owner.
pub(crate) struct Qemu(pub(crate) Raw);

impl Qemu {
    /// The next command.
    pub(crate) fn request(&mut self) -> Value {
        self.0.message()
    }

    pub(crate) fn reply(&mut self, request: &Value, value: &Value) {
        self.0
            .send(json!({"return": value, "id": request["id"]}).to_string() + "\r\n");
    }

    pub(crate) fn event(&mut self, name: &str) {
        let event = json!({"event": name, "timestamp": {"seconds": 1, "microseconds": 2}});
        self.0.send(event.to_string() + "\r\n");
    }

    /// Answers every command at once by `answer` until the connection ends.
    pub(crate) fn answer_all(mut self, answer: impl Fn(&Value) -> Value + Send + 'static) {
        thread::spawn(move || {
            while let Some(request) = self.0.next() {
                let line = json!({"return": answer(&request), "id": request["id"]}).to_string();
                if std::io::Write::write_all(&mut self.0.stream, (line + "\r\n").as_bytes())
                    .is_err()
                {
                    return;
                }
            }
        });
    }
}

/// The commands that the proxy adds.
pub(crate) struct Extension;

const COMMANDS: &[CommandSpec] = &[CommandSpec {
    name: "tier-name",
    doc: "Tells a name.",
    args: &[MemberSpec::optional("fail", TypeSpec::Bool, "to fail")],
    returns: TypeSpec::String,
    ..CommandSpec::PLAIN
}];

const EVENTS: &[EventSpec] = &[EventSpec {
    name: "TIER_STATE",
    doc: "A state.",
    data: &[],
}];

impl Handler for Extension {
    fn commands(&self) -> &[CommandSpec] {
        COMMANDS
    }

    fn events(&self) -> &[EventSpec] {
        EVENTS
    }

    fn handle(&self, _: &str, arguments: Map<String, Value>) -> Result<Value, QmpError> {
        match arguments.contains_key("fail") {
            true => Err(QmpError::generic("it failed")),
            false => Ok(json!("dram")),
        }
    }
}

/// A proxy, and what stands on its two sides.
pub(crate) struct Rig {
    pub(crate) proxy: Proxy,
    pub(crate) client: Arc<Client>,
    pub(crate) events: Receiver<Event>,
    pub(crate) path: PathBuf,
    _folder: TempDir,
}

/// A proxy before a scripted QEMU, which offers out-of-band commands if `oob`.
pub(crate) fn rig(oob: bool, options: Options) -> (Rig, Qemu) {
    let folder = tempfile::tempdir().unwrap();
    let upstream = folder.path().join("q");
    let path = folder.path().join("p");
    let listener = UnixListener::bind(&upstream).unwrap();
    let qemu = thread::spawn(move || {
        let mut raw = Raw::new(listener.accept().unwrap().0);
        let version = json!({"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": "Debian"});
        let capabilities: &[&str] = if oob { &["oob"] } else { &[] };
        let greeting = json!({"QMP": {"version": version, "capabilities": capabilities}});
        raw.send(greeting.to_string() + "\r\n");
        let request = raw.message();
        assert_eq!(request["execute"], "qmp_capabilities");
        let enabled = if oob { json!(["oob"]) } else { Value::Null };
        assert_eq!(request["arguments"]["enable"], enabled);
        raw.send(json!({"return": {}, "id": request["id"]}).to_string() + "\r\n");
        Qemu(raw)
    });
    let own = client::Options {
        command_timeout: PATIENCE,
        oob: true,
        ..client::Options::default()
    };
    let (client, events) = Client::connect(&upstream, &own).unwrap();
    let client = Arc::new(client);
    let proxy = Proxy::bind(&path, Arc::clone(&client), Arc::new(Extension), options).unwrap();
    let rig = Rig {
        proxy,
        client,
        events,
        path,
        _folder: folder,
    };
    (rig, qemu.join().unwrap())
}

/// A proxy with the usual bounds before a QEMU without out-of-band commands.
pub(crate) fn plain_rig() -> (Rig, Qemu) {
    rig(false, proxy::options())
}

impl Rig {
    /// A client that has read the greeting.
    pub(crate) fn greeted(&self) -> Raw {
        let mut raw = Raw::connect(&self.path);
        assert_eq!(raw.message()["QMP"]["version"]["package"], "Debian");
        raw
    }

    /// A client that gets events: a command of the extension shows that the proxy noted it.
    pub(crate) fn negotiated(&self) -> Raw {
        let mut raw = self.greeted();
        assert_eq!(
            raw.ask("{'execute':'qmp_capabilities'}"),
            json!({"return": {}})
        );
        assert_eq!(
            raw.ask("{'execute':'tier-name'}"),
            json!({"return": "dram"})
        );
        raw
    }

    /// A client with out-of-band commands.
    pub(crate) fn out_of_band(&self) -> Raw {
        let mut raw = self.greeted();
        let request = "{'execute':'qmp_capabilities','arguments':{'enable':['oob']}}";
        assert_eq!(raw.ask(request), json!({"return": {}}));
        raw
    }
}
