//! Which parts of the guest are looked at page by page, for a source that watches regions.
//!
//! ```text
//! problem   DAMON tests one random page of a region. Hot pages that lie scattered among cold pages make
//!           each region look warm, however long it is watched: no region is hot
//! approach  beside its regions the source looks at each page of 2 MiB at a time (a *grid*), where regions
//!           are found used at some looks only, hottest first. The next grid begins when one has ended
//! result    hot and cold pages lie mixed in it, by more than chance: the engine deals out each region's count by what
//!           the grid found (`engine/evidence/grids.rs`). If they don't, the grid comes later again
//! at rest   only grids whose pages differ are looked at again, a quarter of one at a time and for few
//!           looks: does what is known still hold?
//! cost      512 pages at each look of the base pace at work, 128 at four looks each 4 s at rest
//! ```
//!
//! Worth: with scattered hot pages hits of 34 and 51 % become 91 and 92 %, with Zipf's popularity 65 and
//! 74 % become 79 and 85 % (docs/results/changes.md).

use std::{collections::BTreeMap, time::Duration};

use crate::{
    addr::{BASE_PAGE, HUGE_PAGE, Hva},
    damon_pace::Pace,
    map::GuestMemoryMap,
    random::Random,
    sample::{SampleAddress, SampleBatch},
};

/// Bytes of a grid. Each of its pages is a folder in sysfs, and their looks cost a quarter of those of the
/// default 2000 regions.
const GRID_BYTES: u64 = HUGE_PAGE;
/// Bytes that are looked at to check a grid.
const CHECK_BYTES: u64 = GRID_BYTES / 4;
/// Looks of a check. A page that is used at most looks is told from an idle one by four of them.
const CHECK_LOOKS: u32 = 4;
/// Beside a guest at rest, checks begin this long after each other. Each costs some 2 ms of CPU for the
/// files in sysfs and the looks.
pub const CHECK_EVERY: Duration = Duration::from_secs(4);
/// Regions that were found used at more than this share of looks have nothing to find: each of their
/// pages is hot.
const HOT: f64 = 0.9;
/// Standard deviations by which the spread of counts in a grid is no chance. There are some grids a
/// second for years.
const CERTAIN: f64 = 6.0;
/// So many stretches of hot and of cold pages in a grid have regions of their own: nothing lies scattered.
const MOST_STRETCHES: usize = 8;
/// Rounds for which a grid without a difference is passed over, at most; they double each time.
const MOST_ROUNDS: u32 = 64;
/// Grids of a region that are looked for at most, at random where it has more: in a large guest most of
/// them have been looked at some time.
const MOST_TRIES: u64 = 8;
/// Grids that are remembered, at most: those of 128 GiB. Then all begins anew.
const MOST_GRIDS: usize = 1 << 16;

/// The share of the variance of `counts`, of pages in their order and of `looks` tests each, that chance does
/// not explain, in (0, 1]. `None` where chance explains the variance, where nothing was used, or where
/// used pages lie together.
///
/// If all pages are used alike, counts are binomial, and the sum of (count − mean)² over the binomial
/// variance is distributed as χ² with one degree less than pages: mean n − 1, variance 2 (n − 1) (index
/// of dispersion; Fisher, "Statistical Methods for Research Workers", 1925, section 19).
#[must_use]
pub fn scatter(counts: &[f64], looks: f64) -> Option<f64> {
    let n = counts.len() as f64;
    let mean = counts.iter().sum::<f64>() / n;
    let chance = mean * (1.0 - mean / looks);
    // Also false for what is no number.
    if !(n > 1.0 && chance > 0.0) {
        return None;
    }
    let sum: f64 = counts.iter().map(|count| (count - mean).powi(2)).sum();
    let dispersion = sum / chance;
    let certain = (dispersion - (n - 1.0)) / (2.0 * (n - 1.0)).sqrt() >= CERTAIN;
    (certain && stretches(counts, mean) > MOST_STRETCHES).then(|| 1.0 - (n - 1.0) / dispersion)
}

