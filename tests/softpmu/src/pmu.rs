//! Counting accesses and sampling one in N: what the plugin does for every access of an emulated CPU.
//!
//! A small cache stands before both, as in every CPU, and as IBS itself filters on CPUs that can
//! (`l3missonly`): without one most samples would fall on a few lines of stack that no memory ever sees.
//!
//! [`Pmu::count`] runs for each of some ten million accesses a second. Each CPU has its own counters and
//! countdown, written by that CPU's thread alone: plain loads and stores, no locked instruction. Records
//! are rare, so one lock orders the threads that write them, as one ring has one head.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::layout::{DATA_HEAD, DATA_TAIL, Layout, LayoutError, PAGE, Word};
use crate::record::{self, LOST_WORDS, SAMPLE_WORDS};
use crate::shared::Shared;

pub use crate::record::Access;

const PAGE_SHIFT: u32 = PAGE.trailing_zeros();

/// The shared file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PmuError {
    /// It can't be opened or mapped.
    #[error("the shared file {path} can't be mapped")]
    File {
        /// Which.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// It holds no layout.
    #[error("the shared file {path} can't be used")]
    Layout {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: LayoutError,
    },
}

/// Bytes of a cache line, and lines of a CPU's cache: 256 KiB, as a small second-level cache has.
const LINE_SHIFT: u32 = 6;
const CACHE_LINES: usize = 4096;

/// What a CPU's cache holds: for each line of the cache the number of the line of memory, plus one.
/// Direct-mapped, by linear addresses, which differ between address spaces well enough.
#[derive(Debug)]
struct Cache(Box<[AtomicU64]>);

impl Cache {
    fn new() -> Self {
        Self((0..CACHE_LINES).map(|_| AtomicU64::new(0)).collect())
    }

    /// Whether the access finds nothing in the cache; its line is there from then on.
    #[inline]
    fn misses(&self, linear: u64) -> bool {
        let line = linear >> LINE_SHIFT;
        let place = &self.0[line as usize % CACHE_LINES];
        let misses = place.load(Ordering::Relaxed) != line + 1;
        if misses {
            place.store(line + 1, Ordering::Relaxed);
        }
        misses
    }
}

/// A CPU's countdown to its next sample, on a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Countdown {
    /// Accesses until the next sample.
    left: AtomicU64,
    random: AtomicU64,
}

/// The software PMU over a shared file.
#[derive(Debug)]
pub struct Pmu {
    shared: Shared,
    layout: Layout,
    countdowns: Vec<Countdown>,
    caches: Vec<Cache>,
    armed_word: usize,
    writer: Writer,
    began: Instant,
}

/// What the threads that write records share.
#[derive(Debug)]
struct Writer {
    busy: AtomicBool,
    /// Where the next record goes. Not read back from the file, where anybody could write.
    head: AtomicU64,
}

impl Pmu {
    /// Takes a shared file that the lab has made.
    ///
    /// # Errors
    /// When it can't be mapped or holds no layout.
    pub fn open(path: &Path) -> Result<Self, PmuError> {
        let failed = |source: io::Error| PmuError::File {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let shared = Shared::map(&file, bytes).map_err(|errno| failed(errno.into()))?;
        Self::new(shared).map_err(|source| PmuError::Layout {
            path: path.to_owned(),
            source,
        })
    }

    /// A PMU over shared memory that holds a layout.
    ///
    /// # Errors
    /// [`LayoutError`] if it holds none.
    pub fn new(shared: Shared) -> Result<Self, LayoutError> {
        let layout = Layout::read(&shared)?;
        let countdowns = (0..layout.cpus())
            .map(|cpu| Countdown {
                left: AtomicU64::new(layout.period()),
                // Any odd number does; each CPU its own.
                random: AtomicU64::new(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(2 * cpu + 1)),
            })
            .collect();
        let head = shared.load(DATA_HEAD).unwrap_or(0);
        Ok(Self {
            countdowns,
            caches: (0..layout.cpus()).map(|_| Cache::new()).collect(),
            // Layout::read saw that it lies in the file, which is mapped whole.
            armed_word: usize::try_from(layout.word(Word::Armed) / 8).unwrap_or(usize::MAX),
            shared,
            layout,
            writer: Writer {
                busy: AtomicBool::new(false),
                head: AtomicU64::new(head),
            },
            began: Instant::now(),
        })
    }

    /// What lies where.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Whether a CPU's accesses are counted now. The emulated host says so, with a word of the file.
    #[must_use]
    #[inline]
    pub fn armed(&self, cpu: u32) -> bool {
        let word = self.shared.words().get(self.armed_word);
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (cpu & 63) & 1 != 0)
    }

