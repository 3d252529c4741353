//! `vmm-tier` as a process that serves a socket, and questions to it.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::{
    ffi::OsString,
    io::Read as _,
    path::PathBuf,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use crossbeam::channel::Receiver;
use qmp::{Client, client};
use serde_json::Value;

pub const MIB: u64 = 1 << 20;
/// No test waits for long; this only ends one that would wait for ever.
pub const FOR_EVER: Duration = Duration::from_secs(60);

/// The program that is tested. Benches compare it with another build, which this variable names.
pub fn path() -> OsString {
    std::env::var_os("VMM_TIER_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_vmm-tier").into())
}

/// A running program; killed if a test fails.
pub struct Program {
    pub child: Child,
    pub socket: PathBuf,
    /// The command that tells its state.
    pub query: &'static str,
}

impl Program {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A client of its socket, as soon as that is served.
    pub fn client(&mut self) -> (Client, Receiver<qmp::Event>) {
        let socket = self.socket.clone();
        self.wait_for(|| Client::connect(&socket, &client::Options::default()).ok())
    }

    /// One command.
    pub fn ask(&mut self, name: &str, arguments: Option<Value>) -> Value {
        let (client, _events) = self.client();
        client.execute_raw(name, arguments).unwrap()
    }

    /// A command that is refused, and how.
    pub fn refused(&mut self, name: &str, arguments: Value) -> String {
        let (client, _events) = self.client();
        let refusal = client.execute_raw(name, Some(arguments));
        refusal.unwrap_err().to_string()
    }

    /// Asks for its state until that is as wanted.
    pub fn ask_until(&mut self, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let (client, _events) = self.client();
        let query = self.query;
        self.wait_for(|| {
            let reply = client.execute_raw(query, None).unwrap();
            wanted(&reply).then_some(reply)
        })
    }

    pub fn wait_for<T>(&mut self, mut look: impl FnMut() -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the program ended ({status}): {}", self.log());
            }
            assert!(started.elapsed() < FOR_EVER, "it never came");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What it wrote to a piped log, which nobody else read.
    pub fn log(&mut self) -> String {
        let mut log = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut log).unwrap();
        }
        log
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails for one that has ended, as it should.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
