//! From a path to a negotiated connection.

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use crossbeam::channel::{self, Receiver};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with},
};

use super::{
    Client, Closed, ConnectError, Options, PeerCredentials, Writer,
    reader::{self, Events, Shared},
};
use crate::{
    codec::{Decoder, encode_line},
    commands::{Capability, Command as _, QmpCapabilities},
    event::Event,
    message::{FromServer, Greeting},
};

/// How often a full backlog is tried again.
const RETRY: Duration = Duration::from_millis(10);
/// How many of a stranger's first bytes are shown.
const SHOWN: usize = 48;

pub(super) fn connect(
    path: &Path,
    options: &Options,
) -> Result<(Client, Receiver<Event>), ConnectError> {
    let stream = open(path, options.connect_timeout)?;
    let io = |action| {
        move |source: std::io::Error| ConnectError::Io {
            path: path.into(),
            action,
            source,
        }
    };
    let peer = peer(&stream, path)?;
    let shared = Arc::new(Shared::new());
    let (sender, receiver) = channel::bounded(options.event_capacity.max(1));
    let events = Events::new(sender, receiver.clone());

    let mut handshake = Handshake::new(path, &stream, options);
    let greeting = handshake.greeting()?;
    let oob = options.oob && greeting.capabilities.contains(&Capability::Oob);
    handshake.negotiate(oob, &events, &shared)?;
    let decoder = handshake.decoder;

    stream.set_read_timeout(None).map_err(io("set up"))?;
    stream
        .set_write_timeout(Some(options.command_timeout))
        .map_err(io("set up"))?;
    let reading = stream.try_clone().map_err(io("set up"))?;
    let reader = thread::Builder::new()
        .name("qmp-reader".to_owned())
        .spawn({
            let shared = Arc::clone(&shared);
            move || reader::run(reading, decoder, events, shared)
        })
        .map_err(io("start a reader for"))?;
    let client = Client {
        path: path.to_owned(),
        options: options.clone(),
        greeting,
        peer,
        writer: Mutex::new(Writer { stream, next_id: 1 }),
        oob,
        shared,
        reader: Some(reader),
    };
    Ok((client, receiver))
}

/// The process that serves the socket at `path`.
pub(super) fn peer_of(path: &Path, timeout: Duration) -> Result<PeerCredentials, ConnectError> {
    peer(&open(path, timeout)?, path)
}

fn peer(stream: &UnixStream, path: &Path) -> Result<PeerCredentials, ConnectError> {
    PeerCredentials::of(stream)
        .map_err(|source| ConnectError::Io {
            path: path.into(),
            action: "ask for the process behind",
            source,
        })?
        .ok_or_else(|| ConnectError::UnknownPeer { path: path.into() })
}

/// Connects, waiting no longer than `timeout` for room in the backlog: a blocking `connect` would
/// wait without end.
fn open(path: &Path, timeout: Duration) -> Result<UnixStream, ConnectError> {
    let begin = Instant::now();
    let owned = || path.to_owned();
    let address = SocketAddrUnix::new(path).map_err(|error| match error {
        Errno::NAMETOOLONG => ConnectError::PathTooLong { path: owned() },
        error => ConnectError::Io {
            path: owned(),
            action: "name",
            source: error.into(),
        },
    })?;
    let io = |source| ConnectError::Io {
        path: owned(),
        action: "connect to",
        source,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| io(error.into()))?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if begin.elapsed() < timeout => thread::sleep(RETRY),
            Err(Errno::AGAIN) => {
                return Err(ConnectError::ConnectTimedOut {
                    path: owned(),
                    after: timeout,
                });
            }
            Err(Errno::NOENT | Errno::NOTDIR) => {
                return Err(ConnectError::NoSuchFile { path: owned() });
            }
            Err(Errno::CONNREFUSED) => {
                let is_socket = path
                    .metadata()
                    .is_ok_and(|found| found.file_type().is_socket());
                return Err(if is_socket {
                    ConnectError::NobodyServes { path: owned() }
                } else {
                    ConnectError::NotASocket { path: owned() }
                });
            }
            Err(Errno::ACCESS | Errno::PERM) => {
                return Err(ConnectError::PermissionDenied { path: owned() });
            }
            Err(error) => return Err(io(error.into())),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).map_err(io)?;
    Ok(stream)
}

