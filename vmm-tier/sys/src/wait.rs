//! A wait: for time to pass or for descriptors, until a bell rings.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::{Errno, read, retry_on_intr, write},
};

/// A bell: ends the [wait](Wait) of another thread before its time.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// A bell that is silent.
    ///
    /// # Errors
    /// The kernel's, if there are too many descriptors.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(eventfd(0, flags)?))
    }

    /// Rings until it is silenced.
    pub fn ring(&self) {
        // Fails only if it was rung 2⁶⁴ times, and so rings already.
        let _ = retry_on_intr(|| write(&self.0, &1_u64.to_ne_bytes()));
    }

    /// Is silent until it is rung again.
    pub fn silence(&self) {
        // Fails if it is silent.
        let _ = retry_on_intr(|| read(&self.0, &mut [0; 8]));
    }
}

/// How long to wait, and the bell that ends it.
#[derive(Clone, Copy, Debug)]
pub struct Wait<'a> {
    /// The longest time.
    pub timeout: Duration,
    /// Ends the wait, if there is a bell.
    pub bell: Option<&'a Bell>,
}

impl From<Duration> for Wait<'_> {
    fn from(timeout: Duration) -> Self {
        let bell = None;
        Self { timeout, bell }
    }
}

impl Wait<'_> {
    /// The same, for no longer than `timeout`.
    #[must_use]
    pub fn at_most(self, timeout: Duration) -> Self {
        let timeout = self.timeout.min(timeout);
        Self { timeout, ..self }
    }

    /// Waits for nothing else.
    ///
    /// # Errors
    /// The kernel's, if it can't wait.
    pub fn pass(self) -> io::Result<()> {
        self.until_ready(&mut Vec::new()).map(|_| ())
    }

    /// Waits until one of these descriptors is ready, which its `revents` tell then. A signal may end
    /// the wait too. Returns whether the bell rings.
    ///
    /// # Errors
    /// The kernel's, if it can't wait.
    pub fn until_ready<'fd>(self, fds: &mut Vec<PollFd<'fd>>) -> io::Result<bool>
    where
        Self: 'fd,
    {
        let timeout = Timespec::try_from(self.timeout).unwrap_or(Timespec {
            tv_sec: 3600,
            tv_nsec: 0,
        });
        let own = fds.len();
        fds.extend(self.bell.map(|bell| PollFd::new(&bell.0, PollFlags::IN)));
        let polled = poll(fds, Some(&timeout));
        let rings = fds.get(own).is_some_and(|bell| !bell.revents().is_empty());
        fds.truncate(own);
        match polled {
            Ok(_) | Err(Errno::INTR) => Ok(rings),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixStream, thread};

    use super::*;

    /// No test waits for so long.
    const FOR_EVER: Duration = Duration::from_secs(600);

    fn for_ever(bell: &Bell) -> Wait<'_> {
        Wait {
            timeout: FOR_EVER,
            bell: Some(bell),
        }
    }

    #[test]
    fn wait_when_the_bell_rings_ends_until_that_is_silenced() {
        let bell = Bell::new().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| bell.ring());
            for_ever(&bell).pass().unwrap();
        });
        bell.ring();
        assert!(for_ever(&bell).until_ready(&mut Vec::new()).unwrap());

        bell.silence();

        bell.silence();
        let mut fds = vec![PollFd::new(&bell.0, PollFlags::IN)];
        Wait::from(Duration::ZERO).until_ready(&mut fds).unwrap();
        assert!(fds[0].revents().is_empty());
    }

    #[test]
    fn wait_when_a_descriptor_is_ready_says_which() {
        let (quiet, _other) = UnixStream::pair().unwrap();
        let (ended, _) = UnixStream::pair().unwrap();
        let bell = Bell::new().unwrap();
        let mut fds = vec![
            PollFd::new(&quiet, PollFlags::IN),
            PollFd::new(&ended, PollFlags::IN),
        ];

        assert!(!for_ever(&bell).until_ready(&mut fds).unwrap());

        assert_eq!(fds.len(), 2, "the bell is none of them");
        assert!(fds[0].revents().is_empty());
        assert!(fds[1].revents().contains(PollFlags::HUP));
    }

    #[test]
    fn wait_when_its_time_is_over_ends() {
        let bell = Bell::new().unwrap();
        for_ever(&bell).at_most(Duration::ZERO).pass().unwrap();
    }
}
