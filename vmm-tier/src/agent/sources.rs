//! The agent's sources: a thread each, and the selection that says which of them work and which is believed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, Sender, bounded};
use tier_core::{
    engine::{Event, SourceStats, VmEngine},
    map::GuestMemoryMap,
    moves::{MoveReport, Outcome},
    sample::{SampleAccount, SampleBatch, Sight, SourceKind},
    source_selection::{Health, HealthWord, SourceSelection, SourceStatus, Step},
};
use tier_sys::{process, sysroot::SysRoot};

use super::{Agent, log_once::LogOnce};
use crate::source::{
    Candidate, Setup,
    thread::{QUEUE, Report, SourceThread},
};

/// How often the selection looks at what the sources deliver.
const LOOK: Duration = Duration::from_secs(1);
/// Below this share of one core the guest's CPUs have nothing to do: no source can be blamed for
/// silence.
const IDLE: f64 = 0.01;

tier_core::report! {
    /// A source and what became of its records. `samples` is `accepted` plus all `dropped`.
    #[derive(Clone, Debug)]
    pub(super) struct SourceReport = "TierSource" {
        /// What it is; absent where no source may be believed.
        kind: Option<SourceKind>,
        /// What became of its records.
        #[serde(flatten)]
        account: SampleAccount,
        /// Why no source is believed, if so.
        down: Option<String>,
    }
}

tier_core::report! {
    /// A source that may be believed: what it sees, how good it is, and what became of its records.
    /// `samples` is `accepted` plus all `dropped`.
    #[derive(Clone, Debug)]
    pub(super) struct SourceHealth = "TierSourceHealth" {
        /// What it is.
        #[metric(label = "source")]
        kind: SourceKind,
        /// How the source does; `resting` where another serves better.
        #[metric(states = "source_health")]
        health: HealthWord,
        /// What is wrong with it, if something is.
        #[metric(exempt = "text; `vmm_tier_source_health` has the word")]
        reason: Option<String>,
        /// Whether pages are moved by its samples.
        #[metric(gauge = "source_believed")]
        believed: bool,
        /// Which accesses the source sees; absent before it was opened.
        #[metric(info = "source")]
        sees: Option<Sight>,
        /// What it is, for people.
        #[metric(exempt = "text")]
        label: String,
        /// The source's quality in its last trial, 0 to 1: the product of precision, coverage, freshness
        /// and number of records; absent before a trial.
        #[metric(gauge = "source_quality_ratio")]
        quality: Option<f64>,
        /// Useful records a second, in its last trial.
        #[metric(gauge = "source_trial_records_per_second")]
        accepted_per_s: f64,
        /// How exact the source's addresses are: 1 for a page of 4 KiB, 1 / (1 + log2 n) for n such
        /// pages; absent before the source has counted an access.
        #[metric(gauge = "source_precision_ratio")]
        precision: Option<f64>,
        /// The share of the guest that the source watches; absent before the source has delivered.
        #[metric(gauge = "source_coverage_ratio")]
        coverage: Option<f64>,
        /// How old its samples are on arrival, on average; absent before the source has delivered.
        #[metric(gauge = "source_staleness_seconds")]
        staleness_ms: Option<f64>,
        /// What became of its records.
        #[serde(flatten)]
        account: SampleAccount,
    }
}

/// See the [module](self).
pub(super) struct Sources {
    threads: BTreeMap<SourceKind, SourceThread>,
    reports: Receiver<(SourceKind, Report)>,
    selection: SourceSelection,
    root: SysRoot,
    pid: u32,
    vcpus: Vec<u32>,
    /// The guest's CPUs are not stopped.
    runs: bool,
    next_look: Instant,
    /// CPU time of the guest's CPUs, and when it was read.
    busy: Option<(Duration, Instant)>,
    /// How many CPUs' time they used between the last two looks.
    cpus_used: Option<f64>,
    /// What is wrong with each source.
    trouble: BTreeMap<SourceKind, LogOnce>,
    /// Why none is believed.
    blindness: LogOnce,
}

impl Sources {
    /// Starts a thread for each candidate.
    pub(super) fn start(
        candidates: Vec<Candidate>,
        setup: &Setup,
        map: &Arc<GuestMemoryMap>,
    ) -> std::io::Result<Self> {
        let (out, reports) = bounded(QUEUE);
        let slowest = setup.damon.aggregation;
        // Twice the time of a turn: a turn may come to nothing.
        let at_rest = slowest * setup.quiet_factor * 2;
        let kinds: Vec<_> = candidates.iter().map(|candidate| candidate.kind).collect();
        let mut threads = BTreeMap::new();
        for Candidate { kind, open } in candidates {
            let out: Sender<_> = out.clone();
            let thread = SourceThread::start(kind, open, setup.clone(), Arc::clone(map), out)?;
            threads.insert(kind, thread);
        }
        Ok(Self {
            threads,
            reports,
            selection: SourceSelection::new(kinds, slowest, at_rest, process::now()),
            root: setup.root.clone(),
            pid: setup.pid,
            vcpus: setup.vcpus.clone(),
            runs: true,
            next_look: Instant::now() + LOOK,
            busy: None,
            cpus_used: None,
            trouble: BTreeMap::new(),
            blindness: LogOnce::default(),
        })
    }

