//! The published figures: the last reply to `query-host`, for readers that never make the owner wait.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tier_core::time::Time;
use tier_sys::process::now;
use tokio::sync::watch;

use super::report::HostInfo;

/// The figures as they were at a time.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) made: Time,
    pub(crate) host: HostInfo,
}

impl Figures {
    /// How old they are.
    pub(crate) fn age(&self) -> Duration {
        now().since(self.made)
    }
}

/// Where the owner puts the figures, and readers find them.
#[derive(Debug, Default)]
pub(crate) struct Published {
    last: Mutex<Option<Arc<Figures>>>,
    has_new: Condvar,
    /// The same for readers that are tasks.
    watched: watch::Sender<Option<Arc<Figures>>>,
}

impl Published {
    /// Replaces the figures. Readers hold the lock no longer than it takes to copy a pointer.
    pub(crate) fn put(&self, host: HostInfo) {
        let figures = Arc::new(Figures { made: now(), host });
        let old = self.lock().replace(figures.clone());
        self.has_new.notify_all();
        self.watched.send_replace(Some(figures));
        drop(old);
    }

    /// The last figures; `None` before the first.
    pub(crate) fn last(&self) -> Option<Arc<Figures>> {
        self.lock().clone()
    }

    /// Hears of new figures, and of the last ones at once.
    pub(super) fn watch(&self) -> watch::Receiver<Option<Arc<Figures>>> {
        let mut watched = self.watched.subscribe();
        if watched.borrow().is_some() {
            watched.mark_changed();
        }
        watched
    }

    /// Waits for figures other than `known`.
    pub(super) fn wait_for_new(&self, known: Option<&Arc<Figures>>) -> Arc<Figures> {
        let mut last = self.lock();
        loop {
            match &*last {
                Some(new) if known.is_none_or(|known| !Arc::ptr_eq(known, new)) => {
                    return new.clone();
                }
                _ => {
                    let waited = self.has_new.wait(last);
                    last = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Figures>>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
