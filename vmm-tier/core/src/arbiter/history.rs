//! The history: figures of the host and of each VM, second by second, for an hour, in bounded memory.
//!
//! # Units
//! Whole seconds since the caller's epoch. Of several samples in one second the first counts.
//!
//! # Approach
//! Two archives for each VM and for the host, as in RRDtool: the last [`FINE_S`] seconds as they were,
//! and the last [`COARSE_S`] seconds in steps of [`COARSE_STEP_S`], of which mean, minimum and maximum
//! are kept. An archive is a ring of fixed size, so a VM takes 36 kB however long it lives. Values are
//! `f32`: exact for whole pages of up to 64 GiB, and within 1 part in 16 million above that.
//!
//! A VM that is gone stays for an hour, or until its place is needed: [`MAX_SERIES`] VMs are kept.

use std::collections::BTreeMap;

use super::Fairness;
use crate::time::Time;

/// How long each second is kept, in seconds.
pub const FINE_S: u64 = 300;
/// How long anything is kept, in seconds.
pub const COARSE_S: u64 = 3600;
/// The steps in which the hour is kept, in seconds.
pub const COARSE_STEP_S: u64 = 10;
/// The most VMs that are kept: those that are there, and some that are gone.
pub const MAX_SERIES: usize = super::MAX_VMS + 24;
/// The most points of a reply, of all series together.
pub const MAX_POINTS: u64 = 10_000;
/// How many figures a series has.
const FIGURES: usize = 6;
/// Ratios are told with four digits behind the point.
const RATIO_DIGITS: f64 = 1e4;
/// How many steps are kept: those of the hour, of which the first and the last are not whole.
const STEPS: u64 = COARSE_S / COARSE_STEP_S + 1;

/// Figures in the order of the series' fields; NaN for what is not known.
type Figures = [f32; FIGURES];

/// What is kept of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VmSample {
    /// What it may hold, in bytes.
    pub share_bytes: Option<u64>,
    /// What it uses, in bytes.
    pub demand_bytes: Option<u64>,
    /// What it holds, in bytes.
    pub fast_bytes: u64,
    /// What it is entitled to, in bytes.
    pub entitled_bytes: Option<u64>,
    /// The share of accesses that DRAM served.
    pub hit_ratio: Option<f64>,
    /// How many times longer it takes than with all memory in DRAM.
    pub slowdown: Option<f64>,
}

impl VmSample {
    fn figures(&self) -> Figures {
        [
            bytes(self.share_bytes),
            bytes(self.demand_bytes),
            bytes(Some(self.fast_bytes)),
            bytes(self.entitled_bytes),
            number(self.hit_ratio),
            number(self.slowdown),
        ]
    }
}

/// What is kept of the host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostSample<'a> {
    /// How fair the division is.
    pub fairness: &'a Fairness,
    /// DRAM that is dealt.
    pub pool_bytes: u64,
    /// DRAM of the pool that is nobody's share.
    pub free_bytes: u64,
}

crate::report! {
    /// A figure over time: a number for each step, or null where it was not known.
    #[derive(Clone, Debug, Default, PartialEq)]
    pub struct Column = "HostHistoryColumn" {
        /// The mean of the step's seconds.
        pub mean: Vec<Option<f64>>,
        /// The least of the step's seconds.
        pub min: Vec<Option<f64>>,
        /// The greatest of the step's seconds.
        pub max: Vec<Option<f64>>,
    }
}

crate::report! {
    /// The host over time.
    #[derive(Clone, Debug, Default, PartialEq)]
    pub struct HostSeries = "HostSeries" {
        /// Jain's index of fairness.
        pub jain: Column,
        /// Bytes by which VMs had less than they used of their guarantees.
        pub deficit_bytes: Column,
        /// VMs that envied another.
        pub envy: Column,
        /// DRAM that was dealt.
        pub pool_bytes: Column,
        /// DRAM of the pool that was nobody's share.
        pub free_bytes: Column,
        /// Bytes by which the last decision had raised shares above what VMs held.
        pub redealt_bytes: Column,
    }
}

