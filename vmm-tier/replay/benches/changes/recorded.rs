//! Recorded programs: traces of every access, played at the rate of the generated guests.
//!
//! These traces have no clock: an access is as long as another. What is a change follows from the
//! accesses alone. They hold what hits the CPU's caches too, so uses count, not accesses: a page is used
//! or not in each 20 ms. At each second, H are the pages used most in the minute before, as many as DRAM
//! holds. A *change* is a second in which, and in the five seconds from it on, the share of uses outside
//! H is at least 10 points larger than in that minute itself, when no such second was among the five
//! before.

use std::{collections::HashMap, error::Error, path::Path};

use tier_core::{addr::BASE_PAGE, time::Time};
use tier_replay::{
    machine::{Access, Accesses, Guest},
    trace::{self, Format, Options, TraceFile},
};

use crate::{generated::RATE, input::Input};

/// Seconds before a moment of which at least `LEAST` are known, and seconds from it on.
const BEFORE: usize = 60;
const LEAST: usize = 10;
const AFTER: usize = 5;
/// The share of uses that makes a change: what the detector claims to notice in one report.
const TURNED: f64 = 0.1;

/// A page is used once at most in so many nanoseconds.
const LOOK: u64 = 20_000_000;

/// Uses in a second, by page in the order of first use.
type Counts = Vec<u32>;

/// A recorded program, read once.
pub(crate) struct Recorded {
    path: std::path::PathBuf,
    /// Addresses of pages in the order of their first use.
    addresses: Vec<u64>,
    seconds: Vec<Counts>,
}

impl Recorded {
    pub(crate) fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let mut accesses = AtRate::open(path)?;
        let mut numbers: HashMap<u64, usize> = HashMap::new();
        let (mut addresses, mut seconds) = (Vec::new(), Vec::<Counts>::new());
        let mut last = (u64::MAX, 0);
        // The look in which each page was used last.
        let mut looks: Vec<u64> = Vec::new();
        let mut block = Vec::new();
        let mut more = true;
        while more {
            block.clear();
            more = accesses.fill(&mut block)?;
            for access in &block {
                let page = access.address / BASE_PAGE;
                if page != last.0 {
                    let number = *numbers.entry(page).or_insert_with(|| {
                        addresses.push(page * BASE_PAGE);
                        looks.push(u64::MAX);
                        addresses.len() - 1
                    });
                    last = (page, number);
                }
                let look = access.at.0 / LOOK;
                if std::mem::replace(&mut looks[last.1], look) == look {
                    continue;
                }
                let second = (access.at.0 / 1_000_000_000) as usize;
                if seconds.len() <= second {
                    seconds.resize_with(second + 1, Vec::new);
                }
                let counts = &mut seconds[second];
                if counts.len() <= last.1 {
                    counts.resize(last.1 + 1, 0);
                }
                counts[last.1] += 1;
            }
        }
        Ok(Self {
            path: path.to_owned(),
            addresses,
            seconds,
        })
    }

    /// It to be played.
    pub(crate) fn input(&self) -> Result<Input, Box<dyn Error>> {
        Ok(Input {
            guest: self.guest()?,
            accesses: Box::new(AtRate::open(&self.path)?),
            // They depend on the size of DRAM.
            changes: Vec::new(),
            is_late: false,
        })
    }

    pub(crate) fn guest(&self) -> Result<Guest, Box<dyn Error>> {
        Ok(Guest::from_touched(&self.addresses, BASE_PAGE)?)
    }

    /// When it changes, with DRAM for so many bytes.
    pub(crate) fn changes(&self, fast_bytes: u64) -> Vec<Time> {
        let hot_pages = (fast_bytes / BASE_PAGE) as usize;
        let mut changes = Vec::new();
        let mut quiet = AFTER;
        for now in LEAST..self.seconds.len().saturating_sub(AFTER) {
            let before = self.sum(now.saturating_sub(BEFORE), now);
            let mut hottest: Vec<usize> = (0..before.len()).collect();
            hottest.sort_unstable_by_key(|&page| std::cmp::Reverse(before[page]));
            let mut is_hot = vec![false; self.addresses.len()];
            for &page in hottest.iter().take(hot_pages) {
                is_hot[page] = true;
            }
            let usual = outside(&before, &is_hot);
            let turned = |end| outside(&self.sum(now, end), &is_hot) - usual >= TURNED;
            if turned(now + AFTER) && turned(now + 1) {
                if quiet >= AFTER {
                    changes.push(Time(now as u64 * 1_000_000_000));
                }
                quiet = 0;
            } else {
                quiet += 1;
            }
        }
        changes
    }

    fn sum(&self, first: usize, end: usize) -> Vec<u64> {
        let mut sum = vec![0; self.addresses.len()];
        for counts in &self.seconds[first..end] {
            for (sum, &count) in sum.iter_mut().zip(counts) {
                *sum += u64::from(count);
            }
        }
        sum
    }
}

/// The share of uses of pages that are not hot.
fn outside(counts: &[u64], is_hot: &[bool]) -> f64 {
    let all: u64 = counts.iter().sum();
    let hot: u64 = counts
        .iter()
        .zip(is_hot)
        .filter(|(_, is_hot)| **is_hot)
        .map(|(count, _)| count)
        .sum();
    (all - hot) as f64 / all.max(1) as f64
}

/// A trace whose accesses come at a steady rate.
struct AtRate {
    file: TraceFile,
    number: u64,
}

impl AtRate {
    fn open(path: &Path) -> Result<Self, Box<dyn Error>> {
        let opened = trace::open(path, Format::Native, Options::default())?;
        Ok(Self {
            file: opened.accesses,
            number: 0,
        })
    }
}

impl Accesses for AtRate {
    type Error = Box<dyn Error>;

    fn fill(&mut self, out: &mut Vec<Access>) -> Result<bool, Self::Error> {
        let first = out.len();
        let more = self.file.fill(out)?;
        for access in &mut out[first..] {
            access.at = Time(self.number * (1_000_000_000 / RATE));
            self.number += 1;
        }
        Ok(more)
    }
}
