//! The program under test, and the host that it talks to: this process, over a unix socket in place of a
//! port.
#![allow(dead_code, unreachable_pub, reason = "each program uses a part")]

use std::{
    io::{BufRead as _, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process},
};
use tier_core::wire::{Credit, Decoded, Decoder, Frame, Hello, Message, Status, Wish};

const PATIENCE: Duration = Duration::from_secs(30);

/// The program, killed when the test ends early.
pub struct Program(Child);

impl Program {
    pub fn start(port: &Path, run_dir: &Path, source: &str) -> Self {
        Self::start_with_log(port, run_dir, source, Stdio::null())
    }

    /// Starts with what people are told written to `log`.
    pub fn start_with_log(
        port: &Path,
        run_dir: &Path,
        source: &str,
        log: impl Into<Stdio>,
    ) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_guest-agent"))
            .args(["run", "--source", source, "--port"])
            .arg(port)
            .arg("--run-dir")
            .arg(run_dir)
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Tells it to end, and waits; its exit code.
    pub fn end(self) -> Option<i32> {
        self.end_by(Signal::TERM)
    }

    /// Sends a signal, and waits for the end; the exit code.
    pub fn end_by(mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
        self.0.wait().unwrap().code()
    }

    /// Reads so many lines of its log, and leaves it then.
    pub fn read_log(&mut self, lines: usize) -> Vec<String> {
        let log = BufReader::new(self.0.stderr.take().unwrap());
        log.lines().take(lines).map(Result::unwrap).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The host's end of a connection.
pub struct Host {
    stream: UnixStream,
    decoder: Decoder,
    pub heard: Vec<Frame>,
    pub session: u64,
}

impl Host {
    pub fn accept(listener: &UnixListener) -> Self {
        let timeout = Timespec::try_from(PATIENCE).unwrap();
        let mut ends = [PollFd::new(listener, PollFlags::IN)];
        assert_eq!(poll(&mut ends, Some(&timeout)), Ok(1), "nobody comes");
        let (stream, _) = listener.accept().unwrap();
        let short = Duration::from_millis(50);
        stream.set_read_timeout(Some(short)).unwrap();
        Self {
            stream,
            decoder: Decoder::new(),
            heard: Vec::new(),
            session: 0,
        }
    }

    pub fn say(&mut self, message: Message) {
        let mut bytes = Vec::new();
        let frame = Frame {
            session: self.session,
            sequence: 0,
            message,
        };
        frame.encode(&mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    pub fn welcome(&mut self, credit: Credit) {
        let wish = Wish {
            accesses_per_s: 10_000,
            sampling_us: 20_000,
            aggregation_us: 200_000,
            max_regions: 200,
        };
        self.say(Message::Welcome(credit, wish));
    }

    /// Reads what comes, and works on `meanwhile`, until `take` finds what it looks for.
    pub fn hear<T>(
        &mut self,
        what: &str,
        mut meanwhile: impl FnMut(),
        mut take: impl FnMut(&[Frame]) -> Option<T>,
    ) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = take(&self.heard) {
                return found;
            }
            assert!(begin.elapsed() < PATIENCE, "never: {what}");
            meanwhile();
            self.read();
        }
    }

    /// Reads what has come, waiting for it for a moment.
    pub fn read(&mut self) {
        let mut buffer = vec![0; 64 << 10];
        let bytes = self.stream.read(&mut buffer).unwrap_or(0);
        let heard = &mut self.heard;
        self.decoder.push(&buffer[..bytes], |found| match found {
            Decoded::Frame(frame, _) => heard.push(frame),
            other => panic!("the agent sent {other:?}"),
        });
    }

    pub fn hello(&mut self) -> Hello {
        let (session, hello) = self.hear(
            "a hello",
            || {},
            |frames| {
                let last = frames.last()?;
                match &last.message {
                    Message::Hello(hello) => Some((last.session, hello.clone())),
                    _ => None,
                }
            },
        );
        self.session = session;
        hello
    }

    pub fn status(&mut self) -> Status {
        let seen = self.heard.len();
        self.hear(
            "a status",
            || {},
            |frames| {
                let new = frames[seen..].iter();
                let mut statuses = new.filter_map(|frame| match &frame.message {
                    Message::Status(status) => Some(status.clone()),
                    _ => None,
                });
                statuses.next()
            },
        )
    }
}

/// Credit that is never used up.
pub const PLENTY: Credit = Credit {
    sequence: 1 << 20,
    bytes: 1 << 40,
};

/// Page faults of this process, which are not the agent's.
#[derive(Default)]
pub struct Faults(std::collections::VecDeque<Vec<u8>>);

impl Faults {
    /// Touches so many fresh pages. The last few blocks stay, so that their frames can be looked up.
    pub fn touch(&mut self, pages: usize) {
        // More than malloc ever keeps (DEFAULT_MMAP_THRESHOLD_MAX is 32 MiB): each block is new memory.
        let mut block: Vec<u8> = Vec::with_capacity(33 << 20);
        for page in 0..pages.min(8000) {
            block.spare_capacity_mut()[page * 4096].write(1);
        }
        self.0.push_back(block);
        if self.0.len() > 8 {
            self.0.pop_front();
        }
    }
}
