//! Recordings of this program.

use std::{
    fmt,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::{Counts, Format, Options, TraceError, TraceInfo, format::Input};
use crate::{
    format::{
        self, Block, Decoder, End, FOOTER_BYTES, Found, HEAD_BYTES, Header, MAX_CONTENT, TraceRange,
    },
    machine::Access,
};

/// Accesses handed on at a time.
const BLOCK: usize = 8192;

/// A recording of this program, read block by block.
pub struct Native {
    path: PathBuf,
    input: Input,
    decoder: Decoder,
    bytes: Vec<u8>,
    block: Block,
    /// Accesses of the block that were handed on.
    given: usize,
    ranges: Vec<TraceRange>,
    partial: bool,
    cut: Option<format::TraceError>,
    ended: bool,
    counts: Counts,
}

impl fmt::Debug for Native {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Native")
            .field("path", &self.path)
            .field("offset", &self.decoder.offset())
            .finish_non_exhaustive()
    }
}

impl Native {
    /// Reads the header, and looks at the end if there is one to be looked at.
    pub(super) fn open(
        path: &Path,
        input: Input,
        bytes: u64,
        options: Options,
    ) -> Result<(Self, TraceInfo), TraceError> {
        let mut native = Self {
            path: path.to_owned(),
            input,
            decoder: Decoder::new(),
            bytes: Vec::new(),
            block: Block::default(),
            given: 0,
            ranges: Vec::new(),
            partial: options.partial,
            cut: None,
            ended: false,
            counts: Counts::default(),
        };
        let header = native.header()?;
        native.ranges.clone_from(&header.ranges);
        let end = match bytes {
            // A pipe has no end that could be looked at.
            0 => None,
            _ => native.look_at_end(bytes)?,
        };
        if end.as_ref().is_some_and(|end| end.accesses == 0) {
            return Err(native.no_access());
        }
        let mut header = header;
        if let Some(end) = &end {
            header.ranges.extend_from_slice(&end.plugged);
            header.ranges.sort_by_key(|range| range.gpa);
        }
        let info = TraceInfo {
            format: Format::Native,
            bytes,
            header,
            end,
        };
        Ok((native, info))
    }

    /// Bytes read so far.
    pub const fn position(&self) -> u64 {
        self.decoder.offset()
    }

    pub(super) const fn counts(&self) -> Counts {
        self.counts
    }

    /// Accesses that were not recorded as they lay outside the guest's memory, as far as the end says.
    pub const fn outside(&self) -> u64 {
        self.decoder.so_far().outside
    }

    /// What was read so far.
    pub(super) const fn so_far(&self) -> &End {
        self.decoder.so_far()
    }

    /// The guest's memory, as far as it was told of so far; empty where it is not known.
    pub(super) fn memory(&self) -> &[TraceRange] {
        self.decoder.memory()
    }

    pub(super) const fn cut(&self) -> Option<format::TraceError> {
        self.cut
    }

    fn no_access(&self) -> TraceError {
        TraceError::NoAccess {
            path: self.path.clone(),
            bytes: self.decoder.offset(),
        }
    }

    fn header(&mut self) -> Result<Header, TraceError> {
        loop {
            match self.take()? {
                Found::Header(header) => return Ok(header),
                Found::More => {}
                // Nothing else can come first.
                _ => return Err(self.no_access()),
            }
        }
    }

    /// Gives the decoder what it wants.
    fn take(&mut self) -> Result<Found, TraceError> {
        let wanted = self.decoder.wants();
        self.bytes.clear();
        let read = (&mut self.input)
            .take(wanted as u64)
            .read_to_end(&mut self.bytes);
        read.map_err(|source| TraceError::Read {
            path: self.path.clone(),
            offset: self.decoder.offset(),
            source,
        })?;
        if self.bytes.len() < wanted {
            let cut = self.decoder.cut(self.bytes.len());
            return Err(TraceError::native(&self.path, cut));
        }
        self.decoder
            .take(&self.bytes, &mut self.block)
            .map_err(|source| TraceError::native(&self.path, source))
    }

