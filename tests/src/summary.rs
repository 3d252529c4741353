//! What the series of a run comes to: shares, bytes, throughput and CPU during tiering.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::changes::Change;
use crate::event::Mark;
use crate::result::{GuestPoint, Point, RunResult};
use crate::stats::{mean, median, standard_deviation};

/// The plateau is what the last seconds show.
pub const PLATEAU_S: f64 = 10.0;
/// Throughput varies more than placement, so it is judged over more seconds.
const THROUGHPUT_S: f64 = 25.0;
/// An idle machine shows 0.02.
const QUIET_WAIT_SHARE: f64 = 0.1;
/// As many quiet seconds give a median worth the name.
const QUIET_SECONDS: usize = 5;

/// What a guest's series comes to. Times are seconds since the start of tiering: the start of
/// the agent, or in a run without one, the end of the first touch.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Summary {
    /// Hot-set share on node 0 when tiering began.
    pub share_before: Option<f64>,
    /// After 10 s.
    pub share_at_10_s: Option<f64>,
    /// After 20 s.
    pub share_at_20_s: Option<f64>,
    /// Mean over the last 10 s.
    pub plateau_mean: Option<f64>,
    /// Standard deviation over the last 10 s.
    pub plateau_std: Option<f64>,
    /// When tiering ended.
    pub share_at_end: Option<f64>,
    /// Until the share was 0.95 for the first time.
    pub seconds_to_95: Option<f64>,
    /// Bytes that the kernel migrated since the start of tiering, by its own count.
    pub moved_bytes: Option<u64>,
    /// Promoted and demoted as the agent says.
    pub agent_moved_bytes: Option<u64>,
    /// The least that could bring the hot set to node 0: what was not there, up, and as much down.
    pub least_bytes: Option<u64>,
    /// Median updates a second before tiering and after its end.
    pub throughput_without: Option<f64>,
    /// Median updates a second over the last 25 s of tiering.
    pub throughput_plateau: Option<f64>,
    /// The second over the first, from seconds in which the emulator had its CPUs to itself if
    /// there are enough of them on both sides; else each second's throughput is first divided by
    /// the share of it in which the emulator had a CPU. Other work on the developer's machine is
    /// no cost of tiering.
    pub throughput_ratio: Option<f64>,
    /// Whether quiet seconds alone made up that ratio.
    pub throughput_quiet: bool,
    /// The ratio of all seconds as they are.
    pub throughput_ratio_raw: Option<f64>,
    /// The longest time in milliseconds in which the guest made no progress without an agent. Seconds in
    /// which the emulator waited for a CPU of the machine don't count.
    pub gap_without_ms: Option<u64>,
    /// The same during tiering.
    pub gap_ms: Option<u64>,
    /// The agent's CPU time over the time it ran.
    pub agent_cpu_share: Option<f64>,
    /// The same over the last 10 s.
    pub agent_cpu_share_plateau: Option<f64>,
    /// The kdamonds' CPU time over the same time.
    pub kdamond_cpu_share: Option<f64>,
    /// The moves of the hot set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// What each phase of tiering cost, by its name.
    pub phases: BTreeMap<String, PhaseCosts>,
}

/// What a phase of tiering cost: the stretches of that name together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PhaseCosts {
    /// How long it was.
    pub seconds: f64,
    /// The agent's CPU time over that time.
    pub agent_cpu_share: f64,
    /// The kdamonds' CPU time over that time.
    pub kdamond_cpu_share: f64,
    /// Bytes that the kernel migrated in it.
    pub moved_bytes: u64,
}

impl RunResult {
    /// When the first mark of a kind was set for a guest.
    #[must_use]
    pub fn marked(&self, wanted: Mark, guest: &str) -> Option<f64> {
        self.marks
            .iter()
            .find(|(_, mark, name)| *mark == wanted && name == guest)
            .map(|(t, _, _)| *t)
    }

