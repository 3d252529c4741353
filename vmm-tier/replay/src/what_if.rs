//! What-if for a host: recorded guests share DRAM by the real arbiter. Who fits, who suffers, and how
//! many fit?
//!
//! ```text
//! recordings ─► heat: demand curves over time ─► host: the arbiter deals, guests follow ─► report
//! ```
//!
//! A guest that has its share has the pages there that were hottest before. Modelled: guests whose heat
//! comes at different times, measurements that are late, shares that change hands at the arbiter's pace.
//! Not modelled: single pages, the cost of moves to guests, bandwidth.

mod args;
mod charts;
mod error;
mod guests;
mod heat;
mod host;
mod recording;
pub mod report;
#[cfg(any(feature = "charts", test))]
mod svg;
mod text;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tier_core::{
    arbiter::{Mode, Rules, Terms, Vm, admit},
    latency::Latency,
    text::size::{Size, human},
};

pub use self::{
    args::WhatIfArgs,
    error::WhatIfError,
    report::{AddedGuest, WhatIf},
};
use self::{
    guests::Group,
    host::{Candidate, Host},
    recording::{Limits, Recording},
    report::{WhatIfDensity, WhatIfHost},
};
use crate::{
    comparison::{fast::FastSize, input::Bounds, progress::Progress},
    sharing::Curves,
    trace::{Format, Options},
};

/// The shortest recording that tells something: a half-life of heat.
pub const MIN_SECONDS: f64 = 10.0;
/// Amounts of DRAM that are compared.
const MOST_SIZES: usize = 64;
/// Amounts of DRAM of a picture.
const PICTURE_SIZES: u64 = 24;
/// The loss, and the share of accesses, that a guest which is added is judged by.
const LOSS: f64 = 0.05;
const TARGET: f64 = 0.95;

/// Lets recorded guests share DRAM as the arguments say. Writes the picture that they ask for; returns
/// what is to be printed.
///
/// # Errors
/// If the arguments make no sense, a recording can't be read or is too short, or the picture can't be
/// drawn or written.
pub fn run(args: &WhatIfArgs) -> Result<String, WhatIfError> {
    if args.svg.is_some() {
        charts::check()?;
    }
    let progress = Progress::new(args.quiet);
    let answer = answer(args, &progress);
    progress.end();
    let (answer, curve) = answer?;
    if let (Some(path), Some(curve)) = (&args.svg, &curve) {
        let picture = charts::picture(&answer, curve)?;
        std::fs::write(path, picture).map_err(|source| WhatIfError::Write {
            path: path.clone(),
            source,
        })?;
    }
    Ok(match args.json {
        true => serde_json::to_string_pretty(&answer)? + "\n",
        false => text::text(&answer),
    })
}

/// The answer; and what a picture shows, if there is to be one.
fn answer(
    args: &WhatIfArgs,
    progress: &Progress,
) -> Result<(WhatIf, Option<Vec<WhatIfHost>>), WhatIfError> {
    let groups = guests::read(args, progress)?;
    let host = host_of(args);
    let candidates: Vec<Candidate> = groups
        .iter()
        .flat_map(|group| group.guests.clone())
        .collect();
    let sizes = sizes(&args.dram, &groups)?;
    let spread = !args.in_step;
    let mut hosts: Vec<WhatIfHost> = Vec::new();
    for (number, &dram_bytes) in sizes.iter().enumerate() {
        let mut step = Step::new(progress, dram_bytes, (number, sizes.len()), groups.len());
        step.next();
        let mut with = host.with(dram_bytes, &candidates);
        let before = hosts.last();
        for (at, group) in groups.iter().enumerate() {
            step.next();
            // What fits in less DRAM fits in more.
            let from = before.map_or(0, |host| host.density[at].guests);
            // The first guest's terms, and its beginning.
            let first = &group.guests[..1];
            with.density.push(WhatIfDensity {
                name: group.name.clone(),
                guests: host.times(dram_bytes, first, spread, from),
            });
        }
        step.next();
        let from = before.and_then(|host| host.all_fit_times).unwrap_or(0);
        with.all_fit_times = Some(host.times(dram_bytes, &candidates, spread, from));
        hosts.push(with);
    }
    let curve = args
        .svg
        .is_some()
        .then(|| curve(&host, &sizes, &candidates, progress));
    let recordings = groups.iter().map(|group| {
        let cpus = group.guests[0].vcpu_s_per_s;
        group
            .recording
            .report(&group.name, group.guests.len(), cpus, &host.limits)
    });
    let answer = WhatIf {
        mode: args.mode,
        band: args.band,
        loss_limit: args.loss,
        target_ratio: args.target,
        seconds: host::seconds(&candidates),
        fast_ns: host.limits.latency.fast_ns,
        slow_ns: host.limits.latency.slow_ns,
        recordings: recordings.collect(),
        hosts,
        notes: notes(args, &groups),
    };
    Ok((answer, curve))
}

