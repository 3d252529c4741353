//! The control socket and the proxy of QEMU's monitor: the `tier-*` commands, spoken in QMP.
//!
//! A connection's thread checks a command's arguments and hands the agent an [`Order`]; the agent's
//! thread carries it out between two events.

mod commands;
#[cfg(test)]
mod reference;
mod spec;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use qmp::{
    Client, Proxy, QmpError, proxy,
    server::{CommandSpec, EventSender, EventSpec, Handler, Options, Server},
};
use serde_json::{Map, Value};
use tier_core::report::Object;

pub(super) use self::commands::{Order, query_tier::Pauser};
use crate::reply::Answer;

/// What the reply to `query-tier` looks like.
pub(crate) const QUERY_TIER: &Object = Object::of::<commands::query_tier::TierInfo>();

/// Requests that may wait for the agent.
const QUEUE: usize = 64;
/// How long a client waits for the agent, which answers between two events: a guard against an agent
/// that hangs.
const PATIENCE: Duration = Duration::from_secs(10);

tier_core::words! {
    /// Whose monitor a socket is.
    pub(super) enum SocketKind {
        /// The agent's own.
        Control = "control",
        /// QEMU's, with the agent's commands added.
        Proxy = "proxy",
    }
}

tier_core::report! {
    /// A socket that the agent serves.
    #[derive(Clone, Debug)]
    pub(super) struct SocketReport = "TierSocket" {
        /// The agent's own, or QEMU's monitor with the agent's commands added.
        #[metric(label = "socket")]
        kind: SocketKind,
        /// Where it is.
        #[metric(exempt = "text; the label `socket` tells the agent's sockets apart")]
        path: String,
        /// Clients connected now.
        #[metric(gauge = "socket_clients")]
        clients: usize,
        /// Clients accepted since the socket was opened.
        #[metric(counter = "socket_accepted_clients", since = "the socket was made")]
        accepted: u64,
        /// Clients turned away because there were too many.
        #[metric(counter = "socket_rejected_clients", since = "the socket was made")]
        rejected: u64,
        /// Clients disconnected because they did not read.
        #[metric(counter = "socket_slow_clients", since = "the socket was made")]
        too_slow: u64,
    }
}

/// What a client asks of the agent.
#[derive(Debug)]
pub(super) struct Request {
    order: Order,
    reply: Sender<Answer>,
}

impl Request {
    /// Has the order carried out and sends what became of it; a client that has left gets nothing.
    pub(super) fn answer(self, carry_out: impl FnOnce(Order) -> Answer) {
        let _ = self.reply.try_send(carry_out(self.order));
    }
}

/// A socket on which commands arrive, and its threads. Dropping it removes the socket.
#[derive(Debug)]
pub(super) struct Control {
    /// Dropped first: clients that wait for an answer then get an error at once, and the threads can
    /// end. So each socket has a queue of its own.
    requests: Receiver<Request>,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    /// The agent's own.
    Own(Server),
    /// QEMU's monitor, with the agent's commands added.
    Proxy(Proxy),
}

impl Control {
    /// Serves the agent's own commands at `path`.
    pub(super) fn serve(path: &Path) -> anyhow::Result<Self> {
        make_folder_of(path)?;
        let (commands, requests) = Commands::new();
        // The server's error names the socket and says what to do.
        let server = Server::bind(path, commands, Options::default())
            .context("the control socket can't be served")?;
        let socket = Socket::Own(server);
        Ok(Self { requests, socket })
    }

    /// Serves QEMU's monitor at `path` to many clients, with the agent's commands beside QEMU's.
    pub(super) fn proxy(path: &Path, monitor: Arc<Client>) -> anyhow::Result<Self> {
        make_folder_of(path)?;
        let (commands, requests) = Commands::new();
        let proxy = Proxy::bind(path, monitor, commands, proxy::options())
            .context("the proxy of QEMU's monitor can't be served")?;
        let socket = Socket::Proxy(proxy);
        Ok(Self { requests, socket })
    }

    /// Where requests arrive.
    pub(super) const fn requests(&self) -> &Receiver<Request> {
        &self.requests
    }

    /// Where events go out.
    pub(super) fn events(&self) -> EventSender {
        match &self.socket {
            Socket::Own(server) => server.events(),
            Socket::Proxy(proxy) => proxy.events(),
        }
    }

    /// The socket and its clients, for `query-tier`.
    pub(super) fn report(&self) -> SocketReport {
        let (kind, path, stats) = match &self.socket {
            Socket::Own(server) => (SocketKind::Control, server.path(), server.stats()),
            Socket::Proxy(proxy) => (SocketKind::Proxy, proxy.path(), proxy.stats()),
        };
        SocketReport {
            kind,
            path: path.display().to_string(),
            clients: stats.clients,
            accepted: stats.accepted,
            rejected: stats.rejected,
            too_slow: stats.too_slow,
        }
    }
}

fn make_folder_of(socket: &Path) -> anyhow::Result<()> {
    match socket.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => std::fs::create_dir_all(folder)
            .with_context(|| format!("the socket's folder {} can't be made", folder.display())),
        _ => Ok(()),
    }
}

