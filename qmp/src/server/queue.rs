//! The bounded queue of messages that wait for one client.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
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
    messages: VecDeque<Arc<[u8]>>,
    bytes: usize,
    end: End,
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
    pub(super) fn offer(&self, message: Arc<[u8]>) -> bool {
        let mut inner = self.lock();
        let room = self.has_room(&inner, message.len());
        if room && inner.end == End::Open {
            inner.push(message);
            self.changed.notify_all();
        }
        room
    }

    /// Appends a message, waiting for room; `false` when the queue has ended.
    pub(super) fn push(&self, message: Arc<[u8]>) -> bool {
        let mut inner = self.lock();
        while inner.end == End::Open && !self.has_room(&inner, message.len()) {
            inner = self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let open = inner.end == End::Open;
        if open {
            inner.push(message);
            self.changed.notify_all();
        }
        open
    }

    /// Takes the next message, waiting for one; `None` when the queue has ended.
    pub(super) fn pop(&self) -> Option<Arc<[u8]>> {
        let mut inner = self.lock();
        loop {
            if let Some(message) = inner.messages.pop_front() {
                inner.bytes -= message.len();
                self.changed.notify_all();
                return Some(message);
            }
            if inner.end != End::Open {
                return None;
            }
            inner = self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
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
    fn push(&mut self, message: Arc<[u8]>) {
        self.bytes += message.len();
        self.messages.push_back(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize) -> Arc<[u8]> {
        vec![b'x'; len].into()
    }

    #[test]
    fn message_is_refused_when_the_queue_is_full_in_number_or_bytes() {
        let queue = Queue::new(2, 100);

        assert!(queue.offer(message(60)));
        assert!(!queue.offer(message(60)), "60 + 60 > 100 bytes");
        assert!(queue.offer(message(40)));
        assert!(!queue.offer(message(0)), "3 > 2 messages");
    }

    #[test]
    fn oversized_message_is_taken_when_the_queue_is_empty() {
        let queue = Queue::new(2, 100);

        assert!(queue.offer(message(1000)));

        assert_eq!(queue.pop().map(|message| message.len()), Some(1000));
    }

    #[test]
    fn rest_goes_out_when_finished_and_is_dropped_when_aborted() {
        let finished = Queue::new(8, 100);
        let aborted = Queue::new(8, 100);
        finished.offer(message(1));
        aborted.offer(message(1));

        finished.finish();
        let first = aborted.abort();

        assert!(finished.pop().is_some() && finished.pop().is_none());
        assert!(aborted.pop().is_none());
        assert!(first && !aborted.abort());
        assert!(!finished.push(message(1)) && !aborted.push(message(1)));
    }
}
