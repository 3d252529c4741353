//! DAMON in a simulated guest: its regions are joined and split as in mm/damon/core.c of Linux 6.12.
//!
//! `tier_sys::damon::DamonSettings` tells the algorithm. A look tests one random page of each region: it
//! is used if it was accessed since the look before. Other settings take force at the end of the
//! aggregation that runs, as a commit does; the regions stay.

use std::time::Duration;

use tier_core::{
    addr::{BASE_PAGE, HUGE_PAGE},
    damon_pace::Pace,
    random::Random,
};

use crate::clock::{Ticks, ticks};

/// How much a look is late on average, where looks are late.
const LATE: Ticks = 1;

/// Pages that are looked at as one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) first: u32,
    pub(crate) end: u32,
    /// Looks of this aggregation that found it used.
    pub(crate) accesses: u32,
}

impl Region {
    pub(crate) const fn pages(self) -> u32 {
        self.end - self.first
    }
}

/// How it looks, as the agent's source sets it.
#[derive(Clone, Copy, Debug)]
struct Settings {
    sampling: Ticks,
    /// Looks of an aggregation.
    looks: u32,
    max_regions: u32,
    /// Pages that a joined region has at most.
    max_pages: u32,
    /// Each huge page's border is a border of regions.
    by_huge_page: bool,
}

impl Settings {
    fn of(pace: &Pace, is_quickened: bool, pages: u32, page_bytes: u64) -> Self {
        let bytes = u64::from(pages) * page_bytes;
        let huge = bytes.div_ceil(HUGE_PAGE);
        let fit = huge <= pace.max_regions;
        let min_regions = (pace.max_regions / 4)
            .max(if fit { huge } else { 0 })
            .max(3);
        Self {
            sampling: ticks(pace.sampling),
            looks: pace.aggregation.div_duration_f64(pace.sampling) as u32,
            max_regions: pace.max_regions as u32,
            max_pages: ((u64::from(pages) / min_regions) as u32).max(1),
            by_huge_page: fit && is_quickened,
        }
    }
}

/// What an aggregation found.
pub(crate) struct Report {
    pub(crate) regions: Vec<Region>,
    pub(crate) tests: u32,
    pub(crate) span: Duration,
}

/// See the [module](self).
pub(crate) struct Damon {
    pages: u32,
    page_bytes: u64,
    random: Random,
    regions: Vec<Region>,
    settings: Settings,
    /// What the next aggregation begins with.
    wanted: Settings,
    /// Each look comes up to twice [`LATE`] late.
    is_late: bool,
    /// The end of the last aggregation since the start.
    reported: Option<Ticks>,
    next_look: Ticks,
    last_look: Ticks,
    looked: u32,
    /// Regions after the aggregation before.
    last_regions: usize,
}

impl Damon {
    /// Watches from `now` on, with pieces of equal size.
    pub(crate) fn start(
        pages: u32,
        page_bytes: u64,
        pace: &Pace,
        is_quickened: bool,
        now: Ticks,
        random: Random,
        is_late: bool,
    ) -> Self {
        let settings = Settings::of(pace, is_quickened, pages, page_bytes);
        let huge = (HUGE_PAGE / page_bytes) as u32;
        let piece = match settings.by_huge_page {
            true => huge,
            false => pages.div_ceil((settings.max_regions / 3).clamp(1, 2048)),
        };
        let regions = (0..pages.div_ceil(piece)).map(|number| Region {
            first: number * piece,
            end: ((number + 1) * piece).min(pages),
            accesses: 0,
        });
        Self {
            pages,
            page_bytes,
            random,
            regions: regions.collect(),
            settings,
            wanted: settings,
            is_late,
            reported: None,
            next_look: now + settings.sampling,
            last_look: now,
            looked: 0,
            last_regions: 0,
        }
    }

    /// What a new start goes on with.
    pub(crate) fn random(&self) -> Random {
        self.random.clone()
    }

    pub(crate) fn set_pace(&mut self, pace: &Pace, is_quickened: bool) {
        self.wanted = Settings::of(pace, is_quickened, self.pages, self.page_bytes);
    }

    /// When it has something to do next.
    pub(crate) const fn due(&self) -> Ticks {
        self.next_look
    }

    /// Looks at each region; `used` has for each page the tick in which it was used last. Returns a
    /// report at the end of an aggregation.
    pub(crate) fn look(&mut self, now: Ticks, used: &[Ticks]) -> Option<Report> {
        let since = self.last_look;
        self.last_look = now;
        let mut most = 0;
        for region in &mut self.regions {
            let page = region.first + self.random.below(region.pages().into()) as u32;
            region.accesses += u32::from(used[page as usize] > since);
            most = most.max(region.accesses);
        }
        self.looked += 1;
        self.next_look = now + self.settings.sampling + self.lateness();
        if self.looked < self.settings.looks {
            return None;
        }
        self.join(most / 10);
        // As `tier_sys`: what a late kdamond looked for is measured from report to report.
        let usual = self.settings.sampling * self.looked;
        let since = self.reported.replace(now).map(|last| now - last);
        let since = since.filter(|since| (usual / 2..=usual * 4).contains(since));
        let report = Report {
            regions: self.regions.clone(),
            tests: self.looked,
            span: crate::clock::duration(since.unwrap_or(usual)),
        };
        self.looked = 0;
        for region in &mut self.regions {
            region.accesses = 0;
        }
        self.split();
        self.settings = self.wanted;
        if self.settings.by_huge_page {
            self.cut_at_huge_pages();
        }
        self.next_look = now + self.settings.sampling;
        Some(report)
    }

