//! What became of each move of a guest's hot set: how soon the new hot set was in DRAM, and for how
//! many bytes.

use serde::Serialize;

use crate::event::Mark;
use crate::result::{GuestPoint, Point, RunResult};

/// A move of the hot set while an agent was there. Shares are of the new hot set on node 0; seconds
/// count from the move, as exactly as the measurements come, once a second.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Change {
    /// Seconds since the start of tiering.
    pub at_s: f64,
    /// Share at the first measurement after the move.
    pub share_before: f64,
    /// Share when the next move came, or tiering ended.
    pub share_at_end: f64,
    /// Seconds until the next move, or until tiering ended.
    pub lasted_s: f64,
    /// Until the first byte moved.
    pub seconds_to_first: Option<f64>,
    /// Until the share was 0.5.
    pub seconds_to_50: Option<f64>,
    /// Until the share was 0.95.
    pub seconds_to_95: Option<f64>,
    /// Bytes that the kernel migrated until the next move.
    pub moved_bytes: u64,
    /// What was not on node 0 after the move, up, and as much down.
    pub least_bytes: u64,
}

impl RunResult {
    /// The moves of a guest's hot set during tiering, in order. A move after which nothing was measured
    /// is left out.
    #[must_use]
    pub fn changes(&self, guest: &str) -> Vec<Change> {
        let series = self.tiering(guest);
        let Some(&(first, point, _)) = series.first() else {
            return Vec::new();
        };
        let start = point.t - first;
        let marks = self.marks.iter();
        let moves: Vec<f64> = marks
            .filter(|(_, mark, name)| *mark == Mark::HotMoved && name == guest)
            .map(|(t, _, _)| t - start)
            .filter(|at| *at >= 0.0)
            .collect();
        let ends = moves.iter().skip(1).copied().chain([f64::INFINITY]);
        moves
            .iter()
            .zip(ends)
            .filter_map(|(&at, end)| change(at, end, &series))
            .collect()
    }
}

fn change(at: f64, end: f64, series: &[(f64, &Point, &GuestPoint)]) -> Option<Change> {
    // A measurement that had begun when the hot set moved may have met either.
    let stretch: Vec<_> = series
        .iter()
        .filter(|(t, _, _)| *t > at && *t <= end)
        .collect();
    let (_, first, first_guest) = **stretch.first()?;
    let (last_t, last, last_guest) = **stretch.last()?;
    let until = |reached: &dyn Fn(&Point, &GuestPoint) -> bool| {
        let found = stretch
            .iter()
            .find(|(_, point, guest)| reached(point, guest));
        found.map(|(t, _, _)| t - at)
    };
    let share = |least: f64| until(&|_, guest| guest.hot_share.is_some_and(|share| share >= least));
    Some(Change {
        at_s: at,
        share_before: first_guest.hot_share?,
        share_at_end: last_guest.hot_share?,
        lasted_s: last_t - at,
        seconds_to_first: until(&|point, _| point.migrated_bytes > first.migrated_bytes),
        seconds_to_50: share(0.5),
        seconds_to_95: share(0.95),
        moved_bytes: last.migrated_bytes.saturating_sub(first.migrated_bytes),
        least_bytes: 2 * first_guest.hot_slow_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::lifted;

    /// The hot set of [`lifted`], which is all in DRAM from second 15 on, moves at second 20.2; the new
    /// one is slow, and is lifted within four seconds from second 24 on.
    fn moved() -> RunResult {
        let mut run = lifted();
        run.marks.push((20.2, Mark::HotMoved, "guest".to_owned()));
        for point in &mut run.series[20..] {
            let lifted = (point.t as u64).saturating_sub(23).min(4) * 2500;
            let guest = point.guests.get_mut("guest").unwrap();
            guest.hot_share = Some(lifted as f64 / 10_000.0);
            guest.hot_slow_bytes = (10_000 - lifted) * 4096;
            point.migrated_bytes += 2 * lifted * 4096;
        }
        run
    }

    #[test]
    fn change_when_the_new_hot_set_is_lifted_tells_when_and_for_how_many_bytes() {
        let changes = moved().changes("guest");

        assert_eq!(changes.len(), 1);
        let change = &changes[0];
        let near = |found: Option<f64>, wanted: f64| (found.unwrap() - wanted).abs() < 1e-9;
        assert!((change.at_s - 9.7).abs() < 1e-9);
        assert_eq!((change.share_before, change.share_at_end), (0.0, 1.0));
        assert!(near(change.seconds_to_first, 3.8));
        assert!(near(change.seconds_to_50, 4.8));
        assert!(near(change.seconds_to_95, 6.8));
        assert_eq!(change.moved_bytes, change.least_bytes);
        assert_eq!(change.least_bytes, 2 * 10_000 * 4096);
    }

    #[test]
    fn change_when_another_follows_ends_there() {
        let mut run = moved();
        run.marks.push((26.5, Mark::HotMoved, "guest".to_owned()));

        let changes = run.changes("guest");

        assert_eq!(changes.len(), 2);
        assert_eq!(changes[0].seconds_to_95, None);
        assert_eq!(changes[0].share_at_end, 0.75);
        assert!((changes[0].lasted_s - 5.8).abs() < 1e-9);
    }

    #[test]
    fn change_before_tiering_is_none_of_its() {
        let mut run = lifted();
        run.marks.push((5.0, Mark::HotMoved, "guest".to_owned()));

        assert!(run.changes("guest").is_empty());
    }
}
