//! The way to a guest's agent: connects or listens again by itself, never waits longer than its timeout.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::sys::socket::{
    AddressFamily as NixFamily, Backlog, SockFlag, SockType, VsockAddr, bind, getpeername, listen,
    socket,
};
use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
    net::{
        AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, connect,
        send, socket_with,
    },
};
use tier_sys::wait::Wait;

use super::address::GuestAddress;

/// Time between two attempts to connect.
const RECONNECT_EVERY: Duration = Duration::from_millis(500);
/// `VMADDR_CID_ANY`: our own context, whatever its number.
const CID_ANY: u32 = u32::MAX;
/// Most bytes that wait to be sent: replies are short, so a guest that lets them gather reads nothing.
const MAX_UNSENT: usize = 64 << 10;

/// What a wait brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// Bytes can be read.
    Readable,
    /// A connection was made: the stream begins again.
    Connected,
    /// The connection is gone.
    Gone,
    /// The wait is over.
    TimedOut,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Link {
    address: GuestAddress,
    listener: Option<OwnedFd>,
    peer: Option<OwnedFd>,
    unsent: Vec<u8>,
    next_try: Instant,
    /// Connections of others than the guest that were refused.
    pub(super) refused: u64,
    /// Why there is no connection, if that is known.
    pub(super) trouble: Option<String>,
}

impl Link {
    /// Begins to listen, or sees that there is something to connect to.
    pub(super) fn open(address: &GuestAddress) -> anyhow::Result<Self> {
        let listener = match address {
            GuestAddress::Unix(path) => {
                check_socket(path)?;
                None
            }
            GuestAddress::Vsock { port, .. } => Some(listen_on(*port)?),
        };
        Ok(Self {
            address: address.clone(),
            listener,
            peer: None,
            unsent: Vec::new(),
            next_try: Instant::now(),
            refused: 0,
            trouble: None,
        })
    }

    /// A link over a connection that stands, and that is not made again.
    #[cfg(test)]
    pub(super) fn over(peer: OwnedFd) -> Self {
        Self {
            address: GuestAddress::Unix("/nonexistent/guest.sock".into()),
            listener: None,
            peer: Some(peer),
            unsent: Vec::new(),
            next_try: Instant::now(),
            refused: 0,
            trouble: None,
        }
    }

    pub(super) const fn is_connected(&self) -> bool {
        self.peer.is_some()
    }

    /// Ends the connection; another is made in a while.
    pub(super) fn disconnect(&mut self) {
        self.peer = None;
        self.unsent.clear();
        self.next_try = Instant::now() + RECONNECT_EVERY;
    }