/// Stretches of counts above the mean or not.
fn stretches(counts: &[f64], mean: f64) -> usize {
    let sides = counts.chunk_by(|a, b| (*a > mean) == (*b > mean));
    sides.count()
}

/// Pages to look at one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// First byte.
    pub start: Hva,
    /// Length in bytes, whole pages of 4 KiB.
    pub bytes: u64,
}

impl Grid {
    /// The pages.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.bytes / BASE_PAGE
    }

    /// The part that lies in some bytes.
    fn within(&self, start: u64, bytes: u64) -> Option<Self> {
        let (from, to) = (self.start.0, self.start.0 + self.bytes);
        let (from, to) = (from.max(start), to.min(start.saturating_add(bytes)));
        (from < to).then(|| Self {
            start: Hva(from),
            bytes: to - from,
        })
    }
}

/// A grid that was looked at.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The round from which on it is looked at again.
    next: u32,
    /// Rounds that it was passed over the last time: none where its pages differ.
    passed: u32,
}

/// Finds the next grid. Pure: fed with the source's batches, asked for grids.
#[derive(Clone, Debug)]
pub struct GridPicker {
    /// Memory in pages of 4 KiB, by rising address: start and end.
    ranges: Vec<(u64, u64)>,
    /// Where regions were found used at some looks, hottest first: start and end.
    warm: Vec<(u64, u64)>,
    /// By the first byte.
    seen: BTreeMap<u64, Seen>,
    round: u32,
    /// The first byte of the last grid that was to be checked, and the quarter of it.
    checked: (u64, u64),
    random: Random,
}

impl Default for GridPicker {
    fn default() -> Self {
        Self {
            ranges: Vec::new(),
            warm: Vec::new(),
            seen: BTreeMap::new(),
            round: 0,
            checked: (0, 0),
            random: Random::new(0),
        }
    }
}

impl GridPicker {
    /// Finds grids in the map's blocks of 4 KiB pages; what was found before is forgotten. Whether the
    /// kernel has made huge pages of them is not known here: their pages are found used alike.
    pub fn set_map(&mut self, map: &GuestMemoryMap) {
        let blocks = map.blocks().iter();
        let small = blocks.filter(|block| block.page_size == BASE_PAGE);
        let mut ranges: Vec<_> = small
            .map(|block| (block.hva.0, block.hva.0 + block.used))
            .collect();
        ranges.sort_unstable();
        *self = Self {
            ranges,
            ..Self::default()
        };
    }

    /// Takes note of what a batch of regions found.
    pub fn observe(&mut self, batch: &SampleBatch) {
        if self.ranges.is_empty() {
            return;
        }
        let looks = batch.looks();
        let warm = batch.samples.iter().filter_map(|sample| {
            let SampleAddress::Host(Hva(start)) = sample.address else {
                return None;
            };
            let share = f64::from(sample.weight) / looks;
            let is_warm = share > 0.0 && share <= HOT && sample.len > BASE_PAGE;
            is_warm.then_some((share, start, start.saturating_add(sample.len)))
        });
        let mut warm: Vec<_> = warm.collect();
        warm.sort_by(|a, b| b.0.total_cmp(&a.0));
        let ranges = warm.into_iter().map(|(_, start, end)| (start, end));
        self.warm = ranges.collect();
    }

    /// What to look at now, and how: a grid for a report of the base pace, or beside a guest at rest a check.
    /// To be asked once for each batch or [`CHECK_EVERY`], or when a grid has ended; `None` where nothing is
    /// worth it now.
    pub fn pick(&mut self, base: &Pace, is_at_rest: bool) -> Option<(Grid, Pace)> {
        let (grid, aggregation) = match is_at_rest {
            true => (self.next_to_check()?, base.sampling * CHECK_LOOKS),
            false => (self.next()?, base.aggregation),
        };
        let pace = Pace {
            aggregation,
            max_regions: grid.pages(),
            turns: None,
            ..*base
        };
        Some((grid, pace))
    }

