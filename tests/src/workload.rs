//! The workload of a guest: random updates with a known hot set, and proof that none was lost.
//!
//! GUPS in the form of HeMem (SOSP'21) and Demeter (SOSP'25): an update reads a 64-bit word,
//! changes it by XOR and writes it back; a fixed share of the updates goes to the hot set.

use crate::scenario::Work;

/// Words of a page.
pub const PAGE_WORDS: usize = 512;
/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA'14).
#[derive(Debug, Clone)]
pub struct SplitMix(u64);

impl SplitMix {
    /// A generator that always gives the same numbers for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number below `bound` from 32 random bits (Lemire's multiply and shift; the bias is below
/// bound / 2^32, nothing for a workload).
#[inline]
fn below(bits: u64, bound: usize) -> usize {
    (((bits & 0xffff_ffff) * bound as u64) >> 32) as usize
}

/// Where the hot pages are in the working set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotSet {
    /// First page.
    pub first: usize,
    /// How many.
    pub pages: usize,
    /// Distance from one to the next.
    pub stride: usize,
}

impl HotSet {
    /// The hot set that a workload's description means, at `at_mib` or so that it ends at the end.
    ///
    /// `None` when it would not fit.
    #[must_use]
    pub fn new(work: &Work, at_mib: Option<u64>) -> Option<Self> {
        const PAGES_PER_MIB: u64 = 256;
        let all = work.set_mib * PAGES_PER_MIB;
        let pages = work.hot_mib * PAGES_PER_MIB;
        let reach = pages.checked_mul(work.hot_stride)?;
        let first = match at_mib {
            Some(mib) => mib * PAGES_PER_MIB,
            None => all.checked_sub(reach)?,
        };
        (pages > 0 && first + reach <= all).then_some(Self {
            first: usize::try_from(first).ok()?,
            pages: usize::try_from(pages).ok()?,
            stride: usize::try_from(work.hot_stride).ok()?,
        })
    }

    /// The nth hot page.
    #[must_use]
    #[inline]
    pub fn page(&self, n: usize) -> usize {
        self.first + n * self.stride
    }
}

/// The updates and their running checksum. The memory is passed in, so that it can be any slice.
#[derive(Debug)]
pub struct Updates {
    random: SplitMix,
    hot: HotSet,
    hot_permille: u32,
    checksum: u64,
    done: u64,
}

impl Updates {
    /// Fills the memory from its first page to its last and starts the books.
    ///
    /// Every word gets a value of its own, so a page that is lost or swapped with another is
    /// found even if it was never updated.
    #[must_use]
    pub fn begin(memory: &mut [u64], work: &Work, hot: HotSet) -> Self {
        for (index, word) in memory.iter_mut().enumerate() {
            *word = mix(index as u64 ^ work.seed);
        }
        Self {
            random: SplitMix::new(work.seed),
            hot,
            hot_permille: work.hot_permille,
            checksum: checksum(memory),
            done: 0,
        }
    }

    /// Does this many updates.
    pub fn run(&mut self, memory: &mut [u64], count: u64) {
        let pages = memory.len() / PAGE_WORDS;
        // Locals, so that they stay in registers: an update shall be a load and a store of its word, and
        // not five more of the books. A panic on the way may lose them, for it ends the workload.
        let (mut random, mut checksum) = (self.random.clone(), self.checksum);
        let (hot, hot_permille) = (self.hot, self.hot_permille as usize);
        for _ in 0..count {
            let choice = random.next_u64();
            let place = random.next_u64();
            let page = if below(choice, 1000) < hot_permille {
                hot.page(below(place, hot.pages))
            } else {
                below(place, pages)
            };
            let index = page * PAGE_WORDS + below(place >> 32, PAGE_WORDS);
            memory[index] ^= choice;
            checksum ^= weigh(index, choice);
        }
        (self.random, self.checksum) = (random, checksum);
        self.done += count;
    }

    /// Puts the hot set elsewhere.
    pub fn move_hot(&mut self, hot: HotSet) {
        self.hot = hot;
    }

    /// Where the hot set is.
    #[must_use]
    pub fn hot(&self) -> HotSet {
        self.hot
    }

    /// Updates done so far.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done
    }

    /// What [`checksum`] of the memory must be.
    #[must_use]
    pub fn expected(&self) -> u64 {
        self.checksum
    }
}

/// A word's part of the checksum: rotated by its place, so that swapped pages show.
#[inline]
fn weigh(index: usize, word: u64) -> u64 {
    word.rotate_left((mix(index as u64) & 63) as u32)
}

