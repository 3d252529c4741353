//! Cuts accesses into slices of time: counts them for each page and lets the sampler see them.
//!
//! A slice is 10 ms long. Where nothing happens for longer, a slice without accesses stands for the idle
//! time: it takes whole slices, a second's worth at most, or a hundredth of the idle time that is left
//! if that is more. So time goes on, and a trace that jumps by years yields some two thousand slices for
//! it.

use std::{sync::Arc, time::Duration};

use tier_core::{random::Random, sample::AccessKind, time::Time};

use super::{
    Access, Accesses, Guest, Sample, Slice, Touch,
    sampler::{Sampler, SamplerSettings, luck},
};

/// How the accesses of a trace become samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The trace holds every access: some become samples.
    Every(SamplerSettings),
    /// The trace holds what a source delivered: every record is a sample, of its own weight.
    All {
        /// Accesses that one record stands for.
        period: u64,
        /// How often each page was tested in a slice, for a source that tests pages; else 0.
        tests: u32,
    },
}

/// How accesses are cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlicerSettings {
    /// Length of a slice, on the stretched clock.
    pub slice: Duration,
    /// Times are multiplied by this, from the first access on: short traces are slowed down, so that
    /// policies whose constants are seconds can be compared.
    pub stretch: f64,
    /// How accesses become samples.
    pub sampling: Sampling,
}

impl Default for SlicerSettings {
    fn default() -> Self {
        Self {
            slice: Duration::from_millis(10),
            stretch: 1.0,
            sampling: Sampling::Every(SamplerSettings::default()),
        }
    }
}

/// Why accesses can't be cut so.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum SlicerError {
    /// The length of a slice is nothing, or longer than a day.
    #[error("a slice of {0:?} is not possible: give one from 1 ns to a day, 10 ms for example")]
    Slice(Duration),
    /// The factor is no positive number.
    #[error("time can't be stretched by {0}: give a positive number, 1 for the trace's own time")]
    Stretch(f64),
}

/// What went through a slicer so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlicerAccount {
    /// Records of the trace.
    pub records: u64,
    /// Accesses inside the guest, to each page of a range.
    pub accesses: u64,
    /// Accesses outside the guest's memory.
    pub outside: u64,
    /// Records of the sampler that arrived.
    pub sampled: u64,
    /// Records of the sampler that were lost.
    pub lost: u64,
}

/// Most idle time that one slice stands for, but for very long gaps.
const IDLE: Duration = Duration::from_secs(1);
/// Share of a very long gap that one slice stands for.
const IDLE_SHARE: u64 = 100;
/// Up to a sixteenth of all pages, the used ones are listed and sorted; from then on all are looked at.
const LISTED_SHARE: usize = 16;
/// Accesses that are looked at together.
const CHUNK: usize = 64;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Accesses to a page in this slice in the low half, stores in the high half: one addition counts both.
type Count = u64;

/// Adds to a count, which stays at the most that it can hold.
const fn saturating(count: Count, weight: u32, stored: u32) -> Count {
    let (accesses, stores) = (count as u32, (count >> 32) as u32);
    accesses.saturating_add(weight) as u64 | (stores.saturating_add(stored) as u64) << 32
}

#[inline]
fn stored(access: &Access) -> u32 {
    if access.kind == AccessKind::Store {
        access.weight
    } else {
        0
    }
}

