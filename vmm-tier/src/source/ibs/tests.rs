//! Records to samples, with every record accounted for; and the whole source on a ring file and this
//! process's own memory.

use std::{os::unix::fs::FileExt, process::id};

use proptest::prelude::*;
use tier_core::{
    addr::Gpa,
    map::{BlockIndex, HvaRange, MapRange, RamBlock},
    sample::AccessKind,
};
use tier_sys::{
    damon::DamonSettings,
    inverse::{InverseError, InverseMap, PageTable},
    pagemap::{PageEntry, PageRange, Pagemap, PagemapError},
    perf::{
        record::RecordFormat,
        ring::{PlainRing, Ring},
    },
    sysroot::SysRoot,
};

use super::*;
use crate::source::vcpus::Gathered;

const PAGE: u64 = 4096;
const BASE: u64 = 0x7f00_0000_0000;
const PAGES: u64 = 64;
const FIRST_FRAME: u64 = 5000;

/// Every page at the frame that has its number.
struct Straight;

impl PageTable for Straight {
    fn present(&self, _: Hva, _: u64) -> Result<Option<Vec<PageRange>>, PagemapError> {
        Ok(None)
    }

    fn read(&self, start: Hva, entries: &mut [PageEntry]) -> Result<(), PagemapError> {
        for (page, entry) in ((start.0 - BASE) / PAGE..).zip(entries) {
            *entry = PageEntry::present_at(FIRST_FRAME + page);
        }
        Ok(())
    }
}

fn straight() -> InverseMap {
    let range = HvaRange {
        start: Hva(BASE),
        len: PAGES * PAGE,
        page_size: PAGE,
        block: BlockIndex(0),
    };
    let mut map = InverseMap::new(&[range]).unwrap();
    map.roll(&Straight, || true).unwrap();
    map
}

const LOAD: u64 = 1;
const STORE: u64 = 2;
const PHYSICAL: u64 = 1 << 18;

