//! What the oracle does in each epoch.

use tier_core::{moves::assumed_cost_ns, time::Time};

use super::prices;
use crate::machine::{Host, Profile};

/// Which oracle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanKind {
    /// Pays for moves as all policies do.
    Paying,
    /// Moves cost nothing.
    Free,
}

impl PlanKind {
    /// The policy's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Paying => "oracle",
            Self::Free => "oracle-free",
        }
    }
}

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
            PlanKind::Free => problem.best_of_each(),
            PlanKind::Paying => problem.best_known(),
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

/// The pages that leave and that come, by epoch. No entries: nothing moves any more.
pub(super) type Moves = Vec<(Vec<u32>, Vec<u32>)>;

/// The oracle's problem, by page: uses in rising order of epoch.
#[derive(Debug)]
pub(super) struct Problem {
    /// Where each page's uses begin in `uses`; one more than there are pages.
    begins: Vec<usize>,
    /// Epoch and accesses.
    uses: Vec<(u32, u32)>,
    bytes: Vec<u64>,
    starts_fast: Vec<bool>,
    epochs: usize,
    pub(super) fast_bytes: f64,
    gain_ns: f64,
    moves_cost: bool,
}

impl Problem {
    fn new(kind: PlanKind, profile: &Profile, host: &Host) -> Self {
        let guest = host.guest();
        let pages = guest.pages() as usize;
        let mut begins = vec![0; pages + 1];
        for &(page, _) in profile.epochs().iter().flatten() {
            begins[page as usize + 1] += 1;
        }
        for page in 0..pages {
            begins[page + 1] += begins[page];
        }
        let mut next = begins.clone();
        let mut uses = vec![(0, 0); begins[pages]];
        for (epoch, used) in (0..).zip(profile.epochs()) {
            for &(page, accesses) in used {
                let at = &mut next[page as usize];
                uses[*at] = (epoch, accesses);
                *at += 1;
            }
        }
        let (fast_ns, slow_ns) = host.latencies();
        Self {
            begins,
            uses,
            bytes: (0..guest.pages())
                .map(|page| guest.page_bytes(page))
                .collect(),
            starts_fast: (0..guest.pages()).map(|page| host.is_fast(page)).collect(),
            epochs: profile.epochs().len(),
            fast_bytes: host.fast_bytes() as f64,
            gain_ns: (slow_ns - fast_ns).max(0.0),
            moves_cost: kind == PlanKind::Paying,
        }
    }

    pub(super) fn pages(&self) -> usize {
        self.bytes.len()
    }

    pub(super) const fn epochs(&self) -> usize {
        self.epochs
    }

    pub(super) fn bytes(&self, page: usize) -> f64 {
        self.bytes[page] as f64
    }

    fn move_ns(&self, page: usize) -> f64 {
        if self.moves_cost {
            assumed_cost_ns(self.bytes[page])
        } else {
            0.0
        }
    }

    fn uses(&self, page: usize) -> &[(u32, u32)] {
        &self.uses[self.begins[page]..self.begins[page + 1]]
    }

    /// A page's accesses in an epoch.
    fn used(&self, page: usize, epoch: usize) -> u32 {
        let uses = self.uses(page);
        uses.binary_search_by_key(&(epoch as u32), |&(epoch, _)| epoch)
            .map_or(0, |at| uses[at].1)
    }

    /// What a byte of DRAM is worth to the last page that fits in an epoch, moves aside; of every
    /// `every`th page.
    pub(super) fn clearing_price(&self, epoch: usize, every: usize) -> f64 {
        let mut worth: Vec<(f64, f64)> = (0..self.pages())
            .step_by(every)
            .map(|page| {
                let gained = f64::from(self.used(page, epoch)) * self.gain_ns;
                (gained / self.bytes(page), self.bytes(page))
            })
            .collect();
        worth.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        let mut room = self.fast_bytes / every as f64;
        for (price, bytes) in worth {
            room -= bytes;
            if room <= 0.0 {
                return price;
            }
        }
        0.0
    }

    /// Whether the page is in DRAM in each epoch, on its best way at these prices.
    pub(super) fn best_way(&self, page: usize, prices: &[f64], way: &mut Vec<bool>) {
        let (bytes, cost) = (self.bytes(page), self.move_ns(page));
        let mut uses = self.uses(page).iter().copied().peekable();
        // Best gain so far when slow and when fast now; and whether each came from fast.
        let (mut slow, mut fast) = if self.starts_fast[page] {
            (f64::NEG_INFINITY, 0.0)
        } else {
            (0.0, f64::NEG_INFINITY)
        };
        // Bit 0: slow now came from fast; bit 1: fast now came from fast.
        let mut came: Vec<u8> = Vec::with_capacity(prices.len());
        for (epoch, price) in (0u32..).zip(prices) {
            let used = uses.next_if(|&(e, _)| e == epoch).map_or(0, |(_, n)| n);
            let gained = f64::from(used) * self.gain_ns - price * bytes;
            let (stay_slow, leave) = (slow, fast - cost);
            let (stay_fast, enter) = (fast, slow - cost);
            came.push(u8::from(leave > stay_slow) | u8::from(stay_fast >= enter) << 1);
            slow = stay_slow.max(leave);
            fast = stay_fast.max(enter) + gained;
        }
        way.clear();
        way.resize(prices.len(), false);
        let mut is_fast = fast > slow;
        for (fast, came) in way.iter_mut().zip(&came).rev() {
            *fast = is_fast;
            is_fast = came >> u8::from(is_fast) & 1 == 1;
        }
    }