    /// The next data block; `false` at the end.
    pub fn next_block(&mut self) -> Result<bool, TraceError> {
        self.given = 0;
        while !self.ended {
            match self.take() {
                Ok(Found::Block) => {
                    if self.decoder.memory().len() != self.ranges.len() {
                        self.ranges = self.decoder.memory().to_vec();
                    }
                    return Ok(true);
                }
                Ok(Found::Done) => {
                    self.ended = true;
                    let checked = self.check_nothing_follows();
                    self.end_early(checked)?;
                }
                Ok(_) => {}
                Err(error) => self.end_early(Err(error))?,
            }
        }
        self.block = Block::default();
        Ok(false)
    }

    /// Ends the reading where something is wrong, if what stands before that is all that is wanted.
    fn end_early(&mut self, found: Result<(), TraceError>) -> Result<(), TraceError> {
        match found {
            Err(TraceError::Native { source, .. }) if self.may_end(&source) => {
                self.cut = Some(source);
                self.ended = true;
                Ok(())
            }
            other => other,
        }
    }

    /// What [`next_block`](Self::next_block) has read.
    pub const fn block(&self) -> &Block {
        &self.block
    }

    /// Whether what stands before the error may be kept. Who writes while the machine fails leaves
    /// behind a file that is cut, or one that ends in nonsense.
    const fn may_end(&self, error: &format::TraceError) -> bool {
        use format::TraceError::{BackInTime, Corrupt, Truncated};
        self.partial && matches!(error, Truncated { .. } | Corrupt { .. } | BackInTime { .. })
    }

    fn check_nothing_follows(&mut self) -> Result<(), TraceError> {
        let mut byte = [0];
        match self.input.read(&mut byte) {
            Ok(0) => Ok(()),
            Ok(_) => {
                let offset = self.decoder.offset();
                let what = "something stands behind its end";
                let source = format::TraceError::Corrupt { offset, what };
                Err(TraceError::native(&self.path, source))
            }
            Err(source) => Err(TraceError::Read {
                path: self.path.clone(),
                offset: self.decoder.offset(),
                source,
            }),
        }
    }

    pub(super) fn fill(&mut self, out: &mut Vec<Access>) -> Result<bool, TraceError> {
        if self.given == self.block.accesses.len() && !self.next_block()? {
            return match self.counts {
                Counts {
                    accesses: 0,
                    outside: 0,
                    ..
                } => Err(self.no_access()),
                _ => Ok(false),
            };
        }
        let rest = &self.block.accesses[self.given..];
        let piece = &rest[..rest.len().min(BLOCK)];
        let before = out.len();
        if self.ranges.is_empty() {
            out.extend_from_slice(piece);
        } else {
            out.extend(piece.iter().filter(|access| {
                let after = self
                    .ranges
                    .partition_point(|range| range.gpa <= access.address);
                after > 0 && self.ranges[after - 1].contains(access.address)
            }));
        }
        let given = out.len() - before;
        self.counts.accesses += given as u64;
        self.counts.outside += (piece.len() - given) as u64;
        self.given += piece.len();
        Ok(true)
    }

    /// Reads the end block without what stands before it. Told at once is what would be found at the end
    /// only, after an hour perhaps: that the trace was cut.
    fn look_at_end(&self, bytes: u64) -> Result<Option<End>, TraceError> {
        let failed = |source| TraceError::Read {
            path: self.path.clone(),
            offset: bytes,
            source,
        };
        let mut file = File::open(&self.path).map_err(failed)?;
        let found = end_of(&mut file, bytes).map_err(failed)?;
        match found {
            Some(end) => Ok(Some(end)),
            None if self.partial => Ok(None),
            None => Err(TraceError::NoEnd {
                path: self.path.clone(),
                bytes,
            }),
        }
    }
}

/// The end block of a file of `bytes` bytes, if it has one.
fn end_of(file: &mut File, bytes: u64) -> io::Result<Option<End>> {
    let Some(at) = bytes.checked_sub(FOOTER_BYTES as u64) else {
        return Ok(None);
    };
    let mut footer = [0; FOOTER_BYTES];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut footer)?;
    let Some(length) = format::find_end(&footer).filter(|&length| length as u64 <= at) else {
        return Ok(None);
    };
    debug_assert!(length <= HEAD_BYTES + MAX_CONTENT);
    let mut block = vec![0; length];
    file.seek(SeekFrom::Start(at - length as u64))?;
    file.read_exact(&mut block)?;
    Ok(format::read_end(&block).ok())
}
