//! Traces as users make them: imports of every kind and recordings of a guest, through the command line. "The
//! guest" is this process's own memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use rustix::process::Signal;
use tempfile::TempDir;
use tier_core::{
    sample::{AccessKind, SampleAccount, SourceKind},
    time::Time,
};
use tier_replay::{
    format::{BatchEnd, Encoder, Header, Origin, TraceRange},
    machine::Access,
};
use tier_sys::{process, sysroot::SysRoot};

use crate::{
    played::{Agent, MIB, Qemu},
    recorder::{Recorder, read},
};

fn record() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm-tier"));
    command.arg("record");
    command
}

fn import(file: &Path, output: &Path, more: &[&str]) -> Output {
    let mut command = record();
    command
        .arg("--import")
        .arg(file)
        .arg("--output")
        .arg(output);
    command.args(more).output().unwrap()
}

fn replay(file: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
        .args(["replay", "--quiet"])
        .arg(file)
        .args(more)
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A recording of 64 hot pages of a guest of 32 MiB: a batch each 100 ms.
fn recording(folder: &TempDir, batches: u64, span: Duration) -> PathBuf {
    let path = folder.path().join("recording");
    let header = Header {
        origin: Origin::Source(SourceKind::Ibs),
        period: 4093,
        ranges: vec![TraceRange {
            gpa: MIB,
            len: 31 * MIB,
            page_size: 4096,
        }],
        ..Header::import("", "earlier")
    };
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&header, &mut bytes).unwrap();
    for batch in 1..=batches {
        let end = Time(batch * u64::try_from(span.as_nanos()).unwrap());
        for page in 0..64 {
            let access = Access {
                at: end,
                address: 2 * MIB + page * 65_536 + batch,
                len: 1,
                weight: 1,
                kind: AccessKind::Store,
            };
            encoder.access(&access, &mut bytes).unwrap();
        }
        let batch = BatchEnd {
            source: SourceKind::Ibs,
            end,
            span,
            tests: 0,
            period: 4093,
            settled: true,
            account: SampleAccount {
                lost: 1,
                ..SampleAccount::default()
            },
        };
        encoder.batch(batch, &mut bytes).unwrap();
    }
    encoder.finish(&mut bytes).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

const SPAN: Duration = Duration::from_millis(100);

#[test]
fn samples_of_real_programs_when_imported_are_all_there() {
    let folder = tempfile::tempdir().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    for name in ["database", "compressor", "interpreter"] {
        let text = data.join(format!("{name}.lackey"));
        let output = folder.path().join(name);
        let done = import(&text, &output, &["--name", name, "--step", "2us"]);
        assert!(done.status.success(), "{}", stderr(&done));
        let lines = fs::read_to_string(&text).unwrap();
        let expected: Vec<_> = lines
            .lines()
            .filter_map(|line| {
                let (kind, rest) = line.split_at_checked(3)?;
                let kind = match kind {
                    " L " => AccessKind::Load,
                    " S " | " M " => AccessKind::Store,
                    _ => return None,
                };
                let (address, _) = rest.split_once(',').unwrap();
                Some((u64::from_str_radix(address, 16).unwrap(), kind))
            })
            .collect();
        let trace = read(&output);
        let found: Vec<_> = trace.accesses.iter().map(|a| (a.address, a.kind)).collect();
        assert_eq!(found, expected);
        assert!(
            trace.end.is_some() && expected.len() > 700,
            "{}",
            expected.len()
        );
        let last = trace.accesses.last().unwrap().at;
        assert_eq!(last, Time((expected.len() as u64 - 1) * 2000));
        assert_eq!(trace.header.unwrap().name, name);
        let summary = format!("{} accesses of a trace in format lackey", expected.len());
        assert!(stdout(&done).contains(&summary), "{}", stdout(&done));

        let again = folder.path().join(format!("{name}.again"));
        assert!(import(&output, &again, &[]).status.success());
        assert_eq!(fs::read(&again).unwrap(), fs::read(&output).unwrap());
    }
}

#[test]
fn file_when_it_is_no_trace_is_refused_with_its_place_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let good = fs::read(recording(&folder, 20, SPAN)).unwrap();
    let flipped = {
        let mut bytes = good.clone();
        bytes[200] ^= 0x10;
        bytes
    };
    let newer = {
        let mut bytes = good.clone();
        bytes[8] = 9;
        bytes
    };
    let trailing = [&good[..], b"x"].concat();
    let cases: &[(&[u8], &str)] = &[
        (b"", "has no bytes"),
        (b"\x7fELF", "of no format that is known"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
        (
            b"0,4096,load\n1,0xz,load\n",
            "line 2 (byte 12): '0xz' is no address",
        ),
        (b"5,4096\n4,4096\n", "line 2 (byte 7): time goes back"),
        (b"# nothing\n0,4096,jump\n", "of no format that is known"),
        (b"==1== Lackey\n L 10,8\n L x,8\n", "line 3 (byte 21)"),
        (b"==1== Lackey\nI  10,8\n", "no access in it"),
        (&good[..good.len() / 2], "does not end at byte"),
        (&good[..5], "ends at byte 5"),
        (&flipped, "damaged at byte"),
        (&newer, "version 9 of the format (byte 8)"),
        (&trailing, "or something was added"),
    ];
    for (bytes, part) in cases {
        let file = folder.path().join("bad");
        fs::write(&file, bytes).unwrap();
        let output = folder.path().join("out");
        let imported = import(&file, &output, &[]);
        assert!(!output.exists() && !folder.path().join("out.part").exists());
        for done in [imported, replay(&file, &[])] {
            let text = stderr(&done);
            assert_eq!(done.status.code(), Some(1), "{text}");
            assert!(text.contains(part), "{part}: {text}");
            assert!(text.contains("bad") && text.lines().count() == 1, "{text}");
            assert_eq!(stdout(&done), "");
        }
    }
    let missing = import(
        Path::new("/nonexistent/trace"),
        &folder.path().join("out"),
        &[],
    );
    assert!(stderr(&missing).contains("/nonexistent/trace can't be opened"));
    let own_folder = import(folder.path(), &folder.path().join("out"), &[]);
    assert!(stderr(&own_folder).contains("is a folder"));
}

#[test]
fn trace_when_only_a_part_of_it_is_whole_says_so_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    // Blocks of 65,536 accesses; the second is damaged, and one comes from elsewhere.
    let header = Header {
        ranges: vec![TraceRange {
            gpa: 0,
            len: MIB,
            page_size: 4096,
        }],
        ..Header::import("csv", "x")
    };
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&header, &mut bytes).unwrap();
    for at in 0..150_000 {
        let outside = if at % 1000 == 7 { 4 * MIB } else { 0 };
        let access = Access {
            at: Time(at * 1000),
            address: at * 37 % MIB + outside,
            len: 1,
            weight: 1,
            kind: AccessKind::Load,
        };
        encoder.access(&access, &mut bytes).unwrap();
    }
    encoder.finish(&mut bytes).unwrap();
    let whole = folder.path().join("whole");
    fs::write(&whole, &bytes).unwrap();
    let middle = bytes.len() * 2 / 3;
    bytes[middle] ^= 1;
    let damaged = folder.path().join("damaged");
    fs::write(&damaged, &bytes).unwrap();

    // What is outside is dropped and counted.
    let text = stdout(&replay(&whole, &[]));
    let dropped = "150 accesses outside the guest's memory were dropped";
    assert!(text.contains(dropped), "{text}");
    let table = folder.path().join("table");
    replay(&whole, &["--markdown", table.to_str().unwrap()]);
    let table = fs::read_to_string(table).unwrap();
    assert!(
        table.contains("150 accesses outside the guest's memory."),
        "{table}"
    );

    let refused = stderr(&replay(&damaged, &[]));
    assert!(refused.contains("is damaged at byte"), "{refused}");
    let text = stdout(&replay(&damaged, &["--partial"]));
    assert!(
        text.contains("note: only what is whole of it was read: it is damaged at byte"),
        "{text}"
    );
    let json = stdout(&replay(&damaged, &["--partial", "--json"]));
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let trace = &report["traces"][0];
    assert_eq!(
        (&trace["accesses"], &trace["outside"]),
        (&65_470.into(), &66.into())
    );
    let note = trace["notes"][0].as_str().unwrap();
    assert!(note.contains("damaged at byte"), "{note}");

    let output = folder.path().join("kept");
    let imported = import(&damaged, &output, &["--partial"]);
    assert_eq!(imported.status.code(), Some(0), "{}", stderr(&imported));
    let said = stdout(&imported);
    assert!(said.contains("65536 accesses of"), "{said}");
    assert!(said.contains("only what is whole of it was read"), "{said}");

    let text = folder.path().join("text");
    fs::write(&text, "0,4096,load\n1,0x200").unwrap();
    let said = stdout(&import(&text, &folder.path().join("short"), &[]));
    assert!(said.contains("line 2 has no end at byte 19"), "{said}");
    let shown = stdout(&replay(&text, &["--fast", "1:1"]));
    assert!(
        shown.contains("note: line 2 has no end at byte 19"),
        "{shown}"
    );
}

