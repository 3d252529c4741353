//! Heat of a recorded guest over time: what DRAM serves if it holds the pages that were hottest before.
//!
//! Pages are sorted into classes by their decayed counts, as the agent's demand is measured. The count
//! that a page had *before* an epoch says the class that its accesses of this epoch fall on. So a page
//! that is hot for the first time is a miss, and no one knows the future.
//!
//! The recording goes by twice, and the second time counts: at its beginning the guest is as warm as at
//! its end.

use std::collections::VecDeque;

use tier_core::arbiter::DemandCurve;

use crate::{
    machine::{Guest, Profile, profile::EpochUses},
    sharing::Curves,
};

/// Counts halve in that time: the agent's half-life unless it is set.
const HALF_LIFE_S: f64 = 10.0;
/// Two classes a doubling of counts.
const A_DOUBLING: f64 = 2.0;
/// Pages below this class, a count of 1/128, were accessed long ago or never: class 0.
const LONG_AGO: i64 = -14;
/// Pages below this class, a count of 2, were accessed about once: class 1, whenever that was.
const ABOUT_ONCE: i64 = 2;
/// Counts above 2³¹ share the last class.
const CLASSES: usize = 64;

/// What pages of a class have.
#[derive(Clone, Copy, Debug, Default)]
struct Class {
    bytes: u64,
    accesses: f64,
}

/// The demand curves of a recording's epochs. A record stands for `factor` accesses.
pub(super) fn curves(profile: &Profile, guest: &Guest, factor: f64) -> Curves {
    let epochs = profile.epochs();
    let epoch_s = profile.epoch().as_secs().clamp(1, u64::from(u32::MAX)) as u32;
    let each = factor / f64::from(epoch_s);
    let window = Curves::window(epoch_s);
    let mut heat = Heat::new(guest, epoch_s);
    let mut last: VecDeque<Vec<Class>> = VecDeque::new();
    let (mut so, mut measured) = (Vec::new(), Vec::new());
    for lap in 0..2 {
        for uses in epochs {
            let classes = heat.epoch(uses);
            if last.len() == window {
                last.pop_front();
            }
            last.push_back(classes.clone());
            if lap == 1 {
                so.push(served(&classes, each));
                measured.push(measured_of(&last, each));
            }
        }
    }
    Curves::new(epoch_s, so, measured)
}

/// What DRAM serves that holds the classes from the highest on.
fn served(classes: &[Class], each: f64) -> DemandCurve {
    let (mut bytes, mut hits) = (0, 0.0);
    DemandCurve::of_points(classes.iter().rev().map(|class| {
        bytes += class.bytes;
        hits += class.accesses * each;
        (bytes, hits)
    }))
}

/// What an agent measures: the newest epoch's bytes, which come last, with the accesses of all.
fn measured_of(epochs: &VecDeque<Vec<Class>>, each: f64) -> DemandCurve {
    let Some(newest) = epochs.back() else {
        return DemandCurve::default();
    };
    let mut hits = [0.0; CLASSES];
    for (number, class) in epochs.iter().flat_map(|classes| classes.iter().enumerate()) {
        if class.accesses > 0.0
            && let Some(home) = nearest(number, newest)
        {
            hits[home] += class.accesses * each / epochs.len() as f64;
        }
    }
    DemandCurve::of_buckets(newest.iter().map(|class| class.bytes).zip(hits))
}

/// The nearest class that has pages: pages may have left theirs since.
fn nearest(class: usize, classes: &[Class]) -> Option<usize> {
    let filled = (0..classes.len()).filter(|&class| classes[class].bytes > 0);
    filled.min_by_key(|other| other.abs_diff(class))
}

/// The pages' counts. A page keeps its key while its count decays; the classes rise instead.
struct Heat<'a> {
    guest: &'a Guest,
    /// By page: the class of its count if the time had stood still since the beginning.
    keys: Vec<f32>,
    /// Bytes of pages by key, rounded down.
    bytes: Vec<u64>,
    /// By how much the classes rise in an epoch.
    step: f64,
    /// By how much they have risen.
    risen: f64,
}

impl<'a> Heat<'a> {
    fn new(guest: &'a Guest, epoch_s: u32) -> Self {
        Self {
            guest,
            keys: vec![f32::NEG_INFINITY; guest.pages() as usize],
            bytes: Vec::new(),
            step: A_DOUBLING * f64::from(epoch_s) / HALF_LIFE_S,
            risen: 0.0,
        }
    }