    /// Where samples and changes of state arrive.
    pub(super) const fn reports(&self) -> &Receiver<(SourceKind, Report)> {
        &self.reports
    }

    pub(super) fn set_map(&self, map: &Arc<GuestMemoryMap>) {
        for thread in self.threads.values() {
            thread.set_map(Arc::clone(map));
        }
    }

    pub(super) fn set_quiet(&mut self, quiet: bool) {
        self.selection.set_quiet(process::now(), quiet);
        for thread in self.threads.values() {
            thread.set_quiet(quiet);
        }
    }

    /// The guest's CPUs are stopped, or run.
    pub(super) const fn set_runs(&mut self, runs: bool) {
        self.runs = runs;
    }

    /// The guest's CPUs run in these threads.
    pub(super) fn set_vcpus(&mut self, tids: Vec<u32>) {
        if self.vcpus != tids {
            for thread in self.threads.values() {
                thread.set_vcpus(tids.clone());
            }
            self.vcpus = tids;
            self.busy = None;
        }
    }

    /// Passes on which pages were moved.
    pub(super) fn moved(&self, report: &MoveReport) {
        let moved = report.results.iter();
        let moved = moved.filter(|result| result.outcome == Outcome::Moved);
        let pages: Vec<_> = moved
            .map(|result| (result.page.hva, result.page.bytes))
            .collect();
        if pages.is_empty() {
            return;
        }
        for thread in self.threads.values() {
            thread.moved(pages.clone());
        }
    }

    /// Whether the guest's CPUs did anything since the last look. Where that can't be read they did.
    fn is_busy(&mut self) -> bool {
        let time = |&tid| process::thread_stat(&self.root, self.pid, tid).map(|stat| stat.cpu_time);
        let used: Option<Duration> = match self.vcpus.as_slice() {
            [] => None,
            vcpus => vcpus.iter().map(time).sum::<Result<_, _>>().ok(),
        };
        let now = Instant::now();
        let before = std::mem::replace(&mut self.busy, used.map(|used| (used, now)));
        self.cpus_used = used.zip(before).map(|(used, (before, at))| {
            let elapsed = now.duration_since(at).as_secs_f64();
            used.saturating_sub(before).as_secs_f64() / elapsed.max(f64::MIN_POSITIVE)
        });
        self.cpus_used.is_none_or(|cpus| cpus >= IDLE)
    }

    fn up(&mut self, kind: SourceKind, sight: Sight, label: String) -> Vec<Step> {
        self.selection.up(process::now(), kind, sight, label)
    }

    fn down(&mut self, kind: SourceKind, reason: String) -> Vec<Step> {
        self.selection.down(process::now(), kind, reason)
    }

    fn lost(&mut self, kind: SourceKind) -> Vec<Step> {
        self.threads.remove(&kind);
        let reason = "its thread ended: start the agent again, and report what it printed";
        self.down(kind, reason.to_owned())
    }

    /// What is due now, if a look is.
    fn look<'a>(
        &mut self,
        tick: Instant,
        stats: impl Iterator<Item = (SourceKind, &'a SourceStats)>,
    ) -> Option<Vec<Step>> {
        if tick < self.next_look {
            return None;
        }
        // Counted from the tick: an agent at rest has one in this time.
        self.next_look = tick + LOOK;
        let now = process::now();
        let runs = self.runs && self.is_busy();
        self.selection.set_guest_runs(now, runs);
        Some(self.selection.look(now, stats))
    }

    /// What is wrong with each source, while none is believed.
    pub(super) fn blind(&self) -> Option<String> {
        if self.selection.believed().is_some() {
            return None;
        }
        let troubles: Vec<String> = self
            .selection
            .statuses()
            .filter_map(|source| Some(format!("{}: {}", source.kind, source.health.reason()?)))
            .collect();
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }

    /// The source that is believed; where there is none the first candidate, which is not.
    fn kind(&self) -> Option<SourceKind> {
        let first = || self.selection.statuses().next().map(|source| source.kind);
        self.selection.believed().or_else(first)
    }