fn host_of(args: &WhatIfArgs) -> Host {
    let latency = Latency::default();
    Host {
        rules: Rules {
            mode: args.mode,
            band: args.band,
            saved_per_hit: latency.saved_per_hit(),
            ..Rules::default()
        },
        limits: Limits {
            target_ratio: args.target,
            loss: args.loss,
            latency,
        },
    }
}

/// The amounts of DRAM, rising, each once.
fn sizes(dram: &[FastSize], groups: &[Group]) -> Result<Vec<u64>, WhatIfError> {
    if dram.len() > MOST_SIZES {
        return Err(WhatIfError::Sizes {
            sizes: dram.len(),
            most: MOST_SIZES,
        });
    }
    let memory: u64 = groups
        .iter()
        .map(|group| group.recording.memory_bytes * group.guests.len() as u64)
        .sum();
    let sizes = dram.iter().map(|&size| {
        let bytes = match size {
            // A host may have more DRAM than these guests have memory.
            FastSize::Size(Size::Bytes(bytes)) => bytes,
            part => part.bytes(memory),
        };
        match bytes < tier_core::addr::BASE_PAGE {
            true => Err(WhatIfError::NoDram {
                size: size.to_string(),
                memory: human(memory),
            }),
            false => Ok(bytes),
        }
    });
    let mut sizes = sizes.collect::<Result<Vec<u64>, _>>()?;
    sizes.sort_unstable();
    sizes.dedup();
    Ok(sizes)
}

/// Hosts with DRAM up to the most that was asked for.
fn curve(
    host: &Host,
    sizes: &[u64],
    candidates: &[Candidate],
    progress: &Progress,
) -> Vec<WhatIfHost> {
    let most = sizes.last().copied().unwrap_or(0);
    progress.begin("picture", "sharing");
    let sizes = (1..=PICTURE_SIZES).map(|step| most / PICTURE_SIZES * step);
    sizes
        .enumerate()
        .map(|(done, bytes)| {
            progress.set(done as f64, PICTURE_SIZES as f64);
            host.with(bytes, candidates)
        })
        .collect()
}

fn notes(args: &WhatIfArgs, groups: &[Group]) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for group in groups {
        if !seen.contains(&group.recording.file.as_str()) {
            seen.push(&group.recording.file);
            notes.extend(group.recording.notes.iter().cloned());
        }
    }
    let guests = || groups.iter().flat_map(|group| &group.guests);
    if guests().any(|guest| guest.vcpu_s_per_s.is_none()) {
        notes.push(
            "slowdown is the worst case, of a guest that only waits for memory; --cpus tells how busy its CPUs were"
                .to_owned(),
        );
    }
    let uncounted = |group: &&Group| !group.recording.counts_accesses;
    for group in groups.iter().filter(uncounted) {
        let is_used = group
            .guests
            .iter()
            .any(|guest| guest.vcpu_s_per_s.is_some());
        if is_used || args.mode == Mode::Utility {
            notes.push(format!(
                "{}: its accesses a second are not those of the guest, so --cpus and the mode utility can't rest on them",
                group.recording.file
            ));
        }
    }
    notes
}

/// How far the work for an amount of DRAM is.
struct Step<'a> {
    progress: &'a Progress,
    done: usize,
    all: usize,
}

