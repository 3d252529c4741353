//! The oracle's problem: the uses of every page, and what DRAM is worth to it.

use tier_core::moves::assumed_cost_ns;

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
    pub(super) starts_fast: Vec<bool>,
    epochs: usize,
    pub(super) fast_bytes: f64,
    pub(super) gain_ns: f64,
    moves_cost: bool,
}

impl Problem {
    pub(super) fn new(kind: PlanKind, profile: &Profile, host: &Host) -> Self {
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

    pub(super) fn move_ns(&self, page: usize) -> f64 {
        if self.moves_cost {
            assumed_cost_ns(self.bytes[page])
        } else {
            0.0
        }
    }

    pub(super) fn uses(&self, page: usize) -> &[(u32, u32)] {
        &self.uses[self.begins[page]..self.begins[page + 1]]
    }

    /// A page's accesses in an epoch.
    pub(super) fn used(&self, page: usize, epoch: usize) -> u32 {
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

    /// What a plan gains over leaving every page where it is: time of accesses less time of moves.
    pub(super) fn gain(&self, moves: &Moves) -> f64 {
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
