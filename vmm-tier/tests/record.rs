//! `vmm-tier record` beside live sources: an agent in the guest and a software PMU, both played, while the guest's
//! memory changes, the guest ends, the disk fills up. "The guest" is this process's own memory, or another's.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tier_core::{
    addr::Gpa,
    sample::{AccessKind, DropReason, SourceKind},
    wire::{self, Drops, Message, Observed},
};
use tier_replay::{
    format::{Origin, TraceRange},
    machine::Access,
};

use crate::{
    guest::{Guest, accesses, observed, regions},
    played::{FOR_EVER, MIB, Qemu, event},
    recorder::{Recorder, Trace, read},
    ring::{SoftPmu, physical},
};

/// Set for the process that plays QEMU: where it serves its monitor.
const PLAY: &str = "VMM_TIER_TEST_PLAYS_QEMU_AT";
/// How long the played agent waits between two batches.
const PAUSE: Duration = Duration::from_millis(20);
/// All of the guest's memory but for its first mebibyte.
const RAM: TraceRange = TraceRange {
    gpa: MIB,
    len: 31 * MIB,
    page_size: 4096,
};
const DIMM: TraceRange = TraceRange {
    gpa: 4096 * MIB,
    len: 4 * MIB,
    page_size: 4096,
};

/// 64 pages, far from each other.
fn hot() -> Vec<u64> {
    (0..64).map(|page| 2 * MIB + page * 65_536).collect()
}

/// How often each address was accessed, and how.
fn counts(accesses: &[Access]) -> BTreeMap<(u64, u64, u8), u64> {
    let mut counts = BTreeMap::new();
    for access in accesses {
        let key = (access.address, access.len, access.kind as u8);
        *counts.entry(key).or_default() += u64::from(access.weight);
    }
    counts
}

/// What is lost and dropped, as the batches say; the end says the same.
fn lost_and_dropped(trace: &Trace) -> (u64, BTreeMap<DropReason, u64>) {
    let (mut lost, mut dropped) = (0, BTreeMap::new());
    for batch in &trace.batches {
        lost += batch.account.lost;
        for (&reason, &n) in &batch.account.dropped {
            *dropped.entry(reason).or_default() += n;
        }
    }
    let end = trace.end.as_ref().unwrap();
    assert_eq!((end.account.lost, &end.account.dropped), (lost, &dropped));
    (lost, dropped)
}

/// The only run of a replay as JSON, and its trace.
fn replayed(trace: &Path) -> (Value, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
        .args(["replay", "--json", "--quiet", "--policy", "dual-heap"])
        .arg(trace)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    (report["runs"][0].clone(), report["traces"][0].clone())
}

#[test]
fn accesses_when_an_agent_in_the_guest_sends_them_are_in_the_trace_with_what_it_lost() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let mut guest = Guest::new(&folder);
    let mut recorder = Recorder::start(&folder, &guest.source(), &["--name", "mine"]);
    let (output, part) = (recorder.output(), recorder.part());
    let kinds = [AccessKind::Load, AccessKind::Store, AccessKind::Any];
    let samples = hot().into_iter().zip(kinds.into_iter().cycle());
    let samples = samples.map(|(gpa, kind)| wire::Access {
        gpa: Gpa(gpa),
        kind,
    });
    // The last one is none of the guest's.
    let foreign = wire::Access {
        gpa: Gpa(64 * MIB),
        kind: AccessKind::Load,
    };
    let samples: Vec<_> = samples.chain([foreign]).collect();
    let (mut sent, mut lost) = (0, 0);
    let message = |lost| match observed(Observed::Accesses {
        period: 199,
        samples: samples.clone(),
    }) {
        Message::Batch(batch) => Message::Batch(wire::Batch {
            drops: Drops {
                lost,
                ..Drops::default()
            },
            ..batch
        }),
        other => other,
    };

    let started = Instant::now();
    recorder.wait_until(|trace| {
        // It has lost three more each time.
        if sent < 30 && guest.say(message(lost + 3)) {
            (sent, lost) = (sent + 1, lost + 3);
        }
        guest.listen();
        trace.accesses.len() == 30 * 64
    });
    recorder.signal(Signal::INT);

    let (code, said, log) = recorder.ended();
    assert_eq!(code, Some(0), "{log}");
    assert!(said.contains("1920 accesses in"), "{said}");
    assert!(said.contains("90 lost, 30 dropped"), "{said}");
    let trace = read(&output);
    assert!(trace.end.is_some() && !part.exists());
    let expected = samples[..64]
        .iter()
        .map(|access| ((access.gpa.0, 1, access.kind as u8), 30));
    assert_eq!(counts(&trace.accesses), expected.collect());
    let (lost, dropped) = lost_and_dropped(&trace);
    assert_eq!(lost, 90);
    assert_eq!(dropped, BTreeMap::from([(DropReason::NotGuestRam, 30)]));
    // Times are the guest's on a clock that began with the recording.
    assert!(trace.accesses.is_sorted_by_key(|access| access.at));
    let took = u64::try_from(started.elapsed().as_nanos()).unwrap();
    assert!(trace.accesses.iter().all(|access| access.at.0 <= took));
    for batch in &trace.batches {
        assert_eq!((batch.source, batch.period), (SourceKind::Guest, 199));
    }
    let header = trace.header.unwrap();
    assert_eq!(
        (header.origin, header.period, header.tests),
        (Origin::Source(SourceKind::Guest), 199, 0)
    );
    assert_eq!((header.name.as_str(), header.ranges), ("mine", vec![RAM]));

    let (run, trace) = replayed(&output);
    assert_eq!(run["samples"]["lost"], 90);
    assert_eq!(run["samples"]["accepted"], 1920);
    assert_eq!(run["samples"]["dropped"], json!({"not-guest-ram": 30}));
    assert_eq!(run["samples"]["arrived"], 1950);
    assert_eq!(trace["guest-bytes"], 31 * MIB);
    assert_eq!(trace["samples-recorded"], true);
}

