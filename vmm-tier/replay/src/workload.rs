//! Workloads: generators of accesses that stand for real programs, so that policies can be compared
//! without one.
//!
//! Each follows from a few parameters and a seed: made again, it yields the same accesses again. What
//! hits the CPU's caches is left out, as the hardware that samples leaves it out. Pages are named by
//! their share of the guest, so a workload keeps its shape at any scale.

mod alias;
mod btree;
mod generator;
mod gups;
mod keys;
mod pagerank;
mod scan;
mod scattered;

use std::convert::Infallible;

use tier_core::{
    addr::{BASE_PAGE, HUGE_PAGE},
    random::Random,
    time::Time,
};

use self::generator::{Generator, Pattern};
use crate::machine::{Accesses, Guest};

/// How large and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Pages of 4 KiB; made whole huge pages, at least one and at most 2^30 pages.
    pub pages: u32,
    /// Accesses a second, from 1 on.
    pub rate_per_s: u64,
    /// How long it runs.
    pub seconds: u32,
    /// What the random numbers follow from.
    pub seed: u64,
}

impl Default for Scale {
    /// 128 MiB, 32 M accesses a second, two minutes: sampled one in 4093, a quarter of a sample for each
    /// page and second.
    fn default() -> Self {
        Self {
            pages: 32_768,
            rate_per_s: 32_000_000,
            seconds: 120,
            seed: 1,
        }
    }
}

impl Scale {
    fn fitting(mut self) -> Self {
        let huge = (HUGE_PAGE / BASE_PAGE) as u32;
        self.pages = self.pages.clamp(huge, 1 << 30).next_multiple_of(huge);
        self.rate_per_s = self.rate_per_s.max(1);
        self
    }

    /// This share of the pages, at least one.
    fn share(&self, numerator: u32, denominator: u32) -> u32 {
        let pages = u64::from(self.pages) * u64::from(numerator) / u64::from(denominator);
        (pages as u32).max(1)
    }
}

/// A workload that is ready to run.
pub struct Workload {
    /// The word that users write and read.
    pub name: &'static str,
    /// What it stands for, in a line.
    pub description: &'static str,
    /// The guest it runs in.
    pub guest: Guest,
    /// Its accesses. Made again, the workload yields the same again.
    pub accesses: Box<dyn Accesses<Error = Infallible> + Send>,
    /// When its pattern of accesses changes, the start (0) included.
    pub phases: Vec<Time>,
}

/// What makes a workload's pattern.
type Maker = fn(&Scale, &mut Random) -> Plan;

/// A workload before it is cut to its rate and length.
struct Plan {
    pattern: Box<dyn FnOnce(Generator) -> Box<dyn Accesses<Error = Infallible> + Send>>,
    page_bytes: u64,
    /// When [`Pattern::change`] is called, in seconds.
    changes: Vec<u32>,
    /// Whether these changes are phases.
    phases: bool,
}

impl Plan {
    /// A pattern that stays.
    fn steady(pattern: impl Pattern + 'static) -> Self {
        Self {
            pattern: Box::new(|generator| Box::new(generator.with(pattern))),
            page_bytes: BASE_PAGE,
            changes: Vec::new(),
            phases: false,
        }
    }
}

/// One workload by name.
#[derive(Clone, Copy)]
pub struct Entry {
    /// The word that users write and read.
    pub name: &'static str,
    /// What it stands for, in a line.
    pub description: &'static str,
    maker: Maker,
}

/// All workloads, in the order in which tables show them.
pub const ALL: &[Entry] = &[
    Entry {
        name: "gups-demeter",
        description: "updates at random, 9 in 10 to a hot sixteenth at the end of memory",
        maker: gups::demeter,
    },
    Entry {
        name: "gups-hemem",
        description: "updates at random, 9 in 10 to a hot 32nd that is another from mid-run on",
        maker: gups::hemem,
    },
    Entry {
        name: "zipf",
        description: "a key-value store: pages by Zipf's law with exponent 0.99, scattered",
        maker: keys::zipf,
    },
    Entry {
        name: "drift",
        description: "the same, and each second one in 100 pages changes its rank",
        maker: keys::drift,
    },
    Entry {
        name: "scan-hot",
        description: "a hot eighth, and a scan over all the rest that goes round in 10 s",
        maker: scan::scan_hot,
    },
    Entry {
        name: "phases",
        description: "several hot eighths one after the other, by Zipf's law inside",
        maker: keys::phases,
    },
    Entry {
        name: "scattered",
        description: "one hot 4 KiB page in eight, in every 2 MiB",
        maker: scattered::scattered,
    },
    Entry {
        name: "scattered-huge",
        description: "the same accesses in a guest on huge pages",
        maker: scattered::scattered_huge,
    },
    Entry {
        name: "sequential",
        description: "a sweep over all memory, line by line, again and again",
        maker: scan::sequential,
    },
    Entry {
        name: "pagerank",
        description: "edges as a stream, and ranks gathered at random from a graph with hubs",
        maker: pagerank::pagerank,
    },
    Entry {
        name: "btree",
        description: "a B-tree: hot inner nodes, popular leaves, and inserts that split them",
        maker: btree::btree,
    },
];

/// No workload has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no workload {name:?}: there are {}", names().collect::<Vec<_>>().join(", "))]
pub struct UnknownWorkload {
    /// The name.
    pub name: String,
}

/// The names of all workloads.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|entry| entry.name)
}

/// Makes the workload of this name.
///
/// # Errors
/// If there is none.
pub fn make(name: &str, scale: &Scale) -> Result<Workload, UnknownWorkload> {
    let entry = ALL.iter().find(|entry| entry.name == name);
    let entry = entry.ok_or_else(|| UnknownWorkload {
        name: name.to_owned(),
    })?;
    let scale = scale.fitting();
    let mut random = Random::new(scale.seed);
    let plan = (entry.maker)(&scale, &mut random);
    let pages = u64::from(scale.pages) * BASE_PAGE / plan.page_bytes;
    let mut phases = vec![Time(0)];
    if plan.phases {
        phases.extend(
            plan.changes
                .iter()
                .map(|&s| Time(u64::from(s) * 1_000_000_000)),
        );
    }
    let generator = Generator::new(&scale, &plan.changes, random);
    Ok(Workload {
        name: entry.name,
        description: entry.description,
        guest: Guest::uniform(generator::FIRST_ADDRESS, pages as u32, plan.page_bytes),
        accesses: (plan.pattern)(generator),
        phases,
    })
}
