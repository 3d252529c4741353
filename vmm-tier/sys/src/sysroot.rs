//! Where `/proc`, `/sys` and tracefs lie, and bounded reads from them.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// The largest file that a reader takes by default: no file of sysfs is larger than a page, and the
/// larger ones of procfs have readers with limits of their own.
pub const SMALL_FILE: u64 = 64 << 10;

/// A file of the kernel could not be read, written or understood.
#[derive(Debug, thiserror::Error)]
pub enum SysRootError {
    /// The file can't be opened or read.
    #[error("{} can't be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file can't be opened for writing or refused what was written.
    #[error("{} did not take '{text}'", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        text: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file is larger than anything the kernel writes there.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// The file holds something that was not expected.
    #[error("{}:{line}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
}

impl SysRootError {
    /// The kernel's error number, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => source.raw_os_error(),
            Self::TooLarge { .. } | Self::Malformed { .. } => None,
        }
    }

    /// Whether the file is simply not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Read { source, .. } | Self::Write { source, .. } => {
                source.kind() == io::ErrorKind::NotFound
            }
            Self::TooLarge { .. } | Self::Malformed { .. } => false,
        }
    }

    /// Whether the process behind the file is gone (no such file, or `ESRCH` while reading it).
    #[must_use]
    pub fn is_process_gone(&self) -> bool {
        self.is_not_found() || self.errno() == Some(libc::ESRCH)
    }
}

/// What a pure parser found wrong, to be given a path by whoever read the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

impl ParseError {
    /// An error in the line with this index (from 0).
    pub(crate) fn at(index: usize, what: impl Into<String>) -> Self {
        Self {
            line: index + 1,
            what: what.into(),
        }
    }

    /// The error with the path of the file that was parsed.
    #[must_use]
    pub fn in_file(self, path: &Path) -> SysRootError {
        SysRootError::Malformed {
            path: path.to_owned(),
            line: self.line,
            what: self.what,
        }
    }
}

/// The folders under which the kernel shows itself.
#[derive(Clone, Debug)]
pub struct SysRoot {
    proc: PathBuf,
    sys: PathBuf,
    tracing: PathBuf,
    dev: PathBuf,
    /// Keeps a tracefs alive that is mounted nowhere but in this process.
    _tracefs: Option<Arc<OwnedFd>>,
}

impl SysRoot {
    /// The running kernel. Where tracefs is mounted nowhere, a detached instance is opened that only
    /// this process sees (`CAP_SYS_ADMIN`); without that, reads under it fail with "no such file".
    #[must_use]
    pub fn real() -> Self {
        let mut root = Self::at(Path::new("/"));
        let mounted = [root.tracing.clone(), root.sys.join("kernel/debug/tracing")]
            .into_iter()
            .find(|path| path.join("events").is_dir());
        if let Some(path) = mounted {
            root.tracing = path;
        } else if let Ok(fd) = detached_tracefs() {
            root.tracing = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
            root._tracefs = Some(Arc::new(fd));
        }
        root
    }

    /// A tree with `proc`, `sys` (and in it `kernel/tracing`) and `dev` below `root`.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self {
            proc: root.join("proc"),
            sys: root.join("sys"),
            tracing: root.join("sys/kernel/tracing"),
            dev: root.join("dev"),
            _tracefs: None,
        }
    }

    /// A path below `/proc`.
    #[must_use]
    pub fn proc(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.proc.join(relative)
    }

    /// A path below `/proc/PID`.
    #[must_use]
    pub fn process(&self, pid: u32, relative: impl AsRef<Path>) -> PathBuf {
        self.proc.join(pid.to_string()).join(relative)
    }

    /// A path below `/sys`.
    #[must_use]
    pub fn sys(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.sys.join(relative)
    }

    /// A path below tracefs.
    #[must_use]
    pub fn tracing(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.tracing.join(relative)
    }

    /// A path below `/dev`.
    #[must_use]
    pub fn dev(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.dev.join(relative)
    }
}

/// A tracefs that is mounted at no path; it lives as long as the descriptor.
fn detached_tracefs() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
}

