//! A host with guests that do what was recorded: the arbiter deals, and each guest is judged.

use std::{sync::Arc, time::Duration};

use tier_core::{
    arbiter::{MAX_VMS, Rules, Terms, admit, divide},
    time::Time,
};

use super::{
    recording::Limits,
    report::{Verdict, WhatIfGuest, WhatIfHost},
};
use crate::sharing::{Course, Curves, Division, Guest, Knowledge, Round, Rule, Tally};

/// Rounds of the arbiter that are played, at most. Of longer recordings a round is several seconds.
const MOST_ROUNDS: u32 = 1800;

/// A guest that may be admitted.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) terms: Terms,
    pub(super) curves: Arc<Curves>,
    /// The second of the curves at which it begins.
    pub(super) offset_s: u32,
    /// How long its virtual CPUs run in a second; `None` if that is not known.
    pub(super) vcpu_s_per_s: Option<f64>,
}

/// A host's rules, and what is asked of its guests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    pub(super) rules: Rules,
    pub(super) limits: Limits,
}

impl Host {
    /// How the guests would do with so much DRAM: those are admitted first that come first.
    pub(super) fn with(&self, dram_bytes: u64, candidates: &[Candidate]) -> WhatIfHost {
        let mut admitted: Vec<&Candidate> = Vec::new();
        let mut refused = vec![None; candidates.len()];
        for (candidate, refused) in candidates.iter().zip(&mut refused) {
            let others = admitted
                .iter()
                .map(|other| (other.name.as_str(), &other.terms));
            match admit(dram_bytes, others, &candidate.name, &candidate.terms) {
                Ok(_) => admitted.push(candidate),
                Err(error) => *refused = Some(error.to_string()),
            }
        }
        let division = self.play(dram_bytes, &admitted);
        let rounds = f64::from(division.seconds.max(1));
        let mut tallies = division.tallies.iter();
        let guests: Vec<WhatIfGuest> = candidates
            .iter()
            .zip(refused)
            .map(|(candidate, refused)| match refused {
                Some(why) => WhatIfGuest {
                    name: candidate.name.clone(),
                    verdict: Verdict::Refused,
                    refused_because: Some(why),
                    share_bytes: 0,
                    least_share_bytes: 0,
                    hit_ratio: 0.0,
                    slowdown: 0.0,
                },
                None => {
                    let tally = tallies.next().copied().unwrap_or_default();
                    self.judge(candidate, &tally, rounds)
                }
            })
            .collect();
        let with = |verdict| {
            guests
                .iter()
                .filter(|guest| guest.verdict == verdict)
                .count() as u64
        };
        let slowdowns: f64 = guests.iter().map(|guest| guest.slowdown).sum();
        let accesses: f64 = division.tallies.iter().map(|tally| tally.accesses).sum();
        let span_s = f64::from(span_s(&admitted));
        WhatIfHost {
            dram_bytes,
            fits: with(Verdict::Fits),
            suffers: with(Verdict::Suffers),
            refused: with(Verdict::Refused),
            hit_ratio: over(division.hits, accesses),
            slowdown: over(slowdowns, admitted.len() as f64),
            jain: division.jain_sum / rounds,
            moved_bytes_per_s: division.moved_bytes as f64 / (rounds * span_s),
            guests,
            density: Vec::new(),
            all_fit_times: None,
        }
    }

    /// How many times these guests fit, from `from` times on, which fit. With the n-th of so many it
    /// begins a part of its recording later, if `spread`.
    pub(super) fn times(
        &self,
        dram_bytes: u64,
        candidates: &[Candidate],
        spread: bool,
        from: u64,
    ) -> u64 {
        let most = (MAX_VMS / candidates.len().max(1)) as u64;
        let fit = |times: u64| {
            let copies = copies(candidates, times, spread);
            self.with(dram_bytes, &copies).fits == copies.len() as u64
        };
        // Twice as many each time, then halving what is between.
        let (mut fits, mut fails) = (from.min(most), most + 1);
        let mut step = 1;
        while fits + step < fails {
            match fit(fits + step) {
                true => fits += step,
                false => fails = fits + step,
            }
            step *= 2;
        }
        while fits + 1 < fails {
            let middle = fits + (fails - fits) / 2;
            match fit(middle) {
                true => fits = middle,
                false => fails = middle,
            }
        }
        fits
    }