/// A run of the guest's memory, as [`Guest::ranges`] has it.
#[derive(Clone, Copy, Debug)]
struct Run {
    address: u64,
    len: u64,
    shift: u32,
    first: u32,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Slicer<A> {
    accesses: A,
    guest: Arc<Guest>,
    runs: Vec<Run>,
    settings: SlicerSettings,
    slice_ns: u64,
    sampler: Option<Sampler>,
    /// What the luck of records follows from.
    random: Random,
    buffer: Vec<Access>,
    /// The first access in the buffer that was not taken.
    next: usize,
    ended: bool,
    /// The first access's time.
    origin: Option<u64>,
    /// Where the next slice starts: stretched nanoseconds since the origin.
    start: u64,
    counts: Vec<Count>,
    /// Pages that were used in this slice, in the order of their first use, with one more place; full if
    /// there are too many to list.
    listed: Vec<u32>,
    listed_len: usize,
    /// All accesses of this slice: while they are few, no count can overflow.
    counted: u64,
    account: SlicerAccount,
}

impl<A: Accesses> Slicer<A> {
    /// Cuts these accesses.
    ///
    /// # Errors
    /// If the settings make no sense.
    pub fn new(
        guest: Arc<Guest>,
        accesses: A,
        settings: &SlicerSettings,
    ) -> Result<Self, SlicerError> {
        let slice = settings.slice;
        if slice.is_zero() || slice > DAY {
            return Err(SlicerError::Slice(slice));
        }
        if !(settings.stretch > 0.0 && settings.stretch.is_finite()) {
            return Err(SlicerError::Stretch(settings.stretch));
        }
        let mut first = 0;
        let runs = guest.ranges().map(|range| {
            let run = Run {
                address: range.address,
                len: range.len,
                shift: range.page_bytes.trailing_zeros(),
                first,
            };
            first += (run.len >> run.shift) as u32;
            run
        });
        let runs = runs.filter(|run| run.len > 0).collect();
        let pages = guest.pages() as usize;
        let sampler = match &settings.sampling {
            Sampling::Every(sampler) => Some(Sampler::new(sampler)),
            Sampling::All { .. } => None,
        };
        Ok(Self {
            accesses,
            guest,
            runs,
            settings: *settings,
            slice_ns: slice.as_nanos() as u64,
            sampler,
            random: Random::new(1),
            buffer: Vec::new(),
            next: 0,
            ended: false,
            origin: None,
            start: 0,
            counts: vec![0; pages],
            listed: vec![0; pages / LISTED_SHARE + 1],
            listed_len: 0,
            counted: 0,
            account: SlicerAccount::default(),
        })
    }

    /// The guest whose accesses these are.
    #[must_use]
    pub const fn guest(&self) -> &Arc<Guest> {
        &self.guest
    }

    /// What went through so far.
    #[must_use]
    pub fn account(&self) -> SlicerAccount {
        let mut account = self.account;
        if let Some(sampler) = &self.sampler {
            account.sampled = sampler.arrived();
            account.lost = sampler.lost();
        }
        account
    }

