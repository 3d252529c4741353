//! Whether the engine's parts agree with each other; for tests and for doubts.

use std::collections::BTreeSet;

use super::{VmEngine, tally::PlacedBytes};
use crate::dual_heap::{PageId, Placement};

impl VmEngine {
    /// Whether every invariant holds. Looks at every page.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.check().is_ok()
    }

    /// Says which invariant is broken, if one is. Looks at every page.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn check(&self) -> Result<(), String> {
        self.heap.check()?;
        if !self.account.is_valid() {
            return Err(format!("samples are miscounted: {:?}", self.account));
        }
        let mut bytes = PlacedBytes::default();
        let mut end = 0;
        // Time does not matter: only places are looked at.
        for (id, placement, _) in self.heap.iter(crate::time::Time(0)) {
            let page = self.index.page(id).ok_or(format!("{id:?} is no page"))?;
            if page.hva.0 < end {
                return Err(format!("the page at {} overlaps another", page.hva));
            }
            end = page.hva.0 + page.bytes;
            bytes.replace(page.bytes, Placement::Untracked, placement);
        }
        if !self.bytes.agrees_with(&bytes) {
            return Err(format!("bytes are {:?}, found {bytes:?}", self.bytes));
        }
        let flying: BTreeSet<PageId> = self.flights.pages().map(|&(id, _)| id).collect();
        let flights = self.flights.pages().count();
        let in_flight = self.heap.stats().in_flight as usize;
        if flying.len() != flights || flights != in_flight {
            return Err(format!(
                "{in_flight} pages are in flight, but {} in {flights} places of batches",
                flying.len()
            ));
        }
        match self.flights.pages().find(|&&(id, page)| {
            !self.heap.state(id).in_flight || self.index.page(id) != Some(page)
        }) {
            Some((id, _)) => Err(format!("{id:?} is in a batch, but not in flight")),
            None => Ok(()),
        }
    }
}
