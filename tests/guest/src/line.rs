//! What a guest tells on its console: one JSON object a line, behind a mark that tells it from
//! other lines.

use core::fmt::{self, Write};

use crate::HotSet;

/// Stands before each line, for a guest's kernel prints on the same console.
pub const PREFIX: &str = "@lab ";

/// A line.
#[derive(Clone, Copy)]
pub enum Line<'a> {
    /// The guest runs and waits for `go`.
    Up,
    /// The working set has been touched up to here. Told each second while it takes longer.
    Touched {
        /// How far.
        mib: usize,
    },
    /// Where the hot pages are: those of the hot set, in a working set that begins at this
    /// guest-physical address.
    Hot {
        /// The set's first byte.
        base: u64,
        /// Its hot pages.
        hot: HotSet,
    },
    /// Guest-physical runs of the hot set, `[gpa, bytes]`. A list may come in parts.
    Runs {
        /// The runs.
        runs: &'a [[u64; 2]],
        /// Whether this part begins a new list.
        first: bool,
        /// Whether this part ends the list.
        last: bool,
    },
    /// The working set has been touched.
    Ready,
    /// Accesses since the last such line. Told each second.
    Updates {
        /// How many.
        count: u64,
        /// In how many milliseconds.
        ms: u64,
        /// The longest of them in which a batch of accesses did not end: the guest stood still, or was
        /// slow.
        gap_ms: u64,
    },
    /// An order has been carried out.
    Obeyed {
        /// Its text.
        order: &'a dyn fmt::Display,
    },
    /// The memory has been compared up to here. Told each second while it takes longer.
    Compared {
        /// How far.
        mib: usize,
    },
    /// The workload ended.
    Integrity {
        /// Whether the memory is what all updates made of it.
        ok: bool,
        /// Updates in all.
        updates: u64,
        /// What the updates say.
        expected: u64,
        /// What the memory says.
        found: u64,
    },
    /// The workload can't go on.
    Error {
        /// Why.
        error: &'a dyn fmt::Display,
    },
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        match self {
            Self::Up => f.write_str(r#"{"guest":"up"}"#),
            Self::Touched { mib } => write!(f, r#"{{"guest":"touched","mib":{mib}}}"#),
            Self::Hot { base, hot } => write!(
                f,
                r#"{{"guest":"hot","base":{base},"first":{},"pages":{},"stride":{},"of":{}}}"#,
                hot.first, hot.pages, hot.stride, hot.of
            ),
            Self::Runs { runs, first, last } => {
                f.write_str(r#"{"guest":"runs","runs":["#)?;
                for (n, [gpa, bytes]) in runs.iter().enumerate() {
                    let comma = if n == 0 { "" } else { "," };
                    write!(f, "{comma}[{gpa},{bytes}]")?;
                }
                write!(f, r#"],"first":{first},"last":{last}}}"#)
            }
            Self::Ready => f.write_str(r#"{"guest":"ready"}"#),
            Self::Updates { count, ms, gap_ms } => write!(
                f,
                r#"{{"guest":"updates","count":{count},"ms":{ms},"gap-ms":{gap_ms}}}"#
            ),
            Self::Obeyed { order } => {
                f.write_str(r#"{"guest":"obeyed","order":""#)?;
                write!(Escaped(f), "{order}")?;
                f.write_str("\"}")
            }
            Self::Compared { mib } => write!(f, r#"{{"guest":"compared","mib":{mib}}}"#),
            Self::Integrity {
                ok,
                updates,
                expected,
                found,
            } => write!(
                f,
                r#"{{"guest":"integrity","ok":{ok},"updates":{updates},"expected":{expected},"found":{found}}}"#
            ),
            Self::Error { error } => {
                f.write_str(r#"{"guest":"error","error":""#)?;
                write!(Escaped(f), "{error}")?;
                f.write_str("\"}")
            }
        }
    }
}

/// Text within a JSON string.
struct Escaped<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '"' | '\\' => write!(self.0, "\\{c}")?,
                c if (c as u32) < 0x20 => write!(self.0, "\\u{:04x}", c as u32)?,
                c => self.0.write_char(c)?,
            }
        }
        Ok(())
    }
}