    /// The next grid; `None` where no region is worth it now.
    fn next(&mut self) -> Option<Grid> {
        let due = self.first_due();
        if due.is_none() {
            self.round += 1;
        }
        due.or_else(|| self.first_due())
    }

    fn first_due(&mut self) -> Option<Grid> {
        let mut random = self.random.clone();
        let due = self.warm.iter().find_map(|&(start, end)| {
            let (first, end) = (start / GRID_BYTES, end.div_ceil(GRID_BYTES));
            (0..(end - first).min(MOST_TRIES)).find_map(|number| {
                let number = match end - first {
                    ..=MOST_TRIES => first + number,
                    many => first + random.below(many),
                };
                let is_due = |grid: &Grid| {
                    let seen = self.seen.get(&grid.start.0);
                    seen.is_none_or(|seen| seen.next <= self.round)
                };
                self.grids_in(number).find(is_due)
            })
        });
        self.random = random;
        due
    }

    /// A part of a grid whose pages were found to differ, of all such grids in turn; `None` where there is
    /// none.
    fn next_to_check(&mut self) -> Option<Grid> {
        let (last, quarter) = self.checked;
        let after = self.seen.range(last + 1..);
        let mut all = after.chain(self.seen.range(..=last));
        let (&start, _) = all.find(|(_, seen)| seen.passed == 0)?;
        self.checked = (start, (quarter + 1) % (GRID_BYTES / CHECK_BYTES));
        let number = start / GRID_BYTES;
        let grid = self.grids_in(number).find(|grid| grid.start.0 == start)?;
        grid.within(number * GRID_BYTES + quarter * CHECK_BYTES, CHECK_BYTES)
    }

    /// The grids in the 2 MiB of this number: one for each range that reaches into them.
    fn grids_in(&self, number: u64) -> impl Iterator<Item = Grid> {
        let start = number.saturating_mul(GRID_BYTES);
        let end = start.saturating_add(GRID_BYTES);
        let after = self.ranges.partition_point(|range| range.1 <= start);
        let ranges = self.ranges[after..].iter();
        let inside = ranges.take_while(move |&&(from, _)| from < end);
        inside.filter_map(move |&(from, to)| {
            let range = Grid {
                start: Hva(from),
                bytes: to - from,
            };
            range.within(start, GRID_BYTES)
        })
    }

    /// Takes note of what a grid found, but for a check. Returns whether hot pages lie scattered there.
    pub fn learn(&mut self, grid: Grid, batch: &SampleBatch) -> bool {
        if self.seen.len() >= MOST_GRIDS {
            self.seen.clear();
        }
        let counts = batch.samples.iter();
        let counts: Vec<f64> = counts.map(|sample| f64::from(sample.weight)).collect();
        let even = scatter(&counts, batch.tests.into()).is_none();
        let passed = self.seen.get(&grid.start.0).map_or(0, |seen| seen.passed);
        let passed = match even {
            true => (2 * passed + 1).min(MOST_ROUNDS),
            false => 0,
        };
        let next = self.round + 1 + passed;
        self.seen.insert(grid.start.0, Seen { next, passed });
        !even
    }

    /// The guest may do something else: each grid is due.
    pub fn forget(&mut self) {
        self.seen.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        sample::{AccessKind, AccessSample, SampleAccount, SourceKind},
        time::Time,
    };

    const LOOKS: u32 = 20;

    /// Samples of `len` bytes that follow each other from `start` on.
    fn batch(start: u64, len: u64, counts: &[f64]) -> SampleBatch {
        let samples = (0..).zip(counts).map(|(i, &count)| AccessSample {
            address: SampleAddress::Host(Hva(start + i * len)),
            len,
            weight: count as f32,
            kind: AccessKind::Any,
        });
        SampleBatch {
            source: SourceKind::Damon,
            end: Time(0),
            span: Duration::from_millis(400),
            tests: LOOKS,
            period: 1,
            settled: true,
            map_generation: 1,
            samples: samples.collect(),
            account: SampleAccount::default(),
        }
    }