crate::report! {
    /// A VM over time.
    #[derive(Clone, Debug, Default, PartialEq)]
    pub struct VmSeries = "HostVmSeries" {
        /// The VM's name.
        pub name: String,
        /// Whether it was there in the newest second that is kept.
        pub present: bool,
        /// What it might hold.
        pub share_bytes: Column,
        /// What it used.
        pub demand_bytes: Column,
        /// What it held.
        pub fast_bytes: Column,
        /// What it was entitled to.
        pub entitled_bytes: Column,
        /// The share of accesses that DRAM served.
        pub hit_ratio: Column,
        /// How many times longer it took than with all memory in DRAM.
        pub slowdown: Column,
    }
}

crate::report! {
    /// The host and its VMs over time.
    #[derive(Clone, Debug, Default, PartialEq)]
    pub struct HostHistory = "HostHistory" {
        /// The length of a step in seconds. It is longer than was asked for where the reply would have
        /// too many steps.
        pub step_s: u64,
        /// How many seconds before now the first step began.
        pub begins_s_ago: u64,
        /// How many steps each figure has. The last step goes on.
        pub steps: u64,
        /// Samples that were not kept, since the daemon's start: a second sample in a second, or
        /// more VMs than are kept.
        pub dropped_samples: u64,
        /// The host.
        pub host: HostSeries,
        /// The VMs that were there in that time, by name.
        pub vms: Vec<VmSeries>,
    }
}

/// What of the history is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The VM; without it all.
    pub name: Option<&'a str>,
    /// How many seconds back; [`FINE_S`] without it, [`COARSE_S`] at most.
    pub since_s: Option<u64>,
    /// The length of a step in seconds, of which more than [`FINE_S`] back only multiples of
    /// [`COARSE_STEP_S`] are kept. The shortest without it.
    pub step_s: Option<u64>,
}

/// Why there is no history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// The VM is not known.
    #[error("there is no VM {0}, and there was none in the last hour")]
    NoVm(String),
    /// Nothing can be told in no time.
    #[error("since-s and step-s are at least 1 second")]
    NoTime,
}

/// A ring of slots, numbered from the epoch on.
#[derive(Clone, Debug)]
struct Ring<T> {
    slots: Box<[T]>,
    newest: Option<u64>,
}

impl<T: Clone> Ring<T> {
    fn new(length: u64, blank: T) -> Self {
        Self {
            slots: vec![blank; length as usize].into(),
            newest: None,
        }
    }

    /// The slot of this number, which becomes the newest if it is; `None` if it is too old.
    fn slot(&mut self, number: u64, blank: &T) -> Option<&mut T> {
        let length = self.slots.len() as u64;
        let newest = self.newest.unwrap_or(number);
        for skipped in newest.saturating_add(1)..=number.min(newest.saturating_add(length)) {
            self.slots[(skipped % length) as usize] = blank.clone();
        }
        let newest = newest.max(number);
        self.newest = Some(newest);
        (newest - number < length).then(|| &mut self.slots[(number % length) as usize])
    }

    fn get(&self, number: u64) -> Option<&T> {
        let length = self.slots.len() as u64;
        let is_kept = number <= self.newest? && self.newest? - number < length;
        is_kept.then(|| &self.slots[(number % length) as usize])
    }
}

/// What is kept of the seconds of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Step {
    mean: Figures,
    min: Figures,
    max: Figures,
    /// How many seconds each figure has.
    count: [u8; FIGURES],
}

impl Step {
    const BLANK: Self = Self {
        mean: [f32::NAN; FIGURES],
        min: [f32::NAN; FIGURES],
        max: [f32::NAN; FIGURES],
        count: [0; FIGURES],
    };

    fn add(&mut self, figures: &Figures) {
        for (at, &value) in figures.iter().enumerate() {
            if value.is_nan() {
                continue;
            }
            self.count[at] += 1;
            let count = f64::from(self.count[at]);
            // What the mean was before the first value is not a number.
            let before = if count > 1.0 { self.mean[at] } else { value };
            let mean = f64::from(before) + (f64::from(value) - f64::from(before)) / count;
            self.mean[at] = mean as f32;
            self.min[at] = self.min[at].min(value);
            self.max[at] = self.max[at].max(value);
        }
    }
}

/// Both archives of the host or of a VM.
#[derive(Clone, Debug)]
struct Series {
    seconds: Ring<Figures>,
    steps: Ring<Step>,
}

