//! The program itself, over a unix socket in place of a port, with this test as the host.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tier_core::wire::{
    Credit, Decoded, Decoder, Frame, Hello, InGuest, Message, Observed, Status, Wish,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// The program, killed when the test ends early.
struct Program(Child);

impl Program {
    fn start(port: &Path, run_dir: &Path, source: &str) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_guest-agent"))
            .args(["run", "--source", source, "--port"])
            .arg(port)
            .arg("--run-dir")
            .arg(run_dir)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Tells it to end, and waits; its exit code.
    fn end(mut self) -> Option<i32> {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The host's end of a connection.
struct Host {
    stream: UnixStream,
    decoder: Decoder,
    heard: Vec<Frame>,
    session: u64,
}

impl Host {
    fn accept(listener: &UnixListener) -> Self {
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

    fn say(&mut self, message: Message) {
        let mut bytes = Vec::new();
        let frame = Frame {
            session: self.session,
            sequence: 0,
            message,
        };
        frame.encode(&mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    fn welcome(&mut self, credit: Credit) {
        let wish = Wish {
            accesses_per_s: 10_000,
            sampling_us: 20_000,
            aggregation_us: 200_000,
            max_regions: 200,
        };
        self.say(Message::Welcome(credit, wish));
    }

    /// Reads what comes, and works on `meanwhile`, until `take` finds what it looks for.
    fn hear<T>(
        &mut self,
        what: &str,
        mut meanwhile: impl FnMut(),
        mut take: impl FnMut(&[Frame]) -> Option<T>,
    ) -> T {
        let begin = Instant::now();
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(found) = take(&self.heard) {
                return found;
            }
            assert!(begin.elapsed() < PATIENCE, "never: {what}");
            meanwhile();
            let bytes = self.stream.read(&mut buffer).unwrap_or(0);
            let heard = &mut self.heard;
            self.decoder.push(&buffer[..bytes], |found| match found {
                Decoded::Frame(frame, _) => heard.push(frame),
                other => panic!("the agent sent {other:?}"),
            });
        }
    }

    fn hello(&mut self) -> Hello {
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

    fn status(&mut self) -> Status {
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

const PLENTY: Credit = Credit {
    sequence: 1 << 20,
    bytes: 1 << 40,
};

/// Touches fresh pages in a process of its own, so that there are page faults that are not the agent's.
fn touch_pages() {
    let pages = vec![1_u8; 4 << 20];
    std::hint::black_box(&pages);
}

#[test]
fn agent_when_welcomed_observes_and_ends_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let port = folder.path().join("port");
    let listener = UnixListener::bind(&port).unwrap();
    let program = Program::start(&port, folder.path(), "page-faults");
    let mut host = Host::accept(&listener);
    let hello = host.hello();
    assert_eq!(hello.agent, env!("CARGO_PKG_VERSION"));
    assert_eq!(hello.page_sizes.first(), Some(&4096));
    if hello.source == InGuest::Nothing {
        eprintln!("SKIPPED: perf events of all processes can't be opened here");
        return;
    }
    host.welcome(PLENTY);
    let accesses = host.hear("accesses", touch_pages, |frames| {
        let batches = frames.iter().filter_map(|frame| match &frame.message {
            Message::Batch(batch) => Some(batch),
            _ => None,
        });
        let count: usize = batches.map(|batch| batch.observed.len()).sum();
        (count > 2000).then_some(count)
    });
    let status = host.status();
    assert_eq!(status.source, InGuest::Faults);
    assert!(status.taken >= accesses as u64, "{status:?}");
    // Each frame has the number after the one before.
    let numbers: Vec<u64> = host.heard.iter().map(|frame| frame.sequence).collect();
    let sent = numbers.iter().skip_while(|&&number| number == 0);
    assert!(
        sent.copied().eq(1..=*numbers.last().unwrap()),
        "{numbers:?}"
    );
    assert_eq!(program.end(), Some(0));
}

#[test]
fn agent_when_credit_is_small_keeps_to_it_and_counts_what_it_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let port = folder.path().join("port");
    let listener = UnixListener::bind(&port).unwrap();
    let program = Program::start(&port, folder.path(), "page-faults");
    let mut host = Host::accept(&listener);
    if host.hello().source == InGuest::Nothing {
        eprintln!("SKIPPED: perf events of all processes can't be opened here");
        return;
    }
    let small = Credit {
        sequence: 4,
        bytes: 1 << 20,
    };
    host.welcome(small);
    host.hear("three frames", touch_pages, |frames| {
        (frames.last()?.sequence == 3).then_some(())
    });
    // Faults go on meanwhile: what waits for credit is bounded, the rest is left out.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(3) {
        touch_pages();
    }
    assert_eq!(host.heard.last().map(|frame| frame.sequence), Some(3));
    host.say(Message::Credit(PLENTY));
    let status = host.status();
    assert!(status.drops.no_credit > 0, "{status:?}");
    assert_eq!(program.end(), Some(0));
}

#[test]
fn agent_when_the_host_comes_again_begins_another_session() {
    let folder = tempfile::tempdir().unwrap();
    let port = folder.path().join("port");
    let listener = UnixListener::bind(&port).unwrap();
    let program = Program::start(&port, folder.path(), "page-faults");
    let mut host = Host::accept(&listener);
    host.hello();
    let first = host.session;
    drop(host);
    let mut host = Host::accept(&listener);
    host.hello();
    assert_ne!(host.session, first);
    host.welcome(PLENTY);
    host.status();
    // Asked again over the same connection: a restarted host.
    let second = host.session;
    host.say(Message::Ask);
    host.hear(
        "a new hello",
        || {},
        |frames| {
            let last = frames.last()?;
            (last.session != second && matches!(last.message, Message::Hello(_))).then_some(())
        },
    );
    assert_eq!(program.end(), Some(0));
}

#[test]
fn agent_when_damon_is_there_reports_regions_and_leaves_none_behind() {
    let kdamonds = Path::new("/sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds");
    let count = || std::fs::read_to_string(kdamonds).ok();
    let folder = tempfile::tempdir().unwrap();
    let port = folder.path().join("port");
    let listener = UnixListener::bind(&port).unwrap();
    let before = count();
    let program = Program::start(&port, folder.path(), "damon");
    let mut host = Host::accept(&listener);
    let hello = host.hello();
    if hello.source == InGuest::Nothing {
        eprintln!("SKIPPED: DAMON can't be used here");
        return;
    }
    host.welcome(PLENTY);
    let trouble = |frames: &[Frame]| {
        frames.iter().any(|frame| match &frame.message {
            // Where somebody else has DAMON for itself, it can't be started at all.
            Message::Status(status) => status.taken == 0 && frame.sequence > 5,
            _ => false,
        })
    };
    let regions = host.hear(
        "regions",
        || {},
        |frames| {
            let batch = frames.iter().find_map(|frame| match &frame.message {
                Message::Batch(batch) => Some(batch.observed.clone()),
                _ => None,
            });
            batch.map(Some).or_else(|| trouble(frames).then_some(None))
        },
    );
    let Some(observed) = regions else {
        eprintln!("SKIPPED: DAMON is in use by others here");
        return;
    };
    let Observed::Regions { tests, regions } = observed else {
        panic!("DAMON reports regions");
    };
    assert_eq!(tests, 10);
    let bytes: u64 = regions.iter().map(|region| region.len).sum();
    assert!(bytes > hello.memory_bytes / 2, "{bytes}");
    assert_eq!(program.end(), Some(0));
    assert_eq!(count(), before);
}
