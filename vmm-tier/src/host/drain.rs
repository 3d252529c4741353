//! A drain: guests leave DRAM down to a size, or a node of it, at the rate of moves.

use std::{collections::BTreeMap, time::Duration};

use tier_core::{
    addr::{NodeId, NodeSet},
    time::Time,
};

use super::{
    overrides::Overrides,
    pools::{self, PoolId},
    report::{DrainState, HostDrain},
};

/// The longest time that one step is reckoned to span: a clock that jumps frees no more.
const LONGEST_STEP: Duration = Duration::from_secs(10);

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct Drain {
    to: u64,
    /// The node that guests leave, if it is one.
    node: Option<NodeId>,
    /// What guests may hold now; `None` before the first step.
    limit: Option<(Time, u64)>,
    told: Option<HostDrain>,
}

impl Drain {
    pub(super) const fn new(to: u64, node: Option<NodeId>) -> Self {
        Self {
            to,
            node,
            limit: None,
            told: None,
        }
    }

    /// The drain that commands had ordered, on a daemon that deals the memory of `nodes`.
    pub(super) fn of(overrides: &Overrides, nodes: &NodeSet) -> Option<Self> {
        let to = overrides.drain_bytes?;
        let node = overrides.drain_node.map(NodeId);
        if let Some(node) = node
            && let Err(error) = check_node(node, nodes)
        {
            tracing::warn!("the drain of node {node} is over: {error}");
            return None;
        }
        Some(Self::new(to, node))
    }

    /// Whether guests leave a node. What they hold of it is what the kernel says.
    pub(super) const fn is_of_node(&self) -> bool {
        self.node.is_some()
    }

    /// What guests may keep of each pool in the end, of pools that have these sizes: the same part of
    /// each.
    pub(super) fn aims(&self, sizes: &BTreeMap<PoolId, u64>) -> BTreeMap<PoolId, u64> {
        let all = pools::all(sizes);
        let aim = |(&id, &size)| (id, part(self.to.min(all), size, all));
        sizes.iter().map(aim).collect()
    }

    /// What guests may hold at `now`: what they hold at first, then less by the rate.
    pub(super) fn limit(&mut self, now: Time, held: u64, bytes_per_s: u64) -> u64 {
        let limit = match self.limit {
            None => held.max(self.to),
            Some((at, limit)) => {
                let span = now.since(at).min(LONGEST_STEP).as_secs_f64();
                let less = (bytes_per_s as f64 * span) as u64;
                limit.saturating_sub(less).max(self.to)
            }
        };
        let now = self.limit.map_or(now, |(at, _)| at.max(now));
        self.limit = Some((now, limit));
        limit
    }

    pub(super) fn report(&self, held: u64) -> HostDrain {
        HostDrain {
            state: match held <= self.to {
                true => DrainState::Done,
                false => DrainState::Running,
            },
            node: self.node.map(|node| node.0),
            to_bytes: self.to,
            held_bytes: held,
            left_bytes: held.saturating_sub(self.to),
            done: held <= self.to,
        }
    }

    /// What is to be told when the drain is taken back.
    pub(super) fn cancelled(&self, held: u64) -> HostDrain {
        HostDrain {
            state: DrainState::Cancelled,
            ..self.report(held)
        }
    }

    /// What is to be told: progress by a hundredth of the way, and the end.
    pub(super) fn news(&mut self, held: u64) -> Option<HostDrain> {
        let report = self.report(held);
        let is_news = self.told.as_ref().is_none_or(|told| {
            let step = told.left_bytes.abs_diff(report.left_bytes);
            told.done != report.done || step > report.to_bytes.max(told.held_bytes) / 100
        });
        if is_news {
            self.told = Some(report.clone());
        }
        is_news.then_some(report)
    }
}

/// Whether guests can leave a node by moves to slower nodes.
pub(super) fn check_node(node: NodeId, nodes: &NodeSet) -> Result<(), NodeError> {
    let nodes = nodes.clone();
    match (nodes.contains(node), nodes.len()) {
        (false, _) => Err(NodeError::NotDealt { node, nodes }),
        (true, 1) => Ok(()),
        (true, _) => Err(NodeError::NotAlone { node, nodes }),
    }
}

/// Why guests can't leave a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NodeError {
    #[error("node {node} is none of the nodes whose memory is dealt: {nodes}")]
    NotDealt { node: NodeId, nodes: NodeSet },
    #[error(
        "guests can't leave node {node} alone: agents move pages between tiers, and not between the nodes \
         {nodes} of DRAM. Without 'node' guests leave all of them"
    )]
    NotAlone { node: NodeId, nodes: NodeSet },
}

/// The part of `bytes` that `one` is of `all`; nothing of nothing.
pub(super) fn part(bytes: u64, one: u64, all: u64) -> u64 {
    let part = u128::from(bytes) * u128::from(one) / u128::from(all.max(1));
    u64::try_from(part).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Time {
        Time(0) + Duration::from_secs(s)
    }

    #[test]
    fn limit_when_time_passes_falls_at_the_rate_down_to_the_aim() {
        let mut drain = Drain::new(10, None);
        let mut limit = |s| drain.limit(at(s), 100, 20);
        assert_eq!(limit(50), 100);
        assert_eq!(limit(51), 80);
        assert_eq!(limit(40), 80, "a clock that goes back frees nothing");
        assert_eq!(limit(52), 60);
        assert_eq!(limit(90), 10);
    }

    #[test]
    fn news_when_a_hundredth_was_left_and_at_the_end_is_told() {
        let mut drain = Drain::new(0, None);
        assert!(drain.news(1000).is_some());
        assert!(drain.news(995).is_none());
        assert_eq!(drain.news(900).unwrap().left_bytes, 900);
        assert!(drain.news(0).unwrap().done);
        assert!(drain.news(0).is_none());
    }

    #[test]
    fn aims_when_there_are_several_pools_are_the_same_part_of_each() {
        let huge = PoolId::Hugetlb(2 << 20);
        let sizes = BTreeMap::from([(PoolId::Plain, 84), (huge, 64)]);
        let aims = |to| Drain::new(to, None).aims(&sizes);
        assert_eq!(aims(37), BTreeMap::from([(PoolId::Plain, 21), (huge, 16)]));
        assert_eq!(aims(0), BTreeMap::from([(PoolId::Plain, 0), (huge, 0)]));
        assert_eq!(aims(u64::MAX), sizes);
        assert_eq!(Drain::new(5, None).aims(&BTreeMap::new()), BTreeMap::new());
    }

    #[test]
    fn node_when_it_is_not_all_of_dram_is_refused_by_name() {
        let nodes = |text: &str| text.parse::<NodeSet>().unwrap();
        assert_eq!(check_node(NodeId(0), &nodes("0")), Ok(()));
        let error = check_node(NodeId(1), &nodes("0")).unwrap_err().to_string();
        assert!(error.contains("node 1 is none of the nodes"), "{error}");
        let error = check_node(NodeId(2), &nodes("0,2"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("not between the nodes 0,2 of DRAM"),
            "{error}"
        );
        // Nodes may have changed since the command.
        let overrides = Overrides {
            drain_bytes: Some(0),
            drain_node: Some(0),
            ..Overrides::default()
        };
        assert!(Drain::of(&overrides, &nodes("0")).is_some_and(|it| it.is_of_node()));
        assert!(Drain::of(&overrides, &nodes("0-1")).is_none());
    }
}
