//! The socket file: made for its owner only, refused when in use, replaced when stale.

use std::{
    io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fd::OwnedFd,
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with},
};
use tracing::warn;

use super::owned;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;
/// How long another process may hold the folder's lock.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Why a control socket can't be served. Each text says what, where and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Somebody serves the path.
    #[error(
        "{path} is in use by another process: name another control socket or end that process",
        path = path.display()
    )]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something that isn't a socket is at the path.
    #[error(
        "{path} exists and is not a socket: name another control socket or remove that file",
        path = path.display()
    )]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The folder doesn't exist.
    #[error("no folder for the control socket {path}: create it", path = path.display())]
    NoFolder {
        /// The path.
        path: PathBuf,
    },
    /// The folder's permissions.
    #[error(
        "no permission to create the control socket {path}: name one in a folder of yours, for \
         example in $XDG_RUNTIME_DIR",
        path = path.display()
    )]
    PermissionDenied {
        /// The path.
        path: PathBuf,
    },
    /// The path doesn't fit a socket address.
    #[error(
        "the path {path} is too long for a unix socket (at most {limit} bytes): use a shorter one, \
         for example in /run",
        path = path.display(),
        limit = crate::MAX_SOCKET_PATH
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed for another reason.
    #[error("can't {action} the control socket {path}", path = path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What was done.
        action: &'static str,
        /// How it failed.
        source: io::Error,
    },
}

/// The file of a bound socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode: another process may have replaced the file since.
    identity: (u64, u64),
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file if it is still the one that was bound.
    pub(super) fn remove(&self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            warn!(%error, path = %self.path.display(), "can't remove the control socket");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = path.symlink_metadata()?;
    Ok((found.dev(), found.ino()))
}

/// Binds and listens at `path`.
pub(super) fn listen(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    let fail = |action| {
        move |error: Errno| match error {
            Errno::NAMETOOLONG => BindError::PathTooLong { path: owned(path) },
            Errno::NOENT | Errno::NOTDIR => BindError::NoFolder { path: owned(path) },
            Errno::ACCESS | Errno::PERM | Errno::ROFS => {
                BindError::PermissionDenied { path: owned(path) }
            }
            Errno::ADDRINUSE => BindError::InUse { path: owned(path) },
            error => BindError::Io {
                path: owned(path),
                action,
                source: error.into(),
            },
        }
    };
    if path.as_os_str().len() > crate::MAX_SOCKET_PATH {
        return Err(BindError::PathTooLong { path: owned(path) });
    }
    let address = SocketAddrUnix::new(path).map_err(fail("name"))?;
    // Two servers that find the same stale file must not remove each other's new one.
    let lock = lock_folder(path);
    clear(path, &address, fail)?;
    let socket = stream_socket(SocketFlags::CLOEXEC).map_err(fail("open"))?;
    // The file gets its mode from the socket's inode, so it is never open to others, not even
    // for a moment.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(fail("protect"))?;
    rustix::net::bind(&socket, &address).map_err(fail("bind"))?;
    let identity = identity(path).map_err(|source| BindError::Io {
        path: owned(path),
        action: "find",
        source,
    })?;
    let file = SocketFile {
        path: owned(path),
        identity,
    };
    if let Err(error) = rustix::net::listen(&socket, BACKLOG) {
        file.remove();
        return Err(fail("listen on")(error));
    }
    drop(lock);
    Ok((UnixListener::from(socket), file))
}

fn stream_socket(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Makes way at `path`: removes a socket that nobody serves, refuses everything else.
fn clear<F: Fn(Errno) -> BindError>(
    path: &Path,
    address: &SocketAddrUnix,
    fail: impl Fn(&'static str) -> F,
) -> Result<(), BindError> {
    let Ok(found) = path.symlink_metadata() else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket { path: owned(path) });
    }
    let probe =
        stream_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).map_err(fail("open"))?;
    match rustix::net::connect(&probe, address) {
        Err(Errno::CONNREFUSED) => match std::fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(BindError::Io {
                path: owned(path),
                action: "replace the stale",
                source,
            }),
            _ => Ok(()),
        },
        Err(Errno::NOENT) => Ok(()),
        // A full backlog is a server too.
        Ok(()) | Err(Errno::AGAIN) => Err(BindError::InUse { path: owned(path) }),
        Err(error) => Err(fail("probe")(error)),
    }
}

/// Locks the socket's folder; the lock goes with the descriptor. Nobody can block us by holding
/// it: after a while we go on without.
fn lock_folder(path: &Path) -> Option<OwnedFd> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty()).ok()?;
    let begin = Instant::now();
    while rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err() {
        if begin.elapsed() > LOCK_WAIT {
            return None;
        }
        thread::sleep(Duration::from_millis(10));
    }
    Some(folder)
}
