//! A sketch of heat: decayed counts of the pages that matter, in so many bytes whatever the guest.
//!
//! Source: Gong, Yang, Zhang, Li, Uhlig, Chen, Uden, Li, "HeavyKeeper: An Accurate Algorithm for Finding
//! Top-k Elephant Flows", USENIX ATC 2018, in its form that touches one bucket a sample (the paper's
//! "minimum decay"). A page's count stands in one of a few buckets. A page that finds none free weakens
//! the least of them, with the probability b^−count, and takes its place when nothing is left of it: the
//! counts of hot pages are all but safe, those of cold pages make room.
//!
//! What is different here:
//!
//! - *Counts decay with time.* A key is a count under [forward decay](crate::heat), so time touches
//!   nothing. What weakening looks at, and what it takes, is the decayed count: a page that was hot
//!   long ago makes room as a cold one does.
//! - *No two pages are mistaken for one another.* The paper stores a hash as a fingerprint. Here a
//!   permutation of the page's number is cut into line and remainder, which name the page exactly. A
//!   count is never above the true one but for its rounding, and the sketch can say whose each is.
//! - *A bucket is a line of sixteen*, one cache line; a page has two. Sparse samples leave most pages
//!   with a count near one, where weakening protects nobody: what matters then is that the least of
//!   many goes, and that no slot stays free.
//! - *Counts are minifloats* of what bits the remainder leaves, 16 to 31, rounded at random so that
//!   their mean is right (Morris, "Counting Large Numbers of Events in Small Registers", CACM 1978).

use std::time::Duration;

use super::{
    line::{Form, LEFT, Line, MAX_REMAINDER_BITS, WAYS},
    scatter::{Home, Scatter, mix},
};
use crate::{
    heat::{Decay, normal_or_zero},
    time::Time,
};

/// Lines that a page may stand in.
const ROWS: usize = 2;
/// The base b of the probability of weakening; the paper's choice.
const WEAKENING_BASE: f32 = 1.08;

/// Fewer bytes than a sketch of so many pages needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sketch of {pages} pages needs {least_bytes} bytes at least, {bytes} were given")]
pub struct SketchTooSmall {
    /// The pages of the guest.
    pub pages: u32,
    /// What was given.
    pub bytes: usize,
    /// What is needed.
    pub least_bytes: usize,
}

/// Where a page may stand, row by row.
pub(super) type Homes = [Home; ROWS];

/// What became of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Added {
    /// The page's key now; 0 if it was not let in.
    pub key: f32,
    /// The page at whose cost it was, and the key that is left to that; 0 if nothing is.
    pub weakened: Option<(u32, f32)>,
}

/// What a sketch has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SketchStats {
    /// Pages that have a count.
    pub pages: u32,
    /// Pages that can have one.
    pub slots: u32,
    /// Samples that found no slot, and weakened none.
    pub refused: u64,
    /// Samples that found no slot and weakened another page's count.
    pub weakened: u64,
    /// Pages whose count made room for another.
    pub evicted: u64,
    /// Times the landmark moved.
    pub landmark_moves: u64,
}

/// Decayed counts of the pages that matter, in bounded memory: `HeavyKeeper` under forward decay. The head of its file says how
/// and why.
#[derive(Clone, Debug)]
pub struct DecayingSketch {
    /// All of the first row, then all of the second.
    lines: Vec<Line>,
    scatters: [Scatter; ROWS],
    form: Form,
    pages: u32,
    decay: Decay,
    /// The time last sampled at, its boost, and one over that: batches share one time.
    clock: (Time, f64, f32),
    random: u64,
    stats: SketchStats,
}

impl DecayingSketch {
    /// An empty sketch for pages numbered below `pages`, of at most `bytes` bytes, of which all but 127
    /// are used. `seed` decides what is left to chance; keep it from the guest.
    ///
    /// # Errors
    /// If there are fewer bytes than [`Self::least_bytes`].
    pub fn new(
        pages: u32,
        bytes: usize,
        half_life: Duration,
        seed: u64,
    ) -> Result<Self, SketchTooSmall> {
        let least_bytes = Self::least_bytes(pages);
        if bytes < least_bytes {
            return Err(SketchTooSmall {
                pages,
                bytes,
                least_bytes,
            });
        }
        let bits = page_bits(pages);
        // More lines than pages are of no use, and must not overflow their count.
        let lines = (bytes / size_of::<Line>() / ROWS).min(1 << bits);
        let row_lines = lines as u32;
        let scatter = |row| Scatter::new(bits, row_lines, mix(seed.wrapping_add(row)));
        Ok(Self {
            lines: vec![Line::EMPTY; lines * ROWS],
            scatters: [scatter(0), scatter(1)],
            form: Form::new(Scatter::remainder_bits(bits, row_lines)),
            pages,
            decay: Decay::new(half_life, Time(0)),
            clock: (Time(0), 1.0, 1.0),
            // A xorshift generator stands still at zero.
            random: mix(!seed) | 1,
            stats: SketchStats {
                slots: (lines * ROWS * WAYS) as u32,
                ..SketchStats::default()
            },
        })
    }

