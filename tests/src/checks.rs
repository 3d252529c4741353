//! What had to hold, against what was measured.

use serde::Serialize;

use crate::account::Account;
use crate::changes::Change;
use crate::event::{AttemptOutcome, POOLS_SET, PoolSample};
use crate::hits::{compare, mean_error};
use crate::result::RunResult;
use crate::scenario::{Check, Run};
use crate::shares;
use crate::stats::{mean, standard_deviation};

/// Bytes of a mebibyte.
const MIB: f64 = 1_048_576.0;
/// Characters of a note that are shown.
const MOST_SAID: usize = 400;

/// One check and its outcome, in words that a person reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckResult {
    /// What was checked.
    pub name: String,
    /// What was measured.
    pub measured: String,
    /// What had to hold.
    pub bound: String,
    /// Whether it did.
    pub pass: bool,
}

impl CheckResult {
    /// A check's outcome.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        measured: impl Into<String>,
        bound: impl Into<String>,
        pass: bool,
    ) -> Self {
        Self {
            name: name.into(),
            measured: measured.into(),
            bound: bound.into(),
            pass,
        }
    }

    /// A number and its bound; what was not measured does not pass.
    fn number(
        name: String,
        measured: Option<f64>,
        bound: String,
        holds: impl Fn(f64) -> bool,
    ) -> Self {
        Self {
            name,
            measured: measured.map_or_else(|| "not measured".to_owned(), |v| format!("{v:.3}")),
            bound,
            pass: measured.is_some_and(holds),
        }
    }
}

/// Compares the pools at each look with those at the first look after they were set last. A look may
/// find at most `pair_pages` pages on the last node that belong to the first, if the next look finds
/// them back.
fn pools_unchanged(result: &RunResult, pair_pages: u64) -> CheckResult {
    let set = result.notes.iter().filter(|note| note.name == POOLS_SET);
    let since = set.map(|note| note.t).fold(0.0, f64::max);
    // A guest that ends gives surplus pages back.
    let looks = result.series.iter();
    let looks = looks.filter(|point| point.t > since && !point.guests.is_empty());
    let totals = |pool: &PoolSample| (pool.total, pool.surplus);
    let looks: Vec<Vec<(u64, u64)>> = looks
        .map(|point| point.pools.iter().map(totals).collect())
        .collect();
    let told = |pools: &[(u64, u64)]| {
        let pools = pools.iter();
        let pools: Vec<_> = pools
            .map(|(total, surplus)| format!("{total}+{surplus}"))
            .collect();
        pools.join("/")
    };
    let first = looks.first().filter(|pools| !pools.is_empty());
    let differs = |at: usize| looks.get(at) != first;
    let in_pair = |at: usize| {
        let pages = |pools: &[(u64, u64)]| pools.iter().map(|pool| pool.0).sum::<u64>();
        let most = |pool: &(u64, u64), before: &(u64, u64)| {
            pool.0.abs_diff(before.0) <= pair_pages && pool.1.abs_diff(before.1) <= pair_pages
        };
        let look = &looks[at];
        let is_near = first.is_some_and(|first| {
            // A page is on both nodes while it is copied.
            let beyond = pages(look).checked_sub(pages(first));
            let none_lacks = beyond.is_some_and(|beyond| beyond <= pair_pages);
            let same = none_lacks && look.len() == first.len();
            same && look
                .iter()
                .zip(first)
                .all(|(pool, before)| most(pool, before))
        });
        is_near && at + 1 < looks.len() && !differs(at + 1)
    };
    let differing: Vec<usize> = (0..looks.len()).filter(|&at| differs(at)).collect();
    let changed = differing.iter().find(|&&at| !in_pair(at));
    let measured = match (first, changed) {
        (None, _) => "no pool".to_owned(),
        (Some(first), Some(&at)) => format!("{}, then {}", told(first), told(&looks[at])),
        (Some(first), None) if differing.is_empty() => {
            format!("{} at {} looks", told(first), looks.len())
        }
        (Some(first), None) => format!(
            "{} at {} looks, {} of them in the middle of a pair",
            told(first),
            looks.len(),
            differing.len()
        ),
    };
    let bound = match pair_pages {
        0 => "as they were set, at each look".to_owned(),
        pages => {
            format!("as they were set, at each look but at most {pages} pages at a single one")
        }
    };
    CheckResult::new(
        "pages of the pools, with surplus",
        measured,
        bound,
        first.is_some() && changed.is_none(),
    )
}

