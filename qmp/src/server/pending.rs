//! Commands of one client that were sent on and whose replies are still to come.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Counts them, and lets a thread wait for fewer or none.
#[derive(Debug, Default)]
pub(super) struct Pending {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    under_way: usize,
    closed: bool,
}

impl Pending {
    /// Counts one more, waiting until there are fewer than `most`; `false` when it was closed.
    pub(super) fn begin(&self, most: usize) -> bool {
        let mut inner = self.wait_while(|inner| inner.under_way >= most.max(1));
        inner.under_way += usize::from(!inner.closed);
        !inner.closed
    }

    /// One has its reply, or will never have one.
    pub(super) fn end(&self) {
        let mut inner = self.lock();
        inner.under_way = inner.under_way.saturating_sub(1);
        self.changed.notify_all();
    }

    /// Waits until none is under way; `false` when it was closed.
    pub(super) fn wait_idle(&self) -> bool {
        !self.wait_while(|inner| inner.under_way > 0).closed
    }

    /// As [`wait_idle`](Self::wait_idle), for no longer than `timeout`.
    pub(super) fn wait_idle_for(&self, timeout: Duration) {
        let waits = |inner: &mut Inner| inner.under_way > 0 && !inner.closed;
        drop(self.changed.wait_timeout_while(self.lock(), timeout, waits));
    }

    /// Lets everybody go who waits, now and later.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn wait_while(&self, busy: impl Fn(&Inner) -> bool) -> MutexGuard<'_, Inner> {
        self.changed
            .wait_while(self.lock(), |inner| !inner.closed && busy(inner))
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_when_it_was_closed() {
        let pending = Pending::default();
        assert!(pending.begin(1));

        pending.close();

        assert!(!pending.begin(1) && !pending.wait_idle());
    }

    #[test]
    fn waiting_one_begins_when_another_ends() {
        let pending = Pending::default();
        assert!(pending.begin(1));

        std::thread::scope(|scope| {
            let second = scope.spawn(|| pending.begin(1));
            pending.end();
            assert!(second.join().is_ok_and(|began| began));
        });
        pending.end();

        assert!(pending.wait_idle());
    }
}
