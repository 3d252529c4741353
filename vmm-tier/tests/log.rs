//! Programs whose log or output can't be written: the reader of a pipe has gone, or a disk is full.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, PipeWriter, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use crate::played::{Agent, Qemu};

/// Where nothing can be written, as on a full disk.
fn full() -> Option<File> {
    let file = OpenOptions::new().write(true).open("/dev/full");
    file.inspect_err(|error| println!("SKIPPED: /dev/full: {error}"))
        .ok()
}

/// A pipe whose reader has gone.
fn abandoned() -> PipeWriter {
    io::pipe().unwrap().1
}

/// Has it log something, and sees that it answers still and ends as it should.
fn assert_at_work(agent: &mut Agent) {
    assert_eq!(agent.ask("tier-pause", None)["state"], "paused");
    assert_ne!(agent.ask("tier-resume", None)["state"], "paused");
    agent.terminate();
    let status = agent.ended();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(!agent.control().exists());
}

#[test]
fn agent_when_the_disk_of_its_log_is_full_goes_on_without() {
    let Some(full) = full() else { return };
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));

    let mut agent = Agent::start_with_log(folder, full);

    assert_at_work(&mut agent);
}

#[test]
fn agent_when_the_reader_of_its_log_goes_away_goes_on_without() {
    let folder = tempfile::tempdir().unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start_with_log(folder, Stdio::piped());
    agent.ask("query-tier", None);

    agent.leave_log();

    assert_at_work(&mut agent);
}

/// Opens an end of a pipe that has a name, without waiting for the other end.
fn open_pipe(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    options.custom_flags(flags).open(path)
}

fn reader(path: &Path) -> File {
    open_pipe(path, OpenOptions::new().read(true)).unwrap()
}

#[test]
fn agent_when_its_log_is_read_again_tells_how_many_lines_were_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let first = reader(&path);
    let log = OpenOptions::new().write(true).open(&path).unwrap();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start_with_log(folder, log);
    agent.ask("query-tier", None);

    drop(first);
    // A process that another test is just starting has a copy until it runs.
    agent.wait_for(|| open_pipe(&path, OpenOptions::new().write(true)).err());
    agent.ask("tier-pause", None);
    let mut second = reader(&path);
    agent.ask("tier-resume", None);
    agent.terminate();
    let status = agent.ended();

    let mut text = String::new();
    second.read_to_string(&mut text).unwrap();
    assert_eq!(status.code(), Some(0), "{text}");
    // What was written before is in the pipe still.
    let mut lines = text.lines().skip_while(|line| !line.ends_with(" lost"));
    let told = lines.next().unwrap_or_default();
    assert!(
        told.contains("  WARN ") && told.contains(" log line"),
        "{text}"
    );
    let behind: Vec<&str> = lines.collect();
    assert!(
        !behind.is_empty() && !behind.iter().any(|line| line.ends_with(" lost")),
        "{text}"
    );
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm-tier"));
    command.args(arguments);
    command
}

#[test]
fn exit_code_when_the_error_can_t_be_told_is_as_ever() {
    let ask = ["ctl", "/nowhere/socket", "query-tier"];
    let import = [
        "record",
        "--import",
        "/nowhere/file",
        "--output",
        "/nowhere/out",
    ];
    let wrong_value = ["replay", "--seed", "x"];
    let no_command = ["nonsense"];
    for arguments in [&ask[..], &import, &wrong_value, &no_command] {
        let heard = program(arguments).output().unwrap();
        let unheard = program(arguments).stderr(abandoned()).status().unwrap();

        assert!(!heard.stderr.is_empty(), "{arguments:?}");
        assert!(matches!(heard.status.code(), Some(1 | 2)), "{heard:?}");
        assert_eq!(unheard.code(), heard.status.code(), "{arguments:?}");
        let Some(full) = full() else { continue };
        let unheard = program(arguments).stderr(full).status().unwrap();
        assert_eq!(unheard.code(), heard.status.code(), "{arguments:?}");
    }
}

/// Runs a command whose output nobody reads; it says nothing of that.
fn assert_unread(arguments: &[&str]) {
    let done = program(arguments).stdout(abandoned()).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!((done.status.code(), &*said), (Some(0), ""), "{arguments:?}");
}

#[test]
fn commands_when_nobody_reads_their_output_end_with_success() {
    let folder = tempfile::tempdir().unwrap();
    let csv = folder.path().join("trace.csv");
    fs::write(&csv, "0,4096,load\n10,8192,store\n").unwrap();
    let csv = csv.to_str().unwrap().to_owned();
    let out = folder.path().join("out").to_str().unwrap().to_owned();
    let _server = Qemu::new().serve(&folder.path().join("qmp"));
    let mut agent = Agent::start(folder);
    agent.ask("query-tier", None);
    let control = agent.control().to_str().unwrap().to_owned();

    assert_unread(&["--help"]);
    assert_unread(&["ctl", &control, "query-tier"]);
    assert_unread(&["record", "--import", &csv, "--output", &out]);
    assert_unread(&["replay", "--quiet", "--fast", "50%", &out]);

    assert!(Path::new(&out).exists());
}
