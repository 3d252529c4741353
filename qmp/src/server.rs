//! The server's side: a control socket that speaks QMP to the clients people already have.
//!
//! One thread accepts; each client has a thread that reads and dispatches and one that writes from
//! a bounded queue what doesn't go out at once. So a client that is slow, silent or hostile delays
//! nobody else: when its queue is full or a write gets nowhere, it is disconnected and counted.

mod bind;
mod connection;
mod dispatch;
mod flight;
mod peer;
mod queue;
mod reference;
mod relay;
mod schema;
mod spec;

use std::{
    collections::HashMap,
    io,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::fd::OwnedFd;
use serde_json::{Map, Value};
use tracing::{debug, warn};

pub use self::{
    bind::BindError,
    reference::reference,
    spec::{CommandSpec, EventSpec, MemberSpec, ObjectSpec, TypeSpec},
};
use self::{
    bind::SocketFile,
    peer::{Counters, Peer},
};
pub(crate) use self::{
    peer::Back,
    relay::{Call, Relay},
    schema::of as schema_of,
};
use crate::{
    QmpError,
    codec::{Limits, encode_crlf},
    commands::{VersionInfo, VersionTriple},
    event::Event,
};

/// How long clients may take for what waits for them when the server ends.
const FAREWELL: Duration = Duration::from_secs(1);

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
    /// It is called in the thread of the client that asked, so calls run side by side. Dropping
    /// the server waits for calls under way.
    ///
    /// # Errors
    /// What the client gets as the reply's `error`.
    fn handle(&self, name: &str, arguments: Map<String, Value>) -> Result<Value, QmpError>;

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

/// What the threads of a server share.
pub(crate) struct Hub {
    handler: Arc<dyn Handler>,
    /// Who answers what the handler doesn't have.
    relay: Option<Arc<dyn Relay>>,
    options: Options,
    listener: UnixListener,
    file: SocketFile,
    stop: AtomicBool,
    peers: Mutex<HashMap<u64, Arc<Peer>>>,
    counters: Arc<Counters>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

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
        let (listener, file) = bind::listen(path)?;
        let hub = Arc::new(Hub {
            handler,
            relay,
            options,
            listener,
            file,
            stop: AtomicBool::new(false),
            peers: Mutex::default(),
            counters: Arc::default(),
        });
        let acceptor = thread::Builder::new()
            .name("qmp-accept".to_owned())
            .spawn({
                let hub = Arc::clone(&hub);
                move || accept(&hub)
            })
            .map_err(|source| BindError::Io {
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
        self.hub.file.path()
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
        Stats {
            clients: self.hub.peers().len(),
            accepted: self.hub.counters.accepted.load(Ordering::Relaxed),
            rejected: self.hub.counters.rejected.load(Ordering::Relaxed),
            too_slow: self.hub.counters.too_slow.load(Ordering::Relaxed),
        }
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

impl Hub {
    fn peers(&self) -> MutexGuard<'_, HashMap<u64, Arc<Peer>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offers_oob(&self) -> bool {
        self.relay
            .as_deref()
            .map_or(self.options.oob, Relay::is_oob)
    }

    pub(crate) fn broadcast(&self, event: &Event) {
        let line: Arc<[u8]> = match encode_crlf(event) {
            Ok(line) => line.into(),
            Err(error) => {
                warn!(%error, event = event.name, "can't encode an event");
                return;
            }
        };
        for peer in self.peers().values().filter(|peer| peer.is_negotiated()) {
            peer.offer(Arc::clone(&line));
        }
    }

    /// Begins the end, without waiting: the socket file goes, no more commands are taken, what is
    /// queued goes out, the clients are disconnected. The accepting thread sees to the rest.
    pub(crate) fn close(&self) {
        if self.stop.swap(true, Ordering::AcqRel) {
            return;
        }
        // While the listener lives its inode can't be given to another file, so this is the
        // moment to compare and remove.
        self.file.remove();
        // On Linux this wakes a thread that waits in accept(2).
        if let Err(error) = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both) {
            warn!(%error, "can't wake the accepting thread");
        }
        if let Some(relay) = &self.relay {
            relay.close();
        }
        for peer in self.peers().values() {
            peer.retire();
        }
    }
}

/// The accepting thread: takes clients until the server stops, then sees them off.
fn accept(hub: &Arc<Hub>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    for number in 0.. {
        let stream = match hub.listener.accept() {
            Ok((stream, _)) if !hub.stop.load(Ordering::Acquire) => stream,
            _ if hub.stop.load(Ordering::Acquire) => break,
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                // Out of file descriptors, most likely: it may pass, and trying at once would spin.
                warn!(%error, "can't accept a client");
                thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        threads.retain(|thread| !thread.is_finished());
        if hub.peers().len() >= hub.options.max_clients {
            hub.counters.rejected.fetch_add(1, Ordering::Relaxed);
            warn!(
                limit = hub.options.max_clients,
                "turned a client away: too many"
            );
            continue;
        }
        match serve(number, stream, hub) {
            Ok(thread) => threads.push(thread),
            Err(error) => warn!(%error, "can't serve a client"),
        }
    }
    // Also one that came while the server was told to end.
    for peer in hub.peers().values() {
        peer.retire();
    }
    let begin = Instant::now();
    while begin.elapsed() < FAREWELL && !threads.iter().all(JoinHandle::is_finished) {
        thread::sleep(Duration::from_millis(1));
    }
    for peer in hub.peers().values() {
        peer.abort();
    }
    for thread in threads {
        let _ = thread.join();
    }
}

/// Registers a client and starts its thread.
fn serve(number: u64, stream: UnixStream, hub: &Arc<Hub>) -> io::Result<JoinHandle<()>> {
    let counters = Arc::clone(&hub.counters);
    let peer = Peer::new(number, stream.try_clone()?, &hub.options, counters);
    let peer = Arc::new(peer);
    hub.peers().insert(number, Arc::clone(&peer));
    hub.counters.accepted.fetch_add(1, Ordering::Relaxed);
    debug!(client = number, "client connected");
    let spawned = thread::Builder::new()
        .name(format!("qmp-client-{number}"))
        .spawn({
            let hub = Arc::clone(hub);
            move || {
                // Also when a handler panics the client must go and its place become free.
                let _leave = Leave {
                    hub: &hub,
                    peer: &peer,
                };
                connection::run(&stream, &peer, &hub);
            }
        });
    if spawned.is_err() {
        hub.peers().remove(&number);
    }
    spawned
}

/// Takes a client off the list when its thread ends.
struct Leave<'a> {
    hub: &'a Hub,
    peer: &'a Peer,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.hub.peers().remove(&self.peer.number());
        self.peer.abort();
        debug!(client = self.peer.number(), "client left");
    }
}

/// A path, owned, for an error.
fn owned(path: &Path) -> PathBuf {
    path.to_owned()
}
