//! Sharing: many VMs share one host's DRAM, by rules that are compared.
//!
//! ```text
//! Guest (phases, lies) ─► what is so, what is measured ─► Division by a rule ─► bytes held ─► hits, fairness
//! ```
//!
//! Guests are generated here; those of [what-if](crate::what_if) are recorded. A round is a second. Within a VM the model is simple: the share is filled with the hottest pages as
//! fast as pages move, and a change of phase leaves cold pages in it until they have been exchanged.
//!
//! Modelled: VMs that come and go, phases, idleness, lies, measurements that are late and noisy, moves
//! that take time. Not modelled: single pages, the cost of moves to guests, bandwidth.

mod course;
mod guest;
mod report;
mod rule;

use std::time::Duration;

use serde_json::json;
use tier_core::{
    arbiter::{Mode, Rules, Vm, admit, divide},
    random::Random,
    time::Time,
};

pub(crate) use self::{
    course::{Course, Curves},
    guest::Guest,
    rule::{Division, Knowledge, Rule, Tally},
};
use self::{
    report::{Row, SharingReport},
    rule::MOVES,
};
use crate::comparison::{ComparisonError, ReplayArgs, fast::FastSize, write};

/// The part of fair shares that the rule `utility` of the comparison leaves to hits.
const BAND: f64 = 0.2;

/// How many VMs share how much, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scale {
    vms: usize,
    /// Of the memory of all VMs.
    dram: FastSize,
    seconds: u32,
    seed: u64,
}

/// How long it runs if nothing is said: each VM goes through some phases.
const SECONDS: u32 = 600;

/// Lets `vms` VMs share as much DRAM as the arguments say, once for each size; returns what is to be
/// printed.
///
/// # Errors
/// If the file of tables can't be written.
pub(crate) fn report(vms: usize, args: &ReplayArgs) -> Result<String, ComparisonError> {
    let hosts = args.fast.iter().map(|&dram| {
        compare(&Scale {
            vms,
            dram,
            seconds: args.seconds.unwrap_or(SECONDS),
            seed: args.seed,
        })
    });
    let hosts: Vec<SharingReport> = hosts.collect();
    if let Some(path) = &args.markdown {
        let tables: Vec<String> = hosts.iter().map(SharingReport::markdown).collect();
        write(path, &tables.join("\n"))?;
    }
    if args.json {
        return Ok(serde_json::to_string_pretty(&json!({ "hosts": hosts }))? + "\n");
    }
    let tables: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    Ok(tables.join("\n"))
}

/// The rules of the arbiter that are compared: its modes, and `weighted` and `utility` without a part.
fn rules() -> [(&'static str, Rules); 8] {
    let mode = |mode, band| Rules {
        mode,
        band,
        ..Rules::default()
    };
    let (weighted, utility) = (mode(Mode::Weighted, 0.0), mode(Mode::Utility, BAND));
    [
        ("static", mode(Mode::Static, 0.0)),
        ("weighted", weighted),
        ("utility", utility),
        ("pure-utility", mode(Mode::Utility, 1.0)),
        (
            "weighted-no-credits",
            Rules {
                most_credit: Duration::ZERO,
                ..weighted
            },
        ),
        (
            "weighted-full-tax",
            Rules {
                idle_tax: 1.0,
                ..weighted
            },
        ),
        (
            "weighted-no-hysteresis",
            Rules {
                hysteresis: 0.0,
                step_bytes: 0,
                ..weighted
            },
        ),
        (
            "utility-no-hysteresis",
            Rules {
                hysteresis: 0.0,
                step_bytes: 0,
                ..utility
            },
        ),
    ]
}

/// Lets every rule divide the same DRAM among the same VMs.
fn compare(scale: &Scale) -> SharingReport {
    let mut random = Random::new(scale.seed);
    let mut guests: Vec<Guest> = (0..scale.vms)
        .map(|number| Guest::new(number, scale.seconds, &mut random))
        .collect();
    let memory: u64 = guests.iter().map(|guest| guest.terms.cap_bytes).sum();
    let pool = scale.dram.bytes(memory);
    let refused = admit_all(pool, &mut guests);
    let mut first_come = Division::new("first-come", Rule::FirstCome, guests.len());
    let known = |knowledge| {
        let rule =
            |(name, rules)| Division::new(name, Rule::Arbiter(rules, knowledge), guests.len());
        rules().map(rule)
    };
    let mut measured = known(Knowledge::Measured);
    let mut honest = known(Knowledge::Honest);
    let mut clairvoyant = known(Knowledge::Clairvoyant);
    let truth = Rules::default();
    let mut accesses = 0.0;
    for second in 0..scale.seconds {
        let now = Time(0) + Duration::from_secs(u64::from(second));
        let there: Vec<usize> = (0..guests.len())
            .filter(|&at| guests[at].is_there(second))
            .collect();
        let round = Round {
            now,
            pool,
            second,
            span_s: 1,
            so: there.iter().map(|&at| guests[at].so(second)).collect(),
            measured: there
                .iter()
                .map(|&at| guests[at].measured(second, true))
                .collect(),
            honest: there
                .iter()
                .map(|&at| guests[at].measured(second, false))
                .collect(),
            there,
            guests: &guests,
        };
        accesses += round.so.iter().map(|vm| vm.curve.total_hits()).sum::<f64>();
        // What is fair is so by what is so, whatever a rule knows.
        let fair = divide(&truth, pool, &round.so.iter().collect::<Vec<_>>(), &[]);
        let all = std::iter::once(&mut first_come)
            .chain(&mut measured)
            .chain(&mut honest)
            .chain(&mut clairvoyant);
        for division in all {
            division.second(&round, &fair);
        }
    }
    let mut rows = vec![Row::new(&first_come, None, None, &first_come, accesses)];
    for ((division, honest), clairvoyant) in measured.iter().zip(&honest).zip(&clairvoyant) {
        rows.push(Row::new(
            division,
            Some(honest),
            Some(clairvoyant),
            &first_come,
            accesses,
        ));
    }
    SharingReport {
        vms: guests.len(),
        liars: guests.iter().filter(|guest| guest.lie.is_some()).count(),
        refused_guarantees: refused,
        memory_bytes: memory,
        pool_bytes: pool,
        seconds: scale.seconds,
        runs: rows,
    }
}

/// What is given to every rule in a round.
pub(crate) struct Round<'a> {
    pub(crate) now: Time,
    pub(crate) pool: u64,
    pub(crate) second: u32,
    /// The length of a round, in seconds.
    pub(crate) span_s: u32,
    /// In the order of their names.
    pub(crate) guests: &'a [Guest],
    /// The numbers of the guests that are there; the lists below are in this order.
    pub(crate) there: Vec<usize>,
    /// As they are.
    pub(crate) so: Vec<Vm>,
    /// As they are measured, lies included.
    pub(crate) measured: Vec<Vm>,
    /// As they would be measured if none lied; only for a rule that [knows](Knowledge) that.
    pub(crate) honest: Vec<Vm>,
}