#[test]
fn output_when_it_exists_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    fs::write(&text, "0,4096,load\n").unwrap();
    for (name, part) in [
        ("out", "out exists: remove it"),
        ("out.part", "one was killed"),
    ] {
        let existing = folder.path().join(name);
        fs::write(&existing, "precious").unwrap();
        let done = import(&text, &folder.path().join("out"), &[]);
        assert!(stderr(&done).contains(part), "{}", stderr(&done));
        assert_eq!(fs::read_to_string(&existing).unwrap(), "precious");
        fs::remove_file(&existing).unwrap();
    }
}

#[test]
fn arguments_when_they_contradict_each_other_are_refused() {
    for (arguments, part) in [
        (&["--output", "x"][..], "--qmp"),
        (&["--output", "x", "--import", "y", "--for", "3s"], "--for"),
        (&["--output", "x", "--qmp", "y", "--partial"], "--partial"),
        (
            &["--output", "x", "--import", "y", "--format", "vcd"],
            "auto, native, csv, lackey",
        ),
        (
            &["--output", "x", "--qmp", "y", "--for", "soon"],
            "'soon' is no duration",
        ),
    ] {
        let done = record().args(arguments).output().unwrap();
        assert_eq!(done.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&done).contains(part), "{}", stderr(&done));
    }
}

