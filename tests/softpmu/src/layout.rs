//! What lies where in the shared file.
//!
//! | at | what |
//! |---|---|
//! | 0 | one page: `perf_event_mmap_page` with head, tail, offset and size of the data |
//! | 4096 | the ring's data, 2ⁿ bytes |
//! | then | one page of words: what is counted, and the switch that starts it |
//! | then | for each emulated CPU a `u64` counter for each page of its memory |
//!
//! A consumer of records maps the first two only. The file is as long as a BAR may be: a power of two.

use crate::shared::Shared;

/// Bytes of a page, of the header pages too.
pub const PAGE: u64 = 4096;
/// As many emulated CPUs as there can be.
pub const MOST_CPUS: u64 = 64;
/// The first word of the page of words: "SOFTPMU1".
pub const MAGIC: u64 = u64::from_le_bytes(*b"SOFTPMU1");
const VERSION: u64 = 1;

// Offsets in perf_event_mmap_page (include/uapi/linux/perf_event.h).
/// Offset of the head: where the next record goes.
pub const DATA_HEAD: u64 = 1024;
/// Offset of the tail: what the consumer has read.
pub const DATA_TAIL: u64 = 1032;
const DATA_OFFSET: u64 = 1040;
const DATA_SIZE: u64 = 1048;

/// The page of words, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Word {
    /// [`MAGIC`], written last.
    Magic,
    /// Version of the layout.
    Version,
    /// The page frame of the first counter.
    FirstFrame,
    /// Counters of each CPU.
    Pages,
    /// Where the counters begin in the file.
    CountersOffset,
    /// How many CPUs are counted.
    Cpus,
    /// One access in so many becomes a record.
    Period,
    /// Records written.
    Records,
    /// Records for which the ring had no room.
    Lost,
    /// The CPUs whose accesses are counted and sampled now, a bit each.
    Armed,
    /// Records without room since the last that was written: told with the next.
    Untold,
}

/// The sizes that make up a shared file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    ring_bytes: u64,
    pages: u64,
    cpus: u64,
    period: u64,
}

/// Sizes that can't be, or a file that is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The ring's size is no power of two of at least a page.
    #[error("a ring of {0} bytes is no power of two of at least 4096")]
    Ring(u64),
    /// No CPUs, or too many.
    #[error("{0} CPUs are not between 1 and {MOST_CPUS}")]
    Cpus(u64),
    /// No memory, or more than the counters could be for.
    #[error("{0} pages are not between 1 and 2³²")]
    Pages(u64),
    /// The period must be long enough for its jitter and short enough for the register.
    #[error("a period of {0} accesses is not between 16 and 2²⁶")]
    Period(u64),
    /// The file does not begin as one of this version does.
    #[error("the shared file holds no layout of version {VERSION}")]
    Foreign,
    /// The file is shorter than its layout.
    #[error("the shared file has {found} bytes, its layout {needed}")]
    Short {
        /// Bytes mapped.
        found: u64,
        /// Bytes of the layout.
        needed: u64,
    },
}

impl Layout {
    /// A layout for a ring of `ring_bytes`, `pages` pages of memory from physical address 0 on, `cpus`
    /// CPUs, and one record in `period` accesses.
    ///
    /// # Errors
    /// [`LayoutError`] for sizes that can't be.
    pub fn new(ring_bytes: u64, pages: u64, cpus: u64, period: u64) -> Result<Self, LayoutError> {
        if !ring_bytes.is_power_of_two() || !(PAGE..=1 << 32).contains(&ring_bytes) {
            return Err(LayoutError::Ring(ring_bytes));
        }
        if !(1..=1 << 32).contains(&pages) {
            return Err(LayoutError::Pages(pages));
        }
        if !(1..=MOST_CPUS).contains(&cpus) {
            return Err(LayoutError::Cpus(cpus));
        }
        // IbsOpMaxCnt has 27 bits, the lowest four of which are zero.
        if !(16..1 << 26).contains(&period) {
            return Err(LayoutError::Period(period));
        }
        Ok(Self {
            ring_bytes,
            pages,
            cpus,
            period,
        })
    }

