//! The server's side: a control socket that speaks QMP to the clients people already have.
//!
//! One thread accepts; each client has a thread that reads and dispatches and one that writes from
//! a bounded queue. So a client that is slow, silent or hostile delays nobody else: when its queue
//! is full or a write gets nowhere, it is disconnected and counted.

mod bind;
mod connection;
mod dispatch;
mod queue;
mod reference;
mod schema;
mod spec;

use std::{
    collections::HashMap,
    io,
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::{Map, Value};
use tracing::{debug, warn};

pub use self::{
    bind::BindError,
    reference::reference,
    spec::{CommandSpec, EventSpec, MemberSpec, ObjectSpec, TypeSpec},
};
use self::{bind::SocketFile, connection::Peer};
use crate::{
    QmpError,
    codec::{Limits, encode_crlf},
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
    /// It is called in the thread of the client that asked, so calls run side by side. Dropping
    /// the server waits for calls under way.
    ///
    /// # Errors
    /// What the client gets as the reply's `error`.
    fn handle(&self, name: &str, arguments: Map<String, Value>) -> Result<Value, QmpError>;
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
    /// Shares the accepting thread's socket, to wake it.
    listener: UnixListener,
    file: SocketFile,
    acceptor: Option<JoinHandle<()>>,
}

/// Sends events to a server's clients, from any thread; it may outlive the server.
#[derive(Clone, Debug)]
pub struct EventSender(Arc<Hub>);

/// What the threads of a server share.
struct Hub {
    handler: Arc<dyn Handler>,
    options: Options,
    stop: AtomicBool,
    peers: Mutex<HashMap<u64, Arc<Peer>>>,
    accepted: AtomicU64,
    rejected: AtomicU64,
    too_slow: AtomicU64,
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
        let (listener, file) = bind::listen(path.as_ref())?;
        let io = |source| BindError::Io {
            path: file.path().into(),
            action: "serve",
            source,
        };
        let hub = Arc::new(Hub {
            handler,
            options,
            stop: AtomicBool::new(false),
            peers: Mutex::default(),
            accepted: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            too_slow: AtomicU64::new(0),
        });
        let accepting = listener.try_clone().map_err(io)?;
        let acceptor = thread::Builder::new()
            .name("qmp-accept".to_owned())
            .spawn({
                let hub = Arc::clone(&hub);
                move || accept(&accepting, &hub)
            })
            .map_err(io)?;
        Ok(Self {
            hub,
            listener,
            file,
            acceptor: Some(acceptor),
        })
    }

    /// The path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
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
            accepted: self.hub.accepted.load(Ordering::Relaxed),
            rejected: self.hub.rejected.load(Ordering::Relaxed),
            too_slow: self.hub.too_slow.load(Ordering::Relaxed),
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
        self.hub.stop.store(true, Ordering::Release);
        // While the listener lives its inode can't be given to another file, so this is the
        // moment to compare and remove.
        self.file.remove();
        // On Linux this wakes a thread that waits in accept(2).
        if let Err(error) = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both) {
            warn!(%error, "can't wake the accepting thread");
        }
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Hub {
    fn peers(&self) -> MutexGuard<'_, HashMap<u64, Arc<Peer>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn broadcast(&self, event: &Event) {
        let line: Arc<[u8]> = match encode_crlf(event) {
            Ok(line) => line.into(),
            Err(error) => {
                warn!(%error, event = event.name, "can't encode an event");
                return;
            }
        };
        for peer in self.peers().values().filter(|peer| peer.is_negotiated()) {
            if !peer.offer(Arc::clone(&line)) {
                self.drop_slow(peer);
            }
        }
    }

    /// Disconnects a client that doesn't read; counted once.
    fn drop_slow(&self, peer: &Peer) {
        if peer.abort() {
            self.too_slow.fetch_add(1, Ordering::Relaxed);
            warn!(
                client = peer.number(),
                "disconnected a client that does not read"
            );
        }
    }
}

/// The accepting thread: takes clients until the server stops, then sees them off.
fn accept(listener: &UnixListener, hub: &Arc<Hub>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    for number in 0.. {
        let stream = match listener.accept() {
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
            hub.rejected.fetch_add(1, Ordering::Relaxed);
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
    for peer in hub.peers().values() {
        peer.abort();
    }
    for thread in threads {
        let _ = thread.join();
    }
}

/// Registers a client and starts its thread.
fn serve(number: u64, stream: UnixStream, hub: &Arc<Hub>) -> io::Result<JoinHandle<()>> {
    let peer = Arc::new(Peer::new(number, stream.try_clone()?, &hub.options));
    hub.peers().insert(number, Arc::clone(&peer));
    hub.accepted.fetch_add(1, Ordering::Relaxed);
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

/// Ends both directions; it fails only when the other end is gone already.
fn hang_up(stream: &UnixStream) {
    let _ = stream.shutdown(Shutdown::Both);
}

/// A path, owned, for an error.
fn owned(path: &Path) -> PathBuf {
    path.to_owned()
}
