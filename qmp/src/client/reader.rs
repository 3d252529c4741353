//! The reader thread: bytes to replies and events.

use std::{
    io::{ErrorKind, Read},
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use crossbeam::channel::{Receiver, Sender, TrySendError};
use tracing::{debug, warn};

use super::{
    Closed, Observer, lock,
    pending::{Pending, Waiting},
};
use crate::{
    codec::Decoder,
    event::Event,
    message::{FromServer, Reply},
};

/// How many bytes one read takes.
const CHUNK: usize = 64 << 10;

/// What the client's handle and its reader thread share.
pub(super) struct Shared {
    pending: Mutex<Pending>,
    pub(super) observer: Mutex<Option<Weak<dyn Observer>>>,
    pub(super) events_lost: AtomicU64,
    pub(super) late_replies: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("pending", &*self.pending())
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            pending: Mutex::new(Pending::Open(Waiting::default())),
            observer: Mutex::default(),
            events_lost: AtomicU64::new(0),
            late_replies: AtomicU64::new(0),
        }
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, Pending> {
        lock(&self.pending)
    }

    /// Wakes everybody who waits for a reply; the first reason stands.
    pub(super) fn close(&self, reason: Closed) {
        let mut pending = self.pending();
        if let Pending::Open(_) = *pending {
            let waiting = std::mem::replace(&mut *pending, Pending::Closed(reason));
            // What sinks do when they are dropped may ask for the lock.
            drop(pending);
            drop(waiting);
        }
    }

    fn observer(&self) -> Option<Arc<dyn Observer>> {
        lock(&self.observer).as_ref().and_then(Weak::upgrade)
    }

    fn deliver(&self, reply: Reply) {
        let sink = match &mut *self.pending() {
            Pending::Closed(_) => return,
            Pending::Open(waiting) => waiting.settle(reply.id.as_ref()),
        };
        let taken = sink.is_some_and(|sink| sink(reply.result));
        if !taken {
            self.late_replies.fetch_add(1, Ordering::Relaxed);
            debug!("dropped a reply that nobody waits for");
        }
    }
}

/// The bounded queue of events: full, it drops the oldest, for the newest say how things are.
pub(super) struct Events {
    sender: Sender<Event>,
    oldest: Receiver<Event>,
}

impl Events {
    pub(super) fn new(sender: Sender<Event>, receiver: Receiver<Event>) -> Self {
        Self {
            sender,
            oldest: receiver,
        }
    }

    pub(super) fn offer(&self, event: Event, shared: &Shared) {
        let mut event = event;
        while let Err(error) = self.sender.try_send(event) {
            let TrySendError::Full(back) = error else {
                return;
            };
            event = back;
            if self.oldest.try_recv().is_ok() {
                shared.events_lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Reads until the connection ends. Dropping `events` at the end disconnects the receiver.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the thread owns them: dropping is the signal"
)]
pub(super) fn run(
    mut stream: UnixStream,
    mut decoder: Decoder,
    events: Events,
    shared: Arc<Shared>,
) {
    let mut chunk = vec![0; CHUNK];
    let reason = loop {
        if let Err(reason) = drain(&mut decoder, &events, &shared) {
            break reason;
        }
        match stream.read(&mut chunk) {
            Ok(0) => {
                break Closed::Eof {
                    mid_message: decoder.is_mid_message(),
                };
            }
            Ok(len) => decoder.push(&chunk[..len]),
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::ConnectionReset => break Closed::Reset,
                kind => break Closed::Read { kind },
            },
        }
    };
    debug!(%reason, "connection ended");
    shared.close(reason);
    if let Some(observer) = shared.observer() {
        observer.closed();
    }
    // No more commands can be answered: let a writer know at once.
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

fn drain(decoder: &mut Decoder, events: &Events, shared: &Shared) -> Result<(), Closed> {
    while let Some(message) = decoder.next_message() {
        match FromServer::parse(message.map_err(Closed::Garbled)?) {
            FromServer::Event(event) => {
                if let Some(observer) = shared.observer() {
                    observer.event(&event);
                }
                events.offer(event, shared);
            }
            FromServer::Reply(reply) => shared.deliver(reply),
            FromServer::Greeting(_) | FromServer::Unknown => {
                warn!("passed over a message that is neither reply nor event");
            }
        }
    }
    Ok(())
}
