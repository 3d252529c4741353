//! The way to the host: a virtio-serial port or a vsock connection, opened again by itself.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{CWD, Mode, OFlags, fcntl_setfl, openat},
    io::Errno,
    net::{SocketAddrUnix, SocketFlags, SocketType, connect as connect_unix, socket_with},
};

use crate::args::Place;

/// Time between two attempts.
const RETRY: Duration = Duration::from_secs(1);
/// The host's context id (vsock(7)).
const HOST_CID: u32 = 2;
/// Most bytes that wait to be sent: two of the largest frames.
const MAX_UNSENT: usize = 128 << 10;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Link {
    place: Place,
    fd: Option<OwnedFd>,
    /// Whether somebody is at the other end.
    up: bool,
    /// A read or a write has met the end of the stream.
    gone: bool,
    unsent: Vec<u8>,
    next_try: Instant,
    /// Why there is no connection.
    pub(crate) trouble: Option<String>,
}

/// What happened to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    /// Somebody is there now: what was half sent is void.
    Up,
    /// Nobody is there any more.
    Down,
}

impl Link {
    pub(crate) fn new(place: &Place) -> Self {
        Self {
            place: place.clone(),
            fd: None,
            up: false,
            gone: false,
            unsent: Vec::new(),
            next_try: Instant::now(),
            trouble: None,
        }
    }

    /// Opens the way if it is time to, and sees whether somebody is there.
    pub(crate) fn look(&mut self) -> Change {
        if self.fd.is_none() {
            if Instant::now() < self.next_try {
                return Change::None;
            }
            self.next_try = Instant::now() + RETRY;
            match self.open() {
                Ok(fd) => {
                    self.fd = Some(fd);
                    self.trouble = None;
                }
                Err(error) => {
                    self.trouble = Some(self.explain(&error));
                    return Change::None;
                }
            }
        }
        let Some(fd) = &self.fd else {
            return Change::None;
        };
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        let zero = Timespec::default();
        if poll(&mut fds, Some(&zero)).is_err() {
            return Change::None;
        }
        let seen = fds[0].revents();
        let gone = std::mem::take(&mut self.gone);
        let hung_up = gone || seen.intersects(PollFlags::HUP | PollFlags::ERR);
        match (self.up, hung_up) {
            (false, false) => {
                self.up = true;
                self.unsent.clear();
                Change::Up
            }
            (true, true) => {
                self.down();
                Change::Down
            }
            (false, true) => {
                self.down();
                Change::None
            }
            (true, false) => Change::None,
        }
    }

    /// Nobody is there. A port is kept open, as another program might take it; a socket is of no more use.
    fn down(&mut self) {
        self.up = false;
        self.unsent.clear();
        if self.is_socket() {
            self.fd = None;
            self.next_try = Instant::now() + RETRY;
        }
    }

    fn is_socket(&self) -> bool {
        match &self.place {
            Place::Vsock(_) => true,
            Place::Port(path) => is_socket(path),
        }
    }

    fn open(&self) -> io::Result<OwnedFd> {
        match &self.place {
            Place::Vsock(port) => connect_vsock(*port),
            Place::Port(path) if is_socket(path) => {
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                let family = rustix::net::AddressFamily::UNIX;
                let fd = socket_with(family, SocketType::STREAM, flags, None)?;
                connect_unix(&fd, &SocketAddrUnix::new(path)?)?;
                Ok(fd)
            }
            Place::Port(path) => {
                let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
                let path = port_device(Path::new("/"), path);
                Ok(openat(CWD, path, flags, Mode::empty())?)
            }
        }
    }

    fn explain(&self, error: &io::Error) -> String {
        match &self.place {
            Place::Port(path) => format!(
                "{} can't be opened ({error}): give the guest a virtserialport of this name, and see \
                 that no other program has it open",
                path.display()
            ),
            Place::Vsock(port) => format!(
                "the host's vsock port {port} can't be connected to ({error}): is vmm-tier on the host \
                 started with --source guest=vsock:CID:{port}, and the guest given a vhost-vsock device?"
            ),
        }
    }