/// Evaluates one check. Where a check means a guest, it means the run's first.
#[must_use]
pub fn evaluate(check: &Check, run: &Run, result: &RunResult) -> CheckResult {
    let guest = run.guests.first().map_or("", |guest| guest.name.as_str());
    let summary = result.summary.get(guest).cloned().unwrap_or_default();
    match check {
        Check::ShareAt { seconds, min } => CheckResult::number(
            format!("hot-set share on node 0 after {seconds} s"),
            result.share_at(guest, *seconds),
            format!("≥ {min}"),
            |v| v >= *min,
        ),
        Check::Plateau {
            over_s,
            min,
            max_std,
        } => {
            let shares = result.last_shares(guest, *over_s);
            let found = mean(&shares).zip(standard_deviation(&shares));
            CheckResult::new(
                format!("hot-set share over the last {over_s} s"),
                found.map_or_else(
                    || "not measured".to_owned(),
                    |(mean, std)| format!("mean {mean:.4}, deviation {std:.4}"),
                ),
                format!("mean ≥ {min}, deviation ≤ {max_std}"),
                found.is_some_and(|(mean, std)| mean >= *min && std <= *max_std),
            )
        }
        Check::MovedOverLeast { max } => CheckResult::number(
            "bytes moved over the least possible".to_owned(),
            summary
                .moved_bytes
                .zip(summary.least_bytes)
                .filter(|(_, least)| *least > 0)
                .map(|(moved, least)| moved as f64 / least as f64),
            format!("≤ {max}"),
            |v| v <= *max,
        ),
        Check::MovedAtMost { mib } => CheckResult::number(
            "MiB moved".to_owned(),
            summary.moved_bytes.map(|bytes| bytes as f64 / MIB),
            format!("≤ {mib}"),
            |v| v <= *mib,
        ),
        Check::DramAsEntitled {
            phase,
            after_s,
            tolerance,
        } => shares::as_entitled(result, phase, *after_s, *tolerance),
        Check::GuaranteesKept { phase, after_s } => {
            shares::guarantees_kept(result, phase, *after_s)
        }
        Check::Jain {
            phase,
            after_s,
            min,
        } => shares::jain(result, phase, *after_s, *min),
        Check::DramReaches {
            guest,
            phase,
            mib,
            within_s,
        } => {
            let bound = format!("≥ {mib} MiB");
            shares::comes_to(result, guest, phase, *within_s, &bound, |has| has >= *mib)
        }
        Check::DramFalls {
            guest,
            phase,
            mib,
            within_s,
        } => {
            let bound = format!("≤ {mib} MiB");
            shares::comes_to(result, guest, phase, *within_s, &bound, |has| has <= *mib)
        }
        Check::DramHoldsHot {
            phase,
            after_s,
            min,
        } => shares::holds_hot(result, phase, *after_s, *min),
        Check::Changes { count, within_s } => {
            let lasting = summary.changes.iter().filter(|c| c.lasted_s >= *within_s);
            let took: Vec<_> = lasting.map(|change| change.seconds_to_95).collect();
            let told: Vec<_> = took
                .iter()
                .map(|took| took.map_or("never".to_owned(), |s| format!("{s:.1}")))
                .collect();
            CheckResult::new(
                "seconds from each move to 0.95 of the hot set in DRAM",
                told.join(", "),
                format!("{count} moves, each ≤ {within_s}"),
                took.len() == *count && took.iter().all(|s| s.is_some_and(|s| s <= *within_s)),
            )
        }
        Check::ChangesMovedOverLeast { max } => {
            let sum = |of: fn(&Change) -> u64| summary.changes.iter().map(of).sum::<u64>();
            let (moved, least) = (sum(|c| c.moved_bytes), sum(|c| c.least_bytes));
            CheckResult::number(
                "bytes moved after all moves over the least possible".to_owned(),
                (least > 0).then(|| moved as f64 / least as f64),
                format!("≤ {max}"),
                |v| v <= *max,
            )
        }
        Check::PoolsUnchanged { pair_pages } => pools_unchanged(result, *pair_pages),
        Check::PhaseMovedAtMost { phase, mib } => CheckResult::number(
            format!("MiB moved in phase {phase}"),
            summary
                .phases
                .get(phase)
                .map(|costs| costs.moved_bytes as f64 / MIB),
            format!("≤ {mib}"),
            |v| v <= *mib,
        ),
        Check::LongestGap { max_ms } => {
            let told =
                |ms: Option<u64>| ms.map_or("not measured".to_owned(), |ms| format!("{ms} ms"));
            CheckResult::new(
                "longest time without progress",
                format!(
                    "{}, without an agent {}",
                    told(summary.gap_ms),
                    told(summary.gap_without_ms)
                ),
                format!("≤ {max_ms} ms"),
                summary.gap_ms.is_some_and(|ms| ms <= *max_ms),
            )
        }
        Check::ThroughputRatio { min } => CheckResult::number(
            "throughput at the plateau over that without".to_owned(),
            summary.throughput_ratio,
            format!("≥ {min}"),
            |v| v >= *min,
        ),
        Check::Integrity => {
            let lost: Vec<_> = run
                .guests
                .iter()
                .filter(|guest| result.integrity.get(&guest.name) != Some(&true))
                .map(|guest| guest.name.as_str())
                .collect();
            let measured = match lost.as_slice() {
                [] => "ok".to_owned(),
                names => format!("LOST or not told: {}", names.join(", ")),
            };
            CheckResult::new("no byte lost", measured, "ok", lost.is_empty())
        }
        Check::AgentEnd { nth, code, says } => {
            let found = result.agent_ends.get(*nth);
            let said = found.is_some_and(|end| {
                says.is_empty() || end.last_lines.iter().any(|line| line.contains(says))
            });
            let measured = found.map_or_else(
                || "it did not end".to_owned(),
                |end| {
                    let last = end.last_lines.last().map_or("", String::as_str);
                    match (end.code, end.signal) {
                        (Some(code), _) => format!("code {code}: {last}"),
                        (None, signal) => format!("signal {}", signal.unwrap_or(0)),
                    }
                },
            );
            let pass = said && found.and_then(|end| end.code) == Some(*code);
            let mut bound = format!("code {code}");
            if !says.is_empty() {
                bound.push_str(&format!(", says '{says}'"));
            }
            CheckResult::new(format!("end of agent {nth}"), measured, bound, pass)
        }
        Check::NothingLeft { look } => {
            let found = result.looks.iter().find(|found| found.name == *look);
            let measured = found.map_or_else(
                || "not looked".to_owned(),
                |found| {
                    format!(
                        "{} kdamonds, {} threads, {} sockets, {} processes",
                        found.kdamonds,
                        found.kdamond_threads,
                        found.sockets.len(),
                        found.processes.len()
                    )
                },
            );
            let pass = found.is_some_and(|found| {
                found.kdamonds == 0
                    && found.kdamond_threads == 0
                    && found.sockets.is_empty()
                    && found.processes.is_empty()
            });
            CheckResult::new(format!("nothing left ({look})"), measured, "nothing", pass)
        }
        Check::Kdamonds {
            look,
            count,
            or_more,
        } => {
            let found = result.looks.iter().find(|found| found.name == *look);
            let wanted = *count..=count + or_more;
            CheckResult::new(
                format!("running kdamonds ({look})"),
                found.map_or_else(
                    || "not looked".to_owned(),
                    |found| found.kdamond_threads.to_string(),
                ),
                format!("{} to {}", wanted.start(), wanted.end()),
                found.is_some_and(|found| wanted.contains(&found.kdamond_threads)),
            )
        }
        Check::GrowsAtMost { from, to, at, max } => {
            let number = |note: &str| {
                let found = result.notes.iter().find(|found| found.name == note)?;
                found.value.pointer(at)?.as_f64()
            };
            let growth = number(from).zip(number(to)).map(|(from, to)| to - from);
            CheckResult::number(
                format!("{at} from {from} to {to}"),
                growth,
                format!("≤ {max} more"),
                |growth| growth <= *max,
            )
        }
        Check::Note { note, at, is } => {
            let found = result.notes.iter().find(|found| found.name == *note);
            let value = found.map(|found| found.value.pointer(at));
            CheckResult::new(
                format!("{note} {at}"),
                match value {
                    None => "not asked".to_owned(),
                    Some(None) => "not told".to_owned(),
                    Some(Some(value)) => value.to_string(),
                },
                is.to_string(),
                value.flatten() == Some(is),
            )
        }
        Check::NoteSays { note, says } => {
            let found = result.notes.iter().find(|found| found.name == *note);
            let text = found.map(|found| found.value.to_string());
            let holds = text.as_ref().is_some_and(|text| text.contains(says));
            CheckResult::new(
                format!("{note} says so"),
                match text {
                    None => "not asked".to_owned(),
                    Some(_) if holds => "yes".to_owned(),
                    Some(text) => text.chars().take(MOST_SAID).collect(),
                },
                format!("'{says}'"),
                holds,
            )
        }
        Check::NoteAtLeast { note, at, min } => {
            let found = result.notes.iter().find(|found| found.name == *note);
            let value = found.and_then(|found| found.value.pointer(at)?.as_f64());
            let name = format!("{note} {at}");
            CheckResult::number(name, value, format!("≥ {min}"), |value| value >= *min)
        }
        Check::HitRatioError { over_s, max } => {
            let found = compare(&result.tiering(guest));
            let error = mean_error(&found, *over_s);
            CheckResult::new(
                format!("error of the agent's hit ratio over the last {over_s} s"),
                match (error, found.last()) {
                    (Some(mean), Some(end)) => format!(
                        "mean {mean:.4}; at the end {:.4} counted, {:.4} told",
                        end.counted, end.told
                    ),
                    _ => "not measured".to_owned(),
                },
                format!("≤ {max}"),
                error.is_some_and(|mean| mean <= *max),
            )
        }
        Check::Accounting {
            note,
            at,
            min_accepted,
        } => {
            let found = result.notes.iter().rfind(|found| found.name == *note);
            let account = found.and_then(|found| Account::read(found.value.pointer(at)?));
            CheckResult::new(
                format!("records accounted for ({note} {at})"),
                account.map_or_else(|| "not told".to_owned(), |account| account.to_string()),
                format!("arrived = accepted + dropped, accepted ≥ {min_accepted}"),
                account.is_some_and(|account| account.holds(*min_accepted)),
            )
        }
        Check::AttemptRefused { attempt } => {
            match result.attempts.iter().find(|found| found.name == *attempt) {
                None => CheckResult::new(attempt, "not tried", "tried", false),
                Some(found) => refused(found),
            }
        }
    }
}

