//! Helpers of the socket tests.
#![allow(dead_code, reason = "each test file uses some")]

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use qmp::codec::{Decoder, Limits};
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
