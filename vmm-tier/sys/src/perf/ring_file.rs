//! A perf ring in a file: what a software PMU writes for an emulated host, byte for byte as the kernel
//! writes a ring in memory.
//!
//! The file begins with a control page (`perf_event_mmap_page`), whose `data_offset` and `data_size` say
//! where the records lie. What may lie behind them is never mapped. There is nothing to wait on: the
//! reader looks at the head from time to time.

use std::{
    fs::File,
    io,
    mem::offset_of,
    path::{Path, PathBuf},
};

use perf_event_open_sys::bindings::perf_event_mmap_page;

use super::{
    record::{RecordFormat, UnsupportedFields},
    ring::{MappedRing, Ring},
};

/// The largest data area that is mapped: far more than a reader that looks ten times a second needs.
const MAX_DATA: u64 = 1 << 30;

/// The file can't be used as a ring.
#[derive(Debug, thiserror::Error)]
pub enum RingFileError {
    /// It can't be opened for reading and writing.
    #[error("{} can't be opened for reading and writing", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It can't be mapped.
    #[error("{} can't be mapped", path.display())]
    Map {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// What its first page says can't be right.
    #[error(
        "{} is no perf ring: {what}; is the software PMU's ring of this host there, and does it run?",
        path.display()
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The record parser lacks a field.
    #[error(transparent)]
    Fields(#[from] UnsupportedFields),
}

/// Opens the ring in `path`, whose samples have the fields `sample_type` and whose other records the
/// trailer of `sample_id_all`. Sizes are read once and checked; whatever the producer writes there later
/// has no effect.
///
/// A *regular* file must not be cut short while it is mapped: the kernel ends whoever reads behind its end.
/// The memory of a device has no such danger.
///
/// # Errors
/// [`RingFileError`], whose text says what is wrong with which file.
pub fn open(path: &Path, sample_type: u64) -> Result<Ring<MappedRing>, RingFileError> {
    let format = RecordFormat::new(sample_type, true)?;
    let opened = |source| RingFileError::Open {
        path: path.to_owned(),
        source,
    };
    let mapped = |errno: rustix::io::Errno| RingFileError::Map {
        path: path.to_owned(),
        source: errno.into(),
    };
    let wrong = |what: String| RingFileError::Layout {
        path: path.to_owned(),
        what,
    };
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(opened)?;
    let length = file.metadata().map_err(opened)?.len();
    let page = rustix::param::page_size() as u64;
    if length < page {
        return Err(wrong(format!("it has {length} bytes and no control page")));
    }
    let (offset, size) = {
        let control = MappedRing::map_control(&file).map_err(mapped)?;
        (
            control.control_value(offset_of!(perf_event_mmap_page, data_offset)),
            control.control_value(offset_of!(perf_event_mmap_page, data_size)),
        )
    };
    let capacity = check(page, length, offset, size).map_err(wrong)?;
    let memory = MappedRing::map_data(&file, capacity).map_err(mapped)?;
    Ok(Ring::new(memory, format))
}

/// The bytes of the data area, if it is one and lies within the file.
fn check(page: u64, length: u64, offset: u64, size: u64) -> Result<usize, String> {
    if offset != page {
        return Err(format!("its data begins at {offset} and not at {page}"));
    }
    if !size.is_power_of_two() || size < page || size > MAX_DATA {
        return Err(format!(
            "its data area has {size} bytes, which is no power of two from {page} to {MAX_DATA}"
        ));
    }
    if length - page < size {
        return Err(format!(
            "its data area of {size} bytes reaches over its end at {length}"
        ));
    }
    usize::try_from(size).map_err(|_| "its data area is too large".to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use perf_event_open_sys::bindings as abi;

    use super::*;
    use crate::perf::record::Record;

    const FIELDS: u64 = abi::PERF_SAMPLE_TIME as u64;
    const DATA: u64 = 8192;

    struct Producer(tempfile::NamedTempFile);

    impl Producer {
        /// A file of `length` bytes whose control page states this data area.
        fn new(length: u64, offset: u64, size: u64) -> Self {
            let producer = Self(tempfile::NamedTempFile::new().unwrap());
            producer.0.as_file().set_len(length).unwrap();
            if length >= 4096 {
                producer.set(offset_of!(perf_event_mmap_page, data_offset), offset);
                producer.set(offset_of!(perf_event_mmap_page, data_size), size);
            }
            producer
        }

        fn set(&self, at: usize, word: u64) {
            let file = self.0.as_file();
            file.write_all_at(&word.to_ne_bytes(), at as u64).unwrap();
        }

        fn get(&self, at: usize) -> u64 {
            let mut word = [0; 8];
            self.0
                .as_file()
                .read_exact_at(&mut word, at as u64)
                .unwrap();
            u64::from_ne_bytes(word)
        }

        /// A sample of 16 bytes with this time.
        fn sample(&self, position: u64, time: u64) {
            let header = u64::from(abi::PERF_RECORD_SAMPLE) | 16 << 48;
            let at = usize::try_from(4096 + position % DATA).unwrap();
            self.set(at, header);
            self.set(at + 8, time);
        }
    }

    fn head() -> usize {
        offset_of!(perf_event_mmap_page, data_head)
    }

    fn tail() -> usize {
        offset_of!(perf_event_mmap_page, data_tail)
    }

    #[test]
    fn ring_when_a_producer_writes_into_the_file_delivers_and_frees_it() {
        // Behind the data lies something that is none of the reader's business.
        let producer = Producer::new(4096 + DATA + 4096, 4096, DATA);
        let mut ring = open(producer.0.path(), FIELDS).unwrap();
        let mut next = 0;

        for round in 1..=10 {
            for time in next..next + 300 {
                producer.sample(time * 16, time);
            }
            producer.set(head(), (next + 300) * 16);
            let mut found = Vec::new();
            let drained = ring.drain(|record| {
                if let Record::Sample(sample) = record {
                    found.extend(sample.time());
                }
            });
            assert_eq!(
                found,
                (next..next + 300).collect::<Vec<_>>(),
                "round {round}"
            );
            assert_eq!((drained.records, drained.malformed), (300, 0));
            next += 300;
            assert_eq!(producer.get(tail()), next * 16);
        }
    }

    #[test]
    fn ring_when_sizes_change_after_it_was_opened_keeps_the_checked_ones() {
        let producer = Producer::new(4096 + DATA, 4096, DATA);
        let mut ring = open(producer.0.path(), FIELDS).unwrap();
        producer.set(offset_of!(perf_event_mmap_page, data_size), 1 << 40);
        producer.set(head(), DATA + 8);

        let drained = ring.drain(|_| {});

        assert_eq!((drained.overruns, drained.records), (1, 0));
        assert_eq!(producer.get(tail()), DATA + 8);
    }

    #[test]
    fn open_when_the_control_page_can_not_be_right_says_what_is_wrong() {
        let cases = [
            (100, 0, 0, "no control page"),
            (4096, 4096, DATA, "reaches over its end"),
            (4096 + DATA - 1, 4096, DATA, "reaches over its end"),
            (4096 + DATA, 0, DATA, "begins at 0"),
            (4096 + DATA, 4096, 0, "no power of two"),
            (4096 + DATA, 4096, 6000, "no power of two"),
            (4096 + DATA, 4096, 2048, "no power of two"),
            (4096 + DATA, 4096, 1 << 63, "no power of two"),
        ];
        for (length, offset, size, what) in cases {
            let producer = Producer::new(length, offset, size);
            let error = open(producer.0.path(), FIELDS).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        let missing = open(Path::new("/nonexistent/ring"), FIELDS).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/ring"));
    }
}
