//! Generated guests: the workloads of `vmm-tier replay`, and some of them with their memory moved about.
//!
//! Accesses come at a steady rate, so their number is the time. A guest's memory *is moved* by giving
//! accesses other pages, 256 KiB (or a huge page) at a time: what was hot lies elsewhere then. All of
//! it is moved by turning memory round by a quarter to three quarters, a part by turning the blocks of
//! that part.

use std::{convert::Infallible, time::Duration};

use tier_core::{
    addr::{BASE_PAGE, HUGE_PAGE},
    random::Random,
    sample::AccessKind,
    time::Time,
};
use tier_replay::{
    machine::{Access, Accesses, Guest},
    workload::{self, Scale},
};

use crate::input::Input;

/// Accesses a second.
pub(crate) const RATE: u64 = 250_000;
/// Bytes that are moved together; a huge page, where pages are huge.
const BLOCK: u64 = 64 * BASE_PAGE;
/// Pages of 4 KiB of a guest on huge pages: few, so that cold pages are found used at most looks, as in
/// a larger guest with more accesses, and the agent watches in turns at its quickest pace.
const HUGE_PAGES: u32 = 24_576;
/// The least and the most seconds from one change to the next.
const GAP: (f64, f64) = (25.0, 70.0);
/// Seconds of a short run.
const SHORT: u32 = 320;
/// How long a guest sleeps.
const SLEEP: Duration = Duration::from_secs(20);

type Boxed = Box<dyn Accesses<Error = Infallible> + Send>;

/// What happens to a workload's memory now and then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Event {
    /// A share of memory is moved.
    Move { one_in: u32 },
    /// The guest sleeps.
    Sleep,
    /// The guest sleeps, and all of its memory was moved when it wakes.
    SleepAndMove,
}

/// A generated guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generated {
    pub(crate) name: &'static str,
    workload: &'static str,
    event: Option<Event>,
    /// Its pages are huge.
    is_huge: bool,
    /// DAMON's looks come late, as beside a busy or emulated CPU.
    is_late: bool,
    /// Seconds of a run, and runs with a seed each.
    seconds: u32,
    pub(crate) runs: u64,
}

const fn once(name: &'static str, workload: &'static str, event: Option<Event>) -> Generated {
    Generated {
        name,
        workload,
        event,
        is_huge: false,
        is_late: false,
        seconds: 1200,
        runs: 1,
    }
}

const fn steady(name: &'static str) -> Generated {
    Generated {
        seconds: 3600,
        ..once(name, name, None)
    }
}

const fn huge(mut guest: Generated, is_late: bool) -> Generated {
    guest.is_huge = true;
    guest.is_late = is_late;
    guest
}

const ALL_MOVES: Option<Event> = Some(Event::Move { one_in: 1 });
const A_QUARTER_MOVES: Option<Event> = Some(Event::Move { one_in: 4 });

/// Guests that change.
pub(crate) const CHANGING: &[Generated] = &[
    Generated {
        seconds: 180,
        runs: 8,
        ..steady("gups-hemem")
    },
    Generated {
        seconds: 320,
        runs: 4,
        ..steady("phases")
    },
    once("gups-demeter, all moves", "gups-demeter", ALL_MOVES),
    once("gups-demeter, 1/4 moves", "gups-demeter", A_QUARTER_MOVES),
    once(
        "gups-demeter, sleeps, moves",
        "gups-demeter",
        Some(Event::SleepAndMove),
    ),
    once("zipf, all moves", "zipf", ALL_MOVES),
    once("zipf, 1/4 moves", "zipf", A_QUARTER_MOVES),
    once("scan-hot, all moves", "scan-hot", ALL_MOVES),
    once("scattered, all moves", "scattered", ALL_MOVES),
    huge(
        once("huge pages, all moves", "gups-demeter", ALL_MOVES),
        false,
    ),
    huge(
        once("huge pages, 1/4 moves", "gups-demeter", A_QUARTER_MOVES),
        false,
    ),
    huge(
        once(
            "huge pages, all moves, late looks",
            "gups-demeter",
            ALL_MOVES,
        ),
        true,
    ),
];

/// Guests that don't, or without a moment.
pub(crate) const STEADY: &[Generated] = &[
    steady("gups-demeter"),
    Generated {
        event: Some(Event::Sleep),
        workload: "gups-demeter",
        ..steady("gups-demeter, sleeps")
    },
    steady("zipf"),
    steady("uniform"),
    steady("scan-hot"),
    steady("scattered"),
    steady("scattered-huge"),
    huge(
        Generated {
            workload: "gups-demeter",
            ..steady("huge pages")
        },
        false,
    ),
    huge(
        Generated {
            workload: "gups-demeter",
            ..steady("huge pages, late looks")
        },
        true,
    ),
    steady("sequential"),
    steady("pagerank"),
    steady("btree"),
    steady("drift"),
];

