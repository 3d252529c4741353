//! Moves under way: batches that the kernel works on, and the exchange that waits for one of them.

use std::collections::BTreeSet;

use crate::{
    dual_heap::PageId,
    engine::guest_pages::GuestPages,
    moves::{Direction, Page},
};

/// A page under way, as the heaps and as the kernel know it.
pub(crate) type MovingPage = (PageId, Page);

/// A batch under way.
#[derive(Debug)]
pub(crate) struct BatchUnderWay {
    id: u64,
    pub(crate) direction: Direction,
    /// Its pages, in the order in which the report has them.
    pub(crate) pages: Vec<MovingPage>,
    /// Whether an operator's order, or a host's share, moves them: whatever they are worth.
    pub(crate) is_ordered: bool,
}

/// An exchange whose demotions are under way.
#[derive(Debug)]
pub(crate) struct WaitingExchange {
    /// The id of the demotion batch.
    pub(crate) demotion: u64,
    /// Bytes of the frames of all pages.
    pub(crate) frame_bytes: u64,
    /// The pages that are promoted into the room that it makes, hottest first. They are in flight
    /// already.
    pub(crate) promote: Vec<MovingPage>,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    last_id: u64,
    batches: Vec<BatchUnderWay>,
    pub(crate) exchange: Option<WaitingExchange>,
}

impl InFlight {
    /// Whether nothing is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.exchange.is_none()
    }

    /// Pages under way or waiting for the room that a batch makes.
    pub(crate) fn pages(&self) -> impl Iterator<Item = &MovingPage> {
        let waiting = self.exchange.iter().flat_map(|e| &e.promote);
        self.batches.iter().flat_map(|b| &b.pages).chain(waiting)
    }

    /// Bytes of promotions under way.
    pub(crate) fn promoting_bytes(&self) -> u64 {
        let promotions = self
            .batches
            .iter()
            .filter(|batch| batch.direction == Direction::Promote);
        promotions
            .flat_map(|batch| &batch.pages)
            .map(|(_, page)| page.bytes)
            .sum()
    }

    /// Registers a batch and names it.
    pub(crate) fn begin(&mut self, direction: Direction, pages: Vec<MovingPage>) -> u64 {
        self.last_id += 1;
        self.batches.push(BatchUnderWay {
            id: self.last_id,
            direction,
            pages,
            is_ordered: false,
        });
        self.last_id
    }

    /// The batches under way carry out an order.
    pub(crate) fn are_ordered(&mut self) {
        for batch in &mut self.batches {
            batch.is_ordered = true;
        }
    }

    /// Ends a batch; `None` if it is not under way (it began under an older map).
    pub(crate) fn end(&mut self, id: u64) -> Option<BatchUnderWay> {
        let at = self.batches.iter().position(|batch| batch.id == id)?;
        Some(self.batches.remove(at))
    }

    /// Takes the exchange that waits for demotion `id`.
    pub(crate) fn exchange_after(&mut self, id: u64) -> Option<WaitingExchange> {
        self.exchange.take_if(|exchange| exchange.demotion == id)
    }

    /// Forgets everything under way; batch ids stay unique.
    pub(crate) fn clear(&mut self) {
        *self = Self {
            last_id: self.last_id,
            ..Self::default()
        };
    }

    /// Whether exactly the pages under way are in flight in the heaps, each once.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub(crate) fn check(&self, pages: &GuestPages) -> Result<(), String> {
        let ids: BTreeSet<PageId> = self.pages().map(|&(id, _)| id).collect();
        let places = self.pages().count();
        let in_flight = pages.heap.stats().pages.in_flight as usize;
        if ids.len() != places || places != in_flight {
            return Err(format!(
                "{in_flight} pages are in flight, but {} in {places} places of batches",
                ids.len()
            ));
        }
        match self.pages().find(|&&(id, page)| {
            !pages.heap.state(id).in_flight || pages.index.page(id) != Some(page)
        }) {
            Some((id, _)) => Err(format!("{id:?} is in a batch, but not in flight")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{BASE_PAGE, Hva};

    fn page(id: u32) -> MovingPage {
        let hva = Hva(u64::from(id) * BASE_PAGE);
        let bytes = BASE_PAGE;
        (PageId(id), Page { hva, bytes })
    }

    #[test]
    fn exchange_when_its_demotion_ends_is_taken_once() {
        let mut in_flight = InFlight::default();
        let demotion = in_flight.begin(Direction::Demote, vec![page(1)]);
        let other = in_flight.begin(Direction::Promote, vec![page(2), page(3)]);
        in_flight.exchange = Some(WaitingExchange {
            demotion,
            frame_bytes: BASE_PAGE,
            promote: vec![page(4)],
        });
        assert_eq!(in_flight.pages().count(), 4);
        assert_eq!(in_flight.promoting_bytes(), 2 * BASE_PAGE);
        assert!(in_flight.end(other).is_some() && in_flight.end(other).is_none());
        assert!(in_flight.exchange_after(other).is_none());
        assert_eq!(in_flight.end(demotion).unwrap().pages, [page(1)]);
        assert!(!in_flight.is_empty(), "the exchange waits");
        assert!(in_flight.exchange_after(demotion).is_some());
        assert!(in_flight.is_empty());
    }

    #[test]
    fn batches_when_forgotten_keep_their_names_to_themselves() {
        let mut in_flight = InFlight::default();
        let old = in_flight.begin(Direction::Demote, vec![page(1)]);
        in_flight.clear();
        assert!(in_flight.is_empty() && in_flight.end(old).is_none());
        assert!(in_flight.begin(Direction::Demote, vec![page(1)]) > old);
    }
}