/// How `--source` names a recording.
fn replayed(recording: &Path) -> String {
    format!("replay={}", recording.display())
}

fn places(accesses: &[Access]) -> Vec<(u64, u64, u32, AccessKind)> {
    let place = |a: &Access| (a.address, a.len, a.weight, a.kind);
    accesses.iter().map(place).collect()
}

#[test]
fn guest_when_recorded_until_stopped_is_a_whole_trace() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let source = recording(&folder, 20, SPAN);
    let mut recorder = Recorder::start(&folder, &replayed(&source), &["--name", "mine"]);
    let (output, part) = (recorder.output(), recorder.part());
    recorder.wait_until(|trace| trace.accesses.len() >= 20 * 64);
    recorder.signal(Signal::TERM);
    let (code, said, log) = recorder.ended();
    assert_eq!(code, Some(0), "{log}");
    assert!(said.contains("1280 accesses in 20 batches"), "{said}");
    assert!(said.contains("20 lost"), "{said}");

    let (before, after) = (read(&source), read(&output));
    assert!(after.end.is_some() && !part.exists());
    assert_eq!(places(&after.accesses), places(&before.accesses));
    assert!(after.accesses.is_sorted_by_key(|access| access.at));
    let header = after.header.unwrap();
    assert_eq!(header.name, "mine");
    assert_eq!(
        (header.origin, header.period),
        (Origin::Source(SourceKind::Replay), 4093)
    );
    assert_eq!(header.ranges, before.header.unwrap().ranges);
    assert!(header.started > 1_700_000_000);
    for batch in &after.batches {
        assert_eq!(
            (batch.span, batch.period, batch.account.lost),
            (SPAN, 4093, 1)
        );
    }
}

