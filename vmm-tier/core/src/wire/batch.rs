//! Batches of observations: single accesses, or regions with how often they were found used.
//!
//! ```text
//! clock, span          nanoseconds of the guest's monotonic clock: when it ended, how long was observed
//! drops                four sums, see `Drops`
//! form                 0 accesses, 1 regions
//! accesses:  period, count, then for each (zigzag(frame − frame before) << 2 | kind)
//! regions:   tests, count, then for each: frames between it and the one before, frames in it, times used
//! ```
//!
//! Addresses are 4 KiB frames: nothing finer is ever moved. Regions rise and can't overlap, by the way
//! they are written: so a batch speaks for each page at most once, whoever made it.

use super::{
    MAX_OBSERVATIONS, MAX_PAYLOAD, MAX_TESTS, WireError,
    drops::Drops,
    varint::{Reader, put, unzigzag, zigzag},
};
use crate::{
    addr::{BASE_PAGE, Gpa},
    sample::AccessKind,
};

/// The highest frame number, exclusive: physical addresses have at most 52 bits on `x86_64`.
const FRAMES: u64 = 1 << 40;
/// Room for what stands before the observations: eight numbers of at most ten bytes, and the form.
const PREAMBLE_BYTES: usize = 96;

/// A sampled access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The guest-physical address of its frame.
    pub gpa: Gpa,
    /// A read or a write, where known.
    pub kind: AccessKind,
}

/// A run of guest-physical memory, tested as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its first byte, a multiple of 4 KiB.
    pub start: Gpa,
    /// Its length in bytes, a multiple of 4 KiB and not zero.
    pub len: u64,
    /// The tests that found it used.
    pub used: u32,
}

/// What was observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// Single accesses, one sampled in about `period`.
    Accesses {
        /// Accesses for each sample; at least 1.
        period: u64,
        /// The samples, in any order.
        samples: Vec<Access>,
    },
    /// Regions by rising address, without overlap, also those never found used.
    Regions {
        /// How often each was tested; at least 1.
        tests: u32,
        /// The regions.
        regions: Vec<Region>,
    },
}

impl Observed {
    /// The number of observations.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::Accesses { samples, .. } => samples.len(),
            Self::Regions { regions, .. } => regions.len(),
        }
    }

    /// Whether nothing was observed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Observations of one stretch of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// When it ended, on the guest's monotonic clock, in nanoseconds.
    pub clock_ns: u64,
    /// How long was observed, in nanoseconds.
    pub span_ns: u64,
    /// What was lost or left out so far.
    pub drops: Drops,
    /// What was observed.
    pub observed: Observed,
}

const fn kind_number(kind: AccessKind) -> u64 {
    match kind {
        AccessKind::Any => 0,
        AccessKind::Load => 1,
        AccessKind::Store => 2,
    }
}

/// The bytes of a region in a payload, and the frame behind it.
fn put_region(out: &mut Vec<u8>, region: &Region, after: u64) -> Result<u64, WireError> {
    let (start, frames) = (region.start.0 / BASE_PAGE, region.len / BASE_PAGE);
    let gap = start
        .checked_sub(after)
        .ok_or(WireError::OutOfBounds("the order of regions"))?;
    let end = start.checked_add(frames).filter(|&end| end <= FRAMES);
    let end = end.filter(|_| frames > 0);
    let end = end.ok_or(WireError::OutOfBounds("a region's end"))?;
    put(out, gap);
    put(out, frames);
    put(out, u64::from(region.used));
    Ok(end)
}

fn put_access(out: &mut Vec<u8>, access: Access, before: u64) -> Result<u64, WireError> {
    let frame = access.gpa.0 / BASE_PAGE;
    if frame >= FRAMES {
        return Err(WireError::OutOfBounds("an address"));
    }
    // Both are below 2⁴⁰: neither the difference nor its shift can overflow.
    let step = zigzag(frame.cast_signed() - before.cast_signed());
    put(out, step << 2 | kind_number(access.kind));
    Ok(frame)
}

