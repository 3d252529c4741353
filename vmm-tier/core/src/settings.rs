//! What an operator may set about one VM's tiering, validated.

use std::time::Duration;

crate::words! {
    /// Which tier a page or node belongs to.
    pub enum Tier {
        /// DRAM.
        Fast = "fast",
        /// CXL, PMEM, far nodes.
        Slow = "slow",
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
    /// Share of one CPU that looking up placements may take.
    pub scan_cpu_share: f64,
    /// Plan and report, but move nothing.
    pub dry_run: bool,
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
            dry_run: false,
        }
    }
}