    /// The guests' time beside each other.
    fn play(&self, pool: u64, admitted: &[&Candidate]) -> Division {
        // The arbiter takes VMs in the order of their names.
        let guests: Vec<Guest> = (0..)
            .zip(admitted)
            .map(|(number, candidate): (usize, _)| {
                let course = Course {
                    curves: Arc::clone(&candidate.curves),
                    offset_s: candidate.offset_s,
                    vcpu_s_per_s: candidate.vcpu_s_per_s.unwrap_or(f64::INFINITY),
                };
                Guest::recorded(format!("{number:04}"), candidate.terms.clone(), course)
            })
            .collect();
        let rule = Rule::Arbiter(self.rules, Knowledge::Measured);
        let mut division = Division::new("what-if", rule, guests.len());
        let (length, span_s) = (seconds(admitted), span_s(admitted));
        for second in (0..length).step_by(span_s as usize) {
            let round = Round {
                now: Time(0) + Duration::from_secs(second.into()),
                pool,
                second,
                span_s,
                guests: &guests,
                there: (0..guests.len()).collect(),
                so: guests.iter().map(|guest| guest.so(second)).collect(),
                measured: guests
                    .iter()
                    .map(|guest| guest.measured(second, true))
                    .collect(),
                honest: Vec::new(),
            };
            if second == 0 {
                division.settle(&round);
            }
            let so: Vec<_> = round.so.iter().collect();
            let fair = divide(&self.rules, pool, &so, &[]);
            division.second(&round, &fair);
        }
        division
    }

    fn judge(&self, candidate: &Candidate, tally: &Tally, rounds: f64) -> WhatIfGuest {
        let hit_ratio = over(tally.hits, tally.accesses);
        let Limits { latency, loss, .. } = self.limits;
        let accesses_per_s = tally.accesses / rounds;
        let slowdown = latency.slowdown(hit_ratio, accesses_per_s, candidate.vcpu_s_per_s);
        WhatIfGuest {
            name: candidate.name.clone(),
            verdict: match slowdown <= 1.0 + loss {
                true => Verdict::Fits,
                false => Verdict::Suffers,
            },
            refused_because: None,
            share_bytes: (tally.held_bytes / rounds) as u64,
            least_share_bytes: tally.least_bytes,
            hit_ratio,
            slowdown,
        }
    }
}

/// `times` times these guests. Copies of a guest begin at other places of its recording, if `spread`.
fn copies(candidates: &[Candidate], times: u64, spread: bool) -> Vec<Candidate> {
    let copy = |number: u64, candidate: &Candidate| {
        let length = u64::from(candidate.curves.seconds());
        let later = if spread { length * number / times } else { 0 };
        Candidate {
            name: format!("{}/{number}", candidate.name),
            offset_s: candidate.offset_s.wrapping_add(later as u32),
            ..candidate.clone()
        }
    };
    (0..times)
        .flat_map(|number| {
            candidates
                .iter()
                .map(move |candidate| copy(number, candidate))
        })
        .collect()
}

/// How long the guests are played: as long as the longest recording. Others begin again.
pub(super) fn seconds<C: std::borrow::Borrow<Candidate>>(candidates: &[C]) -> u32 {
    let lengths = candidates
        .iter()
        .map(|candidate| candidate.borrow().curves.seconds());
    lengths.max().unwrap_or(1)
}

/// The length of a round.
fn span_s(candidates: &[&Candidate]) -> u32 {
    seconds(candidates).div_ceil(MOST_ROUNDS).max(1)
}

/// A part of a whole; 1 of nothing.
fn over(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 1.0 }
}
