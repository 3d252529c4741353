//! What the dual heaps are measured beside. All but the histogram are given forward-decayed keys, so that
//! the comparison is of structures, not of ageing. Their tiers stand in a plain array.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
};

use keyed_priority_queue::KeyedPriorityQueue;
use priority_queue::PriorityQueue;

/// A store of heat for two tiers.
pub(crate) trait Rival {
    /// Adds `gain` to the key of each page.
    fn sample(&mut self, gain: f64, ids: &[u32]);

    /// Has the hottest page of the slow tier and the coldest of the fast tier change places.
    fn exchange(&mut self);
}

/// The bits of positive floats are in the floats' order.
fn grown(key: u64, gain: f64) -> u64 {
    (f64::from_bits(key) + gain).to_bits()
}

/// The pages of one tier.
fn pages(is_fast: &[bool], is_wanted: bool) -> impl Iterator<Item = u32> {
    let pages = (0..).zip(is_fast);
    pages
        .filter(move |&(_, &fast)| fast == is_wanted)
        .map(|(id, _)| id)
}

/// The plain way: a key for each page, and an ordered set for each tier.
pub(crate) struct Trees {
    keys: HashMap<u32, u64>,
    is_fast: Vec<bool>,
    fast: BTreeSet<(u64, u32)>,
    slow: BTreeSet<(u64, u32)>,
}

impl Trees {
    pub(crate) fn new(is_fast: Vec<bool>) -> Self {
        let set = |wanted| {
            let pages = pages(&is_fast, wanted);
            pages.map(|id| (0, id)).collect()
        };
        Self {
            keys: (0..is_fast.len() as u32).map(|id| (id, 0)).collect(),
            fast: set(true),
            slow: set(false),
            is_fast,
        }
    }
}

impl Rival for Trees {
    fn sample(&mut self, gain: f64, ids: &[u32]) {
        for &id in ids {
            let key = self.keys.get_mut(&id).expect("a tracked page");
            let set = if self.is_fast[id as usize] {
                &mut self.fast
            } else {
                &mut self.slow
            };
            set.remove(&(*key, id));
            *key = grown(*key, gain);
            set.insert((*key, id));
        }
    }

    fn exchange(&mut self) {
        let hot = self.slow.pop_last().expect("a slow page");
        let cold = self.fast.pop_first().expect("a fast page");
        self.is_fast[hot.1 as usize] = true;
        self.is_fast[cold.1 as usize] = false;
        self.fast.insert(hot);
        self.slow.insert(cold);
    }
}

/// A queue of pages whose keys can be changed.
pub(crate) trait Queue<K>: FromIterator<(u32, K)> {
    /// Adds `gain` to a page's key.
    fn grow(&mut self, id: u32, gain: f64);

    /// Takes the page with the highest key.
    fn take(&mut self) -> (u32, K);

    fn put(&mut self, id: u32, key: K);
}

/// Forward-decayed keys, the hottest first or the coldest first.
pub(crate) trait Key: Ord {
    fn of(bits: u64) -> Self;
    fn bits(&self) -> u64;
}

impl Key for u64 {
    fn of(bits: u64) -> Self {
        bits
    }

    fn bits(&self) -> u64 {
        *self
    }
}

impl Key for Reverse<u64> {
    fn of(bits: u64) -> Self {
        Self(bits)
    }

    fn bits(&self) -> u64 {
        self.0
    }
}

impl<K: Key> Queue<K> for PriorityQueue<u32, K> {
    fn grow(&mut self, id: u32, gain: f64) {
        self.change_priority_by(&id, |key| *key = K::of(grown(key.bits(), gain)));
    }

    fn take(&mut self) -> (u32, K) {
        self.pop().expect("a page")
    }

    fn put(&mut self, id: u32, key: K) {
        self.push(id, key);
    }
}

impl<K: Key> Queue<K> for KeyedPriorityQueue<u32, K> {
    fn grow(&mut self, id: u32, gain: f64) {
        const TRACKED: &str = "a tracked page";
        let key = self.get_priority(&id).expect(TRACKED).bits();
        let key = K::of(grown(key, gain));
        self.set_priority(&id, key).expect(TRACKED);
    }

    fn take(&mut self) -> (u32, K) {
        self.pop().expect("a page")
    }