impl Generated {
    /// The run of this number.
    pub(crate) fn input(&self, run: u64, is_short: bool) -> Input {
        let seconds = self.seconds.min(if is_short { SHORT } else { u32::MAX });
        let scale = Scale {
            rate_per_s: RATE,
            seconds,
            seed: run + 1,
            pages: match self.is_huge {
                true => HUGE_PAGES,
                false => Scale::default().pages,
            },
        };
        let (mut guest, accesses, mut changes) = make(self.workload, &scale);
        let mut random = Random::new(run ^ 0xc4a2);
        let accesses: Boxed = match self.event {
            None => accesses,
            Some(event) => {
                let due = moments(&mut random, seconds);
                if event != Event::Sleep {
                    changes.clone_from(&due);
                }
                let block = if self.is_huge { HUGE_PAGE } else { BLOCK };
                let blocks = (guest.bytes() / block) as u32;
                Box::new(Moved::new(accesses, event, due, random, block, blocks))
            }
        };
        if self.is_huge {
            guest = guest.in_huge_pages().expect("a guest that exists");
        }
        Input {
            guest,
            accesses: Box::new(Infallibly(accesses)),
            changes,
            is_late: self.is_late,
        }
    }
}

/// A workload by name; when it changes, as it says itself.
fn make(name: &str, scale: &Scale) -> (Guest, Boxed, Vec<Time>) {
    if name == "uniform" {
        let guest = Guest::uniform(0, scale.pages, BASE_PAGE);
        return (guest, Box::new(Uniform::new(scale)), Vec::new());
    }
    let workload = workload::make(name, scale).expect("a workload's name");
    let phases = workload.phases.into_iter().skip(1).collect();
    (workload.guest, workload.accesses, phases)
}

/// Irregular moments.
fn moments(random: &mut Random, seconds: u32) -> Vec<Time> {
    let mut moments = Vec::new();
    let mut at = 60.0;
    while at < f64::from(seconds) {
        moments.push(Time((at * 1e9) as u64));
        at += GAP.0 + random.share() * (GAP.1 - GAP.0);
    }
    moments
}

struct Infallibly(Boxed);

impl Accesses for Infallibly {
    type Error = Box<dyn std::error::Error>;

    fn fill(&mut self, out: &mut Vec<Access>) -> Result<bool, Self::Error> {
        let Ok(more) = self.0.fill(out);
        Ok(more)
    }
}

/// A guest that uses all pages alike, at random.
struct Uniform {
    random: Random,
    pages: u64,
    number: u64,
    end: u64,
}

impl Uniform {
    const fn new(scale: &Scale) -> Self {
        Self {
            random: Random::new(scale.seed),
            pages: scale.pages as u64,
            number: 0,
            end: RATE * scale.seconds as u64,
        }
    }
}

impl Accesses for Uniform {
    type Error = Infallible;

    fn fill(&mut self, out: &mut Vec<Access>) -> Result<bool, Infallible> {
        for _ in 0..4096 {
            out.push(Access {
                at: Time(self.number * (1_000_000_000 / RATE)),
                address: self.random.below(self.pages) * BASE_PAGE,
                len: 1,
                weight: 1,
                kind: AccessKind::Load,
            });
            self.number += 1;
        }
        Ok(self.number < self.end)
    }
}

/// See the [module](self).
struct Moved {
    accesses: Boxed,
    event: Event,
    /// Moments to come, the last first.
    due: Vec<Time>,
    random: Random,
    block_bytes: u64,
    /// Where each block lies.
    places: Vec<u32>,
}

impl Moved {
    fn new(
        accesses: Boxed,
        event: Event,
        mut due: Vec<Time>,
        random: Random,
        block_bytes: u64,
        blocks: u32,
    ) -> Self {
        due.reverse();
        Self {
            accesses,
            event,
            due,
            random,
            block_bytes,
            places: (0..blocks).collect(),
        }
    }

    /// Turns one in `one_in` blocks round.
    fn turn(&mut self, one_in: u32) {
        let blocks = self.places.len();
        let mut chosen: Vec<usize> = (0..blocks).collect();
        if one_in > 1 {
            self.random.shuffle(&mut chosen);
            chosen.truncate(blocks / one_in as usize);
            chosen.sort_unstable();
        }
        let n = chosen.len();
        let by = n / 4 + self.random.below(n as u64 / 2) as usize;
        let old: Vec<u32> = chosen.iter().map(|&block| self.places[block]).collect();
        for (i, &block) in chosen.iter().enumerate() {
            self.places[block] = old[(i + by) % n];
        }
    }
}

impl Accesses for Moved {
    type Error = Infallible;

    fn fill(&mut self, out: &mut Vec<Access>) -> Result<bool, Infallible> {
        let first = out.len();
        let Ok(more) = self.accesses.fill(out);
        let mut kept = first;
        for i in first..out.len() {
            let mut access = out[i];
            while self.due.last().is_some_and(|&due| due <= access.at) {
                self.due.pop();
                match self.event {
                    Event::Move { one_in } => self.turn(one_in),
                    Event::SleepAndMove => self.turn(1),
                    Event::Sleep => {}
                }
            }
            let sleeps = matches!(self.event, Event::Sleep | Event::SleepAndMove)
                && self
                    .due
                    .last()
                    .is_some_and(|due| due.since(access.at) < SLEEP);
            if sleeps {
                continue;
            }
            // The guest's first address is a multiple of a block.
            let block_bytes = self.block_bytes;
            let blocks = self.places.len() as u64;
            let base = access.address / (blocks * block_bytes) * (blocks * block_bytes);
            let block = (access.address - base) / block_bytes;
            let place = u64::from(self.places[block as usize]);
            access.address = base + place * block_bytes + access.address % block_bytes;
            out[kept] = access;
            kept += 1;
        }
        out.truncate(kept);
        Ok(more)
    }
}
