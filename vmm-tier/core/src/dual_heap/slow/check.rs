//! Whether the slow tier's front and its pages' words agree, for tests.

use std::collections::HashMap;

use super::SlowHeap;
use crate::dual_heap::{
    front::{ARITY, Entry},
    pages::Pages,
    word::Slot,
};

impl SlowHeap {
    /// Whether the heap is in order, every entry's page points back at it, no page above the bound is
    /// missing, and the top is the greatest of all.
    pub(in crate::dual_heap) fn check(&self, pages: &Pages) -> Result<(), String> {
        for (index, entry) in (0u32..).zip(&self.entries) {
            let Entry { key, id } = *entry;
            if !key.is_normal() || key < 0.0 {
                return Err(format!(
                    "slow tier: page {id} in the heap has the key {key}"
                ));
            }
            if pages.get(id) != Slot::Front(index) {
                return Err(format!("slow tier: page {id} is not where its word says"));
            }
            if index > 0 && self.entries[(index as usize - 1) / ARITY].key < key {
                return Err(format!("slow tier: page {id} is greater than its parent"));
            }
        }
        let mut newcomers: HashMap<u32, Vec<f32>> = HashMap::new();
        for entry in &self.newcomers {
            newcomers.entry(entry.id).or_default().push(entry.key);
        }
        let is_listed = |id, key| match newcomers.get(&id) {
            Some(keys) => !self.is_listed_with_keys() || keys.contains(&key),
            None => false,
        };
        let (mut in_heap, mut greatest) = (0, 0.0_f32);
        for (id, slot) in pages.iter() {
            match slot {
                Slot::Slow(key) => {
                    if key > self.bound && !is_listed(id, key) {
                        return Err(format!("slow tier: page {id} is not among the newcomers"));
                    }
                    greatest = greatest.max(key);
                }
                Slot::Front(index) => {
                    in_heap += 1;
                    greatest = greatest.max(self.key(index));
                }
                _ => {}
            }
        }
        if in_heap != self.entries.len() {
            return Err("slow tier: the heap has too many entries".to_owned());
        }
        if self.room.is_full(&self.entries) || self.room.is_full(&self.newcomers) {
            return Err("slow tier: the front has not been cut".to_owned());
        }
        let greatest_is_there = pages.get(self.greatest.id) == Slot::Slow(self.greatest.key);
        if self.greatest.key > 0.0 && !greatest_is_there {
            return Err("slow tier: the greatest newcomer is not what its word says".to_owned());
        }
        let top = self.top().unwrap_or(super::NOBODY);
        if top.key != greatest {
            return Err(format!("slow tier: {top:?} on top is not {greatest}"));
        }
        Ok(())
    }
}
