//! Who has how much DRAM, by what the kernel says, against what the host daemon says of it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::checks::CheckResult;
use crate::result::{GuestPoint, Point, RunResult};

/// Bytes of a mebibyte.
const MIB: f64 = 1_048_576.0;

/// What the host daemon says in one second, of `query-host`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HostPoint {
    /// Jain's index by its own account.
    pub jain: Option<f64>,
    /// Bytes short of guarantees, times seconds.
    pub deficit_byte_s: Option<f64>,
    /// By name.
    pub vms: BTreeMap<String, VmPoint>,
}

/// What it says of one VM.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmPoint {
    /// Its state.
    pub state: String,
    /// What is guaranteed to it.
    pub guarantee_bytes: u64,
    /// What it is entitled to.
    pub entitled_bytes: u64,
    /// What it may have now.
    pub share_bytes: u64,
    /// What it uses.
    pub demand_bytes: u64,
}

impl HostPoint {
    /// Reads an answer to `query-host`; what it lacks is 0.
    #[must_use]
    pub fn read(answer: &Value) -> Self {
        let vms = answer["vms"].as_array().into_iter().flatten();
        let vms = vms.filter_map(|vm| {
            let bytes = |key: &str| vm[key].as_u64().unwrap_or(0);
            let point = VmPoint {
                state: vm["state"].as_str().unwrap_or_default().to_owned(),
                guarantee_bytes: bytes("guarantee-bytes"),
                entitled_bytes: bytes("entitled-bytes"),
                share_bytes: bytes("share-bytes"),
                demand_bytes: bytes("demand-bytes"),
            };
            Some((vm["name"].as_str()?.to_owned(), point))
        });
        Self {
            jain: answer.pointer("/fairness/jain").and_then(Value::as_f64),
            deficit_byte_s: answer
                .pointer("/fairness/deficit-byte-seconds")
                .and_then(Value::as_f64),
            vms: vms.collect(),
        }
    }
}

/// One guest in one second: seconds since the phase began, the guest's name, what was measured, and
/// what the daemon said.
type Seen<'a> = (f64, &'a str, &'a GuestPoint, &'a VmPoint);

/// What was measured in a phase, with the seconds since its first measurement.
fn phase<'a>(result: &'a RunResult, phase: &str) -> Vec<(f64, &'a Point)> {
    let points = result.series.iter().filter(|point| point.phase == phase);
    let began = points.clone().next().map_or(0.0, |point| point.t);
    points.map(|point| (point.t - began, point)).collect()
}

/// All guests of which the daemon said something, second by second, from `after_s` on.
fn seen<'a>(points: &[(f64, &'a Point)], after_s: f64) -> Vec<Seen<'a>> {
    let late = points.iter().filter(|(t, _)| *t >= after_s);
    late.flat_map(|&(t, point)| {
        let vms = point.host.iter().flat_map(|host| &host.vms);
        vms.filter_map(move |(name, vm)| Some((t, name.as_str(), point.guests.get(name)?, vm)))
    })
    .collect()
}

/// See [`Check::DramAsEntitled`](crate::scenario::Check::DramAsEntitled).
#[must_use]
pub fn as_entitled(result: &RunResult, name: &str, after_s: f64, tolerance: f64) -> CheckResult {
    let points = phase(result, name);
    let off = |&(_, _, guest, vm): &Seen<'_>| {
        let has = guest.dram_bytes? as f64;
        let entitled = vm.entitled_bytes.max(1) as f64;
        Some((has - entitled) / entitled)
    };
    let all = seen(&points, 0.0);
    // The last second in which any guest was off.
    let settled = all
        .iter()
        .filter(|seen| off(seen).is_none_or(|off| off.abs() > tolerance));
    let settled = settled
        .map(|seen| seen.0)
        .fold(None, |last: Option<f64>, t| {
            Some(last.map_or(t, |last| last.max(t)))
        });
    let late: Vec<_> = all.into_iter().filter(|seen| seen.0 >= after_s).collect();
    let worst = late
        .iter()
        .filter_map(|seen| Some((seen, off(seen)?)))
        .max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
    let is_measured = !late.is_empty() && late.iter().all(|seen| off(seen).is_some());
    CheckResult::new(
        format!("DRAM against entitlements in phase {name}"),
        worst.map_or("not measured".to_owned(), |((t, guest, point, vm), off)| {
            format!(
                "worst {:+.2} % ({guest} has {:.1} of {:.1} MiB after {t:.0} s); within the bound from {} on",
                off * 100.0,
                point.dram_bytes.unwrap_or(0) as f64 / MIB,
                vm.entitled_bytes as f64 / MIB,
                settled.map_or("the begin".to_owned(), |t| format!("{:.0} s", t + 1.0)),
            )
        }),
        format!("within {:.0} % from {after_s} s on", tolerance * 100.0),
        is_measured && worst.is_some_and(|(_, off)| off.abs() <= tolerance),
    )
}

