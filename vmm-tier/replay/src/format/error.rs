//! Why bytes are no trace.

use tier_core::wire::WireError;

/// Why bytes are no trace, or accesses can't be written. `offset` is the byte in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// There is nothing.
    #[error("it has no bytes: the recording was never begun, or is elsewhere")]
    Empty,
    /// It begins with something else.
    #[error("it is no trace of vmm-tier: it does not begin as one (byte 0)")]
    Foreign,
    /// It was written by a newer program.
    #[error(
        "it has version {version} of the format (byte 8), and this program knows {} only: read it with the \
         program that wrote it, or a newer one",
        super::VERSION
    )]
    Newer {
        /// The version.
        version: u16,
    },
    /// It was recorded from a source that later programs don't have.
    #[error(
        "it was recorded from {name}, a source that this program no longer has: use the vmm-tier that \
         recorded it"
    )]
    SourceGone {
        /// The source.
        name: &'static str,
    },
    /// It ends too early.
    #[error(
        "it ends at byte {offset}, before its end block: it was cut, or its recording was killed; \
         'vmm-tier record --import FILE --partial --output OUT' keeps what is whole"
    )]
    Truncated {
        /// Its length.
        offset: u64,
    },
    /// It is not as it was written.
    #[error("it is damaged at byte {offset}: {what}; copy or record it again")]
    Corrupt {
        /// Where the block begins in which that shows.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// An access comes before the one that stands before it.
    #[error("time goes back at byte {offset}: {at} ns stands behind {before} ns; record it again")]
    BackInTime {
        /// Where the block begins, or how many bytes were written.
        offset: u64,
        /// The time.
        at: u64,
        /// The time before it.
        before: u64,
    },
    /// A number is larger than its place in a trace allows.
    #[error("{0} is out of bounds for a trace")]
    OutOfBounds(&'static str),
}

impl TraceError {
    /// What is wrong in the block at `offset`.
    pub(super) const fn corrupt(offset: u64, what: &'static str) -> Self {
        Self::Corrupt { offset, what }
    }

    /// What the reader of numbers found in the block at `offset`.
    pub(super) const fn of(error: &WireError, offset: u64) -> Self {
        let what = match error {
            WireError::OutOfBounds(what) => what,
            WireError::Trailing(_) => "something stands behind its content",
            _ => "its content ends too early",
        };
        Self::Corrupt { offset, what }
    }
}