#[test]
fn regions_when_an_agent_in_the_guest_sends_them_keep_their_counts() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let mut guest = Guest::new(&folder);
    let mut recorder = Recorder::start(&folder, &guest.source(), &["--for", "3s"]);
    let output = recorder.output();
    // The first begins below the guest's memory, the third ends behind it, the last is none of it.
    let report = regions(
        20,
        &[
            (0, 2 * MIB, 3),
            (2 * MIB, 8 * MIB, 17),
            (16 * MIB, 64 * MIB, 0),
            (128 * MIB, MIB, 9),
        ],
    );

    recorder.wait_until(|trace| {
        guest.say(report.clone());
        thread::sleep(PAUSE);
        trace.batches.len() >= 3
    });

    // It ends by itself.
    let (code, said, log) = recorder.ended();
    assert_eq!(code, Some(0), "{log}");
    let trace = read(&output);
    let batches = trace.batches.len();
    assert!(said.contains(&format!("in {batches} batches of")), "{said}");
    let expected = [
        (MIB, MIB, 3),
        (2 * MIB, 8 * MIB, 17),
        (16 * MIB, 16 * MIB, 0),
    ];
    let found = trace.accesses.iter();
    let found: Vec<_> = found.map(|a| (a.address, a.len, a.weight)).collect();
    assert_eq!(found, expected.repeat(batches));
    let (_, dropped) = lost_and_dropped(&trace);
    assert_eq!(dropped[&DropReason::NotGuestRam], batches as u64);
    assert!(trace.batches.iter().all(|batch| batch.tests == 20));
    assert_eq!(trace.header.unwrap().tests, 20);
    let (run, _) = replayed(&output);
    assert_eq!(run["samples"]["dropped"]["not-guest-ram"], batches);
}

#[test]
fn memory_when_it_is_plugged_while_recording_is_in_the_trace() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let server = qemu.serve(&folder.path().join("qmp"));
    let mut guest = Guest::new(&folder);
    let mut recorder = Recorder::start(&folder, &guest.source(), &[]);
    let output = recorder.output();
    let old = accesses(&hot());
    recorder.wait_until(|trace| {
        guest.say(old.clone());
        thread::sleep(PAUSE);
        !trace.accesses.is_empty()
    });

    qemu.has_dimm.store(true, Ordering::Relaxed);
    // Plugging emits no event; this makes the agent look without delay.
    let reset = json!({"guest": true, "reason": "guest-reset"});
    server.broadcast(&event("RESET", reset));
    let new: Vec<u64> = (0..64).map(|page| DIMM.gpa + page * 4096).collect();
    let new = accesses(&new);
    recorder.wait_until(|trace| {
        guest.say(new.clone());
        thread::sleep(PAUSE);
        let in_dimm = trace.accesses.iter().filter(|a| DIMM.contains(a.address));
        in_dimm.count() >= 640
    });
    recorder.signal(Signal::TERM);

    let (code, _, log) = recorder.ended();
    assert_eq!(code, Some(0), "{log}");
    let trace = read(&output);
    let end = trace.end.as_ref().unwrap();
    assert_eq!(end.plugged, [DIMM]);
    assert_eq!(trace.header.as_ref().unwrap().ranges, [RAM]);
    let marks: Vec<&str> = trace.marks.iter().map(|mark| mark.text.as_str()).collect();
    assert!(marks.contains(&"memory map changed"), "{marks:?}");
    // What was sent before the agent knew of it was dropped, and is counted.
    let (_, dropped) = lost_and_dropped(&trace);
    let is_known =
        |reason: &DropReason| matches!(reason, DropReason::NotGuestRam | DropReason::StaleMap);
    assert!(dropped.keys().all(is_known), "{dropped:?}");

    let (run, replayed_trace) = replayed(&output);
    assert_eq!(replayed_trace["guest-bytes"], 35 * MIB);
    assert_eq!(replayed_trace["outside"], end.outside);
    assert_eq!(run["samples"]["accepted"], trace.accesses.len());
}

