//! The thread that accepts clients.

use std::{
    io,
    os::unix::net::UnixStream,
    sync::{Arc, atomic::Ordering},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tracing::{debug, warn};

use super::{Connection, connection, hub::Hub, peer::Peer};
use crate::client::PeerCredentials;

/// How long clients may take for what waits for them when the server ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// Starts the accepting thread; without it the socket file goes.
pub(super) fn start(hub: &Arc<Hub>) -> io::Result<JoinHandle<()>> {
    let accepting = thread::Builder::new().name("qmp-accept".to_owned());
    let started = accepting.spawn({
        let hub = Arc::clone(hub);
        move || accept(&hub)
    });
    started.inspect_err(|_| hub.close())
}

/// The accepting thread: takes clients until the server stops, then sees them off.
fn accept(hub: &Arc<Hub>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    for number in 0.. {
        let stream = match hub.listener.accept() {
            Ok((stream, _)) if !hub.is_ending() => stream,
            _ if hub.is_ending() => break,
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
    let connection = Connection {
        id: number,
        peer: PeerCredentials::of(&stream)?,
    };
    let peer = Peer::new(connection, stream.try_clone()?, &hub.options, counters);
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
        self.hub.handler.disconnected(self.peer.connection());
        debug!(client = self.peer.number(), "client left");
    }
}