    /// The start and end of tiering for a guest.
    fn span(&self, guest: &str) -> Option<(f64, f64)> {
        let start = self
            .marked(Mark::AgentStarted, guest)
            .or_else(|| self.marked(Mark::WorkReady, guest))?;
        let end = self.marked(Mark::AgentEnded, guest);
        Some((start, end.unwrap_or(f64::INFINITY)))
    }

    /// The guest's measurements during tiering: time since its start, and the point.
    #[must_use]
    pub fn tiering(&self, guest: &str) -> Vec<(f64, &Point, &GuestPoint)> {
        let Some((start, end)) = self.span(guest) else {
            return Vec::new();
        };
        self.series
            .iter()
            .filter(|point| point.t >= start && point.t <= end)
            .filter_map(|point| Some((point.t - start, point, point.guests.get(guest)?)))
            .filter(|(_, _, guest)| guest.hot_share.is_some())
            .collect()
    }

    /// The shares of the last seconds of tiering.
    #[must_use]
    pub fn last_shares(&self, guest: &str, over_s: f64) -> Vec<f64> {
        let series = self.tiering(guest);
        let Some((last, _, _)) = series.last() else {
            return Vec::new();
        };
        series
            .iter()
            .filter(|(t, _, _)| *t > last - over_s)
            .filter_map(|(_, _, guest)| guest.hot_share)
            .collect()
    }

    /// The share at the first measurement from `seconds` on.
    #[must_use]
    pub fn share_at(&self, guest: &str, seconds: f64) -> Option<f64> {
        self.tiering(guest)
            .iter()
            .find(|(t, _, _)| *t >= seconds)
            .and_then(|(_, _, guest)| guest.hot_share)
    }

    /// The summary of a guest; `None` when nothing was measured during tiering.
    pub(crate) fn summarize(&self, guest: &str) -> Option<Summary> {
        let (start, end) = self.span(guest)?;
        let series = self.tiering(guest);
        let (first_t, first, first_guest) = *series.first()?;
        let (last_t, last, last_guest) = *series.last()?;
        // What was measured just before tiering began; in a run without an agent, the first.
        let before = self
            .series
            .iter()
            .rfind(|point| point.t < start)
            .and_then(|point| Some((point, point.guests.get(guest)?)))
            .filter(|(_, guest)| guest.hot_share.is_some());
        let (base, base_guest) = before.unwrap_or((first, first_guest));
        let shares = self.last_shares(guest, PLATEAU_S);
        let work_ready = self.marked(Mark::WorkReady, guest).unwrap_or(0.0);
        let has_agent = last_guest.agent_cpu_s.is_some();
        let without: Vec<_> = self
            .series
            .iter()
            .filter(|point| point.t > work_ready && (point.t < start || point.t > end + 1.0))
            .filter_map(|point| Some((point, point.guests.get(guest)?)))
            .collect();
        let plateau: Vec<_> = series
            .iter()
            .filter(|(t, _, _)| *t > last_t - THROUGHPUT_S)
            .map(|(_, point, guest)| (*point, *guest))
            .collect();
        let all: Vec<_> = series
            .iter()
            .map(|(_, point, guest)| (*point, *guest))
            .collect();
        let throughput_without = median(&rates(&without, false));
        let throughput_plateau = median(&rates(&plateau, false));
        let (quiet_with, quiet_without) = (quiet(&plateau), quiet(&without));
        let throughput_quiet = quiet_with.len().min(quiet_without.len()) >= QUIET_SECONDS;
        let throughput_ratio = if throughput_quiet {
            ratio(
                median(&rates(&quiet_with, false)),
                median(&rates(&quiet_without, false)),
            )
        } else {
            ratio(
                median(&rates(&plateau, true)),
                median(&rates(&without, true)),
            )
        };
        let share_of =
            |seconds: f64, used: Option<f64>| Some(used? / seconds).filter(|s| s.is_finite());
        let agent_cpu = |guest: &GuestPoint| guest.agent_cpu_s;
        let plateau_cpu = series
            .iter()
            .find(|(t, _, _)| *t > last_t - PLATEAU_S)
            .and_then(|(t, _, guest)| {
                share_of(last_t - t, Some(agent_cpu(last_guest)? - agent_cpu(guest)?))
            });
        Some(Summary {
            share_before: base_guest.hot_share,
            share_at_10_s: self.share_at(guest, 10.0),
            share_at_20_s: self.share_at(guest, 20.0),
            plateau_mean: mean(&shares),
            plateau_std: standard_deviation(&shares),
            share_at_end: last_guest.hot_share,
            seconds_to_95: series
                .iter()
                .find(|(_, _, guest)| guest.hot_share.is_some_and(|share| share >= 0.95))
                .map(|(t, _, _)| *t),
            moved_bytes: last.migrated_bytes.checked_sub(base.migrated_bytes),
            agent_moved_bytes: last_guest
                .promoted_bytes
                .zip(last_guest.demoted_bytes)
                .map(|(up, down)| up + down),
            least_bytes: Some(2 * base_guest.hot_slow_bytes),
            throughput_without,
            throughput_plateau,
            throughput_ratio,
            throughput_quiet,
            throughput_ratio_raw: ratio(throughput_plateau, throughput_without),
            gap_without_ms: longest_gap(&without),
            gap_ms: longest_gap(&all),
            agent_cpu_share: share_of(last_t, agent_cpu(last_guest)),
            agent_cpu_share_plateau: plateau_cpu,
            kdamond_cpu_share: share_of(last_t - first_t, has_agent.then_some(last.kdamond_cpu_s)),
            changes: self.changes(guest),
            phases: self.phases(guest),
        })
    }