    fn put(&mut self, id: u32, key: K) {
        self.push(id, key);
    }
}

/// Two queues of a crate.
pub(crate) struct Queues<F, S> {
    is_fast: Vec<bool>,
    fast: F,
    slow: S,
}

/// Those of the crate `priority-queue`.
pub(crate) type PriorityQueues = Queues<PriorityQueue<u32, Reverse<u64>>, PriorityQueue<u32, u64>>;

/// Those of the crate `keyed_priority_queue`.
pub(crate) type KeyedQueues =
    Queues<KeyedPriorityQueue<u32, Reverse<u64>>, KeyedPriorityQueue<u32, u64>>;

impl<F: Queue<Reverse<u64>>, S: Queue<u64>> Queues<F, S> {
    pub(crate) fn new(is_fast: Vec<bool>) -> Self {
        Self {
            fast: pages(&is_fast, true).map(|id| (id, Reverse(0))).collect(),
            slow: pages(&is_fast, false).map(|id| (id, 0)).collect(),
            is_fast,
        }
    }
}

impl<F: Queue<Reverse<u64>>, S: Queue<u64>> Rival for Queues<F, S> {
    fn sample(&mut self, gain: f64, ids: &[u32]) {
        for &id in ids {
            if self.is_fast[id as usize] {
                self.fast.grow(id, gain);
            } else {
                self.slow.grow(id, gain);
            }
        }
    }

    fn exchange(&mut self) {
        let (promoted, hot) = self.slow.take();
        let (demoted, cold) = self.fast.take();
        self.is_fast[promoted as usize] = true;
        self.is_fast[demoted as usize] = false;
        self.fast.put(promoted, Reverse(hot));
        self.slow.put(demoted, cold.0);
    }
}

/// What Memtis (SOSP 2023) keeps: a count for each page and a histogram of their powers of two. All counts
/// are halved every two million samples, and every 100 000 samples the threshold is chosen above which
/// the pages fit into the fast tier. It has no hottest page, only pages above the threshold.
pub(crate) struct Histogram {
    counts: Vec<u32>,
    bins: [u32; Histogram::BINS],
    fast_pages: u32,
    threshold: usize,
    samples: u32,
}

impl Histogram {
    const BINS: usize = 16;
    const COOL_EVERY: u32 = 2_000_000;
    const ADAPT_EVERY: u32 = 100_000;

    pub(crate) fn new(is_fast: &[bool]) -> Self {
        let mut bins = [0; Self::BINS];
        bins[0] = is_fast.len() as u32;
        Self {
            counts: vec![0; is_fast.len()],
            bins,
            fast_pages: is_fast.iter().filter(|&&fast| fast).count() as u32,
            threshold: 1,
            samples: 0,
        }
    }

    /// 0 for no sample, 1 for one, 2 for two and three, and so on.
    fn bin(count: u32) -> usize {
        ((u32::BITS - count.leading_zeros()) as usize).min(Self::BINS - 1)
    }

    fn adapt(&mut self) {
        let mut above = 0;
        let fits = |&bin: &usize| {
            above += self.bins[bin];
            above <= self.fast_pages
        };
        let hot = (1..Self::BINS).rev().take_while(fits).last();
        self.threshold = hot.unwrap_or(Self::BINS);
    }

    fn cool(&mut self) {
        self.bins = [0; Self::BINS];
        for count in &mut self.counts {
            *count /= 2;
            self.bins[Self::bin(*count)] += 1;
        }
    }
}

impl Rival for Histogram {
    /// Whatever the gain, a sample counts one.
    fn sample(&mut self, _: f64, ids: &[u32]) {
        for &id in ids {
            let count = &mut self.counts[id as usize];
            let before = Self::bin(*count);
            *count += 1;
            let after = Self::bin(*count);
            if before != after {
                self.bins[before] -= 1;
                self.bins[after] += 1;
            }
            self.samples += 1;
            if self.samples.is_multiple_of(Self::ADAPT_EVERY) {
                self.adapt();
            }
            if self.samples.is_multiple_of(Self::COOL_EVERY) {
                self.cool();
            }
        }
        std::hint::black_box(self.threshold);
    }

    fn exchange(&mut self) {}
}
