//! The result of a scenario: what was measured, in one JSON object.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::checks::{CheckResult, evaluate};
use crate::event::{
    AgentEnd, AttemptOutcome, Costs, Event, HostFacts, Look, Mark, PmuCounts, PoolSample, Sample,
};
use crate::fault::{End, Fault};
use crate::patience::Pace;
use crate::scenario::{Run, Scenario, Step};
use crate::shares::HostPoint;
use crate::summary::Summary;

/// The kernel counts migrations in base pages.
const PAGE_BYTES: u64 = 4096;
/// The result of a scenario.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ScenarioResult {
    /// The scenario's name.
    pub scenario: String,
    /// Its title.
    pub title: String,
    /// Whether everything that had to hold did.
    pub pass: bool,
    /// Why the scenario could not be finished.
    pub error: Option<String>,
    /// How the emulator came to its end.
    pub end: End,
    /// From the start of the emulator to its end.
    pub seconds: f64,
    /// How many times as long as on the reference machine the boot took.
    pub pace: Option<f64>,
    /// Earlier tries of the scenario that a fault of the emulator ended.
    pub retries: Vec<Retry>,
    /// Versions of what took part.
    pub versions: BTreeMap<String, String>,
    /// The emulated host.
    pub host: Option<HostFacts>,
    /// One entry a run.
    pub runs: Vec<RunResult>,
}

/// A try that a fault of the emulator ended.
#[derive(Debug, Clone, Serialize)]
pub struct Retry {
    /// The fault.
    pub fault: Fault,
    /// How long the try took.
    pub seconds: f64,
}

/// The result of one run.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RunResult {
    /// Its name.
    pub run: String,
    /// Whether all its checks passed.
    pub pass: bool,
    /// Why it could not be finished.
    pub error: Option<String>,
    /// By guest.
    pub summary: BTreeMap<String, Summary>,
    /// What had to hold.
    pub checks: Vec<CheckResult>,
    /// By guest: whether no byte was lost.
    pub integrity: BTreeMap<String, bool>,
    /// Moments: seconds, what, guest.
    pub marks: Vec<(f64, Mark, String)>,
    /// Findings of steps.
    pub notes: Vec<Note>,
    /// How agents ended, in order.
    pub agent_ends: Vec<AgentEnd>,
    /// How attempts ended, in order.
    pub attempts: Vec<AttemptOutcome>,
    /// What looks found, in order.
    pub looks: Vec<Look>,
    /// What guests and agents cost, in order.
    pub costs: Vec<Costs>,
    /// The measurements of each second.
    pub series: Vec<Point>,
    #[serde(skip)]
    ended: bool,
    #[serde(skip)]
    phase: String,
}

/// A finding of a step.
#[derive(Debug, Clone, Serialize)]
pub struct Note {
    /// When.
    pub t: f64,
    /// What.
    pub name: String,
    /// The finding.
    pub value: Value,
}

/// The measurements of one second.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Point {
    /// Seconds since the start of the run.
    pub t: f64,
    /// The phase that a wait step named.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// How long the measuring itself took.
    pub took_ms: f64,
    /// Share of its time that the emulator waited for a CPU of the developer's machine.
    pub emulator_wait_share: f64,
    /// Free memory of node 0.
    pub fast_free_mib: f64,
    /// Bytes that the kernel has migrated since boot, by whatever means.
    pub migrated_bytes: u64,
    /// The same for migrations that failed.
    pub migrate_failed_bytes: u64,
    /// Promotions by kernel tiering since boot.
    pub kernel_promoted_bytes: u64,
    /// CPU time of the kdamonds there are.
    pub kdamond_cpu_s: f64,
    /// The pool of 2 MiB pages of each node; empty if no node has such pages.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolSample>,
    /// By name.
    pub guests: BTreeMap<String, GuestPoint>,
    /// What the software PMU has written, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pmu: Option<PmuCounts>,
    /// What the host daemon says, while there is one that answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<HostPoint>,
    /// CPU time of the host daemon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_cpu_s: Option<f64>,
}

/// One guest in one second.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestPoint {
    /// Share of the hot set on node 0.
    pub hot_share: Option<f64>,
    /// Bytes of the hot set on other nodes.
    pub hot_slow_bytes: u64,
    /// The workload's throughput.
    pub updates_per_s: Option<f64>,
    /// The longest time in milliseconds in which a batch of accesses did not end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap_ms: Option<u64>,
    /// Bytes of its memory on node 0, as the kernel says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dram_bytes: Option<u64>,
    /// As the agent says.
    pub promoted_bytes: Option<u64>,
    /// As the agent says.
    pub demoted_bytes: Option<u64>,
    /// As the agent says.
    pub state: Option<String>,
    /// CPU time of the agent.
    pub agent_cpu_s: Option<f64>,
    /// Accesses to node 0 in the last second, counted by the software PMU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accesses_fast: Option<u64>,
    /// The same to other nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accesses_slow: Option<u64>,
    /// As the agent says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hit_ratio: Option<f64>,
    /// Of the agent's memory of accesses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_life_s: Option<f64>,
}

