//! How much DRAM a guest asks for, and how that is known.

use crate::{
    addr::BASE_PAGE,
    arbiter::{DemandCurve, Point},
    engine::{VmEngine, VmState},
    settings::Tier,
    time::Time,
};

/// Accesses a second of each 4 KiB that are assumed of memory whose accesses are not measured: enough to
/// count as used, and less than what is measured of busy memory.
const ASSUMED_PER_S: f64 = 1.0;

crate::words! {
    /// How a guest's demand is known.
    pub enum DemandBasis {
        /// By the accesses of the last seconds.
        Measured = "measured",
        /// It is not measured, or the agent moves nothing: the guest asks for what it holds.
        Held = "held",
    }
}

crate::report! {
    /// A point of a demand curve.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct DemandPoint = "TierDemandPoint" {
        /// So much DRAM, with the hottest pages in it.
        pub bytes: f64,
        /// The accesses a second that it serves.
        pub accesses_per_s: f64,
    }
}

crate::report! {
    /// How many accesses a second DRAM would serve, by how much of it there is. Between the points the
    /// curve is straight.
    #[derive(Clone, Debug, PartialEq)]
    pub struct DemandReport = "TierDemand" {
        /// How that is known.
        pub basis: DemandBasis,
        /// The curve, by rising bytes; it begins at nothing.
        pub curve: Vec<DemandPoint>,
    }
}

impl From<Demand> for DemandReport {
    fn from(Demand { basis, curve }: Demand) -> Self {
        let point = |point: &Point| DemandPoint {
            bytes: point.bytes,
            accesses_per_s: point.hits,
        };
        Self {
            basis,
            curve: curve.points().iter().map(point).collect(),
        }
    }
}

/// How much DRAM a guest asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// How that is known.
    pub basis: DemandBasis,
    /// Accesses a second that DRAM would serve, by bytes of it.
    pub curve: DemandCurve,
}

/// The demand now. Where nothing is moved (the guest is stopped, moves pause, no source delivers, a dry
/// run) less DRAM could not be given back, and more would not be used.
pub(crate) fn of(engine: &VmEngine, now: Time) -> Demand {
    let moves = engine.state() == VmState::Running && !engine.settings().dry_run;
    let measured = engine.evidence.demand.curve(now).filter(|_| moves);
    match measured {
        Some(curve) => Demand {
            basis: DemandBasis::Measured,
            curve,
        },
        None => {
            let bytes = engine.pages.bytes().of(Tier::Fast);
            let hits = bytes as f64 / BASE_PAGE as f64 * ASSUMED_PER_S;
            Demand {
                basis: DemandBasis::Held,
                curve: DemandCurve::of_points([(bytes, hits)]),
            }
        }
    }
}
