//! How fair a division is: figures of what VMs have, against what they are entitled to.

use std::collections::BTreeMap;

use super::{Share, Vm};
use crate::time::Time;

/// A VM envies another only if that has more above its guarantee, by weight, by this factor. Shares
/// within 2 % of each other count as equal.
const ENVY_FROM: f64 = 1.02;
/// A division is a new one if targets change by more than this part of all that is dealt.
const NEW_FROM: f64 = 0.01;
/// A new division is settled when this part of the way is left.
const SETTLED_AT: f64 = 0.05;
/// The longest time between two looks that deficits are counted for.
const LONGEST_GAP_S: f64 = 10.0;

crate::report! {
    /// How fairly DRAM is divided among the VMs.
    #[derive(Clone, Debug, Default, PartialEq)]
    pub struct Fairness = "HostFairness" {
        /// Jain's index over what VMs have of what weight and demand entitle them to: 1 if all have the
        /// same part of it, and one VM's part of all VMs if one has everything.
        #[metric(gauge = "fairness_jain_ratio")]
        pub jain: f64,
        /// The VM that has the least part of what weight and demand entitle it to, or null if no VM uses
        /// memory.
        #[metric(exempt = "a name, and which VM it is changes")]
        pub worst_vm: Option<String>,
        /// The part that it has.
        #[metric(
            gauge = "fairness_worst_ratio",
            help = "The least part that a VM has of what weight and demand entitle it to"
        )]
        pub worst_ratio: f64,
        /// Bytes by which VMs have had less than they used of their guarantees, times the seconds for
        /// which they had.
        #[metric(counter = "guarantee_deficit_byte_seconds", since = "the arbiter's start")]
        pub deficit_byte_seconds: f64,
        /// VMs that use more than they have, and have less above their guarantees, by weight, than
        /// another VM.
        #[metric(gauge = "fairness_envious_vms")]
        pub envy: u64,
        /// How long it took after the last change of the division until 95 % of the bytes that were to
        /// change hands had done so, or null before the first time.
        #[metric(gauge = "division_settled_seconds")]
        pub settled_after_s: Option<f64>,
        /// Bytes by which the last decision raised shares above what VMs held.
        #[metric(gauge = "division_redealt_bytes")]
        pub redealt_bytes: u64,
    }
}

/// What a VM has, and what it should have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing<'a> {
    /// The VM.
    pub name: &'a str,
    /// The pool that it shares: VMs envy nobody of another pool.
    pub pool: u64,
    /// Its weight.
    pub weight: f64,
    /// What is guaranteed to it, in bytes.
    pub guarantee_bytes: u64,
    /// What it uses, in bytes.
    pub demand_bytes: u64,
    /// What it has by weight and demand: [`Due::fair_bytes`](super::Due::fair_bytes).
    pub fair_bytes: u64,
    /// What it is to have by the mode.
    pub target_bytes: u64,
    /// What it has, by what the kernel says.
    pub received_bytes: u64,
}

impl<'a> Standing<'a> {
    /// The standing of a VM that has this share by the arbiter's decision, of pool 0.
    #[must_use]
    pub fn new(name: &'a str, vm: &Vm, share: &Share) -> Self {
        Self {
            name,
            pool: 0,
            weight: vm.terms.believed_weight(),
            guarantee_bytes: vm.terms.guarantee().min(vm.terms.cap()),
            demand_bytes: share.due.demand_bytes,
            fair_bytes: share.due.fair_bytes,
            target_bytes: share.due.target_bytes,
            received_bytes: vm.holds_bytes,
        }
    }

    /// The part of what weight and demand entitle it to that it has; `None` if that is nothing.
    fn part(&self) -> Option<f64> {
        let claim = self.fair_bytes.min(self.demand_bytes);
        (claim > 0).then(|| self.received_bytes.min(claim) as f64 / claim as f64)
    }

    fn deficit(&self) -> u64 {
        let needed = self.guarantee_bytes.min(self.demand_bytes);
        needed.saturating_sub(self.received_bytes)
    }