    /// What every page wants at these prices, made to fit: those that come wait for room, and those that
    /// would leave stay while there is room.
    fn at_prices(&self, prices: &[f64]) -> Moves {
        let mut wishes: Vec<Vec<(u32, bool)>> = vec![Vec::new(); self.epochs];
        let mut way = Vec::new();
        for page in 0..self.pages() {
            self.best_way(page, prices, &mut way);
            let mut was = self.starts_fast[page];
            for (epoch, &fast) in way.iter().enumerate() {
                if fast != was {
                    wishes[epoch].push((page as u32, fast));
                }
                was = fast;
            }
        }
        let mut place = Placing::new(self);
        let mut moves = Moves::with_capacity(self.epochs);
        for (epoch, wishes) in wishes.into_iter().enumerate() {
            moves.push(place.epoch(self, epoch, &wishes));
        }
        moves
    }

    /// The plan that gains most of those at prices and of simple ones. One is made at a time: each may
    /// take as much memory as the profile.
    fn best_known(&self) -> Moves {
        let prices = prices::find(self);
        let at_prices = prices
            .iter()
            .map(|prices| Box::new(|| self.at_prices(prices)) as Box<dyn Fn() -> Moves>);
        let simple: [Box<dyn Fn() -> Moves>; 3] = [
            Box::new(|| self.best_of_each()),
            Box::new(|| self.best_overall()),
            Box::new(Vec::new),
        ];
        let mut best = (f64::NEG_INFINITY, Moves::new());
        for make in at_prices.chain(simple) {
            let moves = make();
            let gain = self.gain(&moves);
            if gain >= best.0 {
                best = (gain, moves);
            }
        }
        best.1
    }

    /// In each epoch the pages with the most accesses a byte. Pages without accesses stay where they
    /// are.
    fn best_of_each(&self) -> Moves {
        let mut is_fast = self.starts_fast.clone();
        (0..self.epochs)
            .map(|epoch| self.towards(&mut is_fast, |page| f64::from(self.used(page, epoch))))
            .collect()
    }

    /// The pages with the most accesses a byte over all time, from the first epoch on.
    fn best_overall(&self) -> Moves {
        let mut is_fast = self.starts_fast.clone();
        let total = |page: usize| self.uses(page).iter().map(|u| f64::from(u.1)).sum();
        vec![self.towards(&mut is_fast, total)]
    }

    /// Exchanges pages so that those with the most `worth` a byte are in DRAM. Among pages worth the
    /// same those stay that are there.
    fn towards(&self, is_fast: &mut [bool], worth: impl Fn(usize) -> f64) -> (Vec<u32>, Vec<u32>) {
        let mut order: Vec<(f64, bool, u32)> = (0..self.pages())
            .map(|page| (worth(page) / self.bytes(page), is_fast[page], page as u32))
            .collect();
        order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2)));
        let mut room = self.fast_bytes;
        let (mut demote, mut promote) = (Vec::new(), Vec::new());
        for (_, was, page) in order {
            let bytes = self.bytes(page as usize);
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

    /// What a plan gains over leaving every page where it is: time of accesses less time of moves.
    fn gain(&self, moves: &Moves) -> f64 {
        // By page: since when it lies where it does not lie at the start.
        let mut gain = 0.0;
        let mut since: Vec<Option<u32>> = vec![None; self.pages()];
        let mut close = |page: usize, from: u32, to: u32, starts_fast: bool| {
            let uses = self.uses(page);
            let begin = uses.partition_point(|&(epoch, _)| epoch < from);
            let within = uses[begin..].iter().take_while(|&&(epoch, _)| epoch < to);
            let accesses: f64 = within.map(|&(_, n)| f64::from(n)).sum();
            gain += accesses * self.gain_ns * if starts_fast { -1.0 } else { 1.0 };
        };
        let mut cost = 0.0;
        for (epoch, (demote, promote)) in (0..).zip(moves) {
            for &page in demote.iter().chain(promote) {
                let page = page as usize;
                cost += self.move_ns(page);
                match since[page].take() {
                    Some(from) => close(page, from, epoch, self.starts_fast[page]),
                    None => since[page] = Some(epoch),
                }
            }
        }
        for (page, from) in since.iter().enumerate() {
            if let Some(from) = *from {
                close(page, from, u32::MAX, self.starts_fast[page]);
            }
        }
        gain - cost
    }
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
