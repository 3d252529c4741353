//! The accesses of a workload and their running checksum.
//!
//! GUPS in the form of HeMem (SOSP'21) and Demeter (SOSP'25): an update reads a 64-bit word,
//! changes it by XOR and writes it back; a fixed share of the updates goes to the hot set.

use crate::random::{SplitMix, below, mix};
use crate::zipf::Zipf;
use crate::{HotSet, PAGE_WORDS, Work};

/// The accesses of a workload. The memory is passed in, so that it can be any slice of words.
#[derive(Debug)]
pub struct Updates {
    random: SplitMix,
    seed: u64,
    hot: HotSet,
    hot_permille: usize,
    /// Hot and scanned together.
    scan_permille: usize,
    zipf: Option<Zipf>,
    reads_only: bool,
    scanned: usize,
    /// Pages from the begin of the working set that have been touched, and are accessed.
    touched: usize,
    checksum: u64,
    done: u64,
}

impl Updates {
    /// The accesses of a workload; nothing is touched yet.
    ///
    /// `None` if the hot set does not fit the working set.
    #[must_use]
    pub fn new(work: &Work) -> Option<Self> {
        let hot = work.hot_set()?;
        Some(Self {
            random: SplitMix::new(work.seed),
            seed: work.seed,
            hot,
            hot_permille: work.hot_permille as usize,
            scan_permille: (work.hot_permille + work.scan_permille) as usize,
            zipf: (work.zipf_permille > 0).then(|| Zipf::new(hot.of, work.zipf_permille)),
            reads_only: work.reads_only,
            scanned: 0,
            touched: 0,
            checksum: 0,
            done: 0,
        })
    }

    /// Fills the next pages of the memory and enters them in the books.
    ///
    /// Every word gets a value of its own, so a page that is lost or swapped with another is
    /// found even if it was never updated.
    pub fn touch(&mut self, memory: &mut [u64], pages: usize) {
        let first = self.touched * PAGE_WORDS;
        let end = memory.len().min(first + pages * PAGE_WORDS);
        for (index, word) in memory[..end].iter_mut().enumerate().skip(first) {
            *word = mix(index as u64 ^ self.seed);
        }
        self.checksum ^= checksum_at(first, &memory[first..end]);
        self.touched = end / PAGE_WORDS;
    }

    /// Does this many accesses. At least a page must have been touched.
    pub fn run(&mut self, memory: &mut [u64], count: u64) {
        let pages = self.touched;
        let memory = &mut memory[..pages * PAGE_WORDS];
        // Locals, so that they stay in registers: an update shall be a load and a store of its
        // word, and not five more of the books. A panic on the way may lose them, for it ends the
        // workload.
        let (mut random, mut checksum) = (self.random.clone(), self.checksum);
        let (hot, hot_permille, scan_permille) = (self.hot, self.hot_permille, self.scan_permille);
        let (mut scanned, reads_only) = (self.scanned, self.reads_only);
        let mut seen = 0;
        for _ in 0..count {
            let choice = random.next_u64();
            let place = random.next_u64();
            let page = match &self.zipf {
                Some(law) => hot.page(law.rank(choice, place)),
                None => match below(choice, 1000) {
                    lot if lot < hot_permille => hot.page(below(place, hot.pages)),
                    lot if lot < scan_permille => {
                        scanned = if scanned + 1 < pages { scanned + 1 } else { 0 };
                        scanned
                    }
                    _ => below(place, pages),
                },
            };
            let index = page * PAGE_WORDS + below(place >> 32, PAGE_WORDS);
            // What is not touched yet is not accessed.
            let Some(word) = memory.get_mut(index) else {
                continue;
            };
            if reads_only {
                seen ^= *word;
            } else {
                *word ^= choice;
                checksum ^= weigh(index, choice);
            }
        }
        // Without a use the reads would be left out.
        core::hint::black_box(seen);
        (self.random, self.checksum, self.scanned) = (random, checksum, scanned);
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

    /// Pages that have been touched.
    #[must_use]
    pub fn touched(&self) -> usize {
        self.touched
    }

    /// Accesses done so far.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done
    }

    /// What [`checksum`] of the touched memory must be.
    #[must_use]
    pub fn expected(&self) -> u64 {
        self.checksum
    }
}

/// Adds the memory's checksum up in parts.
#[derive(Debug, Default)]
pub struct Comparison {
    pages: usize,
    sum: u64,
}

impl Comparison {
    /// Goes on by as many pages as this.
    pub fn go_on(&mut self, memory: &[u64], pages: usize) {
        let first = self.pages * PAGE_WORDS;
        let end = memory.len().min(first + pages * PAGE_WORDS);
        self.sum ^= checksum_at(first, &memory[first..end]);
        self.pages = end / PAGE_WORDS;
    }

