//! What all generators have in common: the clock, the length, and the changes of a pattern.

use std::convert::Infallible;

use tier_core::{addr::BASE_PAGE, random::Random, sample::AccessKind, time::Time};

use super::Scale;
use crate::machine::{Access, Accesses};

/// Where the guest's memory begins: at 4 GiB, as what lies above a PC's hole for devices.
pub(super) const FIRST_ADDRESS: u64 = 1 << 32;
/// Bytes of a CPU's cache line.
pub(super) const LINE: u64 = 64;
/// Cache lines of a page.
pub(super) const LINES: u32 = (BASE_PAGE / LINE) as u32;
/// Accesses that are yielded at a time: 128 KiB, which fit a second-level cache.
const BLOCK: u64 = 4096;

/// Accesses that are made at a time.
const CHUNK: usize = 256;
const EMPTY: Access = Access {
    at: Time(0),
    address: 0,
    len: 1,
    weight: 1,
    kind: AccessKind::Load,
};

/// Where accesses go.
pub(super) trait Pattern: Send {
    /// The next access: bytes from the start of memory, and its kind.
    fn next(&mut self, random: &mut Random) -> (u64, AccessKind);

    /// One of the changes that were planned comes to pass.
    fn change(&mut self, _random: &mut Random) {}
}

/// The offset of a cache line in a page, and of the page; `bits` choose the line.
#[inline]
pub(super) const fn line_in(page: u32, bits: u64) -> u64 {
    page as u64 * BASE_PAGE + bits % LINES as u64 * LINE
}

/// A store if true.
#[inline]
pub(super) const fn store_if(store: bool) -> AccessKind {
    if store {
        AccessKind::Store
    } else {
        AccessKind::Load
    }
}

/// Spreads accesses evenly over time: whole nanoseconds, the fraction carried.
#[derive(Clone, Copy, Debug)]
struct Clock {
    at: u64,
    rest: u64,
    rate: u64,
    step: u64,
    step_rest: u64,
}

impl Clock {
    const fn new(rate: u64) -> Self {
        Self {
            at: 0,
            rest: 0,
            rate,
            step: 1_000_000_000 / rate,
            step_rest: 1_000_000_000 % rate,
        }
    }

    #[inline]
    const fn tick(&mut self) -> Time {
        let now = self.at;
        // Both are below the rate, and time ends after 584 years.
        self.rest = self.rest.wrapping_add(self.step_rest);
        let carry = self.rest >= self.rate;
        self.rest = self.rest.wrapping_sub(if carry { self.rate } else { 0 });
        self.at = self.at.wrapping_add(self.step.wrapping_add(carry as u64));
        Time(now)
    }
}

/// The rate and the length of a workload, without a pattern.
pub(super) struct Generator {
    clock: Clock,
    left: u64,
    /// Accesses from one change to the next, the last first.
    changes: Vec<u64>,
    random: Random,
}

impl Generator {
    /// `changes` are seconds, in rising order.
    pub(super) fn new(scale: &Scale, changes: &[u32], random: Random) -> Self {
        let accesses = |seconds: u32| scale.rate_per_s.saturating_mul(u64::from(seconds));
        let mut before = 0;
        let gaps = changes.iter().map(|&second| {
            let at = accesses(second);
            at - std::mem::replace(&mut before, at)
        });
        let mut changes: Vec<u64> = gaps.collect();
        changes.reverse();
        Self {
            clock: Clock::new(scale.rate_per_s),
            left: accesses(scale.seconds),
            changes,
            random,
        }
    }

    pub(super) fn with<P: Pattern>(self, pattern: P) -> Patterned<P> {
        Patterned {
            generator: self,
            pattern,
            chunk: [EMPTY; CHUNK],
        }
    }
}

/// A pattern in time.
pub(super) struct Patterned<P> {
    generator: Generator,
    pattern: P,
    chunk: [Access; CHUNK],
}

impl<P: Pattern> Accesses for Patterned<P> {
    type Error = Infallible;

    fn fill(&mut self, out: &mut Vec<Access>) -> Result<bool, Infallible> {
        let Self {
            generator,
            pattern,
            chunk,
        } = self;
        let mut room = BLOCK;
        while room > 0 && generator.left > 0 {
            let n = match generator.changes.last_mut() {
                Some(0) => {
                    generator.changes.pop();
                    pattern.change(&mut generator.random);
                    continue;
                }
                Some(until) => {
                    let n = room.min(generator.left).min(*until).min(CHUNK as u64);
                    *until -= n;
                    n
                }
                None => room.min(generator.left).min(CHUNK as u64),
            };
            // Local copies stay in registers, and the chunk in the first-level cache.
            let (mut clock, mut random) = (generator.clock, generator.random.clone());
            let chunk = &mut chunk[..n as usize];
            for access in &mut *chunk {
                let (offset, kind) = pattern.next(&mut random);
                access.at = clock.tick();
                access.address = FIRST_ADDRESS.wrapping_add(offset);
                access.kind = kind;
            }
            out.extend_from_slice(chunk);
            (generator.clock, generator.random) = (clock, random);
            generator.left -= n;
            room -= n;
        }
        Ok(generator.left > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts its accesses and changes in the offsets that it yields.
    #[derive(Default)]
    struct Counting {
        accesses: u64,
        changes: u64,
    }

    impl Pattern for Counting {
        fn next(&mut self, _: &mut Random) -> (u64, AccessKind) {
            self.accesses += 1;
            (self.changes << 32 | (self.accesses - 1), AccessKind::Load)
        }

        fn change(&mut self, _: &mut Random) {
            self.changes += 1;
        }
    }

    fn run(scale: &Scale, changes: &[u32]) -> Vec<Access> {
        let mut generator =
            Generator::new(scale, changes, Random::new(1)).with(Counting::default());
        let mut out = Vec::new();
        while generator.fill(&mut out).unwrap() {}
        out
    }

    #[test]
    fn accesses_when_the_rate_divides_no_second_are_evenly_spread_for_ever() {
        for rate_per_s in [7, 3000, 999_983] {
            let scale = Scale {
                rate_per_s,
                seconds: 3,
                ..Scale::default()
            };
            let accesses = run(&scale, &[]);
            assert_eq!(accesses.len() as u64, 3 * rate_per_s);
            for (number, access) in (0..).zip(&accesses) {
                assert_eq!(access.at.0, number * 1_000_000_000 / rate_per_s);
                assert_eq!(access.address, FIRST_ADDRESS + number);
            }
        }
    }

    #[test]
    fn changes_when_planned_come_at_their_second() {
        let scale = Scale {
            rate_per_s: 10_007,
            seconds: 5,
            ..Scale::default()
        };
        for access in run(&scale, &[1, 3, 4, 9]) {
            let changes = (access.address - FIRST_ADDRESS) >> 32;
            let second = access.at.0 / 1_000_000_000;
            assert_eq!(changes, [0, 1, 1, 2, 3][second as usize]);
        }
    }
}