impl Round<'_> {
    /// What a VM's pages can move.
    fn moves(&self) -> u64 {
        MOVES * u64::from(self.span_s)
    }
}

/// Admits the guests one by one; who is refused runs without a guarantee. Returns how many those are.
fn admit_all(pool: u64, guests: &mut [Guest]) -> usize {
    let mut refused = 0;
    for at in 0..guests.len() {
        let (before, rest) = guests.split_at_mut(at);
        let others = before
            .iter()
            .map(|guest| (guest.name.as_str(), &guest.terms));
        let guest = &mut rest[0];
        if admit(pool, others, &guest.name, &guest.terms).is_err() {
            guest.terms.guarantee_bytes = 0;
            refused += 1;
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALE: Scale = Scale {
        vms: 100,
        dram: FastSize::Part { one: 1, of: 10 },
        seconds: 300,
        seed: 1,
    };

    #[test]
    fn rules_when_compared_are_as_good_as_a_clairvoyant_and_far_better_than_first_come() {
        let report = compare(&SCALE);
        let run = |name: &str| {
            let found = report.runs.iter().find(|run| run.rule == name);
            found.expect("there is such a rule")
        };
        let (weighted, utility) = (run("weighted"), run("utility"));
        for run in [weighted, utility] {
            assert!(run.of_clairvoyant.unwrap() >= 0.98, "{run:?}");
            assert!(run.of_first_come >= 1.3, "{run:?}");
            assert!(run.jain > run_jain(&report, "first-come"), "{run:?}");
        }
        // Who lies gains nothing where shares are weighted, and no more than the band allows else.
        assert!(weighted.liars_gain.unwrap() < 1.01, "{weighted:?}");
        assert!(
            utility.liars_gain.unwrap() < 1.0 + 2.0 * BAND,
            "{utility:?}"
        );
        assert!(weighted.jain > 0.95, "{weighted:?}");
        assert!(run("pure-utility").hit_ratio >= weighted.hit_ratio);
        assert!(run("static").hit_ratio < weighted.hit_ratio);
    }

    #[test]
    fn report_when_printed_keeps_its_figures_and_its_keys() {
        let few = Scale {
            vms: 12,
            seconds: 120,
            ..SCALE
        };
        let report = compare(&few);
        insta::assert_snapshot!(report);
        let json = serde_json::to_value(&report).expect("a report is JSON");
        let keys = |value: &serde_json::Value| -> Vec<String> {
            value
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, _)| key.clone())
                .collect()
        };
        insta::assert_json_snapshot!((keys(&json), keys(&json["runs"][0])));
    }

    fn run_jain(report: &SharingReport, rule: &str) -> f64 {
        report
            .runs
            .iter()
            .find(|run| run.rule == rule)
            .unwrap()
            .jain
    }

    #[test]
    fn rules_when_compared_again_are_the_same_and_with_another_seed_are_not() {
        let few = Scale {
            vms: 5,
            seconds: 30,
            ..SCALE
        };
        assert_eq!(compare(&few), compare(&few));
        assert_ne!(compare(&few), compare(&Scale { seed: 2, ..few }));
    }
}