    /// What each phase of tiering cost. A second belongs to the phase that it ends in.
    fn phases(&self, guest: &str) -> BTreeMap<String, PhaseCosts> {
        let mut phases: BTreeMap<String, PhaseCosts> = BTreeMap::new();
        for pair in self.tiering(guest).windows(2) {
            let [(from, before, guest_before), (to, after, guest_after)] = pair else {
                continue;
            };
            if after.phase.is_empty() {
                continue;
            }
            let agent = guest_before.agent_cpu_s.zip(guest_after.agent_cpu_s);
            let costs = phases.entry(after.phase.clone()).or_default();
            // Times first; they become shares below.
            costs.seconds += to - from;
            costs.agent_cpu_share += agent.map_or(0.0, |(before, after)| after - before);
            // An agent that takes turns starts its kdamond anew, which begins at 0.
            costs.kdamond_cpu_share += match after.kdamond_cpu_s - before.kdamond_cpu_s {
                gone if gone < 0.0 => after.kdamond_cpu_s,
                used => used,
            };
            costs.moved_bytes += after.migrated_bytes.saturating_sub(before.migrated_bytes);
        }
        for costs in phases.values_mut() {
            costs.agent_cpu_share /= costs.seconds;
            costs.kdamond_cpu_share /= costs.seconds;
        }
        phases
    }
}

/// Updates a second; `corrected` for the time in which the emulator had no CPU.
fn rates(seconds: &[(&Point, &GuestPoint)], corrected: bool) -> Vec<f64> {
    let waited = |point: &Point| {
        if corrected {
            point.emulator_wait_share
        } else {
            0.0
        }
    };
    seconds
        .iter()
        .filter_map(|(point, guest)| Some(guest.updates_per_s? / (1.0 - waited(point))))
        .collect()
}

/// The seconds in which the emulator hardly waited for a CPU.
fn quiet<'a>(seconds: &[(&'a Point, &'a GuestPoint)]) -> Vec<(&'a Point, &'a GuestPoint)> {
    let mut found = seconds.to_vec();
    found.retain(|(point, _)| point.emulator_wait_share <= QUIET_WAIT_SHARE);
    found
}

fn longest_gap(seconds: &[(&Point, &GuestPoint)]) -> Option<u64> {
    let quiet = quiet(seconds).into_iter();
    quiet.filter_map(|(_, guest)| guest.gap_ms).max()
}

