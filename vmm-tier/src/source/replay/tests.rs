//! Recordings played beside maps that fit them and maps that don't.

use std::fs;

use tempfile::TempDir;
use tier_core::{
    addr::{Gpa, Hva},
    map::{BlockIndex, MapRange, RamBlock},
    sample::AccessKind,
};
use tier_replay::format::{Encoder, Header, TraceRange};

use super::*;

const MIB: u64 = 1 << 20;

/// A guest of `mib` MiB.
fn map(mib: u64) -> Arc<GuestMemoryMap> {
    let block = RamBlock {
        name: "ram".to_owned(),
        hva: Hva(1 << 40),
        used: mib * MIB,
        total: mib * MIB,
        page_size: 4096,
        backing: None,
    };
    let range = MapRange {
        gpa: Gpa(MIB),
        len: (mib - 1) * MIB,
        block: BlockIndex(0),
        offset: MIB,
        hva: Hva((1 << 40) + MIB),
    };
    Arc::new(GuestMemoryMap::new(5, vec![block], vec![range]).unwrap())
}

fn access(at: u64, address: u64, len: u64, weight: u32) -> Access {
    Access {
        at: Time(at),
        address,
        len,
        weight,
        kind: AccessKind::Store,
    }
}

fn batch_end(end: u64, tests: u32) -> BatchEnd {
    let mut account = SampleAccount {
        lost: 3,
        ..SampleAccount::default()
    };
    account.drop_records(DropReason::NoAddress, 2);
    BatchEnd {
        source: SourceKind::Damon,
        end: Time(end),
        span: Duration::from_nanos(10),
        tests,
        period: 1,
        settled: true,
        account,
    }
}

/// A recording of two batches of a guest of 32 MiB.
fn recording(folder: &TempDir, header: &Header) -> PathBuf {
    let path = folder.path().join("trace");
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(header, &mut bytes).unwrap();
    let first = access(10, 2 * MIB, 2 * MIB, 30);
    encoder.access(&first, &mut bytes).unwrap();
    encoder.batch(batch_end(10, 20), &mut bytes).unwrap();
    for access in [access(20, 30 * MIB, 1, 1), access(20, 7 * MIB, 2 * MIB, 0)] {
        encoder.access(&access, &mut bytes).unwrap();
    }
    encoder.batch(batch_end(20, 20), &mut bytes).unwrap();
    encoder.finish(&mut bytes).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn header() -> Header {
    Header {
        origin: Origin::Source(SourceKind::Damon),
        ranges: vec![TraceRange {
            gpa: MIB,
            len: 31 * MIB,
            page_size: 4096,
        }],
        ..Header::import("", "guest")
    }
}

fn open(path: &Path, map: &Arc<GuestMemoryMap>) -> anyhow::Result<Replay> {
    Replay::open(path, map, Arc::default())
}

#[test]
fn recording_when_played_comes_as_the_source_delivered_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = recording(&folder, &header());
    let map = map(8);
    let mut source = open(&path, &map).unwrap();
    assert_eq!(source.sight(), Sight::Guest);
    let mut batches = Vec::new();
    while batches.len() < 2 {
        batches.extend(source.poll(Duration::from_secs(1).into()).unwrap().batches);
    }
    let first = &batches[0];
    let sample = |gpa: u64, len: u64, weight| AccessSample {
        address: SampleAddress::Guest(Gpa(gpa)),
        len,
        weight,
        kind: AccessKind::Store,
    };
    assert_eq!(
        first.samples,
        [sample(2 * MIB, 2 * MIB, 20.0)],
        "no more counts than tests"
    );
    assert_eq!(
        (first.source, first.tests, first.map_generation),
        (SourceKind::Replay, 20, 5)
    );
    assert_eq!(first.account.lost, 3);
    let second = &batches[1];
    assert_eq!(
        second.samples,
        [sample(7 * MIB, MIB, 0.0)],
        "cut at the end"
    );
    assert_eq!(second.account.dropped[&DropReason::NotGuestRam], 1);
    assert_eq!(second.account.dropped[&DropReason::NoAddress], 2);
    assert!(second.account.is_valid());
    let after = source.poll(Duration::ZERO.into()).unwrap();
    assert_eq!(after, Polled::default(), "silent at the end");
    assert!(source.label().contains("which has ended"));
}

#[test]
fn recording_when_it_is_of_a_program_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = recording(&folder, &Header::import("lackey", "xz"));
    let error = open(&path, &map(8)).err().unwrap().to_string();
    assert!(error.contains("a trace of a program (lackey)"), "{error}");
}

#[test]
fn recording_when_it_is_damaged_is_down_and_not_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = recording(&folder, &header());
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let broken = Arc::default();
    let mut source = Replay::open(&path, &map(8), Arc::clone(&broken)).unwrap();
    let error = source.poll(Duration::ZERO.into()).unwrap_err();
    assert!(
        format!("{error:#}").contains("damaged at byte"),
        "{error:#}"
    );
    let known = broken.lock().unwrap().clone().unwrap();
    assert!(known.contains("damaged at byte"), "{known}");
}
