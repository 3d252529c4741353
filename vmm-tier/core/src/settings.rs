//! What an operator may set about one VM's tiering, validated.

use std::{ops::RangeInclusive, time::Duration};

use crate::{
    addr::HUGE_PAGE,
    heat::{MAX_HALF_LIFE, MIN_HALF_LIFE},
};

crate::words! {
    /// Which tier a page or node belongs to.
    pub enum Tier {
        /// DRAM.
        Fast = "fast",
        /// CXL, PMEM, far nodes.
        Slow = "slow",
    }
}

crate::words! {
    /// A policy that chooses the pages to move.
    pub enum PolicyName {
        /// Exchanges the hottest pages of the slow tier with the coldest of the fast tier.
        DualHeap = "dual-heap",
    }
}

/// Settings of one VM's engine. Defaults are those of `examples/vmm-tier.toml`, where each is explained.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineSettings {
    /// Time in which the weight of an observation halves. With a source that counts accesses, from an eighth to four
    /// times of it, whichever foretells accesses best.
    pub half_life: Duration,
    /// How long a page is expected to keep its heat: the time over which a move must pay back.
    pub horizon: Duration,
    /// How many standard deviations two pages' heats must lie apart before they are exchanged, with a source that tests
    /// pages. Counts of accesses are judged by those of all pages instead.
    pub min_z: f64,
    /// Upper bound on bytes moved a second, promotions and demotions together.
    pub rate_bytes_per_s: u64,
    /// Bytes that one batch of moves may hold.
    pub batch_bytes: u64,
    /// How long a page that was just moved is left alone.
    pub cooldown: Duration,
    /// How long the source must have observed the guest before anything is moved; a quarter of it for a source that
    /// counts accesses.
    pub warm_up: Duration,
    /// Free bytes to keep on the fast node above its high watermark.
    pub headroom_bytes: u64,
    /// Most bytes of the fast tier that this VM may hold; `None` for no limit.
    pub fast_limit_bytes: Option<u64>,
    /// Share of one CPU that looking up placements may take; a 32nd of it while the guest is at
    /// rest.
    pub scan_cpu_share: f64,
    /// Let the next pages of shared memory come from the tier on which its pages lie.
    pub rebind: bool,
    /// Have a transparent huge page split that is hot in few of its frames, and promote these only. It
    /// takes a source that samples accesses.
    pub split_huge: bool,
    /// Have small pages on the fast tier made a huge page where they are evenly hot.
    pub collapse_huge: bool,
    /// Measure how much DRAM the guest's accesses ask for.
    pub measures_demand: bool,
    /// Plan and report, but move nothing.
    pub dry_run: bool,
}

/// The bounds of each setting, for configuration files, commands and state files alike.
impl EngineSettings {
    /// Of the half-life: below it no source resolves anything; above it nothing would ever cool.
    pub const HALF_LIFE: RangeInclusive<Duration> = MIN_HALF_LIFE..=MAX_HALF_LIFE;
    /// Of the horizon: no move pays back in less than 100 ms; a week at most.
    pub const HORIZON: RangeInclusive<Duration> =
        Duration::from_millis(100)..=Duration::from_secs(7 * 24 * 3600);
    /// Of the standard deviations.
    pub const MIN_Z: RangeInclusive<f64> = 0.0..=100.0;
    /// Of the bytes moved a second: at least one page (to move nothing, pause), at most 1 TiB, which is
    /// more than any memory delivers.
    pub const RATE_BYTES_PER_S: RangeInclusive<u64> = 4096..=1 << 40;
    /// Of a batch: it must hold a huge page, or a guest of huge pages would never be tiered.
    pub const BATCH_BYTES: RangeInclusive<u64> = HUGE_PAGE..=1 << 40;
    /// Of the cooldown.
    pub const COOLDOWN: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
    /// Of the warm-up.
    pub const WARM_UP: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
    /// Of the headroom.
    pub const HEADROOM_BYTES: RangeInclusive<u64> = 0..=1 << 40;
    /// Of the share of one CPU for look-ups.
    pub const SCAN_CPU_SHARE: RangeInclusive<f64> = 1e-4..=1.0;
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            half_life: Duration::from_secs(10),
            horizon: Duration::from_secs(30),
            min_z: 3.0,
            rate_bytes_per_s: 256 << 20,
            batch_bytes: 4 << 20,
            cooldown: Duration::from_secs(5),
            warm_up: Duration::from_secs(2),
            headroom_bytes: 4 << 20,
            fast_limit_bytes: None,
            scan_cpu_share: 0.005,
            rebind: false,
            split_huge: false,
            collapse_huge: false,
            measures_demand: false,
            dry_run: false,
        }
    }
}