impl Batch {
    pub(super) fn put(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        if self.observed.len() > MAX_OBSERVATIONS {
            return Err(WireError::OutOfBounds("the number of observations"));
        }
        put(out, self.clock_ns);
        put(out, self.span_ns);
        self.drops.put(out);
        match &self.observed {
            Observed::Accesses { period, samples } => {
                if *period == 0 {
                    return Err(WireError::OutOfBounds("the period"));
                }
                out.push(0);
                put(out, *period);
                put(out, samples.len() as u64);
                let mut before = 0;
                for access in samples {
                    before = put_access(out, *access, before)?;
                }
            }
            Observed::Regions { tests, regions } => {
                if *tests == 0 || *tests > MAX_TESTS {
                    return Err(WireError::OutOfBounds("the number of tests"));
                }
                out.push(1);
                put(out, u64::from(*tests));
                put(out, regions.len() as u64);
                let mut after = 0;
                for region in regions {
                    if region.used > *tests {
                        return Err(WireError::OutOfBounds("a region's count"));
                    }
                    after = put_region(out, region, after)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let (clock_ns, span_ns) = (reader.number()?, reader.number()?);
        let drops = Drops::read(reader)?;
        let observed = match reader.byte()? {
            0 => read_accesses(reader)?,
            1 => read_regions(reader)?,
            _ => return Err(WireError::OutOfBounds("the form")),
        };
        Ok(Self {
            clock_ns,
            span_ns,
            drops,
            observed,
        })
    }
}

/// A count of things that take at least `least` bytes each: what is left must be able to hold them.
fn read_count(reader: &mut Reader<'_>, least: usize) -> Result<usize, WireError> {
    let what = "the number of observations";
    let count = reader.small(MAX_OBSERVATIONS as u32, what)? as usize;
    if count * least > reader.left() {
        return Err(WireError::Short);
    }
    Ok(count)
}

fn read_accesses(reader: &mut Reader<'_>) -> Result<Observed, WireError> {
    let period = reader.number()?;
    if period == 0 {
        return Err(WireError::OutOfBounds("the period"));
    }
    let count = read_count(reader, 1)?;
    let mut samples = Vec::with_capacity(count);
    let mut frame = 0_u64;
    for _ in 0..count {
        let word = reader.number()?;
        let kind = match word & 3 {
            0 => AccessKind::Any,
            1 => AccessKind::Load,
            2 => AccessKind::Store,
            _ => return Err(WireError::OutOfBounds("an access's kind")),
        };
        let next = frame.checked_add_signed(unzigzag(word >> 2));
        frame = next
            .filter(|&frame| frame < FRAMES)
            .ok_or(WireError::OutOfBounds("an address"))?;
        let gpa = Gpa(frame * BASE_PAGE);
        samples.push(Access { gpa, kind });
    }
    Ok(Observed::Accesses { period, samples })
}

fn read_regions(reader: &mut Reader<'_>) -> Result<Observed, WireError> {
    let tests = reader.small(MAX_TESTS, "the number of tests")?;
    if tests == 0 {
        return Err(WireError::OutOfBounds("the number of tests"));
    }
    let count = read_count(reader, 3)?;
    let mut regions = Vec::with_capacity(count);
    let mut after = 0_u64;
    for _ in 0..count {
        let gap = reader.at_most(FRAMES, "a region's start")?;
        let frames = reader.at_most(FRAMES, "a region's length")?;
        let used = reader.small(tests, "a region's count")?;
        let start = after + gap;
        // At most three times 2⁴⁰.
        after = start + frames;
        if frames == 0 || after > FRAMES {
            return Err(WireError::OutOfBounds("a region's end"));
        }
        regions.push(Region {
            start: Gpa(start * BASE_PAGE),
            len: frames * BASE_PAGE,
            used,
        });
    }
    Ok(Observed::Regions { tests, regions })
}

/// Collects observations until they fill a frame.
#[derive(Debug)]
pub struct BatchBuilder {
    observed: Observed,
    /// Bytes of the observations in a payload.
    scratch: Vec<u8>,
    bytes: usize,
    last: u64,
}

impl BatchBuilder {
    /// An empty batch of single accesses; a period of 0 counts as 1.
    #[must_use]
    pub fn accesses(period: u64) -> Self {
        Self::over(Observed::Accesses {
            period: period.max(1),
            samples: Vec::new(),
        })
    }

    /// An empty batch of regions; `tests` is brought within 1 and [`MAX_TESTS`].
    #[must_use]
    pub fn regions(tests: u32) -> Self {
        Self::over(Observed::Regions {
            tests: tests.clamp(1, MAX_TESTS),
            regions: Vec::new(),
        })
    }

    fn over(observed: Observed) -> Self {
        Self {
            observed,
            scratch: Vec::new(),
            bytes: 0,
            last: 0,
        }
    }

    fn take_in(&mut self, put: impl FnOnce(&mut Vec<u8>, u64) -> Result<u64, WireError>) -> bool {
        self.scratch.clear();
        let Ok(last) = put(&mut self.scratch, self.last) else {
            return false;
        };
        let bytes = self.bytes + self.scratch.len();
        if bytes > MAX_PAYLOAD - PREAMBLE_BYTES || self.observed.len() >= MAX_OBSERVATIONS {
            return false;
        }
        (self.bytes, self.last) = (bytes, last);
        true
    }

    /// Adds an access; `false` if there is no room, the address is out of bounds, or the batch is one
    /// of regions.
    pub fn push_access(&mut self, access: Access) -> bool {
        let access = Access {
            gpa: Gpa(access.gpa.0 / BASE_PAGE * BASE_PAGE),
            ..access
        };
        if !matches!(self.observed, Observed::Accesses { .. })
            || !self.take_in(|out, before| put_access(out, access, before))
        {
            return false;
        }
        if let Observed::Accesses { samples, .. } = &mut self.observed {
            samples.push(access);
        }
        true
    }

    /// Adds a region; its count is brought down to the number of tests. `false` if there is no room, it
    /// does not lie behind the one before, or the batch is one of accesses.
    pub fn push_region(&mut self, region: Region) -> bool {
        let Observed::Regions { tests, .. } = self.observed else {
            return false;
        };
        let region = Region {
            used: region.used.min(tests),
            ..region
        };
        if !self.take_in(|out, after| put_region(out, &region, after)) {
            return false;
        }
        if let Observed::Regions { regions, .. } = &mut self.observed {
            regions.push(region);
        }
        true
    }

    /// The number of observations so far.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.observed.len()
    }

    /// Whether there are none yet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.observed.is_empty()
    }

    /// The batch.
    #[must_use]
    pub fn finish(self, clock_ns: u64, span_ns: u64, drops: Drops) -> Batch {
        Batch {
            clock_ns,
            span_ns,
            drops,
            observed: self.observed,
        }
    }
}
