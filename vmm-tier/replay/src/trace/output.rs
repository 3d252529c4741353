//! The file that a trace is written to.
//!
//! While it is written it is called `FILE.part`: a recording that is killed leaves that behind, and what
//! was written of it can be read. Whole, it takes its name.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

use super::TraceError;
use crate::{
    format::{self, Encoder, End, Event, Header, TraceRange},
    machine::Access,
};

/// Bytes that are collected before they are written.
const BUFFER: usize = 1 << 20;

/// A trace being written.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    part: Part,
    file: File,
    encoder: Encoder,
    bytes: Vec<u8>,
    written: u64,
}

/// A file that a trace will be written to.
#[derive(Debug)]
pub struct Reserved {
    path: PathBuf,
    part: Part,
    file: File,
}

/// The file under its other name. Removed when it is dropped, unless it is to be kept.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    keep: bool,
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.keep {
            // It may be gone already.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Reserved {
    /// Begins the trace.
    ///
    /// # Errors
    /// If the header can't be encoded.
    pub fn begin(self, header: &Header) -> Result<Output, TraceError> {
        let Self { path, part, file } = self;
        let mut bytes = Vec::with_capacity(BUFFER);
        let encoder = Encoder::new(header, &mut bytes);
        let encoder = encoder.map_err(|source| TraceError::native(&path, source))?;
        Ok(Output {
            path,
            part,
            file,
            encoder,
            bytes,
            written: 0,
        })
    }
}

impl Output {
    /// Makes the file for a trace that will be called `path`. It is removed if nothing is written.
    ///
    /// # Errors
    /// If there is such a trace, or the file can't be made.
    pub fn reserve(path: &Path) -> Result<Reserved, TraceError> {
        let Some(name) = path.file_name() else {
            return Err(TraceError::NoFile(path.to_owned()));
        };
        if path.exists() {
            return Err(TraceError::Exists(path.to_owned()));
        }
        let mut part_name = name.to_owned();
        part_name.push(".part");
        let part_path = path.with_file_name(part_name);
        let file = match File::create_new(&part_path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(TraceError::PartExists { path: part_path });
            }
            Err(source) => {
                return Err(TraceError::Create {
                    path: part_path,
                    source,
                });
            }
        };
        Ok(Reserved {
            path: path.to_owned(),
            part: Part {
                path: part_path,
                keep: false,
            },
            file,
        })
    }

    fn encode(
        &mut self,
        put: impl FnOnce(&mut Encoder, &mut Vec<u8>) -> Result<(), format::TraceError>,
    ) -> Result<(), TraceError> {
        put(&mut self.encoder, &mut self.bytes)
            .map_err(|source| TraceError::native(&self.path, source))?;
        if self.bytes.len() >= BUFFER {
            self.write()?;
        }
        Ok(())
    }

    /// Appends accesses.
    ///
    /// # Errors
    /// If they can't be encoded or written.
    pub fn accesses(&mut self, accesses: &[Access]) -> Result<(), TraceError> {
        self.encode(|encoder, out| {
            let mut accesses = accesses.iter();
            accesses.try_for_each(|access| encoder.access(access, out))
        })
    }

    /// Appends what happened between accesses.
    ///
    /// # Errors
    /// If it can't be encoded or written.
    pub fn event(&mut self, event: Event) -> Result<(), TraceError> {
        self.encode(|encoder, out| match event {
            Event::Batch(batch) => encoder.batch(batch, out),
            Event::Mark(mark) => encoder.mark(mark.at, &mark.text, out),
            Event::Plugged(ranges) => encoder.memory(&ranges, out).map(|_| ()),
        })
    }

    /// The guest's memory is this now; returns all that the trace tells of.
    ///
    /// # Errors
    /// If the ranges can't be encoded.
    pub fn memory(&mut self, now: &[TraceRange]) -> Result<&[TraceRange], TraceError> {
        self.encoder
            .memory(now, &mut self.bytes)
            .map_err(|source| TraceError::native(&self.path, source))
    }

    /// Counts accesses outside the guest's memory.
    pub const fn outside(&mut self, accesses: u64) {
        self.encoder.outside(accesses);
    }

    /// What was written so far, and in how many bytes.
    pub const fn so_far(&self) -> (&End, u64) {
        let bytes = self.written + self.bytes.len() as u64;
        (self.encoder.so_far(), bytes)
    }

    /// Writes what was collected.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn flush(&mut self) -> Result<(), TraceError> {
        self.encode(Encoder::flush)?;
        self.write()
    }

    /// The file stays unchanged if the trace can't be ended.
    pub const fn keep(&mut self) {
        self.part.keep = true;
    }

    fn write(&mut self) -> Result<(), TraceError> {
        let written = self.file.write_all(&self.bytes);
        written.map_err(|source| TraceError::Write {
            path: self.part.path.clone(),
            source,
        })?;
        self.written += self.bytes.len() as u64;
        self.bytes.clear();
        Ok(())
    }

    /// Ends the trace and gives it its name. Returns what is in it, and its length in bytes.
    ///
    /// # Errors
    /// If the trace can't be written or named.
    pub fn finish(mut self) -> Result<(End, u64), TraceError> {
        self.encoder
            .finish(&mut self.bytes)
            .map_err(|source| TraceError::native(&self.path, source))?;
        self.write()?;
        let synced = self.file.sync_all();
        synced.map_err(|source| TraceError::Write {
            path: self.part.path.clone(),
            source,
        })?;
        // It is whole now, whatever it is called.
        self.keep();
        name(&self.part.path, &self.path)?;
        Ok((self.encoder.so_far().clone(), self.written))
    }
}

/// Gives the file `part` the name `path`, if nothing else has it by now.
fn name(part: &Path, path: &Path) -> Result<(), TraceError> {
    let named = match renameat_with(CWD, part, CWD, path, RenameFlags::NOREPLACE) {
        // Some file systems of networks know no such thing.
        Err(Errno::INVAL | Errno::NOSYS) if !path.exists() => fs::rename(part, path),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(()),
    };
    named.map_err(|source| TraceError::Name {
        part: part.to_owned(),
        path: path.to_owned(),
        source,
    })
}