/// A record of `ibs_op` as a ring has it: 104 bytes.
fn record(flags: u64, physical: u64, period: u64) -> Vec<u8> {
    let header = 9u64 | 104 << 48;
    let mut bytes: Vec<u8> = Vec::new();
    for word in [header, u64::MAX, 7, 0, period] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(60u32.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    for register in [0, 0, 0, 0, flags, 0, physical] {
        bytes.extend(u64::to_ne_bytes(register));
    }
    assert_eq!(bytes.len(), 104);
    bytes
}

/// `PERF_RECORD_LOST` with its trailer: TID, TIME, CPU.
fn lost(count: u64) -> Vec<u8> {
    let header = 2u64 | 48 << 48;
    let words = [header, 0, count, 0, 0, 0];
    words.into_iter().flat_map(u64::to_ne_bytes).collect()
}

/// What a ring with these bytes comes to, and how many samples and broken pieces stood in it.
fn gathered(bytes: &[u8]) -> (Gathered, u64) {
    let inverse = straight();
    let format = RecordFormat::new(SAMPLE_FIELDS, true).unwrap();
    let mut ring = Ring::new(PlainRing::new(1 << 18, 0), format);
    assert!(ring.memory().push(bytes));
    let mut gathered = Gathered::default();
    let collected = ring.collect(|sample| {
        let access = sample_of(&sample, |physical| inverse.locate(physical));
        gathered.take(sample.period().unwrap_or(1), access);
    });
    gathered.count(collected);
    (gathered, collected.samples + collected.malformed)
}

#[test]
fn records_when_of_all_kinds_are_samples_or_dropped_for_their_reason() {
    let at = |frame: u64| frame * PAGE + 0x40;
    let mut short = record(LOAD | PHYSICAL, at(FIRST_FRAME), 100);
    short.truncate(64);
    short[6..8].copy_from_slice(&64u16.to_ne_bytes());
    short[40..44].copy_from_slice(&20u32.to_ne_bytes());
    let bytes = [
        record(LOAD | PHYSICAL, at(FIRST_FRAME), 100),
        record(STORE | PHYSICAL, at(FIRST_FRAME + 63), 300),
        record(LOAD, at(FIRST_FRAME), 100),
        record(PHYSICAL, at(FIRST_FRAME), 100),
        record(LOAD | PHYSICAL, at(FIRST_FRAME + 64), 100),
        lost(17),
        short,
        record(LOAD | PHYSICAL, at(FIRST_FRAME + 1), 200),
    ];

    let (mut gathered, arrived) = gathered(&bytes.concat());
    let look = gathered.look(Duration::from_secs(1), Duration::from_millis(1));
    let batch = gathered.batch().unwrap();

    let hva = |page: u64| SampleAddress::Host(Hva(BASE + page * PAGE + 0x40));
    let found: Vec<_> = batch.samples.iter().map(|s| (s.address, s.kind)).collect();
    let expected = [
        (hva(0), AccessKind::Load),
        (hva(63), AccessKind::Store),
        (hva(1), AccessKind::Load),
    ];
    assert_eq!(found, expected);
    assert!(batch.samples.iter().all(|s| s.len == 1 && s.weight == 1.0));
    assert_eq!(batch.period, 200, "the mean of 100, 300 and 200");
    let account = &batch.account;
    let dropped = [
        DropReason::NoAddress,
        DropReason::Unmapped,
        DropReason::Malformed,
    ]
    .map(|reason| account.dropped.get(&reason).copied());
    assert_eq!(dropped, [Some(2), Some(1), Some(1)]);
    assert_eq!((account.lost, account.samples, arrived), (17, 4, 7));
    assert_eq!((look.records, look.samples), (24, 3));
    assert!(gathered.batch().is_none());
}

#[test]
fn records_when_made_under_another_map_are_counted_as_stale() {
    let bytes = record(LOAD | PHYSICAL, FIRST_FRAME * PAGE, 100);
    let (mut gathered, _) = gathered(&bytes);
    gathered.discard_samples();
    let batch = gathered.batch().unwrap();
    assert!(batch.samples.is_empty());
    assert_eq!(batch.account.dropped.get(&DropReason::StaleMap), Some(&1));
    assert!(batch.account.is_valid());
}

/// A piece of a ring: a record with any registers, a notice, a broken one, garbage.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop_oneof![Just(LOAD | PHYSICAL), Just(STORE | PHYSICAL), any::<u64>()];
    let physical = prop_oneof![0..2 * FIRST_FRAME * PAGE, any::<u64>()];
    prop_oneof![
        10 => (flags, physical, any::<u64>()).prop_map(|(flags, at, period)| record(flags, at, period)),
        1 => any::<u64>().prop_map(lost),
        1 => (prop::collection::vec(any::<u8>(), 8..16), any::<u16>()).prop_map(|(with, at)| {
            let mut bytes = record(LOAD | PHYSICAL, FIRST_FRAME * PAGE, 1);
            let at = usize::from(at) % 88;
            bytes[at..at + with.len()].copy_from_slice(&with);
            bytes
        }),
        1 => prop::collection::vec(any::<u8>(), 0..120),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("TIER_FUZZ_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(1000),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn account_when_records_are_arbitrary_always_sums_to_what_arrived(
        pieces in prop::collection::vec(piece(), 0..60),
    ) {
        let (mut gathered, arrived) = gathered(&pieces.concat());
        let Some(batch) = gathered.batch() else {
            prop_assert_eq!(arrived, 0);
            return Ok(());
        };
        prop_assert!(batch.account.is_valid());
        prop_assert_eq!(batch.account.accepted, 0, "counted by whoever takes the batch");
        prop_assert_eq!(batch.samples.len() as u64 + batch.account.samples, arrived);
        prop_assert!(batch.period >= 1);
        for sample in &batch.samples {
            let SampleAddress::Host(hva) = sample.address else { panic!("{sample:?}") };
            prop_assert!((BASE..BASE + PAGES * PAGE).contains(&hva.0));
        }
    }
}

/// A ring file with a producer's side.
struct RingFile {
    file: tempfile::NamedTempFile,
    head: u64,
}

impl RingFile {
    const DATA: u64 = 1 << 16;

    fn new() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096 + Self::DATA).unwrap();
        let ring = Self { file, head: 0 };
        ring.set(1040, 4096);
        ring.set(1048, Self::DATA);
        ring
    }

    /// Sets a word of the control page: `data_offset` is at 1040, `data_size` at 1048.
    fn set(&self, at: u64, word: u64) {
        self.file
            .as_file()
            .write_all_at(&word.to_ne_bytes(), at)
            .unwrap();
    }

    fn push(&mut self, record: &[u8]) {
        for (at, byte) in (self.head..).zip(record) {
            let at = 4096 + at % Self::DATA;
            self.file.as_file().write_all_at(&[*byte], at).unwrap();
        }
        self.head += record.len() as u64;
        self.set(1024, self.head);
    }
}

