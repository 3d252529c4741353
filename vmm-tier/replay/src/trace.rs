//! Traces of accesses in files: recordings of this program, CSV lines, valgrind's lackey.
//!
//! A trace is read in order and in pieces, so it may be larger than memory. To read it twice it is
//! opened twice. Each line and block is checked; an error names its place.

mod csv;
mod error;
mod format;
mod lackey;
mod lines;
mod native;
mod output;

use std::{fs::File, path::Path, time::Duration};

use crate::{
    format::{End, Header, TraceRange},
    machine::{Access, Accesses},
};

pub use self::{
    error::TraceError,
    format::{Format, ParseFormatError},
    native::Native,
    output::{Output, Reserved},
};
use self::{format::Detected, lines::Lines};

/// How a trace is to be read.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long each data access takes in formats without a clock.
    pub step: Duration,
    /// Whether a recording of this program that was cut is read as far as it is whole.
    pub partial: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            step: Duration::from_micros(1),
            partial: false,
        }
    }
}

/// The facts about a trace that are known before it is read.
#[derive(Clone, Debug)]
pub struct TraceInfo {
    /// Its format; never [`Format::Auto`].
    pub format: Format,
    /// Its length in bytes; 0 for a pipe.
    pub bytes: u64,
    /// What stands at its beginning. A text has the file's name, and every access; a recording has all
    /// memory that its end names too, where the end can be had. Accesses outside this memory are dropped
    /// and counted.
    pub header: Header,
    /// Its length, losses and drops; only recordings of this program tell them.
    pub end: Option<End>,
}

/// What was passed over while a trace was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accesses handed on.
    pub accesses: u64,
    /// Accesses outside the ranges that the trace itself tells of.
    pub outside: u64,
    /// Instruction fetches, which are no accesses to data.
    pub fetches: u64,
    /// Lines of valgrind itself, comments, empty lines.
    pub other_lines: u64,
}

/// A trace, opened.
#[derive(Debug)]
pub struct Opened {
    /// Its accesses.
    pub accesses: TraceFile,
    /// What is known of it.
    pub info: TraceInfo,
}

/// Accesses from a file.
#[derive(Debug)]
pub struct TraceFile(Kind);

#[derive(Debug)]
enum Kind {
    Native(Box<Native>),
    Lines(Lines),
}

impl TraceFile {
    /// Bytes read so far; beside [`TraceInfo::bytes`] this tells how far the reading is.
    pub fn position(&self) -> u64 {
        match &self.0 {
            Kind::Native(native) => native.position(),
            Kind::Lines(lines) => lines.position(),
        }
    }

    /// What was handed on and what was passed over.
    pub fn counts(&self) -> Counts {
        match &self.0 {
            Kind::Native(native) => native.counts(),
            Kind::Lines(lines) => lines.counts(),
        }
    }

    /// The reader of blocks, with what stands between accesses, if it is a recording of this program.
    pub fn native(&mut self) -> Option<&mut Native> {
        match &mut self.0 {
            Kind::Native(native) => Some(native),
            Kind::Lines(_) => None,
        }
    }

    /// What was read so far of a recording of this program: its losses, drops and marks.
    pub fn so_far(&self) -> Option<&End> {
        match &self.0 {
            Kind::Native(native) => Some(native.so_far()),
            Kind::Lines(_) => None,
        }
    }

    /// What is odd about a trace that was read to its end, if anything is.
    pub fn doubt(&self) -> Option<String> {
        match &self.0 {
            Kind::Native(native) => native
                .cut()
                .map(|cut| format!("only what is whole of it was read: {cut}")),
            Kind::Lines(lines) => lines.doubt(),
        }
    }

    /// The guest's memory, as far as it was told of so far; empty where it is not known.
    pub fn memory(&self) -> &[TraceRange] {
        match &self.0 {
            Kind::Native(native) => native.memory(),
            Kind::Lines(_) => &[],
        }
    }
}

impl Accesses for TraceFile {
    type Error = TraceError;

    fn fill(&mut self, out: &mut Vec<Access>) -> Result<bool, TraceError> {
        match &mut self.0 {
            Kind::Native(native) => native.fill(out),
            Kind::Lines(lines) => lines.fill(out),
        }
    }
}

/// Opens a trace. `-` is the standard input, which like a pipe can be read once.
///
/// # Errors
/// If it can't be read, has no access in it, or is of no format that is known, or of another than
/// `format`.
pub fn open(path: &Path, format: Format, options: Options) -> Result<Opened, TraceError> {
    let file = match path.to_str() {
        Some("-") => File::open("/dev/stdin"),
        _ => File::open(path),
    };
    let file = file.map_err(|source| TraceError::open(path, source))?;
    let metadata = file.metadata();
    let metadata = metadata.map_err(|source| TraceError::open(path, source))?;
    if metadata.is_dir() {
        return Err(TraceError::Folder(path.to_owned()));
    }
    let bytes = if metadata.is_file() {
        metadata.len()
    } else {
        0
    };
    let Detected { format, file } = format::detect(path, file, format)?;
    let syntax = match format {
        Format::Native | Format::Auto => {
            let (native, info) = Native::open(path, file, bytes, options)?;
            return Ok(Opened {
                accesses: TraceFile(Kind::Native(Box::new(native))),
                info,
            });
        }
        Format::Csv => lines::Syntax::Csv,
        Format::Lackey => lines::Syntax::lackey(options.step),
    };
    let name = path.file_name().unwrap_or(path.as_os_str());
    let header = Header::import(format.name(), &name.to_string_lossy());
    Ok(Opened {
        accesses: TraceFile(Kind::Lines(Lines::new(path, file, syntax))),
        info: TraceInfo {
            format,
            bytes,
            header,
            end: None,
        },
    })
}

#[cfg(test)]
mod tests;
