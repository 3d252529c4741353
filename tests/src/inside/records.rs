//! Reads the software PMU's records as an agent would, with the same consumer of rings.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use softpmu::layout::{DATA_HEAD, DATA_TAIL, Layout};
use softpmu::record::SAMPLE_TYPE;
use softpmu::shared::Shared;
use tier_sys::perf::record::{Record, RecordFormat};
use tier_sys::perf::{
    collect::Drained,
    ring::{Ring, RingMemory},
};

use super::guest::Watch;
use super::pmu::{Pmu, frames};
use crate::pagemap::PAGE_BYTES;

/// Nobody looks at the ring more often than this.
const PAUSE: Duration = Duration::from_millis(50);
/// Where IbsDcPhysAd stands in the raw data: behind the caps and six registers.
const PHYSICAL_AT: usize = 52;

/// The ring in the device's memory.
struct Memory<'a> {
    shared: &'a Shared,
    layout: Layout,
}

impl RingMemory for Memory<'_> {
    fn capacity(&self) -> usize {
        usize::try_from(self.layout.ring().1).unwrap_or(0)
    }

    fn head(&self) -> u64 {
        let word = self.shared.word(DATA_HEAD);
        word.map_or(0, |head| head.load(Ordering::Acquire))
    }

    fn tail(&self) -> u64 {
        self.shared.load(DATA_TAIL).unwrap_or(0)
    }

    fn set_tail(&self, tail: u64) {
        if let Some(word) = self.shared.word(DATA_TAIL) {
            word.store(tail, Ordering::Release);
        }
    }

    fn append_to(&self, offset: usize, len: usize, out: &mut Vec<u8>) {
        let start = self.layout.ring().0 + offset as u64;
        for at in (start..start + len as u64).step_by(8) {
            out.extend(self.shared.load(at).unwrap_or(0).to_ne_bytes());
        }
    }
}

/// What records were found to be.
#[derive(Debug, Default)]
struct Found {
    guest: u64,
    hot: u64,
    fast: u64,
    elsewhere: u64,
    malformed: u64,
    lost: u64,
}

/// A reader of the records, with the guest's page frames as they are now.
pub struct Reader<'a> {
    pmu: &'a Pmu,
    ring: Ring<Memory<'a>>,
    frames: HashSet<u64>,
    hot: HashSet<u64>,
    found: Found,
    seconds: f64,
}

impl<'a> Reader<'a> {
    /// Gets to know where the guest's pages are, and passes over all records there are.
    ///
    /// # Errors
    /// When QEMU has gone.
    pub fn new(pmu: &'a Pmu, watch: &Watch) -> anyhow::Result<Self> {
        let list = frames(watch.pid, watch.ram)?;
        let page = PAGE_BYTES as u64;
        let by_address: HashMap<u64, u64> = (watch.ram.0..)
            .step_by(PAGE_BYTES)
            .zip(&list)
            .filter_map(|(address, frame)| Some((address / page, (*frame)?)))
            .collect();
        let hot = watch
            .hot_pages
            .iter()
            .filter_map(|address| by_address.get(&(*address as u64 / page)).copied())
            .collect();
        let (shared, layout) = pmu.memory();
        let format = RecordFormat::new(SAMPLE_TYPE, true)?;
        let mut ring = Ring::new(Memory { shared, layout }, format);
        ring.drain(|_| {});
        Ok(Self {
            pmu,
            ring,
            frames: list.into_iter().flatten().collect(),
            hot,
            found: Found::default(),
            seconds: 0.0,
        })
    }

    /// Takes records in for a while.
    pub fn read(&mut self, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            std::thread::sleep(PAUSE);
            self.drain();
        }
        self.seconds += began.elapsed().as_secs_f64();
    }

    fn drain(&mut self) {
        let Self {
            pmu,
            ring,
            frames,
            hot,
            found,
            ..
        } = self;
        let Drained { malformed, .. } = ring.drain(|record| match record {
            Record::Sample(sample) => {
                let physical = sample
                    .raw()
                    .and_then(|raw| raw.get(PHYSICAL_AT..)?.first_chunk());
                let Some(physical) = physical else {
                    found.malformed += 1;
                    return;
                };
                let frame = u64::from_ne_bytes(*physical) / PAGE_BYTES as u64;
                if frames.contains(&frame) {
                    found.guest += 1;
                    found.hot += u64::from(hot.contains(&frame));
                    found.fast += u64::from(pmu.node(frame) == Some(0));
                } else {
                    found.elsewhere += 1;
                }
            }
            Record::Lost { lost, .. } => found.lost += lost,
            _ => found.malformed += 1,
        });
        found.malformed += malformed;
    }

    /// What was found, in the words of `query-tier`, and more.
    #[must_use]
    pub fn account(&self) -> Value {
        let found = &self.found;
        json!({
            "samples": found.guest + found.elsewhere + found.malformed,
            "accepted": found.guest,
            "dropped": { "unmapped": found.elsewhere, "malformed": found.malformed },
            "lost": found.lost,
            "hot": found.hot,
            "fast": found.fast,
            "seconds": self.seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use softpmu::{Access, Pmu as Producer};

    #[test]
    fn memory_when_a_pmu_writes_gives_its_records() {
        let layout = Layout::new(4096, 16, 1, 64).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(layout.file_bytes()).unwrap();
        let shared = Shared::map(&file, layout.file_bytes()).unwrap();
        layout.write(&shared).unwrap();
        let producer = Producer::new(Shared::map(&file, layout.file_bytes()).unwrap()).unwrap();
        let access = Access {
            rip: 1,
            linear: 2,
            physical: 0x3008,
            store: true,
            size_shift: 3,
        };
        for _ in 0..100 {
            producer.sample(&access, 0);
        }
        let format = RecordFormat::new(SAMPLE_TYPE, true).unwrap();
        let memory = Memory {
            shared: &shared,
            layout,
        };
        let mut ring = Ring::new(memory, format);
        let mut physical = Vec::new();

        let drained = ring.drain(|record| {
            let Record::Sample(sample) = record else {
                panic!("{record:?}")
            };
            let raw = sample.raw().unwrap();
            let bytes = raw[PHYSICAL_AT..].first_chunk().unwrap();
            physical.push(u64::from_ne_bytes(*bytes));
        });

        // 39 records of 104 bytes fit 4096 bytes.
        assert_eq!((drained.records, drained.malformed), (39, 0));
        assert_eq!(physical, [0x3008; 39]);
    }
}
