//! The state file: its format, its name, and how it is read and replaced.

use std::{
    ffi::OsStr,
    fs::{DirBuilder, OpenOptions},
    io::{self, ErrorKind, Read as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
pub(super) use tier_sys::process::Identity;
use tier_sys::{
    process,
    sysroot::{SysRoot, replace_file},
};

use super::Overrides;

/// The version that this program writes, and the newest that it reads.
pub(super) const VERSION: u64 = 1;
/// The largest file that is read: thousands of pins.
const MAX_BYTES: u64 = 1 << 20;
/// The longest VM name that stands whole in the file's name; file systems take 255 bytes.
const MAX_NAME: usize = 160;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Document {
    pub(super) version: u64,
    /// The VM's name.
    pub(super) vm: String,
    pub(super) qemu: Identity,
    /// When it was written, in seconds since 1970.
    pub(super) written: u64,
    /// What commands have set.
    pub(super) set: Overrides,
}

/// Why a state file is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateFileError {
    #[error("the state file {path} can't be read: mend that, or remove the file")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the state file {path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "the state file {path} is of version {version}, written by a newer vmm-tier (this one reads \
         {VERSION})"
    )]
    Newer { path: PathBuf, version: u64 },
    #[error(
        "the state file {path} can't be {action}: make its folder writable, or name another run-dir"
    )]
    Unwritable {
        path: PathBuf,
        action: &'static str,
        source: io::Error,
    },
}

impl StateFileError {
    /// Renames a file that can't be understood, and says to what. `None` if there is nothing to rename.
    pub(super) fn put_aside(&self) -> Option<io::Result<PathBuf>> {
        let (path, suffix) = match self {
            Self::Damaged { path, .. } => (path, ".damaged"),
            Self::Newer { path, .. } => (path, ".newer"),
            Self::Unreadable { .. } | Self::Unwritable { .. } => return None,
        };
        let aside = with_suffix(path, suffix);
        Some(std::fs::rename(path, &aside).map(|()| aside))
    }
}

/// The file's name for a VM: names that differ give files that differ, whatever they are made of.
pub(in crate::agent) fn name_of(vm: &str) -> String {
    let mut name = String::new();
    for byte in vm.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(byte.into()),
            b'.' if !name.is_empty() => name.push('.'),
            other => name.push_str(&format!("%{other:02x}")),
        }
    }
    if name.is_empty() {
        name.push('%');
    }
    if name.len() > MAX_NAME {
        name.truncate(MAX_NAME);
        name.push_str(&format!("%{:016x}", fnv1a(vm.as_bytes())));
    }
    name.push_str(".json");
    name
}

/// FNV-1a, 64 bits: tells long names apart. The file holds the name itself, so that a collision shows.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Reads the file of `vm`; `None` if there is none.
///
/// # Errors
/// See [`StateFileError`].
pub(super) fn read(path: &Path, vm: &str) -> Result<Option<Document>, StateFileError> {
    let unreadable = |source| StateFileError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let damaged = |reason: String| StateFileError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let mut options = OpenOptions::new();
    // A pipe in its place must not keep the agent waiting, nor a link lead it elsewhere.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options.read(true).custom_flags(flags.bits().cast_signed());
    let file = match options.open(path) {
        Ok(file) => file,
        // Where there is no folder, writing will tell.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(unreadable(error)),
    };
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(damaged("it is no file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(damaged(format!("it has more than {MAX_BYTES} bytes")));
    }
    parse(&bytes, vm).map(Some).map_err(|error| match error {
        Unfit::Damaged(reason) => damaged(reason),
        Unfit::Newer(version) => StateFileError::Newer {
            path: path.to_owned(),
            version,
        },
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Unfit {
    Damaged(String),
    Newer(u64),
}

fn parse(bytes: &[u8], vm: &str) -> Result<Document, Unfit> {
    /// What every version has.
    #[derive(Deserialize)]
    struct Head {
        version: u64,
    }
    let damaged = |error: serde_json::Error| Unfit::Damaged(error.to_string());
    let Head { version } = serde_json::from_slice(bytes).map_err(damaged)?;
    if version > VERSION {
        return Err(Unfit::Newer(version));
    }
    let document: Document = serde_json::from_slice(bytes).map_err(damaged)?;
    if document.version == 0 {
        return Err(Unfit::Damaged("there is no version 0".to_owned()));
    }
    if document.vm != vm {
        let of = document.vm;
        return Err(Unfit::Damaged(format!("it is that of VM '{of}'")));
    }
    document.set.check().map_err(Unfit::Damaged)?;
    Ok(document)
}

/// Replaces the file in one step: whoever reads sees the old or the new one, also after a power cut.
///
/// # Errors
/// [`StateFileError::Unwritable`].
pub(super) fn write(path: &Path, document: &Document) -> Result<(), StateFileError> {
    let write = || {
        let mut text = serde_json::to_vec_pretty(document)?;
        text.push(b'\n');
        let folder = path.parent().unwrap_or(Path::new("."));
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)?;
        replace_file(path, &text, 0o600)
    };
    write().map_err(|source| StateFileError::Unwritable {
        path: path.to_owned(),
        action: "written",
        source,
    })
}

/// Removes what agents that were killed left half-written of the file.
pub(super) fn remove_leftovers(root: &SysRoot, path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str))
    else {
        return;
    };
    // Where there is no folder, nothing was left.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let left = entry.file_name();
        let writer = left.to_str().and_then(|left| {
            let rest = left.strip_prefix(name)?.strip_prefix('.')?;
            rest.strip_suffix(".new")?.parse::<u32>().ok()
        });
        if writer.is_some_and(|pid| process::stat(root, pid).is_err()) {
            // The next start tries again.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Removes the file, if there is one.
///
/// # Errors
/// [`StateFileError::Unwritable`].
pub(super) fn remove(path: &Path) -> Result<(), StateFileError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(StateFileError::Unwritable {
            path: path.to_owned(),
            action: "removed",
            source,
        }),
        _ => Ok(()),
    }
}
