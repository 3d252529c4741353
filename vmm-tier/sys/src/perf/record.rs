//! The records of a perf ring: a pure parser over bytes.
//!
//! Field orders are those of `include/uapi/linux/perf_event.h` (`perf_event_type`). All numbers are
//! in the machine's byte order. Whatever the bytes are, parsing ends and never panics.

mod stream;

use perf_event_open_sys::bindings as abi;

pub use self::stream::Records;
pub(super) use self::stream::walk;

/// The bytes of a record's header: type u32, misc u16, size u16.
pub const HEADER_BYTES: usize = 8;

/// The sample fields that this parser knows; the rest (read groups, call chains, branch stacks,
/// registers, stacks, AUX) has variable layouts that vmm-tier never asks for.
const KNOWN_FIELDS: u64 = (abi::PERF_SAMPLE_IDENTIFIER
    | abi::PERF_SAMPLE_IP
    | abi::PERF_SAMPLE_TID
    | abi::PERF_SAMPLE_TIME
    | abi::PERF_SAMPLE_ADDR
    | abi::PERF_SAMPLE_ID
    | abi::PERF_SAMPLE_STREAM_ID
    | abi::PERF_SAMPLE_CPU
    | abi::PERF_SAMPLE_PERIOD
    | abi::PERF_SAMPLE_RAW
    | abi::PERF_SAMPLE_WEIGHT
    | abi::PERF_SAMPLE_WEIGHT_STRUCT
    | abi::PERF_SAMPLE_DATA_SRC
    | abi::PERF_SAMPLE_TRANSACTION
    | abi::PERF_SAMPLE_PHYS_ADDR
    | abi::PERF_SAMPLE_CGROUP
    | abi::PERF_SAMPLE_DATA_PAGE_SIZE
    | abi::PERF_SAMPLE_CODE_PAGE_SIZE) as u64;

/// What a record's bytes hold, as the event was asked to write them, and where each field lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordFormat {
    sample_type: u64,
    sample_id_all: bool,
    /// Fields before the raw data, from the body's start; their order is the kernel's.
    before: Layout<9>,
    /// Fields behind the raw data, from its end.
    behind: Layout<7>,
}

/// Where fields of eight bytes lie that stand one behind the other, those that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layout<const N: usize> {
    /// Bytes from the first field on; `ABSENT` for those that are not there.
    offsets: [u8; N],
    bytes: u8,
}

const ABSENT: u8 = u8::MAX;

impl<const N: usize> Layout<N> {
    fn new(sample_type: u64, fields: [abi::perf_event_sample_format; N]) -> Self {
        let mut bytes = 0;
        let offsets = fields.map(|field| {
            if sample_type & u64::from(field) == 0 {
                return ABSENT;
            }
            bytes += 8;
            bytes - 8
        });
        Self { offsets, bytes }
    }

    /// The field of this index; `None` if it is not there.
    #[inline]
    fn word(&self, fields: &[u8], index: usize) -> Option<u64> {
        let offset = self.offsets[index];
        if offset == ABSENT {
            return None;
        }
        let bytes = fields.get(usize::from(offset)..)?.first_chunk()?;
        Some(u64::from_ne_bytes(*bytes))
    }
}

/// A `sample_type` with fields that this parser does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sample fields {0:#x} are not supported")]
pub struct UnsupportedFields(pub u64);