/// Opens a file for reading.
///
/// # Errors
/// [`SysRootError::Read`] with the path.
pub fn open(path: &Path) -> Result<File, SysRootError> {
    File::open(path).map_err(|source| SysRootError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Reads at most `limit` bytes as text; bytes that are no UTF-8 are replaced.
///
/// # Errors
/// [`SysRootError::Read`], or [`SysRootError::TooLarge`] if there is more.
pub fn read_text(path: &Path, limit: u64) -> Result<String, SysRootError> {
    let mut bytes = Vec::new();
    open(path)?
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|source| SysRootError::Read {
            path: path.to_owned(),
            source,
        })?;
    if bytes.len() as u64 > limit {
        return Err(SysRootError::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// Reads a small file, trimmed; `None` if it does not exist.
///
/// # Errors
/// As [`read_text`], but for "not found".
pub fn read_optional(path: &Path) -> Result<Option<String>, SysRootError> {
    match read_text(path, SMALL_FILE) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a small file that holds one value.
///
/// # Errors
/// As [`read_text`], or [`SysRootError::Malformed`] if the value is not a `T`.
pub fn read_value<T: FromStr>(path: &Path) -> Result<T, SysRootError> {
    let text = read_text(path, SMALL_FILE)?;
    text.trim().parse().map_err(|_| {
        let shown: String = text.trim().chars().take(40).collect();
        ParseError::at(0, format!("unexpected value '{shown}'")).in_file(path)
    })
}

/// Reads a small file that holds one value; `None` if it does not exist.
///
/// # Errors
/// As [`read_value`], but for "not found".
pub fn read_value_optional<T: FromStr>(path: &Path) -> Result<Option<T>, SysRootError> {
    match read_value(path) {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a module parameter is on, which the kernel writes as `Y` or `1`; `None` if it is not there
/// or can't be read.
#[must_use]
pub fn read_switch(path: &Path) -> Option<bool> {
    let value = read_optional(path).ok()??;
    Some(matches!(value.as_str(), "Y" | "1"))
}

/// Reads a value such as the `madvise` in `always [madvise] never`; `None` if the file does not exist.
///
/// # Errors
/// As [`read_text`], or [`SysRootError::Malformed`] if nothing stands in brackets.
pub fn read_choice(path: &Path) -> Result<Option<String>, SysRootError> {
    let Some(text) = read_optional(path)? else {
        return Ok(None);
    };
    let chosen = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    match chosen {
        Some((chosen, _)) => Ok(Some(chosen.to_owned())),
        None => Err(ParseError::at(0, "no choice stands in brackets").in_file(path)),
    }
}

/// Writes a value into an existing file in one write, as sysfs asks for.
///
/// # Errors
/// [`SysRootError::Write`] with the path and the value.
pub fn write_value(path: &Path, value: &str) -> Result<(), SysRootError> {
    let write = || {
        File::options()
            .write(true)
            .open(path)?
            .write_all(value.as_bytes())
    };
    write().map_err(|source| SysRootError::Write {
        path: path.to_owned(),
        text: value.to_owned(),
        source,
    })
}

/// The entries of `folder` named `prefix` and a number, by rising number. None if the folder does
/// not exist.
///
/// # Errors
/// [`SysRootError::Read`] if the folder can't be listed.
pub fn numbered_entries(folder: &Path, prefix: &str) -> Result<Vec<(u32, PathBuf)>, SysRootError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(SysRootError::Read {
                path: folder.to_owned(),
                source,
            });
        }
    };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry
                .file_name()
                .to_str()?
                .strip_prefix(prefix)?
                .parse()
                .ok()?;
            Some((number, entry.path()))
        })
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// Replaces a file in one step: readers see the old or the new content, never a part, also after a power
/// cut. The new content is first written to `PATH.PID.new`, with the permissions `mode`.
///
/// # Errors
/// The kernel's, of whichever step fails first. The old file is then as it was.
pub fn replace_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let fresh = PathBuf::from(name);
    let mut options = File::options();
    options.write(true).create_new(true).mode(mode);
    let write = || {
        let mut file = match options.open(&fresh) {
            // A killed process with our number left it behind.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                std::fs::remove_file(&fresh)?;
                options.open(&fresh)?
            }
            other => other?,
        };
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().inspect_err(|_| {
        // The half-written file is of no use to anyone; the error that matters is the first one.
        let _ = std::fs::remove_file(&fresh);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_text_when_file_is_larger_than_limit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        std::fs::write(&path, [b'x'; 11]).unwrap();

        let error = read_text(&path, 10).unwrap_err();

        assert!(
            matches!(error, SysRootError::TooLarge { limit: 10, .. }),
            "{error}"
        );
        assert_eq!(read_text(&path, 11).unwrap().len(), 11);
    }

    #[test]
    fn read_value_when_malformed_names_path_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        std::fs::write(&path, "many\n").unwrap();

        let error = read_value::<u32>(&path).unwrap_err().to_string();

        assert_eq!(
            error,
            format!("{}:1: unexpected value 'many'", path.display())
        );
    }

    #[test]
    fn read_choice_when_bracketed_returns_the_chosen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("enabled");
        std::fs::write(&path, "always [madvise] never\n").unwrap();

        assert_eq!(read_choice(&path).unwrap().as_deref(), Some("madvise"));
        assert_eq!(read_choice(&folder.path().join("absent")).unwrap(), None);
    }

    #[test]
    fn numbered_entries_when_names_differ_returns_only_matching_ones_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["node10", "node2", "nodes", "power", "node2x"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }

        let found = numbered_entries(folder.path(), "node").unwrap();

        assert_eq!(found.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [2, 10]);
    }

    #[test]
    fn replace_file_when_folder_is_missing_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none/state.json");

        assert!(replace_file(&path, b"{}", 0o600).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn replace_file_when_file_exists_replaces_it_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        replace_file(&path, b"old and longer", 0o600).unwrap();
        // What a killed process with our number would have left.
        let left = folder
            .path()
            .join(format!("state.json.{}.new", std::process::id()));
        std::fs::write(left, "half").unwrap();

        replace_file(&path, b"new", 0o600).unwrap();

        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
