//! Connecting again after QEMU left, and knowing that everything must be asked again.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crossbeam::channel::Receiver;

use super::{Client, ConnectError, Options};
use crate::event::Event;

/// The first pause between two tries; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Connects to one socket again and again: QEMU may be restarted, and its socket made again.
///
/// It has no thread and never sleeps: [`poll`](Self::poll) tries when a try is due, and
/// [`due_in`](Self::due_in) says how long to wait for that.
///
/// ```
/// use std::time::Duration;
///
/// use qmp::client::{Options, Reconnecting};
///
/// let mut reconnecting = Reconnecting::new("/nowhere/qmp.sock", Options::default());
/// assert!(reconnecting.poll().is_err());
/// // The next try waits a little, then longer and longer.
/// assert!(reconnecting.due_in() > Duration::ZERO);
/// assert!(matches!(reconnecting.poll(), Ok(None)));
/// ```
#[derive(Debug)]
pub struct Reconnecting {
    path: PathBuf,
    options: Options,
    pause: Duration,
    next_try: Instant,
    generation: u64,
    pid: Option<u32>,
}

/// A new connection. Nothing that was known from an earlier one holds: commands under way may or
/// may not have been carried out, events were missed, capabilities are negotiated again, and it may
/// be another QEMU. Ask for everything again.
#[derive(Debug)]
#[must_use = "what was known before must be asked again"]
pub struct Resync {
    /// The connection.
    pub client: Client,
    /// Its events.
    pub events: Receiver<Event>,
    /// 1 for the first connection, then one more each.
    pub generation: u64,
    /// Whether another process than before serves the socket; `false` for the first connection.
    pub is_new_process: bool,
}

impl Reconnecting {
    /// For the socket at `path`; the first try is due at once.
    #[must_use]
    pub fn new(path: impl AsRef<Path>, options: Options) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            options,
            pause: FIRST_PAUSE,
            next_try: Instant::now(),
            generation: 0,
            pid: None,
        }
    }

    /// How long it is until a try is due.
    #[must_use]
    pub fn due_in(&self) -> Duration {
        self.next_try.saturating_duration_since(Instant::now())
    }

    /// Tries to connect if a try is due; `None` if it isn't.
    ///
    /// # Errors
    /// As [`Client::connect`]; the next try is then due after a pause.
    pub fn poll(&mut self) -> Result<Option<Resync>, ConnectError> {
        if !self.due_in().is_zero() {
            return Ok(None);
        }
        let connected = Client::connect(&self.path, &self.options);
        // Also after success: a QEMU that drops us at once must not make us spin.
        self.next_try = Instant::now() + self.pause;
        let (client, events) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                self.pause = LONGEST_PAUSE.min(self.pause * 2);
                return Err(error);
            }
        };
        self.pause = FIRST_PAUSE;
        self.generation += 1;
        let pid = client.peer().pid;
        let before = self.pid.replace(pid);
        Ok(Some(Resync {
            client,
            events,
            generation: self.generation,
            is_new_process: before.is_some_and(|before| before != pid),
        }))
    }
}
