//! The curve of hits over the size of DRAM, and the DRAM that a share of hits needs.

use super::report::{Bound, Need, Report, Run, Trace};

/// A policy's hits over the sizes that were replayed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Curve<'a> {
    pub(super) policy: &'a str,
    /// Bytes of DRAM, rising, and the share of accesses that went there.
    pub(super) points: Vec<(u64, f64)>,
}

/// The curves of a trace, a policy each, in the order of tables.
pub(super) fn curves<'a>(report: &'a Report, trace: &'a str) -> Vec<Curve<'a>> {
    let points = |policy: &str| {
        let runs = report.runs_of(trace).filter(|run| run.policy == policy);
        runs.map(|run: &Run| (run.fast_bytes, run.hit_ratio))
            .collect()
    };
    let policies = report.policies_of(trace).into_iter();
    policies
        .map(|policy| Curve {
            policy,
            points: points(policy),
        })
        .collect()
}

/// Adds the runs of one trace, and the DRAM that each policy needs for `target` of the accesses.
pub(super) fn add_with_needs(report: &mut Report, trace: Trace, runs: Vec<Run>, target: f64) {
    let name = trace.trace.clone();
    report.add(trace, runs);
    let needs = needs(report, &name, target);
    report.needs.extend(needs);
}

/// The DRAM that each policy needs for `target` of the accesses; nothing if only one size was replayed.
fn needs(report: &Report, trace: &str, target: f64) -> Vec<Need> {
    let curves = curves(report, trace).into_iter();
    let curves = curves.filter(|curve| curve.points.len() > 1);
    let needs = curves.filter_map(|curve| {
        let (bytes, bound) = need(&curve.points, target)?;
        Some(Need {
            trace: trace.to_owned(),
            policy: curve.policy.to_owned(),
            hit_ratio: target,
            bytes,
            bound,
        })
    });
    needs.collect()
}

/// The size from which on all sizes reach the target. Between two sizes the curve is taken for straight.
/// Where each further byte brings less, as with a good policy, the result is rather too large than too
/// small.
pub(super) fn need(points: &[(u64, f64)], target: f64) -> Option<(u64, Bound)> {
    let last_miss = points.iter().rposition(|&(_, hits)| hits < target);
    let first = last_miss.map_or(0, |index| index + 1);
    let Some(&(above, reached)) = points.get(first) else {
        return Some((points.last()?.0, Bound::MoreThan));
    };
    let Some(&(below, missed)) = last_miss.and_then(|index| points.get(index)) else {
        return Some((above, Bound::AtMost));
    };
    let part = (target - missed) / (reached - missed);
    let bytes = below + ((above - below) as f64 * part).round() as u64;
    Some((bytes, Bound::About))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn need_when_the_target_lies_between_two_sizes_is_between_them() {
        let points = [(100, 0.5), (200, 0.9), (400, 1.0)];
        assert_eq!(need(&points, 0.95), Some((300, Bound::About)));
        assert_eq!(need(&points, 0.9), Some((200, Bound::About)));
        assert_eq!(need(&points, 0.4), Some((100, Bound::AtMost)));
        assert_eq!(need(&points[..2], 0.95), Some((200, Bound::MoreThan)));
        assert_eq!(need(&[], 0.95), None);
    }

    #[test]
    fn need_when_the_curve_falls_again_counts_from_where_it_stays_up() {
        let points = [(100, 0.96), (200, 0.9), (400, 1.0)];
        let (bytes, bound) = need(&points, 0.95).unwrap();
        assert_eq!((bytes, bound), (300, Bound::About));
    }
}
