//! How much may be under way to QEMU at a time, given out in turn.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, Thread},
    time::Duration,
};

/// How often one who waits looks whether it is still worth it.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// Bounds the commands under way in number and bytes. Who waits gets a place in the order of
/// asking, so one client that asks for much leaves the others their share.
///
/// Only the one whose turn it is is woken: with many clients, waking all for each place would cost
/// more than the commands.
#[derive(Debug)]
pub(super) struct Window {
    most: usize,
    most_bytes: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    used: usize,
    bytes: usize,
    /// Those who wait, by number.
    waiting: VecDeque<(u64, Thread)>,
    next: u64,
    closed: bool,
}

/// A place in the window; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    window: Arc<Window>,
    bytes: usize,
}

impl Window {
    pub(super) fn new(most: usize, most_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            most_bytes,
            inner: Mutex::default(),
        })
    }

    /// Waits for a place for a message of `bytes` bytes; an empty window takes any. `None` when the
    /// window was closed or the wait `is_given_up`.
    pub(super) fn enter(
        self: &Arc<Self>,
        bytes: usize,
        is_given_up: impl Fn() -> bool,
    ) -> Option<Permit> {
        let mut inner = self.lock();
        if !inner.waiting.is_empty() || !self.has_room(&inner, bytes) {
            let number = inner.next;
            inner.next += 1;
            inner.waiting.push_back((number, thread::current()));
            let must_wait = |inner: &Inner| {
                let is_first = inner.waiting.front().is_some_and(|at| at.0 == number);
                !is_first || !self.has_room(inner, bytes)
            };
            let mut given_up = false;
            while !inner.closed && !given_up && must_wait(&inner) {
                drop(inner);
                // Whoever frees a place after we let go of the lock has set our token.
                thread::park_timeout(LOOK_AROUND);
                given_up = is_given_up();
                inner = self.lock();
            }
            inner.waiting.retain(|at| at.0 != number);
            if given_up {
                // It may have been our turn.
                inner.wake_first();
                return None;
            }
        }
        if inner.closed {
            return None;
        }
        inner.used += 1;
        inner.bytes += bytes;
        // The next may have room too.
        inner.wake_first();
        let window = Arc::clone(self);
        Some(Permit { window, bytes })
    }

    fn has_room(&self, inner: &Inner, bytes: usize) -> bool {
        inner.used == 0 || (inner.used < self.most && inner.bytes + bytes <= self.most_bytes)
    }

    /// Lets everybody go who waits, now and later.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        for (_, thread) in &inner.waiting {
            thread.unpark();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn wake_first(&self) {
        if let Some((_, thread)) = self.waiting.front() {
            thread.unpark();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inner = self.window.lock();
        inner.used -= 1;
        inner.bytes -= self.bytes;
        inner.wake_first();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    fn never() -> bool {
        false
    }

    fn wait_for(window: &Window, waiting: usize) {
        while window.lock().waiting.len() < waiting {
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn places_are_given_in_the_order_of_asking_when_the_window_is_full() {
        let window = Window::new(1, 100);
        let first = window.enter(10, never).unwrap();
        let (sender, order) = mpsc::channel();
        thread::scope(|scope| {
            for number in 0..3 {
                let (sender, window) = (sender.clone(), &window);
                scope.spawn(move || {
                    let permit = window.enter(10, never).unwrap();
                    sender.send(number).unwrap();
                    drop(permit);
                });
                wait_for(window, number + 1);
            }
            drop(first);
        });

        assert_eq!(order.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn message_waits_when_bytes_are_used_up_and_any_goes_when_nothing_is_under_way() {
        let window = Window::new(8, 100);
        let huge = window.enter(1000, never).unwrap();
        thread::scope(|scope| {
            let small = scope.spawn(|| window.enter(1, never));
            wait_for(&window, 1);
            drop(huge);
            assert!(small.join().unwrap().is_some());
        });
        assert_eq!(window.lock().bytes, 0);
    }

    #[test]
    fn nobody_waits_when_the_window_is_closed() {
        let window = Window::new(1, 100);
        let _first = window.enter(1, never);
        thread::scope(|scope| {
            let second = scope.spawn(|| window.enter(1, never));
            wait_for(&window, 1);
            window.close();
            assert!(second.join().unwrap().is_none());
        });
    }

    #[test]
    fn next_one_gets_the_place_when_the_first_in_line_gives_up() {
        let window = Window::new(1, 100);
        let first = window.enter(1, never);
        thread::scope(|scope| {
            let gone = scope.spawn(|| window.enter(1, || true));
            assert!(gone.join().unwrap().is_none());
            let next = scope.spawn(|| window.enter(1, never));
            wait_for(&window, 1);
            drop(first);
            assert!(next.join().unwrap().is_some());
        });
    }
}