impl ScenarioResult {
    /// Takes an event in. Events before the first run belong to the scenario.
    pub fn take(&mut self, event: Event) {
        match event {
            Event::Booted(facts) => {
                self.pace = Some(Pace::of_boot(facts.boot_s).factor());
                self.host = Some(facts);
            }
            Event::RunStarted { run } => self.runs.push(RunResult {
                run,
                ..RunResult::default()
            }),
            Event::Failed { error } => self.error = Some(error),
            event => {
                if let Some(run) = self.runs.last_mut() {
                    run.take(event);
                }
            }
        }
    }

    /// Notes for the last second how much the emulator had to wait for a CPU.
    pub fn emulator_waited(&mut self, share: f64) {
        let point = self.runs.last_mut().and_then(|run| run.series.last_mut());
        if let Some(point) = point {
            point.emulator_wait_share = share.clamp(0.0, 0.99);
        }
    }

    /// Computes the summaries and checks once all events are in.
    pub fn conclude(&mut self, scenario: &Scenario) {
        for run in &scenario.runs {
            if !self.runs.iter().any(|found| found.run == run.name) {
                self.runs
                    .push(RunResult::failed(&run.name, "was not reached"));
            }
        }
        for result in &mut self.runs {
            if let Some(run) = scenario.runs.iter().find(|run| run.name == result.run) {
                result.conclude(run);
            }
        }
        self.pass = self.error.is_none() && self.runs.iter().all(|run| run.pass);
    }
}

impl RunResult {
    /// A run that could not be finished.
    pub(crate) fn failed(name: &str, error: &str) -> Self {
        Self {
            run: name.to_owned(),
            error: Some(error.to_owned()),
            ..Self::default()
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Mark { t, mark, guest } => self.marks.push((t, mark, guest)),
            Event::Phase { phase, .. } => self.phase = phase,
            Event::Sample(sample) => self.series.push(point(&sample, &self.phase)),
            Event::Note { t, name, value } => self.notes.push(Note { t, name, value }),
            Event::AgentEnd(end) => self.agent_ends.push(end),
            Event::Attempt(outcome) => self.attempts.push(outcome),
            Event::Look(look) => self.looks.push(look),
            Event::Costs(costs) => self.costs.push(costs),
            Event::Integrity { guest, ok, .. } => {
                self.integrity.insert(guest, ok);
            }
            Event::RunEnded { error, .. } => {
                self.ended = true;
                self.error = error;
            }
            Event::Booted(_)
            | Event::RunStarted { .. }
            | Event::Progress { .. }
            | Event::Log { .. }
            | Event::Done
            | Event::Failed { .. } => {}
        }
    }

    fn conclude(&mut self, run: &Run) {
        if !self.ended && self.error.is_none() {
            self.error = Some("the emulated host ended in the middle of the run".to_owned());
        }
        for guest in &run.guests {
            if let Some(summary) = self.summarize(&guest.name) {
                self.summary.insert(guest.name.clone(), summary);
            }
        }
        let error = self.error.as_deref();
        let mut checks = vec![match &run.fails_with {
            None => CheckResult::new(
                "run finished",
                error.unwrap_or("yes"),
                "all steps done",
                error.is_none(),
            ),
            Some(text) => CheckResult::new(
                "run refused",
                error.unwrap_or("no: all steps done"),
                format!("an error that says '{text}'"),
                error.is_some_and(|error| error.contains(text)),
            ),
        }];
        if run
            .steps
            .iter()
            .any(|step| matches!(step, Step::StartAgent { .. }))
        {
            let ready = self
                .marks
                .iter()
                .any(|(_, mark, _)| *mark == Mark::AgentReady);
            checks.push(CheckResult::new(
                "agent started",
                if ready { "yes" } else { "no" },
                "its control socket answers",
                ready,
            ));
        }
        checks.extend(run.checks.iter().map(|check| evaluate(check, run, self)));
        self.pass = checks.iter().all(|check| check.pass);
        self.checks = checks;
    }
}

