//! The server's side: a control socket that speaks QMP to the clients people already have.
//!
//! One thread accepts; each client has a thread that reads and dispatches and one that writes from
//! a bounded queue what doesn't go out at once. So a client that is slow, silent or hostile delays
//! nobody else: when its queue is full or a write gets nowhere, it is disconnected and counted.

mod acceptor;
mod bind;
mod connection;
mod dispatch;
mod hub;
mod peer;
mod pending;
mod queue;
mod reference;
mod relay;
mod schema;
mod spec;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use rustix::fd::OwnedFd;
use serde_json::{Map, Value};

pub use self::{
    bind::BindError,
    reference::reference,
    spec::{CommandSpec, EventSpec, MemberSpec, ObjectSpec, TypeSpec},
};
pub(crate) use self::{
    hub::Hub,
    peer::Back,
    relay::{Call, Relay},
    schema::of as schema_of,
};
use crate::{
    QmpError,
    client::PeerCredentials,
    codec::Limits,
    commands::{VersionInfo, VersionTriple},
    event::Event,
};

/// What the commands of a server do.
pub trait Handler: Send + Sync {
    /// The commands, `qmp_capabilities`, `query-commands`, `query-qmp-schema` and `query-version`
    /// aside: these the server has itself. It must give the same list at every call.
    fn commands(&self) -> &[CommandSpec];

    /// The events that may be sent, for introspection and the reference.
    fn events(&self) -> &[EventSpec] {
        &[]
    }

    /// Carries out a command. Its arguments have been checked against its [`CommandSpec`]; a
    /// result of `Null` is sent as `{}`.
    ///
    /// It is called in a thread of the client that asked, so calls of several clients run side by
    /// side, and out-of-band ones beside those in band. Dropping the server waits for calls under
    /// way.
    ///
    /// # Errors
    /// What the client gets as the reply's `error`.
    fn handle(&self, name: &str, arguments: Map<String, Value>) -> Result<Value, QmpError>;

    /// Carries out a command as [`handle`](Self::handle) does, for a handler that must know who asks.
    ///
    /// # Errors
    /// As [`handle`](Self::handle).
    fn handle_for(
        &self,
        connection: &Connection,
        name: &str,
        arguments: Map<String, Value>,
    ) -> Result<Value, QmpError> {
        let _ = connection;
        self.handle(name, arguments)
    }

    /// A connection has ended; no call of it is under way any more.
    fn disconnected(&self, connection: &Connection) {
        let _ = connection;
    }

    /// Whether events go to this connection. It is asked for each event, under a lock of the server:
    /// it must be quick and call nothing of the server.
    fn gets_events(&self, connection: &Connection) -> bool {
        let _ = connection;
        true
    }

    /// Carries out a command that takes file descriptors ([`CommandSpec::fds`]), with those that
    /// came, at most [`MAX_FDS`](crate::MAX_FDS). What isn't kept is closed.
    ///
    /// # Errors
    /// As [`handle`](Self::handle).
    fn handle_with_fds(
        &self,
        name: &str,
        arguments: Map<String, Value>,
        fds: Vec<OwnedFd>,
    ) -> Result<Value, QmpError> {
        drop(fds);
        self.handle(name, arguments)
    }
}

/// A connection of a client to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its number; no other connection of the server ever has the same.
    pub id: u64,
    /// Who connected, by what the kernel says; `None` if the process has no id in this pid namespace.
    pub peer: Option<PeerCredentials>,
}

/// Bounds of a server, and how it names itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What the greeting and `query-version` tell.
    pub version: VersionInfo,
    /// The most clients at one time; one more is disconnected at once.
    pub max_clients: usize,
    /// Bounds on what a client may send.
    pub limits: Limits,
    /// The most messages that wait for one client.
    pub queue_messages: usize,
    /// The most bytes that wait for one client.
    pub queue_bytes: usize,
    /// How long a client may take to receive one message.
    pub write_timeout: Duration,
    /// The most commands of one client that wait while others are carried out; a client that sends
    /// more is not read until there is room.
    pub commands_under_way: usize,
    /// Whether out-of-band commands are offered: those whose [`CommandSpec::oob`] says so. A proxy
    /// offers what its upstream has.
    pub oob: bool,
}

impl Default for Options {
    fn default() -> Self {
        let qemu = VersionTriple {
            major: 0,
            minor: 1,
            micro: 0,
        };
        Self {
            version: VersionInfo {
                qemu,
                package: "qmp 0.1.0".to_owned(),
            },
            max_clients: 16,
            limits: Limits::REQUESTS,
            queue_messages: 1024,
            queue_bytes: 4 << 20,
            write_timeout: Duration::from_secs(10),
            // As QEMU (QMP_REQ_QUEUE_LEN_MAX in monitor/qmp.c).
            commands_under_way: 8,
            oob: false,
        }
    }
}

/// What a server has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Clients connected now.
    pub clients: usize,
    /// Clients taken since the start.
    pub accepted: u64,
    /// Clients turned away because there were too many.
    pub rejected: u64,
    /// Clients disconnected because they did not read.
    pub too_slow: u64,
}

/// A listening control socket. Dropping it disconnects the clients, joins its threads and removes
/// its socket file.
#[derive(Debug)]
pub struct Server {
    hub: Arc<Hub>,
    acceptor: Option<JoinHandle<()>>,
}

/// Sends events to a server's clients, from any thread; it may outlive the server.
#[derive(Clone, Debug)]
pub struct EventSender(Arc<Hub>);

impl Server {
    /// Binds the socket at `path`, for its owner only (mode 0600), and serves it.
    ///
    /// A socket file that nobody serves any more is replaced; one that is served, or a file that
    /// isn't a socket, is left alone.
    ///
    /// # Errors
    /// When the path is in use, is no socket, is too long, or can't be bound.
    pub fn bind(
        path: impl AsRef<Path>,
        handler: Arc<dyn Handler>,
        options: Options,
    ) -> Result<Self, BindError> {
        Self::bind_with(path.as_ref(), handler, None, options)
    }

    /// As [`bind`](Self::bind), with another server behind this one.
    pub(crate) fn bind_with(
        path: &Path,
        handler: Arc<dyn Handler>,
        relay: Option<Arc<dyn Relay>>,
        options: Options,
    ) -> Result<Self, BindError> {
        let socket = bind::listen(path)?;
        let hub = Arc::new(Hub::new(handler, relay, options, socket));
        let acceptor = acceptor::start(&hub).map_err(|source| BindError::Io {
            path: owned(path),
            action: "serve",
            source,
        })?;
        Ok(Self {
            hub,
            acceptor: Some(acceptor),
        })
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// The path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.hub.path()
    }

    /// Sends an event to every negotiated client. It never waits: a client whose queue is full is
    /// disconnected.
    pub fn broadcast(&self, event: &Event) {
        self.hub.broadcast(event);
    }

    /// A handle that sends events.
    #[must_use]
    pub fn events(&self) -> EventSender {
        EventSender(Arc::clone(&self.hub))
    }

    /// What the server has seen.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.hub.stats()
    }
}

impl EventSender {
    /// Sends an event to every negotiated client, as [`Server::broadcast`].
    pub fn send(&self, event: &Event) {
        self.0.broadcast(event);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.hub.close();
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// A path, owned, for an error.
fn owned(path: &Path) -> PathBuf {
    path.to_owned()
}