impl RecordFormat {
    /// The format of an event opened with this `sample_type` and `sample_id_all`.
    ///
    /// # Errors
    /// [`UnsupportedFields`] with the bits that the parser does not know.
    pub fn new(sample_type: u64, sample_id_all: bool) -> Result<Self, UnsupportedFields> {
        let unknown = sample_type & !KNOWN_FIELDS;
        if unknown != 0 {
            return Err(UnsupportedFields(unknown));
        }
        let before = [
            abi::PERF_SAMPLE_IDENTIFIER,
            abi::PERF_SAMPLE_IP,
            abi::PERF_SAMPLE_TID,
            abi::PERF_SAMPLE_TIME,
            abi::PERF_SAMPLE_ADDR,
            abi::PERF_SAMPLE_ID,
            abi::PERF_SAMPLE_STREAM_ID,
            abi::PERF_SAMPLE_CPU,
            abi::PERF_SAMPLE_PERIOD,
        ];
        let behind = [
            // At most one of the two may be asked for; they have the same size.
            abi::PERF_SAMPLE_WEIGHT | abi::PERF_SAMPLE_WEIGHT_STRUCT,
            abi::PERF_SAMPLE_DATA_SRC,
            abi::PERF_SAMPLE_TRANSACTION,
            abi::PERF_SAMPLE_PHYS_ADDR,
            abi::PERF_SAMPLE_CGROUP,
            abi::PERF_SAMPLE_DATA_PAGE_SIZE,
            abi::PERF_SAMPLE_CODE_PAGE_SIZE,
        ];
        Ok(Self {
            sample_type,
            sample_id_all,
            before: Layout::new(sample_type, before),
            behind: Layout::new(sample_type, behind),
        })
    }

    #[inline]
    fn has(&self, field: abi::perf_event_sample_format) -> bool {
        self.sample_type & u64::from(field) != 0
    }
}

/// Latency weights of a sample: `WEIGHT` fills `var1` (and the rest with its upper bits),
/// `WEIGHT_STRUCT` has the three parts of `perf_sample_weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// The lower 32 bits: the access latency in cycles on Intel.
    pub var1: u32,
    /// Bits 32 to 47: the instruction latency on Intel.
    pub var2: u16,
    /// Bits 48 to 63.
    pub var3: u16,
}

/// A `PERF_RECORD_SAMPLE`: the record's bytes, whose length was checked against its fields. A field is
/// `None` where the event did not ask for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sample<'a> {
    /// `perf_event_header.misc`: the CPU mode and flags.
    pub misc: u16,
    format: &'a RecordFormat,
    before: &'a [u8],
    raw: Option<&'a [u8]>,
    behind: &'a [u8],
}

impl std::fmt::Debug for Sample<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Sample");
        shown.field("misc", &self.misc).field("time", &self.time());
        shown.field("addr", &self.addr()).field("raw", &self.raw);
        shown.finish_non_exhaustive()
    }
}

/// The first and the second half of a word as it lies in memory.
#[inline]
fn halves(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
    )
}

macro_rules! words {
    ($($place:ident $index:literal $name:ident: $doc:literal,)*) => {
        $(
            #[doc = $doc]
            #[must_use]
            #[inline]
            pub fn $name(&self) -> Option<u64> {
                self.format.$place.word(self.$place, $index)
            }
        )*
    };
}

impl<'a> Sample<'a> {
    words! {
        before 0 identifier: "The event's id, where it can be found without knowing the event.",
        before 1 ip: "The instruction's address.",
        before 3 time: "When, on the event's clock, in nanoseconds.",
        before 4 addr: "The data address, or what the event calls so.",
        before 5 id: "The id of the event or of its group's leader.",
        before 6 stream_id: "The event's own id.",
        before 8 period: "Events since the last sample.",
        behind 1 data_src: "Where the data came from: `perf_mem_data_src`.",
        behind 2 transaction: "Flags of a transaction.",
        behind 3 phys_addr: "The physical address of the data.",
        behind 4 cgroup: "The control group's id.",
        behind 5 data_page_size: "The size of the data's page, in bytes.",
        behind 6 code_page_size: "The size of the instruction's page, in bytes.",
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.format
            .before
            .word(self.before, 2)
            .map(|word| halves(word).0)
    }

    /// The thread.
    #[must_use]
    pub fn tid(&self) -> Option<u32> {
        self.format
            .before
            .word(self.before, 2)
            .map(|word| halves(word).1)
    }

    /// The CPU.
    #[must_use]
    pub fn cpu(&self) -> Option<u32> {
        self.format
            .before
            .word(self.before, 7)
            .map(|word| halves(word).0)
    }

