//! The reader thread: bytes to replies and events.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read},
    os::unix::net::UnixStream,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use crossbeam::channel::{Receiver, Sender, TrySendError};
use serde_json::Value;
use tracing::{debug, warn};

use super::{Closed, lock};
use crate::{
    QmpError,
    codec::Decoder,
    event::Event,
    message::{FromServer, Reply},
};

/// How many bytes one read takes.
const CHUNK: usize = 64 << 10;

/// What the client's handle and its reader thread share.
#[derive(Debug)]
pub(super) struct Shared {
    pending: Mutex<Pending>,
    pub(super) events_lost: AtomicU64,
    pub(super) late_replies: AtomicU64,
}

/// Commands that wait for a reply.
#[derive(Debug)]
pub(super) enum Pending {
    Open(HashMap<u64, Sender<Result<Value, QmpError>>>),
    Closed(Closed),
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            pending: Mutex::new(Pending::Open(HashMap::new())),
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
            *pending = Pending::Closed(reason);
        }
    }

    fn deliver(&self, reply: Reply) {
        let waiting = match &mut *self.pending() {
            Pending::Closed(_) => return,
            Pending::Open(waiting) => match reply.id {
                Some(id) => id.as_u64().and_then(|id| waiting.remove(&id)),
                // An error in parsing a command carries no id. It is ours to settle only when
                // there is no choice.
                None => {
                    let only = (waiting.len() == 1).then(|| waiting.keys().next().copied());
                    only.flatten().and_then(|id| waiting.remove(&id))
                }
            },
        };
        match waiting {
            // The waiting side may have timed out this very moment.
            Some(sender) => {
                if sender.send(reply.result).is_err() {
                    self.late_replies.fetch_add(1, Ordering::Relaxed);
                }
            }
            None => {
                self.late_replies.fetch_add(1, Ordering::Relaxed);
                debug!("dropped a reply that nobody waits for");
            }
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
    shared: std::sync::Arc<Shared>,
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
    // No more commands can be answered: let a writer know at once.
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

fn drain(decoder: &mut Decoder, events: &Events, shared: &Shared) -> Result<(), Closed> {
    while let Some(message) = decoder.next_message() {
        match FromServer::parse(message.map_err(Closed::Garbled)?) {
            FromServer::Event(event) => events.offer(event, shared),
            FromServer::Reply(reply) => shared.deliver(reply),
            FromServer::Greeting(_) | FromServer::Unknown => {
                warn!("passed over a message that is neither reply nor event");
            }
        }
    }
    Ok(())
}
