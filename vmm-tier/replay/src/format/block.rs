//! A block's head, and how its content is stored.

use super::{MAX_CONTENT, MAX_RECORDS, TraceError};

/// Bytes of a block's head.
pub const HEAD_BYTES: usize = 40;

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Header = 1,
    Data = 2,
    End = 3,
}

/// How a content is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Stored = 0,
    Lz4 = 1,
}

/// See the [format](super).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    coding: Coding,
    pub(super) number: u32,
    pub(super) first_time: u64,
    pub(super) records: u32,
    length: u32,
    stored: u32,
    payload_crc: u32,
}

fn word(bytes: &[u8; HEAD_BYTES], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

impl Head {
    /// Reads a head that stands at `offset`.
    pub(super) fn read(bytes: &[u8; HEAD_BYTES], offset: u64) -> Result<Self, TraceError> {
        let corrupt = |what| TraceError::corrupt(offset, what);
        if crc32fast::hash(&bytes[..36]) != word(bytes, 36) {
            return Err(corrupt("a block's head does not have its checksum"));
        }
        // Whoever wrote the checksum may still have written nonsense.
        let kind = match bytes[0] {
            1 => Kind::Header,
            2 => Kind::Data,
            3 => Kind::End,
            _ => return Err(corrupt("there is no such kind of block")),
        };
        let coding = match bytes[1] {
            0 => Coding::Stored,
            1 => Coding::Lz4,
            _ => return Err(corrupt("there is no such coding")),
        };
        let head = Self {
            kind,
            coding,
            number: word(bytes, 4),
            first_time: u64::from(word(bytes, 8)) | u64::from(word(bytes, 12)) << 32,
            records: word(bytes, 16),
            length: word(bytes, 20),
            stored: word(bytes, 24),
            payload_crc: word(bytes, 28),
        };
        let is_bounded = head.length as usize <= MAX_CONTENT
            && head.stored <= head.length
            && head.records as usize <= MAX_RECORDS
            && (head.coding == Coding::Lz4 || head.stored == head.length);
        let has_zeros = bytes[2..4] == [0; 2] && bytes[32..36] == [0; 4];
        if is_bounded && has_zeros {
            Ok(head)
        } else {
            Err(corrupt("a block's head is out of bounds"))
        }
    }

    /// Bytes that follow the head; at most [`MAX_CONTENT`].
    pub(super) const fn stored(&self) -> usize {
        self.stored as usize
    }

    /// Unpacks what follows the head into `content`.
    pub(super) fn unpack(
        &self,
        stored: &[u8],
        offset: u64,
        content: &mut Vec<u8>,
    ) -> Result<(), TraceError> {
        let corrupt = |what| TraceError::corrupt(offset, what);
        if crc32fast::hash(stored) != self.payload_crc {
            return Err(corrupt("a block's content does not have its checksum"));
        }
        content.clear();
        if self.coding == Coding::Stored {
            content.extend_from_slice(stored);
            return Ok(());
        }
        content.resize(self.length as usize, 0);
        match lz4_flex::block::decompress_into(stored, content) {
            Ok(length) if length == content.len() => Ok(()),
            _ => Err(corrupt("a block's content can't be unpacked")),
        }
    }
}

/// Appends blocks.
#[derive(Debug, Default)]
pub(super) struct Packer {
    number: u32,
    packed: Vec<u8>,
}

impl Packer {
    /// Appends a block with this content, at most [`MAX_CONTENT`] bytes.
    pub(super) fn put(
        &mut self,
        out: &mut Vec<u8>,
        kind: Kind,
        (first_time, records): (u64, u32),
        content: &[u8],
    ) -> Result<(), TraceError> {
        let length = u32::try_from(content.len())
            .ok()
            .filter(|_| content.len() <= MAX_CONTENT)
            .ok_or(TraceError::OutOfBounds("a block's length"))?;
        let most = lz4_flex::block::get_maximum_output_size(content.len());
        self.packed.resize(most.max(self.packed.len()), 0);
        let packed = lz4_flex::block::compress_into(content, &mut self.packed);
        let (coding, stored) = match packed {
            Ok(bytes) if bytes < content.len() => (Coding::Lz4, &self.packed[..bytes]),
            _ => (Coding::Stored, content),
        };
        let mut head = [0; HEAD_BYTES];
        head[0] = kind as u8;
        head[1] = coding as u8;
        head[4..8].copy_from_slice(&self.number.to_le_bytes());
        head[8..16].copy_from_slice(&first_time.to_le_bytes());
        head[16..20].copy_from_slice(&records.to_le_bytes());
        head[20..24].copy_from_slice(&length.to_le_bytes());
        // Not longer than the content.
        head[24..28].copy_from_slice(&(stored.len() as u32).to_le_bytes());
        head[28..32].copy_from_slice(&crc32fast::hash(stored).to_le_bytes());
        let check = crc32fast::hash(&head[..36]);
        head[36..].copy_from_slice(&check.to_le_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(stored);
        self.number = self
            .number
            .checked_add(1)
            .ok_or(TraceError::OutOfBounds("the number of blocks"))?;
        Ok(())
    }
}
