//! The control socket: the `tier-*` commands, spoken in QMP.
//!
//! A connection's thread checks a command's arguments and hands the agent a request; the agent's
//! thread answers it between two events.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use crossbeam::channel::{Receiver, Sender, bounded};
use qmp::{
    QmpError,
    server::{ArgSpec, ArgType, CommandSpec, Handler, Options, Server},
};
use serde_json::{Map, Value, json};
use tier_core::engine::Event;

use super::Agent;

/// Requests that may wait for the agent.
const QUEUE: usize = 64;
/// How long a client waits for the agent: a map refresh may take a monitor's time-out.
const PATIENCE: Duration = Duration::from_secs(10);

const STATE: &str =
    "What query-tier returns: name, state, source, tiers, moves and failures; sizes in bytes.";

const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "query-tier",
        doc: "What the agent does: state, source, tiers, moves, failures.",
        args: &[],
        returns: STATE,
    },
    CommandSpec {
        name: "tier-pause",
        doc: "Stop moving pages until tier-resume.",
        args: &[],
        returns: STATE,
    },
    CommandSpec {
        name: "tier-resume",
        doc: "Move pages again after tier-pause.",
        args: &[],
        returns: STATE,
    },
    CommandSpec {
        name: "tier-set-limit",
        doc: "Set the most bytes of the fast tier that the guest may hold; without 'bytes', no limit. \
              What is above it is demoted at once, coldest first.",
        args: &[ArgSpec {
            name: "bytes",
            kind: ArgType::Uint,
            optional: true,
            doc: "The limit in bytes.",
        }],
        returns: STATE,
    },
];

/// What a client asks of the agent.
#[derive(Debug)]
pub(super) struct Request {
    event: Option<Event>,
    reply: Sender<Value>,
}

impl Request {
    /// What happens in the engine before the reply.
    pub(super) fn event(&self) -> Option<Event> {
        self.event.clone()
    }

    /// Sends the reply; a client that has left gets none.
    pub(super) fn reply(&self, value: Value) {
        let _ = self.reply.try_send(value);
    }
}

/// The socket and its threads. Dropping it removes the socket.
#[derive(Debug)]
pub(super) struct Control {
    /// Dropped first: clients that wait for an answer then get an error at once, and the server can
    /// end its threads.
    requests: Receiver<Request>,
    _server: Server,
}

impl Control {
    /// Serves `path`.
    pub(super) fn serve(path: &Path) -> anyhow::Result<Self> {
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            std::fs::create_dir_all(folder).with_context(|| {
                format!(
                    "the control socket's folder {} can't be made",
                    folder.display()
                )
            })?;
        }
        let (sender, requests) = bounded(QUEUE);
        // The server's error names the socket and says what to do.
        let server = Server::bind(
            path,
            Arc::new(Commands { agent: sender }),
            Options::default(),
        )
        .context("the control socket can't be served")?;
        Ok(Self {
            _server: server,
            requests,
        })
    }

    /// Where requests arrive.
    pub(super) const fn requests(&self) -> &Receiver<Request> {
        &self.requests
    }
}

struct Commands {
    agent: Sender<Request>,
}

impl Handler for Commands {
    fn commands(&self) -> &[CommandSpec] {
        COMMANDS
    }

    fn handle(&self, name: &str, arguments: Map<String, Value>) -> Result<Value, QmpError> {
        let event = match name {
            "tier-pause" => Some(Event::Pause(true)),
            "tier-resume" => Some(Event::Pause(false)),
            "tier-set-limit" => Some(Event::Limit(arguments.get("bytes").and_then(Value::as_u64))),
            _ => None,
        };
        let (reply, answer) = bounded(1);
        let late = || QmpError::generic("the agent is busy; try again");
        self.agent
            .send_timeout(Request { event, reply }, PATIENCE)
            .map_err(|_| late())?;
        answer.recv_timeout(PATIENCE).map_err(|_| late())
    }
}

impl Agent {
    /// The reply to `query-tier`.
    pub(super) fn query_tier(&self) -> Value {
        let snapshot = self.engine.snapshot();
        let source = json!({
            "kind": self.source_kind,
            "samples": snapshot.samples.arrived,
            "accepted": snapshot.samples.accepted,
            "dropped": snapshot.samples.dropped,
            "lost": snapshot.samples.lost,
            "throttled": snapshot.samples.throttled,
            "down": self.blind.now,
        });
        let mut reply = serde_json::to_value(&snapshot).unwrap_or_default();
        if let Some(fields) = reply.as_object_mut() {
            fields.remove("samples");
            fields.insert("name".to_owned(), self.name.clone().into());
            fields.insert("pid".to_owned(), self.pid.into());
            let refused = self
                .refusal
                .now
                .as_ref()
                .or(self.look_up_trouble.now.as_ref());
            fields.insert("refused".to_owned(), refused.cloned().into());
            fields.insert("policy".to_owned(), "dual-heap".into());
            fields.insert(
                "uptime-s".to_owned(),
                self.started.elapsed().as_secs().into(),
            );
            fields.insert("source".to_owned(), source);
        }
        reply
    }
}