#[test]
fn source_when_a_ring_file_tells_of_its_own_memory_delivers_these_pages() {
    let mut memory: Vec<u8> = Vec::with_capacity(4 << 20);
    let start = (memory.as_ptr() as u64).next_multiple_of(1 << 20);
    let skew = usize::try_from(start - memory.as_ptr() as u64).unwrap();
    for page in 0..256 {
        memory.spare_capacity_mut()[skew + page * 4096].write(1);
    }
    let block = RamBlock {
        name: "ram".to_owned(),
        hva: Hva(start),
        used: 1 << 20,
        total: 1 << 20,
        page_size: PAGE,
        backing: None,
    };
    let range = MapRange {
        gpa: Gpa(1 << 20),
        len: 1 << 20,
        block: BlockIndex(0),
        offset: 0,
        hva: Hva(start),
    };
    let map = Arc::new(GuestMemoryMap::new(3, vec![block], vec![range]).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup {
        root: SysRoot::real(),
        run_dir: folder.path().to_owned(),
        pid: id(),
        vcpus: Vec::new(),
        is_kvm: false,
        damon: DamonSettings::default(),
        quiet_factor: 1,
        cpu_budget: 0.01,
    };
    let mut ring = RingFile::new();
    let mut source = match open_file(&setup, &map, ring.file.path()) {
        Ok(source) => source,
        Err(error) if matches!(error.downcast_ref(), Some(InverseError::Hidden { .. })) => {
            return eprintln!("SKIPPED: {error}");
        }
        Err(error) => panic!("{error:#}"),
    };
    let pagemap = Pagemap::open(&setup.root, id()).unwrap();
    let physical = |page: u64| {
        let mut entry = [PageEntry::default()];
        pagemap
            .entries(Hva(start + page * PAGE), &mut entry)
            .unwrap();
        entry[0].frame().unwrap() * PAGE + page
    };

    for page in [3, 200, 3] {
        ring.push(&record(LOAD | PHYSICAL, physical(page), 4096));
    }
    ring.push(&record(LOAD | PHYSICAL, 0xf_ffff_ffff_f000, 4096));
    let polled = source.poll(Duration::from_millis(1).into()).unwrap();

    let [batch] = &polled.batches[..] else {
        panic!("{polled:?}")
    };
    let at = |page: u64| SampleAddress::Host(Hva(start + page * PAGE + page));
    let found: Vec<_> = batch.samples.iter().map(|s| s.address).collect();
    assert_eq!(found, [at(3), at(200), at(3)]);
    assert_eq!(
        (batch.map_generation, batch.period, batch.tests),
        (3, 4096, 0)
    );
    assert_eq!(batch.account.dropped.get(&DropReason::Unmapped), Some(&1));
    assert_eq!(polled.ended, None);

    // A new map makes what stands in the ring stale.
    ring.push(&record(LOAD | PHYSICAL, physical(3), 4096));
    source.set_map(&map).unwrap();
    ring.push(&record(LOAD | PHYSICAL, physical(4), 4096));
    source.moved(&[(Hva(start), PAGE)]);
    let polled = source.poll(Duration::from_millis(1).into()).unwrap();
    let batch = &polled.batches[0];
    assert_eq!(batch.account.dropped.get(&DropReason::StaleMap), Some(&1));
    assert_eq!(batch.samples.len(), 1);
    assert!(source.label().contains("software PMU"));
    source.stop().unwrap();
}

#[test]
fn open_when_the_host_has_no_ibs_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let map = Arc::new(GuestMemoryMap::new(0, Vec::new(), Vec::new()).unwrap());
    let setup = Setup {
        root: SysRoot::at(folder.path()),
        run_dir: folder.path().to_owned(),
        pid: id(),
        vcpus: vec![id()],
        is_kvm: true,
        damon: DamonSettings::default(),
        quiet_factor: 1,
        cpu_budget: 0.01,
    };
    let Err(error) = open(&setup, &map) else {
        panic!("there is no ibs_op below an empty folder")
    };
    assert!(error.to_string().contains("no ibs_op PMU"), "{error}");
}
