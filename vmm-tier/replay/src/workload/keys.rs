//! Key-value stores: keys by popularity, as YCSB (`SoCC` 2010) asks for them.

use tier_core::{
    random::{Random, scaled},
    sample::AccessKind,
};

use super::{
    Plan, Scale,
    alias::Alias,
    generator::{Pattern, line_in, store_if},
};

/// YCSB's exponent of Zipf's law.
pub(super) const YCSB: f64 = 0.99;
/// Of 256 accesses, those that write: one in 20, as YCSB's workload B.
const STORES: u8 = 13;

/// Kind and line of an access, from random bits that choose no page.
#[inline]
const fn at_page(page: u32, bits: u32) -> (u64, AccessKind) {
    (
        line_in(page, bits as u64 >> 8),
        store_if((bits as u8) < STORES),
    )
}

struct Zipf {
    pages: Alias,
}

impl Pattern for Zipf {
    #[inline]
    fn next(&mut self, random: &mut Random) -> (u64, AccessKind) {
        let page = self.pages.pick(random.draw());
        at_page(page, random.draw() as u32)
    }
}

/// Zipf's law with YCSB's exponent over all pages, the popular ones scattered.
pub(super) fn zipf(scale: &Scale, random: &mut Random) -> Plan {
    Plan::steady(Zipf {
        pages: Alias::zipf(scale.pages, YCSB, Some(random)),
    })
}

/// Of 1000 pages, those that change their rank in a second.
const DRIFTING: u32 = 10;

struct Drift {
    ranks: Alias,
    /// The page of each rank.
    order: Vec<u32>,
}

impl Pattern for Drift {
    #[inline]
    fn next(&mut self, random: &mut Random) -> (u64, AccessKind) {
        let rank = self.ranks.pick(random.draw());
        at_page(self.order[rank as usize], random.draw() as u32)
    }

    fn change(&mut self, random: &mut Random) {
        let pages = self.order.len() as u64;
        for _ in 0..(pages * u64::from(DRIFTING) / 2000).max(1) {
            let (a, b) = (random.below(pages), random.below(pages));
            self.order.swap(a as usize, b as usize);
        }
    }
}

/// A cache in front of a database, whose popular keys change with the day's news: as [`zipf`], but each
/// second one in 100 pages changes its rank with another, so that after two minutes two of three have
/// moved.
pub(super) fn drift(scale: &Scale, random: &mut Random) -> Plan {
    let mut order: Vec<u32> = (0..scale.pages).collect();
    random.shuffle(&mut order);
    let mut plan = Plan::steady(Drift {
        ranks: Alias::zipf(scale.pages, YCSB, None),
        order,
    });
    plan.changes = (1..scale.seconds).collect();
    plan
}

/// Share of the pages that is hot in a phase.
const HOT_SHARE: u32 = 8;
/// Of 256 accesses, those that go to the hot set: 9 in 10.
const HOT: u8 = 230;
/// Least length of a phase, in seconds.
const PHASE: u32 = 40;

struct Phases {
    /// Popularity inside a hot set.
    ranks: Alias,
    /// All pages in random order: the hot sets one after the other.
    order: Vec<u32>,
    /// Where the hot set begins in that order.
    first: u32,
    hot: u32,
}

impl Pattern for Phases {
    #[inline]
    fn next(&mut self, random: &mut Random) -> (u64, AccessKind) {
        let bits = random.draw();
        let other = random.draw();
        let index = if (other as u8) < HOT {
            self.first + self.ranks.pick(bits)
        } else {
            scaled(bits as u32, self.order.len() as u32)
        };
        at_page(self.order[index as usize], (other >> 8) as u32)
    }

    fn change(&mut self, _: &mut Random) {
        self.first = (self.first + self.hot) % (self.hot * HOT_SHARE);
    }
}

/// A program of several steps, each with its own data: in each phase nine of ten accesses go to another
/// eighth of the pages, scattered, by Zipf's law inside; the others go anywhere. Phases take at least 40
/// s, and there are eight at most.
pub(super) fn phases(scale: &Scale, random: &mut Random) -> Plan {
    let hot = scale.share(1, HOT_SHARE);
    let mut order: Vec<u32> = (0..scale.pages).collect();
    random.shuffle(&mut order);
    let phases = (scale.seconds / PHASE).clamp(1, HOT_SHARE);
    let mut plan = Plan::steady(Phases {
        ranks: Alias::zipf(hot, YCSB, None),
        order,
        first: 0,
        hot,
    });
    plan.changes = (1..phases)
        .map(|phase| (u64::from(scale.seconds) * u64::from(phase) / u64::from(phases)) as u32)
        .collect();
    plan.phases = true;
    plan
}