    /// Counts of pages that are found used at these shares of looks, in turns.
    fn counts(random: &mut Random, shares: &[f64]) -> Vec<f64> {
        let of_page = |i: usize| {
            let share = shares[i % shares.len()];
            let found = (0..LOOKS).filter(|_| random.share() < share);
            found.count() as f64
        };
        (0..512).map(of_page).collect()
    }

    #[test]
    fn scatter_when_pages_are_used_alike_is_none() {
        let mut random = Random::new(1);
        for share in [0.002, 0.05, 0.3, 0.7, 0.95] {
            for _ in 0..200 {
                let counts = counts(&mut random, &[share]);
                assert_eq!(scatter(&counts, LOOKS.into()), None, "{share}");
            }
        }
        assert_eq!(scatter(&[], 20.0), None);
        assert_eq!(scatter(&[3.0], 20.0), None);
        assert_eq!(scatter(&[0.0; 512], 20.0), None);
        assert_eq!(scatter(&[20.0; 512], 20.0), None);
    }

    #[test]
    fn scatter_when_one_page_in_eight_is_hot_explains_most() {
        let mut random = Random::new(2);
        let mut shares = [0.02; 8];
        for (hot, least) in [(0.7, 0.85), (0.3, 0.6), (0.15, 0.2)] {
            shares[3] = hot;
            let explained = scatter(&counts(&mut random, &shares), LOOKS.into());
            assert!(
                explained.is_some_and(|share| share > least),
                "{explained:?}"
            );
        }
    }

    #[test]
    fn scatter_when_hot_pages_lie_together_is_none() {
        let mut random = Random::new(5);
        let mut shares = [0.02; 512];
        shares[100..300].fill(0.9);
        assert_eq!(scatter(&counts(&mut random, &shares), LOOKS.into()), None);
        for hot in shares[300..].iter_mut().step_by(16) {
            *hot = 0.9;
        }
        assert!(scatter(&counts(&mut random, &shares), LOOKS.into()).is_some());
    }

    /// The 2 MiB that a grid lies in.
    fn number(grid: &Grid) -> u64 {
        grid.start.0 / GRID_BYTES
    }

    fn picker(ranges: &[(u64, u64)]) -> GridPicker {
        GridPicker {
            ranges: ranges.to_vec(),
            ..GridPicker::default()
        }
    }

    #[test]
    fn next_when_regions_are_warm_takes_each_grid_of_them_hottest_first() {
        let mut picker = picker(&[(GRID_BYTES, 5 * GRID_BYTES)]);
        // Hot, idle, warm and warmest.
        picker.observe(&batch(GRID_BYTES, GRID_BYTES, &[20.0, 0.0, 3.0, 9.0]));
        let uneven = batch(0, BASE_PAGE, &counts(&mut Random::new(3), &[0.6, 0.0]));
        for round in 0..3 {
            for at in [4, 3] {
                let grid = picker.next().unwrap();
                assert_eq!((number(&grid), grid.pages()), (at, 512), "{round}");
                picker.learn(grid, &uneven);
            }
        }
    }

    #[test]
    fn next_when_a_region_has_many_grids_comes_to_nearly_all_of_them_in_a_round() {
        const GRIDS: u64 = 1000;
        let mut picker = picker(&[(0, GRIDS * GRID_BYTES)]);
        picker.observe(&batch(0, GRIDS * GRID_BYTES, &[9.0]));
        let even = batch(0, BASE_PAGE, &[9.0; 512]);
        let mut picked = std::collections::BTreeSet::new();
        for _ in 0..2 * GRIDS {
            if let Some(grid) = picker.next() {
                picked.insert(number(&grid));
                picker.learn(grid, &even);
            }
        }
        assert!(picked.len() as u64 > GRIDS * 95 / 100, "{}", picked.len());
    }