    /// Waits until something can be read (if `read`), the connection changes, or the wait is over.
    /// Sends what waits to be sent meanwhile.
    pub(super) fn wait(&mut self, wait: Wait<'_>, read: bool, busy: bool) -> io::Result<Woken> {
        let until = Instant::now() + wait.timeout;
        loop {
            if let Some(woken) = self.connect_if_due() {
                return Ok(woken);
            }
            let mut left = until.saturating_duration_since(Instant::now());
            if self.peer.is_none() && self.listener.is_none() {
                left = left.min(self.next_try.saturating_duration_since(Instant::now()));
            }
            let mut fds = Vec::with_capacity(2);
            if let Some(peer) = &self.peer {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, read);
                flags.set(PollFlags::OUT, !self.unsent.is_empty());
                fds.push(PollFd::new(peer, flags));
            }
            if let Some(listener) = &self.listener {
                fds.push(PollFd::new(listener, PollFlags::IN));
            }
            let rings = wait.at_most(left).until_ready(&mut fds)?;
            let seen: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            drop(fds);
            let of_peer = self
                .peer
                .is_some()
                .then(|| seen.first().copied())
                .flatten()
                .unwrap_or(PollFlags::empty());
            if of_peer.contains(PollFlags::IN) {
                return Ok(Woken::Readable);
            }
            // What was sent before the end could be read first; with reading held back it waits.
            if of_peer.intersects(PollFlags::HUP | PollFlags::ERR) {
                self.disconnect();
                return Ok(Woken::Gone);
            }
            if of_peer.contains(PollFlags::OUT) && !self.flush() {
                return Ok(Woken::Gone);
            }
            let of_listener = self.listener.is_some().then(|| seen.last().copied());
            if of_listener
                .flatten()
                .is_some_and(|seen| seen.contains(PollFlags::IN))
                && self.accept(busy)
            {
                return Ok(Woken::Connected);
            }
            if rings || Instant::now() >= until {
                return Ok(Woken::TimedOut);
            }
        }
    }

    fn connect_if_due(&mut self) -> Option<Woken> {
        let GuestAddress::Unix(path) = &self.address else {
            return None;
        };
        if self.peer.is_some() || Instant::now() < self.next_try {
            return None;
        }
        self.next_try = Instant::now() + RECONNECT_EVERY;
        match connect_to(path) {
            Ok(peer) => {
                self.peer = Some(peer);
                self.trouble = None;
                Some(Woken::Connected)
            }
            Err(errno) => {
                let trouble = format!(
                    "{} can't be connected to ({errno}): is QEMU's chardev a server, and no other \
                     client on it?",
                    path.display()
                );
                self.trouble = Some(trouble);
                None
            }
        }
    }

    /// Takes a connection in. Only the guest's; and while one is at work, no other.
    fn accept(&mut self, busy: bool) -> bool {
        let GuestAddress::Vsock { cid, .. } = self.address else {
            return false;
        };
        let Some(listener) = &self.listener else {
            return false;
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let Ok(peer) = accept_with(listener, flags) else {
            return false;
        };
        let from = getpeername::<VsockAddr>(peer.as_raw_fd());
        let is_guest = from.is_ok_and(|from| from.cid() == cid);
        if !is_guest || (busy && self.peer.is_some()) {
            self.refused += 1;
            return false;
        }
        self.peer = Some(peer);
        self.unsent.clear();
        true
    }

    /// Reads at most `most` bytes; `None` at the connection's end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let peer = self.peer.as_ref()?;
        match rustix::io::read(peer, buffer) {
            Ok(0) => {}
            Ok(bytes) => return Some(bytes),
            Err(Errno::AGAIN | Errno::INTR) => return Some(0),
            Err(_) => {}
        }
        self.disconnect();
        None
    }

    /// Sends bytes, or keeps them until there is room; `false` if the connection is gone, also because
    /// the other side reads nothing.
    pub(super) fn send(&mut self, bytes: &[u8]) -> bool {
        self.unsent.extend_from_slice(bytes);
        if self.unsent.len() > MAX_UNSENT {
            self.disconnect();
            return false;
        }
        self.flush()
    }

    fn flush(&mut self) -> bool {
        let Some(peer) = &self.peer else {
            return false;
        };
        while !self.unsent.is_empty() {
            // A guest that is gone must not end us with SIGPIPE.
            match send(peer.as_fd(), &self.unsent, SendFlags::NOSIGNAL) {
                Ok(bytes) => {
                    self.unsent.drain(..bytes);
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.disconnect();
                    return false;
                }
            }
        }
        true
    }
}

fn check_socket(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::FileTypeExt;

    let shown = path.display();
    let found = std::fs::metadata(path).with_context(|| {
        format!(
            "no socket of the guest's agent at {shown}: give QEMU -chardev \
             socket,id=tier,path={shown},server=on,wait=off and -device virtserialport,chardev=tier"
        )
    })?;
    if !found.file_type().is_socket() {
        bail!("{shown} is no socket: give the path of QEMU's chardev");
    }
    Ok(())
}

fn connect_to(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&fd, &SocketAddrUnix::new(path)?)?;
    Ok(fd)
}

fn listen_on(port: u32) -> anyhow::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(NixFamily::Vsock, SockType::Stream, flags, None)
        .context("this host has no vsock: modprobe vhost_vsock")?;
    bind(fd.as_raw_fd(), &VsockAddr::new(CID_ANY, port)).with_context(|| {
        format!("vsock port {port} can't be had: choose one that no other program listens on")
    })?;
    listen(&fd, Backlog::new(4).unwrap_or(Backlog::MAXCONN))
        .with_context(|| format!("vsock port {port} can't be listened on"))?;
    Ok(fd)
}
