//! The two passes over an input: the first learns what the oracle needs, the second runs all simulations
//! in step.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use tier_core::text::table::count;
use tier_core::time::Time;

use super::{
    args::Stretch,
    few_samples,
    input::{AnyAccesses, Bounds, Facts, Input, InputError, Opened},
    lockstep,
    progress::Progress,
    report::{Run, Trace},
    results::runs,
    settings::{Choice, PlaySettings, Settings},
};
use crate::{
    machine::{
        Guest, Profile, SamplerSettings, Sampling, Slice, Slicer, SlicerAccount, SlicerSettings,
    },
    policy::{
        self, PolicySetup, UnknownPolicy,
        oracle::{Oracle, Plan},
    },
    simulation::{Score, Simulation},
};

/// A shorter trace is slowed down to this length: policies count in seconds, and two minutes show them
/// settle and change. It is two minutes less a slice, so that the last access falls into the two
/// minutes.
const LONG_ENOUGH: Duration = Duration::from_millis(119_990);
/// Epochs of the oracle where memory suffices.
const EPOCH: Duration = Duration::from_secs(1);
/// Planning takes the profile once more, by page, and two plans.
const PLANNING: usize = 4;
/// Slices that are simulated at a time: a second of them, or fewer if they are full.
const BATCH_SLICES: usize = 100;
/// Pages and samples in a batch, at most: some 30 MB.
const BATCH_ENTRIES: usize = 2 << 20;

/// The results of an input.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) trace: Trace,
    pub(super) runs: Vec<Run>,
}

/// One input and how it is played.
struct Play<'a> {
    input: &'a Input,
    facts: Facts,
    slicing: SlicerSettings,
    stretch: f64,
    progress: &'a Progress,
    name: String,
}

/// Who looks at the accesses of the first pass beside the oracle.
pub(super) trait Watcher {
    /// The pass begins: over a trace of this guest and of this length in seconds, as played.
    fn begin(&mut self, guest: &Guest, seconds: f64);

    /// The next slice.
    fn see(&mut self, slice: &Slice);
}

/// Nobody.
impl Watcher for () {
    fn begin(&mut self, _: &Guest, _: f64) {}

    fn see(&mut self, _: &Slice) {}
}

/// Replays an input.
///
/// # Errors
/// If it can't be read, or a size of DRAM holds no page of its guest.
pub(super) fn replay(
    input: &Input,
    settings: &Settings,
    progress: &Progress,
    watcher: &mut impl Watcher,
) -> Result<Outcome, InputError> {
    let play = Play::new(input, &settings.play, progress)?;
    let sizes = sizes(settings, &play.facts)?;
    let bytes = usize::try_from(settings.memory).unwrap_or(usize::MAX) / PLANNING;
    let profile = Profile::new(play.facts.guest.pages(), EPOCH, bytes);
    let (profile, _) = play.learn(profile, 2, watcher)?;
    let (scores, account) = play.simulate(settings, &sizes, &profile)?;
    let mut trace = play.trace(settings, &account, &sizes);
    trace.notes.extend(coarse(&profile));
    let recorded = play.is_recording().then_some(&play.facts.account);
    let runs = runs(&trace, &scores, recorded, settings.timeline);
    Ok(Outcome { trace, runs })
}

/// What one pass over an input tells: which pages its guest uses when.
#[derive(Debug)]
pub(crate) struct Learned {
    pub(crate) facts: Facts,
    pub(crate) profile: Profile,
    /// The factor by which it was slowed down.
    pub(crate) stretch: f64,
    /// Accesses outside the guest's memory.
    pub(crate) outside: u64,
}

/// Learns an input's uses in one pass, in up to `epochs` epochs of a second or more.
///
/// # Errors
/// If it can't be read, or takes more than the bounds allow.
pub(crate) fn learn(
    input: &Input,
    settings: &PlaySettings,
    bounds: &Bounds,
    epochs: usize,
    progress: &Progress,
) -> Result<Learned, InputError> {
    let play = Play::new(input, settings, progress)?;
    let pages = play.facts.guest.pages();
    if pages > bounds.most_pages {
        let most = bounds.most_pages;
        return Err(InputError::TooLarge { pages, most });
    }
    let profile = Profile::new(pages, EPOCH, bounds.memory_bytes).with_most_epochs(epochs);
    let (profile, outside) = play.learn(profile, 1, &mut ())?;
    Ok(Learned {
        outside: outside + play.facts.outside,
        stretch: play.stretch,
        facts: play.facts,
        profile,
    })
}

