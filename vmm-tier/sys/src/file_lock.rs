//! A lock of all agents of a host: `flock(2)` on a file of the run directory.

use std::{
    fs::File,
    io,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

/// How often a lock that another has is tried again.
const POLL: Duration = Duration::from_millis(10);

/// A lock that is held; released when dropped, or when the process ends.
#[derive(Debug)]
pub struct FileLock(#[expect(dead_code, reason = "closing the file releases the lock")] File);

impl FileLock {
    /// Takes the lock of the file at `path`, which is made if it is not there. Waits `timeout` at most
    /// for whoever has it.
    ///
    /// # Errors
    /// The kernel's; [`io::ErrorKind::WouldBlock`] if another still has the lock.
    pub fn take(path: &Path, timeout: Duration) -> io::Result<Self> {
        Self::take_unless(path, timeout, || false)
    }

    /// As [`Self::take`], but waits no longer when `is_over`.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_unless(
        path: &Path,
        timeout: Duration,
        is_over: impl Fn() -> bool,
    ) -> io::Result<Self> {
        let mut options = File::options();
        options.create(true).truncate(false).write(true);
        let file = options.open(path)?;
        let begin = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(Errno::WOULDBLOCK | Errno::INTR) if begin.elapsed() < timeout && !is_over() => {
                    std::thread::sleep(POLL);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_when_another_has_it_is_refused_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = FileLock::take(&path, Duration::ZERO).unwrap();
        let refused = FileLock::take(&path, Duration::ZERO).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        let hour = Duration::from_secs(3600);
        let refused = FileLock::take_unless(&path, hour, || true).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        let waiting = {
            let path = path.clone();
            std::thread::spawn(move || FileLock::take(&path, Duration::from_secs(60)))
        };
        drop(held);
        waiting.join().unwrap().unwrap();
    }
}
