//! Whether the engine's parts agree with each other; for tests and for doubts.

use std::collections::{BTreeMap, BTreeSet};

use crate::dual_heap::{PageId, Placement};
use crate::engine::{
    VmEngine,
    evidence::access_stats::PlacedBytes,
    pins::{Entry, hva_pieces, orders::placement_of},
};

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
        if let Some((kind, stats)) = self.sources().find(|(_, stats)| !stats.account.is_valid()) {
            return Err(format!("samples of {kind} are miscounted: {stats:?}"));
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
        self.check_pins()?;
        let flying: BTreeSet<PageId> = self.flights.pages().map(|&(id, _)| id).collect();
        let flights = self.flights.pages().count();
        let in_flight = self.heap.counts().in_flight as usize;
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

    /// Whether every page that touches a pin is pinned, no other is, and the bytes are right.
    fn check_pins(&self) -> Result<(), String> {
        let mut counted: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (id, placement, _) in self.heap.iter(crate::time::Time(0)) {
            let page = self.index.page(id).ok_or(format!("{id:?} is no page"))?;
            let touches = |entry: &&Entry| {
                let map = self.map.as_deref();
                let (start, end) = (entry.pin.start.0, entry.pin.end());
                map.into_iter()
                    .flat_map(|map| hva_pieces(map, start, end))
                    .any(|(hva, len)| hva.0 < page.hva.0 + page.bytes && page.hva.0 < hva.0 + len)
            };
            let mut owners = self.pins.entries().filter(touches);
            let owner = self.pins.of(id).map(|entry| entry.pin);
            if owners.next().map(|entry| entry.pin) != owner {
                return Err(format!("{id:?} is held by {owner:?}, which is not its pin"));
            }
            if self.heap.state(id).pinned != owner.is_some() {
                return Err(format!("the heaps do not know whether {id:?} is pinned"));
            }
            if let Some(pin) = owner {
                let count = counted.entry(pin.start.0).or_default();
                match placement == placement_of(pin.tier) {
                    true => count.0 += page.bytes,
                    false => count.1 += page.bytes,
                }
            }
        }
        for entry in self.pins.entries() {
            let found = counted.get(&entry.pin.start.0).copied().unwrap_or_default();
            if (entry.placed_bytes, entry.elsewhere_bytes) != found {
                return Err(format!("pinned bytes are {entry:?}, found {found:?}"));
            }
        }
        Ok(())
    }
}