    /// The raw data: a tracepoint's fields, or the registers of IBS.
    #[must_use]
    #[inline]
    pub fn raw(&self) -> Option<&'a [u8]> {
        self.raw
    }

    /// Latencies.
    #[must_use]
    pub fn weight(&self) -> Option<Weight> {
        self.format.behind.word(self.behind, 0).map(|word| Weight {
            // Truncation is what is meant: the parts of a word.
            var1: word as u32,
            var2: (word >> 32) as u16,
            var3: (word >> 48) as u16,
        })
    }
}

/// The trailer that `sample_id_all` puts on every record that is no sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named for the fields of perf_event_open(2)")]
pub struct SampleId {
    pub pid: Option<u32>,
    pub tid: Option<u32>,
    pub time: Option<u64>,
    pub id: Option<u64>,
    pub stream_id: Option<u64>,
    pub cpu: Option<u32>,
    pub identifier: Option<u64>,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// What the event is for.
    Sample(Sample<'a>),
    /// The ring was full: this many records were not written since the last one.
    Lost {
        /// The event that lost them.
        id: u64,
        /// How many.
        lost: u64,
        /// The trailer.
        sample_id: SampleId,
    },
    /// Hardware samples were dropped before they reached the ring.
    LostSamples {
        /// How many.
        lost: u64,
        /// The trailer.
        sample_id: SampleId,
    },
    /// A thread ended.
    Exit {
        /// Its process.
        pid: u32,
        /// The thread.
        tid: u32,
        /// When, on the event's clock.
        time: u64,
        /// The trailer.
        sample_id: SampleId,
    },
    /// The kernel stopped the event until the next tick: it came too often.
    Throttle {
        /// When, on the event's clock.
        time: u64,
        /// The event.
        id: u64,
        /// The trailer.
        sample_id: SampleId,
    },
    /// The kernel let the event run again.
    Unthrottle {
        /// When, on the event's clock.
        time: u64,
        /// The event.
        id: u64,
        /// The trailer.
        sample_id: SampleId,
    },
    /// A record of a type that is of no use here, skipped.
    Other {
        /// `perf_event_header.type`.
        kind: u32,
    },
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Fewer bytes are left than a header has.
    #[error("{0} bytes are too few for a record header")]
    NoHeader(usize),
    /// The size is less than a header, no multiple of eight, or more than there is. Where the next
    /// record begins can't be known.
    #[error("record size {size} does not fit the {rest} bytes left")]
    Size {
        /// The size that the header states.
        size: usize,
        /// The bytes left.
        rest: usize,
    },
    /// The record ends before its fields do. The next record can still be found.
    #[error("record of type {kind} is too short for its fields")]
    Short {
        /// `perf_event_header.type`.
        kind: u32,
    },
}

impl RecordError {
    /// The bytes that are needed to go on, if the record may only be cut off.
    pub(super) fn needs(self) -> Option<usize> {
        match self {
            Self::NoHeader(_) => Some(HEADER_BYTES),
            Self::Size { size, rest } if size > rest && size.is_multiple_of(8) => Some(size),
            Self::Size { .. } | Self::Short { .. } => None,
        }
    }
}

/// Takes fields off the front of a record's body.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*head))
    }

    fn u64(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*head))
    }

    /// Two u32 in one: pid and tid, or cpu and padding.
    fn pair(&mut self) -> Option<(u32, u32)> {
        Some((self.u32()?, self.u32()?))
    }
}

/// The length of the record at the front of `bytes`, and its type and misc.
#[inline]
fn header(bytes: &[u8]) -> Result<(u32, u16, usize), RecordError> {
    let Some(word) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(RecordError::NoHeader(bytes.len()));
    };
    // One load for all three.
    let (kind, rest) = halves(u64::from_ne_bytes(*word));
    let [m, n, s, t] = rest.to_ne_bytes();
    let (misc, size) = (u16::from_ne_bytes([m, n]), u16::from_ne_bytes([s, t]));
    let size = usize::from(size);
    // The kernel pads every record to eight bytes (perf_output_begin works on aligned sizes).
    if size < HEADER_BYTES || size > bytes.len() || !size.is_multiple_of(8) {
        return Err(RecordError::Size {
            size,
            rest: bytes.len(),
        });
    }
    Ok((kind, misc, size))
}

