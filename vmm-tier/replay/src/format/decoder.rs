//! From the bytes of a trace to accesses, a block at a time.

use tier_core::sample::SampleAccount;

use super::{
    End, Event, FOOTER_BYTES, HEAD_BYTES, Header, MAGIC, MAX_MARKS, PREAMBLE_BYTES, TraceError,
    VERSION,
    block::{Head, Kind},
    columns, header,
    ranges::{self, TraceRange},
};
use crate::machine::Access;

/// What was read last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing to tell of: more bytes are wanted.
    More,
    /// The header.
    Header(Header),
    /// A data block: its content stands in the [`Block`].
    Block,
    /// The end block.
    End(End),
    /// The footer: no more bytes may come.
    Done,
}

/// The content of a data block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Its accesses.
    pub accesses: Vec<Access>,
    /// What stands between them, each with the number of accesses before it.
    pub events: Vec<(usize, Event)>,
}

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum Next {
    Preamble,
    Head,
    /// The content of a block whose head stands at this offset.
    Content(Head, u64),
    Footer,
    Nothing,
}

/// Reads a trace. The caller brings as many bytes as are [wanted](Self::wants), again and again:
///
/// ```
/// # use tier_replay::format::{Block, Decoder, Encoder, Found, Header, TraceError};
/// # let mut file = Vec::new();
/// # Encoder::new(&Header::import("csv", "x"), &mut file)?.finish(&mut file)?;
/// let (mut decoder, mut block) = (Decoder::new(), Block::default());
/// let mut rest = file.as_slice();
/// while decoder.wants() > 0 {
///     let wanted = decoder.wants();
///     let (bytes, behind) = rest.split_at_checked(wanted).ok_or(decoder.cut(rest.len()))?;
///     rest = behind;
///     if decoder.take(bytes, &mut block)? == Found::Block {
///         println!("{} accesses", block.accesses.len());
///     }
/// }
/// # Ok::<(), TraceError>(())
/// ```
#[derive(Debug)]
pub struct Decoder {
    next: Next,
    offset: u64,
    /// The number of the next block.
    number: u32,
    content: Vec<u8>,
    /// What the end block must say.
    seen: End,
    /// Memory that the trace tells of so far.
    known: Vec<TraceRange>,
    /// Bytes of the end block.
    end_bytes: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the begin of a trace.
    #[must_use]
    pub fn new() -> Self {
        Self {
            next: Next::Preamble,
            offset: 0,
            number: 0,
            content: Vec::new(),
            seen: End::default(),
            known: Vec::new(),
            end_bytes: 0,
        }
    }

    /// How many bytes [`take`](Self::take) is to be given next, at most
    /// [`MAX_CONTENT`](super::MAX_CONTENT); 0 behind the end.
    #[must_use]
    pub const fn wants(&self) -> usize {
        match &self.next {
            Next::Preamble => PREAMBLE_BYTES,
            Next::Head => HEAD_BYTES,
            Next::Content(head, _) => head.stored(),
            Next::Footer => FOOTER_BYTES,
            Next::Nothing => 0,
        }
    }

    /// The bytes taken so far.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// What was read so far.
    #[must_use]
    pub const fn so_far(&self) -> &End {
        &self.seen
    }

    /// The guest's memory as far as it was told of: the header's and what came since. Empty where it is
    /// not known.
    #[must_use]
    pub fn memory(&self) -> &[TraceRange] {
        &self.known
    }

    /// Why a file is no whole trace that ends `bytes` bytes further on.
    #[must_use]
    pub const fn cut(&self, bytes: usize) -> TraceError {
        let offset = self.offset + bytes as u64;
        if offset == 0 {
            return TraceError::Empty;
        }
        TraceError::Truncated { offset }
    }

    /// Takes exactly as many bytes as are wanted. A data block's content is put into `block`.
    ///
    /// # Errors
    /// If they are no trace, with the byte where that shows; nothing more can be read then.
    pub fn take(&mut self, bytes: &[u8], block: &mut Block) -> Result<Found, TraceError> {
        let offset = self.offset;
        if bytes.len() != self.wants() {
            return Err(self.cut(bytes.len().min(self.wants())));
        }
        let next = std::mem::replace(&mut self.next, Next::Nothing);
        self.offset += bytes.len() as u64;
        match next {
            Next::Preamble => {
                read_preamble(bytes)?;
                self.next = Next::Head;
                Ok(Found::More)
            }
            Next::Head => {
                self.read_head(bytes, offset)?;
                // A content without bytes is there already.
                match self.wants() {
                    0 => self.take(&[], block),
                    _ => Ok(Found::More),
                }
            }
            Next::Content(head, start) => {
                let mut content = std::mem::take(&mut self.content);
                let found = head
                    .unpack(bytes, start, &mut content)
                    .and_then(|()| self.read_content(&head, start, &content, block));
                self.content = content;
                found
            }
            Next::Footer => {
                if *bytes != header::footer(self.end_bytes) {
                    return Err(TraceError::corrupt(offset, "what follows the end block"));
                }
                Ok(Found::Done)
            }
            Next::Nothing => Ok(Found::Done),
        }
    }