#[test]
fn guest_when_recorded_until_the_terminal_is_gone_is_a_whole_trace() {
    if !process::ending_signals(&SysRoot::real()).contains(&Signal::HUP.as_raw()) {
        println!("SKIPPED: SIGHUP is ignored here, as under nohup");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let source = recording(&folder, 20, SPAN);
    let mut recorder = Recorder::start(&folder, &replayed(&source), &[]);
    let (output, part) = (recorder.output(), recorder.part());
    recorder.wait_until(|trace| trace.accesses.len() >= 20 * 64);

    recorder.leave();
    recorder.signal(Signal::HUP);

    assert_eq!(recorder.ended().0, Some(0));
    assert!(read(&output).end.is_some() && !part.exists());
}

#[test]
fn recorder_when_killed_leaves_what_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let source = recording(&folder, 20, SPAN);
    let mut recorder = Recorder::start(&folder, &replayed(&source), &[]);
    let (output, part) = (recorder.output(), recorder.part());
    recorder.wait_until(|trace| trace.accesses.len() >= 64);
    drop(recorder);
    assert!(!output.exists());

    let whole = folder.path().join("whole");
    let refused = import(&part, &whole, &[]);
    assert!(
        stderr(&refused).contains("--partial"),
        "{}",
        stderr(&refused)
    );
    let saved = import(&part, &whole, &["--partial"]);
    assert!(saved.status.success(), "{}", stderr(&saved));
    assert!(
        stdout(&saved).contains("only what is whole of it was read: it ends at byte"),
        "{}",
        stdout(&saved)
    );
    let (kept, whole) = (read(&part), read(&whole));
    assert!(whole.end.is_some() && whole.accesses.len() >= 64);
    assert_eq!(
        (whole.accesses, whole.batches),
        (kept.accesses, kept.batches)
    );
}

#[test]
fn recorder_when_nothing_comes_in_its_time_says_so_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let source = recording(&folder, 1, Duration::from_secs(3600));
    let recorder = Recorder::start(&folder, &replayed(&source), &["--for", "300ms"]);
    let (output, part) = (recorder.output(), recorder.part());
    let (code, said, log) = recorder.ended();
    assert_eq!((code, said.as_str()), (Some(1), ""), "{log}");
    assert!(log.contains("nothing was recorded"), "{log}");
    assert!(!output.exists() && !part.exists());
}

#[test]
fn agent_when_a_recording_is_its_source_believes_it() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let source = recording(&folder, 100, SPAN);
    let more = format!("[source]\nkind = 'replay={}'\n", source.display());
    let mut agent = Agent::start_in(Arc::clone(&folder), &more);
    let reply = agent.ask_until(|reply| reply["source"]["accepted"].as_u64() >= Some(1000));
    assert_eq!(reply["source"]["kind"], "replay");
    assert!(reply["source"]["lost"].as_u64() >= Some(10), "{reply}");
    let label = reply["sources"][0]["label"].as_str().unwrap();
    assert!(label.starts_with("a recording of ibs from "), "{label}");
}

#[test]
fn agent_when_its_recording_is_none_does_not_start() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let text = folder.path().join("text");
    fs::write(&text, "0,4096,load\n").unwrap();
    let more = format!("[source]\nkind = 'replay={}'\n", text.display());
    let mut agent = Agent::start_in(Arc::clone(&folder), &more);
    assert_eq!(agent.ended().code(), Some(1));
    let log = agent.log();
    assert!(log.contains("replay was asked for as a source"), "{log}");
    assert!(log.contains("a trace of a program (csv)"), "{log}");
}
