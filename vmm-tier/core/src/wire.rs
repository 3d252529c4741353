//! The protocol between the agent in a guest and the agent on the host.
//!
//! A byte stream in each direction (a virtio-serial port, a vsock connection), in which frames stand
//! one behind the other. Either end may be replaced at any time without the other's stream being cut
//! (a virtio-serial port stays open when the guest's program is killed), so a frame can be found again
//! after anything, and says by itself to which session it belongs.
//!
//! ```text
//!  0  magic       4 bytes "vmT" 0xC3
//!  4  version     u8, 1
//!  5  kind        u8, see `Message`
//!  6  length      u16, bytes of the payload
//!  8  session     u64, chosen at random by the guest's agent at each start or connection
//! 16  sequence    u64, from 0 (the hello) on, each frame one more; 0 from the host
//! 24  payload CRC u32, CRC-32 (IEEE 802.3) of the payload
//! 28  header CRC  u32, CRC-32 of bytes 0 to 27
//! 32  payload
//! ```
//!
//! All numbers of the header are little-endian; those of payloads are LEB128 varints. The header has a
//! checksum of its own so that a wrong length is noticed at once, not 64 KiB later.
//!
//! ```text
//!  guest                         host
//!    │ ◄───────────────── Ask ─────┤  who is there? (after connecting)
//!    ├─ Hello ───────────────────► │  a new session; repeated until welcomed
//!    │ ◄───────────── Welcome ─────┤  how much may be sent at first, and the pace wished for
//!    ├─ Batch, Status … ─────────► │
//!    │ ◄──────── Credit, Wish ─────┤  how much may be sent in all; another pace
//!    │ ◄──────────────── Stop ─────┤  send nothing more in this session
//! ```
//!
//! Credits are sums over the session, so losing or repeating one does no harm.
//!
//! Nothing here trusts the other side: every count is bounded, and decoding any bytes ends, with bounded
//! memory and without a panic.

mod batch;
mod decoder;
mod drops;
mod message;
pub mod varint;

pub use self::{
    batch::{Access, Batch, BatchBuilder, Observed, Region},
    decoder::{Decoded, Decoder},
    drops::Drops,
    message::{Credit, Hello, InGuest, Message, Status, Wish},
};

/// The version of the protocol.
pub const VERSION: u8 = 1;
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 32;
/// The longest frame, header included.
pub const MAX_FRAME: usize = 64 << 10;
/// The longest payload.
pub const MAX_PAYLOAD: usize = MAX_FRAME - HEADER_BYTES;
/// Most observations in a batch.
pub const MAX_OBSERVATIONS: usize = 10_000;
/// Most tests of a page in one batch.
pub const MAX_TESTS: u32 = 10_000;
/// Longest text, in bytes.
pub const MAX_TEXT: usize = 120;
/// Most page sizes that a hello names.
pub const MAX_PAGE_SIZES: usize = 8;

/// What a frame begins with.
pub(crate) const MAGIC: [u8; 4] = *b"vmT\xC3";

/// A message with its place in the stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// The session it belongs to; 0 in an [`Message::Ask`] that knows of none.
    pub session: u64,
    /// Its number in the session; 0 from the host.
    pub sequence: u64,
    /// What it says.
    pub message: Message,
}

/// Why a payload is no message, or a message no payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The payload ends before the message does.
    #[error("the message ends too early")]
    Short,
    /// The payload goes on behind the message.
    #[error("{0} bytes stand behind the message")]
    Trailing(usize),
    /// No message has this kind.
    #[error("there is no message of kind {0}")]
    Kind(u8),
    /// A number is larger than its place allows.
    #[error("{0} is out of bounds")]
    OutOfBounds(&'static str),
    /// The message does not fit a frame.
    #[error("a payload of {0} bytes does not fit a frame")]
    TooLong(usize),
}

impl Frame {
    /// Appends the frame's bytes to `out`.
    ///
    /// # Errors
    /// [`WireError`] if a number is out of bounds or the message too long; `out` is then as before.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let start = out.len();
        out.resize(start + HEADER_BYTES, 0);
        let end = match self.message.encode(out) {
            Ok(()) => out.len(),
            Err(error) => {
                out.truncate(start);
                return Err(error);
            }
        };
        let length = end - start - HEADER_BYTES;
        let Some(short) = u16::try_from(length).ok().filter(|_| length <= MAX_PAYLOAD) else {
            out.truncate(start);
            return Err(WireError::TooLong(length));
        };
        let (head, payload) = out[start..].split_at_mut(HEADER_BYTES);
        head[..4].copy_from_slice(&MAGIC);
        head[4] = VERSION;
        head[5] = self.message.kind();
        head[6..8].copy_from_slice(&short.to_le_bytes());
        head[8..16].copy_from_slice(&self.session.to_le_bytes());
        head[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        head[24..28].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
        let check = crc32fast::hash(&head[..28]);
        head[28..].copy_from_slice(&check.to_le_bytes());
        Ok(())
    }
}
