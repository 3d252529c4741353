//! A rule that divides DRAM, and what becomes of the VMs under it.

use std::collections::BTreeMap;

use tier_core::arbiter::{
    Arbiter, Division as Dues, Fairness, FairnessMeter, Rules, Standing, Vm, divide, jain,
};

use super::Round;

/// What a VM's pages can move in a second, in bytes, to follow its share; and as much again to exchange
/// cold pages for hot pages.
pub(super) const MOVES: u64 = 512 << 20;

/// What the arbiter knows of VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Knowledge {
    /// What is measured, and what liars say.
    Measured,
    /// What would be measured if none lied.
    Honest,
    /// What is so now; shares and bytes follow at once.
    Clairvoyant,
}

/// How DRAM is divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    /// Who comes takes what is free, and keeps it.
    FirstCome,
    /// The arbiter, by these rules.
    Arbiter(Rules, Knowledge),
}

/// What a VM has.
#[derive(Clone, Copy, Debug)]
struct Place {
    holds: u64,
    /// The part of what it holds that has the hottest pages.
    placed: f64,
    phase: usize,
    /// What the clairvoyant owes it: the same rules have the same debts.
    credit_byte_s: f64,
}

/// What a VM had in all the time that it was there, in byte-seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Life {
    entitled: f64,
    wanted: f64,
    /// What it had of what it wanted.
    used: f64,
}

/// What became of a guest.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Accesses a second that DRAM served, and all, summed over the rounds.
    pub(crate) hits: f64,
    pub(crate) accesses: f64,
    /// DRAM that it held, in bytes, summed over the rounds.
    pub(crate) held_bytes: f64,
    /// The least DRAM that it held, in bytes.
    pub(crate) least_bytes: u64,
}

/// A rule at work.
pub(crate) struct Division {
    pub(super) name: &'static str,
    rule: Rule,
    arbiter: Arbiter,
    places: Vec<Option<Place>>,
    meter: FairnessMeter,
    /// By guest.
    pub(crate) tallies: Vec<Tally>,
    /// Hits of all, and of those that lie.
    pub(crate) hits: f64,
    pub(super) liars_hits: f64,
    pub(crate) moved_bytes: u64,
    /// Rounds.
    pub(crate) seconds: u32,
    pub(crate) jain_sum: f64,
    lives: Vec<Life>,
    pub(super) envy_sum: u64,
    pub(super) last: Fairness,
}

impl Division {
    pub(crate) fn new(name: &'static str, rule: Rule, guests: usize) -> Self {
        let rules = match rule {
            Rule::FirstCome => Rules::default(),
            // The host of the model has the bandwidth for what its VMs move.
            Rule::Arbiter(rules, _) => Rules {
                redeal_bytes_per_s: MOVES * guests as u64,
                ..rules
            },
        };
        Self {
            name,
            rule,
            arbiter: Arbiter::new(rules),
            places: vec![None; guests],
            meter: FairnessMeter::default(),
            tallies: vec![Tally::default(); guests],
            hits: 0.0,
            liars_hits: 0.0,
            moved_bytes: 0,
            seconds: 0,
            jain_sum: 0.0,
            lives: vec![Life::default(); guests],
            envy_sum: 0,
            last: Fairness::default(),
        }
    }

    /// The guests have been there for long: each holds what the rule would give it at once.
    pub(crate) fn settle(&mut self, round: &Round<'_>) {
        self.come_and_go(round);
        if let Rule::Arbiter(rules, _) = self.rule {
            let vms: Vec<&Vm> = round.measured.iter().collect();
            let dues = divide(&rules, round.pool, &vms, &[]).dues;
            for (&at, due) in round.there.iter().zip(dues) {
                self.follow(at, due.target_bytes, u64::MAX);
            }
            self.moved_bytes = 0;
        }
    }

    /// A round passes. `fair` is the fair division by what is so.
    pub(crate) fn second(&mut self, round: &Round<'_>, fair: &Dues) {
        self.come_and_go(round);
        let (targets, redealt) = self.deal(round);
        let mut standings = Vec::with_capacity(round.there.len());
        for (nth, &at) in round.there.iter().enumerate() {
            let guest = &round.guests[at];
            let (so, due) = (&round.so[nth], &fair.dues[nth]);
            let Some(place) = &mut self.places[at] else {
                continue;
            };
            // Cold pages are exchanged for hot pages.
            let moves = round.moves() as f64;
            place.placed = (place.placed + moves / place.holds.max(1) as f64).min(1.0);
            let anyhow = place.holds as f64 / guest.terms.cap_bytes as f64;
            let hits = place.placed * so.curve.hits_at(place.holds as f64)
                + (1.0 - place.placed) * so.curve.total_hits() * anyhow;
            self.hits += hits;
            let tally = &mut self.tallies[at];
            tally.least_bytes = match self.seconds {
                0 => place.holds,
                _ => tally.least_bytes.min(place.holds),
            };
            tally.hits += hits;
            tally.accesses += so.curve.total_hits();
            tally.held_bytes += place.holds as f64;
            if guest.lie.is_some() {
                self.liars_hits += hits;
            }
            let life = &mut self.lives[at];
            life.entitled += due.entitled_bytes as f64;
            life.wanted += due.demand_bytes as f64;
            life.used += place.holds.min(due.demand_bytes) as f64;
            standings.push(Standing {
                pool: 0,
                name: &guest.name,
                weight: guest.terms.weight,
                guarantee_bytes: guest.terms.guarantee_bytes,
                demand_bytes: due.demand_bytes,
                fair_bytes: due.fair_bytes,
                target_bytes: targets[nth],
                received_bytes: place.holds,
            });
        }
        self.last = self.meter.look(round.now, &standings, redealt);
        self.seconds += 1;
        self.jain_sum += self.last.jain;
        self.envy_sum += self.last.envy;
    }

