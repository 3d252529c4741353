//! What the threads of a server share.

use std::{
    collections::HashMap,
    os::unix::net::UnixListener,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tracing::warn;

use super::{
    Handler, Options, Stats,
    bind::SocketFile,
    peer::{Counters, Peer},
    relay::Relay,
};
use crate::{codec::encode_crlf, event::Event};

/// What the threads of a server share.
pub(crate) struct Hub {
    pub(super) handler: Arc<dyn Handler>,
    /// Who answers what the handler doesn't have.
    pub(super) relay: Option<Arc<dyn Relay>>,
    pub(super) options: Options,
    pub(super) listener: UnixListener,
    file: SocketFile,
    stop: AtomicBool,
    peers: Mutex<HashMap<u64, Arc<Peer>>>,
    pub(super) counters: Arc<Counters>,
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

    pub(super) fn is_ending(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(super) fn peers(&self) -> MutexGuard<'_, HashMap<u64, Arc<Peer>>> {
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
        let hears =
            |peer: &&Arc<Peer>| peer.is_negotiated() && self.handler.gets_events(peer.connection());
        for peer in self.peers().values().filter(hears) {
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
