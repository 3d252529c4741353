//! The wire: a streaming decoder for JSON as QEMU reads it, and the encoder for one message.
//!
//! QMP is *not* a line protocol. Clients may send no line ending at all, spread one object over
//! many lines or send many on one; strings may stand in single quotes. [`Decoder`] therefore finds
//! the end of a message by counting brackets, as QEMU does.

mod decode;
mod encode;
mod parse;

pub use decode::Decoder;
pub use encode::{encode_crlf, encode_line};

/// The deepest nesting that any [`Limits`] may allow; QEMU's own limit
/// (`MAX_NESTING` in `qobject/json-streamer.c`).
pub const MAX_NESTING: usize = 1024;

/// Bounds on what a peer can make us hold in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest message, in bytes after runs of white space are folded to one.
    pub message_bytes: usize,
    /// The most tokens in a message. Small tokens cost far more memory decoded than encoded
    /// (an object of one member some 100 times), so bytes alone are no bound.
    pub tokens: usize,
    /// The deepest nesting of arrays and objects; more than [`MAX_NESTING`] counts as that.
    pub nesting: usize,
}

impl Limits {
    /// For what a client reads from QEMU: 10 MiB as in libvirt, QEMU's own nesting.
    pub const REPLIES: Self = Self {
        message_bytes: 10 << 20,
        tokens: 2 << 20,
        nesting: MAX_NESTING,
    };
    /// For what a server reads from clients that it does not trust.
    pub const REQUESTS: Self = Self {
        message_bytes: 1 << 20,
        tokens: 1 << 16,
        nesting: 64,
    };
}

/// Bytes that are not a message. The texts are QEMU's own where it has one: the server sends
/// them to the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A byte that can't stand where it stands; it is shown printable.
    #[error("JSON parse error, stray '{}'", byte.escape_ascii())]
    Stray {
        /// The byte.
        byte: u8,
    },
    /// Tokens in an order that is not JSON.
    #[error("JSON parse error, {0}")]
    Syntax(&'static str),
    /// A bare word other than `true`, `false` and `null`, shortened.
    #[error("JSON parse error, invalid keyword '{0}'")]
    Keyword(String),
    /// One object has the same member twice; the name is shortened.
    #[error("JSON parse error, duplicate key '{0}'")]
    DuplicateKey(String),
    /// The message is longer than [`Limits::message_bytes`]; the rest of it is passed over.
    #[error("JSON token size limit exceeded: a message has at most {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// The message has more than [`Limits::tokens`]; the rest of it is passed over.
    #[error("JSON token count limit exceeded: a message has at most {limit} tokens")]
    TooManyTokens {
        /// The limit in tokens.
        limit: usize,
    },
    /// The message is nested deeper than [`Limits::nesting`]; the rest of it is passed over.
    #[error("JSON nesting depth limit exceeded: a message has at most {limit} levels")]
    TooDeep {
        /// The limit in levels.
        limit: usize,
    },
}

/// At most 64 bytes of `text`, cut at a character.
fn shorten(text: &str) -> String {
    let end = (0..=text.len().min(64))
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0);
    text[..end].to_owned()
}