    /// Pages that are in the sum.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The checksum of those pages.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
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
    checksum_at(0, memory)
}

/// The part of the checksum of words that begin at this place.
fn checksum_at(first: usize, words: &[u64]) -> u64 {
    let indexed = words.iter().enumerate();
    indexed.fold(0, |sum, (n, word)| sum ^ weigh(first + n, *word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: usize = 4 * 256;

    fn small() -> Work {
        Work {
            set_mib: 4,
            hot_mib: 1,
            ..Work::default()
        }
    }

    fn begun(work: &Work) -> (Updates, Vec<u64>) {
        let mut memory = vec![0; PAGES * PAGE_WORDS];
        let mut updates = Updates::new(work).unwrap();
        while updates.touched() < PAGES {
            updates.touch(&mut memory, 100);
        }
        (updates, memory)
    }

    /// Words of a range of pages that differ.
    fn changes(before: &[u64], after: &[u64], pages: core::ops::Range<usize>) -> usize {
        let words = pages.start * PAGE_WORDS..pages.end * PAGE_WORDS;
        words.filter(|&n| before[n] != after[n]).count()
    }

    #[test]
    fn updates_when_nothing_is_lost_agree_with_the_memory() {
        let (mut updates, mut memory) = begun(&small());

        updates.run(&mut memory, 100_000);
        updates.move_hot(HotSet::new(2, 1, Some(0), 4).unwrap());
        updates.run(&mut memory, 100_000);

        assert_eq!(checksum(&memory), updates.expected());
        assert_eq!(updates.done(), 200_000);
        let mut comparison = Comparison::default();
        while comparison.pages() < PAGES {
            comparison.go_on(&memory, 300);
        }
        assert_eq!(comparison.sum(), updates.expected());
    }

    #[test]
    fn updates_when_pages_are_swapped_or_zeroed_disagree() {
        let (mut updates, mut memory) = begun(&small());
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
        let (mut updates, mut memory) = begun(&small());
        let before = memory.clone();

        updates.run(&mut memory, 10_000);

        // 1000 cold updates over four quarters, a quarter of them in the hot one: 9250 of
        // 10 000 are expected there, and few words are hit twice.
        let hot = changes(&before, &memory, 768..PAGES);
        let cold = changes(&before, &memory, 0..768);
        assert!(hot > 8_700, "{hot}");
        assert!((650..850).contains(&cold), "{cold}");
    }

    #[test]
    fn updates_when_they_scan_pass_every_page_in_turn() {
        let work = Work {
            hot_permille: 0,
            scan_permille: 1000,
            ..small()
        };
        let (mut updates, mut memory) = begun(&work);
        let before = memory.clone();

        updates.run(&mut memory, PAGES as u64 / 2);

        assert_eq!(changes(&before, &memory, 0..PAGES / 2 + 1), PAGES / 2);
        assert_eq!(changes(&before, &memory, PAGES / 2 + 1..PAGES), 0);
    }

    #[test]
    fn updates_when_zipfian_go_to_the_first_ranks_most() {
        let work = Work {
            zipf_permille: 990,
            hot_stride: 7,
            ..small()
        };
        let (mut updates, mut memory) = begun(&work);
        let before = memory.clone();

        updates.run(&mut memory, 20_000);

        // The 256 first of 1024 ranks have 0.81 of the weight; some words of the first are hit
        // twice.
        let hot: usize = updates
            .hot()
            .iter()
            .map(|page| changes(&before, &memory, page..page + 1))
            .sum();
        let all = changes(&before, &memory, 0..PAGES);
        let share = hot as f64 / all as f64;
        assert!((0.74..0.83).contains(&share), "{share}");
        assert_eq!(checksum(&memory), updates.expected());
    }

    #[test]
    fn updates_when_they_only_read_leave_the_memory_as_it_is() {
        let work = Work {
            reads_only: true,
            ..small()
        };
        let (mut updates, mut memory) = begun(&work);
        let before = memory.clone();

        updates.run(&mut memory, 1000);

        assert!(memory == before);
        assert_eq!(updates.done(), 1000);
    }

    #[test]
    fn updates_when_the_set_grows_stay_in_what_is_touched() {
        let mut memory = vec![0; PAGES * PAGE_WORDS];
        let mut updates = Updates::new(&small()).unwrap();
        updates.touch(&mut memory, 512);
        updates.run(&mut memory, 10_000);
        assert!(memory[512 * PAGE_WORDS..].iter().all(|word| *word == 0));

        updates.touch(&mut memory, 512);
        updates.run(&mut memory, 10_000);

        assert_eq!(checksum(&memory), updates.expected());
    }
}