    fn lateness(&mut self) -> Ticks {
        match self.is_late {
            true => self.random.below(2 * u64::from(LATE) + 1) as Ticks,
            false => 0,
        }
    }

    /// `kdamond_merge_regions`.
    fn join(&mut self, mut tolerance: u32) {
        loop {
            self.join_within(tolerance);
            tolerance = (2 * tolerance).max(1);
            let is_few = self.regions.len() <= self.settings.max_regions as usize;
            if is_few || tolerance / 2 >= self.settings.looks {
                return;
            }
        }
    }

    fn join_within(&mut self, tolerance: u32) {
        let most = self.settings.max_pages;
        self.regions.dedup_by(|right, left| {
            let (l, r) = (u64::from(left.pages()), u64::from(right.pages()));
            let alike = left.accesses.abs_diff(right.accesses) <= tolerance;
            let joins = alike && l + r <= u64::from(most);
            if joins {
                let sum = u64::from(left.accesses) * l + u64::from(right.accesses) * r;
                left.accesses = (sum / (l + r)) as u32;
                left.end = right.end;
            }
            joins
        });
    }

    /// `kdamond_split_regions`.
    fn split(&mut self) {
        let count = self.regions.len();
        let most = self.settings.max_regions as usize;
        if count > most / 2 {
            return;
        }
        let parts = match self.last_regions == count && count < most / 3 {
            true => 3,
            false => 2,
        };
        self.last_regions = count;
        let mut regions = Vec::with_capacity(parts * count);
        for region in &self.regions {
            // The left part is split again; the right parts stand behind it.
            let (mut left, mut rights) = (*region, Vec::new());
            for _ in 1..parts {
                // Regions of two pages stay whole.
                if u64::from(left.pages()) * self.page_bytes <= 2 * BASE_PAGE {
                    break;
                }
                let tenths = 1 + self.random.below(9) as u32;
                let len = (u64::from(left.pages()) * u64::from(tenths) / 10) as u32;
                if len == 0 || len >= left.pages() {
                    continue;
                }
                let middle = left.first + len;
                rights.push(Region {
                    first: middle,
                    ..left
                });
                left.end = middle;
            }
            regions.push(left);
            regions.extend(rights.into_iter().rev());
        }
        self.regions = regions;
    }

    fn cut_at_huge_pages(&mut self) {
        let huge = (HUGE_PAGE / self.page_bytes) as u32;
        let mut regions = Vec::with_capacity(self.regions.len());
        for region in &self.regions {
            let mut first = region.first;
            while first < region.end {
                let end = ((first / huge + 1) * huge).min(region.end);
                regions.push(Region {
                    first,
                    end,
                    accesses: 0,
                });
                first = end;
            }
        }
        self.regions = regions;
    }
}

/// Looks at each page of a small part of the guest for one report, beside the regions.
pub(crate) struct GridLooks {
    first: u32,
    counts: Vec<u32>,
    every: Ticks,
    looks: u32,
    looked: u32,
    last_look: Ticks,
}

impl GridLooks {
    /// Looks at these pages from `now` on.
    pub(crate) fn start(pages: std::ops::Range<u32>, pace: &Pace, now: Ticks) -> Self {
        Self {
            first: pages.start,
            counts: vec![0; pages.len()],
            every: ticks(pace.sampling),
            looks: pace.aggregation.div_duration_f64(pace.sampling) as u32,
            looked: 0,
            last_look: now,
        }
    }

    /// When it has something to do next.
    pub(crate) const fn due(&self) -> Ticks {
        self.last_look + self.every
    }

    /// Looks at each page. Returns a report, of a region for each page, at the end.
    pub(crate) fn look(&mut self, now: Ticks, used: &[Ticks]) -> Option<Report> {
        let used = &used[self.first as usize..];
        for (count, used) in self.counts.iter_mut().zip(used) {
            *count += u32::from(*used > self.last_look);
        }
        self.last_look = now;
        self.looked += 1;
        (self.looked == self.looks).then(|| Report {
            regions: (self.first..)
                .zip(&self.counts)
                .map(|(first, &accesses)| Region {
                    first,
                    end: first + 1,
                    accesses,
                })
                .collect(),
            tests: self.looks,
            span: crate::clock::duration(self.every * self.looks),
        })
    }
}
