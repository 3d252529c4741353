//! The bounded queue of messages that wait for one client.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Messages out, bounded in number and bytes.
#[derive(Debug)]
pub(super) struct Queue {
    max_messages: usize,
    max_bytes: usize,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    messages: VecDeque<Rest>,
    bytes: usize,
    /// The writing thread has taken a message and may still be at it.
    writing: bool,
    end: End,
}

/// A message, or what is left of it.
#[derive(Debug)]
pub(super) struct Rest {
    message: Arc<[u8]>,
    written: usize,
}

/// What the writing thread finds.
#[derive(Debug)]
pub(super) enum Next {
    Message(Rest),
    NoneYet,
    /// There will be none.
    End,
}

impl Rest {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.message[self.written..]
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    /// Takes no more; what is there still goes out.
    Finished,
    /// What is there is dropped.
    Aborted,
}

impl Queue {
    pub(super) fn new(max_messages: usize, max_bytes: usize) -> Self {
        let (inner, changed) = (Mutex::default(), Condvar::new());
        Self {
            max_messages,
            max_bytes,
            inner,
            changed,
        }
    }

    /// Appends a message when there is room; whether it did. An empty queue takes a message of
    /// any size.
    ///
    /// A message that need not wait is given to `now`, which writes what goes out at once and says
    /// how many bytes that was: so most messages need no other thread.
    pub(super) fn offer(&self, message: Arc<[u8]>, now: impl FnOnce(&[u8]) -> usize) -> bool {
        let mut inner = self.lock();
        let room = self.has_room(&inner, message.len());
        if room && inner.end == End::Open && inner.push(message, now) {
            self.changed.notify_all();
        }
        room
    }

    /// Appends a message as [`offer`](Self::offer) does, waiting for room; `false` when the queue
    /// has ended. What others append after `first` was called comes after this message.
    pub(super) fn push(
        &self,
        message: Arc<[u8]>,
        first: impl FnOnce(),
        now: impl FnOnce(&[u8]) -> usize,
    ) -> bool {
        let mut inner = self.wait_while(|inner| !self.has_room(inner, message.len()));
        let open = inner.end == End::Open;
        if open {
            first();
            if inner.push(message, now) {
                self.changed.notify_all();
            }
        }
        open
    }

    /// Waits until at least half of the queue is free; `false` when it has ended.
    pub(super) fn wait_half_free(&self) -> bool {
        let inner = self.wait_while(|inner| {
            inner.messages.len() > self.max_messages / 2 || inner.bytes > self.max_bytes / 2
        });
        inner.end == End::Open
    }

    /// Takes the next message, waiting for one no longer than `timeout`.
    pub(super) fn pop(&self, timeout: Duration) -> Next {
        let mut inner = self.lock();
        inner.writing = false;
        let idle = |inner: &mut Inner| inner.messages.is_empty() && inner.end == End::Open;
        (inner, _) = self
            .changed
            .wait_timeout_while(inner, timeout, idle)
            .unwrap_or_else(PoisonError::into_inner);
        let Some(rest) = inner.messages.pop_front() else {
            return match inner.end {
                End::Open => Next::NoneYet,
                _ => Next::End,
            };
        };
        inner.bytes -= rest.message.len();
        inner.writing = true;
        self.changed.notify_all();
        Next::Message(rest)
    }

    /// Whether what is there was dropped.
    pub(super) fn is_aborted(&self) -> bool {
        self.lock().end == End::Aborted
    }

    fn wait_while(&self, full: impl Fn(&Inner) -> bool) -> MutexGuard<'_, Inner> {
        self.changed
            .wait_while(self.lock(), |inner| inner.end == End::Open && full(inner))
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets what is there go out and takes no more.
    pub(super) fn finish(&self) {
        let mut inner = self.lock();
        if inner.end == End::Open {
            inner.end = End::Finished;
        }
        self.changed.notify_all();
    }

    /// Drops what is there and takes no more; whether it was not so before.
    pub(super) fn abort(&self) -> bool {
        let mut inner = self.lock();
        let first = inner.end != End::Aborted;
        *inner = Inner {
            end: End::Aborted,
            ..Inner::default()
        };
        self.changed.notify_all();
        first
    }

    fn has_room(&self, inner: &Inner, len: usize) -> bool {
        inner.messages.is_empty()
            || (inner.messages.len() < self.max_messages && inner.bytes + len <= self.max_bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whether the writing thread has something to do.
    fn push(&mut self, message: Arc<[u8]>, now: impl FnOnce(&[u8]) -> usize) -> bool {
        let mut written = 0;
        if self.messages.is_empty() && !self.writing {
            written = now(&message);
            if written >= message.len() {
                return false;
            }
        }
        self.bytes += message.len();
        self.messages.push_back(Rest { message, written });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize) -> Arc<[u8]> {
        vec![b'x'; len].into()
    }

    /// The length of the next message that is there.
    fn next(queue: &Queue) -> Option<usize> {
        match queue.pop(Duration::ZERO) {
            Next::Message(rest) => Some(rest.bytes().len()),
            Next::NoneYet | Next::End => None,
        }
    }

    /// Nothing goes out at once.
    fn later(_: &[u8]) -> usize {
        0
    }

    #[test]
    fn message_is_refused_when_the_queue_is_full_in_number_or_bytes() {
        let queue = Queue::new(2, 100);

        assert!(queue.offer(message(60), later));
        assert!(!queue.offer(message(60), later), "60 + 60 > 100 bytes");
        assert!(queue.offer(message(40), later));
        assert!(!queue.offer(message(0), later), "3 > 2 messages");
    }

    #[test]
    fn oversized_message_is_taken_when_the_queue_is_empty() {
        let queue = Queue::new(2, 100);

        assert!(queue.offer(message(1000), later));

        assert_eq!(next(&queue), Some(1000));
    }

    #[test]
    fn only_the_rest_waits_when_a_part_went_out_at_once() {
        let queue = Queue::new(2, 100);

        assert!(queue.offer(message(10), <[u8]>::len));
        assert!(queue.offer(message(10), |_| 4));
        assert!(queue.offer(message(3), |_| panic!("it must wait its turn")));

        assert_eq!([next(&queue), next(&queue)], [Some(6), Some(3)]);
        // The second is being written.
        assert!(queue.offer(message(1), |_| panic!("it must wait its turn")));
    }

    #[test]
    fn rest_goes_out_when_finished_and_is_dropped_when_aborted() {
        let finished = Queue::new(8, 100);
        let aborted = Queue::new(8, 100);
        finished.offer(message(1), later);
        aborted.offer(message(1), later);

        finished.finish();
        let first = aborted.abort();

        assert_eq!([next(&finished), next(&finished)], [Some(1), None]);
        assert_eq!(next(&aborted), None);
        assert!(aborted.is_aborted() && !finished.is_aborted());
        assert!(first && !aborted.abort());
        assert!(!finished.push(message(1), || {}, later));
        assert!(!aborted.push(message(1), || {}, later));
        assert!(!finished.wait_half_free() && !aborted.wait_half_free());
    }
}
