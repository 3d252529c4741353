//! A running `vmm-tier record`, and what it writes.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tier_replay::{
    format::{BatchEnd, Block, Decoder, End, Event, Found, Header, Mark},
    machine::Access,
};

use crate::played::FOR_EVER;

/// What a trace says, as far as it is whole.
#[derive(Debug, Default)]
pub struct Trace {
    pub header: Option<Header>,
    pub accesses: Vec<Access>,
    pub batches: Vec<BatchEnd>,
    pub marks: Vec<Mark>,
    /// Set if it is whole.
    pub end: Option<End>,
}

pub fn read(path: &Path) -> Trace {
    let bytes = fs::read(path).unwrap_or_default();
    let (mut decoder, mut block) = (Decoder::new(), Block::default());
    let mut trace = Trace::default();
    let (mut rest, mut last) = (bytes.as_slice(), None);
    while decoder.wants() > 0 {
        let Some((taken, behind)) = rest.split_at_checked(decoder.wants()) else {
            return trace;
        };
        rest = behind;
        match decoder.take(taken, &mut block).unwrap() {
            Found::More => {}
            Found::Header(header) => trace.header = Some(header),
            Found::Block => {
                trace.accesses.extend(&block.accesses);
                for (_, event) in block.events.drain(..) {
                    match event {
                        Event::Batch(batch) => trace.batches.push(batch),
                        Event::Mark(mark) => trace.marks.push(mark),
                        Event::Plugged(_) => {}
                    }
                }
            }
            Found::End(end) => last = Some(end),
            Found::Done => trace.end = last.take().filter(|_| rest.is_empty()),
        }
    }
    trace
}

/// A running `vmm-tier record` that writes `out`; killed if a test fails.
pub struct Recorder {
    child: Child,
    output: PathBuf,
}

impl Recorder {
    /// Starts beside the QEMU that serves `qmp` in `folder`.
    pub fn start(folder: &TempDir, source: &str, more: &[&str]) -> Self {
        Self::run(Command::new(PROGRAM), folder, source, more)
    }

    /// Starts it under a shell's `ulimit`, which a program meets as an error, not as a signal.
    pub fn start_limited(folder: &TempDir, source: &str, limit: &str) -> Self {
        let mut shell = Command::new("sh");
        let script = format!("trap '' XFSZ; ulimit {limit}; exec \"$@\"");
        shell.args(["-c", &script, "sh", PROGRAM]);
        Self::run(shell, folder, source, &[])
    }

    fn run(mut command: Command, folder: &TempDir, source: &str, more: &[&str]) -> Self {
        let config = folder.path().join("config.toml");
        let run_dir = folder.path().join("run");
        fs::write(&config, format!("run-dir = '{}'\n", run_dir.display())).unwrap();
        let output = folder.path().join("out");
        let child = command
            .arg("record")
            .arg("--qmp")
            .arg(folder.path().join("qmp"))
            .arg("--config")
            .arg(&config)
            .arg("--output")
            .arg(&output)
            .args(["--source", source])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, output }
    }

    /// The trace.
    pub fn output(&self) -> PathBuf {
        self.output.clone()
    }

    /// The trace while it is not whole.
    pub fn part(&self) -> PathBuf {
        self.output.with_extension("part")
    }

    /// Waits until what is written so far is as wanted.
    pub fn wait_until(&mut self, mut wanted: impl FnMut(&Trace) -> bool) {
        let (started, part) = (Instant::now(), self.part());
        while !wanted(&read(&part)) {
            assert!(started.elapsed() < FOR_EVER, "it never came");
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("it ended ({status}): {}", text(self.child.stderr.take()));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Nobody reads its log or its words any more.
    pub fn leave(&mut self) {
        drop((self.child.stdout.take(), self.child.stderr.take()));
    }

    /// Waits for its end; its exit code, what it said, and what it logged.
    pub fn ended(mut self) -> (Option<i32>, String, String) {
        let said = text(self.child.stdout.take());
        let log = text(self.child.stderr.take());
        (self.child.wait().unwrap().code(), said, log)
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_vmm-tier");

fn text(pipe: Option<impl Read>) -> String {
    let mut text = String::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_string(&mut text).unwrap();
    }
    text
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Fails for one that has ended, as it should.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
