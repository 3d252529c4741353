//! Who is at the other end of a socket.

use std::{io, os::unix::net::UnixStream};

use nix::sys::socket::{getsockopt, sockopt};

/// Credentials of the process at the other end of a unix socket (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Its process id in this pid namespace.
    pub pid: u32,
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

impl PeerCredentials {
    /// The credentials of `stream`'s other end; `None` when its process has no id in this pid
    /// namespace (the kernel then says 0, which is why rustix's non-zero `Pid` is no use here).
    pub(crate) fn of(stream: &UnixStream) -> io::Result<Option<Self>> {
        let found = getsockopt(stream, sockopt::PeerCredentials)?;
        let pid = u32::try_from(found.pid()).ok().filter(|&pid| pid != 0);
        Ok(pid.map(|pid| Self {
            pid,
            uid: found.uid(),
            gid: found.gid(),
        }))
    }
}