fn point(sample: &Sample, phase: &str) -> Point {
    let guests = sample.guests.iter().map(|(name, guest)| {
        let slow = guest.hot_pages.iter().skip(1).sum::<u64>() + guest.hot_absent;
        let agent = guest.agent.as_ref();
        let point = GuestPoint {
            hot_share: guest.share(),
            hot_slow_bytes: slow * PAGE_BYTES,
            updates_per_s: guest.updates_per_s,
            gap_ms: guest.gap_ms,
            dram_bytes: guest.dram_bytes,
            promoted_bytes: agent.and_then(|agent| agent.promoted_bytes),
            demoted_bytes: agent.and_then(|agent| agent.demoted_bytes),
            state: agent.and_then(|agent| agent.state.clone()),
            agent_cpu_s: agent.map(|agent| agent.cpu_s),
            accesses_fast: guest.accesses.map(|accesses| accesses.fast),
            accesses_slow: guest.accesses.map(|accesses| accesses.slow),
            hit_ratio: agent.and_then(|agent| agent.hit_ratio),
            half_life_s: agent.and_then(|agent| agent.half_life_s),
        };
        (name.clone(), point)
    });
    Point {
        t: sample.t,
        phase: phase.to_owned(),
        took_ms: sample.took_ms,
        emulator_wait_share: 0.0,
        fast_free_mib: sample.free_kib.first().copied().unwrap_or(0) as f64 / 1024.0,
        migrated_bytes: sample.migrated_pages * PAGE_BYTES,
        migrate_failed_bytes: sample.migrate_failed_pages * PAGE_BYTES,
        kernel_promoted_bytes: sample.kernel_promoted_pages * PAGE_BYTES,
        kdamond_cpu_s: sample.kdamond_cpu_s,
        pools: sample.pools.clone(),
        guests: guests.collect(),
        pmu: sample.pmu,
        host: sample.host.as_ref().map(HostPoint::read),
        host_cpu_s: sample.host_cpu_s,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::event::{Accesses, AgentSample, GuestSample};

    /// Ten seconds without an agent at 1000 updates a second, then thirty with one that lifts
    /// 8000 slow pages of 10 000 within five seconds, at 990 updates a second.
    pub(crate) fn lifted() -> RunResult {
        let mut run = RunResult::default();
        let mark = |mark, t| Event::Mark {
            t,
            mark,
            guest: "guest".to_owned(),
        };
        run.take(mark(Mark::WorkReady, 0.5));
        run.take(mark(Mark::AgentStarted, 10.5));
        run.take(mark(Mark::AgentReady, 10.9));
        for second in 1..=40_u64 {
            let lifted = (second.saturating_sub(10) * 1600).min(8000);
            let with_agent = second > 10;
            run.take(Event::Sample(Sample {
                t: second as f64,
                free_kib: vec![10_240, 0],
                migrated_pages: 500 + 2 * lifted,
                guests: BTreeMap::from([(
                    "guest".to_owned(),
                    GuestSample {
                        hot_pages: vec![2000 + lifted, 8000 - lifted],
                        updates_per_s: Some(if with_agent { 990.0 } else { 1000.0 }),
                        gap_ms: Some(if second == 15 { 130 } else { 20 }),
                        agent: with_agent.then(|| AgentSample {
                            cpu_s: (second - 10) as f64 * 0.05,
                            promoted_bytes: Some(lifted * 4096),
                            demoted_bytes: Some(lifted * 4096),
                            state: Some("active".to_owned()),
                            hit_ratio: Some(0.9),
                            half_life_s: Some(8.0),
                        }),
                        accesses: Some(Accesses {
                            fast: 2000 + lifted,
                            slow: 8000 - lifted,
                        }),
                        ..GuestSample::default()
                    },
                )]),
                ..Sample::default()
            }));
        }
        run.take(Event::Integrity {
            guest: "guest".to_owned(),
            ok: true,
            updates: 1,
        });
        run.take(Event::RunEnded {
            run: String::new(),
            error: None,
        });
        run
    }

    #[test]
    fn run_when_it_must_fail_passes_only_with_that_error() {
        let scenario: Scenario = toml::from_str(
            "title = 'x'\nexpect-s = 1\n[[runs]]\nname = ''\nsteps = []\nfails-with = 'too small'\n",
        )
        .unwrap();
        let pass = |error: Option<&str>| {
            let mut result = ScenarioResult::default();
            result.runs.push(RunResult {
                ended: true,
                error: error.map(str::to_owned),
                ..RunResult::default()
            });
            result.conclude(&scenario);
            result.pass
        };

        assert!(pass(Some("the memory is too small")));
        assert!(!pass(Some("something else")));
        assert!(!pass(None));
    }

    #[test]
    fn result_when_a_run_was_not_reached_does_not_pass() {
        let scenario: Scenario =
            toml::from_str("title = 'x'\nexpect-s = 1\n[[runs]]\nname = 'a'\nsteps = []\n")
                .unwrap();
        let mut result = ScenarioResult::default();

        result.conclude(&scenario);

        assert!(!result.pass);
        assert_eq!(result.runs[0].error.as_deref(), Some("was not reached"));
    }
}
