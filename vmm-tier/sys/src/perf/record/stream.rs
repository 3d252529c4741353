//! Records that stand one behind the other.

use perf_event_open_sys::bindings as abi;

use super::{HEADER_BYTES, Record, RecordError, RecordFormat, header, notice, parse, sample};

/// The records in `bytes`, one behind the other. A record that is too short for its fields yields an
/// error and is stepped over; after a size that can't be right the iterator ends.
pub struct Records<'a> {
    rest: &'a [u8],
    format: &'a RecordFormat,
}

impl<'a> Records<'a> {
    /// The records of a linear piece of a ring.
    #[must_use]
    pub fn new(bytes: &'a [u8], format: &'a RecordFormat) -> Self {
        Self {
            rest: bytes,
            format,
        }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match parse(self.rest, self.format) {
            Ok((record, size)) => {
                self.rest = &self.rest[size..];
                Some(Ok(record))
            }
            Err(error @ RecordError::Short { .. }) => {
                let (_, _, size) = header(self.rest).ok()?;
                self.rest = &self.rest[size..];
                Some(Err(error))
            }
            Err(error) => {
                self.rest = &[];
                Some(Err(error))
            }
        }
    }
}

/// What [`walk`] met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::perf) struct Walked {
    /// The bytes of the records that were stepped over.
    pub(in crate::perf) bytes: usize,
    /// Records handed on.
    pub(in crate::perf) records: u64,
    /// Records that were too short for their fields.
    pub(in crate::perf) malformed: u64,
    /// Why it ended before the end of the bytes, if it did.
    pub(in crate::perf) stopped: Option<RecordError>,
}

/// Hands the records of `bytes` on as [`Records`] does, and says where it ended. A loop of its own: samples
/// and notices are handed on at different places, so that for samples the compiler knows what it hands on.
#[inline]
pub(in crate::perf) fn walk(
    bytes: &[u8],
    format: &RecordFormat,
    mut take: impl FnMut(Record<'_>),
) -> Walked {
    let mut walked = Walked::default();
    while walked.bytes < bytes.len() {
        let rest = &bytes[walked.bytes..];
        let (kind, misc, size) = match header(rest) {
            Ok(header) => header,
            Err(error) => {
                walked.stopped = Some(error);
                break;
            }
        };
        let body = &rest[HEADER_BYTES..size];
        let is_whole = if kind == abi::PERF_RECORD_SAMPLE {
            let sample = sample(body, misc, format);
            sample.map(|sample| take(Record::Sample(sample))).is_some()
        } else {
            notice(body, kind, format).map(&mut take).is_some()
        };
        walked.records += u64::from(is_whole);
        walked.malformed += u64::from(!is_whole);
        walked.bytes += size;
    }
    walked
}
