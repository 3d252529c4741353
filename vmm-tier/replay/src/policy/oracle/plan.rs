//! What the oracle does in each epoch.

use tier_core::time::Time;

use super::{
    prices,
    problem::{Moves, PlanKind, Problem},
};
use crate::machine::{Host, Profile};

/// The moves at an epoch's begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochMoves {
    /// When it begins.
    pub from: Time,
    /// Pages that leave DRAM, by rising number.
    pub demote: Vec<u32>,
    /// Pages that come to DRAM, by rising number.
    pub promote: Vec<u32>,
}

/// The moves of all epochs.
#[derive(Clone, Debug)]
pub struct Plan {
    kind: PlanKind,
    epochs: Vec<EpochMoves>,
}

impl Plan {
    /// The best plan for this machine, whose pages lie where they lie at the start, for the accesses
    /// that were profiled.
    #[must_use]
    pub fn new(kind: PlanKind, profile: &Profile, host: &Host) -> Self {
        let problem = Problem::new(kind, profile, host);
        let best = match kind {
            PlanKind::Free => best_of_each(&problem),
            PlanKind::Paying => best_known(&problem),
        };
        let epochs = (0u32..)
            .zip(best)
            .map(|(number, (demote, promote))| EpochMoves {
                from: profile.start() + profile.epoch() * number,
                demote,
                promote,
            })
            .filter(|epoch| !epoch.demote.is_empty() || !epoch.promote.is_empty())
            .collect();
        Self { kind, epochs }
    }

    /// Which oracle.
    #[must_use]
    pub const fn kind(&self) -> PlanKind {
        self.kind
    }

    /// The moves at the `number`th epoch that has any.
    #[must_use]
    pub fn epoch(&self, number: usize) -> Option<&EpochMoves> {
        self.epochs.get(number)
    }

    /// Bytes that the plan takes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.epochs
            .iter()
            .map(|epoch| (epoch.demote.len() + epoch.promote.len()) * size_of::<u32>())
            .sum()
    }
}

/// What every page wants at these prices, made to fit: those that come wait for room, and those that
/// would leave stay while there is room.
fn at_prices(problem: &Problem, prices: &[f64]) -> Moves {
    let mut wishes: Vec<Vec<(u32, bool)>> = vec![Vec::new(); problem.epochs()];
    let mut way = Vec::new();
    for page in 0..problem.pages() {
        problem.best_way(page, prices, &mut way);
        let mut was = problem.starts_fast[page];
        for (epoch, &fast) in way.iter().enumerate() {
            if fast != was {
                wishes[epoch].push((page as u32, fast));
            }
            was = fast;
        }
    }
    let mut place = Placing::new(problem);
    let mut moves = Moves::with_capacity(problem.epochs());
    for (epoch, wishes) in wishes.into_iter().enumerate() {
        moves.push(place.epoch(problem, epoch, &wishes));
    }
    moves
}

/// The plan that gains most of those at prices and of simple ones. One is made at a time: each may
/// take as much memory as the profile.
fn best_known(problem: &Problem) -> Moves {
    let prices = prices::find(problem);
    let at_prices = prices
        .iter()
        .map(|prices| Box::new(|| at_prices(problem, prices)) as Box<dyn Fn() -> Moves>);
    let simple: [Box<dyn Fn() -> Moves>; 3] = [
        Box::new(|| best_of_each(problem)),
        Box::new(|| best_overall(problem)),
        Box::new(Vec::new),
    ];
    let mut best = (f64::NEG_INFINITY, Moves::new());
    for make in at_prices.chain(simple) {
        let moves = make();
        let gain = problem.gain(&moves);
        if gain >= best.0 {
            best = (gain, moves);
        }
    }
    best.1
}

/// In each epoch the pages with the most accesses a byte. Pages without accesses stay where they
/// are.
fn best_of_each(problem: &Problem) -> Moves {
    let mut is_fast = problem.starts_fast.clone();
    (0..problem.epochs())
        .map(|epoch| {
            towards(problem, &mut is_fast, |page| {
                f64::from(problem.used(page, epoch))
            })
        })
        .collect()
}