    /// The layout that a file says it has.
    ///
    /// # Errors
    /// [`LayoutError`] if it says none, an impossible one, or one that is longer than the file.
    pub fn read(shared: &Shared) -> Result<Self, LayoutError> {
        let ring_bytes = shared.load(DATA_SIZE).ok_or(LayoutError::Foreign)?;
        if !ring_bytes.is_power_of_two() || ring_bytes > 1 << 32 {
            return Err(LayoutError::Foreign);
        }
        let word = |word: Word| {
            shared
                .load(PAGE + ring_bytes + word as u64 * 8)
                .ok_or(LayoutError::Foreign)
        };
        if word(Word::Magic)? != MAGIC || word(Word::Version)? != VERSION {
            return Err(LayoutError::Foreign);
        }
        let layout = Self::new(
            ring_bytes,
            word(Word::Pages)?,
            word(Word::Cpus)?,
            word(Word::Period)?,
        )?;
        if layout.file_bytes() > shared.bytes() {
            return Err(LayoutError::Short {
                found: shared.bytes(),
                needed: layout.file_bytes(),
            });
        }
        Ok(layout)
    }

    /// Writes this layout into a new file of [`Self::file_bytes`] zeros; nothing is armed.
    ///
    /// # Errors
    /// [`LayoutError::Short`] if it is shorter.
    pub fn write(&self, shared: &Shared) -> Result<(), LayoutError> {
        if shared.bytes() < self.file_bytes() {
            return Err(LayoutError::Short {
                found: shared.bytes(),
                needed: self.file_bytes(),
            });
        }
        shared.store(DATA_OFFSET, PAGE);
        shared.store(DATA_SIZE, self.ring_bytes);
        for (word, value) in [
            (Word::Version, VERSION),
            (Word::Pages, self.pages),
            (Word::CountersOffset, self.counters(0)),
            (Word::Cpus, self.cpus),
            (Word::Period, self.period),
            (Word::Magic, MAGIC),
        ] {
            shared.store(self.word(word), value);
        }
        Ok(())
    }

    /// Where a word lies.
    #[must_use]
    pub const fn word(&self, word: Word) -> u64 {
        PAGE + self.ring_bytes + word as u64 * 8
    }

    /// Where the ring's data lies.
    #[must_use]
    pub const fn ring(&self) -> (u64, u64) {
        (PAGE, self.ring_bytes)
    }

    /// Bytes of what a consumer of records maps.
    #[must_use]
    pub const fn consumer_bytes(&self) -> u64 {
        PAGE + self.ring_bytes
    }

    /// Where the counters of a CPU begin.
    #[must_use]
    pub const fn counters(&self, cpu: u64) -> u64 {
        PAGE + self.ring_bytes + PAGE + cpu * self.pages * 8
    }

    /// Counters of each CPU.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// CPUs.
    #[must_use]
    pub const fn cpus(&self) -> u64 {
        self.cpus
    }

    /// One access in so many becomes a record.
    #[must_use]
    pub const fn period(&self) -> u64 {
        self.period
    }

    /// Bytes of the file: a power of two, as a BAR must be.
    #[must_use]
    pub const fn file_bytes(&self) -> u64 {
        self.counters(self.cpus).next_power_of_two()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_when_written_reads_back_equal() {
        let layout = Layout::new(1 << 20, 1000, 2, 512).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(layout.file_bytes()).unwrap();
        let shared = Shared::map(&file, layout.file_bytes()).unwrap();

        layout.write(&shared).unwrap();

        assert_eq!(Layout::read(&shared), Ok(layout));
        assert_eq!(shared.load(1040), Some(4096)); // data_offset
        assert_eq!(shared.load(1048), Some(1 << 20)); // data_size
        assert_eq!(layout.file_bytes(), 2 << 20);
    }

    #[test]
    fn layout_when_the_file_is_another_is_foreign() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let shared = Shared::map(&file, 8192).unwrap();

        assert_eq!(Layout::read(&shared), Err(LayoutError::Foreign));

        // A size of the ring that leads behind the end.
        shared.store(1048, 1 << 30);
        assert_eq!(Layout::read(&shared), Err(LayoutError::Foreign));
    }

    #[test]
    fn layout_when_sizes_can_not_be_is_refused() {
        assert_eq!(Layout::new(5000, 1, 1, 64), Err(LayoutError::Ring(5000)));
        assert_eq!(Layout::new(4096, 0, 1, 64), Err(LayoutError::Pages(0)));
        assert_eq!(Layout::new(4096, 1, 65, 64), Err(LayoutError::Cpus(65)));
        assert_eq!(Layout::new(4096, 1, 1, 3), Err(LayoutError::Period(3)));
    }
}