impl<'a> Play<'a> {
    fn new(
        input: &'a Input,
        settings: &PlaySettings,
        progress: &'a Progress,
    ) -> Result<Self, InputError> {
        let facts = input.facts(settings.huge, progress)?;
        let stretch = match settings.stretch {
            Stretch::By(factor) => factor,
            Stretch::Auto if facts.may_stretch => stretch_for(facts.duration),
            Stretch::Auto => 1.0,
        };
        let sampling = match (facts.samples, settings.period) {
            (Some((period, tests)), None) => Sampling::All { period, tests },
            (_, period) => Sampling::Every(SamplerSettings {
                period: period.unwrap_or(settings.sampler.period),
                ..settings.sampler
            }),
        };
        let slicing = SlicerSettings {
            stretch,
            sampling,
            ..SlicerSettings::default()
        };
        Ok(Self {
            name: input.name(),
            input,
            facts,
            slicing,
            stretch,
            progress,
        })
    }

    /// The accesses in slices, and how many the reader drops meanwhile.
    fn slicer(&self) -> Result<(Slicer<AnyAccesses>, Rc<Cell<u64>>), InputError> {
        let guest = Arc::clone(&self.facts.guest);
        let Opened { accesses, outside } = self.input.open()?;
        let slicer = Slicer::new(guest, accesses, &self.slicing)?;
        Ok((slicer, outside))
    }

    /// Whether every record is a sample.
    const fn is_recording(&self) -> bool {
        matches!(self.slicing.sampling, Sampling::All { .. })
    }

    /// The length in seconds, as played.
    fn seconds(&self) -> f64 {
        self.facts.duration.as_secs_f64() * self.stretch
    }

    fn period(&self) -> u64 {
        match self.slicing.sampling {
            Sampling::Every(sampler) => sampler.period,
            Sampling::All { period, .. } => period,
        }
    }

    fn begin(&self, pass: usize, of: usize, what: &str) {
        let before = self.facts.passes;
        let what = format!("pass {} of {}, {what}", before + pass, before + of);
        self.progress.begin(&self.name, &what);
    }

    fn show(&self, slice: &Slice, start: &mut Option<Time>) {
        let start = *start.get_or_insert(slice.start);
        let done = slice.end.since(start).as_secs_f64();
        self.progress.set(done, self.seconds());
    }

    /// The first of so many passes: how often each page is used, and when. Also tells the accesses that
    /// were read outside the guest's memory.
    fn learn(
        &self,
        mut profile: Profile,
        passes: usize,
        watcher: &mut impl Watcher,
    ) -> Result<(Profile, u64), InputError> {
        self.begin(1, passes, "learning");
        watcher.begin(&self.facts.guest, self.seconds());
        let (mut slicer, outside) = self.slicer()?;
        let (mut slice, mut start) = (Slice::default(), None);
        while let Some(slice) = slicer.next_slice(&mut slice)? {
            profile.add(slice);
            watcher.see(slice);
            self.show(slice, &mut start);
        }
        let outside = slicer.account().outside + outside.get();
        Ok((profile.finish(), outside))
    }

