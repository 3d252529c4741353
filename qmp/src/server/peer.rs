//! A connected client, as other threads see it.

use std::{
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use tracing::{debug, warn};

use super::{
    Connection, Options,
    pending::Pending,
    queue::{Next, Queue},
};
use crate::{QmpError, codec::encode_crlf, fds, message::Reply};

/// What a server counts beside its clients.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) too_slow: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Peer {
    connection: Connection,
    stream: UnixStream,
    queue: Queue,
    /// Commands that were sent on: in band, and out of band.
    in_band: Pending,
    out_of_band: Pending,
    negotiated: AtomicBool,
    oob: AtomicBool,
    retired: AtomicBool,
    counters: Arc<Counters>,
}

impl Peer {
    pub(super) fn new(
        connection: Connection,
        stream: UnixStream,
        options: &Options,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            connection,
            stream,
            queue: Queue::new(options.queue_messages, options.queue_bytes),
            in_band: Pending::default(),
            out_of_band: Pending::default(),
            negotiated: AtomicBool::new(false),
            oob: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            counters,
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.connection.id
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Whether it gets events.
    pub(super) fn is_negotiated(&self) -> bool {
        self.negotiated.load(Ordering::Acquire)
    }

    /// Whether it may send out-of-band commands.
    pub(super) fn is_oob(&self) -> bool {
        self.oob.load(Ordering::Acquire)
    }

    /// Sends a message without waiting; a client that has no room for it is disconnected.
    pub(super) fn offer(&self, line: Arc<[u8]>) {
        if !self.queue.offer(line, |bytes| self.write_now(bytes)) {
            self.drop_slow();
        }
    }

    /// Sends a message, waiting for room; `false` when the connection ended.
    pub(super) fn push(&self, message: &impl serde::Serialize) -> bool {
        self.push_after(|| {}, message)
    }

    /// Sends the reply to the negotiation; events come after it, from now on.
    pub(super) fn push_negotiated(&self, oob: bool, message: &impl serde::Serialize) -> bool {
        let negotiated = || {
            self.oob.store(oob, Ordering::Release);
            self.negotiated.store(true, Ordering::Release);
        };
        self.push_after(negotiated, message)
    }

    fn push_after(&self, first: impl FnOnce(), message: &impl serde::Serialize) -> bool {
        self.encode(message)
            .is_some_and(|line| self.queue.push(line, first, |bytes| self.write_now(bytes)))
    }

    fn encode(&self, message: &impl serde::Serialize) -> Option<Arc<[u8]>> {
        let line = encode_crlf(message);
        line.map(Into::into)
            .inspect_err(|error| debug!(%error, client = self.number(), "can't encode a message"))
            .ok()
    }

    fn write_now(&self, bytes: &[u8]) -> usize {
        fds::write_now(&self.stream, bytes).unwrap_or_else(|error| {
            debug!(%error, client = self.number(), "writing ended");
            self.hang_up();
            bytes.len()
        })
    }

    /// The next message that waits.
    pub(super) fn next_message(&self, timeout: Duration) -> Next {
        self.queue.pop(timeout)
    }

    /// Disconnects it if the other end has closed both directions: nobody takes the replies of
    /// what it asked for. One that only sends no more still reads.
    pub(super) fn abort_if_gone(&self) {
        let mut polled = [PollFd::new(&self.stream, PollFlags::empty())];
        let found = poll(&mut polled, Some(&Timespec::default()));
        if found.is_ok() && polled[0].revents().contains(PollFlags::HUP) {
            self.abort();
        }
    }

    /// Lets what is queued go out, and nothing more.
    pub(super) fn finish(&self) {
        self.queue.finish();
    }

    /// Waits until the client has read enough that a further command of it may be carried out.
    pub(super) fn wait_until_it_reads(&self) -> bool {
        self.queue.wait_half_free()
    }

    pub(super) fn pending(&self, oob: bool) -> &Pending {
        if oob {
            &self.out_of_band
        } else {
            &self.in_band
        }
    }

    /// Waits for replies under way, but not without end: who sends them may hang.
    pub(super) fn wait_for_replies(&self, timeout: Duration) {
        self.in_band.wait_idle_for(timeout);
        self.out_of_band.wait_idle_for(timeout);
    }

    /// Begins the end: takes no more commands and lets go out what is queued.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.in_band.close();
        self.out_of_band.close();
        // It fails only when the other end is gone already.
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Disconnects it at once; whether it was connected.
    pub(super) fn abort(&self) -> bool {
        let first = self.queue.abort();
        self.in_band.close();
        self.out_of_band.close();
        self.hang_up();
        first
    }

    /// Disconnects a client that doesn't read; counted once.
    pub(super) fn drop_slow(&self) {
        if self.abort() {
            self.counters.too_slow.fetch_add(1, Ordering::Relaxed);
            warn!(
                client = self.number(),
                "disconnected a client that does not read"
            );
        }
    }

    /// Ends both directions; it fails only when the other end is gone already.
    pub(super) fn hang_up(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// The way back of a reply to the client whose command was sent on. Dropping it gives the reply up.
#[derive(Debug)]
pub(crate) struct Back {
    peer: Arc<Peer>,
    id: Option<Value>,
    oob: bool,
}

impl Back {
    /// Counts the command as under way, waiting while `most` are; `None` when the client is gone.
    pub(super) fn begin(
        peer: &Arc<Peer>,
        id: Option<Value>,
        oob: bool,
        most: usize,
    ) -> Option<Self> {
        let began = peer.pending(oob).begin(most);
        let peer = Arc::clone(peer);
        began.then_some(Self { peer, id, oob })
    }

    /// Whether the client is gone.
    pub(crate) fn is_given_up(&self) -> bool {
        self.peer.queue.is_aborted()
    }

    /// Sends the reply without waiting.
    pub(crate) fn reply(mut self, result: Result<Value, QmpError>) {
        let reply = Reply {
            result,
            id: self.id.take(),
        };
        if let Some(line) = self.peer.encode(&reply) {
            self.peer.offer(line);
        }
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        self.peer.pending(self.oob).end();
    }
}
