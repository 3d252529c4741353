//! The client's side: connect, negotiate, send commands, receive events.

mod connect;
mod error;
mod peer;
mod pending;
mod reader;
mod reconnect;
mod request;

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use crossbeam::channel::{self, Receiver};
use serde_json::Value;

pub(crate) use self::pending::Sink;
pub use self::{
    error::{Closed, ConnectError, ExecuteError},
    peer::PeerCredentials,
    reconnect::{Reconnecting, Resync},
    request::{InFlight, Request},
};
use self::{pending::Pending, reader::Shared};
pub use crate::message::Greeting;
use crate::{
    QmpError,
    codec::Limits,
    commands::{Command, HumanMonitorCommand, VersionInfo},
    event::Event,
    fds,
};

/// Time-outs and bounds of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long to wait for room in the socket's backlog.
    pub connect_timeout: Duration,
    /// How long to wait for the greeting. A monitor serves one client: while another holds it,
    /// connecting succeeds and the greeting doesn't come.
    pub greeting_timeout: Duration,
    /// How long to wait for the reply of a command.
    pub command_timeout: Duration,
    /// How many events wait for the receiver before the oldest are dropped and counted.
    pub event_capacity: usize,
    /// Bounds on what QEMU may send.
    pub limits: Limits,
    /// Whether to switch on out-of-band commands where the server offers them.
    pub oob: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            greeting_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(10),
            event_capacity: 1024,
            limits: Limits::REPLIES,
            oob: false,
        }
    }
}

/// A connection to a QMP server, negotiated.
///
/// Calls block and may come from several threads; each reply finds its caller by id. Dropping the
/// client closes the connection and joins the reader thread.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    options: Options,
    greeting: Greeting,
    peer: PeerCredentials,
    writer: Mutex<Writer>,
    oob: bool,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

/// The sending end. Ids are given in the order of sending.
#[derive(Debug)]
struct Writer {
    stream: UnixStream,
    next_id: u64,
}

/// Sees what comes, in the reader's thread: before the receiver of events gets it, and in order
/// with the replies. It must not wait for anything.
pub trait Observer: Send + Sync {
    /// An event came.
    fn event(&self, event: &Event);

    /// The connection ended; nothing more will come.
    fn closed(&self);
}

/// The process that serves the socket at `path`, without a word said: a monitor that another client
/// holds tells so much, too.
///
/// # Errors
/// [`ConnectError`].
pub fn peer_of(path: &Path, timeout: Duration) -> Result<PeerCredentials, ConnectError> {
    connect::peer_of(path, timeout)
}

impl Client {
    /// Connects to the socket at `path`, waits for the greeting and negotiates.
    ///
    /// The receiver gives QEMU's events; when it disconnects, the connection is lost (and
    /// [`closed`](Self::closed) says why).
    ///
    /// # Errors
    /// One variant of [`ConnectError`] for each thing that can be wrong; its text says what to do.
    pub fn connect(
        path: impl AsRef<Path>,
        options: &Options,
    ) -> Result<(Self, Receiver<Event>), ConnectError> {
        connect::connect(path.as_ref(), options)
    }

    /// Sends a command and waits for its reply.
    ///
    /// # Errors
    /// When QEMU refuses the command, doesn't answer in time, answers with something that isn't
    /// `C::Return`, or the connection is lost.
    pub fn execute<C: Command>(&self, command: &C) -> Result<C::Return, ExecuteError> {
        self.execute_within(command, self.options.command_timeout)
    }