    /// The second pass: every policy with every size.
    fn simulate(
        &self,
        settings: &Settings,
        sizes: &[u64],
        profile: &Profile,
    ) -> Result<(Vec<Score>, SlicerAccount), InputError> {
        self.begin(2, 2, "simulating");
        let setup = PolicySetup {
            period: self.period(),
            ..settings.setup.clone()
        };
        let mut simulations = Vec::with_capacity(sizes.len() * settings.policies.len());
        for &fast_bytes in sizes {
            for &choice in &settings.policies {
                let guest = Arc::clone(&self.facts.guest);
                let conditions = settings.conditions;
                simulations.push(Simulation::new(
                    guest,
                    fast_bytes,
                    conditions,
                    |host| match choice {
                        Choice::Online(name) => policy::make(name, host, &setup),
                        Choice::Oracle(kind) => {
                            let plan = Plan::new(kind, profile, host);
                            Ok::<_, UnknownPolicy>(Box::new(Oracle::new(Arc::new(plan))))
                        }
                    },
                )?);
            }
        }
        let (mut slicer, outside) = self.slicer()?;
        let mut start = None;
        lockstep::run(&mut simulations, || {
            let batch = next_batch(&mut slicer)?;
            if let Some(last) = batch.last() {
                self.show(last, &mut start);
            }
            Ok::<_, InputError>(batch)
        })?;
        let start = start.unwrap_or_default();
        let phases: Vec<Time> = self
            .facts
            .phases
            .iter()
            .map(|phase| start + phase.since(start).mul_f64(self.stretch))
            .collect();
        let scores = simulations.into_iter();
        let scores = scores.map(|simulation| simulation.finish(&phases));
        let mut account = slicer.account();
        account.outside += outside.get();
        Ok((scores.collect(), account))
    }

    fn trace(&self, settings: &Settings, account: &SlicerAccount, sizes: &[u64]) -> Trace {
        let guest = &self.facts.guest;
        let mut trace = Trace {
            trace: self.name.clone(),
            seconds: self.seconds(),
            stretched: self.stretch,
            guest_bytes: guest.bytes(),
            pages: guest.pages(),
            accesses: account.accesses,
            touched_only: self.facts.touched_only,
            outside: account.outside + self.facts.outside,
            period: self.period(),
            samples_recorded: self.is_recording(),
            notes: self.facts.notes.clone(),
        };
        if self.stretch != 1.0 {
            trace.notes.push(format!(
                "the trace took {:.3?} and is played {} times slower, for policies count in seconds; --stretch 1 \
                 plays it as it was",
                self.facts.duration,
                count(self.stretch.round() as u64),
            ));
        }
        let most = sizes.last().copied().unwrap_or(0);
        let samples = match self.is_recording() {
            true => account.records,
            false => account.sampled,
        };
        let few = few_samples::note(&trace, samples, most, settings.setup.half_life);
        trace.notes.extend(few);
        trace
    }
}

/// A note for readers if the oracle had too little memory.
fn coarse(profile: &Profile) -> Option<String> {
    profile.is_short_of_memory().then(|| {
        format!(
            "the oracle knows the future in epochs of {} s, for its memory is short: with more (--memory) it may do \
             better, and all shares of it be less",
            profile.epoch().as_secs()
        )
    })
}

/// The factor by which a trace of this length is slowed down.
fn stretch_for(duration: Duration) -> f64 {
    let seconds = duration.as_secs_f64();
    if seconds > 0.0 && duration < LONG_ENOUGH {
        LONG_ENOUGH.as_secs_f64() / seconds
    } else {
        1.0
    }
}

/// The sizes of DRAM in bytes, rising, each once.
fn sizes(settings: &Settings, facts: &Facts) -> Result<Vec<u64>, InputError> {
    let guest_bytes = facts.guest.bytes();
    let smallest = facts.guest.ranges().map(|range| range.page_bytes).min();
    let page_bytes = smallest.unwrap_or(0);
    let sizes = settings.fast.iter().map(|size| {
        let bytes = size.bytes(guest_bytes);
        if bytes < page_bytes {
            let size = size.to_string();
            return Err(InputError::NoPage {
                size,
                guest_bytes,
                page_bytes,
            });
        }
        Ok(bytes)
    });
    let mut sizes = sizes.collect::<Result<Vec<u64>, _>>()?;
    sizes.sort_unstable();
    sizes.dedup();
    Ok(sizes)
}

fn next_batch(slicer: &mut Slicer<AnyAccesses>) -> Result<Vec<Slice>, InputError> {
    let mut batch = Vec::with_capacity(BATCH_SLICES);
    let mut entries = 0;
    while batch.len() < BATCH_SLICES && entries < BATCH_ENTRIES {
        let mut slice = Slice::default();
        if slicer.next_slice(&mut slice)?.is_none() {
            break;
        }
        entries += slice.touched.len() + slice.samples.len();
        batch.push(slice);
    }
    Ok(batch)
}
