//! From a stream of bytes to frames, whatever the bytes are.

use super::{Frame, HEADER_BYTES, MAGIC, MAX_FRAME, MAX_PAYLOAD, Message, VERSION, WireError};

/// What the decoder found in the stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded {
    /// A frame, and its length in bytes.
    Frame(Frame, usize),
    /// Bytes that belong to no frame were skipped.
    Garbage {
        /// How many.
        bytes: usize,
    },
    /// A header that came as it was sent, but with another payload: a frame that was cut, say. What
    /// stands behind the header's first byte is looked at again.
    Corrupt,
    /// A frame of a version of the protocol that is not known here. Its payload was not looked at.
    Version {
        /// The version.
        version: u8,
    },
    /// A frame that came as it was sent, but whose payload is no message: the sender is at fault.
    Broken {
        /// Its session.
        session: u64,
        /// Its number.
        sequence: u64,
        /// What is wrong with it.
        error: WireError,
    },
}

/// Finds frames in a stream. Holds at most a frame and what was pushed last, cut to a frame's length.
#[derive(Debug, Default)]
pub struct Decoder {
    held: Vec<u8>,
    /// Bytes skipped and not told yet.
    skipped: usize,
}

/// What the front of the bytes is.
enum Front {
    /// Nothing can be said before more bytes come.
    Wait,
    /// No frame begins in this many first bytes.
    Skip(usize),
    /// A frame of this many bytes.
    Take(usize, Decoded),
}

impl Decoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            held: Vec::new(),
            skipped: 0,
        }
    }

    /// Takes bytes in and hands on what can be told of them. What is the beginning of a frame stays.
    pub fn push(&mut self, bytes: &[u8], mut take: impl FnMut(Decoded)) {
        for piece in bytes.chunks(MAX_FRAME) {
            self.held.extend_from_slice(piece);
            self.scan(&mut take);
        }
    }

    /// The bytes that wait for the rest of their frame.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.held.len()
    }

    /// Gives the frame up that was begun and not ended: its sender was cut off in it, say. What is held
    /// behind its first byte is looked at again.
    pub fn give_up(&mut self, mut take: impl FnMut(Decoded)) {
        if !self.held.is_empty() {
            self.held.drain(..1);
            self.skipped += 1;
            self.scan(&mut take);
            self.tell_skipped(&mut take);
        }
    }

    /// Forgets everything: another stream begins.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    fn scan(&mut self, take: &mut impl FnMut(Decoded)) {
        let mut at = 0;
        loop {
            match front(&self.held[at..]) {
                Front::Wait => break,
                Front::Skip(bytes) => {
                    at += bytes;
                    self.skipped += bytes;
                }
                Front::Take(bytes, decoded) => {
                    at += bytes;
                    self.tell_skipped(take);
                    take(decoded);
                }
            }
        }
        self.held.drain(..at);
        if self.held.is_empty() {
            self.tell_skipped(take);
        }
    }

    fn tell_skipped(&mut self, take: &mut impl FnMut(Decoded)) {
        match std::mem::take(&mut self.skipped) {
            0 => {}
            bytes => take(Decoded::Garbage { bytes }),
        }
    }
}

/// Four or eight bytes at an offset; the caller has seen that they are there.
fn word<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn front(bytes: &[u8]) -> Front {
    if bytes.is_empty() {
        return Front::Wait;
    }
    let begin = (0..bytes.len()).find(|&at| {
        let rest = &bytes[at..];
        MAGIC.starts_with(&rest[..rest.len().min(MAGIC.len())])
    });
    match begin {
        None => return Front::Skip(bytes.len()),
        Some(0) => {}
        Some(at) => return Front::Skip(at),
    }
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Front::Wait;
    };
    let number = |at| word(header, at).map_or(0, u64::from_le_bytes);
    let check = |at| word(header, at).map_or(0, u32::from_le_bytes);
    if crc32fast::hash(&header[..28]) != check(28) {
        return Front::Skip(1);
    }
    let length = word(header, 6).map_or(0, u16::from_le_bytes);
    let length = usize::from(length);
    if length > MAX_PAYLOAD {
        return Front::Skip(1);
    }
    let Some(payload) = bytes[HEADER_BYTES..].get(..length) else {
        return Front::Wait;
    };
    if crc32fast::hash(payload) != check(24) {
        return Front::Take(1, Decoded::Corrupt);
    }
    let (version, kind) = (header[4], header[5]);
    let (session, sequence) = (number(8), number(16));
    let whole = HEADER_BYTES + length;
    if version != VERSION {
        return Front::Take(whole, Decoded::Version { version });
    }
    let decoded = match Message::decode(kind, payload) {
        Ok(message) => {
            let frame = Frame {
                session,
                sequence,
                message,
            };
            Decoded::Frame(frame, whole)
        }
        Err(error) => Decoded::Broken {
            session,
            sequence,
            error,
        },
    };
    Front::Take(whole, decoded)
}
