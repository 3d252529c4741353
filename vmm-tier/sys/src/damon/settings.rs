//! What a kdamond is told: how often to look, how finely, and where.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tier_core::addr::{BASE_PAGE, Hva};

use super::DamonError;

/// What DAMON watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operations {
    /// Given ranges of virtual addresses (`fvaddr`), or `vaddr` where the kernel lacks it.
    #[default]
    Virtual,
    /// Physical addresses (`paddr`): the addresses in samples are then no HVAs. For hosts without
    /// virtual-address operations, to check the way from the kernel to the samples.
    Physical,
}

/// How DAMON samples. In each sampling interval it looks at *one* random 4 KiB page of each region;
/// at the end of an aggregation interval it tells how often that page was found accessed, joins
/// neighbours that differ little and splits the rest at random places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamonSettings {
    /// Time between two looks.
    pub sampling: Duration,
    /// Time between two reports; regions are joined and split then.
    pub aggregation: Duration,
    /// Time between two looks for new mappings (only `vaddr`).
    pub update: Duration,
    /// Regions at least, 3 or more.
    pub min_regions: u64,
    /// Regions at most.
    pub max_regions: u64,
    /// What is watched.
    pub operations: Operations,
}

impl Default for DamonSettings {
    fn default() -> Self {
        Self {
            sampling: Duration::from_millis(10),
            aggregation: Duration::from_millis(200),
            update: Duration::from_secs(1),
            min_regions: 10,
            max_regions: 1200,
            operations: Operations::Virtual,
        }
    }
}

impl DamonSettings {
    /// How often a page can be found accessed in one aggregation.
    #[must_use]
    pub fn max_accesses(&self) -> u64 {
        let (aggregation, sampling) = (self.aggregation.as_micros(), self.sampling.as_micros());
        u64::try_from(aggregation / sampling.max(1)).unwrap_or(u64::MAX)
    }

    /// What `damon_set_attrs` (mm/damon/core.c) and common sense ask for.
    pub(super) fn check(&self) -> Result<(), DamonError> {
        if self.sampling.as_micros() == 0 {
            return Err(DamonError::Settings(
                "the sampling interval is shorter than 1 µs",
            ));
        }
        if self.aggregation < self.sampling {
            return Err(DamonError::Settings(
                "the aggregation interval is shorter than the sampling interval",
            ));
        }
        if self.aggregation > Duration::from_secs(3600) {
            return Err(DamonError::Settings(
                "the aggregation interval is longer than an hour",
            ));
        }
        if self.min_regions < 3 {
            return Err(DamonError::Settings("there must be at least 3 regions"));
        }
        if self.max_regions < self.min_regions {
            return Err(DamonError::Settings("more regions at least than at most"));
        }
        Ok(())
    }
}

/// Ranges as (start, end), rising, whole pages, neighbours joined.
pub(super) fn sorted_ranges(ranges: &[(Hva, u64)]) -> Result<Vec<(u64, u64)>, DamonError> {
    let mut sorted = Vec::with_capacity(ranges.len());
    for &(start, len) in ranges.iter().filter(|(_, len)| *len > 0) {
        let end = start
            .0
            .checked_add(len)
            .and_then(|end| end.checked_next_multiple_of(BASE_PAGE));
        let end = end.ok_or(DamonError::Settings(
            "a range goes past the end of the address space",
        ))?;
        sorted.push((start.align_down(BASE_PAGE).0, end));
    }
    if sorted.is_empty() {
        return Err(DamonError::Settings("there is no range to watch"));
    }
    sorted.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::with_capacity(sorted.len());
    for (start, end) in sorted {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    Ok(joined)
}
