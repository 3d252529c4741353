//! The client's side: connect, negotiate, send commands, receive events.

mod connect;
mod error;
mod peer;
mod reader;

use std::{
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam::channel::{self, Receiver, RecvTimeoutError};
use serde::Serialize;
use serde_json::Value;

use self::reader::{Pending, Shared};
pub use self::{
    connect::Greeting,
    error::{Closed, ConnectError, ExecuteError},
    peer::PeerCredentials,
};
use crate::{
    codec::{Limits, encode_line},
    commands::{Command, HumanMonitorCommand, VersionInfo},
    event::Event,
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
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            greeting_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(10),
            event_capacity: 1024,
            limits: Limits::REPLIES,
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
    writer: Mutex<UnixStream>,
    next_id: AtomicU64,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

/// A command that was sent and whose reply is still to come.
///
/// Dropping it gives the reply up; the command is carried out all the same.
#[derive(Debug)]
pub struct InFlight<'a> {
    client: &'a Client,
    id: u64,
    command: String,
    reply: Receiver<Result<Value, crate::QmpError>>,
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
        let arguments = serde_json::to_value(command).map_err(|error| self.bad(C::NAME, error))?;
        let arguments = Some(arguments).filter(|arguments| !arguments.is_null());
        let value = self.execute_raw(C::NAME, arguments)?;
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
        #[derive(Serialize)]
        struct Request<'a> {
            execute: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            arguments: Option<Value>,
            id: u64,
        }

        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = Request {
            execute: name,
            arguments,
            id,
        };
        let mut line = encode_line(&request).map_err(|error| self.bad(name, error))?;
        line.push(b'\n');
        let (sender, reply) = channel::bounded(1);
        match &mut *self.shared.pending() {
            Pending::Open(waiting) => waiting.insert(id, sender),
            Pending::Closed(reason) => return Err(self.lost(name, reason.clone())),
        };
        let in_flight = InFlight {
            client: self,
            id,
            command: name.to_owned(),
            reply,
        };
        let written = lock(&self.writer).write_all(&line);
        if let Err(error) = written {
            // Half a command may be out: nothing after it would be understood.
            let reason = Closed::Write { kind: error.kind() };
            self.shared.close(reason.clone());
            self.hang_up();
            return Err(self.lost(name, reason));
        }
        Ok(in_flight)
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
        let _ = lock(&self.writer).shutdown(std::net::Shutdown::Both);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.close(Closed::Dropped);
        self.hang_up();
        if let Some(reader) = self.reader.take() {
            // The reader has no panic to tell of; were there one, its message is out already.
            let _ = reader.join();
        }
    }
}

impl InFlight<'_> {
    /// Waits for the reply.
    ///
    /// # Errors
    /// When QEMU refuses the command, doesn't answer within `timeout`, or the connection is lost.
    pub fn wait(self, timeout: Duration) -> Result<Value, ExecuteError> {
        let client = self.client;
        let begin = Instant::now();
        match self.reply.recv_timeout(timeout) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(ExecuteError::Refused {
                path: client.path.clone(),
                command: self.command.clone(),
                error,
            }),
            Err(RecvTimeoutError::Timeout) => Err(ExecuteError::TimedOut {
                path: client.path.clone(),
                command: self.command.clone(),
                after: begin.elapsed(),
            }),
            Err(RecvTimeoutError::Disconnected) => {
                Err(client.lost(&self.command, client.closed().unwrap_or(Closed::Dropped)))
            }
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        // The reader counts a reply without an entry as late.
        if let Pending::Open(waiting) = &mut *self.client.shared.pending() {
            waiting.remove(&self.id);
        }
    }
}

/// Locks a mutex whose data no panic can leave half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