    /// The bytes that a sketch of so many pages needs at least: 128, and 1 for each 512 pages.
    #[must_use]
    pub fn least_bytes(pages: u32) -> usize {
        let lines = 1usize << page_bits(pages).saturating_sub(MAX_REMAINDER_BITS);
        lines * ROWS * size_of::<Line>()
    }

    /// The number of pages it was made for.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The clock of heat; gives rates for counts.
    #[must_use]
    pub fn decay(&self) -> &Decay {
        &self.decay
    }

    // --- samples -----------------------------------------------------------------------------

    /// Adds `weight` events seen at `now` to a page. Weights that are not above 0, and pages past the
    /// end, change nothing.
    pub fn add(&mut self, now: Time, page: u32, weight: f32) -> Added {
        let gain = self.gain(now, weight);
        if gain > 0.0 && page < self.pages {
            self.grow(self.homes(page), gain)
        } else {
            Added {
                key: self.key(page),
                weakened: None,
            }
        }
    }

    /// What an event of this weight adds to a key: never negative, never subnormal, finite. Moves the
    /// landmark if that is due; see [`Self::advance`].
    pub(super) fn gain(&mut self, now: Time, weight: f32) -> f32 {
        if self.clock.0 != now {
            self.advance(now);
            self.set_clock(now);
        }
        // `weight > 0` is false for NaN.
        if weight > 0.0 {
            normal_or_zero(f64::from(weight) * self.clock.1)
        } else {
            0.0
        }
    }

    /// Where a page may stand.
    #[inline]
    pub(super) fn homes(&self, page: u32) -> Homes {
        self.scatters.each_ref().map(|scatter| scatter.home(page))
    }

    /// The lines of these homes, in the array of all.
    #[inline]
    fn places(&self, homes: Homes) -> [usize; ROWS] {
        let second = self.lines.len() / ROWS;
        [homes[0].line as usize, second + homes[1].line as usize]
    }

    /// Adds a gain above 0 to the key of a page below `pages`, whose homes these are.
    #[inline]
    pub(super) fn grow(&mut self, homes: Homes, gain: f32) -> Added {
        let form = self.form;
        let places = self.places(homes);
        for (row, (home, place)) in homes.into_iter().zip(places).enumerate() {
            let line = &self.lines[place];
            if let Some(way) = line.find(home.remainder, form) {
                let random = self.random();
                let slot = &mut self.lines[place].0[way];
                *slot = form.slot(form.key(*slot) + gain, home.remainder, random);
                let key = form.key(*slot);
                return Added {
                    key,
                    weakened: None,
                };
            }
            if row == 0 && !line.was_full() {
                // It never had to go to its second line.
                let (way, _) = line.least();
                return self.admit(0, place, way, home, gain);
            }
        }
        let (row, way) = self.least(places);
        self.admit(row, places[row], way, homes[row], gain)
    }

    /// The row and the slot of the least key in these lines.
    fn least(&self, places: [usize; ROWS]) -> (usize, usize) {
        let form = self.form;
        let least = places.map(|place| self.lines[place].least());
        // The first where they are equal: a page in its first line costs one cache miss, not two.
        let row = usize::from(least[1].1 & !form.mask < least[0].1 & !form.mask);
        (row, least[row].0)
    }

    /// Gives a page the least of its slots, if that is empty or can be weakened to nothing.
    fn admit(&mut self, row: usize, place: usize, way: usize, home: Home, gain: f32) -> Added {
        let form = self.form;
        let slot = self.lines[place].0[way];
        let held = form.key(slot);
        if held > 0.0 {
            if !self.weakens(held * self.clock.2) {
                self.stats.refused += 1;
                return Added {
                    key: 0.0,
                    weakened: None,
                };
            }
            if held > gain {
                self.stats.weakened += 1;
                let victim = self.page(row, home.line, slot);
                let random = self.random();
                let slot = form.slot(held - gain, slot & form.mask, random);
                self.lines[place].0[way] = slot;
                self.stats.pages -= u32::from(slot == LEFT);
                return Added {
                    key: 0.0,
                    weakened: Some((victim, form.key(slot))),
                };
            }
        }
        self.seat_in(row, place, way, home, gain)
    }