    /// Puts the next slice into `slice`, whose memory is used again, and returns it; `None` at the end.
    /// An access that goes back in time counts for the slice in which it is read.
    ///
    /// # Errors
    /// If no more accesses can be had. What was gathered of the current slice is gone, and nothing
    /// follows.
    pub fn next_slice<'s>(&mut self, slice: &'s mut Slice) -> Result<Option<&'s Slice>, A::Error> {
        slice.touched.clear();
        slice.samples.clear();
        (slice.lost, slice.outside) = (0, 0);
        (slice.period, slice.tests) = match &self.settings.sampling {
            Sampling::Every(_) => (self.sampler.as_ref().map_or(1, Sampler::period), 0),
            Sampling::All { period, tests } => (*period, *tests),
        };
        let Some(at) = self.peek()? else {
            return Ok(None);
        };
        let origin = *self.origin.get_or_insert(at.0);
        let idle = self.stretched(origin, at).saturating_sub(self.start) / self.slice_ns;
        let most = (IDLE.as_nanos() as u64 / self.slice_ns).max(idle / IDLE_SHARE);
        let slices = if idle == 0 { 1 } else { idle.min(most).max(1) };
        let end = self.start.saturating_add(slices * self.slice_ns);
        slice.start = Time(origin.saturating_add(self.start));
        slice.end = Time(origin.saturating_add(end));
        if idle == 0 {
            let before = self.account();
            let last = self.last_before(origin, end);
            while let Some(at) = self.peek()? {
                if at.0 > last {
                    break;
                }
                self.take(last, slice);
            }
            self.close(slice);
            let after = self.account();
            slice.lost = after.lost - before.lost;
            slice.outside = after.outside - before.outside;
        }
        self.start = end;
        Ok(Some(slice))
    }

    /// The time of the next access; `None` at the end.
    fn peek(&mut self) -> Result<Option<Time>, A::Error> {
        while self.next == self.buffer.len() && !self.ended {
            self.buffer.clear();
            self.next = 0;
            // After an error nothing follows either.
            self.ended = true;
            self.ended = !self.accesses.fill(&mut self.buffer)?;
        }
        Ok(self.buffer.get(self.next).map(|access| access.at))
    }

    /// Stretched nanoseconds from the origin to a time of the trace.
    fn stretched(&self, origin: u64, at: Time) -> u64 {
        let since = at.0.saturating_sub(origin);
        if self.settings.stretch == 1.0 {
            since
        } else {
            // A cast of a float saturates.
            (since as f64 * self.settings.stretch) as u64
        }
    }

    /// The last time of the trace that lies before a stretched time. Nothing lies behind the end of all
    /// time.
    fn last_before(&self, origin: u64, end: u64) -> u64 {
        if end == u64::MAX {
            return u64::MAX;
        }
        let since = if self.settings.stretch == 1.0 {
            end
        } else {
            (end as f64 / self.settings.stretch).ceil() as u64
        };
        match origin.checked_add(since) {
            Some(end) => end.saturating_sub(1),
            None => u64::MAX,
        }
    }

    /// Takes what the buffer holds up to and including the time `last`.
    fn take(&mut self, last: u64, slice: &mut Slice) {
        let buffer = std::mem::take(&mut self.buffer);
        let mut rest = &buffer[self.next..];
        while let Some(access) = rest.first() {
            if access.at.0 > last {
                break;
            }
            rest = match self.sampler.is_some() && self.runs.len() == 1 {
                true => self.take_plain(last, rest, slice),
                false => rest,
            };
            if let Some((access, after)) = rest.split_first()
                && access.at.0 <= last
            {
                self.take_any(access, slice);
                rest = after;
            }
        }
        let taken = buffer.len() - self.next - rest.len();
        self.account.records += taken as u64;
        self.next += taken;
        self.buffer = buffer;
    }

    /// Takes single accesses inside a guest of one run, sampled, until one comes that is none. This is
    /// where the time goes, so chunks of them are looked up, counted and sampled one after the other:
    /// short loops without branches that can't be foretold, whose misses of the cache overlap. Most
    /// chunks hold no sample.
    fn take_plain<'b>(
        &mut self,
        last: u64,
        accesses: &'b [Access],
        slice: &mut Slice,
    ) -> &'b [Access] {
        let (Some(sampler), Some(&run)) = (&mut self.sampler, self.runs.first()) else {
            return accesses;
        };
        let counts = &mut self.counts[..];
        let full = self.listed.len() - 1;
        let mut pages = [0_u32; CHUNK];
        let mut rest = accesses;
        loop {
            let (mut plain, mut weights) = (0, 0_u64);
            for (page, access) in pages.iter_mut().zip(rest) {
                let offset = access.address.wrapping_sub(run.address);
                let single = (access.len <= 1) & (access.weight > 0) & (offset < run.len);
                if !single | (access.at.0 > last) {
                    break;
                }
                *page = (offset >> run.shift) as u32;
                weights += u64::from(access.weight);
                plain += 1;
            }
            let (chunk, after) = rest.split_at(plain);
            let fits = self.counted.wrapping_add(weights) <= u64::from(u32::MAX);
            if plain == 0 || !fits {
                return rest;
            }
            let pages = &pages[..plain];
            if self.listed_len < full {
                for (&page, access) in pages.iter().zip(chunk) {
                    let count = &mut counts[page as usize];
                    self.listed[self.listed_len] = page;
                    self.listed_len = (self.listed_len + usize::from(*count == 0)).min(full);
                    let both = u64::from(access.weight) | u64::from(stored(access)) << 32;
                    *count = count.wrapping_add(both);
                }
            } else {
                for (&page, access) in pages.iter().zip(chunk) {
                    let count = &mut counts[page as usize];
                    let both = u64::from(access.weight) | u64::from(stored(access)) << 32;
                    *count = count.wrapping_add(both);
                }
            }
            if weights < sampler.left() {
                sampler.pass(weights);
            } else {
                for (&page, access) in pages.iter().zip(chunk) {
                    let Access {
                        at, weight, kind, ..
                    } = *access;
                    sampler.see(at, page, weight, kind, &mut slice.samples);
                }
            }
            self.counted += weights;
            self.account.accesses += weights;
            rest = after;
        }
    }

    /// Takes any access: one outside, a range, a record of a source.
    fn take_any(&mut self, access: &Access, slice: &mut Slice) {
        let last = access.address.saturating_add(access.len.max(1) - 1);
        let mut inside = 0;
        let from = self
            .runs
            .partition_point(|run| run.address + (run.len - 1) < access.address);
        for index in from..self.runs.len() {
            let run = self.runs[index];
            if run.address > last {
                break;
            }
            let start = access.address.max(run.address) - run.address;
            let end = last.min(run.address + (run.len - 1)) - run.address;
            inside += end - start + 1;
            for page in start >> run.shift..=end >> run.shift {
                self.take_page(run.first + page as u32, access, slice);
            }
        }
        if inside < access.len.max(1) {
            self.account.outside += u64::from(access.weight);
        }
    }

    fn take_page(&mut self, page: u32, access: &Access, slice: &mut Slice) {
        let Access {
            at, weight, kind, ..
        } = *access;
        let count = &mut self.counts[page as usize];
        self.listed[self.listed_len] = page;
        let full = self.listed.len() - 1;
        self.listed_len = (self.listed_len + usize::from(*count == 0)).min(full);
        *count = saturating(*count, weight, stored(access));
        self.counted = self.counted.saturating_add(u64::from(weight));
        self.account.accesses += u64::from(weight);
        match &mut self.sampler {
            Some(sampler) => sampler.see(at, page, weight, kind, &mut slice.samples),
            None => slice.samples.push(Sample {
                at,
                page,
                weight: weight as f32,
                kind,
                luck: luck(&mut self.random),
            }),
        }
    }

    /// Puts the counts into the slice, and the samples on the stretched clock.
    fn close(&mut self, slice: &mut Slice) {
        let touched = &mut slice.touched;
        let mut put = |page: u32, count: &mut Count| {
            let count = std::mem::take(count);
            // A record of weight 0 says that a page was not used; one that comes twice was put already.
            if count > 0 {
                touched.push(Touch {
                    page,
                    accesses: count as u32,
                    stores: (count >> 32) as u32,
                });
            }
        };
        if self.listed_len < self.listed.len() - 1 {
            let listed = &mut self.listed[..self.listed_len];
            listed.sort_unstable();
            for &page in &*listed {
                put(page, &mut self.counts[page as usize]);
            }
        } else {
            for (page, count) in (0..).zip(&mut self.counts) {
                put(page, count);
            }
        }
        (self.listed_len, self.counted) = (0, 0);
        if self.settings.stretch != 1.0 {
            let (origin, latest) = (
                self.origin.unwrap_or(0),
                Time(slice.end.0.saturating_sub(1)),
            );
            for sample in &mut slice.samples {
                let at = Time(origin.saturating_add(self.stretched(origin, sample.at)));
                sample.at = at.clamp(slice.start, latest.max(slice.start));
            }
        }
    }
}

impl<A: Accesses + ?Sized> Accesses for Box<A> {
    type Error = A::Error;

    fn fill(&mut self, out: &mut Vec<Access>) -> Result<bool, Self::Error> {
        (**self).fill(out)
    }
}

impl<A: Accesses + ?Sized> Accesses for &mut A {
    type Error = A::Error;

    fn fill(&mut self, out: &mut Vec<Access>) -> Result<bool, Self::Error> {
        (**self).fill(out)
    }
}
