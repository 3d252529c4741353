//! Moves under way.

use crate::{
    dual_heap::PageId,
    moves::{Direction, Page},
};

/// A page under way, as the heaps and as the kernel know it.
pub(crate) type FlyingPage = (PageId, Page);

/// A batch under way.
#[derive(Debug)]
pub(crate) struct Flight {
    id: u64,
    pub(crate) direction: Direction,
    /// Its pages, in the order in which the report has them.
    pub(crate) pages: Vec<FlyingPage>,
}

/// An exchange whose demotions are under way.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// The id of the demotion batch.
    pub(crate) demotion: u64,
    /// What is promoted into the room that it makes, hottest first. In flight already.
    pub(crate) waiting: Vec<FlyingPage>,
}

/// Remembers the batches under way and the exchange that waits for one of them.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    last_id: u64,
    batches: Vec<Flight>,
    pub(crate) exchange: Option<Exchange>,
}

impl Flights {
    /// Whether nothing is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.exchange.is_none()
    }

    /// Pages under way or waiting for the room that a batch makes.
    pub(crate) fn pages(&self) -> impl Iterator<Item = &FlyingPage> {
        let waiting = self.exchange.iter().flat_map(|e| &e.waiting);
        self.batches.iter().flat_map(|f| &f.pages).chain(waiting)
    }

    /// Bytes of promotions under way.
    pub(crate) fn promoting_bytes(&self) -> u64 {
        let promotions = self
            .batches
            .iter()
            .filter(|f| f.direction == Direction::Promote);
        promotions
            .flat_map(|f| &f.pages)
            .map(|(_, page)| page.bytes)
            .sum()
    }

    /// Registers a batch and names it.
    pub(crate) fn launch(&mut self, direction: Direction, pages: Vec<FlyingPage>) -> u64 {
        self.last_id += 1;
        self.batches.push(Flight {
            id: self.last_id,
            direction,
            pages,
        });
        self.last_id
    }

    /// Ends a batch; `None` if it is not under way (it was launched under an older map).
    pub(crate) fn land(&mut self, id: u64) -> Option<Flight> {
        let at = self.batches.iter().position(|flight| flight.id == id)?;
        Some(self.batches.remove(at))
    }

    /// Takes the exchange that waits for demotion `id`.
    pub(crate) fn exchange_after(&mut self, id: u64) -> Option<Exchange> {
        self.exchange.take_if(|exchange| exchange.demotion == id)
    }

    /// Forgets everything under way; batch ids stay unique.
    pub(crate) fn clear(&mut self) {
        *self = Self {
            last_id: self.last_id,
            ..Self::default()
        };
    }
}
