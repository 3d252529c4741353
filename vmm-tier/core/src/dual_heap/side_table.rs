//! The side table: pages that are in no heap because they may not be taken now.

use super::{Placement, cooldowns::Cooldowns, pages::Pages, word::Slot};
use crate::time::Time;

/// Why a page stands aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// A move of it is under way.
    Flight,
    /// It may not be taken until this time.
    Cooling(Time),
    /// It may not be taken until the kernel places it elsewhere.
    Excluded,
    /// It is never offered, whatever its heat.
    Pinned,
}

/// A page that stands aside. Its key grows while it does; 0 is a page without a sample.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) id: u32,
    pub(super) key: f32,
    pub(super) placement: Placement,
    pub(super) why: Why,
}

/// Each page in it has the word `Slot::Aside(index of its entry)`.
#[derive(Debug, Default)]
pub(super) struct SideTable {
    held: Vec<Option<Held>>,
    free: Vec<u32>,
    cooldowns: Cooldowns,
}

impl SideTable {
    /// Puts a page aside; the caller sets its word to `Slot::Aside` of the index returned.
    pub(super) fn insert(&mut self, held: Held) -> u32 {
        if let Why::Cooling(end) = held.why {
            self.cooldowns.add(end, held.id);
        }
        if let Some(index) = self.free.pop() {
            self.held[index as usize] = Some(held);
            return index;
        }
        self.held.push(Some(held));
        (self.held.len() - 1) as u32
    }

    /// Takes a page back; the caller sets its word.
    pub(super) fn remove(&mut self, index: u32) -> Option<Held> {
        let held = self.held.get_mut(index as usize)?.take()?;
        self.free.push(index);
        if self.free.len() == self.held.len() {
            self.held.clear();
            self.free.clear();
        }
        Some(held)
    }

    pub(super) fn get(&self, index: u32) -> Option<&Held> {
        self.held.get(index as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Held> {
        self.held.get_mut(index as usize)?.as_mut()
    }

    /// The next page whose cooldown has ended at `now`.
    pub(super) fn next_ended(&mut self, now: Time, pages: &Pages) -> Option<u32> {
        let held = &self.held;
        self.cooldowns.next_ended(now, |id| match pages.get(id) {
            Slot::Aside(index) => match held.get(index as usize)?.as_ref()?.why {
                Why::Cooling(end) => Some(end),
                _ => None,
            },
            _ => None,
        })
    }

    /// All pages that stand aside.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Held> {
        self.held.iter().flatten()
    }

    /// Puts every key through `change`.
    pub(super) fn rescale(&mut self, change: impl Fn(f32) -> f32) {
        for held in self.held.iter_mut().flatten() {
            held.key = change(held.key);
        }
    }

    /// Bytes of memory held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.held.capacity() * size_of::<Option<Held>>()
            + self.free.capacity() * size_of::<u32>()
            + self.cooldowns.memory_bytes()
    }

    /// Whether every page points back at its entry and every cooldown has an end.
    pub(super) fn check(&self, pages: &Pages) -> Result<(), String> {
        let ends = self.cooldowns.all();
        for (index, held) in (0u32..).zip(&self.held) {
            let Some(held) = held else { continue };
            if pages.get(held.id) != Slot::Aside(index) {
                return Err(format!(
                    "side table: page {} is not where its word says",
                    held.id
                ));
            }
            if !held.key.is_finite() || held.key < 0.0 || held.placement == Placement::Untracked {
                return Err(format!("side table: page {} is {held:?}", held.id));
            }
            if let Why::Cooling(end) = held.why
                && !ends.contains(&(end, held.id))
            {
                return Err(format!(
                    "side table: nothing ends the cooldown of page {}",
                    held.id
                ));
            }
        }
        let empty = self.held.iter().filter(|held| held.is_none()).count();
        if empty != self.free.len() {
            return Err("side table: free entries are miscounted".to_owned());
        }
        Ok(())
    }
}