/// The record at the front of `bytes`, and how many bytes it takes.
///
/// # Errors
/// [`RecordError`]; after [`RecordError::Short`] the record's own length still stands in its header
/// and [`Records`] goes on behind it.
#[inline]
pub fn parse<'a>(
    bytes: &'a [u8],
    format: &'a RecordFormat,
) -> Result<(Record<'a>, usize), RecordError> {
    let (kind, misc, size) = header(bytes)?;
    let body = &bytes[HEADER_BYTES..size];
    let record = match kind {
        abi::PERF_RECORD_SAMPLE => sample(body, misc, format).map(Record::Sample),
        kind => notice(body, kind, format),
    };
    Ok((record.ok_or(RecordError::Short { kind })?, size))
}

#[inline]
fn sample<'a>(body: &'a [u8], misc: u16, format: &'a RecordFormat) -> Option<Sample<'a>> {
    let (before, mut behind) = body.split_at_checked(usize::from(format.before.bytes))?;
    let mut raw = None;
    if format.has(abi::PERF_SAMPLE_RAW) {
        // The size counts the padding behind the data, so that size and data end on eight bytes.
        let (size, rest) = behind.split_first_chunk()?;
        let size = usize::try_from(u32::from_ne_bytes(*size)).ok()?;
        let (data, rest) = rest.split_at_checked(size)?;
        (raw, behind) = (Some(data), rest);
    }
    if behind.len() < usize::from(format.behind.bytes) {
        return None;
    }
    Some(Sample {
        misc,
        format,
        before,
        raw,
        behind,
    })
}

/// The records that are no samples: those by which the kernel speaks of the event itself.
#[cold]
fn notice<'a>(body: &[u8], kind: u32, format: &RecordFormat) -> Option<Record<'a>> {
    let mut at = Cursor(body);
    Some(match kind {
        abi::PERF_RECORD_LOST => Record::Lost {
            id: at.u64()?,
            lost: at.u64()?,
            sample_id: trailer(&mut at, format)?,
        },
        abi::PERF_RECORD_LOST_SAMPLES => Record::LostSamples {
            lost: at.u64()?,
            sample_id: trailer(&mut at, format)?,
        },
        abi::PERF_RECORD_EXIT => {
            // pid, ppid, tid, ptid
            let ((pid, _), (tid, _)) = (at.pair()?, at.pair()?);
            Record::Exit {
                pid,
                tid,
                time: at.u64()?,
                sample_id: trailer(&mut at, format)?,
            }
        }
        abi::PERF_RECORD_THROTTLE | abi::PERF_RECORD_UNTHROTTLE => {
            let (time, id, _stream_id) = (at.u64()?, at.u64()?, at.u64()?);
            let sample_id = trailer(&mut at, format)?;
            match kind {
                abi::PERF_RECORD_THROTTLE => Record::Throttle {
                    time,
                    id,
                    sample_id,
                },
                _ => Record::Unthrottle {
                    time,
                    id,
                    sample_id,
                },
            }
        }
        kind => Record::Other { kind },
    })
}

fn trailer(at: &mut Cursor<'_>, format: &RecordFormat) -> Option<SampleId> {
    let mut id = SampleId::default();
    if !format.sample_id_all {
        return Some(id);
    }
    if format.has(abi::PERF_SAMPLE_TID) {
        let (pid, tid) = at.pair()?;
        (id.pid, id.tid) = (Some(pid), Some(tid));
    }
    if format.has(abi::PERF_SAMPLE_TIME) {
        id.time = Some(at.u64()?);
    }
    if format.has(abi::PERF_SAMPLE_ID) {
        id.id = Some(at.u64()?);
    }
    if format.has(abi::PERF_SAMPLE_STREAM_ID) {
        id.stream_id = Some(at.u64()?);
    }
    if format.has(abi::PERF_SAMPLE_CPU) {
        id.cpu = Some(at.pair()?.0);
    }
    if format.has(abi::PERF_SAMPLE_IDENTIFIER) {
        id.identifier = Some(at.u64()?);
    }
    Some(id)
}
