//! A recorded guest: its memory, its curves over time, and the DRAM that it needs for itself.

use std::{path::Path, sync::Arc};

use tier_core::{
    addr::BASE_PAGE,
    arbiter::{DemandCurve, Rules},
    latency::Latency,
    text::table::count,
};

use super::{MIN_SECONDS, error::WhatIfError, heat, report::WhatIfRecording};
use crate::{
    comparison::{
        ComparisonError,
        input::{Bounds, Input},
        passes::{Learned, learn},
        progress::Progress,
        settings::PlaySettings,
    },
    machine::Guest,
    sharing::Curves,
    trace::{Format, Options},
};

/// Epochs that are told apart: an hour in seconds. A longer recording has longer epochs.
const MOST_EPOCHS: usize = 4096;

/// A recorded guest.
#[derive(Clone, Debug)]
pub(super) struct Recording {
    pub(super) file: String,
    pub(super) memory_bytes: u64,
    /// The size of the pages that most of its memory has.
    pub(super) page_bytes: u64,
    pub(super) curves: Arc<Curves>,
    /// Whether accesses a second are those of the guest: the records are counts of accesses, and in
    /// their own time.
    pub(super) counts_accesses: bool,
    pub(super) notes: Vec<String>,
}

/// What is asked of each guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The share of accesses for which DRAM is looked up.
    pub(super) target_ratio: f64,
    /// The part that a guest may take longer.
    pub(super) loss: f64,
    pub(super) latency: Latency,
}

impl Recording {
    /// Reads a recording.
    ///
    /// # Errors
    /// If it can't be read, takes more than the bounds allow, or is too short.
    pub(super) fn read(
        (path, format): (&Path, Format),
        options: Options,
        bounds: Bounds,
        progress: &Progress,
    ) -> Result<Self, WhatIfError> {
        let input = Input::File {
            path: path.to_owned(),
            format,
            options,
            bounds,
        };
        let name = input.name();
        let settings = PlaySettings::default();
        let learned = learn(&input, &settings, &bounds, MOST_EPOCHS, progress)
            .map_err(|error| ComparisonError::of(error, name.clone()))?;
        let seconds = learned.facts.duration.as_secs_f64() * learned.stretch;
        if seconds < MIN_SECONDS {
            return Err(WhatIfError::Short { name, seconds });
        }
        let guest = &learned.facts.guest;
        let (period, tests) = learned.facts.samples.unwrap_or((1, 0));
        Ok(Self {
            memory_bytes: guest.bytes(),
            page_bytes: page_bytes(guest),
            curves: Arc::new(heat::curves(&learned.profile, guest, period as f64)),
            counts_accesses: tests == 0 && !is_slowed(learned.stretch),
            notes: notes(&name, &learned),
            file: name,
        })
    }

    /// The share of its accesses that so much DRAM serves if it has that for itself.
    pub(super) fn hit_ratio(&self, bytes: u64) -> f64 {
        let epochs = self.curves.epochs();
        let all: f64 = epochs.iter().map(DemandCurve::total_hits).sum();
        let hits: f64 = epochs.iter().map(|curve| curve.hits_at(bytes as f64)).sum();
        if all > 0.0 { hits / all } else { 1.0 }
    }

    fn accesses_per_s(&self) -> f64 {
        let epochs = self.curves.epochs();
        let all: f64 = epochs.iter().map(DemandCurve::total_hits).sum();
        all / epochs.len() as f64
    }

    /// What it tells of itself.
    pub(super) fn report(
        &self,
        name: &str,
        guests: usize,
        vcpu_s_per_s: Option<f64>,
        limits: &Limits,
    ) -> WhatIfRecording {
        let accesses_per_s = self.accesses_per_s();
        let is_enough = |bytes| self.hit_ratio(bytes) >= limits.target_ratio;
        let fits = |bytes| {
            let ratio = self.hit_ratio(bytes);
            let latency = limits.latency;
            latency.slowdown(ratio, accesses_per_s, vcpu_s_per_s) <= 1.0 + limits.loss
        };
        let rules = Rules::default();
        let idle = rules.idle_hits_per_page_s / BASE_PAGE as f64;
        let epochs = self.curves.epochs();
        let used: f64 = epochs.iter().map(|curve| curve.used_bytes(idle)).sum();
        WhatIfRecording {
            name: name.to_owned(),
            file: self.file.clone(),
            guests: guests as u64,
            memory_bytes: self.memory_bytes,
            used_bytes: (used / epochs.len() as f64) as u64,
            target_bytes: self.least(is_enough),
            fits_bytes: self.least(fits),
            accesses_per_s,
            vcpu_s_per_s,
        }
    }

    /// The least whole pages for which that holds; all memory if it holds for nothing less.
    fn least(&self, holds: impl Fn(u64) -> bool) -> u64 {
        let (mut low, mut high) = (0, self.memory_bytes.div_ceil(self.page_bytes));
        while low < high {
            let middle = low + (high - low) / 2;
            match holds(middle * self.page_bytes) {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        (high * self.page_bytes).min(self.memory_bytes)
    }
}

/// Whether a recording is played so much slower that it matters.
fn is_slowed(stretch: f64) -> bool {
    (stretch - 1.0).abs() > 0.01
}

/// The size of the pages that most memory has.
fn page_bytes(guest: &Guest) -> u64 {
    let mut sizes: Vec<(u64, u64)> = Vec::new();
    for range in guest.ranges() {
        match sizes.iter_mut().find(|(size, _)| *size == range.page_bytes) {
            Some((_, bytes)) => *bytes += range.len,
            None => sizes.push((range.page_bytes, range.len)),
        }
    }
    let most = sizes.into_iter().max_by_key(|&(_, bytes)| bytes);
    most.map_or(BASE_PAGE, |(size, _)| size)
}

fn notes(name: &str, learned: &Learned) -> Vec<String> {
    let mut notes: Vec<String> = learned.facts.notes.clone();
    if is_slowed(learned.stretch) {
        notes.push(format!(
            "it took {:.3?} and is played {} times slower, as heat counts in seconds",
            learned.facts.duration,
            match learned.stretch {
                factor if factor < 10.0 => format!("{factor:.1}"),
                factor => count(factor.round() as u64),
            },
        ));
    }
    let epoch_s = learned.profile.epoch().as_secs();
    if epoch_s > 1 {
        notes.push(format!(
            "it is known in steps of {epoch_s} s: a shorter recording is told apart better"
        ));
    }
    if learned.outside > 0 {
        notes.push(format!(
            "{} accesses outside the guest's memory were dropped",
            count(learned.outside)
        ));
    }
    notes
        .into_iter()
        .map(|note| format!("{name}: {note}"))
        .collect()
}