#[test]
fn accesses_when_they_come_through_a_ring_file_are_in_the_trace_with_what_was_lost() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let host = |gpa: &u64| qemu.base() + gpa + 64;
    let (loads, stores) = (hot(), vec![8 * MIB, 9 * MIB + 4096]);
    let frames = |pages: &[u64]| physical(pages.iter().map(host));
    let (Some(loads_in_host), Some(stores_in_host)) = (frames(&loads), frames(&stores)) else {
        println!("SKIPPED: frame numbers are for root only");
        return;
    };
    let mut pmu = SoftPmu::new(folder.path());
    let source = format!("ibs={}", pmu.path.display());
    let mut recorder = Recorder::start(&folder, &source, &[]);
    let output = recorder.output();
    let (mut foreign, mut lost) = (0, 0);

    recorder.wait_until(|trace| {
        pmu.write(&loads_in_host);
        pmu.write_stores(&stores_in_host);
        foreign += pmu.write(&[1 << 45]);
        lost += u64::from(pmu.lose(7)) * 7;
        thread::sleep(PAUSE);
        trace.accesses.len() >= 6400
    });
    recorder.signal(Signal::TERM);

    let (code, said, log) = recorder.ended();
    assert_eq!(code, Some(0), "{log}");
    let trace = read(&output);
    let counts = counts(&trace.accesses);
    let loads = loads.iter().map(|gpa| (gpa + 64, AccessKind::Load));
    let stores = stores.iter().map(|gpa| (gpa + 64, AccessKind::Store));
    let expected: BTreeMap<_, _> = loads.chain(stores).collect();
    let found = counts.keys().map(|&(address, len, kind)| {
        assert_eq!(len, 1);
        (address, kind)
    });
    let expected = expected.into_iter().map(|(gpa, kind)| (gpa, kind as u8));
    assert!(found.eq(expected), "{counts:?}");
    // Every round wrote each of them once; the last ones may not have been read.
    let (least, most) = (counts.values().min(), counts.values().max());
    assert!(most.unwrap() - least.unwrap() <= 1, "{counts:?}");
    let (noted, dropped) = lost_and_dropped(&trace);
    assert!(noted > 0 && noted <= lost && noted.is_multiple_of(7));
    assert!(said.contains(&format!("{noted} lost")), "{said}");
    assert!(dropped[&DropReason::Unmapped] <= foreign as u64);
    let header = trace.header.unwrap();
    assert_eq!(header.origin, Origin::Source(SourceKind::Ibs));
    assert_eq!(header.period, 4096);

    let (run, _) = replayed(&output);
    assert_eq!(run["samples"]["lost"], noted);
}

#[test]
fn trace_when_the_guest_ends_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let qmp = folder.path().join("qmp");
    let mut played = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "record::played_qemu_when_asked_serves_until_it_is_killed",
        ])
        .env(PLAY, &qmp)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !qmp.exists() && started.elapsed() < FOR_EVER {
        thread::sleep(PAUSE);
    }
    let mut guest = Guest::new(&folder);
    let mut recorder = Recorder::start(&folder, &guest.source(), &[]);
    let output = recorder.output();
    let batch = accesses(&hot());
    recorder.wait_until(|trace| {
        guest.say(batch.clone());
        thread::sleep(PAUSE);
        trace.batches.len() >= 2
    });

    played.kill().unwrap();
    played.wait().unwrap();

    let (code, said, log) = recorder.ended();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("the guest has ended"), "{log}");
    let trace = read(&output);
    assert!(trace.end.is_some(), "{said}");
    assert!(said.contains(&format!("{} accesses", trace.accesses.len())));
}

