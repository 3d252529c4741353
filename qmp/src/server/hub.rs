//! What the threads of a server share, and the thread that accepts clients.

use std::{
    collections::HashMap,
    io,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tracing::{debug, warn};

use super::{
    Handler, Options, Stats,
    bind::SocketFile,
    connection,
    peer::{Counters, Peer},
    relay::Relay,
};
use crate::{codec::encode_crlf, event::Event};

/// How long clients may take for what waits for them when the server ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the threads of a server share.
pub(crate) struct Hub {
    pub(super) handler: Arc<dyn Handler>,
    /// Who answers what the handler doesn't have.
    pub(super) relay: Option<Arc<dyn Relay>>,
    pub(super) options: Options,
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

impl Hub {
    pub(super) fn new(
        handler: Arc<dyn Handler>,
        relay: Option<Arc<dyn Relay>>,
        options: Options,
        (listener, file): (UnixListener, SocketFile),
    ) -> Self {
        Self {
            handler,
            relay,
            options,
            listener,
            file,
            stop: AtomicBool::new(false),
            peers: Mutex::default(),
            counters: Arc::default(),
        }
    }

    /// Starts the accepting thread; without it the socket file goes.
    pub(super) fn start(self: &Arc<Self>) -> io::Result<JoinHandle<()>> {
        let hub = Arc::clone(self);
        let accepting = thread::Builder::new().name("qmp-accept".to_owned());
        accepting
            .spawn(move || accept(&hub))
            .inspect_err(|_| self.close())
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            clients: self.peers().len(),
            accepted: self.counters.accepted.load(Ordering::Relaxed),
            rejected: self.counters.rejected.load(Ordering::Relaxed),
            too_slow: self.counters.too_slow.load(Ordering::Relaxed),
        }
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<u64, Arc<Peer>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn offers_oob(&self) -> bool {
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
    // Also a connection that came while the server was ending.
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