    /// What it has above its guarantee, by weight.
    fn above(&self) -> f64 {
        self.received_bytes.saturating_sub(self.guarantee_bytes) as f64 / self.weight
    }

    /// What of its target it would use.
    fn usable_target(&self) -> u64 {
        self.target_bytes.min(self.demand_bytes)
    }
}

/// Jain's index, (Σx)² / (n Σx²): 1 if all are equal, 1/n if one has all; 1 for none.
///
/// Source: Jain, Chiu, Hawe, "A Quantitative Measure of Fairness and Discrimination", DEC TR-301, 1984.
#[must_use]
pub fn jain(parts: impl IntoIterator<Item = f64>) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for part in parts {
        count += 1.0;
        sum += part;
        squares += part * part;
    }
    match squares > 0.0 {
        true => sum * sum / (count * squares),
        false => 1.0,
    }
}

/// Keeps the figures of fairness over time.
#[derive(Clone, Debug, Default)]
pub struct FairnessMeter {
    looked: Option<Time>,
    deficit_byte_s: f64,
    targets: BTreeMap<String, u64>,
    /// Since when the way to the targets is gone, and how long it was then, in bytes.
    on_the_way: Option<(Time, u64)>,
    settled_after_s: Option<f64>,
}

impl FairnessMeter {
    /// Takes in what VMs have at `now`; says how fair that is. `redealt_bytes` is what the last decision
    /// re-dealt.
    pub fn look(&mut self, now: Time, standings: &[Standing<'_>], redealt_bytes: u64) -> Fairness {
        let gap = self
            .looked
            .map_or(0.0, |looked| now.since(looked).as_secs_f64());
        self.looked = Some(now);
        let deficit: f64 = standings.iter().map(|vm| vm.deficit() as f64).sum();
        self.deficit_byte_s += deficit * gap.min(LONGEST_GAP_S);
        self.follow_division(now, standings);
        let parts = || standings.iter().filter_map(Standing::part);
        let worst = standings
            .iter()
            .filter_map(|vm| Some((vm.part()?, vm.name)))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(b.1)));
        Fairness {
            jain: jain(parts()),
            worst_vm: worst.map(|(_, name)| name.to_owned()),
            worst_ratio: worst.map_or(1.0, |(part, _)| part),
            deficit_byte_seconds: self.deficit_byte_s,
            envy: envious(standings),
            settled_after_s: self.settled_after_s,
            redealt_bytes,
        }
    }

    fn follow_division(&mut self, now: Time, standings: &[Standing<'_>]) {
        let before = |name: &str| self.targets.get(name).copied().unwrap_or(0);
        let changed: u64 = standings
            .iter()
            .map(|vm| vm.usable_target().abs_diff(before(vm.name)))
            .fold(0, u64::saturating_add);
        let all: f64 = standings.iter().map(|vm| vm.usable_target() as f64).sum();
        // A byte that changes hands changes two targets.
        if changed as f64 / 2.0 > all * NEW_FROM {
            let targets = standings.iter();
            self.targets = targets
                .map(|vm| (vm.name.to_owned(), vm.usable_target()))
                .collect();
            self.on_the_way = Some((now, way(standings)));
        }
        if let Some((since, length)) = self.on_the_way
            && way(standings) as f64 <= length as f64 * SETTLED_AT
        {
            self.settled_after_s = Some(now.since(since).as_secs_f64());
            self.on_the_way = None;
        }
    }
}

