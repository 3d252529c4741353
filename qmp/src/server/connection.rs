//! The threads of one client: one reads and dispatches, one writes what had to wait, and with
//! out-of-band commands one carries out what came in band.

use std::{
    io::{self, ErrorKind, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    thread::{self, Scope},
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, Sender, bounded};
use tracing::debug;

use super::{
    Hub,
    dispatch::{Request, Session},
    peer::Peer,
    queue::Next,
};
use crate::{codec::Decoder, fds};

/// How many bytes one read takes.
const CHUNK: usize = 16 << 10;

/// How often a client that nothing is sent to is looked at.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// Lets the writing thread finish, whichever way the reading one ends.
struct Finish<'a>(&'a Peer);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// Ends the connection when a handler panics in a thread beside the reading one.
struct AbortOnPanic<'a>(&'a Peer);

impl Drop for AbortOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.abort();
        }
    }
}

/// Serves a client until it leaves.
pub(super) fn run(stream: &UnixStream, peer: &Arc<Peer>, hub: &Hub) {
    thread::scope(|scope| {
        let writer = thread::Builder::new().name(format!("qmp-writer-{}", peer.number()));
        if let Err(error) = writer.spawn_scoped(scope, || write(stream, peer, hub)) {
            debug!(%error, "can't start a writer");
            return;
        }
        let _finish = Finish(peer);
        let session = Session::new(hub, peer);
        if peer.push(&session.greeting()) {
            thread::scope(|scope| read(scope, stream, &session, hub));
        }
        peer.wait_for_replies(hub.options.write_timeout);
    });
}

fn read<'scope>(
    scope: &'scope Scope<'scope, '_>,
    stream: &UnixStream,
    session: &'scope Session<'_>,
    hub: &Hub,
) {
    let peer = session.peer();
    let mut decoder = Decoder::new(hub.options.limits);
    let mut chunk = vec![0; CHUNK];
    let mut fds = Vec::new();
    // In-band commands go to a thread of their own as soon as others may overtake them.
    let mut in_band: Option<Sender<Request>> = None;
    loop {
        while let Some(message) = decoder.next_message() {
            let request = session.parse(message, &mut fds);
            let goes_on = match &in_band {
                Some(in_band) if !request.is_oob() => in_band.send(request).is_ok(),
                _ => session.serve(request),
            };
            if !goes_on || peer.is_retired() {
                return;
            }
            if in_band.is_none() && peer.is_oob() {
                match start_in_band(scope, session, hub) {
                    Ok(sender) => in_band = Some(sender),
                    Err(error) => return debug!(%error, "can't start a thread"),
                }
            }
        }
        match fds::read(stream, &mut chunk, &mut fds) {
            Ok(0) => return,
            Ok(len) => decoder.push(&chunk[..len]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                return debug!(%error, client = peer.number(), "reading ended");
            }
        }
    }
}

/// Starts the thread that carries out in-band commands.
fn start_in_band<'scope>(
    scope: &'scope Scope<'scope, '_>,
    session: &'scope Session<'_>,
    hub: &Hub,
) -> io::Result<Sender<Request>> {
    let (sender, requests) = bounded(hub.options.commands_under_way.max(1));
    let name = format!("qmp-in-band-{}", session.peer().number());
    let run = move || serve_in_band(session, &requests);
    thread::Builder::new().name(name).spawn_scoped(scope, run)?;
    Ok(sender)
}

fn serve_in_band(session: &Session<'_>, requests: &Receiver<Request>) {
    let _abort = AbortOnPanic(session.peer());
    for request in requests {
        if !session.serve(request) {
            // The reading thread waits for bytes or for us.
            session.peer().retire();
            return;
        }
    }
}

fn write(stream: &UnixStream, peer: &Peer, hub: &Hub) {
    loop {
        let rest = match peer.next_message(LOOK_AROUND) {
            Next::Message(rest) => rest,
            // The reading thread may wait for a reply, and sees nothing of the client meanwhile.
            Next::NoneYet => {
                peer.abort_if_gone();
                continue;
            }
            Next::End => break,
        };
        match write_within(stream, rest.bytes(), hub.options.write_timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::TimedOut => return peer.drop_slow(),
            Err(error) => {
                debug!(%error, client = peer.number(), "writing ended");
                peer.abort();
                return;
            }
        }
    }
    // Everything is out: the reader ended, and so does the connection.
    peer.hang_up();
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
