//! The formats of traces, and how they are told apart.

use std::{
    fmt,
    fs::File,
    io::{BufRead, BufReader, Cursor, Read},
    path::Path,
    str::FromStr,
};

use super::{
    TraceError,
    csv::{self, CsvLine},
    lackey::{self, LackeyLine},
};
use crate::format::{self, MAGIC};

/// What is looked at to tell what a file is.
const LOOK: u64 = 64 << 10;
/// Bytes read at a time.
const BUFFER: usize = 256 << 10;
/// What compressed files begin with.
const COMPRESSED: [(&[u8], &str); 4] = [
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
];

/// How a trace is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// As its first bytes say.
    #[default]
    Auto,
    /// This program's own.
    Native,
    /// Lines `time_ns,address,kind`.
    Csv,
    /// What valgrind prints with `--tool=lackey --trace-mem=yes`.
    Lackey,
}

impl Format {
    /// The word that users write and read.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Csv => "csv",
            Self::Lackey => "lackey",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no format of traces; there is: auto, native, csv, lackey")]
pub struct ParseFormatError(String);

impl FromStr for Format {
    type Err = ParseFormatError;

    fn from_str(text: &str) -> Result<Self, ParseFormatError> {
        [Self::Auto, Self::Native, Self::Csv, Self::Lackey]
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| ParseFormatError(text.to_owned()))
    }
}

/// A file from its first byte on, though its beginning was looked at.
pub(super) type Input = BufReader<Box<dyn Read + Send>>;

/// What a file is.
pub(super) struct Detected {
    pub(super) format: Format,
    pub(super) file: Input,
}

/// Tells what `file` is, if `format` leaves that open.
pub(super) fn detect(path: &Path, file: File, format: Format) -> Result<Detected, TraceError> {
    let mut start = Vec::new();
    let read = (&file).take(LOOK).read_to_end(&mut start);
    read.map_err(|source| TraceError::Read {
        path: path.to_owned(),
        offset: start.len() as u64,
        source,
    })?;
    if start.is_empty() {
        let source = format::TraceError::Empty;
        return Err(TraceError::native(path, source));
    }
    let format = match format {
        Format::Auto => look(path, &start)?,
        given => given,
    };
    let whole: Box<dyn Read + Send> = Box::new(Cursor::new(start).chain(file));
    Ok(Detected {
        format,
        file: BufReader::with_capacity(BUFFER, whole),
    })
}

/// What begins so. A native trace that was cut within its magic still is one.
fn look(path: &Path, start: &[u8]) -> Result<Format, TraceError> {
    let common = start.len().min(MAGIC.len());
    if start[..common] == MAGIC[..common] {
        return Ok(Format::Native);
    }
    let compressed = COMPRESSED
        .iter()
        .find(|(magic, _)| start.starts_with(magic));
    if let Some(&(_, tool)) = compressed {
        return Err(TraceError::Compressed {
            path: path.to_owned(),
            tool,
        });
    }
    // The last line may have been cut by the look.
    let whole = match start.iter().rposition(|&byte| byte == b'\n') {
        Some(end) => &start[..=end],
        None => start,
    };
    let unknown = || TraceError::UnknownFormat {
        path: path.to_owned(),
    };
    for line in whole.split(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        if !matches!(lackey::line(line), LackeyLine::Broken(_)) {
            return Ok(Format::Lackey);
        }
        if !matches!(csv::line(line), CsvLine::Broken(_)) || csv::is_header(line) {
            return Ok(Format::Csv);
        }
        return Err(unknown());
    }
    Err(unknown())
}

/// One line without its end, at most `most` bytes of it; whether there was one.
pub(super) fn read_line(
    input: &mut Input,
    most: usize,
    line: &mut Vec<u8>,
) -> std::io::Result<usize> {
    line.clear();
    let mut bytes = 0;
    loop {
        let available = input.fill_buf()?;
        if available.is_empty() {
            return Ok(bytes);
        }
        let (piece, used, ended) = match available.iter().position(|&byte| byte == b'\n') {
            Some(end) => (&available[..end], end + 1, true),
            None => (available, available.len(), false),
        };
        // What is longer is an error later, or a line of valgrind's that is passed over.
        let room = most.saturating_sub(line.len());
        line.extend_from_slice(&piece[..piece.len().min(room)]);
        bytes += used;
        input.consume(used);
        if ended {
            return Ok(bytes);
        }
    }
}
