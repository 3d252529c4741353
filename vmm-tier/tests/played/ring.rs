//! A software PMU: a file laid out as a perf ring, into which records of `ibs_op` are written.
#![allow(dead_code, reason = "each test program uses a part")]

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const PAGE: u64 = 4096;
/// Bytes of the data area.
const DATA: u64 = 1 << 20;
/// `data_head` in the control page.
const HEAD: u64 = 1024;
const TAIL: u64 = 1032;
const DATA_OFFSET: u64 = 1040;
const DATA_SIZE: u64 = 1048;
/// `PERF_RECORD_LOST`.
const LOST: u32 = 2;
/// `PERF_RECORD_SAMPLE`.
const SAMPLE: u32 = 9;
/// Bits of IbsOpData3.
const LOAD: u64 = 1;
const STORE: u64 = 2;

/// The file, and what was written last.
pub(crate) struct SoftPmu {
    pub(crate) path: PathBuf,
    file: File,
    head: u64,
}

impl SoftPmu {
    pub(crate) fn new(folder: &Path) -> Self {
        let path = folder.join("pmu");
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true);
        let file = options.open(&path).unwrap();
        file.set_len(PAGE + DATA).unwrap();
        for (at, value) in [(DATA_OFFSET, PAGE), (DATA_SIZE, DATA)] {
            file.write_all_at(&value.to_ne_bytes(), at).unwrap();
        }
        Self {
            path,
            file,
            head: 0,
        }
    }

    fn tail(&self) -> u64 {
        let mut word = [0; 8];
        self.file.read_exact_at(&mut word, TAIL).unwrap();
        u64::from_ne_bytes(word)
    }

    /// Writes a load of each host-physical address; how many there was room for.
    pub(crate) fn write(&mut self, addresses: &[u64]) -> usize {
        self.put(addresses.iter().map(|&address| sample(address, LOAD)))
    }

    /// The same for stores.
    pub(crate) fn write_stores(&mut self, addresses: &[u64]) -> usize {
        self.put(addresses.iter().map(|&address| sample(address, STORE)))
    }

    /// Writes that so many records were lost; whether there was room.
    pub(crate) fn lose(&mut self, records: u64) -> bool {
        let mut body = [0, records].map(u64::to_ne_bytes).concat();
        body.extend(identity());
        self.put([framed(LOST, &body)].into_iter()) == 1
    }

    /// Writes as many records as there is room for.
    fn put(&mut self, records: impl Iterator<Item = Vec<u8>>) -> usize {
        let room = DATA - (self.head - self.tail());
        let (mut bytes, mut written) = (Vec::new(), 0);
        for record in records {
            if (bytes.len() + record.len()) as u64 > room {
                break;
            }
            bytes.extend(record);
            written += 1;
        }
        let offset = self.head % DATA;
        let first = bytes.len().min((DATA - offset) as usize);
        self.file
            .write_all_at(&bytes[..first], PAGE + offset)
            .unwrap();
        self.file.write_all_at(&bytes[first..], PAGE).unwrap();
        self.head += bytes.len() as u64;
        // The kernel makes the pages of both writes seen before this one.
        self.file
            .write_all_at(&self.head.to_ne_bytes(), HEAD)
            .unwrap();
        written
    }
}

/// A record with its header.
fn framed(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut record = kind.to_ne_bytes().to_vec();
    record.extend(0_u16.to_ne_bytes());
    record.extend(u16::try_from(8 + body.len()).unwrap().to_ne_bytes());
    record.extend(body);
    record
}

/// TID, TIME and CPU, which every record has.
fn identity() -> Vec<u8> {
    let mut bytes = [u32::MAX; 2].map(u32::to_ne_bytes).concat();
    bytes.extend(1_u64.to_ne_bytes());
    bytes.extend([0_u32; 2].map(u32::to_ne_bytes).concat());
    bytes
}

/// Identity, PERIOD and the registers, as the kernel writes them.
fn sample(address: u64, kind: u64) -> Vec<u8> {
    const BOTH_ADDRESSES: u64 = 1 << 17 | 1 << 18;
    let registers = [0, 0, 0, 0, kind | BOTH_ADDRESSES, 0x7000, address];
    let mut body = identity();
    body.extend(4096_u64.to_ne_bytes());
    body.extend(60_u32.to_ne_bytes());
    body.extend(0_u32.to_ne_bytes());
    body.extend(registers.map(u64::to_ne_bytes).concat());
    framed(SAMPLE, &body)
}

/// Where this process's pages lie in the host; `None` without the right to know.
pub(crate) fn physical(addresses: impl Iterator<Item = u64>) -> Option<Vec<u64>> {
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let frame = |address: u64| {
        let mut entry = [0; 8];
        pagemap
            .read_exact_at(&mut entry, address / PAGE * 8)
            .unwrap();
        let frame = u64::from_ne_bytes(entry) & ((1 << 55) - 1);
        (frame > 0).then(|| frame * PAGE + address % PAGE)
    };
    addresses.map(frame).collect()
}
