//! One client of a server: its reading and its writing thread.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tracing::debug;

use super::{Hub, Options, dispatch::Session, hang_up, queue::Queue};
use crate::codec::{Decoder, encode_crlf};

/// How many bytes one read takes.
const CHUNK: usize = 16 << 10;

/// A connected client, as others see it.
#[derive(Debug)]
pub(super) struct Peer {
    number: u64,
    stream: UnixStream,
    queue: Queue,
    negotiated: AtomicBool,
}

impl Peer {
    pub(super) fn new(number: u64, stream: UnixStream, options: &Options) -> Self {
        let queue = Queue::new(options.queue_messages, options.queue_bytes);
        Self {
            number,
            stream,
            queue,
            negotiated: AtomicBool::new(false),
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether it gets events.
    pub(super) fn is_negotiated(&self) -> bool {
        self.negotiated.load(Ordering::Acquire)
    }

    /// Queues a message when there is room; whether there was.
    pub(super) fn offer(&self, line: Arc<[u8]>) -> bool {
        self.queue.offer(line)
    }

    /// Disconnects it at once; whether it was connected.
    pub(super) fn abort(&self) -> bool {
        let first = self.queue.abort();
        hang_up(&self.stream);
        first
    }
}

/// Lets the writing thread finish, whichever way the reading one ends.
struct Finish<'a>(&'a Queue);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// Serves a client until it leaves.
pub(super) fn run(stream: &UnixStream, peer: &Peer, hub: &Hub) {
    thread::scope(|scope| {
        let writer = thread::Builder::new().name(format!("qmp-writer-{}", peer.number));
        if let Err(error) = writer.spawn_scoped(scope, || write(stream, peer, hub)) {
            debug!(%error, "can't start a writer");
            return;
        }
        let _finish = Finish(&peer.queue);
        read(stream, peer, hub);
    });
}

fn read(mut stream: &UnixStream, peer: &Peer, hub: &Hub) {
    let mut session = Session::new(&*hub.handler, &hub.options.version);
    let mut decoder = Decoder::new(hub.options.limits);
    let mut chunk = vec![0; CHUNK];
    if !send(peer, &session.greeting()) {
        return;
    }
    loop {
        while let Some(message) = decoder.next_message() {
            let reply = session.reply(message);
            if !send(peer, &reply) {
                return;
            }
            // After the reply is queued: no event may come before it.
            peer.negotiated
                .store(session.is_negotiated(), Ordering::Release);
        }
        match stream.read(&mut chunk) {
            Ok(0) => return,
            Ok(len) => decoder.push(&chunk[..len]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                debug!(%error, client = peer.number, "reading ended");
                return;
            }
        }
    }
}

fn send(peer: &Peer, message: &impl serde::Serialize) -> bool {
    match encode_crlf(message) {
        Ok(line) => peer.queue.push(line.into()),
        Err(error) => {
            debug!(%error, client = peer.number, "can't encode a reply");
            false
        }
    }
}

fn write(stream: &UnixStream, peer: &Peer, hub: &Hub) {
    while let Some(line) = peer.queue.pop() {
        match write_within(stream, &line, hub.options.write_timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::TimedOut => return hub.drop_slow(peer),
            Err(error) => {
                debug!(%error, client = peer.number, "writing ended");
                peer.abort();
                return;
            }
        }
    }
    // Everything is out: the reader ended, and so does the connection.
    hang_up(stream);
}

/// Writes all of `bytes` within `timeout`, however slowly the client takes them.
fn write_within(mut stream: &UnixStream, mut bytes: &[u8], timeout: Duration) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    while !bytes.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        match stream.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(len) => bytes = &bytes[len..],
            Err(error) => match error.kind() {
                ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                _ => return Err(error),
            },
        }
    }
    Ok(())
}