/// The dialogue before the reader thread takes over.
struct Handshake<'a> {
    path: &'a Path,
    stream: &'a UnixStream,
    options: &'a Options,
    decoder: Decoder,
    first_bytes: Vec<u8>,
}

/// Why no message came.
enum Missing {
    TimedOut,
    Lost(Closed),
    Garbled,
}

impl<'a> Handshake<'a> {
    fn new(path: &'a Path, stream: &'a UnixStream, options: &'a Options) -> Self {
        let decoder = Decoder::new(options.limits);
        Self {
            path,
            stream,
            options,
            decoder,
            first_bytes: Vec::new(),
        }
    }

    fn greeting(&mut self) -> Result<Greeting, ConnectError> {
        let after = self.options.greeting_timeout;
        match self.next(Instant::now() + after) {
            Ok(FromServer::Greeting(greeting)) => Ok(greeting),
            Ok(_) | Err(Missing::Garbled) => Err(self.not_qmp()),
            // Bytes that begin like no message: a line of something else, not a slow QEMU.
            Err(Missing::TimedOut | Missing::Lost(Closed::Eof { .. }))
                if self.first_bytes.first().is_some_and(|&byte| byte != b'{') =>
            {
                Err(self.not_qmp())
            }
            Err(Missing::TimedOut) => Err(ConnectError::NoGreeting {
                path: self.path.into(),
                after,
            }),
            Err(Missing::Lost(reason)) => Err(ConnectError::Lost {
                path: self.path.into(),
                reason,
            }),
        }
    }

    fn negotiate(
        &mut self,
        oob: bool,
        events: &Events,
        shared: &Shared,
    ) -> Result<(), ConnectError> {
        let path = || self.path.to_owned();
        let after = self.options.command_timeout;
        let deadline = Instant::now() + after;
        let mut request = serde_json::json!({"execute": QmpCapabilities::NAME, "id": 0});
        if oob {
            let enable = vec![Capability::Oob];
            request["arguments"] = serde_json::json!(QmpCapabilities { enable });
        }
        let sent = encode_line(&request)
            .map_err(std::io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                self.stream.set_write_timeout(Some(after.max(RETRY)))?;
                (&mut &*self.stream).write_all(&line)
            });
        if let Err(error) = sent {
            let reason = match error.kind() {
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Closed::Reset,
                kind => Closed::Write { kind },
            };
            return Err(ConnectError::Lost {
                path: path(),
                reason,
            });
        }
        loop {
            match self.next(deadline) {
                Ok(FromServer::Event(event)) => events.offer(event, shared),
                Ok(FromServer::Reply(reply)) => {
                    return reply.result.map(drop).map_err(|error| {
                        ConnectError::NegotiationRefused {
                            path: self.path.into(),
                            error,
                        }
                    });
                }
                Ok(_) | Err(Missing::Garbled) => return Err(self.not_qmp()),
                Err(Missing::TimedOut) => {
                    return Err(ConnectError::NegotiationTimedOut {
                        path: self.path.into(),
                        after,
                    });
                }
                Err(Missing::Lost(reason)) => {
                    return Err(ConnectError::Lost {
                        path: self.path.into(),
                        reason,
                    });
                }
            }
        }
    }

    fn next(&mut self, deadline: Instant) -> Result<FromServer, Missing> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(message) = self.decoder.next_message() {
                return message.map(FromServer::parse).map_err(|_| Missing::Garbled);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Missing::TimedOut);
            }
            let read = self
                .stream
                .set_read_timeout(Some(left))
                .and_then(|()| (&mut &*self.stream).read(&mut chunk));
            match read {
                Ok(0) => {
                    let mid_message = self.decoder.is_mid_message();
                    return Err(Missing::Lost(Closed::Eof { mid_message }));
                }
                Ok(len) => {
                    let room = SHOWN.saturating_sub(self.first_bytes.len());
                    self.first_bytes.extend_from_slice(&chunk[..len.min(room)]);
                    self.decoder.push(&chunk[..len]);
                }
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                    ErrorKind::ConnectionReset => return Err(Missing::Lost(Closed::Reset)),
                    kind => return Err(Missing::Lost(Closed::Read { kind })),
                },
            }
        }
    }

    fn not_qmp(&self) -> ConnectError {
        let first_bytes = self.first_bytes.escape_ascii().to_string();
        ConnectError::NotQmp {
            path: self.path.into(),
            first_bytes,
        }
    }
}
