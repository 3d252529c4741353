//! The published figures: the last reply to `query-host`, for readers that never make the owner wait.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::report::HostInfo;

/// The figures as they were at a time.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) made: Instant,
    pub(crate) host: HostInfo,
}

/// Where the owner puts the figures, and readers find them.
#[derive(Debug, Default)]
pub(crate) struct Published(Mutex<Option<Arc<Figures>>>);

impl Published {
    /// Replaces the figures. Readers hold the lock no longer than it takes to copy a pointer.
    pub(crate) fn put(&self, host: HostInfo) {
        let made = Instant::now();
        let old = self.lock().replace(Arc::new(Figures { made, host }));
        drop(old);
    }

    /// The last figures; `None` before the first.
    pub(crate) fn last(&self) -> Option<Arc<Figures>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Figures>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