/// See [`Check::GuaranteesKept`](crate::scenario::Check::GuaranteesKept).
#[must_use]
pub fn guarantees_kept(result: &RunResult, name: &str, after_s: f64) -> CheckResult {
    let points = phase(result, name);
    let late = seen(&points, after_s);
    let lack = |&(_, _, guest, vm): &Seen<'_>| {
        let due = vm.guarantee_bytes.min(vm.demand_bytes);
        Some(due.saturating_sub(guest.dram_bytes?))
    };
    let worst = late
        .iter()
        .filter_map(|seen| Some((seen, lack(seen)?)))
        .max_by_key(|(_, lack)| *lack);
    let is_measured = !late.is_empty() && late.iter().all(|seen| lack(seen).is_some());
    CheckResult::new(
        format!("guarantees in phase {name}"),
        worst.map_or(
            "not measured".to_owned(),
            |((t, guest, ..), lack)| match lack {
                0 => format!("kept at {} looks", late.len()),
                lack => format!("{guest} lacks {:.2} MiB after {t:.0} s", lack as f64 / MIB),
            },
        ),
        format!("kept from {after_s} s on"),
        is_measured && worst.is_some_and(|(_, lack)| lack == 0),
    )
}

/// See [`Check::Jain`](crate::scenario::Check::Jain).
#[must_use]
pub fn jain(result: &RunResult, name: &str, after_s: f64, min: f64) -> CheckResult {
    let points = phase(result, name);
    let late = points.iter().filter(|(t, _)| *t >= after_s);
    let of_second = |point: &(f64, &Point)| {
        let parts = seen(&[*point], 0.0);
        let parts = parts.iter().filter_map(|(_, _, guest, vm)| {
            let claim = vm.entitled_bytes.min(vm.demand_bytes);
            Some(guest.dram_bytes?.min(claim) as f64 / claim.max(1) as f64)
        });
        let parts: Vec<f64> = parts.collect();
        (!parts.is_empty()).then(|| index(&parts))
    };
    let all: Vec<f64> = late.filter_map(of_second).collect();
    let least = all.iter().copied().reduce(f64::min);
    CheckResult::new(
        format!("Jain's index in phase {name}"),
        least.map_or("not measured".to_owned(), |least| {
            format!("at least {least:.4} at {} looks", all.len())
        }),
        format!("≥ {min} from {after_s} s on"),
        least.is_some_and(|least| least >= min),
    )
}

/// Jain's index, (Σx)² / (n Σx²).
fn index(parts: &[f64]) -> f64 {
    let sum: f64 = parts.iter().sum();
    let squares: f64 = parts.iter().map(|x| x * x).sum();
    match squares > 0.0 {
        true => sum * sum / (parts.len() as f64 * squares),
        false => 1.0,
    }
}

/// When a guest's DRAM came to be so, for the rest of the phase: see
/// [`Check::DramReaches`](crate::scenario::Check::DramReaches).
#[must_use]
pub fn comes_to(
    result: &RunResult,
    guest: &str,
    name: &str,
    within_s: f64,
    bound: &str,
    holds: impl Fn(f64) -> bool,
) -> CheckResult {
    let points = phase(result, name);
    let has: Vec<(f64, f64)> = points
        .iter()
        .filter_map(|(t, point)| Some((*t, point.guests.get(guest)?.dram_bytes? as f64 / MIB)))
        .collect();
    let last_off = has.iter().rposition(|(_, mib)| !holds(*mib));
    let since = match last_off {
        None => has.first().map(|_| 0.0),
        Some(at) => has.get(at + 1).map(|(t, _)| *t),
    };
    CheckResult::new(
        format!("DRAM of {guest} in phase {name}"),
        match (since, has.last()) {
            (Some(since), Some((_, last))) => {
                format!("so after {since:.0} s; {last:.1} MiB at the end")
            }
            (None, Some((_, last))) => format!("not so; {last:.1} MiB at the end"),
            _ => "not measured".to_owned(),
        },
        format!("{bound} within {within_s} s"),
        since.is_some_and(|since| since <= within_s),
    )
}

