//! HeavyKeeper as it was published and as the ancestors of this project used it: what the sketch is
//! measured against.
//!
//! Gong et al., USENIX ATC 2018, with minimum decay: four rows of {u16 fingerprint, u16 count}, b = 1.08.
//! It knows no time; as its users did, all counts are halved each half-life, and what was 1 is gone. The last
//! halving lies half a half-life before the end.

use std::time::Duration;

use tier_core::{random::Random, time::Time};

const ROWS: usize = 4;

pub(crate) struct HeavyKeeper {
    slots: Vec<(u16, u16)>,
    width: usize,
    half_life: Duration,
    next: Time,
    random: u64,
}

impl HeavyKeeper {
    pub(crate) fn new(bytes: usize, half_life: Duration, seed: u64) -> Self {
        let width = bytes / size_of::<(u16, u16)>() / ROWS;
        Self {
            slots: vec![(0, 0); width * ROWS],
            width,
            half_life,
            next: Time(0) + half_life / 2,
            random: mix(seed),
        }
    }

    pub(crate) fn cool(&mut self, now: Time) {
        while now >= self.next {
            self.next = self.next + self.half_life;
            self.slots.iter_mut().for_each(|slot| slot.1 /= 2);
        }
    }

    pub(crate) fn add(&mut self, page: u32) {
        let (fingerprint, slots) = self.places(page);
        let is_own = |slot: (u16, u16)| slot.1 > 0 && slot.0 == fingerprint;
        if let Some(&own) = slots.iter().find(|&&i| is_own(self.slots[i])) {
            self.slots[own].1 = self.slots[own].1.saturating_add(1);
            return;
        }
        let Some(&least) = slots.iter().min_by_key(|&&i| self.slots[i].1) else {
            return;
        };
        let chance = 1.08f64.powi(-i32::from(self.slots[least].1));
        self.random = mix(self.random);
        if (self.random >> 11) as f64 / (1u64 << 53) as f64 <= chance {
            let slot = &mut self.slots[least];
            slot.1 = slot.1.saturating_sub(1);
            if slot.1 == 0 {
                *slot = (fingerprint, 1);
            }
        }
    }

    pub(crate) fn count(&self, page: u32) -> u16 {
        let (fingerprint, slots) = self.places(page);
        let own = slots
            .into_iter()
            .map(|i| self.slots[i])
            .filter(|slot| slot.0 == fingerprint);
        own.map(|slot| slot.1).max().unwrap_or(0)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.slots.len() * size_of::<(u16, u16)>()
    }

    fn places(&self, page: u32) -> (u16, [usize; ROWS]) {
        let hash = mix(u64::from(page));
        let slot = |row: usize| {
            let hash = mix(hash ^ row as u64);
            row * self.width + (hash % self.width as u64) as usize
        };
        (hash as u16, [slot(0), slot(1), slot(2), slot(3)])
    }
}

/// Any other number for each: what splitmix64 makes of it.
const fn mix(number: u64) -> u64 {
    Random::new(number).draw()
}
