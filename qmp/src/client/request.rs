//! Commands on their way: what is sent, and who gets the reply.

use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError};
use rustix::fd::BorrowedFd;
use serde::Serialize;
use serde_json::Value;

use super::{Client, Closed, ExecuteError, pending::Pending};
use crate::{QmpError, codec::encode_line};

/// A command to send: by name, with its arguments, and with what few commands need.
///
/// ```
/// use qmp::client::Request;
/// use serde_json::json;
///
/// let request = Request::new("migrate-recover")
///     .arguments(json!({"uri": "tcp:127.0.0.1:4444"}))
///     .out_of_band();
/// # let _ = request;
/// ```
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub(super) name: &'a str,
    pub(super) arguments: Option<Value>,
    pub(super) oob: bool,
    pub(super) fds: &'a [BorrowedFd<'a>],
}

impl<'a> Request<'a> {
    /// A command without arguments.
    #[must_use]
    pub fn new(name: &'a str) -> Self {
        Self {
            name,
            arguments: None,
            oob: false,
            fds: &[],
        }
    }

    /// With these arguments, an object.
    #[must_use]
    pub fn arguments(self, arguments: impl Into<Option<Value>>) -> Self {
        Self {
            arguments: arguments.into(),
            ..self
        }
    }

    /// Sent by `exec-oob`: QEMU runs it beside the command under way. The connection must have
    /// the capability ([`Options::oob`](super::Options::oob)).
    #[must_use]
    pub fn out_of_band(self) -> Self {
        Self { oob: true, ..self }
    }

    /// With file descriptors beside its first byte, at most [`MAX_FDS`](crate::MAX_FDS).
    ///
    /// QEMU keeps only the newest it got, so have one such command under way at a time.
    #[must_use]
    pub fn fds(self, fds: &'a [BorrowedFd<'a>]) -> Self {
        Self { fds, ..self }
    }

    /// The message without its end, to which the id is added.
    pub(crate) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        #[derive(Serialize)]
        struct Wire<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            execute: Option<&'a str>,
            #[serde(rename = "exec-oob", skip_serializing_if = "Option::is_none")]
            exec_oob: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            arguments: Option<&'a Value>,
        }

        let mut line = encode_line(&Wire {
            execute: (!self.oob).then_some(self.name),
            exec_oob: self.oob.then_some(self.name),
            arguments: self.arguments.as_ref(),
        })?;
        line.pop();
        Ok(line)
    }
}

/// A command that was sent and whose reply is still to come.
///
/// Dropping it gives the reply up; the command is carried out all the same.
#[derive(Debug)]
pub struct InFlight<'a> {
    pub(super) client: &'a Client,
    pub(super) id: u64,
    pub(super) command: String,
    pub(super) reply: Receiver<Result<Value, QmpError>>,
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
        // The reader counts a reply that nobody waits for as late.
        if let Pending::Open(waiting) = &mut *self.client.shared.pending() {
            waiting.give_up(self.id);
        }
    }
}