/// XOR over all words, each rotated by its place. Rotation and XOR commute, so the checksum can
/// be kept up to date from the updates alone.
#[must_use]
pub fn checksum(memory: &[u64]) -> u64 {
    memory
        .iter()
        .enumerate()
        .fold(0, |sum, (index, word)| sum ^ weigh(index, *word))
}

/// Joins page addresses into runs `[address, bytes]`, in the order in which they come.
#[must_use]
pub fn runs_of_pages(pages: impl IntoIterator<Item = u64>) -> Vec<[u64; 2]> {
    let mut runs: Vec<[u64; 2]> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some(run) if run[0] + run[1] == page => run[1] += PAGE_BYTES as u64,
            _ => runs.push([page, PAGE_BYTES as u64]),
        }
    }
    runs
}

/// The page frame number of a `/proc/self/pagemap` entry, `None` when the page is not present
/// or the reader may not know (Documentation/admin-guide/mm/pagemap.rst).
#[must_use]
pub fn frame_of_pagemap_entry(entry: u64) -> Option<u64> {
    let frame = entry & ((1 << 55) - 1);
    (entry >> 63 == 1 && frame != 0).then_some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> (Work, HotSet) {
        let work = Work {
            set_mib: 4,
            hot_mib: 1,
            ..Work::default()
        };
        let hot = HotSet::new(&work, None).unwrap();
        (work, hot)
    }

    #[test]
    fn hot_set_when_no_place_is_given_ends_at_the_end() {
        let (_, hot) = small();

        assert_eq!(hot.page(hot.pages - 1), 4 * 256 - 1);
    }

    #[test]
    fn hot_set_when_it_would_not_fit_is_refused() {
        let (work, _) = small();

        assert_eq!(HotSet::new(&work, Some(4)), None);
        assert_eq!(
            HotSet::new(
                &Work {
                    hot_stride: 5,
                    ..work
                },
                None
            ),
            None
        );
    }

    #[test]
    fn updates_when_nothing_is_lost_agree_with_the_memory() {
        let (work, hot) = small();
        let mut memory = vec![0; 4 * 256 * PAGE_WORDS];
        let mut updates = Updates::begin(&mut memory, &work, hot);

        updates.run(&mut memory, 100_000);
        updates.move_hot(HotSet::new(&work, Some(0)).unwrap());
        updates.run(&mut memory, 100_000);

        assert_eq!(checksum(&memory), updates.expected());
        assert_eq!(updates.done(), 200_000);
    }

    #[test]
    fn updates_when_pages_are_swapped_or_zeroed_disagree() {
        let (work, hot) = small();
        let mut memory = vec![0; 4 * 256 * PAGE_WORDS];
        let mut updates = Updates::begin(&mut memory, &work, hot);
        updates.run(&mut memory, 10_000);

        let mut swapped = memory.clone();
        let (first, second) = swapped.split_at_mut(PAGE_WORDS);
        first.swap_with_slice(&mut second[..PAGE_WORDS]);
        let mut zeroed = memory.clone();
        zeroed[..PAGE_WORDS].fill(0);

        assert_ne!(checksum(&swapped), updates.expected());
        assert_ne!(checksum(&zeroed), updates.expected());
    }

    #[test]
    fn updates_when_nine_in_ten_are_hot_go_there() {
        let (work, hot) = small();
        let mut memory = vec![0; 4 * 256 * PAGE_WORDS];
        let mut updates = Updates::begin(&mut memory, &work, hot);
        let before = memory.clone();

        updates.run(&mut memory, 10_000);

        // 1000 cold updates over four quarters, a quarter of them in the hot one: 9250 of
        // 10 000 are expected there, and few words are hit twice.
        let start = hot.first * PAGE_WORDS;
        let changed =
            |range: std::ops::Range<usize>| range.filter(|&i| memory[i] != before[i]).count();
        let hot_changes = changed(start..memory.len());
        let cold_changes = changed(0..start);
        assert!(hot_changes > 8_700, "{hot_changes}");
        assert!((650..850).contains(&cold_changes), "{cold_changes}");
    }

    #[test]
    fn runs_when_pages_follow_one_another_are_joined() {
        let runs = runs_of_pages([0x1000, 0x2000, 0x5000, 0x4000]);

        assert_eq!(runs, [[0x1000, 0x2000], [0x5000, 0x1000], [0x4000, 0x1000]]);
    }

    #[test]
    fn pagemap_entry_when_absent_has_no_frame() {
        assert_eq!(frame_of_pagemap_entry(1 << 63 | 0x1234), Some(0x1234));
        assert_eq!(frame_of_pagemap_entry(0x1234), None);
        assert_eq!(frame_of_pagemap_entry(1 << 63), None);
    }
}
