//! When cooldowns end.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
};

use super::states::Why;
use crate::time::Time;

/// The ends of cooldowns. An entry may be out of date: its page has left or its time changed.
#[derive(Debug, Default)]
pub(super) struct Cooldowns(BinaryHeap<Reverse<(Time, u32)>>);

impl Cooldowns {
    pub(super) fn add(&mut self, end: Time, id: u32) {
        self.0.push(Reverse((end, id)));
    }

    /// The next page whose cooldown has ended at `now`, where `why` says why a page stands aside.
    pub(super) fn next_ended(
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

    /// Bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.0.capacity() * size_of::<(Time, u32)>()
    }

    /// All of them, for checks.
    pub(super) fn all(&self) -> HashSet<(Time, u32)> {
        self.0.iter().map(|Reverse(end)| *end).collect()
    }
}