    /// Sends a command and waits for its reply, no longer than `timeout`.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub fn execute_within<C: Command>(
        &self,
        command: &C,
        timeout: Duration,
    ) -> Result<C::Return, ExecuteError> {
        let arguments = serde_json::to_value(command).map_err(|error| self.bad(C::NAME, error))?;
        let arguments = Some(arguments).filter(|arguments| !arguments.is_null());
        let value = self.send(C::NAME, arguments)?.wait(timeout)?;
        serde_json::from_value(value).map_err(|source| ExecuteError::UnexpectedReply {
            path: self.path.clone(),
            command: C::NAME.to_owned(),
            source,
        })
    }

    /// Sends a command by name with its arguments (an object, or none) and waits for its reply.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub fn execute_raw(&self, name: &str, arguments: Option<Value>) -> Result<Value, ExecuteError> {
        self.send(name, arguments)?
            .wait(self.options.command_timeout)
    }

    /// Gives a line to the human monitor. QEMU tells even failures as a text.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub fn hmp(&self, line: &str) -> Result<String, ExecuteError> {
        self.execute(&HumanMonitorCommand {
            command_line: line.to_owned(),
            cpu_index: None,
        })
    }

    /// Sends a command and leaves its reply for [`InFlight::wait`]; several may be on their way.
    ///
    /// # Errors
    /// When the command can't be sent.
    pub fn send(&self, name: &str, arguments: Option<Value>) -> Result<InFlight<'_>, ExecuteError> {
        self.send_request(&Request::new(name).arguments(arguments))
    }

    /// Sends a command as [`send`](Self::send) does, out of band or with file descriptors.
    ///
    /// # Errors
    /// As [`send`](Self::send), and when out-of-band commands were not negotiated or there are too
    /// many file descriptors.
    pub fn send_request(&self, request: &Request<'_>) -> Result<InFlight<'_>, ExecuteError> {
        let (sender, reply) = channel::bounded(1);
        // The waiting side may have timed out this very moment.
        let sink = Box::new(move |result| sender.send(result).is_ok());
        let id = self.post(request, self.encode(request)?, sink)?;
        Ok(InFlight {
            client: self,
            id,
            command: request.name.to_owned(),
            reply,
        })
    }

    /// Sends a command whose reply goes to `reply`, in the reader's thread and in order with other
    /// replies and [observed](Self::observe) events; so it must not wait for anything. It is
    /// dropped without a call when the connection is lost.
    ///
    /// # Errors
    /// As [`send_request`](Self::send_request).
    pub fn submit(
        &self,
        request: &Request<'_>,
        reply: impl FnOnce(Result<Value, QmpError>) + Send + 'static,
    ) -> Result<(), ExecuteError> {
        let sink = Box::new(move |result| {
            reply(result);
            true
        });
        self.post(request, self.encode(request)?, sink).map(drop)
    }

    fn encode(&self, request: &Request<'_>) -> Result<Vec<u8>, ExecuteError> {
        let encoded = request.encode();
        encoded.map_err(|error| self.bad(request.name, error))
    }

    /// Adds the id to the encoded request and sends it; the id.
    pub(crate) fn post(
        &self,
        request: &Request<'_>,
        mut line: Vec<u8>,
        sink: Sink,
    ) -> Result<u64, ExecuteError> {
        let unsendable = |why| ExecuteError::Unsendable {
            path: self.path.clone(),
            command: request.name.to_owned(),
            why,
        };
        if request.oob && !self.oob {
            return Err(unsendable(
                "out-of-band commands were not negotiated on this connection",
            ));
        }
        if request.fds.len() > fds::MAX_FDS {
            return Err(unsendable("it has too many file descriptors"));
        }
        let mut writer = lock(&self.writer);
        let id = writer.next_id;
        writer.next_id += 1;
        line.extend_from_slice(format!(",\"id\":{id}}}\n").as_bytes());
        match &mut *self.shared.pending() {
            Pending::Open(waiting) => waiting.insert(id, request.oob, sink),
            Pending::Closed(reason) => return Err(self.lost(request.name, reason.clone())),
        }
        if let Err(error) = fds::write_all(&writer.stream, &line, request.fds) {
            // Half a command may be out: nothing after it would be understood.
            let reason = Closed::Write { kind: error.kind() };
            let _ = writer.stream.shutdown(std::net::Shutdown::Both);
            drop(writer);
            self.shared.close(reason.clone());
            return Err(self.lost(request.name, reason));
        }
        Ok(id)
    }

    /// Tells `observer` of events and of the end from now on; a connection has one observer, the
    /// last.
    pub fn observe(&self, observer: Weak<dyn Observer>) {
        *lock(&self.shared.observer) = Some(observer);
    }

    /// Whether out-of-band commands are switched on.
    #[must_use]
    pub fn is_oob(&self) -> bool {
        self.oob
    }

    /// How long this client waits for the reply of a command, unless the caller says otherwise.
    #[must_use]
    pub fn command_timeout(&self) -> Duration {
        self.options.command_timeout
    }

    /// The path that this client is connected to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process at the other end of the socket.
    ///
    /// These are the credentials of whoever called `listen`: QEMU itself, or, when it was handed
    /// the socket, the manager that opened it.
    #[must_use]
    pub fn peer(&self) -> PeerCredentials {
        self.peer
    }

    /// QEMU's version, as the greeting told it.
    #[must_use]
    pub fn version(&self) -> &VersionInfo {
        &self.greeting.version
    }

    /// The greeting.
    #[must_use]
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// How many events were dropped because nobody took them. When it has grown, ask QEMU for
    /// everything that events tell.
    #[must_use]
    pub fn events_lost(&self) -> u64 {
        self.shared.events_lost.load(Ordering::Relaxed)
    }

    /// How many replies came after their command had timed out.
    #[must_use]
    pub fn late_replies(&self) -> u64 {
        self.shared.late_replies.load(Ordering::Relaxed)
    }

    /// Why the connection is lost; `None` while it stands.
    #[must_use]
    pub fn closed(&self) -> Option<Closed> {
        match &*self.shared.pending() {
            Pending::Open(_) => None,
            Pending::Closed(reason) => Some(reason.clone()),
        }
    }

    fn bad(&self, command: &str, source: serde_json::Error) -> ExecuteError {
        ExecuteError::Arguments {
            path: self.path.clone(),
            command: command.to_owned(),
            source,
        }
    }

    fn lost(&self, command: &str, reason: Closed) -> ExecuteError {
        ExecuteError::Closed {
            path: self.path.clone(),
            command: command.to_owned(),
            reason,
        }
    }

    fn hang_up(&self) {
        // It fails only when the other end is gone already.
        let _ = lock(&self.writer).stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.close(Closed::Dropped);
        self.hang_up();
        let reader = self.reader.take();
        // What the reader calls may hold the last handle.
        if let Some(reader) = reader.filter(|reader| reader.thread().id() != thread::current().id())
        {
            // The reader has no panic to tell of; were there one, its message is out already.
            let _ = reader.join();
        }
    }
}

/// Locks a mutex whose data no panic can leave half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