    /// Whether a CPU's access reaches memory: a cache answers most, and what it answers costs the same on
    /// every tier. Called by that CPU's thread alone.
    #[must_use]
    #[inline]
    pub fn reaches_memory(&self, cpu: u32, linear: u64) -> bool {
        let cache = self.caches.get(cpu as usize);
        cache.is_some_and(|cache| cache.misses(linear))
    }

    /// Counts an access of a CPU that reaches memory. `true` when a sample of it is due; accesses outside of
    /// the memory that is counted (devices', and this file's own) are none. Called by that CPU's thread
    /// alone.
    #[must_use]
    #[inline]
    pub fn count(&self, cpu: u32, physical: u64) -> bool {
        let frame = physical >> PAGE_SHIFT;
        let Some(countdown) = self.countdowns.get(cpu as usize) else {
            return false;
        };
        if frame >= self.layout.pages() {
            return false;
        }
        let index = self.layout.counters(u64::from(cpu)) / 8 + frame;
        // Within the file, by its layout.
        if let Some(counter) = self.shared.words().get(index as usize) {
            counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        let left = countdown.left.load(Ordering::Relaxed);
        if left > 1 {
            countdown.left.store(left - 1, Ordering::Relaxed);
            return false;
        }
        countdown
            .left
            .store(self.next_period(countdown), Ordering::Relaxed);
        true
    }

    /// The period, up to an eighth longer or shorter: a fixed one could keep step with the program.
    fn next_period(&self, countdown: &Countdown) -> u64 {
        // Xorshift (Marsaglia, Journal of Statistical Software, 2003).
        let mut random = countdown.random.load(Ordering::Relaxed);
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        countdown.random.store(random, Ordering::Relaxed);
        let period = self.layout.period();
        let eighth = period / 8;
        period - eighth + random % (2 * eighth + 1)
    }

    /// Writes the record of an access for which [`Self::count`] said that it is due.
    pub fn sample(&self, access: &Access, cpu: u32) {
        let time_ns = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let record = record::sample(access, cpu, time_ns, self.layout.period());
        while self.writer.busy.swap(true, Ordering::Acquire) {
            std::hint::spin_loop();
        }
        self.push(&record, cpu, time_ns);
        self.writer.busy.store(false, Ordering::Release);
    }

    /// Writes a record, and before it how many had no room, as the kernel does. Under the lock.
    fn push(&self, record: &[u64; SAMPLE_WORDS], cpu: u32, time_ns: u64) {
        let untold = self.layout.word(Word::Untold);
        let lost = self.shared.load(untold).unwrap_or(0);
        let head = self.writer.head.load(Ordering::Relaxed);
        let capacity = self.layout.ring().1;
        // Acquire: what the consumer has read it has read before it moved the tail.
        let tail = self
            .shared
            .word(DATA_TAIL)
            .map_or(0, |tail| tail.load(Ordering::Acquire));
        let note = if lost > 0 { LOST_WORDS } else { 0 };
        let needed = ((SAMPLE_WORDS + note) * 8) as u64;
        // A tail that makes no sense leaves no room.
        if needed > capacity.saturating_sub(head.wrapping_sub(tail)) {
            self.shared.store(untold, lost.saturating_add(1));
            self.add(Word::Lost);
            return;
        }
        let mut at = head;
        if lost > 0 {
            at = self.write(at, &record::lost(lost, cpu, time_ns));
            self.shared.store(untold, 0);
        }
        at = self.write(at, record);
        self.writer.head.store(at, Ordering::Relaxed);
        if let Some(head) = self.shared.word(DATA_HEAD) {
            // Release: who sees the head sees the records.
            head.store(at, Ordering::Release);
        }
        self.add(Word::Records);
    }

    fn write(&self, at: u64, record: &[u64]) -> u64 {
        let (data, capacity) = self.layout.ring();
        let mut at = at;
        for word in record {
            self.shared.store(data + (at & (capacity - 1)), *word);
            at = at.wrapping_add(8);
        }
        at
    }

    fn add(&self, word: Word) {
        let at = self.layout.word(word);
        self.shared.store(at, self.shared.load(at).unwrap_or(0) + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::SAMPLE_TYPE;
    use tier_sys::perf::record::{Record, RecordFormat};
    use tier_sys::perf::ring::{Ring, RingMemory};

    const PERIOD: u64 = 64;

    /// A PMU, and the same file as the lab and a consumer see it.
    fn pmu(ring_bytes: u64) -> (Pmu, Shared, Layout) {
        let layout = Layout::new(ring_bytes, 256, 2, PERIOD).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(layout.file_bytes()).unwrap();
        let shared = Shared::map(&file, layout.file_bytes()).unwrap();
        layout.write(&shared).unwrap();
        let pmu = Pmu::new(Shared::map(&file, layout.file_bytes()).unwrap()).unwrap();
        (pmu, shared, layout)
    }

    fn access(physical: u64) -> Access {
        Access {
            rip: 0xffff_8000,
            linear: 0x7000_0000 + physical,
            physical,
            store: physical.is_multiple_of(16),
            size_shift: 3,
        }
    }

    /// The consumer's view, with plain loads and stores.
    struct Consumer<'a>(&'a Shared, Layout);

    impl RingMemory for Consumer<'_> {
        fn capacity(&self) -> usize {
            self.1.ring().1 as usize
        }
        fn head(&self) -> u64 {
            self.0.load(DATA_HEAD).unwrap()
        }
        fn tail(&self) -> u64 {
            self.0.load(DATA_TAIL).unwrap()
        }
        fn set_tail(&self, tail: u64) {
            self.0.store(DATA_TAIL, tail);
        }
        fn append_to(&self, offset: usize, len: usize, out: &mut Vec<u8>) {
            for word in (offset..offset + len).step_by(8) {
                out.extend(self.0.load(PAGE + word as u64).unwrap().to_ne_bytes());
            }
        }
    }

    /// The physical addresses of the samples in the ring, and how many were lost.
    fn drain(shared: &Shared, layout: Layout) -> (Vec<u64>, u64) {
        let format = RecordFormat::new(SAMPLE_TYPE, true).unwrap();
        let mut ring = Ring::new(Consumer(shared, layout), format);
        let (mut found, mut lost_in_all) = (Vec::new(), 0);
        let drained = ring.drain(|record| match record {
            Record::Sample(sample) => {
                let raw = sample.raw().unwrap();
                found.push(u64::from_ne_bytes(raw[52..60].try_into().unwrap()));
            }
            Record::Lost { lost, .. } => lost_in_all += lost,
            other => panic!("{other:?}"),
        });
        assert_eq!((drained.malformed, drained.overruns), (0, 0));
        (found, lost_in_all)
    }

    #[test]
    fn access_when_its_line_was_just_used_does_not_reach_memory() {
        let (pmu, _, _) = pmu(4096);

        assert!(pmu.reaches_memory(0, 0));
        assert!(!pmu.reaches_memory(0, 63), "the same line");
        assert!(pmu.reaches_memory(0, 64));
        assert!(pmu.reaches_memory(1, 0), "another CPU's cache");
        assert!(
            pmu.reaches_memory(0, 256 << 10),
            "it takes the first's place"
        );
        assert!(pmu.reaches_memory(0, 0));
        assert!(!pmu.reaches_memory(2, 0), "there is no such CPU");
    }

    #[test]
    fn count_when_pages_are_accessed_counts_each_for_its_cpu() {
        let (pmu, shared, layout) = pmu(4096);

        for n in 0..10 {
            let _ = pmu.count(1, 5 * 4096 + n * 8);
        }
        let _ = pmu.count(0, 0);

        let counter = |cpu: u64, page: u64| shared.load(layout.counters(cpu) + page * 8);
        assert_eq!(counter(1, 5), Some(10));
        assert_eq!(counter(0, 0), Some(1));
        assert_eq!(counter(0, 5), Some(0));
    }

    #[test]
    fn count_when_an_access_is_outside_of_memory_or_of_an_unknown_cpu_counts_nothing() {
        let (pmu, shared, layout) = pmu(4096);

        for _ in 0..1000 {
            assert!(!pmu.count(0, 256 * 4096));
            assert!(!pmu.count(2, 0));
            assert!(!pmu.count(u32::MAX, u64::MAX));
        }

        let end = layout.file_bytes();
        assert!(
            (layout.counters(0)..end)
                .step_by(8)
                .all(|at| shared.load(at) == Some(0))
        );
    }

    #[test]
    fn count_when_many_accesses_come_samples_one_in_a_period_with_jitter() {
        let (pmu, _, _) = pmu(4096);

        let due: Vec<u64> = (0..64_000).filter(|_| pmu.count(0, 0)).collect();

        let gaps: Vec<u64> = due.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!((950..1050).contains(&due.len()), "{}", due.len());
        // An eighth of 64 is 8.
        assert!(gaps.iter().all(|gap| (56..=72).contains(gap)), "{gaps:?}");
        assert!(gaps.iter().any(|gap| gap != &gaps[0]));
    }

    #[test]
    fn sample_when_the_ring_wraps_gives_every_record_in_order() {
        let (pmu, shared, layout) = pmu(4096);
        let mut next = 0;

        // 30 records of 104 bytes fit 4096 bytes and divide neither it nor its multiples.
        for _ in 0..20 {
            for n in 0..30 {
                pmu.sample(&access((next + n) * 4096), 0);
            }
            let (found, lost) = drain(&shared, layout);
            let expected: Vec<u64> = (next..next + 30).map(|page| page * 4096).collect();
            assert_eq!(found, expected);
            assert_eq!(lost, 0);
            next += 30;
        }

        assert_eq!(shared.load(layout.word(Word::Records)), Some(600));
    }

    #[test]
    fn sample_when_the_ring_is_full_says_with_the_next_record_how_many_were_lost() {
        let (pmu, shared, layout) = pmu(4096);

        for n in 0..100 {
            pmu.sample(&access(n * 4096), 1);
        }
        let (found, lost) = drain(&shared, layout);
        // 39 records of 104 bytes fit; the note comes with the next.
        assert_eq!((found.len(), lost), (39, 0));
        pmu.sample(&access(7), 1);

        assert_eq!(drain(&shared, layout), (vec![7], 61));
        assert_eq!(shared.load(layout.word(Word::Lost)), Some(61));
        assert_eq!(shared.load(layout.word(Word::Records)), Some(40));
    }

    #[test]
    fn sample_when_the_consumer_writes_nonsense_to_the_tail_stays_in_the_ring() {
        let (pmu, shared, layout) = pmu(4096);
        pmu.sample(&access(0), 0);

        for tail in [1 << 40, u64::MAX, 3] {
            shared.store(DATA_TAIL, tail);
            for _ in 0..100 {
                pmu.sample(&access(4096), 0);
            }
        }

        assert_eq!(
            shared.load(layout.word(Word::Magic)),
            Some(crate::layout::MAGIC)
        );
        assert_eq!(shared.load(layout.counters(0)), Some(0));
    }

    #[test]
    fn sample_when_threads_write_at_once_keeps_every_record_whole() {
        let (pmu, shared, layout) = pmu(1 << 20);

        std::thread::scope(|scope| {
            for cpu in 0..2 {
                let pmu = &pmu;
                scope.spawn(move || {
                    for n in 0..4000 {
                        pmu.sample(&access((n * 2 + u64::from(cpu)) * 8), cpu);
                    }
                });
            }
        });

        let (mut found, lost) = drain(&shared, layout);
        found.sort_unstable();
        assert_eq!(found, (0..8000).map(|n| n * 8).collect::<Vec<_>>());
        assert_eq!(lost, 0);
    }

    #[test]
    fn armed_when_a_cpus_bit_is_set_is_true_for_that_cpu() {
        let (pmu, shared, layout) = pmu(4096);
        assert!(!pmu.armed(0));

        shared.store(layout.word(Word::Armed), 0b10);

        assert!(pmu.armed(1));
        assert!(!pmu.armed(0));
    }

    #[test]
    fn open_when_the_file_is_none_of_ours_names_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8192).unwrap();

        let error = Pmu::open(file.path()).unwrap_err();

        let said = error.to_string();
        assert!(said.contains(file.path().to_str().unwrap()), "{said}");
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert!(why.contains("no layout"), "{why}");
    }
}
