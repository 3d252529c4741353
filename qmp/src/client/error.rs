//! What can go wrong at the client's side, told so that a person can act on it.

use std::{fmt, io, path::PathBuf, time::Duration};

use crate::{QmpError, codec::DecodeError};

/// Why a connection is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Closed {
    /// The other end closed it: QEMU ended, or was told to drop this monitor.
    Eof {
        /// It closed in the middle of a message.
        mid_message: bool,
    },
    /// The other end went away with unread commands (ECONNRESET), as an exiting QEMU often does.
    Reset,
    /// Reading failed.
    Read {
        /// How.
        kind: io::ErrorKind,
    },
    /// Writing failed, or the other end took no bytes for the command time-out.
    Write {
        /// How.
        kind: io::ErrorKind,
    },
    /// The other end sent something that isn't QMP.
    Garbled(DecodeError),
    /// This client was dropped.
    Dropped,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Eof { mid_message: false } => f.write_str("QEMU closed the connection"),
            Self::Eof { mid_message: true } => {
                f.write_str("QEMU closed the connection in the middle of a message")
            }
            Self::Reset => f.write_str("QEMU ended (connection reset)"),
            Self::Read { kind } => write!(f, "reading failed: {kind}"),
            Self::Write { kind } => write!(f, "writing failed: {kind}"),
            Self::Garbled(error) => write!(f, "QEMU sent something that is not QMP: {error}"),
            Self::Dropped => f.write_str("this client was closed"),
        }
    }
}

/// Why there is no connection. Each text says what, where and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nothing is at the path.
    #[error(
        "no socket at {path}: start QEMU with '-qmp unix:{path},server=on,wait=off', or name the \
         socket that it was given",
        path = path.display()
    )]
    NoSuchFile {
        /// The path.
        path: PathBuf,
    },
    /// Something else than a socket is at the path.
    #[error(
        "{path} is not a socket: name the unix socket of QEMU's -qmp option",
        path = path.display()
    )]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// ECONNREFUSED: the socket file outlived its QEMU.
    #[error(
        "nobody serves {path}: its QEMU has ended and left the socket behind; start the guest \
         again or name another socket",
        path = path.display()
    )]
    NobodyServes {
        /// The path.
        path: PathBuf,
    },
    /// The socket's or a folder's permissions.
    #[error(
        "no permission to connect to {path}: run as root or as the user of this QEMU",
        path = path.display()
    )]
    PermissionDenied {
        /// The path.
        path: PathBuf,
    },
    /// The path doesn't fit a socket address.
    #[error(
        "the path {path} is too long for a unix socket (at most {limit} bytes): use a shorter one, \
         for example in /run",
        path = path.display(),
        limit = crate::MAX_SOCKET_PATH
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The socket's backlog stayed full.
    #[error(
        "{path} took no connection within {after:?}: too many clients wait for this monitor; give \
         this one a -qmp option of its own",
        path = path.display()
    )]
    ConnectTimedOut {
        /// The path.
        path: PathBuf,
        /// How long it was tried.
        after: Duration,
    },
    /// Connected, and nothing came.
    #[error(
        "no greeting from {path} within {after:?}: another client holds this monitor (a monitor \
         serves one at a time), or it is no QMP monitor; give this one its own with \
         '-qmp unix:PATH,server=on,wait=off'",
        path = path.display()
    )]
    NoGreeting {
        /// The path.
        path: PathBuf,
        /// How long it was waited.
        after: Duration,
    },
    /// Something else than QMP answered.
    #[error(
        "{path} does not speak QMP: it sent '{first_bytes}'; name the socket of QEMU's -qmp option \
         (not of -monitor, -serial or -qtest)",
        path = path.display()
    )]
    NotQmp {
        /// The path.
        path: PathBuf,
        /// The start of what it sent, escaped.
        first_bytes: String,
    },
    /// QEMU refused the negotiation.
    #[error("{path} refused the capabilities negotiation: {error}", path = path.display())]
    NegotiationRefused {
        /// The path.
        path: PathBuf,
        /// What it said.
        error: QmpError,
    },
    /// The greeting came, and the reply to the negotiation didn't.
    #[error(
        "{path} did not answer the capabilities negotiation within {after:?}: QEMU hangs or is \
         stopped; look at its process state",
        path = path.display()
    )]
    NegotiationTimedOut {
        /// The path.
        path: PathBuf,
        /// How long it was waited.
        after: Duration,
    },
    /// The connection was lost before it stood.
    #[error("{path} was lost while connecting: {reason}", path = path.display())]
    Lost {
        /// The path.
        path: PathBuf,
        /// Why.
        reason: Closed,
    },
    /// The process at the other end can't be told.
    #[error(
        "the process that serves {path} is not visible here: it runs in another pid namespace; run \
         in the namespace of the host",
        path = path.display()
    )]
    UnknownPeer {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed for another reason.
    #[error("can't {action} {path}", path = path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What was done.
        action: &'static str,
        /// How it failed.
        source: io::Error,
    },
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecuteError {
    /// The arguments can't be JSON: a mistake in the program.
    #[error("the arguments of '{command}' for {path} are no JSON object", path = path.display())]
    Arguments {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: String,
        /// What was wrong.
        source: serde_json::Error,
    },
    /// The connection can't carry the command.
    #[error("'{command}' can't be sent to {path}: {why}", path = path.display())]
    Unsendable {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: String,
        /// Why not.
        why: &'static str,
    },
    /// QEMU answered with an error.
    #[error("'{command}' was refused by {path}: {error}", path = path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: String,
        /// Class and description.
        error: QmpError,
    },
    /// QEMU answered, but not as this command answers.
    #[error("the reply of {path} to '{command}' has an unexpected shape", path = path.display())]
    UnexpectedReply {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: String,
        /// What was wrong.
        source: serde_json::Error,
    },
    /// No reply in time; a late one will be dropped and counted.
    #[error(
        "no reply to '{command}' from {path} within {after:?}: QEMU hangs or is stopped",
        path = path.display()
    )]
    TimedOut {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: String,
        /// How long it was waited.
        after: Duration,
    },
    /// The connection is lost. Whether the command was carried out is not known.
    #[error("'{command}' got no reply, {path} is lost: {reason}", path = path.display())]
    Closed {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: String,
        /// Why.
        reason: Closed,
    },
}

impl ExecuteError {
    /// What QEMU said, if it answered with an error.
    #[must_use]
    pub fn refusal(&self) -> Option<&QmpError> {
        match self {
            Self::Refused { error, .. } => Some(error),
            _ => None,
        }
    }
}