    /// Gives a page this slot and this key, whoever has it.
    fn seat_in(&mut self, row: usize, place: usize, way: usize, home: Home, key: f32) -> Added {
        let form = self.form;
        let slot = self.lines[place].0[way];
        let weakened = (form.key(slot) > 0.0).then(|| (self.page(row, home.line, slot), 0.0));
        match weakened {
            Some(_) => self.stats.evicted += 1,
            None => self.stats.pages += 1,
        }
        let random = self.random();
        let slot = form.slot(key, home.remainder, random);
        self.lines[place].0[way] = slot;
        Added {
            key: form.key(slot),
            weakened,
        }
    }

    /// The page that has this slot.
    fn page(&self, row: usize, line: u32, slot: u32) -> u32 {
        self.scatters[row].page(Home {
            line,
            remainder: slot & self.form.mask,
        })
    }

    /// Decides, with the probability b^−count.
    fn weakens(&mut self, count: f32) -> bool {
        let exponent = -count * WEAKENING_BASE.log2();
        // Chance in 2^24ths, which an f32 holds exactly.
        ((self.random() >> 8) as f32) < exponent.exp2() * (1 << 24) as f32
    }

    /// xorshift64 (Marsaglia, "Xorshift RNGs", J. Stat. Softw. 8, 2003); its high half.
    #[inline]
    fn random(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 32) as u32
    }

    // --- counts ------------------------------------------------------------------------------

    /// The decayed count of a page at `now`: 0 if it has none.
    #[must_use]
    pub fn count(&self, page: u32, now: Time) -> f64 {
        self.decay.value(self.key(page), now)
    }

    /// The key of a page: 0 if it has none.
    #[must_use]
    pub fn key(&self, page: u32) -> f32 {
        self.seat(page)
            .map_or(0.0, |(place, way)| self.form.key(self.lines[place].0[way]))
    }

    /// Sets the decayed count of a page at `now`, whatever it had. It takes the place of the least key that
    /// stands where it may, if that is less: what is known is compared, where single samples would have to
    /// weaken it. If it is not, the page has no count afterwards. Pages past the end change nothing.
    ///
    /// The landmark must have been moved to where `now` wants it; see [`Self::advance`].
    pub fn set_count(&mut self, page: u32, count: f64, now: Time) -> Added {
        let none = Added {
            key: 0.0,
            weakened: None,
        };
        self.remove(page);
        let key = match count > 0.0 && page < self.pages {
            true => normal_or_zero(self.decay.key(count, now)),
            false => 0.0,
        };
        if key == 0.0 {
            return none;
        }
        let homes = self.homes(page);
        let places = self.places(homes);
        let (row, way) = match self.lines[places[0]].was_full() {
            true => self.least(places),
            // It never had to go to its second line.
            false => (0, self.lines[places[0]].least().0),
        };
        if self.form.key(self.lines[places[row]].0[way]) >= key {
            return none;
        }
        self.seat_in(row, places[row], way, homes[row], key)
    }

    /// Forgets a page. Returns the key it had.
    pub fn remove(&mut self, page: u32) -> f32 {
        let Some((place, way)) = self.seat(page) else {
            return 0.0;
        };
        let slot = std::mem::replace(&mut self.lines[place].0[way], LEFT);
        self.stats.pages -= 1;
        self.form.key(slot)
    }

    /// All pages that have a count, in no order, with their keys.
    pub fn iter(&self) -> impl Iterator<Item = (u32, f32)> + '_ {
        self.above(0.0)
    }

    /// The pages whose key is above `least`, in no order, with their keys.
    pub(super) fn above(&self, least: f32) -> impl Iterator<Item = (u32, f32)> + '_ {
        let rows = self.lines.chunks(self.lines.len() / ROWS);
        rows.zip(&self.scatters).flat_map(move |(lines, scatter)| {
            (0u32..).zip(lines).flat_map(move |(line, slots)| {
                slots.0.iter().filter_map(move |&slot| {
                    let key = self.form.key(slot);
                    let remainder = slot & self.form.mask;
                    (key > least).then(|| (scatter.page(Home { line, remainder }), key))
                })
            })
        })
    }

    /// Calls `each` for pages that have a count, in no order, with their keys, as long as these are above the
    /// key that it returned last.
    pub(super) fn for_each_above(&self, mut each: impl FnMut(u32, f32) -> f32) {
        let mut least = 0.0;
        let rows = self.lines.chunks(self.lines.len() / ROWS);
        for (lines, scatter) in rows.zip(&self.scatters) {
            for (line, slots) in (0u32..).zip(lines) {
                for &slot in &slots.0 {
                    let key = self.form.key(slot);
                    if key > least {
                        let remainder = slot & self.form.mask;
                        least = each(scatter.page(Home { line, remainder }), key);
                    }
                }
            }
        }
    }

    // --- time --------------------------------------------------------------------------------

    /// Moves the landmark if that is due at `now`; returns the number of half-lives it moved by. Keys
    /// that the caller holds must go through [`Decay::shifted`] then.
    pub fn advance(&mut self, now: Time) -> Option<u64> {
        let halves = self.decay.shift(now)?;
        let form = self.form;
        let mut pages = 0;
        let slots = self.lines.iter_mut().flat_map(|line| line.0.iter_mut());
        for slot in slots.filter(|slot| **slot & !form.mask != 0) {
            // Exact, so there is nothing to round.
            let key = Decay::shifted(form.key(*slot), halves);
            *slot = form.slot(key, *slot & form.mask, 0);
            pages += u32::from(*slot != LEFT);
        }
        if pages == 0 {
            self.lines.fill(Line::EMPTY);
        }
        self.stats.pages = pages;
        self.stats.landmark_moves += 1;
        self.set_clock(now);
        Some(halves)
    }

    /// Changes the half-life; every page keeps its count at `now`. The landmark must have been moved
    /// to where `now` wants it; see [`Self::advance`].
    pub fn set_half_life(&mut self, half_life: Duration, now: Time) {
        self.decay.set_half_life(half_life, now);
        self.set_clock(now);
    }

    /// Multiplies the decayed count of every page by `factor`; see [`Decay::scale`]. As for
    /// [`Self::set_half_life`], the landmark must be where `now` wants it.
    pub fn scale(&mut self, now: Time, factor: f64) {
        self.decay.scale(factor);
        self.set_clock(now);
    }

    // --- looks -------------------------------------------------------------------------------

    /// What it has done. Cheap.
    #[must_use]
    pub fn stats(&self) -> SketchStats {
        self.stats
    }

    /// Bytes of memory held, apart from the allocator's own.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.lines.capacity() * size_of::<Line>()
    }

    /// Whether every invariant holds. Looks at every slot.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.check().is_ok()
    }

    /// Says which invariant is broken, if one is. Looks at every slot.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn check(&self) -> Result<(), String> {
        let mut seen = std::collections::HashSet::new();
        for (page, key) in self.iter() {
            if page >= self.pages {
                return Err(format!("page {page} is past the end, {}", self.pages));
            }
            if !key.is_normal() || key < 0.0 {
                return Err(format!("page {page}: its key is {key}"));
            }
            if !seen.insert(page) {
                return Err(format!("page {page} has two slots"));
            }
            if self.key(page) != key {
                return Err(format!("page {page} is not found where it stands"));
            }
        }
        let used = self.lines.iter().flat_map(|line| line.0);
        let used = used.filter(|&slot| slot & !self.form.mask != 0).count();
        if used != seen.len() || used != self.stats.pages as usize {
            return Err(format!(
                "{used} slots are in use, {} pages have a key, {} are counted",
                seen.len(),
                self.stats.pages
            ));
        }
        Ok(())
    }

    // --- parts -------------------------------------------------------------------------------

    /// The line and the slot that a page has.
    #[inline]
    fn seat(&self, page: u32) -> Option<(usize, usize)> {
        if page >= self.pages {
            return None;
        }
        let homes = self.homes(page);
        let [first, second] = self.places(homes);
        let line = &self.lines[first];
        if let Some(way) = line.find(homes[0].remainder, self.form) {
            return Some((first, way));
        }
        if !line.was_full() {
            return None;
        }
        let way = self.lines[second].find(homes[1].remainder, self.form)?;
        Some((second, way))
    }

    /// Touches the lines of a page ahead of their use; the value is of no use but to be waited for.
    #[inline]
    pub(super) fn read_ahead(&self, homes: Homes) -> u32 {
        let [first, second] = self.places(homes);
        match self.lines[first].was_full() {
            true => self.lines[second].0[0],
            false => 0,
        }
    }

    fn set_clock(&mut self, now: Time) {
        let boost = self.decay.boost(now);
        self.clock = (now, boost, (1.0 / boost) as f32);
    }
}

/// The bits of a page's number; at least one.
fn page_bits(pages: u32) -> u32 {
    (u32::BITS - pages.saturating_sub(1).leading_zeros()).max(1)
}
