//! Where a server sends the commands that its handler doesn't have.

use rustix::fd::OwnedFd;
use serde_json::{Map, Value};

use super::peer::Back;
use crate::client::Greeting;

/// Another QMP server behind this one.
pub(crate) trait Relay: Send + Sync {
    /// What clients are greeted with.
    fn greeting(&self) -> &Greeting;

    /// Whether it takes out-of-band commands.
    fn is_oob(&self) -> bool;

    /// Whether the command takes the file descriptors that come with it.
    fn takes_fds(&self, name: &str) -> bool;

    /// Sends a command on, waiting for its turn. Its reply will go `back`; `false` when the other
    /// server is gone.
    fn forward(&self, call: Call, back: Back) -> bool;

    /// Lets everybody go who waits for a turn, now and later.
    fn close(&self);
}

/// A command with what belongs to it.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) arguments: Map<String, Value>,
    pub(crate) oob: bool,
    pub(crate) fds: Vec<OwnedFd>,
}
