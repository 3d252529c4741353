//! Traces larger than the memory that `vmm-tier` may have: replayed and imported, under a limit that the kernel keeps.

use std::{
    fs::{self, File},
    io::{BufWriter, Read as _, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use tier_core::{sample::AccessKind, time::Time};
use tier_replay::{
    format::{Encoder, Header},
    machine::Access,
};

use crate::recorder;

const MIB: u64 = 1 << 20;
/// All of the address space that the program may have, its code and the stacks of its threads included.
const LIMIT: u64 = 96 * MIB;
/// Bytes of the text.
const LARGE: u64 = 2 * LIMIT;
/// Four bytes each in a trace, thirty in memory.
const ACCESSES: u64 = 40_000_000;
/// Pages of 4 KiB of the guest.
const PAGES: u64 = 16_384;

/// Accesses to random words; every hundred seconds other pages are hot, so that the oracle has much to know.
struct Random(u64);

impl Random {
    fn next(&mut self, number: u64) -> (u64, u64) {
        // Knuth's MMIX; its high bits are good ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let seconds = number * 600 / ACCESSES;
        let page = match self.0 >> 62 {
            0 => (self.0 >> 40) % PAGES,
            _ => ((self.0 >> 40) % 1024 + seconds / 100 * 2048) % PAGES,
        };
        let at = number * 15_000;
        (at, page * 4096 + (self.0 >> 24) % 4096)
    }
}

/// Starts the program under [`LIMIT`].
fn limited(arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit -v {}; exec \"$@\"", LIMIT / 1024);
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_vmm-tier")]);
    command.args(arguments).stdout(Stdio::piped());
    command
}

/// Waits for the end; what was printed, and the most memory that was resident, in bytes, as last seen.
fn ended(mut child: Child) -> (String, u64) {
    let status = format!("/proc/{}/status", child.id());
    let (mut said, mut peak) = (String::new(), 0);
    let mut stdout = child.stdout.take().unwrap();
    let reader = thread::spawn(move || {
        stdout.read_to_string(&mut said).unwrap();
        said
    });
    let code = loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(kib.unwrap_or(0) * 1024);
        if let Some(code) = child.try_wait().unwrap() {
            break code;
        }
        thread::sleep(Duration::from_millis(5));
    };
    assert!(code.success(), "{code}");
    (reader.join().unwrap(), peak)
}

fn assert_peak(what: &str, peak: u64) {
    println!("{what}: at most {} MiB resident", peak / MIB);
    assert!(
        (MIB..LIMIT).contains(&peak),
        "{what}: {peak} bytes resident"
    );
}

fn write_trace(path: &Path) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    let mut bytes = Vec::new();
    let header = Header::import("csv", "large");
    let mut encoder = Encoder::new(&header, &mut bytes).unwrap();
    let mut random = Random(1);
    for number in 0..ACCESSES {
        let (at, address) = random.next(number);
        let access = Access {
            at: Time(at),
            address,
            len: 1,
            weight: 1,
            kind: AccessKind::Load,
        };
        encoder.access(&access, &mut bytes).unwrap();
        if bytes.len() > 1 << 20 {
            file.write_all(&bytes).unwrap();
            bytes.clear();
        }
    }
    encoder.finish(&mut bytes).unwrap();
    file.write_all(&bytes).unwrap();
}

#[test]
fn trace_when_larger_than_memory_is_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large");
    write_trace(&path);
    let bytes = fs::metadata(&path).unwrap().len();
    assert!(bytes > LIMIT, "{bytes} bytes are not large");
    println!("{ACCESSES} accesses in {} MiB", bytes / MIB);
    let arguments = [
        "replay", "--json", "--quiet", "--memory", "32M", "--period", "101", "--policy",
    ];
    let arguments = [
        &arguments[..],
        &["dual-heap,oracle-free", path.to_str().unwrap()],
    ]
    .concat();

    let (said, peak) = ended(limited(&arguments).spawn().unwrap());

    assert_peak("replay", peak);
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["traces"][0]["accesses"], ACCESSES);
    assert_eq!(report["traces"][0]["pages"], PAGES);
    let hits = |run: &Value| run["hit-ratio"].as_f64().unwrap();
    let runs = report["runs"].as_array().unwrap();
    let policies: Vec<&str> = runs
        .iter()
        .map(|run| run["policy"].as_str().unwrap())
        .collect();
    assert_eq!(policies, ["dual-heap", "oracle-free", "oracle"]);
    // The hot pages and some others have room: three quarters of the accesses and a part of the rest.
    assert!(runs.iter().all(|run| hits(run) > 0.7), "{said}");
    // The oracle's memory is bounded, and it says what that means.
    let notes = report["traces"][0]["notes"].to_string();
    assert!(notes.contains("its memory is short"), "{notes}");
}

#[test]
fn text_when_larger_than_memory_is_imported() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let arguments = [
        "record",
        "--import",
        "-",
        "--output",
        output.to_str().unwrap(),
    ];
    let mut child = limited(&arguments).stdin(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take().unwrap();
    let (mut written, mut lines) = (0, 0);
    let mut random = Random(1);
    let feeding = thread::spawn(move || {
        let mut stdin = BufWriter::with_capacity(1 << 16, stdin);
        while written < LARGE {
            let (at, address) = random.next(lines);
            let line = format!("{at},{address:#x},load\n");
            stdin.write_all(line.as_bytes()).unwrap();
            written += line.len() as u64;
            lines += 1;
        }
        lines
    });

    let (said, peak) = ended(child);

    let lines = feeding.join().unwrap();
    assert_peak("import", peak);
    assert!(said.contains(&format!("{lines} accesses of")), "{said}");
    let mut random = Random(1);
    let first = recorder::read(&output).accesses;
    assert_eq!(first.len() as u64, lines);
    let same = (0..)
        .zip(&first)
        .all(|(number, access)| (access.at.0, access.address) == random.next(number));
    assert!(same, "an access is not as it was written");
}