    /// Waits until something can be read or the time is over.
    pub(crate) fn wait(&self, timeout: Duration) {
        let time = Timespec::try_from(timeout).unwrap_or_default();
        match &self.fd {
            Some(fd) if self.up => {
                let mut flags = PollFlags::IN;
                flags.set(PollFlags::OUT, !self.unsent.is_empty());
                // An error shows at the next read.
                let _ = poll(&mut [PollFd::new(fd, flags)], Some(&time));
            }
            _ => std::thread::sleep(timeout),
        }
    }

    /// What has come, up to the length of `buffer`; 0 if nothing has.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> usize {
        let Some(fd) = self.fd.as_ref().filter(|_| self.up) else {
            return 0;
        };
        match rustix::io::read(fd, buffer) {
            Ok(bytes @ 1..) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            // The next look tells.
            Ok(_) | Err(_) => {
                self.gone = true;
                0
            }
        }
    }

    /// Whether a frame of `bytes` bytes may be sent: what waits must not grow without bounds.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.up && self.unsent.len() + bytes <= MAX_UNSENT
    }

    /// Sends bytes, as far as there is room; the rest goes with later calls.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
        let Some(fd) = self.fd.as_ref().filter(|_| self.up) else {
            self.unsent.clear();
            return;
        };
        let mut sent = 0;
        while sent < self.unsent.len() {
            // Rust programs ignore SIGPIPE: a connection that is gone is an error here.
            match rustix::io::write(fd.as_fd(), &self.unsent[sent..]) {
                Ok(bytes) => sent += bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.gone = true;
                    break;
                }
            }
        }
        self.unsent.drain(..sent);
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;

    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

/// The device of a port. Names under `/dev/virtio-ports` are links that udev makes; without udev the name
/// is looked for in sysfs.
fn port_device(root: &Path, path: &Path) -> PathBuf {
    let named = path.strip_prefix("/dev/virtio-ports").ok();
    let Some(name) = named.filter(|_| !path.exists()).and_then(Path::to_str) else {
        return path.to_owned();
    };
    let entries = std::fs::read_dir(root.join("sys/class/virtio-ports"));
    let found = entries.into_iter().flatten().flatten().find(|entry| {
        let own = std::fs::read_to_string(entry.path().join("name"));
        own.is_ok_and(|own| own.trim() == name)
    });
    found.map_or_else(
        || path.to_owned(),
        |entry| root.join("dev").join(entry.file_name()),
    )
}

fn connect_vsock(port: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    // The kernel gives up after two seconds.
    connect(fd.as_raw_fd(), &VsockAddr::new(HOST_CID, port))?;
    fcntl_setfl(&fd, OFlags::NONBLOCK)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixListener,
    };

    use super::*;

    #[test]
    fn port_device_when_there_is_no_udev_is_found_by_its_name() {
        let root = tempfile::tempdir().unwrap();
        for (device, name) in [("vport0p1", "console"), ("vport1p2", "no-such-tier")] {
            let folder = root.path().join("sys/class/virtio-ports").join(device);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("name"), format!("{name}\n")).unwrap();
        }
        let found = port_device(root.path(), Path::new("/dev/virtio-ports/no-such-tier"));
        assert_eq!(found, root.path().join("dev/vport1p2"));
        for other in ["/dev/virtio-ports/absent", "/dev/vport0p1"] {
            assert_eq!(port_device(root.path(), Path::new(other)), Path::new(other));
        }
    }

    #[test]
    fn link_when_the_host_comes_and_goes_tells_of_each() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("port");
        let mut link = Link::new(&Place::Port(path.clone()));
        assert_eq!(link.look(), Change::None);
        let trouble = link.trouble.clone().unwrap_or_default();
        assert!(trouble.contains("virtserialport"), "{trouble}");

        let listener = UnixListener::bind(&path).unwrap();
        let begin = Instant::now();
        while link.look() != Change::Up {
            assert!(begin.elapsed() < Duration::from_secs(20), "never up");
            std::thread::sleep(Duration::from_millis(10));
        }
        let (mut host, _) = listener.accept().unwrap();
        link.send(b"hello");
        let mut buffer = [0; 5];
        host.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"hello");
        host.write_all(b"ask").unwrap();
        link.wait(Duration::from_secs(5));
        assert_eq!(link.read(&mut buffer), 3);

        drop(host);
        while link.look() != Change::Down {
            link.read(&mut buffer);
            assert!(begin.elapsed() < Duration::from_secs(20), "never down");
        }
        assert!(!link.has_room(1));
    }
}
