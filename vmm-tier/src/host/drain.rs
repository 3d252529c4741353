//! A drain: guests leave DRAM down to a size, at the rate of moves.

use std::{collections::BTreeMap, time::Duration};

use tier_core::time::Time;

use super::{
    pools::{self, PoolId},
    report::HostDrain,
};

/// The longest time that one step is reckoned to span: a clock that jumps frees no more.
const LONGEST_STEP: Duration = Duration::from_secs(10);

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct Drain {
    to: u64,
    /// What guests may hold now; `None` before the first step.
    limit: Option<(Time, u64)>,
    told: Option<HostDrain>,
}

impl Drain {
    pub(super) const fn new(to: u64) -> Self {
        Self {
            to,
            limit: None,
            told: None,
        }
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

    pub(super) const fn report(&self, held: u64) -> HostDrain {
        HostDrain {
            to_bytes: self.to,
            held_bytes: held,
            left_bytes: held.saturating_sub(self.to),
            done: held <= self.to,
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
        let mut drain = Drain::new(10);
        let mut limit = |s| drain.limit(at(s), 100, 20);
        assert_eq!(limit(50), 100);
        assert_eq!(limit(51), 80);
        assert_eq!(limit(40), 80, "a clock that goes back frees nothing");
        assert_eq!(limit(52), 60);
        assert_eq!(limit(90), 10);
    }

    #[test]
    fn news_when_a_hundredth_was_left_and_at_the_end_is_told() {
        let mut drain = Drain::new(0);
        assert!(drain.news(1000).is_some());
        assert!(drain.news(995).is_none());
        assert_eq!(drain.news(900).unwrap().left_bytes, 900);
        assert!(drain.news(0).unwrap().done);
        assert!(drain.news(0).is_none());
    }
}