impl<'a> Step<'a> {
    fn new(
        progress: &'a Progress,
        dram_bytes: u64,
        (number, sizes): (usize, usize),
        groups: usize,
    ) -> Self {
        let each = groups + 2;
        progress.begin(&format!("{} of DRAM", human(dram_bytes)), "sharing");
        Self {
            progress,
            done: number * each,
            all: sizes * each,
        }
    }

    fn next(&mut self) {
        self.progress.set(self.done as f64, self.all as f64);
        self.done += 1;
    }
}

/// A host as it is.
#[derive(Clone, Debug)]
pub struct HostNow {
    /// What its arbiter goes by.
    pub rules: Rules,
    /// DRAM that VMs share, in bytes.
    pub pool_bytes: u64,
    /// How fast its tiers are.
    pub latency: Latency,
    /// Its VMs, as they were measured last.
    pub vms: BTreeMap<String, Vm>,
}

/// A guest that might be added to a host.
#[derive(Clone, Copy, Debug)]
pub struct NewGuest<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it does: a trace of `vmm-tier record`.
    pub recording: &'a Path,
    /// DRAM that is guaranteed to it, in bytes.
    pub guarantee_bytes: u64,
    /// The most DRAM that it may have, in bytes; all of its memory if that is not said.
    pub cap_bytes: Option<u64>,
    /// Its weight.
    pub weight: f64,
    /// The share of its accesses that DRAM shall serve.
    pub goal: Option<f64>,
    /// How long its virtual CPUs ran in a second while it was recorded, if that is known.
    pub vcpu_s_per_s: Option<f64>,
}

/// Pages of a guest that is added, at most: 64 GiB of 4 KiB pages, for which some 300 MiB are taken.
const MOST_PAGES: u32 = 1 << 24;
/// Bytes for which of its pages were used when.
const MEMORY_BYTES: usize = 128 << 20;

/// What a host would be with another guest. Its VMs go on as they were measured last. Reading the
/// recording takes no longer than `limit`, and the rest some seconds with 1,000 VMs.
///
/// # Errors
/// If the recording can't be read within the limit, is too short, or its guest has too many pages; or if
/// the terms make no sense. A guest that would not be admitted is no error.
pub fn add_guest(
    host: &HostNow,
    guest: &NewGuest<'_>,
    limit: Duration,
) -> Result<AddedGuest, WhatIfError> {
    let bounds = Bounds {
        most_pages: MOST_PAGES,
        memory_bytes: MEMORY_BYTES,
        until: Some((Instant::now() + limit, limit)),
    };
    let options = Options::default();
    let file = (guest.recording, Format::Native);
    let recording = Recording::read(file, options, bounds, &Progress::new(true))?;
    let memory = recording.memory_bytes;
    let new = Candidate {
        name: guest.name.to_owned(),
        terms: Terms {
            guarantee_bytes: guest.guarantee_bytes,
            cap_bytes: guest.cap_bytes.unwrap_or(memory).min(memory),
            weight: guest.weight,
            page_bytes: recording.page_bytes,
            goal: guest.goal,
        },
        curves: Arc::clone(&recording.curves),
        offset_s: 0,
        vcpu_s_per_s: guest.vcpu_s_per_s,
    };
    admit(u64::MAX, [], guest.name, &new.terms)?;
    let judge = Host {
        rules: host.rules,
        limits: Limits {
            target_ratio: TARGET,
            loss: LOSS,
            latency: host.latency,
        },
    };
    let mut candidates: Vec<Candidate> = host
        .vms
        .iter()
        .map(|(name, vm)| Candidate {
            name: name.clone(),
            terms: vm.terms.clone(),
            curves: Arc::new(Curves::steady(vm.curve.clone())),
            offset_s: 0,
            vcpu_s_per_s: Some(vm.vcpu_s_per_s),
        })
        .collect();
    let now = judge.with(host.pool_bytes, &candidates);
    candidates.push(new);
    let then = judge.with(host.pool_bytes, &candidates);
    Ok(AddedGuest {
        recording: recording.report(guest.name, 1, guest.vcpu_s_per_s, &judge.limits),
        now,
        then,
        notes: recording.notes,
    })
}