/// With [`PLAY`] set this process serves a monitor until it is killed.
#[test]
fn played_qemu_when_asked_serves_until_it_is_killed() {
    let qemu = Qemu::new();
    if let Some(path) = std::env::var_os(PLAY) {
        let _server = qemu.serve(Path::new(&path));
        thread::sleep(FOR_EVER);
    }
    let folder = tempfile::tempdir().unwrap();
    let server = qemu.serve(&folder.path().join("qmp"));
    assert_eq!(server.stats().clients, 0);
}

#[test]
fn disk_when_it_is_full_ends_the_recording_and_keeps_what_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let mut guest = Guest::new(&folder);
    // 32 or 64 KiB, as the shell counts; what is written each second takes some ten.
    let recorder = Recorder::start_limited(&folder, &guest.source(), "-f 64");
    let (output, part) = (recorder.output(), recorder.part());
    let feeding = thread::spawn(move || {
        let (started, mut random) = (Instant::now(), 1_u64);
        let was_left = |guest: &Guest| guest.next > 0 && guest.stream.is_none();
        while !was_left(&guest) && started.elapsed() < FOR_EVER {
            // Pages that no compression finds a rule in.
            let pages = (0..64).map(|_| {
                random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
                2 * MIB + (random >> 40) % 7000 * 4096
            });
            guest.say(accesses(&pages.collect::<Vec<_>>()));
            thread::sleep(PAUSE);
        }
    });

    let (code, said, log) = recorder.ended();

    feeding.join().unwrap();
    assert_eq!((code, said.as_str()), (Some(1), ""), "{log}");
    let error = log.lines().last().unwrap();
    for expected in [
        "ended early",
        "what was written is kept",
        "out.part",
        "can't be written",
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert!(!output.exists());
    let kept = read(&part);
    assert!(kept.end.is_none() && kept.accesses.len() >= 64);
    let whole = folder.path().join("whole");
    let saved = Command::new(env!("CARGO_BIN_EXE_vmm-tier"))
        .args(["record", "--partial", "--import"])
        .args([&part, Path::new("--output"), &whole])
        .output()
        .unwrap();
    assert!(saved.status.success(), "{saved:?}");
    let whole = read(&whole);
    assert!(whole.end.is_some());
    assert_eq!(whole.accesses, kept.accesses);
}

/// Starts a recording that can't begin; what it says.
fn refused(folder: &TempDir, source: &str, more: &[&str]) -> String {
    let (code, said, log) = Recorder::start(folder, source, more).ended();
    assert_eq!((code, said.as_str()), (Some(1), ""), "{log}");
    log.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn output_when_it_is_there_or_can_t_be_made_is_refused_before_anything_is_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let guest = Guest::new(&folder);
    for (name, part) in [
        ("out", "out exists: remove it"),
        ("out.part", "one was killed"),
    ] {
        let existing = folder.path().join(name);
        fs::write(&existing, "precious").unwrap();
        let error = refused(&folder, &guest.source(), &[]);
        assert!(error.contains(part), "{error}");
        assert_eq!(fs::read_to_string(&existing).unwrap(), "precious");
        fs::remove_file(&existing).unwrap();
    }
    // A folder stands where the file is made.
    fs::create_dir(folder.path().join("out")).unwrap();
    let error = refused(&folder, &guest.source(), &[]);
    assert!(error.contains("out exists"), "{error}");
}

#[test]
fn output_when_it_appears_while_recording_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let qemu = Qemu::new();
    let _server = qemu.serve(&folder.path().join("qmp"));
    let mut guest = Guest::new(&folder);
    let mut recorder = Recorder::start(&folder, &guest.source(), &[]);
    let (output, part) = (recorder.output(), recorder.part());
    let batch = accesses(&hot());
    recorder.wait_until(|trace| {
        guest.say(batch.clone());
        thread::sleep(PAUSE);
        !trace.accesses.is_empty()
    });

    fs::write(&output, "precious").unwrap();
    recorder.signal(Signal::TERM);

    let (code, _, log) = recorder.ended();
    assert_eq!(code, Some(1), "{log}");
    let error = log.lines().last().unwrap();
    assert!(error.contains("is there by now"), "{error}");
    assert_eq!(fs::read_to_string(&output).unwrap(), "precious");
    assert!(read(&part).end.is_some(), "what was recorded is whole");
}
