//! From accesses to the bytes of a trace.

use tier_core::time::Time;

use super::{
    End, Event, Header, MAGIC, MAX_MARKS, TraceError, VERSION,
    block::{Kind, Packer},
    columns::Columns,
    decoder::add,
    event::{self, BatchEnd, Mark},
    header,
    ranges::{self, TraceRange},
};
use crate::machine::Access;

/// Writes a trace. Every call appends to `out` what is complete: nothing most of the time, a block now
/// and then. The caller takes the bytes away when it likes.
#[derive(Debug)]
pub struct Encoder {
    packer: Packer,
    columns: Columns,
    content: Vec<u8>,
    end: End,
    /// Memory that the trace tells of so far.
    known: Vec<TraceRange>,
    written: u64,
}

impl Encoder {
    /// Begins a trace.
    ///
    /// # Errors
    /// [`TraceError::OutOfBounds`] if the header's ranges can't be written.
    pub fn new(header: &Header, out: &mut Vec<u8>) -> Result<Self, TraceError> {
        let mut encoder = Self {
            packer: Packer::default(),
            columns: Columns::new(),
            content: Vec::new(),
            end: End::default(),
            known: header.ranges.clone(),
            written: 0,
        };
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&u32::from(VERSION).to_le_bytes());
        header.put(&mut encoder.content)?;
        encoder.pack(Kind::Header, (header.started, 0), out)?;
        encoder.written = (out.len() - start) as u64;
        Ok(encoder)
    }

    /// Takes an access.
    ///
    /// # Errors
    /// If it comes before the one before, has no length, or ends behind the last address; it is then
    /// left out.
    #[inline]
    pub fn access(&mut self, access: &Access, out: &mut Vec<u8>) -> Result<(), TraceError> {
        let at = access.at.0;
        if self.end.accesses == 0 {
            self.end.first = at;
        } else if at < self.end.last {
            return Err(TraceError::BackInTime {
                offset: self.written,
                at,
                before: self.end.last,
            });
        }
        if access.len == 0 || access.address.checked_add(access.len).is_none() {
            return Err(TraceError::OutOfBounds("an access's length"));
        }
        if self.columns.is_full() {
            self.flush(out)?;
        }
        self.columns.push(access);
        self.end.accesses += 1;
        self.end.last = at;
        Ok(())
    }

    /// The accesses since the last batch are a batch.
    ///
    /// # Errors
    /// If the trace is too long.
    pub fn batch(&mut self, batch: BatchEnd, out: &mut Vec<u8>) -> Result<(), TraceError> {
        add(&mut self.end.account, &batch.account);
        self.end.batches += 1;
        self.event(&Event::Batch(batch), out)
    }

    /// Marks a change. Marks beyond the first [`MAX_MARKS`] are left out of the end block.
    ///
    /// # Errors
    /// If the trace is too long.
    pub fn mark(&mut self, at: Time, text: &str, out: &mut Vec<u8>) -> Result<(), TraceError> {
        let text = event::plain(text);
        let mark = Mark { at, text };
        if self.end.marks.len() < MAX_MARKS {
            self.end.marks.push(mark.clone());
        }
        self.event(&Event::Mark(mark), out)
    }

    /// The guest's memory, by rising address, is this now. What is new of it is told of, as far as a
    /// trace can tell of so many ranges; returns all that the trace tells of.
    ///
    /// # Errors
    /// If the trace is too long, or these are no ranges.
    pub fn memory(
        &mut self,
        now: &[TraceRange],
        out: &mut Vec<u8>,
    ) -> Result<&[TraceRange], TraceError> {
        ranges::check(now).map_err(TraceError::OutOfBounds)?;
        let new = ranges::unknown(now, &self.known);
        if !new.is_empty() && ranges::join(&mut self.known, &new).is_ok() {
            ranges::join(&mut self.end.plugged, &new).map_err(TraceError::OutOfBounds)?;
            // It may be a long list.
            self.flush(out)?;
            self.event(&Event::Plugged(new), out)?;
        }
        Ok(&self.known)
    }

    fn event(&mut self, event: &Event, out: &mut Vec<u8>) -> Result<(), TraceError> {
        if self.columns.is_full() {
            self.flush(out)?;
        }
        self.columns.push_event(event);
        Ok(())
    }

    /// Counts accesses that are not written as they lie outside the guest's memory.
    pub const fn outside(&mut self, accesses: u64) {
        self.end.outside = self.end.outside.saturating_add(accesses);
    }

    /// What was written so far.
    #[must_use]
    pub const fn so_far(&self) -> &End {
        &self.end
    }

    /// Makes a block of what was collected, so that it is not lost if the program is.
    ///
    /// # Errors
    /// If the trace is too long.
    pub fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), TraceError> {
        if self.columns.is_empty() {
            return Ok(());
        }
        let start = out.len();
        let summary = self.columns.summary();
        self.columns.take(&mut self.content);
        self.pack(Kind::Data, summary, out)?;
        self.end.blocks += 1;
        self.written += (out.len() - start) as u64;
        Ok(())
    }

    /// Ends the trace: nothing more can be written then.
    ///
    /// # Errors
    /// If the trace is too long.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), TraceError> {
        self.flush(out)?;
        let start = out.len();
        self.end.put(&mut self.content);
        self.pack(Kind::End, (self.end.last, 0), out)?;
        let footer = header::footer(out.len() - start);
        out.extend_from_slice(&footer);
        Ok(())
    }

    fn pack(
        &mut self,
        kind: Kind,
        summary: (u64, u32),
        out: &mut Vec<u8>,
    ) -> Result<(), TraceError> {
        let packed = self.packer.put(out, kind, summary, &self.content);
        self.content.clear();
        packed
    }
}