    /// The part of `query-tier` about single sources.
    pub(super) fn report<'a>(
        &self,
        stats: impl Iterator<Item = (SourceKind, &'a SourceStats)>,
    ) -> Vec<SourceHealth> {
        let stats: BTreeMap<_, _> = stats.collect();
        let report = |source: SourceStatus| {
            let stats = stats.get(&source.kind).copied().cloned();
            let stats = stats.unwrap_or_default();
            SourceHealth {
                kind: source.kind,
                health: source.health.word(),
                reason: source.health.reason().map(str::to_owned),
                believed: source.believed,
                sees: source.sight,
                label: source.label,
                quality: source.quality,
                accepted_per_s: source.accepted_per_s,
                precision: stats.precision,
                coverage: stats.coverage,
                staleness_ms: stats.staleness.map(|age| age.as_secs_f64() * 1e3),
                account: stats.account,
            }
        };
        self.selection.statuses().map(report).collect()
    }

    /// The name of the source that is believed.
    pub(super) fn believed_name(&self) -> Option<String> {
        let believed = self.selection.statuses().find(|source| source.believed);
        believed.map(|source| source.kind.to_string())
    }

    /// The part of `query-tier` about the source that is believed.
    pub(super) fn believed_report(&self, engine: &VmEngine) -> SourceReport {
        let kind = self.kind();
        let mut sources = engine.sources();
        let stats = sources.find(|(source, _)| Some(*source) == kind);
        SourceReport {
            kind,
            account: stats.map_or_else(SampleAccount::default, |(_, stats)| stats.account.clone()),
            down: self.blind(),
        }
    }
}

impl Agent {
    pub(super) fn on_source(&mut self, kind: SourceKind, report: Report) {
        let steps = match report {
            Report::Batch(batch) => {
                self.tap_batch(&batch);
                return self.step(Event::Samples(batch));
            }
            Report::Grid(batch) => return self.step(Event::Grid(batch)),
            Report::Up { sight, label } => {
                tracing::info!(vm = self.vm.name, source = %kind, "{label}");
                self.sources.up(kind, sight, label)
            }
            Report::Label(label) => return self.sources.selection.relabel(kind, label),
            Report::Down(reason) => self.sources.down(kind, reason),
            Report::Lost => {
                tracing::error!(vm = self.vm.name, source = %kind, "the source's thread ended");
                self.sources.lost(kind)
            }
        };
        self.climb(steps);
    }

    /// Lets the tap hear what the source delivers that is believed, or the only one there is.
    fn tap_batch(&mut self, batch: &SampleBatch) {
        let (Some(tap), Some(map)) = (&mut self.tap, self.engine.map()) else {
            return;
        };
        let believed = self.sources.selection.believed();
        if believed == Some(batch.source) || self.sources.selection.statuses().count() == 1 {
            tap.batch(batch, map);
        }
    }

    /// Looks at what the sources deliver, when that is due.
    pub(super) fn look_at_sources(&mut self, tick: Instant) {
        let Some(steps) = self.sources.look(tick, self.engine.sources()) else {
            return;
        };
        self.climb(steps);
        self.look_at_strain(self.sources.cpus_used.filter(|_| self.sources.runs));
    }

    fn climb(&mut self, steps: Vec<Step>) {
        // The loss of the believed source is reported once, with the source that replaces it.
        let lost = steps.iter().find_map(|step| match step {
            Step::Believe { before, .. } => *before,
            _ => None,
        });
        for step in steps {
            match step {
                Step::Work(kind, work) => {
                    tracing::debug!(vm = self.vm.name, source = %kind, work, "selection");
                    if let Some(thread) = self.sources.threads.get(&kind) {
                        thread.set_work(work);
                    }
                }
                Step::Tell(kind, _) if lost == Some(kind) => {}
                Step::Tell(kind, health) => self.tell_health(kind, &health),
                Step::Believe {
                    source,
                    before,
                    why,
                } => self.believe(source, before, &why),
            }
        }
    }

    fn believe(&mut self, source: Option<SourceKind>, before: Option<SourceKind>, why: &str) {
        // While QEMU ends, its sources do too: no cause for alarm.
        let ends = source.is_none() && self.vm.has_ended();
        if let (Some(tap), Some(_)) = (&mut self.tap, before) {
            let new = source.map_or("none", SourceKind::name);
            tap.note(&format!("source: {new}"));
        }
        match source {
            Some(kind) => {
                tracing::info!(vm = self.vm.name, source = %kind, why, "samples flow");
                self.sources.blindness.end();
            }
            None if self.sources.blindness.is_news(why) && !ends => {
                tracing::warn!(vm = self.vm.name, "blind: {why}");
            }
            None => {}
        }
        if !ends {
            self.clients.events.believed(source, before, why);
        }
        self.step(Event::Source(source));
    }

    /// The source tries again and again: what it meets is said once.
    fn tell_health(&mut self, kind: SourceKind, health: &Health) {
        let Some(reason) = health.reason() else {
            return;
        };
        let news = self
            .sources
            .trouble
            .entry(kind)
            .or_default()
            .is_news(reason);
        if news && !self.vm.has_ended() {
            tracing::warn!(vm = self.vm.name, source = %kind, "{}: {reason}", health.word());
            self.clients.events.source_fails(kind, reason);
        }
    }
}