/// The pages with the most accesses a byte over all time, from the first epoch on.
fn best_overall(problem: &Problem) -> Moves {
    let mut is_fast = problem.starts_fast.clone();
    let total = |page: usize| problem.uses(page).iter().map(|u| f64::from(u.1)).sum();
    vec![towards(problem, &mut is_fast, total)]
}

/// Exchanges pages so that those with the most `worth` a byte are in DRAM. Among pages worth the
/// same those stay that are there.
fn towards(
    problem: &Problem,
    is_fast: &mut [bool],
    worth: impl Fn(usize) -> f64,
) -> (Vec<u32>, Vec<u32>) {
    let mut order: Vec<(f64, bool, u32)> = (0..problem.pages())
        .map(|page| {
            (
                worth(page) / problem.bytes(page),
                is_fast[page],
                page as u32,
            )
        })
        .collect();
    order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2)));
    let mut room = problem.fast_bytes;
    let (mut demote, mut promote) = (Vec::new(), Vec::new());
    for (_, was, page) in order {
        let bytes = problem.bytes(page as usize);
        let fits = bytes <= room;
        room -= if fits { bytes } else { 0.0 };
        match (was, fits) {
            (true, false) => demote.push(page),
            (false, true) => promote.push(page),
            _ => {}
        }
        is_fast[page as usize] = fits;
    }
    demote.sort_unstable();
    promote.sort_unstable();
    (demote, promote)
}

/// Makes wishes fit, epoch by epoch.
struct Placing {
    is_fast: Vec<bool>,
    room: f64,
    /// Pages in DRAM that no longer want to be there, or not yet asked to: they leave when room is
    /// short.
    may_leave: Vec<u32>,
    /// Whether a page is in `may_leave`.
    is_spare: Vec<bool>,
    /// Pages that want to come and found no room.
    waiting: Vec<u32>,
    wants: Vec<bool>,
}

impl Placing {
    fn new(problem: &Problem) -> Self {
        let used: f64 = (0..problem.pages())
            .filter(|&page| problem.starts_fast[page])
            .map(|page| problem.bytes(page))
            .sum();
        Self {
            is_fast: problem.starts_fast.clone(),
            room: problem.fast_bytes - used,
            may_leave: Vec::new(),
            is_spare: vec![false; problem.pages()],
            waiting: Vec::new(),
            wants: problem.starts_fast.clone(),
        }
    }

    fn epoch(
        &mut self,
        problem: &Problem,
        epoch: usize,
        wishes: &[(u32, bool)],
    ) -> (Vec<u32>, Vec<u32>) {
        for &(page, fast) in wishes {
            self.wants[page as usize] = fast;
            match (fast, self.is_fast[page as usize]) {
                (true, false) => self.waiting.push(page),
                (false, true) if !self.is_spare[page as usize] => {
                    self.is_spare[page as usize] = true;
                    self.may_leave.push(page);
                }
                _ => {}
            }
        }
        let worth = |page: u32| {
            f64::from(problem.used(page as usize, epoch)) / problem.bytes(page as usize)
        };
        // Spare pages with the least accesses leave first, waiting ones with the most come first.
        let (wants, is_fast, is_spare) = (&self.wants, &self.is_fast, &mut self.is_spare);
        self.may_leave.retain(|&page| {
            let spare = is_fast[page as usize] && !wants[page as usize];
            is_spare[page as usize] = spare;
            spare
        });
        self.may_leave
            .sort_by(|&a, &b| worth(b).total_cmp(&worth(a)));
        self.waiting
            .retain(|&page| wants[page as usize] && !is_fast[page as usize]);
        self.waiting.sort_by(|&a, &b| worth(a).total_cmp(&worth(b)));
        let (mut demote, mut promote) = (Vec::new(), Vec::new());
        while let Some(&page) = self.waiting.last() {
            let bytes = problem.bytes(page as usize);
            while self.room < bytes
                && let Some(spare) = self.may_leave.pop()
            {
                self.room += problem.bytes(spare as usize);
                self.is_fast[spare as usize] = false;
                self.is_spare[spare as usize] = false;
                demote.push(spare);
            }
            if self.room < bytes {
                break;
            }
            self.waiting.pop();
            self.room -= bytes;
            self.is_fast[page as usize] = true;
            promote.push(page);
        }
        demote.sort_unstable();
        promote.sort_unstable();
        (demote, promote)
    }
}

#[cfg(test)]
mod tests;
