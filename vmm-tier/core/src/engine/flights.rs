//! Moves under way.

use crate::{dual_heap::PageId, moves::Page};

/// An exchange whose demotions are under way.
#[derive(Debug)]
pub(super) struct Exchange {
    /// The id of the demotion batch.
    pub(super) demotion: u64,
    /// What is promoted into the room that it makes, hottest first. In flight already.
    pub(super) waiting: Vec<(PageId, Page)>,
}

/// Counts batches under way and remembers the exchange that waits for one of them.
#[derive(Debug, Default)]
pub(super) struct Flights {
    last_id: u64,
    batches: Vec<(u64, u64)>,
    pub(super) exchange: Option<Exchange>,
}

impl Flights {
    /// Whether nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.exchange.is_none()
    }

    /// Pages under way or waiting for the room that a batch makes.
    pub(super) fn pages(&self) -> u64 {
        let waiting = self.exchange.as_ref().map_or(0, |e| e.waiting.len() as u64);
        self.batches.iter().map(|&(_, pages)| pages).sum::<u64>() + waiting
    }

    /// Registers a batch of `pages` pages and names it.
    pub(super) fn launch(&mut self, pages: u64) -> u64 {
        self.last_id += 1;
        self.batches.push((self.last_id, pages));
        self.last_id
    }

    /// Ends a batch. Returns false if it is not under way (it was launched under an older map).
    pub(super) fn land(&mut self, id: u64) -> bool {
        let before = self.batches.len();
        self.batches.retain(|&(batch, _)| batch != id);
        self.batches.len() < before
    }

    /// Takes the exchange that waits for demotion `id`.
    pub(super) fn exchange_after(&mut self, id: u64) -> Option<Exchange> {
        self.exchange.take_if(|exchange| exchange.demotion == id)
    }

    /// Forgets everything under way; batch ids stay unique.
    pub(super) fn clear(&mut self) {
        *self = Self {
            last_id: self.last_id,
            ..Self::default()
        };
    }
}
