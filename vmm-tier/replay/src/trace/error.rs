//! Why a trace can't be read, with the place where that shows.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::format;

/// Why a trace can't be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It can't be opened.
    #[error("trace {} can't be opened", path.display())]
    Open {
        /// The trace.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a folder.
    #[error("trace {} is a folder, not a file", .0.display())]
    Folder(PathBuf),
    /// Reading failed.
    #[error("trace {} can't be read at byte {offset}", path.display())]
    Read {
        /// The trace.
        path: PathBuf,
        /// Where reading failed.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// A recording is damaged, or can't be made so.
    #[error("trace {} can't be used", path.display())]
    Native {
        /// The trace.
        path: PathBuf,
        /// What is wrong, and where.
        source: format::TraceError,
    },
    /// A recording has no end.
    #[error(
        "trace {0} does not end at byte {bytes} as whole ones do: it was cut, its recording was killed, or something \
         was added; 'vmm-tier record --import {0} --partial --output OUT' keeps what is whole",
        path.display()
    )]
    NoEnd {
        /// The trace.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// There is no access in it.
    #[error("trace {} has {bytes} bytes and no access in it: see how it was made", path.display())]
    NoAccess {
        /// The trace.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// Its format can't be told.
    #[error(
        "trace {} is of no format that is known: its first bytes are neither those of a recording of vmm-tier \
         nor a line 'time_ns,address,kind' nor one of valgrind's lackey (' L 1fff000718,8'); say which with \
         --format native, csv or lackey",
        path.display()
    )]
    UnknownFormat {
        /// The trace.
        path: PathBuf,
    },
    /// It is compressed.
    #[error("trace {} is compressed with {tool}: unpack it first, such as with '{tool} -dc'", path.display())]
    Compressed {
        /// The trace.
        path: PathBuf,
        /// The program that unpacks it.
        tool: &'static str,
    },
    /// A line can't be understood.
    #[error("trace {}, line {line} (byte {offset}): {reason}", path.display())]
    Line {
        /// The trace.
        path: PathBuf,
        /// The line's number, from 1 on.
        line: u64,
        /// Where the line begins.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The path of a trace to be written names no file.
    #[error("{} names no file", .0.display())]
    NoFile(PathBuf),
    /// The trace to be written is there.
    #[error("{} exists: remove it, or give --output another name", .0.display())]
    Exists(PathBuf),
    /// The file that the trace would be written to is there.
    #[error(
        "{0} exists: a recording runs, or one was killed; keep what it has with 'vmm-tier record --import \
         {0} --partial --output OUT', or remove it",
        path.display()
    )]
    PartExists {
        /// The file.
        path: PathBuf,
    },
    /// The file that the trace would be written to can't be made.
    #[error("{} can't be created", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Writing failed.
    #[error("trace {} can't be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The trace is whole, but can't take its name.
    #[error(
        "{} can't be named {}{}: the trace is whole and stays there",
        part.display(), path.display(), by_now(source)
    )]
    Name {
        /// The file.
        part: PathBuf,
        /// The name that it should have.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl TraceError {
    pub(super) fn open(path: &Path, source: io::Error) -> Self {
        Self::Open {
            path: path.to_owned(),
            source,
        }
    }

    /// A recording is damaged, or can't be made so.
    pub fn native(path: &Path, source: format::TraceError) -> Self {
        Self::Native {
            path: path.to_owned(),
            source,
        }
    }
}

/// Why a file may not have a name that was free when its recording began.
fn by_now(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AlreadyExists => ", which is there by now",
        _ => "",
    }
}