    /// Sorts an epoch's accesses into the classes that pages had before, then counts them.
    fn epoch(&mut self, uses: &EpochUses) -> Vec<Class> {
        let mut classes = self.classes();
        for &(page, accesses) in uses {
            let class = self.class_of(self.keys[page as usize]);
            classes[class].accesses += f64::from(accesses);
        }
        for &(page, accesses) in uses {
            self.count(page, accesses);
        }
        self.risen += self.step;
        classes
    }

    fn classes(&self) -> Vec<Class> {
        let mut classes = vec![Class::default(); CLASSES];
        let mut cold = self.guest.bytes();
        for (key, &bytes) in self
            .bytes
            .iter()
            .enumerate()
            .filter(|(_, bytes)| **bytes > 0)
        {
            let class = self.class_of(key as f32);
            if class > 0 {
                classes[class].bytes += bytes;
                cold = cold.saturating_sub(bytes);
            }
        }
        classes[0].bytes = cold;
        classes
    }

    fn class_of(&self, key: f32) -> usize {
        if key == f32::NEG_INFINITY {
            return 0;
        }
        let above = f64::from(key).floor() as i64 - self.risen.floor() as i64;
        match above {
            ..LONG_AGO => 0,
            LONG_AGO..ABOUT_ONCE => 1,
            _ => (above as usize).min(CLASSES - 1),
        }
    }

    fn count(&mut self, page: u32, accesses: u32) {
        let bytes = self.guest.page_bytes(page);
        let key = self.keys[page as usize];
        let mut count = f64::from(accesses);
        if key != f32::NEG_INFINITY {
            count += ((f64::from(key) - self.risen) / A_DOUBLING).exp2();
            self.bytes[key as usize] -= bytes;
        }
        let key = (A_DOUBLING * count.max(1.0).log2() + self.risen) as f32;
        self.keys[page as usize] = key;
        // Counts from 1 on and times from 0 on have no negative keys.
        let at = key as usize;
        if self.bytes.len() <= at {
            self.bytes.resize(at + 1, 0);
        }
        self.bytes[at] += bytes;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tier_core::{addr::BASE_PAGE, time::Time};

    use super::*;
    use crate::machine::{Slice, Touch};

    /// Accesses to pages, second by second.
    fn profile(pages: u32, seconds: &[&[(u32, u32)]]) -> (Profile, Guest) {
        let mut profile = Profile::new(pages, Duration::from_secs(1), 1 << 20);
        for (second, touched) in (0..).zip(seconds) {
            let touched = touched.iter().map(|&(page, accesses)| Touch {
                page,
                accesses,
                stores: 0,
            });
            profile.add(&Slice {
                start: Time(second * 1_000_000_000),
                end: Time((second + 1) * 1_000_000_000),
                touched: touched.collect(),
                ..Slice::default()
            });
        }
        (profile.finish(), Guest::uniform(0, pages, BASE_PAGE))
    }

    #[test]
    fn curves_when_pages_stay_hot_have_them_first() {
        // Page 0 has 100 accesses a second, pages 1 and 2 have 10 each, page 3 has none.
        let second: &[(u32, u32)] = &[(0, 100), (1, 10), (2, 10)];
        let (profile, guest) = profile(4, &[second; 20]);
        let curves = curves(&profile, &guest, 2.0);
        assert_eq!((curves.seconds(), curves.epochs().len()), (20, 20));
        let page = BASE_PAGE as f64;
        for curve in curves.epochs() {
            // A record stands for two accesses.
            assert_eq!(curve.hits_at(page), 200.0);
            assert_eq!(curve.hits_at(3.0 * page), 240.0);
            assert_eq!(curve.total_hits(), 240.0);
        }
    }

    #[test]
    fn curves_when_the_hot_page_changes_miss_it_until_it_is_hotter() {
        // Page 0 for a minute, then page 1 for a minute, over and over.
        let first: &[(u32, u32)] = &[(0, 10)];
        let then: &[(u32, u32)] = &[(1, 10)];
        let (profile, guest) = profile(4, &[[first; 60], [then; 60]].concat());
        let curves = curves(&profile, &guest, 1.0);
        let hits = |second: usize| curves.epochs()[second].hits_at(BASE_PAGE as f64);
        // DRAM of a page holds page 0 until page 1 has a higher count, after a half-life of 10 s. The hull
        // of nothing with a page and 10 hits with two is 5.
        let seconds = [59, 60, 68, 75, 119, 0, 8, 15];
        assert_eq!(
            seconds.map(hits),
            [10.0, 5.0, 5.0, 10.0, 10.0, 5.0, 5.0, 10.0]
        );
    }
}
