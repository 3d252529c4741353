//! The program itself, over a unix socket in place of a port, with this test as the host.

mod host;

use std::{
    fs::OpenOptions,
    io,
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use host::{Faults, Host, PLENTY, Program};
use rustix::process::Signal;
use tier_core::wire::{Credit, Frame, InGuest, Message, Observed};
use tier_sys::{process, sysroot::SysRoot};

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
    let mut faults = Faults::default();
    let accesses = host.hear(
        "accesses",
        || faults.touch(500),
        |frames| {
            let batches = frames.iter().filter_map(|frame| match &frame.message {
                Message::Batch(batch) => Some(batch),
                _ => None,
            });
            let count: usize = batches.map(|batch| batch.observed.len()).sum();
            (count > 2000).then_some(count)
        },
    );
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
    let mut faults = Faults::default();
    host.hear(
        "three frames",
        || faults.touch(500),
        |frames| (frames.last()?.sequence == 3).then_some(()),
    );
    // Faults go on meanwhile: what waits for credit is bounded, the rest is left out.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(3) {
        faults.touch(500);
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

#[test]
fn agent_when_its_log_has_no_room_from_the_start_goes_on_without() {
    let full = match OpenOptions::new().write(true).open("/dev/full") {
        Ok(full) => full,
        Err(error) => return eprintln!("SKIPPED: /dev/full: {error}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let port = folder.path().join("port");
    let listener = UnixListener::bind(&port).unwrap();

    let program = Program::start_with_log(&port, folder.path(), "page-faults", full);

    Host::accept(&listener).hello();
    assert_eq!(program.end(), Some(0));
}

#[test]
fn agent_when_the_reader_of_its_log_goes_away_goes_on_without() {
    let folder = tempfile::tempdir().unwrap();
    let port = folder.path().join("port");
    let log = Stdio::piped();
    let mut program = Program::start_with_log(&port, folder.path(), "page-faults", log);
    // Its sources, and that there is no port.
    let lines = program.read_log(2);
    assert!(lines[1].contains(port.to_str().unwrap()), "{lines:?}");

    // It has more to say: that there is one.
    let listener = UnixListener::bind(&port).unwrap();

    Host::accept(&listener).hello();
    assert_eq!(program.end(), Some(0));
}

#[test]
fn agent_when_its_terminal_hangs_up_ends_with_success() {
    if !process::ending_signals(&SysRoot::real()).contains(&Signal::HUP.as_raw()) {
        return eprintln!("SKIPPED: SIGHUP is ignored here, as under nohup");
    }
    let folder = tempfile::tempdir().unwrap();
    let port = folder.path().join("port");
    let listener = UnixListener::bind(&port).unwrap();
    let program = Program::start(&port, folder.path(), "page-faults");
    Host::accept(&listener).hello();

    assert_eq!(program.end_by(Signal::HUP), Some(0));
}

#[test]
fn commands_when_nobody_reads_their_output_end_with_success() {
    for arguments in ["--help", "--version", "report"] {
        let (_, abandoned) = io::pipe().unwrap();
        let done = Command::new(env!("CARGO_BIN_EXE_guest-agent"))
            .arg(arguments)
            .stdout(abandoned)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!((done.status.code(), &*said), (Some(0), ""), "{arguments}");
    }
}

#[test]
fn exit_code_when_the_error_can_t_be_told_is_as_ever() {
    let (_, abandoned) = io::pipe().unwrap();

    let status = Command::new(env!("CARGO_BIN_EXE_guest-agent"))
        .arg("nonsense")
        .stderr(abandoned)
        .status()
        .unwrap();

    assert_eq!(status.code(), Some(2));
}