    fn read_head(&mut self, bytes: &[u8], offset: u64) -> Result<(), TraceError> {
        let corrupt = |what| TraceError::corrupt(offset, what);
        let bytes: &[u8; HEAD_BYTES] = bytes.try_into().map_err(|_| self.cut(0))?;
        let head = Head::read(bytes, offset)?;
        if head.number != self.number {
            return Err(corrupt("blocks are missing, repeated or of another file"));
        }
        if (head.kind == Kind::Header) != (self.number == 0) {
            return Err(corrupt("the header is not the first block"));
        }
        let following = self.number.checked_add(1);
        self.number = following.ok_or_else(|| corrupt("there are too many blocks"))?;
        if head.kind == Kind::Data && head.records > 0 {
            let (at, before) = (head.first_time, self.seen.last);
            if self.seen.accesses > 0 && at < before {
                return Err(TraceError::BackInTime { offset, at, before });
            }
        }
        self.next = Next::Content(head, offset);
        Ok(())
    }

    fn read_content(
        &mut self,
        head: &Head,
        offset: u64,
        content: &[u8],
        block: &mut Block,
    ) -> Result<Found, TraceError> {
        self.next = Next::Head;
        match head.kind {
            Kind::Header => {
                let header = Header::read(content, offset)?;
                self.known.clone_from(&header.ranges);
                Ok(Found::Header(header))
            }
            Kind::Data => {
                block.accesses.clear();
                block.events.clear();
                let summary = (head.first_time, head.records);
                columns::read(content, summary, &mut block.accesses, &mut block.events)
                    .map_err(|error| TraceError::of(&error, offset))?;
                self.count(block)
                    .map_err(|what| TraceError::corrupt(offset, what))?;
                Ok(Found::Block)
            }
            Kind::End => {
                let end = End::read(content, offset)?;
                self.seen.outside = end.outside;
                if end != self.seen {
                    return Err(TraceError::corrupt(
                        offset,
                        "the sums at its end are not those of its blocks",
                    ));
                }
                self.end_bytes = HEAD_BYTES + head.stored();
                self.next = Next::Footer;
                Ok(Found::End(end))
            }
        }
    }

    fn count(&mut self, block: &Block) -> Result<(), &'static str> {
        let seen = &mut self.seen;
        if let (Some(first), Some(last)) = (block.accesses.first(), block.accesses.last()) {
            if seen.accesses == 0 {
                seen.first = first.at.0;
            }
            seen.last = last.at.0;
        }
        seen.accesses += block.accesses.len() as u64;
        seen.blocks += 1;
        for (_, event) in &block.events {
            match event {
                Event::Batch(batch) => {
                    seen.batches += 1;
                    add(&mut seen.account, &batch.account);
                }
                Event::Mark(mark) if seen.marks.len() < MAX_MARKS => seen.marks.push(mark.clone()),
                Event::Mark(_) => {}
                Event::Plugged(_) if self.known.is_empty() => {
                    return Err("memory comes to a guest of which none is known");
                }
                Event::Plugged(new) => {
                    ranges::join(&mut self.known, new)?;
                    ranges::join(&mut seen.plugged, new)?;
                }
            }
        }
        Ok(())
    }
}

/// Reads an end block, its head included, by itself.
///
/// # Errors
/// If the bytes are none. Offsets are those within the block.
pub fn read_end(bytes: &[u8]) -> Result<End, TraceError> {
    let (head, stored) = bytes
        .split_first_chunk()
        .ok_or(TraceError::Truncated { offset: 0 })?;
    let head = Head::read(head, 0)?;
    if head.kind != Kind::End || head.stored() != stored.len() {
        return Err(TraceError::corrupt(0, "it is no end block"));
    }
    let mut content = Vec::new();
    head.unpack(stored, 0, &mut content)?;
    End::read(&content, 0)
}

fn read_preamble(bytes: &[u8]) -> Result<(), TraceError> {
    let (magic, version) = bytes.split_at(MAGIC.len());
    if *magic != MAGIC {
        return Err(TraceError::Foreign);
    }
    let version: [u8; 4] = version.try_into().map_err(|_| TraceError::Foreign)?;
    match u32::from_le_bytes(version) {
        known if known == u32::from(VERSION) => Ok(()),
        newer if newer > u32::from(VERSION) && newer <= u32::from(u16::MAX) => {
            Err(TraceError::Newer {
                version: newer as u16,
            })
        }
        _ => Err(TraceError::corrupt(8, "there is no such version")),
    }
}

/// Adds what a batch lost and dropped; a file's numbers may be of any size.
pub(super) fn add(sum: &mut SampleAccount, account: &SampleAccount) {
    sum.lost = sum.lost.saturating_add(account.lost);
    sum.throttled = sum.throttled.saturating_add(account.throttled);
    for (&reason, &n) in &account.dropped {
        let dropped = sum.dropped.entry(reason).or_default();
        *dropped = dropped.saturating_add(n);
    }
    sum.samples = sum
        .dropped
        .values()
        .fold(0, |sum: u64, n| sum.saturating_add(*n));
}