    #[test]
    fn next_when_grids_are_even_passes_over_them_longer_each_time() {
        let mut picker = picker(&[(0, GRID_BYTES)]);
        picker.observe(&batch(0, GRID_BYTES, &[9.0]));
        let even = batch(0, BASE_PAGE, &[9.0; 512]);
        let mut waits = Vec::new();
        for _ in 0..9 {
            let asked = (0..).find_map(|asked| picker.next().map(|grid| (asked, grid)));
            let (asked, grid) = asked.unwrap();
            waits.push(asked);
            picker.learn(grid, &even);
        }
        assert_eq!(waits, [0, 1, 3, 7, 15, 31, 63, 64, 64]);
        assert_eq!(picker.next_to_check(), None);
        picker.forget();
        assert!(picker.next().is_some());
    }

    #[test]
    fn next_when_a_grid_reaches_over_a_range_stays_inside() {
        let range = (GRID_BYTES + 3 * BASE_PAGE, GRID_BYTES + 9 * BASE_PAGE);
        let mut picker = picker(&[range]);
        picker.observe(&batch(0, 4 * GRID_BYTES, &[9.0]));
        let grid = picker.next().unwrap();
        assert_eq!((grid.start.0, grid.start.0 + grid.bytes), range);
        // Pages of other sizes lie in none of the ranges.
        picker.observe(&batch(8 * GRID_BYTES, GRID_BYTES, &[9.0]));
        assert_eq!(picker.next(), None);
        let mut none = GridPicker::default();
        none.observe(&batch(0, GRID_BYTES, &[9.0]));
        assert!(
            none.warm.is_empty(),
            "a guest without small pages costs nothing"
        );
    }

    #[test]
    fn next_when_two_ranges_share_two_mib_looks_at_both() {
        let end = GRID_BYTES + 100 * BASE_PAGE;
        let begin = GRID_BYTES + 300 * BASE_PAGE;
        let mut picker = picker(&[(GRID_BYTES, end), (begin, 2 * GRID_BYTES)]);
        picker.observe(&batch(GRID_BYTES, GRID_BYTES, &[9.0]));
        let uneven = batch(0, BASE_PAGE, &counts(&mut Random::new(3), &[0.6, 0.0]));
        let mut picked = Vec::new();
        for _ in 0..4 {
            let grid = picker.next().unwrap();
            picked.push((grid.start.0, grid.start.0 + grid.bytes));
            picker.learn(grid, &uneven);
        }
        let both = [(GRID_BYTES, end), (begin, 2 * GRID_BYTES)];
        assert_eq!(picked, [both, both].concat());
        // Each check stays inside one of them; some quarters hold nothing of a range.
        let checked: Vec<Grid> = (0..16).filter_map(|_| picker.next_to_check()).collect();
        let is_in = |grid: &Grid, (from, to): (u64, u64)| {
            from <= grid.start.0 && grid.start.0 + grid.bytes <= to
        };
        for range in both {
            assert!(checked.iter().any(|grid| is_in(grid, range)), "{checked:?}");
        }
        let is_inside = |grid| both.iter().any(|&range| is_in(grid, range));
        assert!(checked.iter().all(is_inside), "{checked:?}");
    }

    #[test]
    fn next_to_check_when_grids_are_uneven_takes_parts_of_all_in_turn() {
        let mut picker = picker(&[(0, 4 * GRID_BYTES)]);
        picker.observe(&batch(0, GRID_BYTES, &[9.0; 4]));
        for _ in 0..4 {
            let grid = picker.next().unwrap();
            let shares: &[f64] = if number(&grid) == 2 {
                &[0.5]
            } else {
                &[0.6, 0.0]
            };
            picker.learn(
                grid,
                &batch(0, BASE_PAGE, &counts(&mut Random::new(4), shares)),
            );
        }
        let checked: Vec<Grid> = (0..8).filter_map(|_| picker.next_to_check()).collect();
        let numbers: Vec<u64> = checked.iter().map(number).collect();
        assert_eq!(numbers, [1, 3, 0, 1, 3, 0, 1, 3]);
        assert!(checked.iter().all(|grid| grid.bytes == CHECK_BYTES));
        let quarters: Vec<u64> = checked
            .iter()
            .map(|grid| grid.start.0 % GRID_BYTES / CHECK_BYTES)
            .collect();
        assert_eq!(quarters, [0, 1, 2, 3, 0, 1, 2, 3]);
    }
}