impl Series {
    /// What the slots of a series take, in bytes.
    const BYTES: usize =
        FINE_S as usize * size_of::<Figures>() + STEPS as usize * size_of::<Step>();
    const BLANK: Figures = [f32::NAN; FIGURES];

    fn new() -> Self {
        Self {
            seconds: Ring::new(FINE_S, Self::BLANK),
            steps: Ring::new(STEPS, Step::BLANK),
        }
    }

    /// Takes a second in; `false` if that second is there already, or too old.
    fn add(&mut self, second: u64, figures: &Figures) -> bool {
        let Some(slot) = self.seconds.slot(second, &Self::BLANK) else {
            return false;
        };
        if slot.iter().any(|value| !value.is_nan()) {
            return false;
        }
        *slot = *figures;
        if let Some(step) = self.steps.slot(second / COARSE_STEP_S, &Step::BLANK) {
            step.add(figures);
        }
        true
    }

    fn newest(&self) -> u64 {
        self.seconds.newest.unwrap_or(0)
    }

    /// A figure in these windows.
    fn column(&self, windows: &Windows, at: usize, round: f64) -> Column {
        let mut column = Column::default();
        for number in windows.first..windows.first + windows.count {
            let tally = self.tally(windows, number, at);
            let told = |value: f64| (tally.count > 0.0).then(|| (value * round).round() / round);
            column.mean.push(told(tally.sum / tally.count));
            column.min.push(told(tally.min));
            column.max.push(told(tally.max));
        }
        column
    }

    /// What the seconds of a window amount to.
    fn tally(&self, windows: &Windows, number: u64, at: usize) -> Tally {
        let mut tally = Tally::default();
        let start = number * windows.step_s;
        if windows.is_fine {
            for second in start..start + windows.step_s {
                if let Some(figures) = self.seconds.get(second) {
                    let value = figures[at];
                    tally.add(value, value, value, u8::from(!value.is_nan()));
                }
            }
        } else {
            for step in start / COARSE_STEP_S..(start + windows.step_s) / COARSE_STEP_S {
                if let Some(step) = self.steps.get(step) {
                    tally.add(step.mean[at], step.min[at], step.max[at], step.count[at]);
                }
            }
        }
        tally
    }
}

/// Several steps or seconds together.
struct Tally {
    sum: f64,
    min: f64,
    max: f64,
    count: f64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            sum: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            count: 0.0,
        }
    }
}

impl Tally {
    fn add(&mut self, mean: f32, min: f32, max: f32, count: u8) {
        if count > 0 {
            self.sum += f64::from(mean) * f64::from(count);
            self.min = self.min.min(min.into());
            self.max = self.max.max(max.into());
            self.count += f64::from(count);
        }
    }
}

/// The steps of a reply: window `n` has the seconds from n · `step_s` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Windows {
    is_fine: bool,
    step_s: u64,
    first: u64,
    count: u64,
}

impl Windows {
    /// Windows that cover the `since_s` seconds up to `end`, and have at most [`MAX_POINTS`] points in
    /// this many series.
    fn new(end: u64, since_s: u64, step_s: Option<u64>, series: usize) -> Self {
        let is_fine = since_s <= FINE_S;
        let shortest = if is_fine { 1 } else { COARSE_STEP_S };
        let points_of_each = (MAX_POINTS / series as u64).max(2);
        // Windows begin at multiples of the step, so one more than fits may be begun.
        let fitting = since_s.div_ceil(points_of_each - 1);
        let step_s = step_s.unwrap_or(shortest).clamp(shortest, COARSE_S);
        let step_s = step_s.max(fitting).next_multiple_of(shortest);
        let first = (end + 1).saturating_sub(since_s) / step_s;
        Self {
            is_fine,
            step_s,
            first,
            count: end / step_s - first + 1,
        }
    }
}

/// Keeps the history.
#[derive(Clone, Debug)]
pub struct History {
    host: Series,
    vms: BTreeMap<String, Series>,
    /// The newest second.
    newest: Option<u64>,
    /// The second in which the deficit was looked at last, and how much it was.
    deficit: Option<(u64, f64)>,
    dropped: u64,
}

impl Default for History {
    fn default() -> Self {
        Self {
            host: Series::new(),
            vms: BTreeMap::new(),
            newest: None,
            deficit: None,
            dropped: 0,
        }
    }
}

