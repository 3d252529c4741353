//! Helpers of the socket tests.
#![allow(dead_code, reason = "each test file uses some")]

pub(crate) mod live;
pub(crate) mod qemu;

use std::{
    io::{IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use qmp::codec::{Decoder, Limits};
use rustix::{
    fd::{BorrowedFd, OwnedFd},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};
use serde_json::Value;
use tempfile::TempDir;

/// How long a test waits for what must come; far more than it takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A folder with room for one socket.
pub(crate) fn socket() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    (folder, path)
}

/// Waits until `done`.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A client that knows bytes and messages, and no rules.
pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
    decoder: Decoder,
}

impl Raw {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            decoder: Decoder::new(Limits::REPLIES),
        }
    }

    pub(crate) fn connect(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).unwrap())
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// The next message; `None` when the other end closed.
    pub(crate) fn next(&mut self) -> Option<Value> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(message) = self.decoder.next_message() {
                return Some(message.unwrap());
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(len) => self.decoder.push(&chunk[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(crate) fn message(&mut self) -> Value {
        self.next().expect("a message")
    }

    /// Sends a request and takes the next message.
    pub(crate) fn ask(&mut self, bytes: impl AsRef<[u8]>) -> Value {
        self.send(bytes);
        self.message()
    }
}

/// Sends bytes with file descriptors beside the first of them.
pub(crate) fn send_fds(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(qmp::MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    let bytes = [IoSlice::new(bytes)];
    sendmsg(stream, &bytes, &mut control, SendFlags::empty()).unwrap();
}

/// Receives bytes and the file descriptors beside them.
pub(crate) fn receive_fds(stream: &UnixStream) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut bytes = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(qmp::MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let read = recvmsg(stream, &mut parts, &mut control, RecvFlags::empty()).unwrap();
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    bytes.truncate(read.bytes);
    (bytes, fds)
}
