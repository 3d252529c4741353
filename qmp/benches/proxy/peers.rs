//! Both ends of a measured conversation.

use std::{
    hint::black_box,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    thread,
};

use serde_json::{Value, json};

/// A client as plain as can be: one thread, blocking.
pub(crate) struct Plain {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Plain {
    pub(crate) fn connect(path: &Path) -> Self {
        let mut plain = Self {
            stream: UnixStream::connect(path).expect("a server"),
            buffer: vec![0; 64 << 10],
        };
        plain.read_line();
        plain.ask(b"{\"execute\":\"qmp_capabilities\"}\r\n");
        plain
    }

    pub(crate) fn ask(&mut self, request: &[u8]) {
        self.stream.write_all(request).expect("a server that reads");
        self.read_line();
    }

    fn read_line(&mut self) {
        loop {
            let len = self.stream.read(&mut self.buffer).expect("a reply");
            assert!(len > 0, "the server left");
            if black_box(&self.buffer[..len]).ends_with(b"\n") {
                return;
            }
        }
    }
}

/// A command that a machine answers at once.
pub(crate) const STATUS: &[u8] = b"{\"execute\":\"query-status\",\"id\":\"libvirt-42\"}\r\n";

/// Serves any number of clients, one thread each, and answers every line at once.
pub(crate) fn instant_server(path: &Path) {
    let listener = UnixListener::bind(path).expect("a path");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            thread::spawn(move || answer(stream));
        }
    });
}

fn answer(mut stream: UnixStream) {
    let version = json!({"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""});
    let greeting = json!({"QMP": {"version": version, "capabilities": []}});
    let _ = stream.write_all(format!("{greeting}\r\n").as_bytes());
    let mut buffer = vec![0; 64 << 10];
    let mut kept = 0;
    while let Ok(len) = stream.read(&mut buffer[kept..]) {
        if len == 0 {
            return;
        }
        let end = kept + len;
        let mut out = Vec::new();
        let mut begin = 0;
        while let Some(line) = buffer[begin..end].iter().position(|&byte| byte == b'\n') {
            let request: Value =
                serde_json::from_slice(&buffer[begin..begin + line]).unwrap_or_default();
            let status = json!({"status": "running", "singlestep": false, "running": true});
            let reply = json!({"return": status, "id": request["id"]});
            out.extend_from_slice(format!("{reply}\r\n").as_bytes());
            begin += line + 1;
        }
        if stream.write_all(&out).is_err() {
            return;
        }
        buffer.copy_within(begin..end, 0);
        kept = end - begin;
    }
}