/// See [`Check::DramHoldsHot`](crate::scenario::Check::DramHoldsHot).
#[must_use]
pub fn holds_hot(result: &RunResult, name: &str, after_s: f64, min: f64) -> CheckResult {
    let points = phase(result, name);
    let mut of_guests: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (_, point) in points.iter().filter(|(t, _)| *t >= after_s) {
        for (guest, seen) in &point.guests {
            let (Some(share), Some(dram)) = (seen.hot_share, seen.dram_bytes) else {
                continue;
            };
            let filled = match share < 1.0 {
                true => {
                    // The whole hot set, from the part that is elsewhere.
                    let whole = seen.hot_slow_bytes as f64 / (1.0 - share);
                    share * whole / (dram as f64).min(whole).max(1.0)
                }
                false => 1.0,
            };
            of_guests.entry(guest).or_default().push(filled.min(1.0));
        }
    }
    let means = of_guests.iter().map(|(guest, shares)| {
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        (*guest, mean)
    });
    let means: Vec<(&str, f64)> = means.collect();
    let told: Vec<String> = means
        .iter()
        .map(|(guest, mean)| format!("{guest} {mean:.3}"))
        .collect();
    CheckResult::new(
        format!("DRAM that holds hot pages in phase {name}"),
        match told.as_slice() {
            [] => "not measured".to_owned(),
            told => told.join(", "),
        },
        format!("≥ {min} from {after_s} s on"),
        !means.is_empty() && means.iter().all(|(_, mean)| *mean >= min),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MIB_BYTES: u64 = 1 << 20;

    /// Twenty seconds of a phase: guest a comes to its 20 MiB after ten seconds, b has its 40 at once.
    fn shared() -> RunResult {
        let mut run = RunResult::default();
        for second in 0..20_u64 {
            let a = (second * 2).min(20) * MIB_BYTES;
            let vm = |name: &str, entitled: u64| {
                json!({"name": name, "state": "reporting", "guarantee-bytes": 8 * MIB_BYTES,
                    "entitled-bytes": entitled * MIB_BYTES, "share-bytes": entitled * MIB_BYTES,
                    "demand-bytes": 100 * MIB_BYTES})
            };
            let answer = json!({"vms": [vm("a", 20), vm("b", 40)],
                "fairness": {"jain": 0.5, "deficit-byte-seconds": 7.0}});
            let guest = |dram: u64, hot: u64| GuestPoint {
                dram_bytes: Some(dram),
                hot_share: Some(hot as f64 / (60 * MIB_BYTES) as f64),
                hot_slow_bytes: 60 * MIB_BYTES - hot,
                ..GuestPoint::default()
            };
            run.series.push(Point {
                t: 100.0 + second as f64,
                phase: "shared".to_owned(),
                host: Some(HostPoint::read(&answer)),
                guests: BTreeMap::from([
                    ("a".to_owned(), guest(a, a)),
                    ("b".to_owned(), guest(40 * MIB_BYTES, 30 * MIB_BYTES)),
                ]),
                ..Point::default()
            });
        }
        run
    }

    #[test]
    fn entitlements_when_met_late_are_told_with_the_time() {
        let run = shared();
        let late = as_entitled(&run, "shared", 12.0, 0.02);
        assert!(late.pass, "{late:?}");
        assert!(late.measured.contains("from 10 s on"), "{late:?}");
        assert!(!as_entitled(&run, "shared", 5.0, 0.02).pass);
        assert!(!as_entitled(&run, "other", 0.0, 0.02).pass);
    }

    #[test]
    fn guarantees_and_jain_are_judged_by_what_guests_have() {
        let run = shared();
        assert!(guarantees_kept(&run, "shared", 4.0).pass);
        let early = guarantees_kept(&run, "shared", 1.0);
        assert!(
            !early.pass && early.measured.contains("a lacks 6.00 MiB"),
            "{early:?}"
        );
        assert!(jain(&run, "shared", 10.0, 1.0).pass);
        // After five seconds a has half of its part: (1.5)² / (2 · 1.25).
        let half = jain(&run, "shared", 5.0, 0.91);
        assert!(!half.pass && half.measured.contains("0.9000"), "{half:?}");
        assert!(!jain(&run, "other", 0.0, 0.0).pass);
    }

    #[test]
    fn dram_when_it_comes_and_stays_is_told_with_the_time() {
        let run = shared();
        let reaches = |mib: f64, within: f64| {
            comes_to(&run, "a", "shared", within, "", |has| has >= mib).pass
        };
        assert!(reaches(20.0, 10.0) && !reaches(20.0, 9.0) && !reaches(21.0, 99.0));
        assert!(comes_to(&run, "b", "shared", 0.0, "", |has| has <= 40.0).pass);
        assert!(!comes_to(&run, "c", "shared", 99.0, "", |_| true).pass);
    }

    #[test]
    fn dram_that_holds_cold_pages_while_hot_ones_are_slow_is_found() {
        let run = shared();
        // b has 30 MiB of hot pages in 40 MiB of DRAM, and 30 more elsewhere.
        let found = holds_hot(&run, "shared", 10.0, 0.95);
        assert!(
            !found.pass && found.measured == "a 1.000, b 0.750",
            "{found:?}"
        );
        assert!(holds_hot(&run, "shared", 10.0, 0.7).pass);
    }

    #[test]
    fn host_point_of_an_answer_that_lacks_figures_has_none() {
        let point = HostPoint::read(&json!({"vms": [{"name": "a"}, {}]}));
        assert_eq!(point.jain, None);
        assert_eq!(point.vms["a"], VmPoint::default());
        assert_eq!(point.vms.len(), 1);
    }
}
