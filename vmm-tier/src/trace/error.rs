//! Why a trace can't be read, with the place where that shows.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a trace can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    #[error("trace {} can't be opened", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("trace {} is a folder, not a file", .0.display())]
    Folder(PathBuf),
    #[error("trace {} can't be read at byte {offset}", path.display())]
    Read {
        path: PathBuf,
        offset: u64,
        source: io::Error,
    },
    #[error("trace {} can't be used", path.display())]
    Native {
        path: PathBuf,
        source: tier_core::trace::TraceError,
    },
    #[error(
        "trace {0} does not end at byte {bytes} as whole ones do: it was cut, its recording was killed, or something \
         was added; 'vmm-tier record --import {0} --partial --output OUT' keeps what is whole",
        path.display()
    )]
    NoEnd { path: PathBuf, bytes: u64 },
    #[error("trace {} has {bytes} bytes and no access in it: see how it was made", path.display())]
    NoAccess { path: PathBuf, bytes: u64 },
    #[error(
        "trace {} is of no format that is known: its first bytes are neither those of a recording of vmm-tier \
         nor a line 'time_ns,address,kind' nor one of valgrind's lackey (' L 1fff000718,8'); say which with \
         --format native, csv or lackey",
        path.display()
    )]
    UnknownFormat { path: PathBuf },
    #[error("trace {} is compressed with {tool}: unpack it first, such as with '{tool} -dc'", path.display())]
    Compressed { path: PathBuf, tool: &'static str },
    #[error("trace {}, line {line} (byte {offset}): {reason}", path.display())]
    Line {
        path: PathBuf,
        line: u64,
        offset: u64,
        reason: String,
    },
    #[error("trace {} can't be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "{} can't be named {}{}: the trace is whole and stays there",
        part.display(), path.display(), by_now(source)
    )]
    Name {
        part: PathBuf,
        path: PathBuf,
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

    pub(crate) fn native(path: &Path, source: tier_core::trace::TraceError) -> Self {
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
