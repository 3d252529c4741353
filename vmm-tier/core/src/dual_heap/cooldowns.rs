//! When cooldowns end.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
};

use super::states::Why;
use crate::time::Time;

/// The ends of cooldowns. An entry may be out of date: its page has left or its time changed.
#[derive(Debug, Default)]
pub(crate) struct Cooldowns(BinaryHeap<Reverse<(Time, u32)>>);

impl Cooldowns {
    pub(crate) fn add(&mut self, end: Time, id: u32) {
        self.0.push(Reverse((end, id)));
    }

    /// The next page whose cooldown has ended at `now`, where `why` says why a page stands aside.
    pub(crate) fn next_ended(
        &mut self,
        now: Time,
        why: impl Fn(u32) -> Option<Why>,
    ) -> Option<u32> {
        while let Some(&Reverse((end, id))) = self.0.peek() {
            if end > now {
                return None;
            }
            self.0.pop();
            if why(id) == Some(Why::Cooling(end)) {
                return Some(id);
            }
        }
        None
    }

    /// When the next cooldown ends (or a cooldown that was given up would have).
    pub(crate) fn next_end(&self) -> Option<Time> {
        self.0.peek().map(|Reverse((end, _))| *end)
    }

    /// Drops all, and the memory that they took.
    pub(crate) fn clear(&mut self) {
        self.0 = BinaryHeap::new();
    }

    /// Bytes of memory held.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.0.capacity() * size_of::<(Time, u32)>()
    }

    /// All of them, for checks.
    pub(crate) fn all(&self) -> HashSet<(Time, u32)> {
        self.0.iter().map(|Reverse(end)| *end).collect()
    }
}