/// By how many bytes VMs have less than they are to have.
fn way(standings: &[Standing<'_>]) -> u64 {
    let missing = |vm: &Standing<'_>| vm.usable_target().saturating_sub(vm.received_bytes);
    standings.iter().map(missing).fold(0, u64::saturating_add)
}

fn envious(standings: &[Standing<'_>]) -> u64 {
    let mut most: BTreeMap<u64, f64> = BTreeMap::new();
    for vm in standings {
        let most = most.entry(vm.pool).or_default();
        *most = most.max(vm.above());
    }
    let most = |vm: &Standing<'_>| most.get(&vm.pool).copied().unwrap_or(0.0);
    let envies = |vm: &&Standing<'_>| {
        vm.received_bytes < vm.demand_bytes && vm.above() * ENVY_FROM < most(vm)
    };
    standings.iter().filter(envies).count() as u64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::{Object, family};

    const MIB: u64 = 1 << 20;

    fn standing(name: &str, demand: u64, fair: u64, received: u64) -> Standing<'_> {
        Standing {
            name,
            pool: 0,
            weight: 1.0,
            guarantee_bytes: 10 * MIB,
            demand_bytes: demand * MIB,
            fair_bytes: fair * MIB,
            target_bytes: fair * MIB,
            received_bytes: received * MIB,
        }
    }

    #[test]
    fn jain_when_all_are_equal_is_1_and_when_one_has_all_is_its_part() {
        assert_eq!(jain([0.5, 0.5, 0.5]), 1.0);
        assert_eq!(jain([1.0, 0.0, 0.0, 0.0]), 0.25);
        // (1 + 0.45 + 0.08)² / (3 · (1 + 0.2025 + 0.0064))
        assert!((jain([1.0, 0.45, 0.08]) - 2.3409 / 3.6267).abs() < 1e-9);
        assert_eq!(jain([]), 1.0);
        assert_eq!(jain([0.0]), 1.0);
    }

    #[test]
    fn fairness_when_the_first_to_come_has_all_tells_who_lacks_what() {
        // Three guests of 24, 48 and 96 MiB in use, and DRAM for 153: the first holds 120 of it.
        let mut meter = FairnessMeter::default();
        let standings = [
            standing("a", 24, 36, 120),
            standing("b", 48, 48, 26),
            standing("c", 96, 69, 7),
        ];
        let fairness = meter.look(Time(0), &standings, 0);
        let parts = [1.0, 26.0 / 48.0, 7.0 / 69.0];
        assert!((fairness.jain - jain(parts)).abs() < 1e-12);
        assert_eq!(fairness.worst_vm.as_deref(), Some("c"));
        assert!((fairness.worst_ratio - 7.0 / 69.0).abs() < 1e-12);
        // Both others use more than they have, and the first has 110 MiB above its guarantee.
        assert_eq!(fairness.envy, 2);
        let mut apart = standings;
        apart[1].pool = 2 << 20;
        let apart = FairnessMeter::default().look(Time(0), &apart, 0);
        assert_eq!(
            apart.envy, 1,
            "what the first has is not the second's to envy"
        );
        assert_eq!(fairness.deficit_byte_seconds, 0.0);
        // The third lacks 3 MiB of its guarantee for two seconds.
        let later = meter.look(Time(0) + Duration::from_secs(2), &standings, 5);
        assert_eq!(later.deficit_byte_seconds, 6.0 * MIB as f64);
        assert_eq!((later.redealt_bytes, later.settled_after_s), (5, None));
    }

    #[test]
    fn division_when_19_of_20_missing_bytes_have_come_is_settled() {
        let mut meter = FairnessMeter::default();
        let mut at = |s, received| {
            let now = Time(0) + Duration::from_secs(s);
            meter
                .look(now, &[standing("a", 100, 100, received)], 0)
                .settled_after_s
        };
        assert_eq!(at(5, 0), None);
        assert_eq!(at(8, 94), None);
        assert_eq!(at(9, 95), Some(4.0));
        // It stays what it was until the next division is settled.
        assert_eq!(at(20, 10), Some(4.0));
    }

    #[test]
    fn clock_when_it_jumps_counts_no_more_than_ten_seconds() {
        let mut meter = FairnessMeter::default();
        let standings = [standing("a", 24, 24, 0)];
        meter.look(Time(5), &standings, 0);
        let fairness = meter.look(Time(u64::MAX), &standings, 0);
        assert_eq!(fairness.deficit_byte_seconds, 100.0 * MIB as f64);
        let fairness = meter.look(Time(0), &standings, 0);
        assert_eq!(fairness.deficit_byte_seconds, 100.0 * MIB as f64);
    }

    #[test]
    fn figures_are_metrics() {
        let families = family::families(Object::of::<Fairness>());
        assert_eq!(families.len(), 6);
    }
}
