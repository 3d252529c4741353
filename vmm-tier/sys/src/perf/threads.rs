//! The same events on each thread of a set that changes.
//!
//! `inherit` makes the ring's mmap fail and a ring belongs to one thread (facts of
//! `kernel/events/core.c`), so every thread has its own events and rings. Threads come and go: one that
//! is gone is no error, and what it wrote before it ended is still read.

use std::{collections::BTreeMap, io};

use rustix::event::{PollFd, PollFlags};

use super::{
    collect::{Collected, Drained},
    event::{Event, EventError, EventSpec, Rate, Target},
    record::Sample,
};
use crate::{sysroot::SysRoot, wait::Wait};

/// What is opened on each thread: an event, perhaps behind a leader that only counts.
#[derive(Clone, Debug)]
pub struct ThreadEvent {
    /// The leader of the group, if the event needs one.
    pub leader: Option<EventSpec>,
    /// The event that samples.
    pub event: EventSpec,
}

impl From<EventSpec> for ThreadEvent {
    fn from(event: EventSpec) -> Self {
        Self {
            leader: None,
            event,
        }
    }
}

impl ThreadEvent {
    /// Opens it; it begins disabled.
    ///
    /// # Errors
    /// [`EventError`], whose text says what to do.
    pub fn open(&self, root: &SysRoot, target: Target) -> Result<Event, EventError> {
        match &self.leader {
            Some(leader) => Event::open_group(root, leader, &self.event, target),
            None => Event::open(root, &self.event, target),
        }
    }
}

/// The events of one thread.
#[derive(Debug)]
struct Thread {
    events: Vec<Event>,
    /// It ended or is no longer of interest: its rings are read once more and closed.
    leaving: bool,
}

/// The events of a set of threads.
#[derive(Debug)]
pub struct ThreadEvents {
    root: SysRoot,
    wanted: Vec<ThreadEvent>,
    threads: BTreeMap<u32, Thread>,
}

impl ThreadEvents {
    /// No threads yet; each will have these events.
    #[must_use]
    pub fn new(root: &SysRoot, wanted: Vec<ThreadEvent>) -> Self {
        Self {
            root: root.clone(),
            wanted,
            threads: BTreeMap::new(),
        }
    }

    /// Watches exactly these threads from now on. A thread that does not exist is left out. Returns how
    /// many are watched.
    ///
    /// # Errors
    /// [`EventError`] if an event is refused for another reason; the threads that were watched before
    /// are still watched then.
    pub fn follow(&mut self, tids: &[u32]) -> Result<usize, EventError> {
        let mut fresh = BTreeMap::new();
        for &tid in tids {
            // All CPUs of an emulated guest may share one thread.
            let known = self.threads.get(&tid).is_some_and(|thread| !thread.leaving);
            if known || fresh.contains_key(&tid) {
                continue;
            }
            match self.open(tid) {
                Ok(events) => {
                    let leaving = false;
                    fresh.insert(tid, Thread { events, leaving });
                }
                Err(error) if error.is_target_gone() => {}
                Err(error) => return Err(error),
            }
        }
        for (tid, thread) in &mut self.threads {
            thread.leaving |= !tids.contains(tid);
        }
        self.threads.extend(fresh);
        Ok(self.watched())
    }

    fn open(&self, tid: u32) -> Result<Vec<Event>, EventError> {
        let open = |wanted: &ThreadEvent| {
            let event = wanted.open(&self.root, Target::Thread(tid))?;
            event.enable()?;
            Ok(event)
        };
        self.wanted.iter().map(open).collect()
    }

    /// How many threads are watched.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.threads
            .values()
            .filter(|thread| !thread.leaving)
            .count()
    }

    /// The event of this index samples one in `period` from now on, on the threads there are and on
    /// those to come.
    ///
    /// # Errors
    /// [`EventError::Refused`].
    pub fn set_period(&mut self, index: usize, period: u64) -> Result<(), EventError> {
        if let Some(wanted) = self.wanted.get_mut(index) {
            wanted.event.rate = Rate::Period(period);
        }
        for thread in self.threads.values_mut().filter(|thread| !thread.leaving) {
            if let Some(event) = thread.events.get_mut(index) {
                event.set_period(period)?;
            }
        }
        Ok(())
    }

    /// How many events each thread has.
    #[must_use]
    pub fn events(&self) -> usize {
        self.wanted.len()
    }

    /// Waits until a ring is filled to its watermark, a thread ends, or the wait does.
    ///
    /// # Errors
    /// The kernel's, if it can't wait.
    pub fn wait<'a>(&mut self, wait: impl Into<Wait<'a>>) -> io::Result<()> {
        // Rings that are read without waiting.
        if self.threads.values().any(|thread| thread.leaving) {
            return Ok(());
        }
        let mut tids = Vec::new();
        let mut fds = Vec::new();
        for (&tid, thread) in &self.threads {
            for event in &thread.events {
                tids.push(tid);
                fds.push(PollFd::new(event, PollFlags::IN));
            }
        }
        wait.into().until_ready(&mut fds)?;
        let gone = PollFlags::HUP | PollFlags::ERR;
        let ended: Vec<u32> = tids
            .into_iter()
            .zip(&fds)
            .filter(|(_, fd)| fd.revents().intersects(gone))
            .map(|(tid, _)| tid)
            .collect();
        for tid in ended {
            if let Some(thread) = self.threads.get_mut(&tid) {
                thread.leaving = true;
            }
        }
        Ok(())
    }

    /// Hands every sample in every ring to `take`, with the index of its event, and lets go of the
    /// threads that ended. Counts the other records of all rings.
    pub fn collect(&mut self, mut take: impl FnMut(usize, Sample<'_>)) -> Collected {
        let collected = Collected::by(|collected| {
            let mut sum = Drained::default();
            for thread in self.threads.values_mut() {
                for (index, event) in thread.events.iter_mut().enumerate() {
                    if thread.leaving {
                        // An error means that there is nothing left to stop.
                        let _ = event.disable();
                    }
                    sum.add(event.drain(|record| {
                        if let Some(sample) = collected.sample(record) {
                            take(index, sample);
                        }
                    }));
                }
            }
            sum
        });
        self.threads.retain(|_, thread| !thread.leaving);
        collected
    }
}
