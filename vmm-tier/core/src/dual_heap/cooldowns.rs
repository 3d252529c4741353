//! The ends of cooldowns, the earliest first.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
};

use crate::time::Time;

/// Times and pages. An entry is out of date if its page has left the side table or has another end now.
#[derive(Debug, Default)]
pub(super) struct Cooldowns(BinaryHeap<Reverse<(Time, u32)>>);

impl Cooldowns {
    /// Adds the end of a page's cooldown.
    pub(super) fn add(&mut self, end: Time, id: u32) {
        self.0.push(Reverse((end, id)));
    }

    /// Takes out a page whose cooldown has ended at `now`. `cools_until` says until when a page cools
    /// down, if it does; entries that are out of date are dropped.
    pub(super) fn next_ended(
        &mut self,
        now: Time,
        cools_until: impl Fn(u32) -> Option<Time>,
    ) -> Option<u32> {
        while let Some(&Reverse((end, id))) = self.0.peek() {
            if end > now {
                return None;
            }
            self.0.pop();
            if cools_until(id) == Some(end) {
                return Some(id);
            }
        }
        None
    }

    /// Bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.0.capacity() * size_of::<(Time, u32)>()
    }

    /// All entries, for checks.
    pub(super) fn all(&self) -> HashSet<(Time, u32)> {
        self.0.iter().map(|Reverse(end)| *end).collect()
    }
}