    /// Jain's index over what VMs used in their lives, of the lesser of what they were entitled to and what
    /// they wanted. Who lends at one time and borrows at another loses nothing by it.
    pub(super) fn lives_jain(&self) -> f64 {
        jain(self.lives.iter().filter_map(|life| {
            let claim = life.entitled.min(life.wanted);
            (claim > 0.0).then(|| (life.used / claim).min(1.0))
        }))
    }

    /// Who departs leaves its bytes; who changes its phase has them full of cold pages.
    fn come_and_go(&mut self, round: &Round<'_>) {
        for (at, place) in self.places.iter_mut().enumerate() {
            let guest = &round.guests[at];
            let phase = guest.phase(round.second);
            match place {
                Some(_) if !guest.is_there(round.second) => *place = None,
                Some(there) if there.phase != phase => {
                    there.phase = phase;
                    there.placed = 0.0;
                }
                None if guest.is_there(round.second) => {
                    *place = Some(Place {
                        holds: 0,
                        placed: 1.0,
                        phase,
                        credit_byte_s: 0.0,
                    });
                }
                _ => {}
            }
        }
    }

    /// Deals shares and lets the VMs follow; returns what each is to have, and what was re-dealt.
    fn deal(&mut self, round: &Round<'_>) -> (Vec<u64>, u64) {
        match self.rule {
            Rule::FirstCome => {
                let held: u64 = self.places.iter().flatten().map(|place| place.holds).sum();
                let mut free = round.pool - held;
                // Who came first has the lower number, but for those that come later.
                for &at in &round.there {
                    if let Some(place) = &mut self.places[at] {
                        let more = free.min(round.guests[at].terms.cap_bytes - place.holds);
                        place.holds += more;
                        free -= more;
                    }
                }
                let holds = round.there.iter().map(|&at| self.holds(at));
                (holds.collect(), 0)
            }
            Rule::Arbiter(rules, Knowledge::Clairvoyant) => {
                let vms: Vec<&Vm> = round.so.iter().collect();
                let there = |at: &usize| self.places[*at];
                let credits = round.there.iter().map(there);
                let credits: Vec<f64> = credits
                    .map(|place| place.map_or(0.0, |place| place.credit_byte_s))
                    .collect();
                let dues = divide(&rules, round.pool, &vms, &credits).dues;
                for (&at, due) in round.there.iter().zip(&dues) {
                    self.follow(at, due.target_bytes, u64::MAX);
                    if let Some(place) = &mut self.places[at] {
                        let most = due.entitled_bytes as f64 * rules.most_credit.as_secs_f64();
                        let credit = place.credit_byte_s + due.lent_bytes - due.borrowed_bytes;
                        place.credit_byte_s = credit.clamp(-most, most);
                    }
                }
                let targets = dues.iter().map(|due| due.target_bytes).collect();
                (targets, 0)
            }
            Rule::Arbiter(_, knowledge) => {
                let known = match knowledge {
                    Knowledge::Measured => &round.measured,
                    _ => &round.honest,
                };
                let vms: BTreeMap<String, Vm> = round
                    .there
                    .iter()
                    .zip(known)
                    .map(|(&at, vm)| {
                        let holds_bytes = self.holds(at);
                        let vm = Vm {
                            holds_bytes,
                            ..vm.clone()
                        };
                        (round.guests[at].name.clone(), vm)
                    })
                    .collect();
                let decision = self.arbiter.deal(round.now, round.pool, &vms);
                for (&at, share) in round.there.iter().zip(&decision.shares) {
                    self.follow(at, share.share_bytes, round.moves());
                }
                let targets = decision.shares.iter().map(|share| share.due.target_bytes);
                (targets.collect(), decision.redealt_bytes)
            }
        }
    }

    fn holds(&self, at: usize) -> u64 {
        self.places[at].map_or(0, |place| place.holds)
    }

    /// The VM fills its share, or empties what is above, as fast as pages move.
    fn follow(&mut self, at: usize, share: u64, most: u64) {
        if let Some(place) = &mut self.places[at] {
            let before = place.holds;
            place.holds = share.clamp(before.saturating_sub(most), before.saturating_add(most));
            self.moved_bytes += place.holds.abs_diff(before);
        }
    }
}
