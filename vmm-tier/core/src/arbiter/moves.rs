//! The host's budget of moves: what each VM may promote and demote a second.

use super::{
    Terms,
    water::{Vessel, fill},
};

/// What a VM has to move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moving<'a> {
    /// What it is granted; the weight counts.
    pub terms: &'a Terms,
    /// What it would move a second if it could, in bytes.
    pub wanted_bytes_per_s: u64,
}

/// Deals `budget` bytes a second among VMs: first what they want, by weight where that is more than the
/// budget; then what is left, by weight, so that a VM that begins to move need not wait. All together
/// get no more than the budget.
#[must_use]
pub fn deal_moves(budget: u64, vms: &[Moving<'_>]) -> Vec<u64> {
    let vessel = |vm: &Moving<'_>, room| Vessel::new(vm.terms.believed_weight(), room);
    let wants: Vec<Vessel> = vms
        .iter()
        .map(|vm| vessel(vm, vm.wanted_bytes_per_s as f64))
        .collect();
    let dealt = fill(budget as f64, &wants);
    let left = budget as f64 - dealt.iter().sum::<f64>();
    let all: f64 = wants.iter().map(|vessel| vessel.weight).sum();
    let parts = dealt.iter().zip(&wants).map(|(dealt, vessel)| {
        let more = left.max(0.0) * vessel.weight / all;
        (dealt + more) as u64
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deal(budget: u64, vms: &[(f64, u64)]) -> Vec<u64> {
        let terms: Vec<Terms> = vms
            .iter()
            .map(|&(weight, _)| Terms {
                guarantee_bytes: 0,
                cap_bytes: 1 << 30,
                weight,
                page_bytes: 4096,
                goal: None,
            })
            .collect();
        let moving = terms.iter().zip(vms).map(|(terms, &(_, wanted))| Moving {
            terms,
            wanted_bytes_per_s: wanted,
        });
        deal_moves(budget, &moving.collect::<Vec<_>>())
    }

    #[test]
    fn budget_when_all_want_more_is_dealt_by_weight() {
        assert_eq!(
            deal(400, &[(1.0, 900), (1.0, 900), (2.0, 900)]),
            [100, 100, 200]
        );
    }

    #[test]
    fn budget_when_a_vm_wants_less_goes_to_those_that_want_more() {
        // The second takes 10; 390 by 1 : 2 are 130 and 260.
        assert_eq!(
            deal(400, &[(1.0, 900), (1.0, 10), (2.0, 900)]),
            [130, 10, 260]
        );
    }

    #[test]
    fn budget_when_wants_are_met_is_dealt_whole() {
        // 300 are left; by 1 : 2 these are 100 and 200.
        assert_eq!(deal(400, &[(1.0, 100), (2.0, 0)]), [200, 200]);
        assert_eq!(deal(400, &[(1.0, 0)]), [400]);
        assert_eq!(deal(400, &[]), Vec::<u64>::new());
        assert_eq!(deal(0, &[(1.0, 5)]), [0]);
    }

    #[test]
    fn budget_when_wants_are_absurd_is_never_exceeded() {
        let dealt = deal(
            1 << 30,
            &[(1000.0, u64::MAX), (0.001, u64::MAX), (f64::NAN, 7)],
        );
        assert!(dealt.iter().sum::<u64>() <= 1 << 30, "{dealt:?}");
    }
}