impl History {
    /// The most memory that the archives take, in bytes.
    pub const MAX_BYTES: usize = (MAX_SERIES + 1) * Series::BYTES;

    /// Takes in what holds at `now` of the host and of the VMs that are there.
    ///
    /// Seconds may be missing, and may come late by up to [`FINE_S`]. A time that lies further back
    /// means that the clock was set back: the history begins anew.
    pub fn add<'a>(
        &mut self,
        now: Time,
        host: &HostSample<'_>,
        vms: impl IntoIterator<Item = (&'a str, VmSample)>,
    ) {
        let second = second(now);
        if self.newest.is_some_and(|newest| second + FINE_S <= newest) {
            let dropped = self.dropped;
            *self = Self::default();
            self.dropped = dropped;
        }
        let newest = self.newest.map_or(second, |newest| newest.max(second));
        self.newest = Some(newest);
        let deficit = self.deficit_bytes(second, host.fairness.deficit_byte_seconds);
        self.add_host(second, host, deficit);
        self.vms
            .retain(|_, series| newest - series.newest() < COARSE_S);
        let mut new = Vec::new();
        for (name, sample) in vms {
            match self.vms.get_mut(name) {
                Some(series) => {
                    let is_kept = series.add(second, &sample.figures());
                    self.dropped += u64::from(!is_kept);
                }
                None => new.push((name, sample)),
            }
        }
        for (name, sample) in new {
            if self.vms.len() >= MAX_SERIES && !self.forget_one(second) {
                self.dropped += 1;
                continue;
            }
            let mut series = Series::new();
            series.add(second, &sample.figures());
            self.vms.insert(name.to_owned(), series);
        }
    }

    fn add_host(&mut self, second: u64, host: &HostSample<'_>, deficit: Option<f64>) {
        let figures = [
            number(Some(host.fairness.jain)),
            number(deficit),
            host.fairness.envy as f32,
            bytes(Some(host.pool_bytes)),
            bytes(Some(host.free_bytes)),
            bytes(Some(host.fairness.redealt_bytes)),
        ];
        let is_kept = self.host.add(second, &figures);
        self.dropped += u64::from(!is_kept);
    }

    /// By how much the deficit grew in a second since it was looked at last.
    fn deficit_bytes(&mut self, second: u64, byte_s: f64) -> Option<f64> {
        let before = self.deficit;
        if before.is_none_or(|(at, _)| at < second) {
            self.deficit = Some((second, byte_s));
        }
        let (at, before) = before?;
        (at < second).then(|| (byte_s - before).max(0.0) / (second - at) as f64)
    }

    /// Forgets the VM that was seen longest ago, if it is not there in this second.
    fn forget_one(&mut self, second: u64) -> bool {
        let oldest = self.vms.iter().min_by_key(|(_, series)| series.newest());
        let gone = oldest.filter(|(_, series)| series.newest() < second);
        match gone.map(|(name, _)| name.clone()) {
            Some(name) => self.vms.remove(&name).is_some(),
            None => false,
        }
    }

    /// What is kept of what is wanted, as of `now`.
    ///
    /// # Errors
    /// If there is no such VM, or no time is asked for.
    pub fn read(&self, now: Time, wanted: Wanted<'_>) -> Result<HostHistory, HistoryError> {
        if wanted.since_s == Some(0) || wanted.step_s == Some(0) {
            return Err(HistoryError::NoTime);
        }
        let end = second(now).max(self.newest.unwrap_or(0));
        let since_s = wanted.since_s.unwrap_or(FINE_S).min(COARSE_S);
        let vms: Vec<(&String, &Series)> = match wanted.name {
            Some(name) => {
                let known = self.vms.get_key_value(name);
                vec![known.ok_or_else(|| HistoryError::NoVm(name.to_owned()))?]
            }
            None => {
                let was_there = |series: &Series| series.newest() + since_s > end;
                let all = self.vms.iter();
                all.filter(|(_, series)| was_there(series)).collect()
            }
        };
        let windows = Windows::new(end, since_s, wanted.step_s, vms.len() + 1);
        let vm = |(name, series): (&String, &Series)| {
            let column = |at, round| series.column(&windows, at, round);
            VmSeries {
                name: name.clone(),
                present: Some(series.newest()) == self.newest,
                share_bytes: column(0, 1.0),
                demand_bytes: column(1, 1.0),
                fast_bytes: column(2, 1.0),
                entitled_bytes: column(3, 1.0),
                hit_ratio: column(4, RATIO_DIGITS),
                slowdown: column(5, RATIO_DIGITS),
            }
        };
        let column = |at, round| self.host.column(&windows, at, round);
        Ok(HostHistory {
            step_s: windows.step_s,
            begins_s_ago: (end + 1) - windows.first * windows.step_s,
            steps: windows.count,
            dropped_samples: self.dropped,
            host: HostSeries {
                jain: column(0, RATIO_DIGITS),
                deficit_bytes: column(1, 1.0),
                envy: column(2, RATIO_DIGITS),
                pool_bytes: column(3, 1.0),
                free_bytes: column(4, 1.0),
                redealt_bytes: column(5, 1.0),
            },
            vms: vms.into_iter().map(vm).collect(),
        })
    }
}

