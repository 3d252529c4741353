//! The course of a recorded guest: its demand curves, one after the other, over and over.

use std::sync::Arc;

use tier_core::arbiter::DemandCurve;

use super::guest::LATE_S;

/// The seconds that an agent counts accesses for, so a curve is late by half of that.
const WINDOW_S: u32 = 5;

/// Demand curves of epochs of equal length.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Curves {
    /// The length of an epoch.
    epoch_s: u32,
    /// What DRAM would serve in each epoch.
    so: Vec<DemandCurve>,
    /// What was measured at the end of each epoch.
    measured: Vec<DemandCurve>,
}

impl Curves {
    /// Curves of epochs of `epoch_s` seconds. `measured` are those of the last epochs together, as many
    /// as [`Self::window`] says, up to the end of each epoch.
    ///
    /// An empty list counts as one epoch without accesses.
    pub(crate) fn new(
        epoch_s: u32,
        mut so: Vec<DemandCurve>,
        mut measured: Vec<DemandCurve>,
    ) -> Self {
        so.resize_with(so.len().max(1), DemandCurve::default);
        measured.resize_with(so.len(), DemandCurve::default);
        Self {
            epoch_s: epoch_s.max(1),
            so,
            measured,
        }
    }

    /// One curve for ever.
    pub(crate) fn steady(curve: DemandCurve) -> Self {
        Self::new(1, vec![curve.clone()], vec![curve])
    }

    /// How many epochs of `epoch_s` seconds an agent counts accesses for.
    pub(crate) fn window(epoch_s: u32) -> usize {
        (WINDOW_S / epoch_s.max(1)).max(1) as usize
    }

    /// The length of all epochs.
    pub(crate) fn seconds(&self) -> u32 {
        self.epoch_s.saturating_mul(self.so.len() as u32)
    }

    /// What DRAM would serve in each epoch, in accesses a second.
    pub(crate) fn epochs(&self) -> &[DemandCurve] {
        &self.so
    }
}

/// Curves that are played from somewhere on.
#[derive(Clone, Debug)]
pub(crate) struct Course {
    pub(crate) curves: Arc<Curves>,
    /// The second of the curves at which it begins.
    pub(crate) offset_s: u32,
    /// How long its virtual CPUs ran in a second; infinite if that is not known.
    pub(crate) vcpu_s_per_s: f64,
}

impl Course {
    /// What DRAM would serve at this second.
    pub(super) fn so(&self, second: u32) -> &DemandCurve {
        &self.curves.so[self.epoch(second, 0)]
    }

    /// What was measured by then.
    pub(super) fn measured(&self, second: u32) -> &DemandCurve {
        let epoch_s = self.curves.epoch_s;
        // A window that is the last of several epochs ends with the epoch before.
        let late = if epoch_s < LATE_S { epoch_s } else { LATE_S };
        &self.curves.measured[self.epoch(second, late)]
    }

    /// The number of the epoch `late` seconds before this second.
    fn epoch(&self, second: u32, late: u32) -> usize {
        let length = u64::from(self.curves.epoch_s) * self.curves.so.len() as u64;
        let since = u64::from(second) + u64::from(self.offset_s) + length;
        let at = since.saturating_sub(u64::from(late)) % length;
        (at / u64::from(self.curves.epoch_s)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(epoch_s: u32, offset_s: u32) -> Course {
        let curve = |hits: u32| DemandCurve::of_buckets([(4096, f64::from(hits))]);
        let so = (1..=4).map(curve).collect();
        let measured = (11..=14).map(curve).collect();
        Course {
            curves: Arc::new(Curves::new(epoch_s, so, measured)),
            offset_s,
            vcpu_s_per_s: f64::INFINITY,
        }
    }

    #[test]
    fn course_when_it_is_played_comes_round_and_is_measured_late() {
        let of = |course: &Course| -> Vec<(f64, f64)> {
            let at = |second| {
                let (so, measured) = (course.so(second), course.measured(second));
                (so.total_hits(), measured.total_hits())
            };
            (0..6).map(at).collect()
        };
        let seconds = [
            (1., 14.),
            (2., 11.),
            (3., 12.),
            (4., 13.),
            (1., 14.),
            (2., 11.),
        ];
        assert_eq!(of(&course(1, 0)), seconds);
        assert_eq!(of(&course(1, 2))[0], (3., 12.));
        // Of epochs of 4 s, three seconds late.
        let long = [
            (1., 14.),
            (1., 14.),
            (1., 14.),
            (1., 11.),
            (2., 11.),
            (2., 11.),
        ];
        assert_eq!(of(&course(4, 0)), long);
        assert_eq!(course(4, 0).curves.seconds(), 16);
    }

    #[test]
    fn curves_when_there_are_none_are_one_without_accesses() {
        let curves = Curves::new(0, Vec::new(), Vec::new());
        assert_eq!(
            (curves.seconds(), curves.epochs()[0].total_hits()),
            (1, 0.0)
        );
        assert_eq!([1, 2, 4, 16].map(Curves::window), [5, 2, 1, 1]);
    }
}