/// An attempt must end with a code other than 0 and exactly one line on standard error, or
/// reach the state expected of it; and leave nothing.
fn refused(found: &AttemptOutcome) -> CheckResult {
    let lines: Vec<_> = found
        .stderr
        .lines()
        .filter(|l| !l.trim().is_empty())
        .collect();
    let clean = found.kdamonds_left == 0 && !found.socket_left;
    let left = if clean { "" } else { ", SOMETHING LEFT" };
    if let Some(expected) = &found.expected_state {
        let state = found.state.as_deref().unwrap_or("none");
        return CheckResult::new(
            &found.name,
            format!("state {state}, code {:?}{left}", found.code),
            format!("state {expected}, code 0 on SIGTERM, nothing left"),
            state == expected && found.code == Some(0) && clean,
        );
    }
    let code = found
        .code
        .map_or_else(|| "none".to_owned(), |code| code.to_string());
    let late = if found.timed_out {
        ", did not end by itself"
    } else {
        ""
    };
    CheckResult::new(
        &found.name,
        format!(
            "code {code}, {} lines: {}{late}{left}",
            lines.len(),
            lines.join(" | ")
        ),
        "code not 0, one line, nothing left",
        found.code.is_some_and(|code| code != 0) && lines.len() == 1 && !found.timed_out && clean,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::lifted;
    use crate::scenario::Scenario;

    fn run_with(checks: &str) -> Run {
        let text = format!(
            "title = 'x'\nexpect-s = 1\n[[runs]]\nname = 'a'\nsteps = []\nguests = [{{}}]\nchecks = [{checks}]\n"
        );
        toml::from_str::<Scenario>(&text).unwrap().runs.remove(0)
    }

    fn outcome(checks: &str) -> CheckResult {
        let run = run_with(checks);
        let mut result = crate::result::ScenarioResult::default();
        result.runs.push(lifted());
        result.runs[0].run = "a".to_owned();
        let scenario = Scenario {
            name: String::new(),
            title: String::new(),
            expect_s: 1,
            host: crate::scenario::Host::default(),
            runs: vec![run],
        };
        result.conclude(&scenario);
        result.runs[0].checks.last().unwrap().clone()
    }

    #[test]
    fn share_when_reached_in_time_passes_and_says_the_figure() {
        let check = outcome("{ that = 'share-at', seconds = 20, min = 0.95 }");

        assert!(check.pass);
        assert_eq!(check.measured, "1.000");
        assert!(!outcome("{ that = 'share-at', seconds = 1, min = 0.95 }").pass);
    }

    #[test]
    fn share_when_never_measured_fails() {
        let check = outcome("{ that = 'share-at', seconds = 500, min = 0.1 }");

        assert!(!check.pass);
        assert_eq!(check.measured, "not measured");
    }

    #[test]
    fn pools_when_a_look_falls_into_a_pair_are_unchanged_only_if_the_next_finds_them_back() {
        let passes = |looks: &[[u64; 2]], pair_pages| {
            let mut result = lifted();
            let point = result.series[0].clone();
            let look = |&[fast, slow]: &[u64; 2]| crate::result::Point {
                pools: [fast, slow]
                    .map(|total| PoolSample {
                        total,
                        ..PoolSample::default()
                    })
                    .to_vec(),
                t: 1.0,
                ..point.clone()
            };
            result.series = looks.iter().map(look).collect();
            pools_unchanged(&result, pair_pages).pass
        };
        let (still, away) = ([44, 156], [42, 158]);
        assert!(passes(&[still, still], 0));
        assert!(!passes(&[still, away, still], 0));
        assert!(!passes(&[still, away, still], 1), "two pages");
        assert!(passes(&[still, away, still, away, still], 2));
        assert!(passes(&[still, [44, 157], still], 1), "while it is copied");
        assert!(!passes(&[still, away, away, still], 2), "at two looks");
        assert!(!passes(&[still, away], 2), "at the end");
        assert!(!passes(&[still, [42, 156], still], 2), "pages are gone");
    }

    #[test]
    fn gap_when_longer_than_allowed_fails_and_is_told_beside_that_without_an_agent() {
        let check = outcome("{ that = 'longest-gap', max-ms = 130 }");
        assert_eq!(check.measured, "130 ms, without an agent 20 ms");
        assert!(check.pass);
        assert!(!outcome("{ that = 'longest-gap', max-ms = 129 }").pass);
    }

    #[test]
    fn number_when_it_grows_beyond_the_most_or_is_not_told_fails() {
        let passes = |later: serde_json::Value| {
            let mut result = lifted();
            let note = |name: &str, value| crate::result::Note {
                t: 1.0,
                name: name.to_owned(),
                value,
            };
            let earlier = serde_json::json!({"reply": {"changes": 3}});
            result.notes = vec![note("a", earlier), note("b", later)];
            let check =
                "{ that = 'grows-at-most', from = 'a', to = 'b', at = '/reply/changes', max = 1 }";
            let run = run_with(check);
            evaluate(&run.checks[0], &run, &result).pass
        };
        assert!(passes(serde_json::json!({"reply": {"changes": 4}})));
        assert!(!passes(serde_json::json!({"reply": {"changes": 5}})));
        assert!(!passes(serde_json::json!({"reply": {}})));
    }

    #[test]
    fn moved_bytes_when_twice_the_least_exceed_a_bound_of_less() {
        assert!(outcome("{ that = 'moved-over-least', max = 1.0 }").pass);
        assert!(!outcome("{ that = 'moved-over-least', max = 0.9 }").pass);
        // 16 000 pages of 4 KiB
        assert!(outcome("{ that = 'moved-at-most', mib = 62.5 }").pass);
        assert!(!outcome("{ that = 'moved-at-most', mib = 62.0 }").pass);
    }

    #[test]
    fn moves_of_the_hot_set_when_none_was_measured_fail_their_checks() {
        let within = "{ that = 'changes', count = 1, within-s = 10 }";
        let bytes = "{ that = 'changes-moved-over-least', max = 100.0 }";
        assert!(!outcome(within).pass && !outcome(bytes).pass);
        assert!(!outcome("{ that = 'phase-moved-at-most', phase = 'rest', mib = 1.0 }").pass);

        let mut result = lifted();
        let change = |seconds_to_95, moved_bytes| Change {
            lasted_s: 20.0,
            seconds_to_95,
            moved_bytes,
            least_bytes: 10,
            ..Change::default()
        };
        let mut judge = |check: &str, changes: Vec<Change>| {
            let summary = crate::summary::Summary {
                changes,
                ..Default::default()
            };
            result.summary.insert("guest".to_owned(), summary);
            let run = run_with(check);
            evaluate(&run.checks[0], &run, &result).pass
        };
        assert!(judge(within, vec![change(Some(9.0), 10)]));
        assert!(!judge(within, vec![change(Some(11.0), 10)]));
        assert!(!judge(within, vec![change(None, 10)]));
        assert!(
            !judge(within, vec![change(Some(9.0), 10); 2]),
            "one too many"
        );
        assert!(judge(bytes, vec![change(None, 10), change(None, 1000)]));
        assert!(!judge(bytes, vec![change(None, 10), change(None, 2000)]));
    }

    #[test]
    fn agent_when_it_never_ended_fails_its_end_check() {
        assert!(!outcome("{ that = 'agent-end', code = 0 }").pass);
        assert!(outcome("{ that = 'integrity' }").pass);
        assert!(!outcome("{ that = 'nothing-left', look = 'none' }").pass);
    }

    #[test]
    fn note_when_it_tells_something_else_or_nothing_fails() {
        let mut result = lifted();
        result.notes.push(crate::result::Note {
            t: 1.0,
            name: "doctor".to_owned(),
            value: serde_json::json!({"code": 0, "reply": {"can-tier": true}}),
        });
        let judge = |check: &str| {
            let run = run_with(check);
            evaluate(&run.checks[0], &run, &result).pass
        };

        assert!(judge(
            "{ that = 'note', note = 'doctor', at = '/reply/can-tier', is = true }"
        ));
        assert!(!judge(
            "{ that = 'note', note = 'doctor', at = '/code', is = 1 }"
        ));
        assert!(!judge(
            "{ that = 'note', note = 'doctor', at = '/nothing', is = 1 }"
        ));
        assert!(!judge(
            "{ that = 'note', note = 'map', at = '/code', is = 0 }"
        ));
    }

    #[test]
    fn hit_ratio_when_the_agent_is_near_the_truth_passes() {
        // From second 15 on all accesses are to DRAM, and the agent says 0.9: with a half-life of 8
        // s the truth has all but reached 1 in the last ten of forty seconds.
        let check = outcome("{ that = 'hit-ratio-error', over-s = 10, max = 0.11 }");

        assert!(check.pass, "{}", check.measured);
        assert!(check.measured.contains("0.9000 told"), "{}", check.measured);
        assert!(!outcome("{ that = 'hit-ratio-error', over-s = 10, max = 0.02 }").pass);
    }

    fn attempt(code: Option<i32>, stderr: &str) -> AttemptOutcome {
        AttemptOutcome {
            name: "a".to_owned(),
            command: String::new(),
            code,
            timed_out: false,
            seconds: 0.1,
            stdout: String::new(),
            stderr: stderr.to_owned(),
            state: None,
            expected_state: None,
            kdamonds_left: 0,
            socket_left: false,
        }
    }

    #[test]
    fn attempt_when_it_ends_with_one_line_and_a_code_is_refused() {
        assert!(refused(&attempt(Some(1), "no socket at /x; start QEMU\n")).pass);
        assert!(!refused(&attempt(Some(0), "no socket at /x\n")).pass);
        assert!(!refused(&attempt(Some(1), "one\ntwo\n")).pass);
        assert!(!refused(&attempt(Some(1), "")).pass);
        assert!(!refused(&attempt(None, "killed\n")).pass);
    }

    #[test]
    fn attempt_when_something_is_left_is_not_clean() {
        let mut left = attempt(Some(1), "one line\n");
        left.socket_left = true;

        assert!(!refused(&left).pass);
    }
}
