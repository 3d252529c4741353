//! What stands at the beginning and at the end of a trace.

use tier_core::{
    sample::{SampleAccount, SourceKind},
    wire::varint::{Reader, put, put_text},
};

use super::{
    FOOTER_BYTES, HEAD_BYTES, MAX_CONTENT, MAX_MARKS, TraceError,
    event::{self, Mark},
    ranges::{self, TraceRange},
};

/// Most bytes of an end block: a thousand marks of 140 bytes, ranges of at most 21, and sums.
const MAX_END: usize = HEAD_BYTES + MAX_CONTENT;
const FOOTER_MAGIC: [u8; 4] = *b"vmTe";

/// Who made a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A source that watched a guest: what it delivers is samples.
    Source(SourceKind),
    /// Another format, such as `lackey`, or a generator: every access.
    Import(String),
}

impl Origin {
    /// The word that people read.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Source(kind) => kind.name(),
            Self::Import(name) => name,
        }
    }
}

/// What is known before the first access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who made it.
    pub origin: Origin,
    /// The VM or the program.
    pub name: String,
    /// When it was begun: seconds since 1970, 0 if that is not known.
    pub started: u64,
    /// The accesses that one record stands for; 1 where every access is recorded. A source may change
    /// its period later: each [`BatchEnd`](super::BatchEnd) says its own.
    pub period: u64,
    /// How often a page is tested in a batch, for a source that tests pages; else 0.
    pub tests: u32,
    /// The guest's memory by rising address, without overlap; empty where it is not known.
    pub ranges: Vec<TraceRange>,
}

impl Header {
    /// The header of an import of every access.
    #[must_use]
    pub fn import(format: &str, name: &str) -> Self {
        Self {
            origin: Origin::Import(format.to_owned()),
            name: name.to_owned(),
            started: 0,
            period: 1,
            tests: 0,
            ranges: Vec::new(),
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) -> Result<(), TraceError> {
        ranges::check(&self.ranges).map_err(TraceError::OutOfBounds)?;
        match &self.origin {
            Origin::Source(kind) => put(out, 1 + event::source_number(*kind)),
            Origin::Import(name) => {
                put(out, 0);
                put_text(out, &event::plain(name));
            }
        }
        put_text(out, &event::plain(&self.name));
        put(out, self.started);
        put(out, self.period.max(1));
        put(out, u64::from(self.tests));
        ranges::put_all(out, &self.ranges);
        Ok(())
    }

    /// Reads the content of the header block at `offset`.
    pub(super) fn read(content: &[u8], offset: u64) -> Result<Self, TraceError> {
        let of = |error| TraceError::of(&error, offset);
        let corrupt = |what| TraceError::corrupt(offset, what);
        let mut reader = Reader::new(content);
        let origin = match reader.number().map_err(of)? {
            0 => Origin::Import(reader.text().map_err(of)?),
            number => event::source(number - 1)
                .ok_or_else(|| corrupt("there is no such source"))?
                .map(Origin::Source)
                .map_err(|name| TraceError::SourceGone { name })?,
        };
        let name = reader.text().map_err(of)?;
        let started = reader.number().map_err(of)?;
        let period = reader.number().map_err(of)?.max(1);
        let tests = reader.small(u32::MAX, "the number of tests").map_err(of)?;
        let ranges = ranges::read_all(&mut reader).map_err(of)?;
        reader.finish().map_err(of)?;
        Ok(Self {
            origin,
            name,
            started,
            period,
            tests,
            ranges,
        })
    }
}

/// What is known after the last access.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Accesses in all.
    pub accesses: u64,
    /// Data blocks.
    pub blocks: u64,
    /// Batches of a live source.
    pub batches: u64,
    /// The times of the first and the last access, in nanoseconds; both 0 without any.
    pub first: u64,
    /// See [`Self::first`].
    pub last: u64,
    /// What sources lost and dropped, in all batches.
    pub account: SampleAccount,
    /// Accesses that were not written as they lie outside the guest's memory.
    pub outside: u64,
    /// The marks, in order of time.
    pub marks: Vec<Mark>,
    /// Memory that the guest was given while it was recorded: what the header does not name of it.
    pub plugged: Vec<TraceRange>,
}

impl End {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        for number in [
            self.accesses,
            self.blocks,
            self.batches,
            self.first,
            self.last,
            self.outside,
        ] {
            put(out, number);
        }
        event::put_account(out, &self.account);
        put(out, self.marks.len() as u64);
        for mark in &self.marks {
            mark.put(out);
        }
        // Most guests are given none: nothing then says so.
        if !self.plugged.is_empty() {
            ranges::put_all(out, &self.plugged);
        }
    }

    pub(super) fn read(content: &[u8], offset: u64) -> Result<Self, TraceError> {
        let of = |error| TraceError::of(&error, offset);
        let mut reader = Reader::new(content);
        let mut number = || reader.number().map_err(of);
        let mut end = Self {
            accesses: number()?,
            blocks: number()?,
            batches: number()?,
            first: number()?,
            last: number()?,
            outside: number()?,
            ..Self::default()
        };
        end.account = event::read_account(&mut reader, u64::MAX).map_err(of)?;
        let count = reader
            .small(MAX_MARKS as u32, "the number of marks")
            .map_err(of)?;
        for _ in 0..count {
            end.marks.push(Mark::read(&mut reader).map_err(of)?);
        }
        if reader.left() > 0 {
            end.plugged = ranges::read_all(&mut reader).map_err(of)?;
        }
        reader.finish().map_err(of)?;
        Ok(end)
    }
}

/// The bytes behind an end block of `length` bytes.
pub(super) fn footer(length: usize) -> [u8; FOOTER_BYTES] {
    let mut footer = [0; FOOTER_BYTES];
    footer[..4].copy_from_slice(&FOOTER_MAGIC);
    // An end block is never longer than a block.
    footer[4..8].copy_from_slice(&(length as u32).to_le_bytes());
    let check = crc32fast::hash(&footer[..8]);
    footer[8..].copy_from_slice(&check.to_le_bytes());
    footer
}

/// Bytes of the end block before a file's last bytes, if those are a footer: so that what stands there
/// can be had without reading the rest.
#[must_use]
pub fn find_end(last: &[u8; FOOTER_BYTES]) -> Option<usize> {
    let mut word = [0; 4];
    word.copy_from_slice(&last[4..8]);
    let length = u32::from_le_bytes(word) as usize;
    let is_one = (HEAD_BYTES..=MAX_END).contains(&length) && *last == footer(length);
    is_one.then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_when_its_source_is_gone_names_it() {
        let mut header = Header::import("csv", "vm");
        header.origin = Origin::Source(SourceKind::Damon);
        let mut content = Vec::new();
        header.put(&mut content).unwrap();
        // The format's numbers of kvm-faults and host-faults, 0 being an import.
        for (number, name) in [(5, "kvm-faults"), (6, "host-faults")] {
            content[0] = number;
            let error = Header::read(&content, 12).unwrap_err();
            assert_eq!(error, TraceError::SourceGone { name });
            assert!(error.to_string().contains(name), "{error}");
        }
        content[0] = 7;
        let recorded = Header::read(&content, 12).unwrap().origin;
        assert_eq!(recorded, Origin::Source(SourceKind::Replay));
    }
}
