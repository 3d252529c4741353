//! What runs inside the emulated host, as its first process.

pub mod agent;
pub mod attempt;
pub mod boot;
mod bridge;
pub mod guest;
pub mod measure;
pub mod monitor;
pub mod pmu;
mod punch;
pub mod records;
pub mod steps;

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::event::{Event, Mark};
use crate::patience::{Limits, Pace};

/// Where the sockets of guests and agents are.
pub const RUN_FOLDER: &str = "/run/lab";
/// The agent under test.
pub const AGENT: &str = "/usr/bin/vmm-tier";

/// How fast this machine emulates: found out once, at the start.
static PACE: OnceLock<Pace> = OnceLock::new();

/// What takes so long on the reference machine takes as long as this here.
#[must_use]
pub fn scaled(reference: Duration) -> Duration {
    PACE.get().map_or(reference, |pace| pace.scaled(reference))
}

impl Limits {
    /// The limits of the reference machine, for this one.
    #[must_use]
    pub fn scaled(self) -> Self {
        PACE.get().map_or(self, |pace| self.at(*pace))
    }
}

/// Writes events to the developer's machine; shared by all threads.
#[derive(Debug, Clone)]
pub struct Reporter {
    inner: Arc<Mutex<(File, Instant)>>,
}

impl Reporter {
    /// A reporter that writes to the event port.
    #[must_use]
    pub fn new(port: File) -> Self {
        Self {
            inner: Arc::new(Mutex::new((port, Instant::now()))),
        }
    }

    /// Starts the clock of a run.
    pub fn start_clock(&self) {
        locked(&self.inner).1 = Instant::now();
    }

    /// Seconds since the start of the run.
    #[must_use]
    pub fn t(&self) -> f64 {
        let millis = locked(&self.inner).1.elapsed().as_millis();
        millis as f64 / 1000.0
    }

    /// Writes one event. Nobody could be told of a failure: the port is the only way out.
    pub fn tell(&self, event: &Event) {
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            let _ = locked(&self.inner).0.write_all(&line);
        }
    }

    /// Says what takes time now.
    pub fn progress(&self, what: impl Into<String>) {
        self.tell(&Event::Progress { what: what.into() });
    }

    /// A moment that others are measured from.
    pub fn mark(&self, mark: Mark, guest: &str) {
        self.tell(&Event::Mark {
            t: self.t(),
            mark,
            guest: guest.to_owned(),
        });
    }

    /// A line that a program printed.
    pub fn log(&self, source: &str, line: impl Into<String>) {
        self.tell(&Event::Log {
            source: source.to_owned(),
            line: line.into(),
        });
    }
}

/// Locks even after a panic of another thread: the data are plain values.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