/// The commands, as the server sees them.
struct Commands {
    agent: Sender<Request>,
}

impl Commands {
    /// The commands, and where what they ask arrives.
    fn new() -> (Arc<Self>, Receiver<Request>) {
        let (agent, requests) = bounded(QUEUE);
        (Arc::new(Self { agent }), requests)
    }
}

impl Handler for Commands {
    fn commands(&self) -> &[CommandSpec] {
        &spec::SPEC.commands
    }

    fn events(&self) -> &[EventSpec] {
        &spec::SPEC.events
    }

    fn handle(&self, name: &str, arguments: Map<String, Value>) -> Answer {
        let order = Order::parse(name, arguments)?;
        let (reply, answer) = bounded(1);
        let late = || QmpError::generic("The agent is busy: try again");
        let later = || {
            QmpError::generic(
                "The agent is busy and may still carry this out: ask query-tier for the state",
            )
        };
        let gone = || QmpError::generic("The agent ends");
        self.agent
            .send_timeout(Request { order, reply }, PATIENCE)
            .map_err(|error| if error.is_timeout() { late() } else { gone() })?;
        match answer.recv_timeout(PATIENCE) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(later()),
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use serde_json::json;
    use tier_core::{
        addr::Gpa,
        engine::{Pin, WhenFull},
        settings::Tier,
    };

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(members) => members,
            other => panic!("{other} is no object"),
        }
    }

    /// What the agent would be asked, and an answer given to it.
    fn ask(name: &str, arguments: Value, answer: Answer) -> (Option<Order>, Answer) {
        let (sender, requests) = bounded::<Request>(1);
        let commands = Commands { agent: sender };
        let agent = thread::spawn(move || {
            let request = requests.recv().ok()?;
            let mut order = None;
            request.answer(|asked| {
                order = Some(asked);
                answer
            });
            order
        });
        let reply = commands.handle(name, object(arguments));
        drop(commands);
        (agent.join().unwrap(), reply)
    }

    #[test]
    fn request_when_carried_out_gives_its_client_the_answer() {
        let pin = json!({"start": 0x10_0000, "bytes": 4096, "tier": "fast", "when-full": "demote"});
        let (order, reply) = ask("tier-pin", pin, Ok(json!({"pins": 1})));
        let expected = Pin {
            start: Gpa(0x10_0000),
            bytes: 4096,
            tier: Tier::Fast,
            when_full: WhenFull::Demote,
        };
        assert_eq!(order, Some(Order::Pin(expected)));
        assert_eq!(reply, Ok(json!({"pins": 1})));
    }

    #[test]
    fn request_when_refused_gives_its_client_the_error() {
        let refusal = QmpError::generic("no room");
        let (order, reply) = ask("tier-drain", json!({}), Err(refusal.clone()));
        assert_eq!(order, Some(Order::Drain(0)));
        assert_eq!(reply, Err(refusal));
    }

    #[test]
    fn request_when_its_arguments_are_wrong_never_reaches_the_agent() {
        for (name, arguments, says) in [
            ("tier-set-policy", json!({"half-life": -1.0}), "half-life"),
            ("tier-set-policy", json!({"half-life": 1e300}), "half-life"),
            ("tier-set-policy", json!({"horizon": 0}), "horizon"),
            ("tier-set-policy", json!({"rate": 0}), "rate"),
            ("tier-unpin", json!({"start": 4096}), "'bytes'"),
            ("query-tier-heatmap", json!({"rows": 0}), "'rows'"),
            (
                "query-tier-heatmap",
                json!({"rows": u64::MAX, "columns": 2}),
                "'columns'",
            ),
            (
                "query-tier-heatmap",
                json!({"rows": 129, "columns": 128}),
                "16384",
            ),
        ] {
            let (order, reply) = ask(name, arguments.clone(), Ok(Value::Null));
            assert_eq!(order, None, "{arguments}");
            let error = reply.unwrap_err();
            let text = error.desc.to_lowercase();
            assert!(text.contains(says), "{arguments}: {error}");
        }
    }

    #[test]
    fn every_command_when_asked_for_is_understood() {
        // What each command must have, and nothing more.
        let needed = |name: &str| match name {
            "tier-pin" => json!({"start": 0, "bytes": 4096, "tier": "slow"}),
            "tier-explain" => json!({"address": 4096}),
            _ => json!({}),
        };
        for command in &spec::SPEC.commands {
            let arguments = object(needed(command.name));
            command.check(&arguments).unwrap();
            assert!(
                Order::parse(command.name, arguments).is_ok(),
                "{}",
                command.name
            );
        }
    }

    #[test]
    fn agent_when_gone_leaves_no_client_waiting() {
        let (sender, requests) = bounded::<Request>(1);
        drop(requests);
        let commands = Commands { agent: sender };
        let error = commands.handle("query-tier", Map::new()).unwrap_err();
        assert!(error.desc.contains("ends"), "{error}");
    }
}