fn ratio(with: Option<f64>, without: Option<f64>) -> Option<f64> {
    Some(with? / without?)
}

#[cfg(test)]
mod tests {
    use crate::event::Mark;
    use crate::result::ScenarioResult;
    use crate::result::tests::lifted;

    #[test]
    fn summary_when_an_agent_lifts_the_hot_set_tells_when_and_at_what_cost() {
        let run = lifted();

        let summary = run.summarize("guest").unwrap();

        assert_eq!(summary.share_before, Some(0.2));
        assert_eq!(summary.share_at_10_s, Some(1.0));
        assert_eq!(summary.seconds_to_95, Some(4.5)); // second 15, the agent began at 10.5
        assert_eq!(summary.plateau_mean, Some(1.0));
        assert_eq!(summary.plateau_std, Some(0.0));
        assert_eq!(summary.share_at_end, Some(1.0));
        assert_eq!(summary.moved_bytes, Some(2 * 8000 * 4096));
        assert_eq!(summary.agent_moved_bytes, summary.moved_bytes);
        assert_eq!(summary.least_bytes, Some(2 * 8000 * 4096));
        assert_eq!(summary.throughput_ratio, Some(0.99));
        let cpu = summary.agent_cpu_share_plateau.unwrap();
        assert!((cpu - 0.05).abs() < 1e-9, "{cpu}");
    }

    #[test]
    fn phase_when_the_kdamond_is_started_anew_counts_its_time_from_0() {
        let mut run = lifted();
        for (point, cpu_s) in run.series[29..34].iter_mut().zip([2.0, 2.3, 0.1, 0.2, 0.3]) {
            point.phase = "rest".to_owned();
            point.kdamond_cpu_s = cpu_s;
        }
        run.series[28].kdamond_cpu_s = 1.9;

        let summary = run.summarize("guest").unwrap();

        let rest = summary.phases["rest"];
        assert_eq!((rest.seconds, rest.moved_bytes), (5.0, 0));
        assert!((rest.kdamond_cpu_share - 0.7 / 5.0).abs() < 1e-9);
        assert!((rest.agent_cpu_share - 0.05).abs() < 1e-9);
        assert_eq!(summary.phases.len(), 1);
    }

    #[test]
    fn throughput_when_the_emulator_waited_is_corrected_for_it() {
        let mut result = ScenarioResult::default();
        result.runs.push(lifted());
        for point in &mut result.runs[0].series[12..] {
            // Another program takes half of the machine while the agent runs.
            let guest = point.guests.get_mut("guest").unwrap();
            guest.updates_per_s = guest.updates_per_s.map(|rate| rate / 2.0);
            point.emulator_wait_share = 0.5;
        }
        result.emulator_waited(0.5);

        let summary = result.runs[0].summarize("guest").unwrap();

        assert!(!summary.throughput_quiet);
        assert_eq!(summary.throughput_ratio, Some(0.99));
        assert_eq!(summary.throughput_ratio_raw, Some(0.495));
    }

    #[test]
    fn throughput_when_enough_seconds_are_quiet_rests_on_those() {
        let mut run = lifted();
        for point in &mut run.series[20..34] {
            // Sharing a core slows the emulator by more than the time it waits.
            let guest = point.guests.get_mut("guest").unwrap();
            guest.updates_per_s = guest.updates_per_s.map(|rate| rate / 3.0);
            point.emulator_wait_share = 0.5;
        }

        let summary = run.summarize("guest").unwrap();

        assert!(summary.throughput_quiet);
        assert_eq!(summary.throughput_ratio, Some(0.99));
    }

    #[test]
    fn summary_when_there_is_no_agent_counts_from_the_first_touch() {
        let mut run = lifted();
        run.marks.retain(|(_, mark, _)| *mark == Mark::WorkReady);

        let summary = run.summarize("guest").unwrap();

        assert_eq!(summary.share_before, Some(0.2));
        assert_eq!(summary.seconds_to_95, Some(14.5));
        assert_eq!(summary.throughput_without, None);
    }
}