/// The second in which a time lies.
fn second(time: Time) -> u64 {
    time.0 / 1_000_000_000
}

fn bytes(bytes: Option<u64>) -> f32 {
    bytes.map_or(f32::NAN, |bytes| bytes as f32)
}

fn number(number: Option<f64>) -> f32 {
    let number = number.filter(|number| number.is_finite());
    number.map_or(f32::NAN, |number| number as f32)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(second: u64) -> Time {
        Time(0) + Duration::from_secs(second)
    }

    fn fairness(deficit_byte_seconds: f64) -> Fairness {
        Fairness {
            jain: 0.98764,
            deficit_byte_seconds,
            ..Fairness::default()
        }
    }

    fn sample(fast_bytes: u64) -> VmSample {
        VmSample {
            fast_bytes,
            ..VmSample::default()
        }
    }

    /// A second with these VMs.
    fn add<'a>(history: &mut History, second: u64, vms: impl IntoIterator<Item = (&'a str, u64)>) {
        let fairness = fairness(0.0);
        let host = HostSample {
            fairness: &fairness,
            pool_bytes: 100,
            free_bytes: 10,
        };
        let vms = vms.into_iter().map(|(name, fast)| (name, sample(fast)));
        history.add(at(second), &host, vms);
    }

    fn read(history: &History, second: u64, since_s: u64, step_s: u64) -> HostHistory {
        let wanted = Wanted {
            name: None,
            since_s: Some(since_s),
            step_s: Some(step_s),
        };
        history.read(at(second), wanted).unwrap()
    }

    #[test]
    fn steps_when_longer_than_a_second_have_mean_and_extremes() {
        let mut history = History::default();
        for second in 20..26 {
            add(&mut history, second, [("a", second)]);
        }
        let told = read(&history, 25, 6, 3);
        // Windows begin at multiples of the step: 18, 21 and 24. The first has the seconds 20 alone.
        assert_eq!((told.step_s, told.begins_s_ago, told.steps), (3, 8, 3));
        let fast = &told.vms[0].fast_bytes;
        // 24.5 is rounded to whole bytes.
        assert_eq!(fast.mean, [Some(20.0), Some(22.0), Some(25.0)]);
        assert_eq!(fast.min, [Some(20.0), Some(21.0), Some(24.0)]);
        assert_eq!(fast.max, [Some(20.0), Some(23.0), Some(25.0)]);
        assert_eq!(told.vms[0].slowdown.mean, [None; 3]);
        assert_eq!(told.host.jain.max, [Some(0.9876); 3]);
    }

    #[test]
    fn deficit_when_it_grows_is_told_in_bytes() {
        let mut history = History::default();
        for (second, byte_s) in [(7, 100.0), (8, 100.0), (10, 500.0)] {
            let fairness = fairness(byte_s);
            let host = HostSample {
                fairness: &fairness,
                pool_bytes: 0,
                free_bytes: 0,
            };
            history.add(at(second), &host, []);
        }
        let told = read(&history, 10, 4, 1);
        let deficit = told.host.deficit_bytes.mean;
        // 400 byte-seconds in two seconds.
        assert_eq!(deficit, [None, Some(0.0), None, Some(200.0)]);
    }

    #[test]
    fn second_when_it_comes_late_is_kept_and_when_it_comes_twice_is_dropped() {
        let mut history = History::default();
        for second in [100, 102, 101, 102] {
            add(&mut history, second, [("a", second)]);
        }
        let told = read(&history, 102, 3, 1);
        let expected = [Some(100.0), Some(101.0), Some(102.0)];
        assert_eq!(told.vms[0].fast_bytes.mean, expected);
        // That of the host and that of the VM.
        assert_eq!(told.dropped_samples, 2);
        let coarse = &read(&history, 102, 400, 10).vms[0].fast_bytes;
        assert_eq!((coarse.mean[9], coarse.mean[10]), (None, Some(101.0)));
    }

    #[test]
    fn clock_when_set_back_begins_anew_and_when_it_jumps_ahead_forgets_what_is_too_old() {
        let mut history = History::default();
        add(&mut history, 1000, [("a", 1)]);
        add(&mut history, 700, [("b", 2)]);
        let told = read(&history, 700, 10, 1);
        assert_eq!((told.vms.len(), told.vms[0].name.as_str()), (1, "b"));
        history.add(
            Time(u64::MAX),
            &HostSample {
                fairness: &fairness(0.0),
                pool_bytes: 5,
                free_bytes: 0,
            },
            [("c", sample(3))],
        );
        let told = history.read(Time(0), Wanted::default()).unwrap();
        assert_eq!((told.vms.len(), told.vms[0].name.as_str()), (1, "c"));
        let pool = told.host.pool_bytes.mean;
        assert_eq!(pool.iter().flatten().collect::<Vec<_>>(), [&5.0]);
        assert_eq!(pool.last(), Some(&Some(5.0)));
    }

    #[test]
    fn vms_when_many_come_and_go_take_bounded_memory_and_those_that_are_there_stay() {
        let mut history = History::default();
        let lasting: Vec<String> = (0..900).map(|vm| format!("lasting-{vm}")).collect();
        for round in 0..20 {
            let passing: Vec<String> = (0..100).map(|vm| format!("a-{round}-{vm}")).collect();
            let names = lasting.iter().chain(&passing).map(String::as_str);
            add(&mut history, 50 + round, names.map(|name| (name, 1)));
            assert!(history.vms.len() <= MAX_SERIES);
        }
        assert!(lasting.iter().all(|name| history.vms.contains_key(name)));
        assert_eq!(history.dropped, 0);
        let told = read(&history, 69, 300, 1);
        assert_eq!(told.vms.len(), MAX_SERIES);
        assert_eq!(told.vms.iter().filter(|vm| vm.present).count(), 1000);
        assert_eq!(read(&history, 69, 1, 1).vms.len(), 1000);
        // Two megabytes at most are told.
        assert!(told.steps * (told.vms.len() as u64 + 1) <= MAX_POINTS);
        let json = serde_json::to_string(&told).unwrap();
        assert!(json.len() < 2 << 20, "{} bytes", json.len());
        // 37 MB at most are kept.
        const { assert!(History::MAX_BYTES < 38 << 20) };
    }

    #[test]
    fn vms_when_more_are_there_than_are_kept_are_counted() {
        let mut history = History::default();
        let names: Vec<String> = (0..MAX_SERIES + 5).map(|vm| vm.to_string()).collect();
        for second in 1..3 {
            let vms = names.iter().map(|name| (name.as_str(), 1));
            add(&mut history, second, vms);
        }
        assert_eq!((history.vms.len(), history.dropped), (MAX_SERIES, 10));
    }

    #[test]
    fn vm_when_gone_for_an_hour_is_forgotten() {
        let mut history = History::default();
        add(&mut history, 10, [("a", 1)]);
        add(&mut history, 3609, []);
        let wanted = Wanted {
            name: Some("a"),
            since_s: Some(u64::MAX),
            step_s: None,
        };
        let told = history.read(at(3609), wanted).unwrap();
        assert!(!told.vms[0].present);
        assert_eq!(told.vms[0].fast_bytes.max[0], Some(1.0));
        add(&mut history, 3610, []);
        let gone = history.read(at(3610), wanted);
        assert_eq!(gone, Err(HistoryError::NoVm("a".to_owned())));
        let no_time = Wanted {
            step_s: Some(0),
            ..Wanted::default()
        };
        assert_eq!(history.read(at(1), no_time), Err(HistoryError::NoTime));
    }
}
